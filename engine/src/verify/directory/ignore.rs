//! Paths that a verification leaves out.

/// What lies in a backup's folder and is in no manifest, or may rightly differ from it
/// (`src/bin/pg_verifybackup/pg_verifybackup.c`): the manifest itself, WAL, and what `--write-recovery-conf` and
/// operators change in a finished backup.
const STANDARD: [&str; 5] =
    ["backup_manifest", "pg_wal", "postgresql.auto.conf", "recovery.signal", "standby.signal"];

/// A list of relative paths; each stands for the file or folder itself and for all that lies below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IgnoreList {
    paths: Vec<Vec<u8>>,
}

impl IgnoreList {
    /// What is always left out.
    #[must_use]
    pub fn standard() -> Self {
        Self { paths: STANDARD.iter().map(|path| path.as_bytes().to_vec()).collect() }
    }

    /// Leaves out one more path. As PostgreSQL's tool does it, `./`, doubled and trailing slashes are dropped
    /// and `..` takes back the component before it.
    pub fn add(&mut self, path: &[u8]) {
        let mut components: Vec<&[u8]> = Vec::new();
        for component in path.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => drop(components.pop()),
                name => components.push(name),
            }
        }
        // Nothing left would mean the backup itself, which PostgreSQL's tool does not match either.
        if !components.is_empty() {
            self.paths.push(components.join(&b'/'));
        }
    }

    /// Whether `path`, or a folder above it, is in the list.
    #[must_use]
    pub fn covers(&self, path: &[u8]) -> bool {
        covers(&self.paths, path)
    }
}

/// Whether `path` is one of `paths` or lies below one.
pub(super) fn covers(paths: &[Vec<u8>], path: &[u8]) -> bool {
    paths.iter().any(|listed| {
        path.strip_prefix(listed.as_slice()).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_folder() {
        let mut list = IgnoreList::standard();
        for path in ["./base//1/", "a/x/../b", "..", "."] {
            list.add(path.as_bytes());
        }
        for (path, covered) in [
            ("backup_manifest", true),
            ("backup_manifest.tmp", false),
            ("pg_wal/archive_status/x", true),
            ("pg_wal2/x", false),
            ("base/1", true),
            ("base/1/1259", true),
            ("base/13", false),
            ("base", false),
            ("a/b/c", true),
            ("a/x", false),
            ("PG_VERSION", false),
        ] {
            assert_eq!(list.covers(path.as_bytes()), covered, "{path}");
        }
    }
}
