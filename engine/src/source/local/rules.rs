//! What of a data directory is no part of a backup, by name (`basebackup.c`, the same in 13 to 18).

use std::collections::HashSet;

/// `excludeFiles`, but for the relation cache, whose names only begin alike.
const SKIPPED: [&[u8]; 8] = [
    b"postgresql.auto.conf.tmp",
    b"current_logfiles.tmp",
    b"backup_label",
    b"tablespace_map",
    b"backup_manifest",
    b"postmaster.pid",
    b"postmaster.opts",
    b".DS_Store",
];
/// `PG_TEMP_FILE_PREFIX`, and `RELCACHE_INIT_FILENAME`.
const SKIPPED_PREFIXES: [&[u8]; 2] = [b"pgsql_tmp", b"pg_internal.init"];
/// `excludeDirContents`: made anew at a start; the folders themselves are kept.
const KEPT_EMPTY: [&[u8]; 7] = [
    b"pg_stat_tmp",
    b"pg_replslot",
    b"pg_dynshmem",
    b"pg_notify",
    b"pg_serial",
    b"pg_snapshots",
    b"pg_subtrans",
];

/// What one cluster adds to the names that all have in common.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// `TABLESPACE_VERSION_DIRECTORY`: `PG_15_202209061`.
    pub(crate) version_folder: Vec<u8>,
    /// `stats_temp_directory` of servers up to 14, where it lies in the data directory.
    pub(crate) statistics: Option<Vec<u8>>,
    /// Paths in the data directory at which tablespaces lie, which come by themselves.
    pub(crate) inside: HashSet<Vec<u8>>,
    /// Folders below `pg_wal` that are kept, empty.
    pub(crate) wal_folders: &'static [&'static str],
    /// Permission bits of a folder that is a link in the source.
    pub(crate) folder_mode: u32,
}

impl Rules {
    /// The folders below `pg_wal` in a backup of a server of this major version.
    pub(crate) fn wal_folders_of(major: u32) -> &'static [&'static str] {
        if major >= 17 { &["archive_status", "summaries"] } else { &["archive_status"] }
    }

    /// Whether a folder is kept without what is in it.
    pub(super) fn keeps_empty(&self, path: &[u8], name: &[u8]) -> bool {
        KEPT_EMPTY.contains(&name) || self.statistics.as_deref() == Some(path)
    }

    /// Whether files of relations may lie in the folder at `path`, and whether it is a database's, in which temporary
    /// relations may. `path` is relative to the data directory or to a tablespace.
    pub(super) fn relations(&self, path: &[u8]) -> (bool, bool) {
        if path == b"global" {
            return (true, false);
        }
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => return (false, false),
        };
        let numbered = !name.is_empty() && name.iter().all(u8::is_ascii_digit);
        let database = numbered && (parent == b"base" || parent.ends_with(&self.version_folder));
        (database, database)
    }
}

/// Whether nothing of this name is copied, wherever it lies.
pub(super) fn is_skipped(name: &[u8]) -> bool {
    SKIPPED.contains(&name) || SKIPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The relation's number of a file that is not the `init` fork of one (`parse_filename_for_nontemp_relation`).
pub(super) fn number_without_init(name: &[u8]) -> Option<&[u8]> {
    let digits = digits(name)?;
    let (fork, rest) = fork(&name[digits..]);
    (fork != Some(b"init") && is_segment(rest)).then(|| &name[..digits])
}

/// Whether it is a temporary relation's (`looks_like_temp_rel_name`): `t3_16384_vm.1`.
pub(super) fn is_temporary_relation(name: &[u8]) -> bool {
    let rest = || {
        let name = name.strip_prefix(b"t")?;
        let name = name[digits(name)?..].strip_prefix(b"_")?;
        let (_, rest) = fork(&name[digits(name)?..]);
        Some(is_segment(rest))
    };
    rest() == Some(true)
}

/// How many digits a name begins with; none for none.
fn digits(name: &[u8]) -> Option<usize> {
    let count = name.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (count > 0).then_some(count)
}

/// The fork that follows, and what is behind it.
fn fork(rest: &[u8]) -> (Option<&[u8]>, &[u8]) {
    for fork in [&b"fsm"[..], b"vm", b"init"] {
        if let Some(behind) = rest.strip_prefix(b"_").and_then(|rest| rest.strip_prefix(fork)) {
            return (Some(fork), behind);
        }
    }
    (None, rest)
}

fn is_segment(rest: &[u8]) -> bool {
    match rest.strip_prefix(b".") {
        Some(number) => digits(number) == Some(number.len()),
        None => rest.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_temporary_relations() {
        for (name, temporary) in [
            ("t3_16384", true),
            ("t12_16384.1", true),
            ("t3_16384_vm", true),
            ("t3_16384_fsm.2", true),
            ("t_16384", false),
            ("t3_", false),
            ("t3_16384x", false),
            ("t3_16384.", false),
            ("16384", false),
            ("table", false),
        ] {
            assert_eq!(is_temporary_relation(name.as_bytes()), temporary, "{name}");
        }
    }

    #[test]
    fn names_of_relations_that_an_init_fork_may_stand_beside() {
        for (name, number) in [
            ("16384", Some("16384")),
            ("16384.1", Some("16384")),
            ("16384_vm", Some("16384")),
            ("16384_fsm.3", Some("16384")),
            ("16384_init", None),
            ("16384_other", None),
            ("16384.x", None),
            ("pg_filenode.map", None),
        ] {
            assert_eq!(number_without_init(name.as_bytes()), number.map(str::as_bytes), "{name}");
        }
    }

    #[test]
    fn what_is_skipped_is_skipped_by_its_whole_name() {
        for (name, skipped) in [
            ("postmaster.pid", true),
            ("backup_label", true),
            ("backup_label.old", false),
            ("tablespace_map.old", false),
            ("backup_manifest", true),
            ("pg_internal.init", true),
            ("pg_internal.init.4711", true),
            ("pgsql_tmp", true),
            ("pgsql_tmp4711.0", true),
            ("postgresql.auto.conf", false),
            (".DS_Store", true),
        ] {
            assert_eq!(is_skipped(name.as_bytes()), skipped, "{name}");
        }
    }

    #[test]
    fn folders_of_relations() {
        let rules = Rules { version_folder: b"PG_15_202209061".to_vec(), ..Rules::default() };
        for (path, relations, database) in [
            ("global", true, false),
            ("base/5", true, true),
            ("PG_15_202209061/5", true, true),
            ("PG_14_202107181/5", false, false),
            ("base", false, false),
            ("base/pgsql_tmp", false, false),
            ("log/5", false, false),
        ] {
            assert_eq!(rules.relations(path.as_bytes()), (relations, database), "{path}");
        }
        assert!(rules.keeps_empty(b"pg_notify", b"pg_notify") && !rules.keeps_empty(b"base", b"base"));
    }
}
