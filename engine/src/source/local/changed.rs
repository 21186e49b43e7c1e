//! Changed blocks of one file, gathered from what was read into buffers that are full when they go on.
//!
//! A buffer that was read into becomes the one that is filled, so none has to be waited for.

use std::collections::VecDeque;

use pgstrata_protocol::Lsn;
use pgstrata_protocol::page::PAGE_SIZE;

use super::open_file::ByPage;
use crate::buffer::PageBuffer;
use crate::tracking::{BlockRun, FRAGMENTS_MAX, is_changed, join_runs};

/// Blocks that wait to be handed on.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    buffer: Option<PageBuffer>,
    runs: Vec<BlockRun>,
    full: VecDeque<(PageBuffer, Vec<BlockRun>)>,
    /// Of the file that is under way: runs and blocks so far.
    fragments: usize,
    pub(super) blocks: u64,
}

impl Gathered {
    /// Begins a file.
    pub(super) fn begin(&mut self) {
        debug_assert!(self.buffer.is_none() && self.full.is_empty(), "one file after the other");
        (self.fragments, self.blocks) = (0, 0);
    }

    /// Takes `runs` out of a buffer that was filled from block `first` on; they are in it, in order.
    pub(super) fn add(&mut self, mut buffer: PageBuffer, first: u32, runs: &[BlockRun]) {
        self.fragments += runs.len();
        let mut length = 0;
        for run in runs {
            let begin = (run.block - first) as usize * PAGE_SIZE;
            let bytes = run.count as usize * PAGE_SIZE;
            if begin != length {
                buffer.as_mut_slice().copy_within(begin..begin + bytes, length);
            }
            length += bytes;
            self.blocks += u64::from(run.count);
        }
        if length == 0 {
            return;
        }
        buffer.set_len(length);
        let Some(mut filled) = self.buffer.take() else {
            self.buffer = Some(buffer);
            self.runs.extend_from_slice(runs);
            self.end_full();
            return;
        };
        let copied = filled.extend_from_slice(&buffer);
        let mut room = u32::try_from(copied / PAGE_SIZE).expect("buffers are small");
        let mut rest = Vec::new();
        for run in runs {
            let taken = run.count.min(room);
            room -= taken;
            if taken > 0 {
                self.runs.push(BlockRun { block: run.block, count: taken });
            }
            if taken < run.count {
                rest.push(BlockRun { block: run.block + taken, count: run.count - taken });
            }
        }
        self.buffer = Some(filled);
        self.end_full();
        if copied < length {
            buffer.as_mut_slice().copy_within(copied..length, 0);
            buffer.set_len(length - copied);
            self.buffer = Some(buffer);
            self.runs = rest;
        }
    }

    fn end_full(&mut self) {
        if let Some(buffer) = self.buffer.take_if(|buffer| buffer.remaining() < PAGE_SIZE) {
            self.full.push_back((buffer, std::mem::take(&mut self.runs)));
        }
    }

    /// A buffer that is full.
    pub(super) fn next_full(&mut self) -> Option<(PageBuffer, Vec<BlockRun>)> {
        self.full.pop_front()
    }

    /// What is left at the end of the file.
    pub(super) fn rest(&mut self) -> (Option<PageBuffer>, Vec<BlockRun>) {
        (self.buffer.take(), std::mem::take(&mut self.runs))
    }

    /// Which blocks of `bytes`, from block `first` on, are to be passed on.
    pub(super) fn changed(&self, by: &ByPage, first: u32, bytes: &[u8]) -> Vec<BlockRun> {
        let mut runs = changed_runs(by, first, bytes);
        // A map has only so many extents: from here on everything is passed on.
        if by.extents + 2 * (self.fragments + runs.len()) > FRAGMENTS_MAX {
            let count = u32::try_from(bytes.len() / PAGE_SIZE).expect("buffers are small");
            runs = vec![BlockRun { block: first, count }];
        }
        runs
    }
}

/// Runs of blocks that were changed, or are to be stored all the same.
pub(super) fn changed_runs(by: &ByPage, first: u32, bytes: &[u8]) -> Vec<BlockRun> {
    let ByPage { since, kept, renewed, .. } = by;
    let mut runs: Vec<BlockRun> = Vec::new();
    let blocks = u32::try_from(bytes.len() / PAGE_SIZE).expect("buffers are small");
    for (block, page) in (first..).zip(bytes.chunks_exact(PAGE_SIZE)) {
        if block >= *kept || page_changed(page, *since) {
            runs.push(BlockRun { block, count: 1 });
        }
    }
    let end = first + blocks;
    let from = renewed.partition_point(|run| run.end() <= first);
    for run in renewed[from..].iter().take_while(|run| run.block < end) {
        let block = run.block.max(first);
        runs.push(BlockRun { block, count: run.end().min(end) - block });
    }
    join_runs(runs)
}

fn page_changed(page: &[u8], since: Lsn) -> bool {
    is_changed(page.try_into().expect("a whole page"), since)
}
