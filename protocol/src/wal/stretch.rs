//! What a stretch of log changed, made of the stretch alone, and joined to what follows it.
//!
//! Segments are archived one by one and in any order, and a record may begin in one and end in another. So a stretch keeps the
//! bytes of the record that runs into it and of the one that runs out of it, and whoever joins two stretches puts the record
//! together. Joining is associative: a stretch may be a segment, or what many were joined to.
//!
//! Invariant: stretches that do not follow upon each other are not joined. Positions must meet, the rest of a record must be as
//! long as it says, and the first record of the later stretch must name the last one of the earlier as the one before it.

use super::checker::{Before, WalChecker, WalError, WalOrigin};
use super::content::{Record, RecordSink};
use super::manager::Manager;
use super::page::ByteOrder;
use super::record::{RECORD_HEADER, checksums};
use super::summarizer::{Links, Summarizer};
use crate::summary::BlockReferences;
use crate::{Lsn, TimelineId};

/// How many bytes of a record are kept that runs out of a stretch, or into it. Where more of its main data matters, the two
/// are not joined.
const KEPT: usize = 16 << 20;
/// The same of a record whose main data does not matter: more than one with the images of 33 pages has, so that all of these are
/// whole and their checksums compared. Of longer ones the blocks come first.
const KEPT_OF_BLOCKS: usize = 512 << 10;

/// What the records of a stretch of log changed.
#[derive(Clone, Debug)]
pub struct WalStretch {
    /// Its first position.
    pub start: Lsn,
    /// The position behind its last.
    pub end: Lsn,
    /// What its pages begin with (`XLOG_PAGE_MAGIC`), as they lie there: it tells the version and the order of bytes.
    pub magic: [u8; 2],
    /// What the records changed that lie in it whole.
    pub references: BlockReferences,
    /// Where these records are.
    pub links: Links,
    /// The rest of the record that began before it.
    pub head: Head,
    /// The record that ends behind it.
    pub tail: Option<Tail>,
}

/// The rest of a record that began before a stretch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// What the first page says of it.
    pub before: Before,
    /// How many bytes of it lie in the stretch.
    pub taken: u32,
    /// The first of them.
    pub bytes: Vec<u8>,
}

/// A record that begins in a stretch and ends behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Its first byte.
    pub start: Lsn,
    /// How many of its bytes lie in the stretch.
    pub have: u32,
    /// The first of them.
    pub bytes: Vec<u8>,
}

/// Reads one segment, or the beginning of one, and makes a stretch of it.
#[derive(Debug)]
pub struct StretchSummarizer {
    checker: WalChecker,
    start: Lsn,
    magic: [u8; 2],
    sink: Sink,
}

#[derive(Debug)]
struct Sink {
    records: Summarizer,
    head: Vec<u8>,
    taken: u32,
}

/// Stretches that do not follow upon each other, or cannot be put together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Something that both say differs.
    #[error("log at {at}: found {what} {found}, expected {expected}")]
    Apart {
        /// Where they meet.
        at: Lsn,
        /// What differs.
        what: &'static str,
        /// What the later one says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// The record that lies in both is not what it should be.
    #[error(transparent)]
    Record(#[from] WalError),
}

impl StretchSummarizer {
    /// One for the segment that begins at `start`, and records that begin before `to`.
    #[must_use]
    pub fn new(origin: WalOrigin, start: Lsn, to: Lsn) -> Self {
        Self {
            checker: WalChecker::from_segment(origin, start),
            start,
            magic: [0; 2],
            sink: Sink { records: Summarizer::new(start, to), head: Vec::new(), taken: 0 },
        }
    }

    /// Takes the bytes that follow.
    ///
    /// # Errors
    /// [`WalError`] for damage. A record that is merely not understood is told at the end.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), WalError> {
        for (at, byte) in (self.checker.position().0.wrapping_sub(self.start.0)..2).zip(bytes) {
            self.magic[usize::from(at == 1)] = *byte;
        }
        self.checker.push_to(bytes, &mut self.sink)
    }

    /// The end of the last record that was whole and right.
    #[must_use]
    pub fn verified(&self) -> Lsn {
        self.checker.verified()
    }

    /// Lets later pages be of a newer timeline.
    pub fn follow(&mut self, timeline: TimelineId) {
        self.checker.follow(timeline);
    }

    /// Whether the bytes that were here lead up to `end`, where a record ends.
    ///
    /// # Errors
    /// [`WalError`] where they do not.
    pub fn ends_at(&self, end: Lsn) -> Result<(), WalError> {
        self.checker.finish(end)
    }

    /// What the bytes changed that were here.
    ///
    /// # Errors
    /// [`WalError`] where a record was not understood.
    pub fn finish(self) -> Result<WalStretch, WalError> {
        let end = self.checker.position();
        let tail = self.checker.unfinished().map(|record| {
            let matters = record.bytes.get(17).is_none_or(|manager| main_data_matters(Manager(*manager)));
            let most = if matters { KEPT } else { KEPT_OF_BLOCKS };
            let bytes = record.bytes[..record.bytes.len().min(most)].to_vec();
            Tail { start: record.start, have: record.have, bytes }
        });
        let head = Head { before: self.checker.before(), taken: self.sink.taken, bytes: self.sink.head };
        let (references, links) = self.sink.records.finish()?;
        Ok(WalStretch { start: self.start, end, magic: self.magic, references, links, head, tail })
    }
}

impl RecordSink for Sink {
    fn record(&mut self, record: &Record<'_>) -> Result<(), WalError> {
        self.records.record(record)
    }

    fn rest(&mut self, bytes: &[u8]) {
        self.taken = self.taken.saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        keep(&mut self.head, bytes);
    }
}

/// Appends as much as is kept of a record in pieces.
fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = KEPT.saturating_sub(kept.len());
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// Whether the main data of a manager's records may say what files are changed.
fn main_data_matters(manager: Manager) -> bool {
    [
        Manager::LOG,
        Manager::TRANSACTION,
        Manager::STORAGE,
        Manager::DATABASE,
        Manager::TABLESPACE,
        Manager::RELATION_MAP,
    ]
    .contains(&manager)
}

impl WalStretch {
    /// Whether all of it is the middle of one record.
    fn is_middle(&self) -> bool {
        !self.head.before.cut_off && self.head.taken < self.head.before.length
    }

    fn apart(&self, what: &'static str, found: &dyn ToString, expected: &dyn ToString) -> JoinError {
        JoinError::Apart { at: self.start, what, found: found.to_string(), expected: expected.to_string() }
    }

    /// Joins what follows.
    ///
    /// # Errors
    /// [`JoinError`] where it does not follow, and where the record that lies in both is not understood.
    pub fn join(self, next: Self) -> Result<Self, JoinError> {
        if next.start != self.end {
            return Err(next.apart("the next stretch", &next.start, &self.end));
        }
        if next.magic != self.magic {
            return Err(next.apart(
                "page magic",
                &format!("{:02X?}", next.magic),
                &format!("{:02X?}", self.magic),
            ));
        }
        if self.is_middle() {
            return self.join_middle(next);
        }
        let Self { start, references, mut links, head, tail, magic, .. } = self;
        let mut summarizer = Summarizer::resume(references, links);
        let mut runs_on = None;
        match tail {
            None if next.head.before.length > 0 => {
                let found = format!("{} bytes", next.head.before.length);
                return Err(next.apart("the rest of a record", &found, &"none"));
            }
            None => {}
            // A crash cut it off, and it is no record.
            Some(_) if next.head.before.cut_off => {}
            Some(tail) => {
                let stated = tail
                    .bytes
                    .first_chunk::<4>()
                    .and_then(|length| ByteOrder::of_magic(magic).map(|order| order.u32(length, 0)));
                let rest = next.head.before.length;
                let length = u64::from(tail.have) + u64::from(rest);
                if rest == 0 || stated.is_some_and(|stated| u64::from(stated) != length) {
                    let expected = stated.map_or(0, |stated| stated.saturating_sub(tail.have));
                    return Err(next.apart("the rest of a record", &rest, &expected));
                }
                let tail = tail.followed_by(&next.head);
                if next.is_middle() {
                    runs_on = Some(tail);
                } else {
                    tail.add_to(&mut summarizer, magic)?;
                }
            }
        }
        let (mut references, new) = summarizer.finish().map_err(JoinError::Record)?;
        links = new;
        if let (Some(last), Some((_, previous))) = (links.last, next.links.first)
            && last != previous
        {
            return Err(next.apart("a link to", &previous, &last));
        }
        references.merge(next.references);
        links.first = links.first.or(next.links.first);
        links.last = next.links.last.or(links.last);
        links.minimal = links.minimal.or(next.links.minimal);
        Ok(Self { start, end: next.end, magic, references, links, head, tail: runs_on.or(next.tail) })
    }

    /// Joins what follows upon the middle of a record.
    fn join_middle(self, next: Self) -> Result<Self, JoinError> {
        let mut head = self.head;
        if !next.head.before.cut_off || next.head.before.length > 0 {
            let left = head.before.length - head.taken;
            if next.head.before.length != left {
                return Err(next.apart("the rest of a record", &next.head.before.length, &left));
            }
        }
        if head.bytes.len() as u64 == u64::from(head.taken) {
            keep(&mut head.bytes, &next.head.bytes);
        }
        head.taken = head.taken.saturating_add(next.head.taken);
        head.before.cut_off |= next.head.before.cut_off;
        Ok(Self { start: self.start, head, ..next })
    }
}

impl Tail {
    fn followed_by(mut self, head: &Head) -> Self {
        if self.bytes.len() as u64 == u64::from(self.have) {
            keep(&mut self.bytes, &head.bytes);
        }
        self.have = self.have.saturating_add(head.taken);
        self
    }

    /// Adds the record, which is complete, but may be cut.
    fn add_to(&self, summarizer: &mut Summarizer, magic: [u8; 2]) -> Result<(), WalError> {
        let wrong = |what, found: &dyn ToString, expected: &dyn ToString| WalError::Record {
            at: self.start,
            what,
            found: found.to_string(),
            expected: expected.to_string(),
        };
        let order = ByteOrder::of_magic(magic)
            .ok_or_else(|| wrong("page magic", &format!("{magic:02X?}"), &"that of a WAL page"))?;
        let number = order.u16(&magic, 0);
        let end = Lsn(self.start.0.saturating_add(self.have.into()));
        let record = Record::unchecked(self.start, end, &self.bytes, order, number)
            .ok_or_else(|| wrong("bytes of a record", &self.bytes.len(), &RECORD_HEADER))?;
        if record.length() != self.have {
            return Err(wrong("length", &record.length(), &self.have));
        }
        if let Some((header, body)) = record.bytes().split_first_chunk::<RECORD_HEADER>()
            && record.is_whole()
        {
            let (expected, found) = checksums(header, crc32c::crc32c(body), order);
            if expected != found {
                let hex = |checksum| format!("{checksum:08X}");
                return Err(wrong("content with CRC-32C", &hex(found), &hex(expected)));
            }
        }
        if let Some(last) = summarizer.last().filter(|last| *last != record.previous()) {
            return Err(wrong("a link to", &record.previous(), &last));
        }
        summarizer.add(&record)
    }
}
