//! What a receiver of WAL is to do, fully decided.

use std::path::PathBuf;
use std::time::Duration;

use pgstrata_protocol::Lsn;
use pgstrata_protocol::basebackup::CompressionSpec;

use crate::connect::ConnectionSettings;
use crate::repository::{ClusterName, FrameCompression, Repository};

/// A run.
#[derive(Debug, Clone)]
pub struct ReceiveWalConfig {
    /// The server.
    pub connection: ConnectionSettings,
    /// What to do there.
    pub action: Action,
    /// How often the position is reported unasked; zero for never.
    pub status_interval: Duration,
    /// The server counts as lost where no whole message comes for so long; zero for never.
    pub stall_timeout: Duration,
}

/// What to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Receive WAL.
    Receive(WalArchive),
    /// Receive WAL into a repository.
    Store(WalStore),
    /// Make a slot, and end.
    CreateSlot {
        /// Its name.
        name: String,
        /// Whether a slot that is there already is as good.
        if_not_exists: bool,
    },
    /// Drop a slot, and end.
    DropSlot {
        /// Its name.
        name: String,
    },
}

/// How WAL is received and kept.
#[derive(Debug, Clone)]
pub struct WalArchive {
    /// The folder, which exists.
    pub directory: PathBuf,
    /// The slot that holds WAL for us.
    pub slot: Option<String>,
    /// How segments are compressed, if they are.
    pub compression: Option<CompressionSpec>,
    /// Ends once WAL behind this position was received.
    pub end: Option<Lsn>,
    /// Whether a lost connection is made again.
    pub reconnect: bool,
    /// Whether files are synced.
    pub sync: bool,
    /// Whether WAL is synced, and that reported, as soon as it is here.
    pub synchronous: bool,
    /// Whether WAL is read as recovery reads it before it is written.
    pub check: bool,
}

/// How WAL is received into a repository.
#[derive(Debug, Clone)]
pub struct WalStore {
    /// The repository.
    pub repository: Repository,
    /// Whose WAL it is.
    pub cluster: ClusterName,
    /// What frames are compressed with.
    pub compression: FrameCompression,
    /// The slot that holds WAL for us.
    pub slot: Option<String>,
    /// Ends once WAL behind this position was received.
    pub end: Option<Lsn>,
    /// Whether a lost connection is made again.
    pub reconnect: bool,
    /// How long WAL of a segment that is not whole may be here alone; zero for no longer than its sync takes.
    pub interval: Duration,
    /// Whether WAL is read as recovery reads it before it is kept.
    pub check: bool,
}

/// Words from a run while it goes on.
pub trait ReceiveObserver: Send + Sync {
    /// An attempt has failed; another one follows.
    fn error(&self, text: &str);
    /// Something is not as it should be, but the run goes on. Server notices come in their own form.
    fn warning(&self, text: &str);
    /// What an operator should know in any case.
    fn info(&self, text: &str);
    /// What is being done, for `--verbose`.
    fn note(&self, text: &str);
}
