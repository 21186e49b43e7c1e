//! The io_uring back end, for direct and for uncached files alike.
//!
//! Invariants: a slot holds its attempt, and so its file and buffer, from the push until the kernel has
//! posted the completion; dropping the ring first waits for every slot to empty. The ring is bound to the
//! thread that first collects from it. All `unsafe` of disk I/O lives here.

use super::attempt::{Attempt, Attempted, RawDisk, Task};
use super::doorbell::Doorbell;
use super::error::RingError;
use super::mode::IoMode;
use super::registration::{self, Registered};
use crate::buffer::{BufferPool, PageBuffer};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use memmap2::{MmapMut, MmapRaw};
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// The `user_data` of the read that waits for the doorbell; slots count up from 0.
const BELL: u64 = u64::MAX;

/// The memory of a closed ring counts against the user's locked-memory limit until the kernel has freed it
/// in the background, and nothing tells when. Under a small limit (64 KiB in many containers) a ring opened
/// right after another was closed, as after a probe, needs that moment.
const NO_MEMORY_TRIES: u32 = 40;
const NO_MEMORY_PAUSE: Duration = Duration::from_millis(5);

/// The operations a ring must know, with their names for messages (linux/io_uring.h, kernel 5.6).
const NEEDED: [(u8, &str); 5] = [
    (opcode::Read::CODE, "IORING_OP_READ"),
    (opcode::Write::CODE, "IORING_OP_WRITE"),
    (opcode::ReadFixed::CODE, "IORING_OP_READ_FIXED"),
    (opcode::WriteFixed::CODE, "IORING_OP_WRITE_FIXED"),
    (opcode::Fsync::CODE, "IORING_OP_FSYNC"),
];

/// A ring with its operations in flight.
pub(super) struct UringDisk {
    ring: IoUring,
    /// Whether the ring runs yet; enabling binds it to the thread that does so.
    enabled: bool,
    mode: IoMode,
    slots: Vec<Option<Attempt>>,
    vacant: Vec<usize>,
    /// The pool whose buffers the kernel keeps pinned, in the order of their numbers.
    registered: Option<BufferPool>,
    bell: Doorbell,
    /// Whether a read of the doorbell is queued or in flight.
    bell_armed: bool,
    /// The eight bytes that read goes to. Never looked at.
    bell_value: Option<MmapRaw>,
    bell_error: Option<io::Error>,
}

impl UringDisk {
    /// Opens a ring for `depth` operations and registers the pool's buffers if the kernel lets it.
    pub(super) fn open(
        mode: IoMode,
        depth: usize,
        pool: Option<&BufferPool>,
    ) -> Result<(Self, Registered), RingError> {
        // One more than the slots, for the doorbell: a push never finds the queue full.
        let entries = u32::try_from(depth + 1).unwrap_or(u32::MAX);
        let (ring, flavor) = build(entries)?;
        Self::over(ring, flavor, mode, depth, pool)
    }

    /// As `open`, but as on a kernel that knows no flags.
    #[cfg(test)]
    pub(super) fn open_plain(
        mode: IoMode,
        depth: usize,
        pool: Option<&BufferPool>,
    ) -> Result<(Self, Registered), RingError> {
        let entries = u32::try_from(depth + 1).unwrap_or(u32::MAX);
        let ring = build_flavor(Flavor::Plain, entries)
            .map_err(|error| RingError::NoRing { reason: registration::why_no_ring(&error) })?;
        Self::over(ring, Flavor::Plain, mode, depth, pool)
    }

    fn over(
        ring: IoUring,
        flavor: Flavor,
        mode: IoMode,
        depth: usize,
        pool: Option<&BufferPool>,
    ) -> Result<(Self, Registered), RingError> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|error| RingError::Setup { what: "an eventfd", source: error.into() })?;
        let bell_value = MmapMut::map_anon(size_of::<u64>())
            .map_err(|source| RingError::Setup { what: "a page of memory", source })?;
        let (registered, outcome) = match pool.map(|pool| register(&ring, pool)) {
            Some(Ok(())) => (pool.cloned(), Registered::Yes),
            Some(Err(reason)) => (None, Registered::No(reason)),
            None => (None, Registered::No("no pool was given".to_owned())),
        };
        let disk = Self {
            ring,
            enabled: flavor == Flavor::Plain,
            mode,
            slots: (0..depth).map(|_| None).collect(),
            vacant: (0..depth).rev().collect(),
            registered,
            bell: Doorbell::over_event(event),
            bell_armed: false,
            bell_value: Some(MmapRaw::from(bell_value)),
            bell_error: None,
        };
        Ok((disk, outcome))
    }

    fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// Queues an entry. Its memory and descriptor must stay valid until its completion was drained.
    fn queue(&mut self, entry: &squeue::Entry) {
        // SAFETY: entries come from `push`, whose slot owns the buffer and the file until `drain` sees the
        // completion, and from `arm_bell`, whose memory and eventfd live in `self`. `Drop` waits for all of
        // them, and leaks what they point to when it cannot.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "the submission queue has an entry for each slot and the doorbell");
    }

    /// Keeps a read of the doorbell in flight, so that a ring becomes a completion.
    fn arm_bell(&mut self) {
        if self.bell_armed {
            return;
        }
        let (Some(event), Some(value)) = (self.bell.event(), &self.bell_value) else { return };
        let entry =
            opcode::Read::new(types::Fd(event.as_raw_fd()), value.as_mut_ptr(), 8).build().user_data(BELL);
        self.queue(&entry);
        self.bell_armed = true;
    }

    /// Takes every posted completion; true when the doorbell was among them.
    fn drain(&mut self, done: &mut Vec<Attempted>) -> bool {
        let mut rung = false;
        for entry in self.ring.completion() {
            let result = outcome(&entry);
            if entry.user_data() == BELL {
                self.bell_armed = false;
                rung = true;
                self.bell_error = result.err().filter(|error| !is_transient(error));
                continue;
            }
            let slot = usize::try_from(entry.user_data()).ok();
            let attempt = slot.and_then(|slot| self.slots.get_mut(slot)).and_then(Option::take);
            let (Some(slot), Some(attempt)) = (slot, attempt) else {
                panic!("a completion for slot {:#x}, which is not in flight", entry.user_data());
            };
            self.vacant.push(slot);
            done.push(Attempted { attempt, result });
        }
        rung
    }

    /// Enters the kernel, starting what is queued, until `wanted` completions are there or a signal came.
    fn enter(&self, wanted: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(wanted) {
            // Busy: completions must be drained first. Again: out of memory for requests at the moment.
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether entering the kernel without waiting would do anything.
    fn has_work(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Waits until the kernel is done with everything it was given.
    fn quiesce(&mut self) -> io::Result<()> {
        if !self.enabled {
            // Nothing can have been submitted.
            return Ok(());
        }
        if self.bell_armed {
            self.bell.wake();
        }
        let mut done = Vec::new();
        while self.in_flight() > 0 || self.bell_armed {
            self.enter(1)?;
            self.drain(&mut done);
            done.clear();
        }
        Ok(())
    }
}

impl RawDisk for UringDisk {
    fn push(&mut self, mut attempt: Attempt) {
        let slot = self.vacant.pop();
        let slot = slot.expect("at most `depth` attempts are in flight");
        let entry = build_entry(&mut attempt, self.registered.as_ref()).user_data(slot as u64);
        self.slots[slot] = Some(attempt);
        self.queue(&entry);
    }

    fn collect(&mut self, wait: bool, done: &mut Vec<Attempted>) -> io::Result<bool> {
        self.enable()?;
        let before = done.len();
        let mut rung = self.drain(done);
        if wait && !rung && done.len() == before {
            self.arm_bell();
            if self.bell.fall_asleep() {
                let entered = self.enter(1);
                rung = self.bell.wake_up();
                entered?;
            } else {
                rung = true;
                self.enter(0)?;
            }
        } else if self.has_work() {
            self.enter(0)?;
        }
        rung |= self.drain(done);
        match self.bell_error.take() {
            Some(error) => Err(error),
            None => Ok(rung),
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    fn depth(&self) -> usize {
        self.slots.len()
    }

    fn mode(&self) -> IoMode {
        self.mode
    }

    fn doorbell(&self) -> Doorbell {
        self.bell.clone()
    }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        if let Err(error) = self.quiesce() {
            // The kernel may still write to or read from this memory: it must never be used again.
            tracing::error!(
                in_flight = self.in_flight(),
                %error,
                "a ring could not be drained; the buffers of its operations are lost until exit"
            );
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(self.bell_value.take());
            std::mem::forget(self.registered.take());
        }
    }
}

/// Errors of entering the kernel, or of a read of the doorbell, that only ask to try again.
fn is_transient(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::INTR | Errno::AGAIN | Errno::BUSY | Errno::CANCELED))
}

/// A completion's result: a byte count or a negated errno.
fn outcome(entry: &cqueue::Entry) -> io::Result<usize> {
    let result = entry.result();
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()))
}

/// How a ring is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavor {
    /// With the flags that save the most interrupts (Linux 6.1). Disabled until it is first used, since
    /// that is what binds it to a thread.
    Deferred,
    /// Without any flags, for older kernels.
    Plain,
}

/// Makes the best ring that the kernel knows.
fn build(entries: u32) -> Result<(IoUring, Flavor), RingError> {
    let no_ring = |error: io::Error| RingError::NoRing { reason: registration::why_no_ring(&error) };
    match build_flavor(Flavor::Deferred, entries) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let ring = build_flavor(Flavor::Plain, entries).map_err(no_ring)?;
            Ok((require_operations(ring)?, Flavor::Plain))
        }
        ring => Ok((require_operations(ring.map_err(no_ring)?)?, Flavor::Deferred)),
    }
}

fn build_flavor(flavor: Flavor, entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    if flavor == Flavor::Deferred {
        builder
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all();
    }
    for _ in 0..NO_MEMORY_TRIES {
        match builder.build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => std::thread::sleep(NO_MEMORY_PAUSE),
            built => return built,
        }
    }
    builder.build(entries)
}

/// Refuses a ring that cannot do what is asked of it here.
fn require_operations(ring: IoUring) -> Result<IoUring, RingError> {
    let mut probe = Probe::new();
    let missing = match ring.submitter().register_probe(&mut probe) {
        Ok(()) => NEEDED.iter().find(|(code, _)| !probe.is_supported(*code)).map(|(_, name)| *name),
        Err(_) => Some("IORING_REGISTER_PROBE"),
    };
    let missing = missing.or((!ring.params().is_feature_nodrop()).then_some("IORING_FEAT_NODROP"));
    match missing {
        Some(name) => Err(RingError::NoRing {
            reason: format!("the kernel lacks {name}; a ring needs Linux 5.6 or newer"),
        }),
        None => Ok(ring),
    }
}

/// Pins the pool's buffers, or says why not.
fn register(ring: &IoUring, pool: &BufferPool) -> Result<(), String> {
    registration::worth_trying(pool)?;
    // SAFETY: the ranges stay mapped while any handle of the pool lives. On success the disk keeps one next
    // to the ring, and the kernel holds its own references to the pinned pages.
    let registered = unsafe { ring.submitter().register_buffers(&pool.as_iovecs()) };
    registered.map_err(|error| registration::refused(&error, pool))
}

fn build_entry(attempt: &mut Attempt, registered: Option<&BufferPool>) -> squeue::Entry {
    let uncached = attempt.operation.file.is_uncached();
    let flags = if uncached { libc::RWF_DONTCACHE } else { 0 };
    let file = descriptor(attempt.operation.file.as_fd());
    match attempt.task() {
        Task::Write { buffer, start, length, offset } => {
            let (memory, length) = (range(buffer, start, length).cast_const(), length_u32(length));
            match fixed_index(buffer, registered) {
                Some(index) => opcode::WriteFixed::new(file, memory, length, index)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                None => opcode::Write::new(file, memory, length).offset(offset).rw_flags(flags).build(),
            }
        }
        Task::Read { buffer, start, length, offset } => {
            let (memory, length) = (range(buffer, start, length), length_u32(length));
            match fixed_index(buffer, registered) {
                Some(index) => {
                    opcode::ReadFixed::new(file, memory, length, index).offset(offset).rw_flags(flags).build()
                }
                None => opcode::Read::new(file, memory, length).offset(offset).rw_flags(flags).build(),
            }
        }
        Task::Sync { data_only } => {
            let flags = if data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
            opcode::Fsync::new(file).flags(flags).build()
        }
    }
}

fn descriptor(file: BorrowedFd<'_>) -> types::Fd {
    types::Fd(file.as_raw_fd())
}

/// Where `length` bytes from `start` begin in memory. The bounds are checked here, since the kernel gets
/// the bare address.
fn range(buffer: &PageBuffer, start: usize, length: usize) -> *mut u8 {
    let end = start.checked_add(length);
    assert!(end.is_some_and(|end| end <= buffer.capacity()), "an attempt past its buffer");
    buffer.start().wrapping_add(start)
}

fn length_u32(length: usize) -> u32 {
    u32::try_from(length).expect("buffers are at most 1 GiB")
}

/// The buffer's number in the registered pool, when it comes from that pool.
fn fixed_index(buffer: &PageBuffer, registered: Option<&BufferPool>) -> Option<u16> {
    let index = u16::try_from(buffer.index()).ok()?;
    registered.is_some_and(|pool| pool.owns(buffer)).then_some(index)
}
