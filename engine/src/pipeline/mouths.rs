//! Further mouths of a pipeline, one into each lane, for a source that reads on many threads into buffers of the pool.
//!
//! A lane takes whole outputs, one after the other, from one mouth; the feeder, which shares the lanes, feeds nothing
//! while mouths are open.

use std::ops::Range;
use std::sync::Arc;

use crossbeam::channel::Sender;

use super::chunk::{Chunk, Folder, Member, Output, Span};
use super::feeder::send;
use super::stage::{StageClock, StageCounters};
use crate::buffer::PageBuffer;
use crate::failure::Failure;
use crate::tracking::BlockRun;

/// A way into one lane, for frames of a repository.
#[derive(Debug)]
pub struct LaneMouth {
    lane: Sender<Chunk>,
    /// For messages.
    packs: Arc<Folder>,
    outputs: u64,
    clock: StageClock,
}

/// A file that is handed on in pieces.
#[derive(Debug)]
pub struct LargeFile {
    output: Arc<Output>,
    member: Arc<Member>,
}

impl LaneMouth {
    pub(super) fn new(lane: Sender<Chunk>, packs: Arc<Folder>, counters: Arc<StageCounters>) -> Self {
        Self { lane, packs, outputs: 0, clock: StageClock::start(counters) }
    }

    /// The clock of the reading thread.
    pub fn clock(&mut self) -> &mut StageClock {
        &mut self.clock
    }

    /// Begins a file that has frames of its own.
    pub fn begin(&mut self, member: Member) -> LargeFile {
        LargeFile { output: self.output(), member: Arc::new(member) }
    }

    /// The next piece of that file, all but the last as long as a buffer.
    pub fn piece(
        &mut self,
        file: &LargeFile,
        offset: u64,
        data: PageBuffer,
        ends: bool,
    ) -> Result<(), Failure> {
        let end = offset + data.len() as u64;
        self.clock.counters().passed(data.len());
        let span = Span { member: Arc::clone(&file.member), range: 0..data.len(), runs: Vec::new(), ends };
        let output = Arc::clone(&file.output);
        let chunk =
            Chunk { output, offset, data: Some(data), spans: vec![span], ends_at: ends.then_some(end) };
        send(&self.lane, chunk, &mut self.clock)
    }

    /// The next blocks of a file that is stored in part: `runs` of them, one behind the other. With `ends` no more come.
    pub fn blocks(
        &mut self,
        file: &LargeFile,
        data: Option<PageBuffer>,
        runs: Vec<BlockRun>,
        ends: bool,
    ) -> Result<(), Failure> {
        let length = data.as_ref().map_or(0, PageBuffer::len);
        self.clock.counters().passed(length);
        let span = Span { member: Arc::clone(&file.member), range: 0..length, runs, ends };
        let output = Arc::clone(&file.output);
        let chunk =
            Chunk { output, offset: 0, data, spans: vec![span], ends_at: ends.then_some(length as u64) };
        send(&self.lane, chunk, &mut self.clock)
    }

    /// Small files that share a frame, whole, with where each lies in it.
    pub fn frame(
        &mut self,
        data: Option<PageBuffer>,
        files: Vec<(Member, Range<usize>)>,
    ) -> Result<(), Failure> {
        let length = data.as_ref().map_or(0, PageBuffer::len);
        self.clock.counters().passed(length);
        let span = |(member, range)| Span { member: Arc::new(member), range, runs: Vec::new(), ends: true };
        let spans = files.into_iter().map(span).collect();
        let chunk = Chunk { output: self.output(), offset: 0, data, spans, ends_at: Some(length as u64) };
        send(&self.lane, chunk, &mut self.clock)
    }

    fn output(&mut self) -> Arc<Output> {
        self.outputs += 1;
        Arc::new(Output::checked_only(self.outputs, Arc::clone(&self.packs)))
    }
}
