//! Reads objects by range, ahead of those who read on.
//!
//! A frame is about 256 KiB, and a request for each would be slow and dear. Whoever reads on where the last read of an
//! object ended gets larger and larger ranges, several of them under way at once; whoever jumps gets what was asked for.
//! So neighbouring frames come with one request, and lone ones cost no more than themselves. All who have one object open
//! share what was fetched of it.
//!
//! Memory is bounded by [`MEMORY`] for all objects together, but for what readers wait for right now. One lock guards the
//! list of ranges; no byte is copied or waited for under it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use object_store::ObjectStoreExt;

use super::super::store::Object;
use super::Place;
use crate::failure::Failure;

/// Bytes of all ranges that were fetched and may be read yet.
const MEMORY: u64 = 64 << 20;
/// The smallest range that is asked for: the time for it is that of the request.
const LEAST: u64 = 64 << 10;
/// The first range of a reader who reads on.
const FIRST: u64 = 512 << 10;
/// The largest range of one request.
const MOST: u64 = 4 << 20;
/// A reader who reads on has so much before it, fetched or under way.
const AHEAD: u64 = 12 << 20;
/// Who begins no farther behind the last range reads on: several readers share an object, and are not always in order.
const GAP: u64 = 1 << 20;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// The ranges of all objects.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Ranges by their object and beginning; they do not overlap.
    ranges: BTreeMap<(u64, u64), Range>,
    tracks: HashMap<u64, Track>,
    held: u64,
    clock: u64,
}

#[derive(Debug)]
struct Range {
    end: u64,
    fetch: Arc<Fetch>,
    /// Bytes that nobody has read yet.
    unread: u64,
    used: u64,
}

/// How an object is read.
#[derive(Clone, Copy, Debug, Default)]
struct Track {
    /// Where the last range of those that follow each other ends.
    next: u64,
    /// Its length.
    window: u64,
}

/// A range under way.
#[derive(Debug, Default)]
struct Fetch {
    outcome: Mutex<Option<Result<Bytes, String>>>,
    ready: Condvar,
    failure: Mutex<Option<Failure>>,
}

impl Fetch {
    fn finish(&self, outcome: Result<Bytes, Failure>) {
        let outcome = outcome.map_err(|failure| {
            let text = failure.to_string();
            *lock(&self.failure) = Some(failure);
            text
        });
        *lock(&self.outcome) = Some(outcome);
        self.ready.notify_all();
    }

    fn wait(&self) -> Result<Bytes, Failure> {
        let outcome = lock(&self.outcome);
        let mut outcome = self
            .ready
            .wait_while(outcome, |outcome| outcome.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match outcome.as_mut().expect("it was waited for") {
            Ok(bytes) => Ok(bytes.clone()),
            Err(text) => Err(lock(&self.failure).take().unwrap_or_else(|| Failure::Target(text.clone()))),
        }
    }

    fn is_done(&self) -> bool {
        lock(&self.outcome).is_some()
    }
}

/// A range that somebody may wait for: one that is given up says so.
struct Waited(Arc<Fetch>);

impl Drop for Waited {
    fn drop(&mut self) {
        if !self.0.is_done() {
            self.0.finish(Err(Failure::Stopped));
        }
    }
}

/// An object that is open, for all who have it open.
#[derive(Debug)]
pub(super) struct Shared {
    place: Arc<Place>,
    number: u64,
    name: String,
    length: u64,
    tail: Bytes,
}

impl Shared {
    pub(super) fn new(place: Arc<Place>, name: &str, length: u64, tail: Bytes) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { place, number, name: name.to_owned(), length, tail }
    }

    /// The range that holds `offset`; it is asked for if it was not. What comes next is asked for as well, where the
    /// reader reads on.
    fn range(self: &Arc<Self>, offset: u64, wanted: u64) -> (u64, Arc<Fetch>) {
        let body = self.length - self.tail.len() as u64;
        let mut state = lock(&self.place.reads.state);
        if state.find(self.number, offset).is_none() {
            let track = state.tracks.entry(self.number).or_default();
            let reads_on = track.next > 0 && offset >= track.next && offset - track.next <= GAP;
            let (from, length) = if reads_on {
                track.window = (track.window * 2).clamp(FIRST, MOST);
                (track.next, track.window)
            } else {
                if offset > track.next {
                    track.window = 0;
                }
                (offset, wanted)
            };
            let length = length.max(wanted + (offset - from)).max(LEAST).min(body - from);
            self.fetch(&mut state, from, length);
        }
        state.clock += 1;
        let used = state.clock;
        let (from, range) = state.find(self.number, offset).expect("it is there, or was just put there");
        range.used = used;
        let found = (from, Arc::clone(&range.fetch));
        let Track { mut next, window } = state.tracks[&self.number];
        if window >= FIRST * 2 {
            while next < body && next < offset + AHEAD {
                let length = window.min(body - next);
                if !state.make_room(length) {
                    break;
                }
                self.fetch(&mut state, next, length);
                next += length;
            }
        }
        found
    }

    /// Asks for a range, but no further than to one that is there.
    fn fetch(self: &Arc<Self>, state: &mut State, from: u64, length: u64) {
        let behind = (self.number, from)..=(self.number, from + length - 1);
        let end = state.ranges.range(behind).next().map_or(from + length, |((_, begin), _)| *begin);
        state.make_room(end - from);
        let track = state.tracks.entry(self.number).or_default();
        track.next = track.next.max(end);
        state.clock += 1;
        state.held += end - from;
        let fetch = Arc::new(Fetch::default());
        let range = Range { end, fetch: Arc::clone(&fetch), unread: end - from, used: state.clock };
        state.ranges.insert((self.number, from), range);
        let (place, name) = (Arc::clone(&self.place), self.name.clone());
        let fetch = Waited(fetch);
        self.place.background.spawn(async move {
            let bytes = place.client().get_range(&place.path(&name), from..end).await;
            let bytes = place.judge(&name, "read", bytes).map_err(Failure::from);
            fetch.0.finish(bytes.inspect(|bytes| place.counters.received(bytes.len())));
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut state = lock(&self.place.reads.state);
        state.tracks.remove(&self.number);
        let all: Vec<_> =
            state.ranges.range((self.number, 0)..=(self.number, u64::MAX)).map(|(at, _)| *at).collect();
        for at in all {
            state.forget(at);
        }
    }
}

impl State {
    /// The range that holds a byte, and where it begins.
    fn find(&mut self, object: u64, offset: u64) -> Option<(u64, &mut Range)> {
        let found = self.ranges.range_mut((object, 0)..=(object, offset)).next_back();
        found.filter(|(_, range)| offset < range.end).map(|((_, from), range)| (*from, range))
    }

    fn forget(&mut self, at: (u64, u64)) {
        if let Some(range) = self.ranges.remove(&at) {
            self.held -= range.end - at.1;
        }
    }

    /// Makes room for a range: what was not used the longest goes. False where what is under way takes it all.
    fn make_room(&mut self, length: u64) -> bool {
        while self.held + length > MEMORY {
            let done = self.ranges.iter().filter(|(_, range)| range.fetch.is_done());
            let Some(at) = done.min_by_key(|(_, range)| range.used).map(|(at, _)| *at) else { return false };
            self.forget(at);
        }
        true
    }

    /// Bytes of a range were read; one that has no others is the first to go where room is wanted.
    fn read(&mut self, at: (u64, u64), count: u64) {
        let Some(range) = self.ranges.get_mut(&at) else { return };
        range.unread = range.unread.saturating_sub(count);
        if range.unread == 0 {
            range.used = 0;
        }
    }
}

/// One reader's end.
pub(super) struct RemoteObject(Arc<Shared>);

impl RemoteObject {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl Object for RemoteObject {
    fn length(&self) -> u64 {
        self.0.length
    }

    fn read(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<(), Failure> {
        let shared = &self.0;
        let damaged =
            |what: String| super::super::RepositoryError::damaged(shared.place.object(&shared.name), what);
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > shared.length) {
            let what =
                format!("{} bytes from {offset} on are past its end at {}", buffer.len(), shared.length);
            return Err(damaged(what).into());
        }
        let body = shared.length - shared.tail.len() as u64;
        while !buffer.is_empty() {
            let (from, bytes) = if offset >= body {
                (body, shared.tail.clone())
            } else {
                let wanted = (buffer.len() as u64).min(body - offset).min(MOST);
                let (from, fetch) = shared.range(offset, wanted);
                match fetch.wait() {
                    Ok(bytes) => (from, bytes),
                    Err(failure) => {
                        // The next who wants it asks again.
                        lock(&shared.place.reads.state).forget((shared.number, from));
                        return Err(failure);
                    }
                }
            };
            let there =
                usize::try_from(offset - from).ok().and_then(|skip| bytes.get(skip..)).unwrap_or_default();
            if there.is_empty() {
                return Err(damaged(format!("the store sent nothing of it from byte {offset} on")).into());
            }
            let count = there.len().min(buffer.len());
            buffer[..count].copy_from_slice(&there[..count]);
            if offset < body {
                lock(&shared.place.reads.state).read((shared.number, from), count as u64);
            }
            offset += count as u64;
            buffer = &mut buffer[count..];
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
