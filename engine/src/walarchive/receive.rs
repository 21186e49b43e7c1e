//! Received WAL on its way into a repository.
//!
//! A segment is published once it is whole; what there is of it before that in parts, each behind the one before, so that
//! the last seconds are kept too. A run that comes after takes the segment from its beginning, as the stream does, compares
//! what parts hold, and goes on with them where they end.
//!
//! Invariants: while the stream goes on, a segment is published only once the record that runs out of it was whole and
//! right, and nothing behind it before it; parts of a segment lead on from its first byte without a gap. Memory is one
//! frame, and WAL that waits for its part, of which there is a segment's at most and never more than [`PART_MAX`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::{Lsn, TimelineId};

use super::changes::Noting;
use super::overlap::{Compared, Overlap};
use super::publisher::{Job, Publisher, Shelf};
use super::start::{Search, hex};
use crate::connect::Alarm;
use crate::failure::Failure;
use crate::receivewal::{AskPast, ReceiveObserver, RestingSink, ServerFacts, Start, WalPlace, WalStore};
use crate::repository::{RepositoryError, SegmentName, WalName, WalObjectWriter, WalOwner};
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
        past: AskPast<'_>,
        observer: &dyn ReceiveObserver,
    ) -> Result<Option<Start>, Failure> {
        let system = facts.system.system_identifier;
        self.store.repository.claim_identity(&self.store.cluster, system)?;
        let past = past()?;
        Search::new(self.store, system, facts.segment_size, &past).find(past.slot, observer)
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
        let size = facts.segment_size;
        let first = WalSegment::containing(start.timeline, start.lsn, size);
        let old_parts = self.old_parts(SegmentName::of(first, size))?;
        let (shelf, interval) = (self.shelf(facts), self.store.interval);
        let writer = StoreWriter::begin(shelf, start, (size, interval), old_parts, observer, alarm)?;
        Ok(Box::new(writer))
    }
}

impl StorePlace<'_> {
    /// What earlier runs have kept of segments of a timeline that are not whole, from one on.
    fn old_parts(&self, from: SegmentName) -> Result<OldParts, Failure> {
        let WalStore { repository, cluster, .. } = self.store;
        let mut parts = OldParts::new();
        let highs = repository.wal_names(&cluster.wal_timeline(from.timeline))?;
        for high in highs.iter().filter_map(|high| hex(high)).filter(|high| *high >= from.high) {
            for name in repository.wal_names(&cluster.wal_folder(from.timeline, high))? {
                if let Ok(WalName::Part { segment, from: first, to }) = name.parse()
                    && segment >= from
                {
                    parts.entry(segment).or_default().insert((first, to));
                }
            }
        }
        Ok(parts)
    }
}

/// Parts by their segments.
type OldParts = BTreeMap<SegmentName, BTreeSet<(u32, u32)>>;

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
    /// What earlier runs have kept of segments to come.
    old_parts: OldParts,
}

struct OpenSegment {
    segment: SegmentName,
    start: Lsn,
    object: WalObjectWriter,
    /// What it changes, as long as that can be read.
    noting: Option<Box<Noting>>,
    filled: u64,
    /// What parts of an earlier run hold, until it was compared.
    overlap: Option<Overlap>,
    /// Bytes that these hold, once they are known to be right.
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
    fn begin(
        shelf: Shelf,
        start: Start,
        (size, interval): (WalSegmentSize, Duration),
        old_parts: OldParts,
        observer: &Arc<dyn ReceiveObserver>,
        alarm: &Alarm,
    ) -> Result<Self, Failure> {
        let publisher = Publisher::start(shelf.clone(), start.lsn, alarm.clone())?;
        let mut writer = Self {
            shelf,
            publisher,
            size,
            timeline: start.timeline,
            interval,
            observer: Arc::clone(observer),
            open: None,
            held: VecDeque::new(),
            written: start.lsn,
            asked: start.lsn,
            last_part: None,
            old_parts,
        };
        writer.open = Some(writer.begin_segment()?);
        Ok(writer)
    }

    fn begin_segment(&mut self) -> Result<OpenSegment, Failure> {
        self.shelf.repository.check_keys()?;
        let segment = WalSegment::containing(self.timeline, self.written, self.size);
        let segment = SegmentName::of(segment, self.size);
        let old = self.old_parts.remove(&segment);
        let has_parts = old.is_some();
        let overlap = match old {
            Some(parts) => Overlap::read(&self.shelf, segment, self.size, parts, &*self.observer)?,
            None => None,
        };
        Ok(OpenSegment {
            segment,
            start: self.written,
            object: self.shelf.begin(WalName::Segment(segment))?,
            noting: Noting::begin(segment, self.shelf.owner).map(Box::new),
            filled: 0,
            known: 0,
            from: overlap.as_ref().map_or(0, Overlap::end),
            overlap,
            pending: Vec::new(),
            has_parts,
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
        match open.overlap.as_mut().map(|overlap| overlap.take(bytes)) {
            None | Some(Compared::Unknown) => {}
            Some(Compared::Same(known)) => (open.known, open.overlap) = (known, None),
            Some(Compared::TailDiffers(keep)) => {
                // Nothing of this segment is under way to the publisher.
                self.shelf.cut(open.segment, keep)?;
                return Err(Failure::Wal(format!(
                    "what an earlier run has kept of segment {} behind its last whole record, which ends at {}, is not \
                     what the server sends\n\
                     HINT: it was changed on its way and is removed; the segment is received once more.",
                    open.segment,
                    Lsn(open.start.0 + keep)
                )));
            }
            Some(Compared::Differs) => {
                let what = format!(
                    "parts of segment {} hold whole records that are not what the server sends",
                    open.segment
                );
                let hint = "two servers are received under one name, or this one was copied and started without \
                            recovery, so that it writes another history of the same timeline. Nothing was changed; give \
                            one of them another --cluster name.";
                return Err(RepositoryError::new(self.shelf.cluster.wal(), what, hint).into());
            }
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::parts::{chain, parts_of, read_parts};
    use super::*;
    use crate::repository::{FrameCompression, LocalStore, Repository};

    const MIB: usize = 1 << 20;
    const START: Lsn = Lsn(2 << 20);

    /// Keeps warnings.
    #[derive(Default)]
    struct Voice(Mutex<Vec<String>>);

    impl ReceiveObserver for Voice {
        fn error(&self, _: &str) {}
        fn warning(&self, text: &str) {
            self.0.lock().unwrap().push(text.to_owned());
        }
        fn info(&self, _: &str) {}
        fn note(&self, _: &str) {}
    }

    /// A writer that goes on with what is in a repository.
    fn writer(shelf: &Shelf, observer: &Arc<dyn ReceiveObserver>) -> StoreWriter {
        let start = Start { lsn: START, timeline: TimelineId(1) };
        let segment = segment();
        let parts = parts_of(&shelf.names(segment).unwrap(), segment);
        let old = if parts.is_empty() { OldParts::new() } else { [(segment, parts)].into() };
        let rules = (WalSegmentSize::new(MIB as u64).unwrap(), Duration::ZERO);
        let alarm = Alarm::new().unwrap();
        StoreWriter::begin(shelf.clone(), start, rules, old, observer, &alarm).unwrap()
    }

    fn segment() -> SegmentName {
        "000000010000000000000002".parse().unwrap()
    }

    /// What the parts in a repository come to.
    fn kept(shelf: &Shelf) -> Vec<u8> {
        let (chain, _) = chain(&parts_of(&shelf.names(segment()).unwrap(), segment()));
        let mut content = Vec::new();
        read_parts(&shelf.repository, &shelf.cluster, segment(), &chain, |_, piece| {
            content.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        content
    }

    #[test]
    fn what_an_earlier_run_kept_counts_once_the_stream_brings_it_again() {
        let scratch = tempfile::tempdir().unwrap();
        let repository = Repository::init(Arc::new(LocalStore::new(scratch.path().join("r")))).unwrap();
        let owner = WalOwner {
            system_identifier: 7,
            segment_size: Some(WalSegmentSize::new(MIB as u64).unwrap()),
            source: "receive",
        };
        let compression = FrameCompression::Zstd(1);
        let shelf = Shelf { repository, cluster: "main".parse().unwrap(), owner, compression };
        let voice = Arc::new(Voice::default());
        let observer: Arc<dyn ReceiveObserver> = Arc::<Voice>::clone(&voice);
        let wal: Vec<u8> =
            (0..MIB as u32).map(|number| number.wrapping_mul(7_919).to_le_bytes()[1]).collect();
        let keep = |bytes: &[u8]| {
            let mut writer = writer(&shelf, &observer);
            writer.write(START, bytes).unwrap();
            writer.rest(true).unwrap();
        };
        keep(&wal[..5_000]);
        assert_eq!(kept(&shelf), wal[..5_000]);

        // The same again: nothing counts before it was compared, and all of it then.
        let mut next = writer(&shelf, &observer);
        next.write(START, &wal[..4_000]).unwrap();
        next.settle(Lsn(START.0 + 4_000), true).unwrap();
        assert_eq!(next.flushed(), START);
        next.write(Lsn(START.0 + 4_000), &wal[4_000..6_000]).unwrap();
        next.settle(Lsn(START.0 + 6_000), true).unwrap();
        next.publisher.drain().unwrap();
        assert_eq!(next.flushed(), Lsn(START.0 + 6_000));
        next.rest(true).unwrap();
        assert_eq!(kept(&shelf), wal[..6_000]);

        // Changed on its way, before a whole record was seen: it goes, and comes once more.
        let mut other = wal.clone();
        other[5_500] ^= 1;
        let mut changed = writer(&shelf, &observer);
        let refused = changed.write(START, &other[..8_000]).unwrap_err().to_string();
        assert!(refused.contains("is not what the server sends") && refused.contains("HINT:"), "{refused}");
        drop(changed);
        assert_eq!(kept(&shelf), b"");
        keep(&other[..8_000]);
        assert_eq!(kept(&shelf), other[..8_000]);

        // What is damaged is told and received once more.
        let name = WalName::Part { segment: segment(), from: 0, to: 8_000 };
        let path = scratch.path().join("r").join(name.object(&shelf.cluster));
        let mut content = std::fs::read(&path).unwrap();
        let middle = content.len() / 2;
        content[middle] ^= 1;
        std::fs::write(&path, content).unwrap();
        keep(&wal[..9_000]);
        assert_eq!(kept(&shelf), wal[..9_000]);
        let told = voice.0.lock().unwrap().join("\n");
        assert!(told.contains("it is removed, and received once more"), "{told}");

        // A whole segment takes the place of its parts, those of an earlier run as well.
        let mut last = writer(&shelf, &observer);
        last.write(START, &wal).unwrap();
        last.rest(true).unwrap();
        assert_eq!(shelf.names(segment()).unwrap(), [segment().to_string()]);
    }
}
