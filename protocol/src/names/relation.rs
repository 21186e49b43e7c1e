//! Names of relation files (`common/relpath.c`, `parse_filename_for_nontemp_relation` in `reinit.c`).

use crate::BlockNumber;
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

    /// The number of the file's first page within its relation fork.
    #[must_use]
    pub fn first_block(&self) -> BlockNumber {
        BlockNumber(self.segment * SEGMENT_BLOCKS)
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
