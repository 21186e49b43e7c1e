//! Why a demonstration ended without success.

use std::fmt;
use std::path::PathBuf;

use crate::connect::{SessionError, SettingsError, SqlConnectError};
use crate::failure::Failure;
use crate::postmaster::PostmasterError;

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that is backed up.
    Source,
    /// The one that runs on the backup.
    Copy,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Source => "the source",
            Side::Copy => "the copy",
        })
    }
}

/// The reason.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A named folder holds no server program that runs here.
    #[error(
        "no server in \"{path}\": {error}\n\
         HINT: name the folder that holds postgres and initdb, as pg_config --bindir prints it.",
        path = .path.display()
    )]
    BinDir {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<PostmasterError>,
    },
    /// The server program is older than what can be backed up.
    #[error(
        "{program} is too old, expected version 13 or newer\nHINT: ask for another one with --postgres-major."
    )]
    TooOld {
        /// The program.
        program: String,
    },
    /// The disk is too small.
    #[error(
        "\"{path}\" has {available} MB free, and source, copy and WAL need {needed} MB\n\
         HINT: ask for less with --size, or name a folder on a larger disk in TMPDIR.",
        path = .path.display()
    )]
    Space {
        /// The scratch folder.
        path: PathBuf,
        /// Bytes free, in MB.
        available: u64,
        /// Bytes needed, in MB.
        needed: u64,
    },
    /// A server could not be found, made, started or stopped.
    #[error(transparent)]
    Postmaster(#[from] PostmasterError),
    /// The backup failed, a file operation did, or a signal came.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// A connection string of our own was refused.
    #[error("could not connect to {side}: {error}")]
    Settings {
        /// To which server.
        side: Side,
        /// What is wrong.
        error: SettingsError,
    },
    /// A server took no connection.
    #[error("could not connect to {side}: {error}")]
    Connect {
        /// Which server.
        side: Side,
        /// Its reason.
        error: SqlConnectError,
    },
    /// A server refused a statement, or the connection was lost.
    #[error("could not {what} in {side}: {error}")]
    Sql {
        /// What was tried, as a verb.
        what: String,
        /// Where.
        side: Side,
        /// The answer.
        error: SessionError,
    },
    /// A server's answer has not the form that it must have.
    #[error("could not {what} in {side}: found {found}, expected {expected}")]
    Answer {
        /// What was tried, as a verb.
        what: String,
        /// Where.
        side: Side,
        /// The answer.
        found: String,
        /// Its right form.
        expected: String,
    },
    /// The writer's thread ended before it was told to.
    #[error("the writer ended early; this is a bug in pgstrata")]
    Writer,
    /// The files of the copy are not those that the server sent.
    #[error(
        "{count} files or folders of the copy do not match the server's manifest\n{}\n\
         HINT: this is a bug in pgstrata or damage by this machine; run it again with --keep and look at them.",
        findings.join("\n")
    )]
    Damaged {
        /// How many problems there are.
        count: u64,
        /// The first of them.
        findings: Vec<String>,
    },
    /// The copy is not what it must be.
    #[error(
        "the copy does not match the source\n{}\n\
         HINT: this is a bug in pgstrata or damage by this machine; run it again with --keep and look at both.",
        findings.join("\n")
    )]
    Mismatch {
        /// All differences that were found.
        findings: Vec<String>,
    },
}
