//! The name of a relation fork, as WAL and its summaries have it.

use std::fmt;
use std::hash::{Hash, Hasher};

/// The highest number of a fork (`MAX_FORKNUM`, `common/relpath.h`).
pub const MAX_FORK: u32 = 3;

/// One fork of a relation. Ordered as entries of a summary file are (`BlockRefTableComparator`, `blkreftable.c`).
///
/// Relation 0 stands for a database in a tablespace as a whole: that it has an entry means that it was created or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelationFork {
    /// The tablespace's OID; 1663 is `base`, 1664 `global`.
    pub tablespace: u32,
    /// The database's OID, 0 for shared relations.
    pub database: u32,
    /// The relation's file number.
    pub relation: u32,
    /// The fork: 0 main, 1 free space map, 2 visibility map, 3 the template of an unlogged relation.
    pub fork: u32,
}

impl RelationFork {
    /// The fork's name as PostgreSQL's tools print it (`forkNames`, `common/relpath.c`), where there is such a fork.
    #[must_use]
    pub fn fork_name(&self) -> Option<&'static str> {
        ["main", "fsm", "vm", "init"].get(usize::try_from(self.fork).ok()?).copied()
    }
}

impl Hash for RelationFork {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // At once: WAL names a fork with every record.
        state.write_u64(u64::from(self.tablespace) << 32 | u64::from(self.database));
        state.write_u64(u64::from(self.relation) << 32 | u64::from(self.fork));
    }
}

/// As `pg_walsummary` prints it.
impl fmt::Display for RelationFork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TS {}, DB {}, REL {}, FORK ", self.tablespace, self.database, self.relation)?;
        match self.fork_name() {
            Some(name) => f.write_str(name),
            None => self.fork.fmt(f),
        }
    }
}
