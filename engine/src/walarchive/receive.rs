//! Received WAL on its way into a repository.
//!
//! A segment is published once it is whole; what there is of it before that in parts, each behind the one before, so that
//! the last seconds are kept too. A run that comes after takes the segment from its beginning, as the stream does, and goes
//! on with parts where they end.
//!
//! Invariants: while the stream goes on, a segment is published only once the record that runs out of it was whole and
//! right, and nothing behind it before it; parts of a segment lead on from its first byte without a gap. Memory is one
//! frame, and WAL that waits for its part, of which there is a segment's at most and never more than [`PART_MAX`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::{Lsn, TimelineId};

use super::changes::Noting;
use super::parts::{chain, parts_of};
use super::publisher::{Job, Publisher, Shelf};
use crate::connect::Alarm;
use crate::failure::Failure;
use crate::receivewal::{ReceiveObserver, RestingSink, ServerFacts, Start, WalPlace, WalStore};
use crate::repository::{SegmentName, WalName, WalObjectWriter, WalOwner};
use crate::wal::WalSink;

/// The most bytes that wait for their part.
const PART_MAX: usize = 16 << 20;

/// A cluster's archive in a repository.
pub(crate) struct StorePlace<'a> {
    pub(crate) store: &'a WalStore,
}

impl StorePlace<'_> {
    fn shelf(&self, facts: &ServerFacts) -> Shelf {
        Shelf {
            repository: self.store.repository.clone(),
            cluster: self.store.cluster.clone(),
            owner: WalOwner {
                system_identifier: facts.system.system_identifier,
                segment_size: Some(facts.segment_size),
                source: "receive",
            },
            compression: self.store.compression,
        }
    }
}

impl WalPlace for StorePlace<'_> {
    fn find_start(
        &self,
        facts: &ServerFacts,
        _observer: &dyn ReceiveObserver,
    ) -> Result<Option<Start>, Failure> {
        let WalStore { repository, cluster, .. } = self.store;
        repository.claim_identity(cluster, facts.system.system_identifier)?;
        let (size, store) = (facts.segment_size, repository);
        // Of each timeline the last segment: whether it is whole, and where it lies.
        let mut last: Option<(u64, TimelineId, bool)> = None;
        for timeline in store.wal_names(&cluster.wal())? {
            let Some(timeline) = hex(&timeline).map(TimelineId) else { continue };
            let highest = store.wal_names(&cluster.wal_timeline(timeline))?;
            for high in highest.iter().rev().filter_map(|high| hex(high)) {
                let names = store.wal_names(&cluster.wal_folder(timeline, high))?;
                let found = names.iter().filter_map(|name| match name.parse() {
                    Ok(WalName::Segment(segment)) => Some((segment.segment(size)?.number, timeline, true)),
                    Ok(WalName::Part { segment, .. }) => {
                        Some((segment.segment(size)?.number, timeline, false))
                    }
                    _ => None,
                });
                if let Some(found) = found.max() {
                    // The server hears that it is durable.
                    store.store().sync_folder(&cluster.wal_folder(timeline, high))?;
                    last = last.max(Some(found));
                    break;
                }
            }
        }
        let Some((number, timeline, whole)) = last else { return Ok(None) };
        let segment = WalSegment { timeline, number };
        let segment = if whole { segment.next() } else { segment };
        Ok(segment.start(size).map(|lsn| Start { lsn, timeline }))
    }

    fn has_history(&self, timeline: TimelineId) -> Result<bool, Failure> {
        let there = self.store.repository.wal_object(&self.store.cluster, WalName::History(timeline))?;
        Ok(there.is_some())
    }

    fn keep_history(&self, timeline: TimelineId, content: &[u8], facts: &ServerFacts) -> Result<(), Failure> {
        let mut shelf = self.shelf(facts);
        // As a server's own archive_command takes it in.
        shelf.owner.segment_size = None;
        let mut object = shelf.begin(WalName::History(timeline))?;
        object.write(content)?;
        object.publish().map(drop)
    }

    fn writer(
        &self,
        start: Start,
        facts: &ServerFacts,
        observer: &Arc<dyn ReceiveObserver>,
        alarm: &Alarm,
    ) -> Result<Box<dyn RestingSink>, Failure> {
        let shelf = self.shelf(facts);
        let publisher = Publisher::start(shelf.clone(), start.lsn, alarm.clone())?;
        let mut writer = StoreWriter {
            shelf,
            publisher,
            size: facts.segment_size,
            timeline: start.timeline,
            interval: self.store.interval,
            observer: Arc::clone(observer),
            open: None,
            held: VecDeque::new(),
            written: start.lsn,
            asked: start.lsn,
            last_part: None,
        };
        // What an earlier run has kept of the first segment.
        let open = writer.begin_segment()?;
        let known = chain(&parts_of(&writer.shelf.names(open.segment)?, open.segment)).1;
        writer.open =
            Some(OpenSegment { from: known.into(), has_parts: known > 0, known: known.into(), ..open });
        Ok(Box::new(writer))
    }
}

fn hex(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name, 16).ok()?;
    (name == format!("{number:08X}")).then_some(number)
}

struct StoreWriter {
    shelf: Shelf,
    publisher: Publisher,
    size: WalSegmentSize,
    timeline: TimelineId,
    interval: Duration,
    observer: Arc<dyn ReceiveObserver>,
    open: Option<OpenSegment>,
    /// Whole segments that wait for the end of the record that runs out of them.
    held: VecDeque<Job>,
    written: Lsn,
    /// Up to where parts or segments were handed on.
    asked: Lsn,
    last_part: Option<Instant>,
}

struct OpenSegment {
    segment: SegmentName,
    start: Lsn,
    object: WalObjectWriter,
    /// What it changes, as long as that can be read.
    noting: Option<Box<Noting>>,
    filled: u64,
    /// Bytes that parts of an earlier run hold.
    known: u64,
    /// Where the next part begins.
    from: u64,
    /// What it has so far.
    pending: Vec<u8>,
    has_parts: bool,
    /// Whether there are no more parts of this segment: too much would wait for them.
    given_up: bool,
}

impl StoreWriter {
    fn begin_segment(&self) -> Result<OpenSegment, Failure> {
        self.shelf.repository.check_keys()?;
        let segment = WalSegment::containing(self.timeline, self.written, self.size);
        let segment = SegmentName::of(segment, self.size);
        Ok(OpenSegment {
            segment,
            start: self.written,
            object: self.shelf.begin(WalName::Segment(segment))?,
            noting: Noting::begin(segment, self.shelf.owner).map(Box::new),
            filled: 0,
            known: 0,
            from: 0,
            pending: Vec::new(),
            has_parts: false,
            given_up: false,
        })
    }

    /// Hands on what no longer has to wait, now that all records up to `verified` were right.
    fn release(&mut self, verified: Lsn) -> Result<(), Failure> {
        while let Some(job) = self.held.pop_front() {
            if let Job::Whole { end, segment, .. } = &job {
                if *end > verified {
                    self.held.push_front(job);
                    break;
                }
                self.observer.note(&format!("finished segment {segment} at {end}"));
            }
            self.publisher.send(job)?;
        }
        Ok(())
    }

    /// Hands on what waits for its part.
    fn end_part(&mut self) -> Result<(), Failure> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let from = u32::try_from(open.from).unwrap_or(u32::MAX);
        if open.pending.is_empty() || open.given_up {
            return Ok(());
        }
        let bytes = std::mem::take(&mut open.pending);
        open.from += bytes.len() as u64;
        open.has_parts = true;
        let end = Lsn(open.start.0 + open.from);
        let job = Job::Part { segment: open.segment, from, bytes, end };
        (self.asked, self.last_part) = (end, Some(Instant::now()));
        self.publisher.send(job)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.object.write(bytes)?;
        if open.noting.as_mut().is_some_and(|noting| noting.push(bytes).is_err()) {
            // Whoever checks the stream tells of it.
            open.noting = None;
        }
        // What parts hold already is passed over.
        let known = usize::try_from(open.from.saturating_sub(open.filled)).unwrap_or(usize::MAX);
        let news = if open.pending.is_empty() { &bytes[known.min(bytes.len())..] } else { bytes };
        open.filled += bytes.len() as u64;
        if !open.given_up {
            open.pending.extend_from_slice(news);
        }
        if open.pending.len() >= PART_MAX && open.filled < self.size.bytes() {
            if self.held.is_empty() {
                return self.end_part();
            }
            // Its parts would have to wait for the segment before; it comes whole.
            (open.given_up, open.pending) = (true, Vec::new());
        }
        Ok(())
    }
}

impl WalSink for StoreWriter {
    fn write(&mut self, at: Lsn, mut bytes: &[u8]) -> Result<(), Failure> {
        if at != self.written {
            return Err(Failure::Wal(format!("WAL from {at} came, expected it from {}", self.written)));
        }
        while !bytes.is_empty() {
            if self.open.is_none() {
                self.open = Some(self.begin_segment()?);
            }
            let filled = self.open.as_ref().map_or(0, |open| open.filled);
            let room = usize::try_from(self.size.bytes() - filled).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.append(now)?;
            self.written = Lsn(self.written.0 + now.len() as u64);
            bytes = later;
            if let Some(open) = self.open.take_if(|open| open.filled == self.size.bytes()) {
                let OpenSegment { object, segment, noting, has_parts, .. } = open;
                self.held.push_back(Job::Whole {
                    object: Box::new(object),
                    segment,
                    noting,
                    has_parts,
                    end: self.written,
                });
                self.asked = self.written;
            }
        }
        Ok(())
    }

    fn written(&self) -> Lsn {
        self.written
    }

    fn flushed(&self) -> Lsn {
        self.publisher.flushed()
    }

    fn settle(&mut self, verified: Lsn, asked: bool) -> Result<(), Failure> {
        self.publisher.check()?;
        self.release(verified)?;
        if !self.held.is_empty() {
            // Nothing behind a segment that is not published counts as durable.
            return Ok(());
        }
        if let Some(open) = &self.open
            && open.known > 0
            && open.filled >= open.known
            && self.publisher.flushed() >= open.start
        {
            self.publisher.reached(Lsn(open.start.0 + open.known));
        }
        let due = asked || self.last_part.is_none_or(|last| last.elapsed() >= self.interval);
        // One at a time: what comes meanwhile goes together into the next.
        if due && self.publisher.flushed() >= self.asked { self.end_part() } else { Ok(()) }
    }
}

impl RestingSink for StoreWriter {
    fn rest(&mut self, orderly: bool) -> Result<(), Failure> {
        if orderly {
            self.release(Lsn(u64::MAX))?;
        } else if !self.held.is_empty() {
            // They are received once more, and what came behind them with them.
            self.held.clear();
            self.open = None;
        }
        self.end_part()?;
        self.open = None;
        self.publisher.drain()
    }
}
