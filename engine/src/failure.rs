//! Why a run ended without success: place, found, expected, and what to do next.

use std::io;
use std::path::{Path, PathBuf};

use crate::connect::{ConnectError, SessionError};
use crate::repository::RepositoryError;

/// The reason a run failed. `Stopped` is what threads say that found the switch thrown by another.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Somebody else has failed; their reason is the one to tell.
    #[error("stopped")]
    Stopped,
    /// A signal asked to end.
    #[error("interrupted by signal {0}")]
    Signal(i32),
    /// A disk operation failed.
    #[error("could not {action} \"{path}\": {source}{hint}", path = .path.display(), hint = disk_hint(.source))]
    Disk {
        /// What was tried, as a verb: `write`, `create file`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The target cannot be used as it stands.
    #[error("{0}")]
    Target(String),
    /// There is no connection to the server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused something, or the connection to it was lost.
    #[error("{context}: {error}{}", hint_line(hint.as_ref()))]
    Session {
        /// What was asked, or how far it was.
        context: String,
        /// The answer.
        error: SessionError,
        /// What to do, where the answer does not say it.
        hint: Option<String>,
    },
    /// A server that should have answered did not.
    #[error(
        "the server sent {sent} for {limit:?}, although it was asked to\n\
         HINT: check the network, and on the server whether the walsender waits for its disks."
    )]
    Silent {
        /// What it sent.
        sent: &'static str,
        /// How long it was waited for.
        limit: std::time::Duration,
    },
    /// What the server sent is not what the protocol allows.
    #[error(
        "{context}: {error}\nHINT: the stream from the server is damaged or hostile; check the network path and the server, then take the backup again."
    )]
    Stream {
        /// Which part of the stream.
        context: String,
        /// What is wrong with it.
        error: String,
    },
    /// The data that arrived does not match what the server says it sent.
    #[error("{0}")]
    Verification(String),
    /// The server counted checksum failures of its own (SQLSTATE XX001).
    #[error("checksum error occurred")]
    ServerChecksum,
    /// An object of a repository cannot be used.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The WAL receiver ended before its time.
    #[error("WAL receiver: {0}")]
    Wal(String),
}

impl Failure {
    /// A failed disk operation.
    #[must_use]
    pub fn disk(action: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Disk { action, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// A session that refused something or was lost. One that we cancelled ourselves is no reason of its own.
    #[must_use]
    pub fn session(context: impl Into<String>, error: SessionError) -> Self {
        Self::session_with_hint(context, error, None)
    }

    /// The same with what to do, which gives way to the server's own hint.
    #[must_use]
    pub fn session_with_hint(context: impl Into<String>, error: SessionError, hint: Option<String>) -> Self {
        let hint = hint.filter(|_| error.server_error().is_none_or(|said| said.hint().is_none()));
        match error {
            SessionError::Cancelled => Self::Stopped,
            error => Self::Session { context: context.into(), error, hint },
        }
    }

    /// A WAL receiver that cannot go on, for a reason that carries its hint or is given one.
    #[must_use]
    pub fn wal(reason: &dyn std::fmt::Display) -> Self {
        let mut text = reason.to_string();
        if !text.contains("HINT:") {
            text +=
                "\nHINT: the backup cannot be recovered without that WAL; mend the cause and take it again.";
        }
        Self::Wal(text)
    }

    /// A broken stream.
    #[must_use]
    pub fn stream(context: impl Into<String>, error: &dyn std::fmt::Display) -> Self {
        Self::Stream { context: context.into(), error: error.to_string() }
    }
}

fn hint_line(hint: Option<&String>) -> String {
    hint.map(|hint| format!("\nHINT: {hint}")).unwrap_or_default()
}

fn disk_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            "\nHINT: free space, or choose another target with -D, and take the backup again."
        }
        Some(libc::EIO) => {
            "\nHINT: the device or the file system reports damage; see the kernel log before you use it again."
        }
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            "\nHINT: check the permissions of the folder and how the file system is mounted."
        }
        Some(libc::EMFILE | libc::ENFILE) => "\nHINT: raise the limit of open files (ulimit -n).",
        _ => "",
    }
}
