//! Which reads bring a file's changed blocks: neighbours come with one read, also over a gap of a few blocks.
//!
//! Sans-IO. Invariants: every block of the runs is in exactly one read; a read has no more blocks than asked for; what is
//! read along is an eighth of what is asked for, at most.

use super::{BlockRun, blocks_of};

/// The most blocks that are read along between two runs.
const GAP: u32 = 4;
/// What is read along may be this part of what is asked for.
const ALONG: u64 = 8;

/// One read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRead {
    /// What is read.
    pub(crate) blocks: BlockRun,
    /// The runs in it that were asked for: from which on, and how many.
    pub(crate) first: u32,
    pub(crate) runs: u32,
}

/// The reads of a file, and the runs that they bring, cut where reads end.
#[derive(Debug, Default)]
pub(crate) struct BlockReads {
    pub(crate) reads: Vec<BlockRead>,
    runs: Vec<BlockRun>,
}

impl BlockReads {
    /// Plans reads of at most `most` blocks for runs that are in order and do not touch.
    pub(crate) fn of(wanted: &[BlockRun], most: u32) -> Self {
        let mut along = blocks_of(wanted) / ALONG;
        let mut planned = Self::default();
        for run in wanted {
            let mut rest = *run;
            while rest.count > 0 {
                let place = planned.reads.last_mut().and_then(|last| {
                    let gap = rest.block - last.blocks.end();
                    let fits = rest.end() - last.blocks.block <= most;
                    (gap <= GAP && u64::from(gap) <= along && fits).then_some((last, gap))
                });
                match place {
                    Some((last, gap)) => {
                        along -= u64::from(gap);
                        last.blocks.count = rest.end() - last.blocks.block;
                        last.runs += 1;
                        planned.runs.push(rest);
                        rest.count = 0;
                    }
                    None => {
                        let part = BlockRun { block: rest.block, count: rest.count.min(most) };
                        let first = u32::try_from(planned.runs.len()).expect("fewer runs than blocks");
                        planned.reads.push(BlockRead { blocks: part, first, runs: 1 });
                        planned.runs.push(part);
                        rest = BlockRun { block: part.end(), count: rest.count - part.count };
                    }
                }
            }
        }
        planned
    }

    /// The runs that a read brings.
    pub(crate) fn runs(&self, read: &BlockRead) -> &[BlockRun] {
        &self.runs[read.first as usize..][..read.runs as usize]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::join_runs;
    use super::*;

    proptest! {
        #[test]
        fn every_block_comes_once(
            runs in prop::collection::vec((0u32..5000, 1u32..90), 0..200),
            most in 1u32..64,
        ) {
            let runs = runs.into_iter().map(|(block, count)| BlockRun { block, count }).collect();
            let runs = join_runs(runs);
            let planned = BlockReads::of(&runs, most);
            let mut brought = Vec::new();
            let mut read = 0;
            let mut end = 0;
            for one in &planned.reads {
                prop_assert!(one.blocks.count <= most && one.blocks.block >= end);
                end = one.blocks.end();
                read += u64::from(one.blocks.count);
                let within = planned.runs(one);
                prop_assert_eq!(within[0].block, one.blocks.block);
                prop_assert_eq!(within[within.len() - 1].end(), one.blocks.end());
                brought.extend_from_slice(within);
            }
            prop_assert_eq!(join_runs(brought), &runs[..]);
            prop_assert!(read <= blocks_of(&runs) + blocks_of(&runs) / ALONG);
        }
    }
}
