//! What came of a combination, and what it was limited by.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::assembly::Content;

/// A finished combination.
#[derive(Clone, Debug, Serialize)]
pub struct CombineReport {
    /// The new data directory.
    pub path: PathBuf,
    /// Whether nothing was written, as asked for.
    pub dry_run: bool,
    /// Backups of the chain.
    pub backups: usize,
    /// The cluster's system identifier.
    pub system_identifier: String,
    /// Where recovery begins.
    pub start_lsn: String,
    /// Files that were taken whole.
    pub whole_files: u64,
    /// Files that were put together from several backups.
    pub reconstructed_files: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written by this process.
    pub bytes_written: u64,
    /// Bytes that were shared with the backups or copied by the kernel.
    pub bytes_within_kernel: u64,
    /// Bytes of files that are links to those of the backups.
    pub bytes_linked: u64,
    /// Seconds by phase.
    pub seconds: CombineSeconds,
    /// Bytes a second, over all.
    pub bytes_per_second: f64,
    /// CPU seconds of this process, its kernel workers included.
    pub cpu_seconds: f64,
    /// The largest resident set, in bytes.
    pub peak_memory: u64,
    /// Threads that put files together.
    pub workers: usize,
    /// The disk back end.
    pub io: String,
    /// Why that one.
    pub io_reason: String,
    /// What the run was limited by.
    pub limited_by: CombineLimit,
    /// What the workers' time went to.
    pub worker_seconds: CombineWorkerSeconds,
}

/// Seconds by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CombineSeconds {
    /// Everything.
    pub total: f64,
    /// Reading labels, control files and manifests.
    pub examine: f64,
    /// Putting files together.
    pub files: f64,
    /// Waiting for the last of them to be durable, folders and names.
    pub finish: f64,
}

/// What a combination was limited by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CombineLimit {
    /// Reading the backups.
    Read,
    /// The processors: checksums.
    Checksums,
    /// The device that the output lies on, and its file system.
    Write,
    /// Manifests, folders, opening files.
    Files,
}

impl fmt::Display for CombineLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CombineLimit::Read => "reading the backups",
            CombineLimit::Checksums => "checksums (processors)",
            CombineLimit::Write => "writing to the output's device",
            CombineLimit::Files => "manifests, folders and opening files",
        })
    }
}

/// Seconds that the workers spent, added over them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CombineWorkerSeconds {
    /// Reading sources, the checks of their pages included.
    pub read: f64,
    /// Computing checksums.
    pub checksums: f64,
    /// Waiting for writers, or for the kernel to move data.
    pub write: f64,
    /// Opening files and deciding what they are made of.
    pub files: f64,
    /// Waiting for something to do.
    pub idle: f64,
}

/// What a moment of a worker's time went to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Moment {
    Read,
    Checksums,
    Write,
    Files,
    Idle,
}

/// The workers' times, in nanoseconds by [`Moment`].
#[derive(Debug, Default)]
pub(super) struct Times([AtomicU64; 5]);

/// One worker's clock.
#[derive(Debug)]
pub(super) struct Clock<'a> {
    times: &'a Times,
    since: Instant,
}

impl<'a> Clock<'a> {
    pub(super) fn start(times: &'a Times) -> Self {
        Self { times, since: Instant::now() }
    }

    /// Books the time since the last call.
    pub(super) fn book(&mut self, moment: Moment) {
        let now = Instant::now();
        let spent = u64::try_from((now - self.since).as_nanos()).unwrap_or(u64::MAX);
        self.times.0[moment as usize].fetch_add(spent, Ordering::Relaxed);
        self.since = now;
    }
}

impl Times {
    pub(super) fn seconds(&self) -> CombineWorkerSeconds {
        let [read, checksums, write, files, idle] = [0, 1, 2, 3, 4].map(|moment: usize| {
            std::time::Duration::from_nanos(self.0[moment].load(Ordering::Relaxed)).as_secs_f64()
        });
        CombineWorkerSeconds { read, checksums, write, files, idle }
    }
}

/// What was done so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    whole: AtomicU64,
    reconstructed: AtomicU64,
    bytes: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    within_kernel: AtomicU64,
    linked: AtomicU64,
}

impl Tally {
    pub(super) fn count(&self, reconstructed: bool, content: &Content) {
        let counter = if reconstructed { &self.reconstructed } else { &self.whole };
        counter.fetch_add(1, Ordering::Relaxed);
        let bytes = match content {
            Content::Whole(source) => source.length,
            Content::Blocks { plan, block_size, .. } => u64::from(plan.blocks) * u64::from(*block_size),
        };
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn shared(&self, bytes: u64) {
        self.within_kernel.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn linked(&self, bytes: u64) {
        self.linked.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Puts the counts into a report.
    pub(super) fn tell(&self, report: &mut CombineReport) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        report.whole_files = load(&self.whole);
        report.reconstructed_files = load(&self.reconstructed);
        report.bytes = load(&self.bytes);
        report.bytes_read = load(&self.read);
        report.bytes_written = load(&self.written);
        report.bytes_within_kernel = load(&self.within_kernel);
        report.bytes_linked = load(&self.linked);
    }
}

impl CombineLimit {
    /// The longest phase decides; while files were put together, what the workers' time went to.
    pub(super) fn judge(seconds: &CombineSeconds, workers: &CombineWorkerSeconds) -> Self {
        if seconds.examine > seconds.files.max(seconds.finish) {
            return Self::Files;
        }
        if seconds.finish > seconds.files {
            return Self::Write;
        }
        let spent = [
            (workers.read, Self::Read),
            (workers.checksums, Self::Checksums),
            (workers.write, Self::Write),
            (workers.files + workers.idle, Self::Files),
        ];
        let longest = spent.into_iter().max_by(|one, other| one.0.total_cmp(&other.0));
        longest.map_or(Self::Files, |(_, limit)| limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_limit() {
        let seconds = |examine, files, finish| CombineSeconds { examine, files, finish, total: 0.0 };
        let workers = |read, checksums, write, files, idle| CombineWorkerSeconds {
            read,
            checksums,
            write,
            files,
            idle,
        };
        for (seconds, workers, limit) in [
            (seconds(1.0, 5.0, 1.0), workers(4.0, 3.0, 1.0, 1.0, 1.0), CombineLimit::Read),
            (seconds(1.0, 5.0, 1.0), workers(2.0, 3.0, 1.0, 1.0, 1.0), CombineLimit::Checksums),
            (seconds(1.0, 5.0, 1.0), workers(2.0, 3.0, 5.0, 1.0, 1.0), CombineLimit::Write),
            (seconds(1.0, 5.0, 1.0), workers(2.0, 3.0, 1.0, 2.0, 2.0), CombineLimit::Files),
            (seconds(6.0, 5.0, 1.0), workers(9.0, 3.0, 1.0, 2.0, 2.0), CombineLimit::Files),
            (seconds(1.0, 2.0, 5.0), workers(9.0, 3.0, 1.0, 2.0, 2.0), CombineLimit::Write),
        ] {
            assert_eq!(CombineLimit::judge(&seconds, &workers), limit);
        }
    }
}
