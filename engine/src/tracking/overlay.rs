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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// The place of every block: pack, frame, byte.
    type Places = BTreeMap<u32, (u32, u32, u32)>;

    /// Frames of a few blocks; the last of a run of frames may be shorter.
    fn frame_blocks(frame: u32) -> u32 {
        1 + frame % 4
    }

    fn places(placed: &[Placed]) -> Places {
        placed
            .iter()
            .flat_map(|one| {
                (0..one.count)
                    .map(move |at| (one.block + at, (one.pack, one.frame, one.offset + at * BLOCK_BYTES)))
            })
            .collect()
    }

    /// What a reader of a map finds: over the end of a frame it goes on with the next.
    fn read(map: &[Extent]) -> Places {
        let mut found = Places::new();
        for extent in map {
            let (mut frame, mut offset) = (extent.frame, extent.offset);
            for block in extent.block..extent.block + extent.count {
                if offset == frame_blocks(frame) * BLOCK_BYTES {
                    (frame, offset) = (frame + 1, 0);
                }
                found.insert(block, (extent.pack, frame, offset));
                offset += BLOCK_BYTES;
            }
        }
        found
    }

    /// A file's blocks as they may lie in packs, a few frames here and a few there.
    fn file(pack: u32, pieces: &[(u32, u32)]) -> Vec<Placed> {
        let (mut block, mut all) = (0, Vec::new());
        for (at, (frame, frames)) in pieces.iter().enumerate() {
            let pack = pack + u32::try_from(at % 2).expect("small");
            for frame in *frame..frame + frames {
                let count = frame_blocks(frame);
                all.push(Placed { block, count, pack, frame, offset: 0, ends_frame: true });
                block += count;
            }
        }
        all
    }

    proptest! {
        #[test]
        fn new_blocks_lie_over_old_ones(
            pieces in prop::collection::vec((0u32..40, 1u32..6), 1..6),
            runs in prop::collection::vec((0u32..60, 1u32..9), 0..8),
            grown in 0u32..10,
            cut in 0u32..10,
        ) {
            let old = file(0, &pieces);
            let before = old.iter().map(|one| one.end()).max().unwrap_or(0);
            let blocks = (before + grown).saturating_sub(cut).max(1);
            let mut runs: Vec<_> = runs
                .into_iter()
                .filter(|(block, _)| *block < blocks)
                .map(|(block, count)| BlockRun { block, count: count.min(blocks - block) })
                .collect();
            if blocks > before {
                runs.push(BlockRun { block: before, count: blocks - before });
            }
            let runs = join_runs(runs);
            // New blocks fill frames of another pack, one behind the other.
            let (mut map, mut cursor, mut expected) = (MapBuilder::default(), Cursor::default(), places(&old));
            expected.retain(|block, _| *block < blocks);
            let (mut frame, mut used) = (0, 0);
            for run in &runs {
                prop_assert!(cursor.keep(&old, run.block, &mut map));
                let mut rest = *run;
                while rest.count > 0 {
                    let count = rest.count.min(frame_blocks(frame) - used);
                    let ends_frame = used + count == frame_blocks(frame);
                    let offset = used * BLOCK_BYTES;
                    let placed = Placed { block: rest.block, count, pack: 9, frame, offset, ends_frame };
                    expected.extend(places(&[placed]));
                    map.push(placed);
                    rest = BlockRun { block: rest.block + count, count: rest.count - count };
                    used += count;
                    if ends_frame {
                        (frame, used) = (frame + 1, 0);
                    }
                }
            }
            prop_assert!(cursor.keep(&old, blocks, &mut map));
            let map = map.into_extents();
            prop_assert_eq!(read(&map), expected);
            let mut next = 0;
            for extent in &map {
                prop_assert_eq!(extent.block, next);
                next += extent.count;
            }
            prop_assert_eq!(next, blocks);
        }
    }

    #[test]
    fn what_is_not_there_is_not_kept() {
        let old = file(0, &[(0, 3)]);
        let before = old.iter().map(|one| one.end()).max().expect("some");
        let (mut map, mut cursor) = (MapBuilder::default(), Cursor::default());
        assert!(!cursor.keep(&old, before + 1, &mut map));
        assert_eq!(map.end(), before);
        let gap = [old[0], old[2]];
        let (mut map, mut cursor) = (MapBuilder::default(), Cursor::default());
        assert!(!cursor.keep(&gap, before, &mut map));
    }

    #[test]
    fn an_untouched_map_is_as_it_was() {
        let old = file(0, &[(0, 5), (7, 2)]);
        let end = old.iter().map(|one| one.end()).max().expect("some");
        let (mut map, mut cursor) = (MapBuilder::default(), Cursor::default());
        assert!(cursor.keep(&old, end, &mut map));
        assert_eq!(map.into_extents().len(), 2, "frames that follow each other are one extent");
    }
}
