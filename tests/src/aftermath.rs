//! What a run may leave behind: after a failure nothing that looks like a backup, and nothing on the server.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgstrata::postmaster::Server;

use crate::Sql;

/// How long a server may take to notice that a client is gone.
const NOTICED_WITHIN: Duration = Duration::from_secs(60);
/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Everything below a directory, as it was at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    entries: BTreeMap<PathBuf, String>,
}

impl Snapshot {
    /// Takes down names, kinds, modes, inodes, contents and link targets, and when anything but a directory was
    /// changed last. Links are not followed.
    ///
    /// # Panics
    /// Where something cannot be read.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        let mut entries = BTreeMap::new();
        let mut pending = vec![dir.to_owned()];
        while let Some(path) = pending.pop() {
            let meta = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let mut text = format!("inode {} mode {:o}", meta.ino(), meta.permissions().mode());
            let failed = |error: std::io::Error| -> ! { panic!("{}: {error}", path.display()) };
            if meta.is_dir() {
                let list = fs::read_dir(&path).unwrap_or_else(|error| failed(error));
                pending.extend(list.map(|entry| entry.unwrap_or_else(|error| failed(error)).path()));
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).unwrap_or_else(|error| failed(error));
                let _ = write!(text, " to {}", target.display());
            } else if meta.is_file() {
                let content = fs::read(&path).unwrap_or_else(|error| failed(error));
                let changed = (meta.mtime(), meta.mtime_nsec());
                let _ = write!(
                    text,
                    " {} bytes {:08x} changed {changed:?}",
                    content.len(),
                    crc32c::crc32c(&content)
                );
            }
            entries.insert(path, text);
        }
        Self { entries }
    }

    /// What is different now, in words.
    #[must_use]
    pub fn changes(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        for (path, then) in &self.entries {
            match now.entries.get(path) {
                None => changes.push(format!("{}: gone", path.display())),
                Some(now) if now != then => changes.push(format!("{}: was {then}, is {now}", path.display())),
                Some(_) => {}
            }
        }
        let new = now.entries.keys().filter(|path| !self.entries.contains_key(*path));
        changes.extend(new.map(|path| format!("{}: new", path.display())));
        changes
    }
}

/// Fails the test where a directory that `--no-clean` left could be taken for a backup: no server starts from a plain
/// one without `global/pg_control`, and nothing unpacks a tar one without `base.tar`.
///
/// # Panics
/// With what is there.
#[track_caller]
pub fn expect_unfinished(dir: &Path) {
    for name in ["global/pg_control", "base.tar", "backup_manifest"] {
        let finished = dir.join(name);
        let excused = name == "backup_manifest" && !dir.join("global/pg_control").exists();
        assert!(!finished.exists() || excused, "{} exists after a failure", finished.display());
    }
}

/// Fails the test where the server does not lose track of a client that is gone: no walsender, no slot.
///
/// # Panics
/// With what the server still knows.
#[track_caller]
pub fn expect_forgotten(server: &Server) {
    let sql = Sql::connect(&server.socket_conninfo()).unwrap_or_else(|error| panic!("{error:#}"));
    let started = Instant::now();
    loop {
        let left = sql.rows(
            "SELECT 'walsender', pid::text, state FROM pg_stat_replication
             UNION ALL SELECT 'slot', slot_name, coalesce(active_pid::text, 'inactive') FROM pg_replication_slots",
        );
        if left.is_empty() {
            return;
        }
        assert!(started.elapsed() < NOTICED_WITHIN, "the server still has {left:?}\n{}", server.log_tail(20));
        std::thread::sleep(ASK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    #[test]
    fn changes_are_told() {
        let scratch = Scratch::new();
        for name in ["kept", "changed", "gone"] {
            fs::write(scratch.join(name), name).unwrap();
        }
        fs::create_dir(scratch.join("folder")).unwrap();
        std::os::unix::fs::symlink("folder", scratch.join("link")).unwrap();
        let before = Snapshot::of(scratch.path());
        assert!(before.changes(&Snapshot::of(scratch.path())).is_empty());
        fs::write(scratch.join("changed"), "CHANGED").unwrap();
        fs::remove_file(scratch.join("gone")).unwrap();
        fs::write(scratch.join("folder/new"), "").unwrap();
        let changes = before.changes(&Snapshot::of(scratch.path()));
        let expected = ["changed: was", "gone: gone", "new: new"];
        assert_eq!(changes.len(), expected.len(), "{changes:?}");
        for (change, expected) in changes.iter().zip(expected) {
            assert!(change.contains(expected), "{change}");
        }
    }
}
