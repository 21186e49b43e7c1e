//! The pipeline's mouth: copies what a source delivers into aligned buffers and sends them to the workers.
//!
//! One thread feeds. All chunks of one output take the same worker lane, in order, because checksums are
//! sequential; outputs are dealt to the lane that has least to do. Blocks when no buffer is free: that is
//! the backpressure towards the source.

use std::sync::Arc;

use crossbeam::channel::{Sender, TrySendError};

use super::chunk::{Chunk, Member, Output, Span};
use super::stage::{Spent, StageClock};
use crate::buffer::{BufferPool, PageBuffer};
use crate::failure::Failure;

/// Feeds one pipeline.
#[derive(Debug)]
pub struct Feeder {
    pool: BufferPool,
    lanes: Vec<Sender<Chunk>>,
    clock: StageClock,
    outputs: u64,
    writers: usize,
    current: Option<Cursor>,
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
        clock: StageClock,
    ) -> Self {
        Self { pool, lanes, clock, outputs: 0, writers, current: None }
    }

    /// The clock of the feeding thread, so that the source books its waiting on it.
    pub fn clock(&mut self) -> &mut StageClock {
        &mut self.clock
    }

    /// Begins a file. `make` gets the file's number and its writer.
    pub fn begin_output(&mut self, make: impl FnOnce(u64, usize) -> Output) {
        debug_assert!(self.current.is_none(), "one output at a time");
        let number = self.outputs;
        self.outputs += 1;
        let writer = usize::try_from(number).unwrap_or(0) % self.writers.max(1);
        let lane = (0..self.lanes.len()).min_by_key(|&lane| self.lanes[lane].len()).unwrap_or(0);
        let output = Arc::new(make(number, writer));
        self.current =
            Some(Cursor { output, lane, offset: 0, buffer: None, spans: Vec::new(), member: None });
    }

    /// Marks the following bytes as `member`'s.
    pub fn begin_member(&mut self, member: Member) {
        let cursor = self.current.as_mut().expect("a member lies within an output");
        let begin = cursor.buffer.as_ref().map_or(0, PageBuffer::len);
        cursor.member = Some(OpenMember { member: Arc::new(member), begin });
    }

    /// Appends bytes to the output; they belong to the open member, if one is open.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        self.clock.counters().passed(bytes.len());
        while !bytes.is_empty() {
            let cursor = self.current.as_mut().expect("bytes belong to an output");
            let buffer = match &mut cursor.buffer {
                Some(buffer) => buffer,
                empty => empty.insert(take_buffer(&self.pool, &mut self.clock)?),
            };
            let copied = buffer.extend_from_slice(bytes);
            bytes = &bytes[copied..];
            if buffer.len() == buffer.capacity() {
                self.flush(false)?;
            }
        }
        Ok(())
    }

    /// Ends the open member.
    pub fn end_member(&mut self) {
        let cursor = self.current.as_mut().expect("a member lies within an output");
        let OpenMember { member, begin } = cursor.member.take().expect("a member was begun");
        let end = cursor.buffer.as_ref().map_or(0, PageBuffer::len);
        cursor.spans.push(Span { member, range: begin..end, ends: true });
    }

    /// Ends the output; what is left of it goes on its way.
    pub fn end_output(&mut self) -> Result<(), Failure> {
        self.flush(true)?;
        self.current = None;
        Ok(())
    }

    fn flush(&mut self, last: bool) -> Result<(), Failure> {
        let cursor = self.current.as_mut().expect("an output was begun");
        let length = cursor.buffer.as_ref().map_or(0, PageBuffer::len);
        if let Some(open) = &mut cursor.member {
            let member = Arc::clone(&open.member);
            cursor.spans.push(Span { member, range: open.begin..length, ends: false });
            open.begin = 0;
        }
        let end = cursor.offset + length as u64;
        let chunk = Chunk {
            output: Arc::clone(&cursor.output),
            offset: cursor.offset,
            data: cursor.buffer.take(),
            spans: std::mem::take(&mut cursor.spans),
            ends_at: last.then_some(end),
        };
        cursor.offset = end;
        send(&self.lanes[cursor.lane], chunk, &mut self.clock)
    }
}

fn take_buffer(pool: &BufferPool, clock: &mut StageClock) -> Result<PageBuffer, Failure> {
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
