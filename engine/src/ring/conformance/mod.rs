//! One suite for every back end: each test runs over the table of cases that [`cases`] makes, which is
//! every mode on every file system at hand. A case is left out only where the file system refuses the
//! mode, and the reason is printed.

mod faults;
mod lifetime;
mod mounts;
mod transfer;

use super::attempt::RawDisk;
use super::faulty::{FaultPlan, FaultyDisk};
use super::open::{open_disk, open_faulty_disk};
use super::probe::probe;
use super::uring::UringDisk;
use super::whole::WholeDisk;
use super::{Completion, Disk, DiskFile, IoMode, Operation, OperationKind};
use crate::buffer::{BufferPool, PageBuffer};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// A block size that is no power of two, so that offsets and lengths cannot be mixed up.
const BLOCK: usize = 5 * 4096;

/// One row: a back end on a file system.
struct Case {
    name: String,
    mode: IoMode,
    alignment: usize,
    /// Set up the ring as on an old kernel.
    plain: bool,
    folder: TempDir,
}

impl Case {
    fn open(&self, depth: usize, pool: Option<&BufferPool>) -> Box<dyn Disk> {
        if self.plain {
            return Box::new(WholeDisk::new(self.raw_plain(depth, pool), self.alignment));
        }
        open_disk(self.mode, depth, self.alignment, pool).expect("open").0
    }

    fn open_faulty(&self, depth: usize, pool: Option<&BufferPool>, plan: &FaultPlan) -> Box<dyn Disk> {
        if self.plain {
            let raw = Box::new(FaultyDisk::new(self.raw_plain(depth, pool), plan));
            return Box::new(WholeDisk::new(raw, self.alignment));
        }
        open_faulty_disk(self.mode, depth, self.alignment, pool, plan).expect("open").0
    }

    fn raw_plain(&self, depth: usize, pool: Option<&BufferPool>) -> Box<dyn RawDisk> {
        Box::new(UringDisk::open_plain(self.mode, depth, pool).expect("open").0)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn create(&self, name: &str) -> Arc<DiskFile> {
        let folder = std::fs::File::open(self.folder.path()).expect("folder");
        let _ = std::fs::remove_file(self.path(name));
        Arc::new(DiskFile::create_new(&folder, name, 0o600, self.mode).expect("create"))
    }

    fn open_read(&self, name: &str) -> Arc<DiskFile> {
        let folder = std::fs::File::open(self.folder.path()).expect("folder");
        Arc::new(DiskFile::open_read(&folder, name, self.mode).expect("open"))
    }
}

/// Every mode in each of the usual places.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for place in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        if place.is_dir() {
            cases_in(&place, &mut cases);
        }
    }
    cases
}

fn cases_in(place: &Path, cases: &mut Vec<Case>) {
    for mode in IoMode::ALL {
        let folder = TempDir::with_prefix_in("pgstrata-ring-", place).expect("folder");
        let report = match probe(folder.path(), Some(mode)) {
            Ok(report) => report,
            Err(error) => {
                println!("skipped: {error}");
                assert_ne!(mode, IoMode::Threads, "plain threads work everywhere: {error}");
                continue;
            }
        };
        let name = format!("{mode} on {} ({})", report.kernel.file_system, place.display());
        let alignment = report.alignment;
        if mode == IoMode::Direct {
            let folder = TempDir::with_prefix_in("pgstrata-ring-", place).expect("folder");
            cases.push(Case { name: format!("{name}, plain ring"), mode, alignment, plain: true, folder });
        }
        cases.push(Case { name, mode, alignment, plain: false, folder });
    }
}

/// Bytes that depend on the seed and the position only.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x2545_F491_4F6C_DD1D) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn filled(pool: &BufferPool, bytes: &[u8]) -> PageBuffer {
    let mut buffer = pool.take().expect("open pool");
    assert_eq!(buffer.extend_from_slice(bytes), bytes.len());
    buffer
}

fn write(token: u64, file: &Arc<DiskFile>, buffer: PageBuffer, offset: u64, alignment: usize) -> Operation {
    let length = buffer.len().next_multiple_of(alignment);
    Operation { token, file: Arc::clone(file), kind: OperationKind::Write { buffer, offset, length } }
}

fn read(token: u64, file: &Arc<DiskFile>, buffer: PageBuffer, offset: u64, length: usize) -> Operation {
    Operation { token, file: Arc::clone(file), kind: OperationKind::Read { buffer, offset, length } }
}

fn sync(token: u64, file: &Arc<DiskFile>, data_only: bool) -> Operation {
    Operation { token, file: Arc::clone(file), kind: OperationKind::Sync { data_only } }
}

/// Submits one operation and waits for it.
fn run(disk: &mut dyn Disk, operation: Operation) -> Completion {
    let token = operation.token;
    assert!(disk.submit(operation).is_ok(), "room in the queue");
    let mut done = Vec::new();
    while done.is_empty() {
        disk.reap(true, &mut done).expect("reap");
    }
    let completion = done.pop().expect("one");
    assert!(done.is_empty());
    assert_eq!(completion.token, token);
    completion
}

/// Reaps until nothing is in flight.
fn finish(disk: &mut dyn Disk, done: &mut Vec<Completion>) {
    while disk.in_flight() > 0 {
        disk.reap(true, done).expect("reap");
    }
}

/// Writes `bytes` block by block, with as many in flight as the disk takes, and returns the failures. The
/// pool must hold more buffers than the disk is deep.
fn write_all(
    disk: &mut dyn Disk,
    pool: &BufferPool,
    file: &Arc<DiskFile>,
    bytes: &[u8],
) -> Vec<(u64, io::Error)> {
    let mut done = Vec::new();
    let mut failures = Vec::new();
    let mut tally = |done: &mut Vec<Completion>| {
        for completion in done.drain(..) {
            assert!(completion.buffer.is_some(), "a write gives its buffer back");
            if let Err(error) = completion.result {
                failures.push((completion.token, error));
            }
        }
    };
    for (number, block) in bytes.chunks(BLOCK).enumerate() {
        let offset = (number * BLOCK) as u64;
        let mut operation = write(number as u64, file, filled(pool, block), offset, disk.alignment());
        while let Err(back) = disk.submit(operation) {
            operation = back;
            disk.reap(true, &mut done).expect("reap");
            tally(&mut done);
        }
    }
    finish(disk, &mut done);
    tally(&mut done);
    failures
}

/// Reads `length` bytes block by block, several at a time; blocks that failed are reported instead.
fn read_all(
    disk: &mut dyn Disk,
    pool: &BufferPool,
    file: &Arc<DiskFile>,
    length: usize,
) -> (Vec<u8>, Vec<(u64, io::Error)>) {
    let mut bytes = vec![0; length];
    let mut done = Vec::new();
    let mut failures = Vec::new();
    let mut tally = |done: &mut Vec<Completion>| {
        for completion in done.drain(..) {
            let buffer = completion.buffer.expect("a read gives its buffer back");
            match completion.result {
                Ok(count) => {
                    let start = usize::try_from(completion.token).expect("small") * BLOCK;
                    assert_eq!(count, BLOCK.min(length - start), "block {}", completion.token);
                    assert_eq!(buffer.len(), count);
                    bytes[start..start + count].copy_from_slice(&buffer);
                }
                Err(error) => {
                    assert!(buffer.is_empty());
                    failures.push((completion.token, error));
                }
            }
        }
    };
    for number in 0..length.div_ceil(BLOCK) {
        let buffer = pool.take().expect("open pool");
        let mut operation = read(number as u64, file, buffer, (number * BLOCK) as u64, BLOCK);
        while let Err(back) = disk.submit(operation) {
            operation = back;
            disk.reap(true, &mut done).expect("reap");
            tally(&mut done);
        }
    }
    finish(disk, &mut done);
    tally(&mut done);
    (bytes, failures)
}
