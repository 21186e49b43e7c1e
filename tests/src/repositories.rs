//! Repositories as an operator has them: made, filled and read by commands, beside the cluster that they hold.

use std::fs;
use std::path::{Path, PathBuf};

use pgstrata::postmaster::Server;

use crate::{Finished, Invocation, Source, pgstrata, verify_backup};

/// A command on a repository.
#[must_use]
pub fn command(name: &str, repo: &Path) -> Invocation {
    pgstrata([name, "--repo"]).arg(repo)
}

/// A new repository beside a source.
///
/// # Panics
/// Where it cannot be made.
#[track_caller]
#[must_use]
pub fn init(source: &Source) -> PathBuf {
    let repo = source.dir("repo");
    command("init", &repo).run().expect_success();
    repo
}

/// A backup of a server into the cluster `main`, with a summary as JSON.
#[must_use]
pub fn backup(server: &Server, repo: &Path) -> Invocation {
    backup_by(&server.conninfo(), repo)
}

/// As [`backup`], by a way to the server of one's own.
#[must_use]
pub fn backup_by(conninfo: &str, repo: &Path) -> Invocation {
    command("backup", repo).args(["--cluster", "main", "-c", "fast", "--json", "-d", conninfo])
}

/// A restore of the cluster `main`, the source's tablespaces beside the copy.
#[must_use]
pub fn restore(source: &Source, repo: &Path, into: &Path) -> Invocation {
    let run = command("restore", repo).args(["--cluster", "main", "--into"]).arg(into);
    with_tablespaces(source, into, run)
}

/// Has a restore put the source's tablespaces beside the copy, see [`space`].
#[must_use]
pub fn with_tablespaces(source: &Source, into: &Path, mut restore: Invocation) -> Invocation {
    for tablespace in source.tablespaces() {
        if let Some(location) = &tablespace.location {
            let place = space(into, tablespace.oid);
            restore = restore.arg("-T").arg(format!("{}={}", location.display(), place.display()));
        }
    }
    restore
}

/// Something beside a data directory, which has its name in its own.
///
/// # Panics
/// Where the directory has no name.
#[must_use]
pub fn beside(into: &Path, what: &str) -> PathBuf {
    let name = into.file_name().unwrap_or_else(|| panic!("{}: no name", into.display()));
    into.with_file_name(format!("{} {what}", name.display()))
}

/// Where [`restore`] puts a tablespace.
#[must_use]
pub fn space(into: &Path, oid: u32) -> PathBuf {
    beside(into, &format!("space {oid}"))
}

/// The names in a folder, sorted.
///
/// # Panics
/// Where it cannot be read.
#[track_caller]
#[must_use]
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("a repository's names are ASCII");
    let mut names: Vec<_> =
        entries.map(|entry| name(entry.unwrap_or_else(|error| panic!("{error}")))).collect();
    names.sort();
    names
}

/// A refusal that says each of the words, and what to do next.
///
/// # Panics
/// Where it is none.
#[track_caller]
pub fn expect_refused(finished: &Finished, words: &[&str]) {
    finished.expect_failure().expect_stderr("HINT: ").expect_stderr("pgstrata: error: ");
    for word in words {
        finished.expect_stderr(word);
    }
}

/// Our own and the stock judgement of a restored directory.
///
/// # Panics
/// Where either is against it.
#[track_caller]
pub fn expect_verified(dir: &Path, major: u32) {
    pgstrata(["verifybackup"]).arg(dir).run().expect_success();
    verify_backup(dir, major).expect_good();
}
