//! What a finished backup has to tell, to people and to programs.

use std::path::PathBuf;

use serde::Serialize;

use crate::pipeline::{Limit, LimitedBy};
use crate::repository::StoredBackup;

/// The outcome of a base backup.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where the data came from: `stream`, or `local` for a data directory on this machine.
    pub source: &'static str,
    /// Where it lies; none if it was discarded.
    pub path: Option<PathBuf>,
    /// The target at which the server keeps it, if it does; `stdout` for what went to standard output.
    pub target: Option<String>,
    /// The backup in its repository, if it went to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<StoredBackup>,
    /// `plain`, `tar`, `repository`, `discard` or `target`.
    pub format: &'static str,
    /// Whether it holds only what changed since an earlier backup.
    pub incremental: bool,
    /// Who compressed the archives, and with what: `client-zstd`, `server-gzip`; none if nobody did.
    pub compression: Option<String>,
    /// The server's version, in words.
    pub server_version: String,
    /// The cluster's system identifier.
    pub system_identifier: String,
    /// The timeline at the end.
    pub timeline: u32,
    /// Where recovery must begin.
    pub start_lsn: String,
    /// Where the backup is consistent.
    pub end_lsn: String,
    /// Files of the cluster.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of WAL received on the second connection.
    pub wal_bytes: u64,
    /// Files whose size and checksum were compared with the manifest on arrival.
    pub files_verified: u64,
    /// The manifest's checksum algorithm.
    pub checksum_algorithm: String,
    /// Whether page checksums were verified here.
    pub pages_checked: bool,
    /// Whether everything was made durable.
    pub durable: bool,
    /// Seconds of each phase.
    pub seconds: Phases,
    /// Bytes a second over the whole run.
    pub bytes_per_second: f64,
    /// CPU seconds of this process, its kernel workers included.
    pub cpu_seconds: f64,
    /// The largest resident set, in bytes.
    pub peak_memory: u64,
    /// The disk back end.
    pub io: String,
    /// Why that one.
    pub io_reason: String,
    /// What the run was limited by.
    pub limited_by: LimitedBy,
    /// The stages' times, for those who want to know why.
    pub stages: Limit,
}

/// Seconds from the beginning of the run to its end, by phase.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Phases {
    /// Everything.
    pub total: f64,
    /// Connecting, and the checkpoint on the server.
    pub start: f64,
    /// Files flowing, syncs beside them.
    pub data: f64,
    /// After the last byte: what was still to be checked, written and synced.
    pub settle: f64,
    /// Waiting for the last WAL.
    pub wal: f64,
    /// Comparing with the manifest, syncing folders, the final renames.
    pub end: f64,
}

impl Report {
    /// What limited the run as a whole: the longest phase decides, and within the data phase its stages.
    pub(super) fn limit(phases: &Phases, stages: &Limit) -> LimitedBy {
        let longest = [
            (phases.data, stages.by),
            (phases.start, LimitedBy::Checkpoint),
            (phases.settle + phases.end, LimitedBy::Sync),
            (phases.wal, LimitedBy::WalAndEnd),
        ];
        longest.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).map_or(stages.by, |(_, by)| by)
    }
}

/// CPU seconds (user and system) of this process so far, and its largest resident set in bytes.
#[must_use]
pub fn process_usage() -> (f64, u64) {
    // SAFETY: getrusage fills the whole structure that it is given, and an all-zero rusage is a valid one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    #[expect(clippy::cast_precision_loss, reason = "seconds and microseconds of a process are small")]
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    // Linux counts ru_maxrss in KiB. It begins with the peak of the process that started this one.
    let peak = own_peak().unwrap_or_else(|| u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024);
    (seconds(usage.ru_utime) + seconds(usage.ru_stime), peak)
}

/// `VmHWM` of proc_pid_status(5) in bytes: the peak since this program began.
fn own_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
