//! Stored frames of packs that are files of this host, read past the page cache before they are wanted, several reads at
//! a time, neighbours with one.
//!
//! Whoever unpacks frames says in which order, and takes them in that order. What cannot be read here is read by the
//! caller, who then has the error.
//!
//! Invariants: memory is the pool's; a span's buffer goes back when the last of its frames was taken.

use std::collections::VecDeque;
use std::sync::Arc;

use super::container::{Frame, STORED_MAX};
use super::object_reader::ObjectReader;
use crate::buffer::PageBuffer;
use crate::buffer::{BufferPool, PAGE};
use crate::ring::{Completion, Disk, DiskFile, IoMode, Operation, OperationKind, open_disk};
use crate::source::local::ReadAccess;

/// Bytes of one read: two frames of the usual size, wherever they begin. A larger frame is not read ahead.
pub(super) const SPAN: usize = (STORED_MAX / 2).next_multiple_of(PAGE) + 2 * PAGE;
/// What is read for nothing rather than with a read of its own.
const GAP: u64 = 32 << 10;

/// A frame, by the place of its pack in the manifest's table and its number there.
pub(super) type Key = (u32, u32);

/// Reads under way and what they have brought.
pub(super) struct ReadAhead {
    disk: Box<dyn Disk>,
    files: IoMode,
    pool: BufferPool,
    /// The oldest first.
    spans: VecDeque<Span>,
    /// The number of the oldest.
    first: u64,
    done: Vec<Completion>,
}

/// Neighbouring frames of a pack.
struct Span {
    pack: u32,
    /// Where in the object it begins and ends; the former at a multiple of what direct I/O needs.
    range: std::ops::Range<u64>,
    frames: Vec<Wanted>,
    state: State,
}

struct Wanted {
    frame: u32,
    /// How often it will be asked for, as far as was said.
    times: u32,
}

enum State {
    /// More neighbours may join.
    Gathering(Arc<DiskFile>, PageBuffer),
    UnderWay,
    Read(PageBuffer),
    /// It could not be read, or all of it was taken.
    Nothing,
}

/// What became of a frame that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// It is being read.
    Yes,
    /// It cannot be read here.
    No,
    /// Later: everything is in use.
    Full,
}

impl ReadAhead {
    /// A reader of so many spans at a time; none where this host lets it have none.
    pub(super) fn open(access: &ReadAccess, spans: usize) -> Option<Self> {
        let pool = BufferPool::new(spans, SPAN).ok()?;
        let alignment = if access.disk == IoMode::Direct { PAGE } else { 1 };
        let (disk, _) = open_disk(access.disk, spans, alignment, Some(&pool)).ok()?;
        Some(Self::over(disk, access.files, pool))
    }

    /// A reader over a disk that takes as many operations as the pool has buffers.
    pub(super) fn over(disk: Box<dyn Disk>, files: IoMode, pool: BufferPool) -> Self {
        Self { disk, files, pool, spans: VecDeque::new(), first: 0, done: Vec::new() }
    }

    /// Says that a frame that is being read will be asked for once more; false where it is not being read.
    pub(super) fn again(&mut self, key: Key) -> bool {
        match self.find(key) {
            None => false,
            Some((span, at)) => {
                self.spans[span].frames[at].times += 1;
                true
            }
        }
    }

    /// How often a frame that is being read will be asked for.
    pub(super) fn times(&self, key: Key) -> u32 {
        self.find(key).map_or(0, |(span, at)| self.spans[span].frames[at].times)
    }

    /// Begins to read a frame; [`Self::start`] lets what was begun go.
    pub(super) fn begin(&mut self, (pack, frame): Key, entry: &Frame, object: &ObjectReader) -> Begun {
        let stored = entry.offset..entry.offset + u64::from(entry.stored);
        let wanted = Wanted { frame, times: 1 };
        if let Some(last) = self.spans.back_mut()
            && last.takes(pack, &stored)
        {
            last.range.end = stored.end;
            last.frames.push(wanted);
            return Begun::Yes;
        }
        self.start();
        let from = stored.start - stored.start % PAGE as u64;
        if stored.end.next_multiple_of(PAGE as u64) - from > SPAN as u64 {
            return Begun::No;
        }
        let Some(buffer) = self.pool.try_take() else { return Begun::Full };
        let Some(file) = object.disk_file(self.files) else { return Begun::No };
        let state = State::Gathering(Arc::clone(file), buffer);
        self.spans.push_back(Span { pack, range: from..stored.end, frames: vec![wanted], state });
        Begun::Yes
    }

    /// Hands to the disk what was begun.
    pub(super) fn start(&mut self) {
        let behind = self.first + self.spans.len() as u64;
        let Some(last) = self.spans.back_mut() else { return };
        let token = behind - 1;
        if !matches!(last.state, State::Gathering(..)) {
            return;
        }
        let State::Gathering(file, buffer) = std::mem::replace(&mut last.state, State::UnderWay) else {
            unreachable!("it was just looked at");
        };
        let length =
            usize::try_from(last.range.end - last.range.start).unwrap_or(SPAN).next_multiple_of(PAGE);
        let kind = OperationKind::Read { buffer, offset: last.range.start, length };
        if self.disk.submit(Operation { token, file, kind }).is_err() {
            last.state = State::Nothing;
        }
        // Nothing starts before the disk is looked at.
        self.look(false);
    }

    /// A frame's stored bytes, once they are there; none where it is not being read, or could not be.
    pub(super) fn stored(&mut self, key: Key, entry: &Frame) -> Option<&mut [u8]> {
        let (span, _) = self.find(key)?;
        if matches!(self.spans[span].state, State::Gathering(..)) {
            self.start();
        }
        while matches!(self.spans[span].state, State::UnderWay) {
            self.look(true);
        }
        let Span { range, state: State::Read(buffer), .. } = &mut self.spans[span] else { return None };
        let begin = usize::try_from(entry.offset.checked_sub(range.start)?).ok()?;
        let end = begin + entry.stored as usize;
        // Of an object that has become shorter there is less.
        if end <= buffer.len() { buffer.as_mut_slice().get_mut(begin..end) } else { None }
    }

    /// A frame was taken.
    pub(super) fn taken(&mut self, key: Key) {
        let Some((span, at)) = self.find(key) else { return };
        let span = &mut self.spans[span];
        span.frames.swap_remove(at);
        if span.frames.is_empty() && !matches!(span.state, State::UnderWay) {
            span.state = State::Nothing;
        }
        while self.spans.front().is_some_and(|span| span.frames.is_empty() && !span.is_under_way()) {
            self.spans.pop_front();
            self.first += 1;
        }
    }

    /// Takes what the disk has finished, or waits for it.
    fn look(&mut self, wait: bool) {
        let mut done = std::mem::take(&mut self.done);
        if self.disk.reap(wait, &mut done).is_err() {
            // Whoever waits reads for himself; the disk keeps what it has.
            for span in self.spans.iter_mut().filter(|span| span.is_under_way()) {
                span.state = State::Nothing;
            }
        }
        for completion in done.drain(..) {
            let at = completion.token.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
            let Some(span) = at.and_then(|at| self.spans.get_mut(at)) else { continue };
            span.state = match (completion.result, completion.buffer) {
                (Ok(_), Some(buffer)) if span.is_under_way() => State::Read(buffer),
                _ => State::Nothing,
            };
        }
        self.done = done;
    }

    /// Where a frame is: its span, and its place there.
    fn find(&self, (pack, frame): Key) -> Option<(usize, usize)> {
        let place = |span: &Span| span.frames.iter().position(|wanted| wanted.frame == frame);
        let spans = self.spans.iter().enumerate().filter(|(_, span)| span.pack == pack);
        spans.filter_map(|(number, span)| Some((number, place(span)?))).next()
    }
}

impl Span {
    /// Whether bytes of a pack can be read with these.
    fn takes(&self, pack: u32, stored: &std::ops::Range<u64>) -> bool {
        matches!(self.state, State::Gathering(..))
            && self.pack == pack
            && (self.range.end..=self.range.end + GAP).contains(&stored.start)
            && stored.end.next_multiple_of(PAGE as u64) - self.range.start <= SPAN as u64
    }

    fn is_under_way(&self) -> bool {
        matches!(self.state, State::UnderWay)
    }
}
