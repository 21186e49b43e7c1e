//! What a verification is to do.

use std::path::PathBuf;

use super::ignore::IgnoreList;
use crate::ring::{FaultPlan, IoMode};

/// How a backup lies in its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupFormat {
    /// As the data directory itself.
    Plain,
    /// As archives: `base.tar`, one for each tablespace, and `pg_wal.tar`.
    Tar,
}

/// A verification of a backup, fully decided.
#[derive(Clone, Debug)]
pub struct VerifyConfig {
    /// The backup's folder.
    pub backup: PathBuf,
    /// The backup's format, if it is not to be looked for.
    pub format: Option<BackupFormat>,
    /// The manifest; `backup_manifest` in the backup's folder unless it was moved.
    pub manifest: PathBuf,
    /// Paths that are left out.
    pub ignore: IgnoreList,
    /// Whether the first problem ends the run.
    pub exit_on_error: bool,
    /// Whether only presence and sizes are compared.
    pub skip_checksums: bool,
    /// Whether the WAL that the backup needs is read and checked.
    pub parse_wal: bool,
    /// Where that WAL lies, if not in the backup itself.
    pub wal_directory: Option<PathBuf>,
    /// Threads, memory and the disk back end.
    pub resources: VerifyResources,
}

/// Threads, memory and the disk back end.
#[derive(Clone, Debug)]
pub struct VerifyResources {
    /// The disk back end, if not the best that works.
    pub io: Option<IoMode>,
    /// Threads that read and compute checksums; at least 1.
    pub workers: usize,
    /// Bytes of buffers in all. Each worker has at least one buffer, whatever this says.
    pub buffer_bytes: usize,
    /// Faults to put under the disks, for tests.
    pub faults: Option<FaultPlan>,
}

impl VerifyConfig {
    /// Verifies everything in `backup`, with the defaults for this machine.
    #[must_use]
    pub fn of(backup: impl Into<PathBuf>) -> Self {
        let backup = backup.into();
        Self {
            manifest: backup.join(super::MANIFEST),
            backup,
            format: None,
            ignore: IgnoreList::standard(),
            exit_on_error: false,
            skip_checksums: false,
            parse_wal: true,
            wal_directory: None,
            resources: VerifyResources::for_cores(
                std::thread::available_parallelism().map_or(1, usize::from),
            ),
        }
    }
}

impl VerifyResources {
    /// The defaults for a machine with so many cores.
    #[must_use]
    pub fn for_cores(cores: usize) -> Self {
        Self { io: None, workers: cores.clamp(1, 64), buffer_bytes: 32 << 20, faults: None }
    }
}
