//! A file's new map: its parent's, with what was stored anew laid over it.
//!
//! Sans-IO. Invariants: pieces come in the order of blocks, each block once; what a builder has built covers the file from
//! its first block on without a gap; neighbours in a pack become one extent again.

use crate::repository::{EXTENTS_MAX, Extent};

/// A run of a file's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The first, counted from the file's beginning.
    pub block: u32,
    /// How many.
    pub count: u32,
}

impl BlockRun {
    /// The block behind the last.
    #[must_use]
    pub fn end(self) -> u32 {
        self.block.saturating_add(self.count)
    }
}

/// Blocks that lie in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The first.
    pub block: u32,
    /// How many.
    pub count: u32,
    /// The pack, by its place in the table.
    pub pack: u32,
    /// The frame in it.
    pub frame: u32,
    /// Where in the frame's plain bytes.
    pub offset: u32,
    /// Whether the frame ends with them.
    pub ends_frame: bool,
}

impl Placed {
    /// What of it lies in `from..to`.
    pub(crate) fn within(self, from: u32, to: u32) -> Option<Self> {
        let (begin, end) = (self.block.max(from), self.end().min(to));
        if begin >= end {
            return None;
        }
        let skipped = (begin - self.block) * BLOCK_BYTES;
        Some(Self {
            block: begin,
            count: end - begin,
            offset: self.offset + skipped,
            ends_frame: self.ends_frame && end == self.end(),
            ..self
        })
    }

    fn end(self) -> u32 {
        self.block.saturating_add(self.count)
    }
}

const BLOCK_BYTES: u32 = 8192;

/// What a backup keeps of its parent's map of a file. Packs are named by their places in the table of this backup.
#[derive(Debug)]
pub enum Overlay {
    /// Everything: nothing of the file is stored.
    Unchanged(Vec<Extent>),
    /// Nothing: it is stored whole, and in new packs, because the old ones are to be left.
    Renewed,
    /// What is not stored anew.
    Changed {
        /// The parent's blocks, frame by frame, in their order without a gap.
        kept: Vec<Placed>,
        /// Blocks that the file has.
        blocks: u32,
        /// Whether what is stored must lie in new packs, because the old ones are to be left.
        renews: bool,
    },
}

impl Overlay {
    /// Whether all of the file passes, so that it has a checksum.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Renewed)
    }

    /// Whether frames of the file may be found in older packs instead of being stored.
    #[must_use]
    pub fn may_share(&self) -> bool {
        !matches!(self, Self::Renewed | Self::Changed { renews: true, .. })
    }
}

/// A map under construction.
#[derive(Debug, Default)]
pub(crate) struct MapBuilder {
    map: Vec<Extent>,
    /// The frame and the byte in it at which the last extent would go on.
    continues: Option<(u32, u32, u32)>,
}

impl MapBuilder {
    /// Extents so far.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn push(&mut self, placed: Placed) {
        let Placed { block, count, pack, frame, offset, ends_frame } = placed;
        let goes_on = self.continues == Some((pack, frame, offset));
        let behind = u64::from(offset) + u64::from(count) * u64::from(BLOCK_BYTES);
        self.continues = if ends_frame {
            frame.checked_add(1).map(|next| (pack, next, 0))
        } else {
            u32::try_from(behind).ok().map(|behind| (pack, frame, behind))
        };
        match self.map.last_mut().filter(|last| goes_on && last.block + last.count == block) {
            Some(last) => last.count += count,
            None => self.map.push(Extent { block, count, pack, frame, offset }),
        }
    }

    /// The block behind the last one that is mapped.
    pub(crate) fn end(&self) -> u32 {
        self.map.last().map_or(0, |last| last.block + last.count)
    }

    pub(crate) fn into_extents(self) -> Vec<Extent> {
        self.map
    }
}

/// How far a file's kept blocks were taken over.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    next: usize,
}

impl Cursor {
    /// Takes over what is kept between the end of `map` and block `to`. Says whether there was something for all of it.
    pub(crate) fn keep(&mut self, kept: &[Placed], to: u32, map: &mut MapBuilder) -> bool {
        while map.end() < to {
            let from = map.end();
            let Some(kept) = kept.get(self.next) else { return false };
            match kept.within(from, to) {
                Some(part) if part.block == from => map.push(part),
                // A gap; or one that lies in front.
                Some(_) => return false,
                None if kept.end() <= from => self.next += 1,
                None => return false,
            }
        }
        true
    }
}

/// The runs in order, those that touch or overlap as one.
pub(crate) fn join_runs(mut runs: Vec<BlockRun>) -> Vec<BlockRun> {
    runs.retain(|run| run.count > 0);
    runs.sort_unstable_by_key(|run| run.block);
    let mut joined: Vec<BlockRun> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut().filter(|last| run.block <= last.end()) {
            Some(last) => last.count = last.end().max(run.end()) - last.block,
            None => joined.push(run),
        }
    }
    joined
}

/// How many blocks runs have.
pub(crate) fn blocks_of(runs: &[BlockRun]) -> u64 {
    runs.iter().map(|run| u64::from(run.count)).sum()
}

/// Extents that a map may come to, well below what one can hold: a run of blocks may become some more, where packs end.
pub(crate) const FRAGMENTS_MAX: usize = EXTENTS_MAX * 3 / 4;
