//! A base backup of a live server, from the first connection to the last rename.
//!
//! Order of events, and why:
//! 1. connect, ask what the server is, claim the target, probe its file system: all that can be refused early;
//! 2. the WAL receiver connects and has its slot before the backup begins, so that no WAL is lost between;
//! 3. `BASE_BACKUP`: files flow through the pipeline, WAL beside them;
//! 4. the pipeline settles: everything is checked, written and synced;
//! 5. arrivals are compared with the manifest, folders synced, names given; one rename makes it a backup.

mod cleanup;
mod config;
mod databases;
mod finish;
mod incremental;
mod judge;
mod local;
mod outputs;
mod prepare;
mod progress;
mod recovery;
mod report;
mod repository_run;
mod run;
mod target;
mod target_run;
mod transfer;

pub use crate::pipeline::LimitedBy;
pub use config::{
    BackupCompression, BaseBackupConfig, Destination, Resources, SlotChoice, SyncMethod, WalMethod,
};
pub(crate) use finish::{
    Held, MANIFEST_TMP, PlainEnd, RECOVERY_SIGNAL, RecoveryFiles, STANDBY_SIGNAL, sync_file_systems,
};
pub use local::{LocalBackupConfig, run_local};
pub use progress::{Observer, Phase, Progress};
pub(crate) use recovery::{config_literal, one_line, recovery_settings};
pub use report::{Phases, Report, process_usage};
pub use run::run;
pub(crate) use target::Claims;
