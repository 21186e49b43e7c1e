//! The plain-thread back end: a few threads that take attempts from a bounded queue, for every kernel and
//! file system.
//!
//! Invariants: both queues hold `depth` attempts, so neither a push nor a worker ever blocks on a full one;
//! dropping the disk lets the workers finish what they were given and joins them.

use super::attempt::{Attempt, Attempted, RawDisk, Task};
use super::doorbell::Doorbell;
use super::error::RingError;
use super::file::DiskFile;
use super::mode::IoMode;
use crossbeam::channel::{Receiver, Sender, bounded, select};
use rustix::fs::Advice;
use std::io;
use std::num::NonZeroU64;
use std::thread::JoinHandle;

/// Threads for one disk. More would only queue in the file system: writes to one file exclude each other.
const WORKERS: usize = 4;

/// Written data is handed to writeback, and clean data dropped, each time this many bytes are complete, so
/// that the sync at the end finds little to do and the page cache keeps what others need.
const WINDOW: u64 = 8 << 20;

/// A disk served by threads.
pub(super) struct ThreadsDisk {
    depth: usize,
    in_flight: usize,
    /// Gone when the workers are told to end.
    jobs: Option<Sender<Attempt>>,
    finished: Receiver<Attempted>,
    bell: Doorbell,
    wake_ups: Receiver<()>,
    workers: Vec<JoinHandle<()>>,
}

impl ThreadsDisk {
    /// Starts the threads.
    pub(super) fn open(depth: usize) -> Result<Self, RingError> {
        let (jobs, work) = bounded(depth);
        let (report, finished) = bounded(depth);
        let (wake, wake_ups) = bounded(1);
        let mut disk = Self {
            depth,
            in_flight: 0,
            jobs: Some(jobs),
            finished,
            bell: Doorbell::over_channel(wake),
            wake_ups,
            workers: Vec::new(),
        };
        for number in 0..WORKERS.min(depth) {
            let (work, report) = (work.clone(), report.clone());
            let worker = std::thread::Builder::new()
                .name(format!("disk-{number}"))
                .spawn(move || serve(&work, &report))
                .map_err(|source| RingError::Setup { what: "a thread", source })?;
            disk.workers.push(worker);
        }
        Ok(disk)
    }

    fn take_finished(&mut self, done: &mut Vec<Attempted>) {
        let before = done.len();
        done.extend(self.finished.try_iter());
        self.in_flight -= done.len() - before;
    }
}

impl RawDisk for ThreadsDisk {
    fn push(&mut self, attempt: Attempt) {
        let jobs = self.jobs.as_ref().expect("open until dropped");
        assert!(jobs.try_send(attempt).is_ok(), "at most `depth` attempts are in flight");
        self.in_flight += 1;
    }

    fn collect(&mut self, wait: bool, done: &mut Vec<Attempted>) -> io::Result<bool> {
        let before = done.len();
        self.take_finished(done);
        if !wait || done.len() > before {
            return Ok(false);
        }
        if !self.bell.fall_asleep() {
            return Ok(true);
        }
        let received = select! {
            recv(self.finished) -> finished => finished.map(Some),
            recv(self.wake_ups) -> _ => Ok(None),
        };
        let rung = self.bell.wake_up();
        match received {
            Ok(Some(finished)) => {
                done.push(finished);
                self.in_flight -= 1;
            }
            Ok(None) => {}
            Err(_) => return Err(io::Error::other("the disk threads are gone")),
        }
        self.take_finished(done);
        Ok(rung)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn mode(&self) -> IoMode {
        IoMode::Threads
    }

    fn doorbell(&self) -> Doorbell {
        self.bell.clone()
    }
}

impl Drop for ThreadsDisk {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a disk thread panicked");
            }
        }
    }
}

fn serve(work: &Receiver<Attempt>, report: &Sender<Attempted>) {
    for mut attempt in work {
        let result = perform(&mut attempt);
        if report.send(Attempted { attempt, result }).is_err() {
            return;
        }
    }
}

/// One system call; a short result is a result.
fn perform(attempt: &mut Attempt) -> io::Result<usize> {
    let file = std::sync::Arc::clone(&attempt.operation.file);
    match attempt.task() {
        Task::Write { buffer, start, length, offset } => {
            let written = rustix::io::pwrite(&*file, buffer.bytes(start, length), offset)?;
            let end = offset + written as u64;
            if let Some(window) = completed_window(offset, end) {
                drop_from_cache(&file, window, Some(WINDOW * 2));
            }
            Ok(written)
        }
        Task::Read { buffer, start, length, offset } => {
            Ok(rustix::io::pread(&*file, &mut buffer.as_mut_slice()[start..start + length], offset)?)
        }
        Task::Sync { data_only } => {
            if data_only {
                rustix::fs::fdatasync(&*file)?;
            } else {
                rustix::fs::fsync(&*file)?;
            }
            drop_from_cache(&file, 0, None);
            Ok(0)
        }
    }
}

/// Where to drop from when a write of `offset..end` completed a window: that window starts writeback, and
/// the one before it should be clean by now.
fn completed_window(offset: u64, end: u64) -> Option<u64> {
    (end / WINDOW > offset / WINDOW).then(|| (end / WINDOW * WINDOW).saturating_sub(2 * WINDOW))
}

/// Advice only: dirty pages are sent to the disk, clean ones leave the cache, errors do not matter.
fn drop_from_cache(file: &DiskFile, offset: u64, length: Option<u64>) {
    if !file.is_direct() {
        let _ = rustix::fs::fadvise(file, offset, length.and_then(NonZeroU64::new), Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_dropped_when_complete() {
        let rows = [
            (0, 4096, None),
            (0, WINDOW - 1, None),
            (WINDOW - 4096, WINDOW, Some(0)),
            (WINDOW, WINDOW + 4096, None),
            (2 * WINDOW - 1, 2 * WINDOW + 1, Some(0)),
            (3 * WINDOW - 1, 3 * WINDOW, Some(WINDOW)),
        ];
        for (offset, end, expected) in rows {
            assert_eq!(completed_window(offset, end), expected, "{offset}..{end}");
        }
    }
}
