//! Opens a disk: the back end for a mode, under the layer that makes operations whole.

use super::attempt::RawDisk;
use super::error::RingError;
use super::faulty::{FaultPlan, FaultyDisk};
use super::mode::IoMode;
use super::registration::Registered;
use super::threads::ThreadsDisk;
use super::uring::UringDisk;
use super::whole::WholeDisk;
use crate::buffer::BufferPool;

/// The deepest queue: the kernel's limit on the entries of a ring (`IORING_MAX_ENTRIES`, io_uring/io_uring.c)
/// less the entry for the doorbell.
const MAX_DEPTH: usize = 32767;

/// Opens a disk for up to `depth` operations at a time. `alignment` is what a probe reported for the target,
/// and is what [`Disk::alignment`](super::Disk::alignment) returns in direct mode.
///
/// A ring registers the buffers of `pool` when the limit on locked memory allows, and else works without;
/// each ring over the same pool counts against that limit on its own. The ring is bound to the thread that
/// first calls `reap`, and must be dropped there.
///
/// # Errors
/// When the kernel gives no ring, threads cannot be started, or the sizes make no sense.
pub fn open_disk(
    mode: IoMode,
    depth: usize,
    alignment: usize,
    pool: Option<&BufferPool>,
) -> Result<(Box<dyn super::Disk>, Registered), RingError> {
    let (raw, alignment, registered) = open_raw(mode, depth, alignment, pool)?;
    Ok((Box::new(WholeDisk::new(raw, alignment)), registered))
}

/// As [`open_disk`], with faults between the back end and the layer that resumes short operations. For tests.
///
/// # Errors
/// As [`open_disk`].
pub fn open_faulty_disk(
    mode: IoMode,
    depth: usize,
    alignment: usize,
    pool: Option<&BufferPool>,
    plan: &FaultPlan,
) -> Result<(Box<dyn super::Disk>, Registered), RingError> {
    let (raw, alignment, registered) = open_raw(mode, depth, alignment, pool)?;
    let raw = Box::new(FaultyDisk::new(raw, plan));
    Ok((Box::new(WholeDisk::new(raw, alignment)), registered))
}

fn open_raw(
    mode: IoMode,
    depth: usize,
    alignment: usize,
    pool: Option<&BufferPool>,
) -> Result<(Box<dyn RawDisk>, usize, Registered), RingError> {
    if depth == 0 || depth > MAX_DEPTH {
        return Err(RingError::Sizes {
            what: "queue depth",
            found: depth,
            expected: format!("1 to {MAX_DEPTH}"),
        });
    }
    if mode == IoMode::Threads {
        let registered = Registered::No("plain threads need no registration".to_owned());
        return Ok((Box::new(ThreadsDisk::open(depth)?), 1, registered));
    }
    let alignment = if mode == IoMode::Direct { alignment } else { 1 };
    if !alignment.is_power_of_two() {
        let expected = "a power of two".to_owned();
        return Err(RingError::Sizes { what: "alignment", found: alignment, expected });
    }
    if let Some(pool) = pool.filter(|pool| !pool.buffer_size().is_multiple_of(alignment)) {
        let expected = format!("a multiple of the disk's alignment of {alignment}");
        return Err(RingError::Sizes { what: "buffer size", found: pool.buffer_size(), expected });
    }
    let (disk, registered) = UringDisk::open(mode, depth, pool)?;
    Ok((Box::new(disk), alignment, registered))
}
