//! What a combination is to do.

use std::path::PathBuf;

use pgstrata_protocol::manifest::ChecksumAlgorithm;

use crate::ring::{FaultPlan, IoMode};

pub use crate::basebackup::SyncMethod;

/// A combination, fully decided.
#[derive(Clone, Debug)]
pub struct CombineConfig {
    /// The chain: the full backup first, each of the others built on the one before.
    pub backups: Vec<PathBuf>,
    /// The data directory to make: absent or empty.
    pub output: PathBuf,
    /// Where tablespaces go: their places in the last backup and the new ones, the one that counts first.
    pub tablespace_mapping: Vec<(PathBuf, PathBuf)>,
    /// The checksums of the new manifest; `None` for no manifest, and so none of them.
    pub manifest: Option<ChecksumAlgorithm>,
    /// How data gets to its place.
    pub method: CopyMethod,
    /// Whether what is read is compared with the manifests' checksums, and pages with theirs.
    pub verify: bool,
    /// How files are made durable; `None` if they need not be.
    pub sync: Option<SyncMethod>,
    /// Check everything that can be checked without reading the data, and write nothing.
    pub dry_run: bool,
    /// Threads, memory and the disk back end.
    pub resources: CombineResources,
}

/// How data gets to its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyMethod {
    /// Read and written.
    #[default]
    Copy,
    /// Shared with the backups by reflinks, whole files and ranges of them.
    Clone,
    /// Copied within the kernel (copy_file_range(2)), shared where the file system does that.
    CopyFileRange,
    /// Whole files are hard links to those of the backups.
    Link,
}

impl CopyMethod {
    /// The stock tool's name of a strategy that is not plain copying.
    pub(super) fn strategy(self) -> Option<&'static str> {
        match self {
            Self::Copy => None,
            Self::Clone => Some("clone"),
            Self::CopyFileRange => Some("copy_file_range"),
            Self::Link => Some("link"),
        }
    }
}

/// Threads, memory and the disk back end.
#[derive(Clone, Debug)]
pub struct CombineResources {
    /// The disk back end, if not the one that the probe finds best.
    pub io: Option<IoMode>,
    /// Threads that read, check and put files together.
    pub workers: usize,
    /// Writers.
    pub writers: usize,
    /// Operations that each writer keeps with the device.
    pub depth: usize,
    /// Number of buffers.
    pub buffers: usize,
    /// Bytes of each; a multiple of 32 KiB, the largest block.
    pub buffer_size: usize,
    /// What the disks are to do wrong, in tests.
    pub faults: Option<FaultPlan>,
}

impl CombineResources {
    /// The defaults for a machine with so many cores.
    #[must_use]
    pub fn for_cores(cores: usize) -> Self {
        Self {
            io: None,
            workers: cores.clamp(1, 64),
            writers: (cores / 8).clamp(1, 8),
            depth: 64,
            buffers: 256,
            buffer_size: 256 << 10,
            faults: None,
        }
    }
}
