//! A table of block references: for each relation fork the blocks that changed, and the least length that it had.
//!
//! Blocks are forgotten only when a limit falls below what it was, as `BlockRefTableEntrySetLimitBlock` does it: the table may name
//! a block that was truncated away and is none any more, and never lacks one.

use std::collections::HashMap;
use std::ops::{Bound, RangeBounds};

use super::chunk::{Chunk, WORDS};
use super::{CHUNK_BLOCKS, RelationFork};
use crate::BlockNumber;

/// No limit (`InvalidBlockNumber`, `storage/block.h`).
const NO_LIMIT: u32 = u32::MAX;

/// Which blocks of which relation forks some range of WAL changed.
#[derive(Clone, Debug, Default)]
pub struct BlockReferences {
    forks: Vec<(RelationFork, ForkReferences)>,
    places: HashMap<RelationFork, usize>,
    /// Where the fork lies that was looked up last: records come in runs.
    recent: usize,
}

impl BlockReferences {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no fork has an entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.forks.is_empty()
    }

    /// How many forks have an entry.
    #[must_use]
    pub fn len(&self) -> usize {
        self.forks.len()
    }

    /// Notes that a block changed.
    pub fn mark_block(&mut self, fork: RelationFork, block: BlockNumber) {
        let at = self.entry(fork);
        self.at(at).mark(block);
    }

    /// Notes that a fork was made or dropped (0), or cut to so many blocks, and forgets its blocks at the limit and above where
    /// there was no lower one yet.
    pub fn set_limit(&mut self, fork: RelationFork, limit: BlockNumber) {
        let at = self.entry(fork);
        self.at(at).set_limit(limit);
    }

    /// Lays the table of later WAL over this one: its limits cut first, then its blocks are added, as a server does when it puts
    /// summaries together (`PrepareForIncrementalBackup`, `basebackup_incremental.c`).
    ///
    /// The order counts: laid over a later table, an earlier one would cut blocks that changed after its limit.
    pub fn merge(&mut self, later: Self) {
        if self.is_empty() {
            *self = later;
            return;
        }
        for (fork, later) in later.forks {
            let at = self.entry(fork);
            self.at(at).merge(later);
        }
    }

    /// What is known of one fork; `None` means that the WAL did not touch it.
    #[must_use]
    pub fn get(&self, fork: &RelationFork) -> Option<&ForkReferences> {
        Some(&self.forks[*self.places.get(fork)?].1)
    }

    /// All forks, in the order of a summary file. Sorts references to them, 8 bytes each.
    pub fn sorted(&self) -> impl ExactSizeIterator<Item = (RelationFork, &ForkReferences)> {
        let mut forks: Vec<&(RelationFork, ForkReferences)> = self.forks.iter().collect();
        forks.sort_unstable_by_key(|(fork, _)| *fork);
        forks.into_iter().map(|(fork, references)| (*fork, references))
    }

    /// How many blocks are known to have changed, in all forks. Walks them all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.forks.iter().map(|(_, fork)| fork.count()).sum()
    }

    /// About how many bytes of memory the table takes. Walks all forks.
    #[must_use]
    pub fn memory(&self) -> usize {
        let table = self.places.capacity() * (size_of::<(RelationFork, usize)>() + 1)
            + self.forks.capacity() * size_of::<(RelationFork, ForkReferences)>();
        table + self.forks.iter().map(|(_, fork)| fork.memory()).sum::<usize>()
    }

    /// Where a fork's entry lies, made if there is none: valid as long as the table.
    pub(super) fn entry(&mut self, fork: RelationFork) -> usize {
        if self.forks.get(self.recent).is_none_or(|(recent, _)| *recent != fork) {
            self.recent = *self.places.entry(fork).or_insert(self.forks.len());
            if self.recent == self.forks.len() {
                self.forks.push((fork, ForkReferences::default()));
            }
        }
        self.recent
    }

    pub(super) fn at(&mut self, entry: usize) -> &mut ForkReferences {
        &mut self.forks[entry].1
    }
}

/// Equal are tables that say the same, however they store it.
impl PartialEq for BlockReferences {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.forks.iter().all(|(fork, references)| other.get(fork).is_some_and(|it| it == references))
    }
}

impl Eq for BlockReferences {}

/// What is known of one fork.
#[derive(Clone, Debug)]
pub struct ForkReferences {
    limit: u32,
    /// Chunks by their numbers, ascending; none of them is empty.
    chunks: Vec<(u16, Chunk)>,
}

impl Default for ForkReferences {
    fn default() -> Self {
        Self { limit: NO_LIMIT, chunks: Vec::new() }
    }
}

impl ForkReferences {
    /// The least length in blocks that the fork is known to have had; 0 where it was made or dropped; `None` where it was not cut.
    ///
    /// A block at the limit or above is never what an earlier backup has in its place, whether it is among the changed ones or not.
    #[must_use]
    pub fn limit(&self) -> Option<BlockNumber> {
        (self.limit != NO_LIMIT).then_some(BlockNumber(self.limit))
    }

    /// Whether a block is known to have changed.
    #[must_use]
    pub fn contains(&self, block: BlockNumber) -> bool {
        let (number, place) = split(block.0);
        self.find(number).is_ok_and(|at| self.chunks[at].1.contains(place))
    }

    /// How many blocks are known to have changed.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.chunks.iter().map(|(_, chunk)| u64::from(chunk.count())).sum()
    }

    /// The changed blocks whose numbers are in `range`, ascending. Those of a segment file are
    /// `first..first + SEGMENT_BLOCKS`.
    pub fn blocks(&self, range: impl RangeBounds<u32>) -> impl Iterator<Item = BlockNumber> {
        let first = match range.start_bound() {
            Bound::Included(first) => Some(*first),
            Bound::Excluded(before) => before.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let last = match range.end_bound() {
            Bound::Included(last) => Some(*last),
            Bound::Excluded(end) => end.checked_sub(1),
            Bound::Unbounded => Some(u32::MAX),
        };
        let bounds = first.zip(last).filter(|(first, last)| first <= last);
        bounds.into_iter().flat_map(|(first, last)| self.between(first, last))
    }

    /// Bytes on the heap, about.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.chunks.capacity() * size_of::<(u16, Chunk)>()
            + self.chunks.iter().map(|(_, chunk)| chunk.memory()).sum::<usize>()
    }

    /// The chunks, ascending by their numbers; those that are empty are not there.
    pub(super) fn chunks(&self) -> &[(u16, Chunk)] {
        &self.chunks
    }

    pub(super) fn set_limit(&mut self, limit: BlockNumber) {
        let limit = limit.0;
        if limit >= self.limit {
            return;
        }
        self.limit = limit;
        let (number, from) = split(limit);
        let kept = match self.find(number) {
            Ok(at) => {
                self.chunks[at].1.cut(from);
                if self.chunks[at].1.is_empty() { at } else { at + 1 }
            }
            Err(at) => at,
        };
        self.chunks.truncate(kept);
    }

    pub(super) fn unite_places(&mut self, number: u16, places: &[u16]) {
        match self.find(number) {
            Ok(at) => self.chunks[at].1.unite_places(places),
            Err(_) if places.is_empty() => {}
            Err(at) => self.chunks.insert(at, (number, Chunk::of(places))),
        }
    }

    pub(super) fn unite_words(&mut self, number: u16, words: &[u64; WORDS]) {
        let at = match self.find(number) {
            Ok(at) => at,
            Err(_) if words.iter().all(|word| *word == 0) => return,
            Err(at) => {
                self.chunks.insert(at, (number, Chunk::Places(Vec::new())));
                at
            }
        };
        self.chunks[at].1.unite_words(words);
    }

    fn mark(&mut self, block: BlockNumber) {
        let (number, place) = split(block.0);
        match self.find(number) {
            Ok(at) => self.chunks[at].1.insert(place),
            Err(at) => self.chunks.insert(at, (number, Chunk::Places(vec![place]))),
        }
    }

    fn merge(&mut self, later: Self) {
        self.set_limit(BlockNumber(later.limit));
        if self.chunks.is_empty() {
            self.chunks = later.chunks;
            return;
        }
        for (number, later) in later.chunks {
            match self.find(number) {
                Ok(at) => self.chunks[at].1.unite(&later),
                Err(at) => self.chunks.insert(at, (number, later)),
            }
        }
    }

    fn find(&self, number: u16) -> Result<usize, usize> {
        self.chunks.binary_search_by_key(&number, |(number, _)| *number)
    }

    fn between(&self, first: u32, last: u32) -> impl Iterator<Item = BlockNumber> {
        let (first, last) = (split(first), split(last));
        let begin = self.find(first.0).unwrap_or_else(|at| at);
        let end = self.find(last.0).map_or_else(|at| at, |at| at + 1);
        self.chunks[begin..end].iter().flat_map(move |(number, chunk)| {
            let from = if *number == first.0 { first.1 } else { 0 };
            let to = if *number == last.0 { last.1 } else { u16::MAX };
            let base = u32::from(*number) * CHUNK_BLOCKS;
            chunk.places(from, to).map(move |place| BlockNumber(base + u32::from(place)))
        })
    }
}

/// Equal are those with the same limit and the same blocks.
impl PartialEq for ForkReferences {
    fn eq(&self, other: &Self) -> bool {
        self.limit == other.limit && self.blocks(..).eq(other.blocks(..))
    }
}

impl Eq for ForkReferences {}

/// The number of a block's chunk, and its place in it.
fn split(block: u32) -> (u16, u16) {
    let [a, b, c, d] = block.to_be_bytes();
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}
