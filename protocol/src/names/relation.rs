//! Names of relation files (`common/relpath.c`, `parse_filename_for_nontemp_relation` in `reinit.c`).

use crate::BlockNumber;
use crate::incremental::NAME_PREFIX;
use crate::page::SEGMENT_BLOCKS;

/// The four files of a relation (`ForkNumber`, `common/relpath.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The data.
    Main,
    /// The free space map, `_fsm`.
    FreeSpace,
    /// The visibility map, `_vm`.
    Visibility,
    /// What an unlogged relation is reset to, `_init`.
    Init,
}

/// Which tablespace a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TablespaceDir {
    /// `global`
    Global,
    /// `base`
    Default,
    /// `pg_tblspc/OID`
    Oid(u32),
}

/// A segment file of a permanent or unlogged relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFile {
    /// Where it lies.
    pub tablespace: TablespaceDir,
    /// The database's OID, 0 for shared relations.
    pub database: u32,
    /// The relation's file number.
    pub relation: u32,
    /// Which fork.
    pub fork: Fork,
    /// Which segment file, from 0.
    pub segment: u32,
}

impl RelationFile {
    /// Reads a path relative to the data directory: `global/N`, `base/DB/N`, `pg_tblspc/OID/PG_version/DB/N`, where `N`
    /// is `number[_fork][.segment]`. `None` for all else, among it temporary relations (`t3_16384`).
    #[must_use]
    pub fn parse(path: &[u8]) -> Option<Self> {
        let mut parts = path.split(|byte| *byte == b'/');
        let (tablespace, database) = match parts.next()? {
            b"global" => (TablespaceDir::Global, 0),
            b"base" => (TablespaceDir::Default, oid(parts.next()?)?),
            b"pg_tblspc" => {
                let tablespace = oid(parts.next()?)?;
                // PG_<major>_<catalogue version>: one tablespace can serve clusters of several versions.
                parts.next()?.strip_prefix(b"PG_")?;
                (TablespaceDir::Oid(tablespace), oid(parts.next()?)?)
            }
            _ => return None,
        };
        let name = parts.next()?;
        if parts.next().is_some() {
            return None;
        }
        let (name, segment) = match name.iter().position(|byte| *byte == b'.') {
            Some(dot) => (&name[..dot], oid(&name[dot + 1..])?),
            None => (name, 0),
        };
        let (relation, fork) = match name.iter().position(|byte| *byte == b'_') {
            None => (name, Fork::Main),
            Some(at) => match &name[at + 1..] {
                b"fsm" => (&name[..at], Fork::FreeSpace),
                b"vm" => (&name[..at], Fork::Visibility),
                b"init" => (&name[..at], Fork::Init),
                _ => return None,
            },
        };
        // The last segment ends with the last block number.
        if segment > u32::MAX / SEGMENT_BLOCKS {
            return None;
        }
        Some(Self { tablespace, database, relation: oid(relation)?, fork, segment })
    }

    /// As [`parse`](Self::parse), for an incremental file, whose name is that of the segment behind `INCREMENTAL.`
    /// (`GetIncrementalFilePath`).
    #[must_use]
    pub fn parse_incremental(path: &[u8]) -> Option<Self> {
        let slash = path.iter().rposition(|byte| *byte == b'/')?;
        let (folder, name) = path.split_at(slash + 1);
        let name = name.strip_prefix(NAME_PREFIX)?;
        Self::parse(&[folder, name].concat())
    }

    /// The number of the file's first page within its relation fork.
    #[must_use]
    pub fn first_block(&self) -> BlockNumber {
        BlockNumber(self.segment.saturating_mul(SEGMENT_BLOCKS))
    }

    /// Whether the relation is unlogged and this its template.
    #[must_use]
    pub fn is_unlogged_init(&self) -> bool {
        self.fork == Fork::Init
    }
}

/// Whether a file among relation files has no page checksums (`noChecksumFiles`, `basebackup.c`). What
/// [`RelationFile::parse`] accepts is never among them.
#[must_use]
pub fn is_checksum_exempt(file_name: &[u8]) -> bool {
    matches!(file_name, b"pg_control" | b"pg_filenode.map" | b"PG_VERSION")
        || file_name.starts_with(b"pg_internal.init")
        || file_name.starts_with(b"config_exec_params")
}

/// A number from 1 up as PostgreSQL prints it: no sign, no leading zero, 32 bits.
fn oid(digits: &[u8]) -> Option<u32> {
    if digits.first().is_none_or(|first| !matches!(first, b'1'..=b'9')) {
        return None;
    }
    digits.iter().try_fold(0u32, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relation_files() {
        let file = |tablespace, database, relation, fork, segment| {
            Some(RelationFile { tablespace, database, relation, fork, segment })
        };
        for (path, expected) in [
            ("base/5/16384", file(TablespaceDir::Default, 5, 16384, Fork::Main, 0)),
            ("base/5/16384.1", file(TablespaceDir::Default, 5, 16384, Fork::Main, 1)),
            ("base/5/16384_fsm", file(TablespaceDir::Default, 5, 16384, Fork::FreeSpace, 0)),
            ("base/5/16384_vm.32767", file(TablespaceDir::Default, 5, 16384, Fork::Visibility, 32767)),
            ("base/5/16384_init", file(TablespaceDir::Default, 5, 16384, Fork::Init, 0)),
            ("global/1262", file(TablespaceDir::Global, 0, 1262, Fork::Main, 0)),
            (
                "pg_tblspc/16385/PG_15_202209061/5/4294967295",
                file(TablespaceDir::Oid(16385), 5, u32::MAX, Fork::Main, 0),
            ),
        ] {
            assert_eq!(RelationFile::parse(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn other_files() {
        for path in [
            "",
            "global",
            "global/",
            "global/pg_control",
            "global/pg_filenode.map",
            "global/pg_internal.init",
            "global/5/16384",
            "base/16384",
            "base/5/PG_VERSION",
            "base/5/pg_internal.init.123",
            "base/5/t3_16384",
            "base/5/16384_",
            "base/5/16384_foo",
            "base/5/16384_fsm_vm",
            "base/5/16384.",
            "base/5/16384.0",
            "base/5/16384.01",
            "base/5/16384.32768",
            "base/5/16384.1_fsm",
            "base/5/16384.1.1",
            "base/5/0",
            "base/5/016384",
            "base/5/4294967296",
            "base/5/+1",
            "base/x/16384",
            "base/5/16384/1",
            "base/pgsql_tmp/16384",
            "pg_tblspc/16385/5/16384",
            "pg_tblspc/16385/16384",
            "pg_tblspc/x/PG_15_202209061/5/16384",
            "pg_wal/000000010000000000000001",
            "./base/5/16384",
        ] {
            assert_eq!(RelationFile::parse(path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn incremental_files() {
        for (path, of) in [
            ("base/5/INCREMENTAL.16384", Some("base/5/16384")),
            ("global/INCREMENTAL.1262_vm", Some("global/1262_vm")),
            (
                "pg_tblspc/16385/PG_17_202406281/5/INCREMENTAL.16384_init.2",
                Some("pg_tblspc/16385/PG_17_202406281/5/16384_init.2"),
            ),
            ("base/5/16384", None),
            ("base/5/INCREMENTAL.PG_VERSION", None),
            ("base/5/INCREMENTAL.INCREMENTAL.16384", None),
            ("base/INCREMENTAL.5/16384", None),
            ("INCREMENTAL.16384", None),
            ("base/5/incremental.16384", None),
        ] {
            let found = RelationFile::parse_incremental(path.as_bytes());
            assert_eq!(found, of.map(|of| RelationFile::parse(of.as_bytes()).unwrap()), "{path}");
            assert!(path.starts_with("base/5/1") || RelationFile::parse(path.as_bytes()).is_none(), "{path}");
        }
    }

    #[test]
    fn blocks_count_through_segments() {
        let first = |path: &[u8]| RelationFile::parse(path).unwrap().first_block().0;
        assert_eq!(first(b"base/5/16384"), 0);
        assert_eq!(first(b"base/5/16384.1"), 131_072);
        assert_eq!(first(b"base/5/16384.32767"), u32::MAX - 131_071);
        assert!(RelationFile::parse(b"base/5/16384_init").unwrap().is_unlogged_init());
        assert!(!RelationFile::parse(b"base/5/16384").unwrap().is_unlogged_init());
    }

    #[test]
    fn exempt_names() {
        for (name, exempt) in [
            ("pg_control", true),
            ("pg_control2", false),
            ("pg_filenode.map", true),
            ("PG_VERSION", true),
            ("pg_internal.init", true),
            ("pg_internal.init.77", true),
            ("config_exec_params.new", true),
            ("16384", false),
        ] {
            assert_eq!(is_checksum_exempt(name.as_bytes()), exempt, "{name}");
        }
    }
}
