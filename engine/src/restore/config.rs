//! What a restore is to do, and what came of it.

use std::path::PathBuf;

use serde::Serialize;

use super::recovery_target::RecoveryPlan;
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
    /// What the server does when it is started; unless said, it opens where the backup ended.
    pub recovery: Option<RecoveryPlan>,
    /// What there may be already, and what is not to be as it was.
    pub options: RestoreOptions,
    /// Threads, memory and the disk back end.
    pub resources: RestoreResources,
}

/// What a restore may find in its folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Onto {
    /// Nothing.
    #[default]
    Empty,
    /// A data directory of the same system, or what an interrupted restore has left: what matches stays.
    Old,
    /// What an interrupted restore of the same backup has left.
    Interrupted,
}

/// What there may be already, and what is not to be as it was.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// What the folder may hold.
    pub onto: Onto,
    /// The folder may hold another system's cluster.
    pub other_cluster: bool,
    /// Where `pg_wal` goes, with a link to it.
    pub wal_directory: Option<PathBuf>,
    /// The databases to restore, by name or OID; all of them where none is named.
    pub databases: Vec<String>,
    /// Whose everything is to be: a user, and a group.
    pub owner: Option<(String, Option<String>)>,
    /// Whether a failure is cleaned up after.
    pub clean: bool,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            onto: Onto::Empty,
            other_cluster: false,
            wal_directory: None,
            databases: Vec::new(),
            owner: None,
            clean: true,
        }
    }
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
    /// How far recovery comes with the WAL in the archive, where it is to go on behind the backup.
    pub reachable_lsn: Option<String>,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that were there already.
    pub reused_bytes: u64,
    /// Frames that were read from packs and unpacked.
    pub frames: u64,
    /// Files, folders and links that were there and did not belong.
    pub removed: u64,
    /// Files of databases that were not asked for, which are zeros without a place on the disk.
    pub omitted_files: u64,
    /// Seconds.
    pub seconds: f64,
    /// The disk back end, and why that one.
    pub io: String,
    /// What was asked of the object store, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
}
