//! Where the knowledge of what changed comes from.

use pgstrata_protocol::Lsn;
use pgstrata_protocol::names::RelationFile;
use serde::{Deserialize, Serialize};

use super::BlockRun;

/// What a backup is to go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangesWanted {
    /// The cheapest source that covers what lies between; a full backup where none does.
    #[default]
    Auto,
    /// Nothing: a full backup.
    Full,
    /// The LSNs in the headers of pages: everything is read. Where that is not possible, the backup fails.
    Pages,
}

/// What a backup went by, for the record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesSummary {
    /// `full` for a backup that is laid over none, else the source of change: `server`, `archive`, `pages`.
    pub source: String,
    /// Sources that were not taken, or why no backup could be laid under this one.
    #[serde(default)]
    pub passed_over: Vec<PassedOver>,
    /// The position since which changes were looked for.
    #[serde(default)]
    pub since: Option<String>,
    /// Files whose maps were taken over whole.
    #[serde(default)]
    pub unchanged_files: u64,
    /// Files that were stored in part.
    #[serde(default)]
    pub changed_files: u64,
    /// Bytes of these that the older packs hold.
    #[serde(default)]
    pub kept_bytes: u64,
    /// Bytes of files that were stored in part, as far as they were stored.
    #[serde(default)]
    pub changed_bytes: u64,
    /// Of these, bytes that are the same as before, to leave packs or maps that are worth little.
    #[serde(default)]
    pub renewed_bytes: u64,
    /// Bytes that were read from the data directory.
    #[serde(default)]
    pub read_bytes: u64,
}

/// What was not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// Which source, or `parent`.
    pub what: String,
    /// Why.
    pub why: String,
}

/// What is known of the changes since the parent's start.
#[derive(Debug)]
pub(crate) enum Changes {
    /// Pages that were changed have this LSN or a later one; each is looked at.
    Pages(Lsn),
}

/// What is known of one segment file of a relation.
pub(crate) enum Touched {
    /// Too much, or nothing: it is stored whole.
    All,
    /// These blocks, counted from the file's beginning, and all from `limit` on.
    #[expect(dead_code, reason = "sources that know blocks")]
    Blocks {
        /// Blocks from this one on were made anew.
        limit: Option<u32>,
        /// In their order.
        runs: Vec<BlockRun>,
    },
    /// Whatever its pages say.
    ByPage(Lsn),
}

impl Changes {
    /// What the summary calls it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Pages(_) => "pages",
        }
    }

    /// What is known of a file of so many blocks.
    pub(crate) fn of(&self, _file: &RelationFile, _blocks: u32) -> Touched {
        match self {
            Self::Pages(since) => Touched::ByPage(*since),
        }
    }
}
