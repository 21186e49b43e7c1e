//! What a verification has to tell, to people and to programs.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use pgstrata_protocol::manifest::WalRange;
use serde::Serialize;

use super::problem::Problem;

/// The outcome of a verification that could be carried out.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// The backup's folder.
    pub path: PathBuf,
    /// Whether no problem was found in what was verified.
    pub verified: bool,
    /// How many problems there are.
    pub problem_count: u64,
    /// The first 1000 of them.
    pub problems: Vec<Problem>,
    /// The manifest's version.
    pub manifest_version: u32,
    /// The cluster's system identifier, where the manifest has it.
    pub system_identifier: Option<String>,
    /// WAL that the backup needs to become consistent; of very many ranges the first 64.
    pub wal_ranges: Vec<NeededWal>,
    /// Whether that WAL was read and checked.
    pub wal_parsed: bool,
    /// Bytes of it that were read.
    pub wal_bytes: u64,
    /// Files in the manifest that are not ignored.
    pub files: u64,
    /// Files whose checksums were compared; the others have none, were skipped, or have another problem.
    pub files_summed: u64,
    /// Bytes that were read and summed up.
    pub bytes: u64,
    /// Those of them that the page cache had.
    pub bytes_from_cache: u64,
    /// Seconds by phase.
    pub seconds: VerifySeconds,
    /// Bytes a second while contents were read.
    pub bytes_per_second: f64,
    /// CPU seconds of this process, its kernel workers included.
    pub cpu_seconds: f64,
    /// The largest resident set, in bytes.
    pub peak_memory: u64,
    /// Threads that read.
    pub workers: usize,
    /// The disk back end.
    pub io: String,
    /// Why that one.
    pub io_reason: String,
    /// What the run was limited by.
    pub limited_by: VerifyLimit,
    /// What the workers' time went to.
    pub worker_seconds: WorkerSeconds,
}

/// A range of WAL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NeededWal {
    /// The timeline it lies on.
    pub timeline: u32,
    /// Its first byte.
    pub start: String,
    /// The byte behind its last.
    pub end: String,
}

impl From<&WalRange> for NeededWal {
    fn from(range: &WalRange) -> Self {
        let WalRange { timeline, start, end } = range;
        Self { timeline: timeline.0, start: start.to_string(), end: end.to_string() }
    }
}

/// Seconds by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct VerifySeconds {
    /// Everything.
    pub total: f64,
    /// Reading the manifest.
    pub manifest: f64,
    /// Comparing paths and sizes.
    pub presence: f64,
    /// Reading contents.
    pub checksums: f64,
    /// Reading WAL.
    pub wal: f64,
}

/// What a verification was limited by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyLimit {
    /// The processors: copying from the page cache and computing checksums.
    Checksums,
    /// The device or file system that the backup lies on.
    Read,
    /// Reading the manifest, and finding the files.
    Files,
    /// Reading WAL, one record after the other.
    Wal,
}

impl fmt::Display for VerifyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VerifyLimit::Checksums => "checksums (processors)",
            VerifyLimit::Read => "reading from the device",
            VerifyLimit::Files => "manifest and folders",
            VerifyLimit::Wal => "WAL",
        })
    }
}

/// Seconds that the workers spent, added over them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct WorkerSeconds {
    /// Opening files, copying from the page cache, computing checksums.
    pub checksums: f64,
    /// Waiting for the device.
    pub device: f64,
    /// Waiting for the next file of the manifest.
    pub manifest: f64,
}

/// What a moment of a worker's time went to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Moment {
    Checksums,
    Device,
    Manifest,
}

/// The workers' times, in nanoseconds by [`Moment`].
#[derive(Debug, Default)]
pub(super) struct WorkerTimes([AtomicU64; 3]);

/// One worker's clock.
#[derive(Debug)]
pub(super) struct WorkerClock<'a> {
    times: &'a WorkerTimes,
    since: Instant,
}

impl<'a> WorkerClock<'a> {
    pub(super) fn start(times: &'a WorkerTimes) -> Self {
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

impl WorkerTimes {
    pub(super) fn seconds(&self) -> WorkerSeconds {
        let [checksums, device, manifest] = [0, 1, 2].map(|moment: usize| {
            std::time::Duration::from_nanos(self.0[moment].load(Ordering::Relaxed)).as_secs_f64()
        });
        WorkerSeconds { checksums, device, manifest }
    }
}

impl VerifyLimit {
    /// The longest phase decides; within the reading, what the workers' time went to.
    pub(super) fn judge(seconds: &VerifySeconds, workers: &WorkerSeconds) -> VerifyLimit {
        if seconds.wal > seconds.checksums + seconds.manifest + seconds.presence {
            return VerifyLimit::Wal;
        }
        if seconds.checksums < seconds.manifest + seconds.presence {
            return VerifyLimit::Files;
        }
        let spent = [
            (workers.checksums, VerifyLimit::Checksums),
            (workers.device, VerifyLimit::Read),
            (workers.manifest, VerifyLimit::Files),
        ];
        spent
            .into_iter()
            .max_by(|one, other| one.0.total_cmp(&other.0))
            .map_or(VerifyLimit::Files, |(_, limit)| limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_limit() {
        let seconds = |presence, checksums| VerifySeconds { presence, checksums, ..Default::default() };
        let wal = VerifySeconds { wal: 7.0, ..seconds(1.0, 5.0) };
        let workers = |checksums, device, manifest| WorkerSeconds { checksums, device, manifest };
        for (seconds, workers, limit) in [
            (seconds(1.0, 5.0), workers(9.0, 1.0, 0.0), VerifyLimit::Checksums),
            (seconds(1.0, 5.0), workers(1.0, 9.0, 0.0), VerifyLimit::Read),
            (seconds(1.0, 5.0), workers(1.0, 2.0, 7.0), VerifyLimit::Files),
            (seconds(6.0, 5.0), workers(9.0, 1.0, 0.0), VerifyLimit::Files),
            (wal, workers(9.0, 1.0, 0.0), VerifyLimit::Wal),
        ] {
            assert_eq!(VerifyLimit::judge(&seconds, &workers), limit);
        }
    }
}
