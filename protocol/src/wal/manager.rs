//! Resource managers: who replays a record (`access/rmgrlist.h`, the same in 13 to 18).

use std::fmt;

/// A resource manager's number (`RmgrId`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Manager(pub u8);

/// The names, by number, as `pg_waldump` prints them.
const NAMES: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

impl Manager {
    /// The log itself (`RM_XLOG_ID`).
    pub const LOG: Self = Self(0);
    /// Transactions (`RM_XACT_ID`).
    pub const TRANSACTION: Self = Self(1);
    /// Relation files (`RM_SMGR_ID`).
    pub const STORAGE: Self = Self(2);
    /// Databases (`RM_DBASE_ID`).
    pub const DATABASE: Self = Self(4);
    /// Tablespaces (`RM_TBLSPC_ID`).
    pub const TABLESPACE: Self = Self(5);
    /// Relation maps (`RM_RELMAP_ID`).
    pub const RELATION_MAP: Self = Self(7);

    /// Whether it is one of PostgreSQL's own.
    #[must_use]
    pub fn is_builtin(self) -> bool {
        usize::from(self.0) < NAMES.len()
    }

    /// Whether an extension may have the number (`RM_MIN_CUSTOM_ID`), from 15.
    #[must_use]
    pub fn is_custom(self) -> bool {
        self.0 >= 128
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None if self.is_custom() => write!(f, "custom{:03}", self.0),
            None => write!(f, "UNKNOWN_{}", self.0),
        }
    }
}
