//! WAL to block references, as PostgreSQL's summarizer makes them (`walsummarizer.c`), from 13 on.
//!
//! What a table leaves out: free space maps, whose changes are not all logged. What it cannot tell: bits of a visibility map
//! that are cleared along with a change of the heap; whoever uses a table copies these two forks whole.
//!
//! Invariant: a record that is not understood is never passed over. The table is refused then, see [`Summarizer::finish`];
//! the WAL itself may be as good as any.

use super::change::Change;
use super::checker::WalError;
use super::content::{BlockReference, Record, RecordSink, Relation};
use crate::page::PAGE_SIZE;
use crate::summary::{BlockReferences, MAX_FORK, RelationFork};
use crate::{BlockNumber, Lsn};

/// The forks that count here (`ForkNumber`).
const MAIN: u32 = 0;
const FREE_SPACE: u32 = 1;
const VISIBILITY: u32 = 2;

/// The blocks of a heap that a page of its visibility map stands for (`HEAPBLOCKS_PER_PAGE`, `visibilitymap.c`): two bits each in
/// what the page's header leaves of it.
const HEAP_BLOCKS_PER_MAP_PAGE: u32 = 8168 * 4;
const _: () = assert!(HEAP_BLOCKS_PER_MAP_PAGE as usize == (PAGE_SIZE - 24) * 4);

/// Fills a table of block references from the records whose beginnings lie in a range.
#[derive(Debug)]
pub struct Summarizer {
    from: Lsn,
    to: Lsn,
    references: BlockReferences,
    links: Links,
    /// The blocks of the record at hand.
    blocks: Vec<BlockReference>,
    /// The block that was marked last: a page is often changed many times in a row.
    recent: Option<(Relation, u8, BlockNumber)>,
    refused: Option<WalError>,
}

/// How the records of a stretch of log hang together with those around it, and what the log says of itself there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Where the first record begins, and where it says that the one before it does.
    pub first: Option<(Lsn, Lsn)>,
    /// Where the last record begins.
    pub last: Option<Lsn>,
    /// Where a record says that less is logged from there on than tracking needs (`wal_level = minimal`).
    pub minimal: Option<Lsn>,
}

impl Summarizer {
    /// One for the records that begin at `from` or later, and before `to`.
    #[must_use]
    pub fn new(from: Lsn, to: Lsn) -> Self {
        Self {
            from,
            to,
            references: BlockReferences::new(),
            links: Links::default(),
            blocks: Vec::new(),
            recent: None,
            refused: None,
        }
    }

    /// One that goes on with a table.
    pub(super) fn resume(references: BlockReferences, links: Links) -> Self {
        Self { references, links, ..Self::new(Lsn(0), Lsn(u64::MAX)) }
    }

    /// What the records changed.
    ///
    /// # Errors
    /// [`WalError`] where one of them was not understood: there is no table then.
    pub fn finish(self) -> Result<(BlockReferences, Links), WalError> {
        match self.refused {
            None => Ok((self.references, self.links)),
            Some(error) => Err(error),
        }
    }

    /// Where the last record begins.
    pub(super) fn last(&self) -> Option<Lsn> {
        self.links.last
    }

    /// Adds a record, wherever it begins.
    pub(super) fn add(&mut self, record: &Record<'_>) -> Result<(), WalError> {
        let contents = record.decode(&mut self.blocks)?;
        match record.change(&contents)? {
            Change::None => {}
            change => self.add_change(record, change),
        }
        for at in 0..self.blocks.len() {
            let BlockReference { relation, fork, block, .. } = self.blocks[at];
            // As everywhere: its changes are not all logged.
            if u32::from(fork) == FREE_SPACE || self.recent == Some((relation, fork, block)) {
                continue;
            }
            self.recent = Some((relation, fork, block));
            self.references.mark_block(relation.fork(fork.into()), block);
        }
        self.links.first.get_or_insert((record.start, record.previous()));
        self.links.last = Some(record.start);
        Ok(())
    }

    fn add_change(&mut self, record: &Record<'_>, change: Change<'_>) {
        // A limit may forget the block.
        self.recent = None;
        match change {
            Change::ForkCreated { relation, fork } => {
                if u32::from(fork) != FREE_SPACE {
                    self.references.set_limit(relation.fork(fork.into()), BlockNumber(0));
                }
            }
            Change::Truncated { relation, blocks, main, visibility, .. } => {
                if main {
                    self.references.set_limit(relation.fork(MAIN), BlockNumber(blocks));
                }
                if visibility {
                    let left = blocks.div_ceil(HEAP_BLOCKS_PER_MAP_PAGE);
                    self.references.set_limit(relation.fork(VISIBILITY), BlockNumber(left));
                }
            }
            Change::RelationsDropped(relations) => {
                for relation in relations.iter() {
                    for fork in (0..=MAX_FORK).filter(|fork| *fork != FREE_SPACE) {
                        self.references.set_limit(relation.fork(fork), BlockNumber(0));
                    }
                }
            }
            Change::DatabaseCreated { database, tablespace, .. } => self.database(tablespace, database),
            Change::DatabaseDropped { database, tablespaces } => {
                for tablespace in tablespaces.iter() {
                    self.database(tablespace, database);
                }
            }
            Change::Level { minimal: Some(true), .. } => {
                self.links.minimal.get_or_insert(record.start);
            }
            // Of maps and tablespaces there are files and links, but no blocks.
            Change::None
            | Change::Level { .. }
            | Change::RelationMap { .. }
            | Change::TablespaceCreated { .. }
            | Change::TablespaceDropped { .. } => {}
        }
    }

    /// All relations of a database in a tablespace are new, or gone: relation 0 stands for them.
    fn database(&mut self, tablespace: u32, database: u32) {
        let all = Relation { tablespace, database, number: 0 };
        self.references.set_limit(all.fork(MAIN), BlockNumber(0));
    }
}

impl RecordSink for Summarizer {
    fn record(&mut self, record: &Record<'_>) -> Result<(), WalError> {
        if self.refused.is_none()
            && (self.from..self.to).contains(&record.start)
            && let Err(error) = self.add(record)
        {
            self.refused = Some(error);
        }
        Ok(())
    }
}

impl Relation {
    /// One of its forks.
    #[must_use]
    pub fn fork(self, fork: u32) -> RelationFork {
        let Self { tablespace, database, number: relation } = self;
        RelationFork { tablespace, database, relation, fork }
    }
}
