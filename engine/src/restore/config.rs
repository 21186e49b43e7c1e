//! What a restore is to do, and what came of it.

use std::path::PathBuf;

use serde::Serialize;

use crate::repository::{BackupChoice, ClusterName, Repository, Requests};
use crate::ring::{FaultPlan, IoMode};

/// A restore, fully decided.
#[derive(Clone, Debug)]
pub struct RestoreConfig {
    /// From where.
    pub repository: Repository,
    /// Whose backup.
    pub cluster: ClusterName,
    /// Which one.
    pub backup: BackupChoice,
    /// The data directory to make.
    pub target: PathBuf,
    /// Where tablespaces go: the server's path and ours.
    pub tablespace_mapping: Vec<(PathBuf, PathBuf)>,
    /// Threads, memory and the disk back end.
    pub resources: RestoreResources,
}

/// Threads, memory and the disk back end.
#[derive(Clone, Debug)]
pub struct RestoreResources {
    /// The disk back end, if not the one that the probe finds best.
    pub io: Option<IoMode>,
    /// Threads that read and unpack.
    pub workers: usize,
    /// Writers.
    pub writers: usize,
    /// Operations that each writer keeps with the device.
    pub depth: usize,
    /// Number of buffers.
    pub buffers: usize,
    /// Bytes of each; a multiple of 8192.
    pub buffer_size: usize,
    /// What the disks are to do wrong, in tests.
    pub faults: Option<FaultPlan>,
}

impl RestoreResources {
    /// The defaults for a machine with so many cores.
    #[must_use]
    pub fn for_cores(cores: usize) -> Self {
        Self {
            io: None,
            workers: cores.clamp(1, 16),
            writers: (cores / 8).clamp(1, 8),
            depth: 64,
            buffers: 128,
            buffer_size: 256 << 10,
            faults: None,
        }
    }
}

/// A finished restore.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreReport {
    /// The data directory.
    pub path: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// The backup's id.
    pub backup: String,
    /// The server's version, in words.
    pub server_version: String,
    /// Where recovery begins.
    pub start_lsn: String,
    /// Where it is consistent.
    pub end_lsn: String,
    /// The timeline there.
    pub timeline: u32,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Seconds.
    pub seconds: f64,
    /// The disk back end, and why that one.
    pub io: String,
    /// What was asked of the object store, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
}
