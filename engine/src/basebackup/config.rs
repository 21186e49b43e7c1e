//! What a base backup is to do, checked: combinations that make no sense cannot be built by the command line.

use std::path::PathBuf;
use std::time::Duration;

use pgstrata_protocol::basebackup::{CompressionMethod, CompressionSpec, ManifestOptions, ServerCompression};

use crate::connect::ConnectionSettings;
use crate::repository::RepositoryDestination;
use crate::ring::{FaultPlan, IoMode};

/// A base backup, fully decided.
#[derive(Debug, Clone)]
pub struct BaseBackupConfig {
    /// How to reach the server.
    pub connection: ConnectionSettings,
    /// Where the backup goes.
    pub destination: Destination,
    /// The manifest of the earlier backup since which only changes are wanted.
    pub incremental: Option<PathBuf>,
    /// Who compresses the archives, and how.
    pub compression: Option<BackupCompression>,
    /// How the WAL that the backup needs is had.
    pub wal: WalMethod,
    /// `backup_label`'s label.
    pub label: String,
    /// Whether the checkpoint at the start is to be done at once.
    pub fast_checkpoint: bool,
    /// Upper bound of the transfer rate in kB/s.
    pub max_rate_kb: Option<u32>,
    /// The manifest that the server is to make.
    pub manifest: Option<ManifestOptions>,
    /// Whether the server verifies page checksums.
    pub server_verifies_pages: bool,
    /// Whether page checksums are verified here as they arrive.
    pub check_pages: bool,
    /// Whether the server is to estimate the size, for the progress report.
    pub estimate_size: bool,
    /// Whether to leave settings with which the copy starts as a standby.
    pub write_recovery_settings: bool,
    /// Whether everything is made durable before success is reported.
    pub sync: bool,
    /// How it is made durable.
    pub sync_method: SyncMethod,
    /// Whether what was made is removed after a failure.
    pub clean: bool,
    /// How often the WAL receiver reports its position; zero for never unasked.
    pub status_interval: Duration,
    /// After how much silence of the server, but for the wait for its checkpoint, the connection counts as lost;
    /// zero for never.
    pub stall_timeout: Duration,
    /// Threads, memory and the disk back end.
    pub resources: Resources,
}

impl BaseBackupConfig {
    /// Whether the server is to end only once the WAL that the backup needs is in its archive: where it comes no
    /// other way, and the backup is to be of use.
    #[must_use]
    pub fn waits_for_archive(&self) -> bool {
        self.wal == WalMethod::None && !matches!(self.destination, Destination::Discard)
    }

    /// What archives are compressed with on this side.
    #[must_use]
    pub fn client_compression(&self) -> Option<CompressionSpec> {
        match &self.compression {
            Some(BackupCompression::Client(spec)) => Some(*spec),
            _ => None,
        }
    }

    /// What archives arrive compressed with.
    #[must_use]
    pub fn arrives_compressed(&self) -> Option<CompressionMethod> {
        match &self.compression {
            Some(BackupCompression::Server { method, .. }) => Some(*method),
            _ => None,
        }
    }

    /// What the server is asked to compress with.
    #[must_use]
    pub fn asked_compression(&self) -> Option<ServerCompression> {
        match (&self.destination, &self.compression) {
            (Destination::Target { compression, .. }, _) => compression.clone(),
            (_, Some(BackupCompression::Server { method, detail })) => {
                Some(ServerCompression { method: method.name().to_owned(), detail: detail.clone() })
            }
            _ => None,
        }
    }

    /// Whether each file is synced as soon as it is complete.
    #[must_use]
    pub fn syncs_each_file(&self) -> bool {
        self.sync && self.sync_method == SyncMethod::Fsync
    }
}

/// How archives that come here are compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupCompression {
    /// On this side, in tar format.
    Client(CompressionSpec),
    /// By the server, from 15 on.
    Server {
        /// With what.
        method: CompressionMethod,
        /// Its options as the operator wrote them; the server judges them.
        detail: Option<String>,
    },
}

/// How files are made durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SyncMethod {
    /// Each by itself, beside the data of those that follow.
    #[default]
    Fsync,
    /// Whole file systems, at the end.
    Syncfs,
}

/// Where a backup goes.
#[derive(Debug, Clone)]
pub enum Destination {
    /// Plain format.
    Directory {
        /// The data directory to make.
        path: PathBuf,
        /// Where `pg_wal` is to lie, if elsewhere.
        wal_directory: Option<PathBuf>,
        /// Where tablespaces go: the server's path and ours.
        tablespace_mapping: Vec<(PathBuf, PathBuf)>,
    },
    /// Tar format: a folder of archives.
    Tar {
        /// The folder to make.
        path: PathBuf,
    },
    /// Tar format: the one archive, with the manifest in it, on standard output.
    Stdout,
    /// A repository.
    Repository(RepositoryDestination),
    /// Received and verified, and not kept.
    Discard,
    /// Kept by the server, at a target of its own; nothing comes here. From 15 on.
    Target {
        /// `server`, `blackhole`, or what an extension adds.
        name: String,
        /// What stands behind the colon.
        detail: Option<String>,
        /// How the server is to compress it; it judges the words itself.
        compression: Option<ServerCompression>,
    },
}

impl Destination {
    /// The folder that is made, if one is.
    #[must_use]
    pub fn path(&self) -> Option<&std::path::Path> {
        match self {
            Destination::Directory { path, .. } | Destination::Tar { path } => Some(path),
            Destination::Stdout
            | Destination::Repository(_)
            | Destination::Discard
            | Destination::Target { .. } => None,
        }
    }
}

/// How the WAL between a backup's start and end is had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalMethod {
    /// Not at all: it must come from an archive.
    None,
    /// With the files, at the end. The server must still have it then.
    Fetch,
    /// On a second connection, while the files come.
    Stream(SlotChoice),
}

/// The slot that holds WAL for a streaming receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotChoice {
    /// A slot that the server drops when the connection ends.
    Temporary,
    /// None: the server may recycle WAL before it was sent.
    None,
    /// One that exists, or is to be made.
    Named {
        /// Its name.
        name: String,
        /// Whether to make it.
        create: bool,
    },
}

/// Threads, memory and the disk back end.
#[derive(Debug, Clone)]
pub struct Resources {
    /// The disk back end, if not the one that the probe finds best.
    pub io: Option<IoMode>,
    /// Number of buffers.
    pub buffers: usize,
    /// Bytes of each; a multiple of 8192.
    pub buffer_size: usize,
    /// Worker lanes.
    pub workers: usize,
    /// Threads that compress for gzip, which needs more of them than other methods.
    pub compressors: usize,
    /// Writers.
    pub writers: usize,
    /// Operations that each writer keeps with the device.
    pub depth: usize,
    /// What the disks are to do wrong, in tests.
    pub faults: Option<FaultPlan>,
}

impl Resources {
    /// The defaults for a machine with so many cores.
    #[must_use]
    pub fn for_cores(cores: usize) -> Resources {
        Resources {
            io: None,
            buffers: 128,
            buffer_size: 256 << 10,
            workers: (cores / 2).clamp(1, 8),
            compressors: cores.clamp(1, 64),
            // One writer keeps a device busy; more of them serve arrays of devices.
            writers: (cores / 8).clamp(1, 8),
            depth: 64,
            faults: None,
        }
    }
}
