//! A backup that reads the data directory itself, on the machine on which the server runs, into a repository.
//!
//! Order of events, and why:
//! 1. what lies in the directory is read, the server asked over SQL, and both compared: a backup of another server's
//!    files under this one's protection would be worthless and look well;
//! 2. the WAL receiver connects over replication and has its slot before the backup begins;
//! 3. `pg_backup_start` in a session that stays open to the end: where it dies, the server ends the backup, and so do we;
//! 4. files are walked and read by several threads, WAL comes beside them;
//! 5. `pg_control` is read last, with its checksum, then `pg_backup_stop` gives `backup_label`;
//! 6. the manifest that a server would have made is made of what the lanes have seen, and it all is committed.
//!
//! `tablespace_map` is not kept, as in every plain backup: a server that finds one makes the links anew, to where they led
//! on the source, and the links of a restored cluster are the restore's to make.

mod basis;
mod control;
mod held;
mod manifest;
mod proof;
mod run;
mod transfer;

use std::path::PathBuf;
use std::sync::Arc;

use super::config::BaseBackupConfig;
use super::progress::{Observer, Progress};
use super::report::Report;
use super::run::guarded;
use crate::failure::Failure;
use crate::stop::Stop;

/// A backup from a data directory on this machine, fully decided.
#[derive(Clone, Debug)]
pub struct LocalBackupConfig {
    /// What it has in common with others. Its destination is a repository, its WAL is streamed.
    pub backup: BaseBackupConfig,
    /// The server's data directory.
    pub data_directory: PathBuf,
}

/// Takes the backup, as [`run`](super::run()) does.
///
/// # Errors
/// The first failure.
pub fn run_local(
    config: &LocalBackupConfig,
    progress: &Arc<Progress>,
    observer: &Arc<dyn Observer>,
    stop: &Stop<Failure>,
) -> Result<Report, Failure> {
    guarded(&config.backup, "local", progress, observer, stop, |run, claims| {
        run.run_local(&config.data_directory, claims)
    })
}
