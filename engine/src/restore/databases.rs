//! Which files are of databases that nobody asked for.
//!
//! Such files are restored as zeros of the same length, which take no place on the disk, but for `PG_VERSION`. Recovery
//! passes over them: between a backup's redo point and its end the first record that touches a page carries its whole
//! image or makes it anew (`full_page_writes` is forced while a backup runs), so nothing is asked of what was there before,
//! and a file of the old length neither shortens nor moves anything. Databases so left out cannot be used, only dropped.
//!
//! Databases of initdb (OIDs below `FirstNormalObjectId`), and those that have their names, are always whole: recovery,
//! connections and `CREATE DATABASE` need them.

use std::collections::HashSet;

use crate::repository::{BackupSummary, tablespace_of};

/// `FirstNormalObjectId` (`access/transam.h`).
const FIRST_NORMAL_OBJECT_ID: u32 = 16_384;
/// Databases that are needed for work whatever their OID is.
const NEEDED: [&str; 3] = ["postgres", "template0", "template1"];

/// The databases to restore.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// None where all are.
    chosen: Option<HashSet<u32>>,
}

impl Selection {
    /// Resolves names and OIDs. `folders` are all folders of databases that the backup has. What is unknown is a problem,
    /// in words.
    pub(super) fn of(
        wanted: &[String],
        summary: &BackupSummary,
        folders: &HashSet<u32>,
        problems: &mut Vec<String>,
    ) -> Self {
        if wanted.is_empty() {
            return Self::default();
        }
        let known = &summary.databases;
        let needed = known.iter().filter(|one| NEEDED.contains(&one.name.as_str())).map(|one| one.oid);
        let mut chosen: HashSet<u32> = needed.collect();
        for wanted in wanted {
            let named = known.iter().find(|one| one.name == *wanted).map(|one| one.oid);
            let there = |oid: &u32| folders.contains(oid) || known.iter().any(|one| one.oid == *oid);
            match named.or_else(|| wanted.parse().ok().filter(there)) {
                Some(oid) => drop(chosen.insert(oid)),
                None if known.is_empty() => problems.push(format!(
                    "database \"{wanted}\" is not known by that name: this backup has no names of databases\n\
                     HINT: name it by its OID (SELECT oid, datname FROM pg_database). Those in this backup: {}.",
                    listed(folders.iter().map(u32::to_string))
                )),
                None => problems.push(format!(
                    "this backup has no database \"{wanted}\"\nHINT: those that it has: {}.",
                    listed(known.iter().map(|one| format!("{} ({})", one.name, one.oid)))
                )),
            }
        }
        Self { chosen: Some(chosen) }
    }

    /// Whether a file is of a database that nobody asked for.
    pub(super) fn omits(&self, path: &[u8]) -> bool {
        let Some(chosen) = &self.chosen else { return false };
        let Some((oid, name)) = database_of(path) else { return false };
        oid >= FIRST_NORMAL_OBJECT_ID && !chosen.contains(&oid) && name != b"PG_VERSION"
    }
}

fn listed(items: impl Iterator<Item = String>) -> String {
    let mut items: Vec<_> = items.collect();
    items.sort();
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

/// The database of `base/OID/NAME` or `pg_tblspc/OID/PG_…/OID/NAME`, and the name.
pub(super) fn database_of(path: &[u8]) -> Option<(u32, &[u8])> {
    let below = match tablespace_of(path) {
        Some((_, below)) => &below[below.iter().position(|byte| *byte == b'/')? + 1..],
        None => path.strip_prefix(b"base/")?,
    };
    let slash = below.iter().position(|byte| *byte == b'/')?;
    let oid = std::str::from_utf8(&below[..slash]).ok()?.parse().ok()?;
    Some((oid, &below[slash + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_other_databases_are_omitted() {
        let selection = Selection { chosen: Some(HashSet::from([16_390])) };
        for (path, omitted) in [
            ("base/16384/2619", true),
            ("base/16384/pg_filenode.map", true),
            ("pg_tblspc/20000/PG_15_202209061/16384/1", true),
            ("base/16384/PG_VERSION", false),
            ("pg_tblspc/20000/PG_15_202209061/16390/1", false),
            ("base/16390/2619", false),
            ("base/5/2619", false),
            ("base/16384", false),
            ("global/16384", false),
            ("pg_xact/0000", false),
            ("base/x/1", false),
        ] {
            assert_eq!(selection.omits(path.as_bytes()), omitted, "{path}");
        }
        assert!(!Selection::default().omits(b"base/16384/2619"));
    }
}
