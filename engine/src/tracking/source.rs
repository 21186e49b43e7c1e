//! Where the knowledge of what changed comes from.

use pgstrata_protocol::names::{RelationFile, TablespaceDir};
use pgstrata_protocol::page::SEGMENT_BLOCKS;
use pgstrata_protocol::summary::{BlockReferences, RelationFork};
use pgstrata_protocol::{BlockNumber, Lsn};
use serde::{Deserialize, Serialize};

use super::BlockRun;

/// `base` and `global` (`pg_tablespace.dat`).
const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;

/// What a backup is to go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangesWanted {
    /// The cheapest source that covers what lies between; a full backup where none does.
    #[default]
    Auto,
    /// Nothing: a full backup.
    Full,
    /// This one. Where it does not know all, the backup fails.
    Only(ChangeSource),
}

/// A source of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeSource {
    /// The server's own WAL summaries.
    Server,
    /// The WAL in the repository's archive and in the server's `pg_wal`.
    Archive,
    /// The LSNs in the headers of pages: everything is read.
    Pages,
}

impl ChangeSource {
    /// All, the cheapest first.
    pub const ALL: [Self; 3] = [Self::Server, Self::Archive, Self::Pages];

    /// What summaries and options call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Archive => "archive",
            Self::Pages => "pages",
        }
    }
}

/// What a backup went by, for the record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesSummary {
    /// `full` for a backup that is laid over none, else the source of change: `server`, `archive`, `pages`.
    pub source: String,
    /// Sources that were not taken, or why no backup could be laid under this one.
    #[serde(default)]
    pub passed_over: Vec<PassedOver>,
    /// Which data directory it is of: see [`super::identity`]. None where that cannot be told.
    #[serde(default)]
    pub data_directory: Option<String>,
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
    /// The WAL between changed these blocks.
    Wal(BlockReferences),
}

/// What is known of one segment file of a relation.
pub(crate) enum Touched {
    /// Too much, or nothing: it is stored whole.
    All,
    /// These blocks, counted from the file's beginning, and all from `limit` on.
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
    /// What is known of a relation's file.
    pub(crate) fn of(&self, file: &RelationFile) -> Touched {
        match self {
            Self::Pages(since) => Touched::ByPage(*since),
            Self::Wal(references) => touched(references, file),
        }
    }
}

/// What WAL changed in a segment file of a main fork.
fn touched(references: &BlockReferences, file: &RelationFile) -> Touched {
    let tablespace = match file.tablespace {
        TablespaceDir::Default => DEFAULT_TABLESPACE,
        TablespaceDir::Global => GLOBAL_TABLESPACE,
        TablespaceDir::Oid(oid) => oid,
    };
    let fork = RelationFork { tablespace, database: file.database, relation: file.relation, fork: 0 };
    // The database was made or dropped meanwhile: what lies there now is another one's.
    if references.get(&RelationFork { relation: 0, ..fork }).is_some() {
        return Touched::All;
    }
    let Some(known) = references.get(&fork) else { return Touched::Blocks { limit: None, runs: Vec::new() } };
    let first = file.first_block().0;
    let limit = match known.limit() {
        Some(BlockNumber(limit)) if limit <= first => return Touched::All,
        limit => limit.map(|limit| limit.0 - first).filter(|limit| *limit < SEGMENT_BLOCKS),
    };
    let mut runs: Vec<BlockRun> = Vec::new();
    for BlockNumber(block) in known.blocks(first..=first.saturating_add(SEGMENT_BLOCKS - 1)) {
        let block = block - first;
        match runs.last_mut().filter(|last| last.end() == block) {
            Some(last) => last.count += 1,
            None => runs.push(BlockRun { block, count: 1 }),
        }
    }
    Touched::Blocks { limit, runs }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A limit, and runs as their first blocks and lengths; none for a file of which nothing is kept.
    type Known = Option<(Option<u32>, Vec<(u32, u32)>)>;

    fn blocks(references: &BlockReferences, path: &str) -> Known {
        let file = RelationFile::parse(path.as_bytes()).expect("a relation's file");
        match touched(references, &file) {
            Touched::Blocks { limit, runs } => {
                Some((limit, runs.into_iter().map(|run| (run.block, run.count)).collect()))
            }
            Touched::All => None,
            Touched::ByPage(_) => unreachable!("blocks are known"),
        }
    }

    #[test]
    fn blocks_of_a_segment_count_from_its_beginning() {
        let mut references = BlockReferences::new();
        let fork = |tablespace, database, relation| RelationFork { tablespace, database, relation, fork: 0 };
        let table = fork(1663, 5, 16384);
        for block in [0, 1, 5, 131_071, 131_072, 131_074, 262_143, 262_144] {
            references.mark_block(table, BlockNumber(block));
        }
        assert_eq!(blocks(&references, "base/5/16384"), Some((None, vec![(0, 2), (5, 1), (131_071, 1)])));
        assert_eq!(blocks(&references, "base/5/16384.1"), Some((None, vec![(0, 1), (2, 1), (131_071, 1)])));
        assert_eq!(blocks(&references, "base/5/16384.2"), Some((None, vec![(0, 1)])));
        assert_eq!(blocks(&references, "base/5/16385"), Some((None, Vec::new())));
        // Of other places.
        for path in ["base/6/16384", "global/16384", "pg_tblspc/16390/PG_17_202406281/5/16384"] {
            assert_eq!(blocks(&references, path), Some((None, Vec::new())), "{path}");
        }
        references.mark_block(fork(1664, 0, 1262), BlockNumber(3));
        references.mark_block(fork(16390, 5, 16384), BlockNumber(4));
        assert_eq!(blocks(&references, "global/1262"), Some((None, vec![(3, 1)])));
        let moved = "pg_tblspc/16390/PG_17_202406281/5/16384";
        assert_eq!(blocks(&references, moved), Some((None, vec![(4, 1)])));
        // Cut within the second segment: the first has no limit, the third is new.
        references.set_limit(table, BlockNumber(131_073));
        assert_eq!(blocks(&references, "base/5/16384"), Some((None, vec![(0, 2), (5, 1), (131_071, 1)])));
        assert_eq!(blocks(&references, "base/5/16384.1"), Some((Some(1), vec![(0, 1)])));
        assert_eq!(blocks(&references, "base/5/16384.2"), None);
        // At its very beginning, and as a whole.
        references.set_limit(table, BlockNumber(131_072));
        assert_eq!(blocks(&references, "base/5/16384.1"), None);
        references.set_limit(table, BlockNumber(0));
        assert_eq!(blocks(&references, "base/5/16384"), None);
        // Its database was made or dropped.
        references.set_limit(fork(1663, 7, 0), BlockNumber(0));
        assert_eq!(blocks(&references, "base/7/16384"), None);
        assert_eq!(blocks(&references, "base/8/16384"), Some((None, Vec::new())));
    }
}
