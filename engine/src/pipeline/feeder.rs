//! The pipeline's mouth: copies what a source delivers into aligned buffers and sends them to the workers.
//!
//! One thread feeds. All chunks of one output take the same worker lane, in order, because checksums are
//! sequential; outputs are dealt to the lane that has least to do. Where WAL is checked it goes past one lane, because
//! each segment goes on where the one before it ends. Blocks when no buffer is free: that is the backpressure towards
//! the source.
//!
//! One further output may be filled beside: an archive that the server compressed is stored as it comes while its
//! members, which are not kept, are checked.

use std::sync::Arc;

use crossbeam::channel::{Sender, TrySendError};

use super::chunk::{Chunk, Folder, Member, Output, Span};
use super::mouths::LaneMouth;
use super::stage::{Spent, StageClock, StageCounters};
use crate::buffer::{BufferPool, PageBuffer};
use crate::failure::Failure;

/// The lane of outputs that are WAL to be checked, and what the paths of those begin with.
const WAL_LANE: usize = 0;
const WAL_FOLDER: &[u8] = b"pg_wal/";

/// Feeds one pipeline.
#[derive(Debug)]
pub struct Feeder {
    pool: BufferPool,
    lanes: Vec<Sender<Chunk>>,
    clock: StageClock,
    outputs: u64,
    writers: usize,
    checks_wal: bool,
    current: Option<Cursor>,
    /// An output without members that is filled beside the current one.
    aside: Option<Cursor>,
}

#[derive(Debug)]
struct Cursor {
    output: Arc<Output>,
    lane: usize,
    offset: u64,
    buffer: Option<PageBuffer>,
    spans: Vec<Span>,
    member: Option<OpenMember>,
}

#[derive(Debug)]
struct OpenMember {
    member: Arc<Member>,
    /// Where its bytes begin in the buffer that is being filled.
    begin: usize,
}

impl Feeder {
    pub(super) fn new(
        pool: BufferPool,
        lanes: Vec<Sender<Chunk>>,
        writers: usize,
        checks_wal: bool,
        clock: StageClock,
    ) -> Self {
        Self { pool, lanes, clock, outputs: 0, writers, checks_wal, current: None, aside: None }
    }

    /// A further way into each lane, for threads that read into buffers of the pool; `packs` is for messages. Nothing is
    /// to be fed here until all of them are gone.
    #[must_use]
    pub fn mouths(&self, packs: &Arc<Folder>, counters: &Arc<StageCounters>) -> Vec<LaneMouth> {
        let mouth =
            |lane: &Sender<Chunk>| LaneMouth::new(lane.clone(), Arc::clone(packs), Arc::clone(counters));
        self.lanes.iter().map(mouth).collect()
    }

    /// The clock of the feeding thread, so that the source books its waiting on it.
    pub fn clock(&mut self) -> &mut StageClock {
        &mut self.clock
    }

    /// Begins a file. `make` gets the file's number and its writer.
    pub fn begin_output(&mut self, make: impl FnOnce(u64, Option<usize>) -> Output) {
        debug_assert!(self.current.is_none(), "one output at a time");
        self.current = Some(self.begin(make));
    }

    /// Begins a file without members that is filled beside the others, by [`Self::append_aside`].
    pub fn begin_aside(&mut self, make: impl FnOnce(u64, Option<usize>) -> Output) {
        debug_assert!(self.aside.is_none(), "one output beside the others at a time");
        self.aside = Some(self.begin(make));
    }

    fn begin(&mut self, make: impl FnOnce(u64, Option<usize>) -> Output) -> Cursor {
        let number = self.outputs;
        self.outputs += 1;
        let writer = usize::try_from(number).unwrap_or(0) % self.writers.max(1);
        let lane = (0..self.lanes.len()).min_by_key(|&lane| self.lanes[lane].len()).unwrap_or(0);
        let output = Arc::new(make(number, Some(writer)));
        Cursor { output, lane, offset: 0, buffer: None, spans: Vec::new(), member: None }
    }

    /// Marks the following bytes as `member`'s.
    pub fn begin_member(&mut self, member: Member) {
        let cursor = self.current.as_mut().expect("a member lies within an output");
        if self.checks_wal && cursor.is_untouched() && member.path.starts_with(WAL_FOLDER) {
            cursor.lane = WAL_LANE;
        }
        let begin = cursor.buffer.as_ref().map_or(0, PageBuffer::len);
        cursor.member = Some(OpenMember { member: Arc::new(member), begin });
    }

    /// Appends bytes to the output; they belong to the open member, if one is open.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.clock.counters().passed(bytes.len());
        let cursor = self.current.as_mut().expect("bytes belong to an output");
        cursor.append(bytes, &self.pool, &self.lanes, &mut self.clock)
    }

    /// Appends bytes to the output that is filled beside the others.
    pub fn append_aside(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let cursor = self.aside.as_mut().expect("bytes belong to an output");
        cursor.append(bytes, &self.pool, &self.lanes, &mut self.clock)
    }

    /// How many more bytes of the output go into the buffer that is being filled.
    #[must_use]
    pub fn room(&self) -> usize {
        let buffer = self.current.as_ref().and_then(|cursor| cursor.buffer.as_ref());
        buffer.map_or(self.pool.buffer_size(), PageBuffer::remaining)
    }

    /// Ends the open member.
    pub fn end_member(&mut self) {
        let cursor = self.current.as_mut().expect("a member lies within an output");
        let OpenMember { member, begin } = cursor.member.take().expect("a member was begun");
        let end = cursor.buffer.as_ref().map_or(0, PageBuffer::len);
        cursor.spans.push(Span { member, range: begin..end, runs: Vec::new(), ends: true });
    }

    /// Ends the output; what is left of it goes on its way.
    pub fn end_output(&mut self) -> Result<(), Failure> {
        let mut cursor = self.current.take().expect("an output was begun");
        cursor.flush(true, &self.lanes, &mut self.clock)
    }

    /// Ends the output that was filled beside the others.
    pub fn end_aside(&mut self) -> Result<(), Failure> {
        let mut cursor = self.aside.take().expect("an output was begun");
        cursor.flush(true, &self.lanes, &mut self.clock)
    }
}

impl Cursor {
    /// Whether nothing of the output has been given to its lane or waits for it.
    fn is_untouched(&self) -> bool {
        self.offset == 0 && self.buffer.is_none() && self.spans.is_empty() && self.member.is_none()
    }

    fn append(
        &mut self,
        mut bytes: &[u8],
        pool: &BufferPool,
        lanes: &[Sender<Chunk>],
        clock: &mut StageClock,
    ) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let buffer = match &mut self.buffer {
                Some(buffer) => buffer,
                empty => empty.insert(take_buffer(pool, clock)?),
            };
            let copied = buffer.extend_from_slice(bytes);
            bytes = &bytes[copied..];
            if buffer.len() == buffer.capacity() {
                self.flush(false, lanes, clock)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, last: bool, lanes: &[Sender<Chunk>], clock: &mut StageClock) -> Result<(), Failure> {
        let length = self.buffer.as_ref().map_or(0, PageBuffer::len);
        if let Some(open) = &mut self.member {
            let member = Arc::clone(&open.member);
            self.spans.push(Span { member, range: open.begin..length, runs: Vec::new(), ends: false });
            open.begin = 0;
        }
        let end = self.offset + length as u64;
        let chunk = Chunk {
            output: Arc::clone(&self.output),
            offset: self.offset,
            data: self.buffer.take(),
            spans: std::mem::take(&mut self.spans),
            ends_at: last.then_some(end),
        };
        self.offset = end;
        send(&lanes[self.lane], chunk, clock)
    }
}

/// Takes a buffer, booking the time there was none.
pub(super) fn take_buffer(pool: &BufferPool, clock: &mut StageClock) -> Result<PageBuffer, Failure> {
    if let Some(buffer) = pool.try_take() {
        return Ok(buffer);
    }
    clock.book(Spent::Busy);
    let buffer = pool.take();
    clock.book(Spent::Blocked);
    buffer.ok_or(Failure::Stopped)
}

/// Sends to the next stage, booking the time it had no room. The stage behind is gone only after a stop.
pub(super) fn send<T>(to: &Sender<T>, item: T, clock: &mut StageClock) -> Result<(), Failure> {
    match to.try_send(item) {
        Ok(()) => Ok(()),
        Err(TrySendError::Disconnected(_)) => Err(Failure::Stopped),
        Err(TrySendError::Full(item)) => {
            clock.book(Spent::Busy);
            let sent = to.send(item);
            clock.book(Spent::Blocked);
            sent.map_err(|_| Failure::Stopped)
        }
    }
}
