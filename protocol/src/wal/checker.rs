//! Checks WAL as it passes: every page's header, and every record's chain and checksum.
//!
//! This is what recovery does before it trusts a record (`xlogreader.c`), done while there is still a server to get
//! the WAL from again. Nothing is kept but the headers that a piece of the stream may cut.
//!
//! Invariant: all bytes between the first record and [`WalChecker::verified`] are covered by a checksum that matched,
//! but for what nobody reads: padding, the rest of a segment behind a switch, and a record that a crash cut off.

use std::ops::RangeInclusive;

use super::content::{Record, RecordSink, WalVersion};
use super::page::{
    ALL_FLAGS, ByteOrder, CONTINUES, LONG, LONG_HEADER, OVERWRITES, PageHeader, SHORT_HEADER, SegmentFacts,
};
use super::record::{ALIGNMENT, Partial, RECORD_HEADER, TOO_LONG, checksums, is_switch};
use crate::names::WalSegmentSize;
use crate::{Lsn, TimelineId};

/// The sizes of pages of WAL in bytes that a server can be built with (`configure --with-wal-blocksize`, 1 to 64 kB).
const PAGE_SIZES: RangeInclusive<u64> = 1 << 10..=64 << 10;

/// Where WAL is said to come from; its pages repeat it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalOrigin {
    /// The cluster.
    pub system_identifier: u64,
    /// The timeline of the segments. Their pages may be of older ones, from which they were copied.
    pub timeline: TimelineId,
    /// The size of the segments.
    pub segment_size: WalSegmentSize,
    /// What every page begins with, where it is known: see [`ServerVersion::wal_magic`](crate::ServerVersion::wal_magic).
    pub magic: Option<u16>,
    /// The size of a page in bytes, where it is known; a power of two.
    pub page_size: Option<u32>,
}

/// WAL that recovery would not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// A page's header is not what belongs there.
    #[error("WAL page at {at}: found {what} {found}, expected {expected}")]
    Page {
        /// The page's first byte.
        at: Lsn,
        /// Which field.
        what: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A record's header, or its content, is not what belongs there.
    #[error("WAL record at {at}: found {what} {found}, expected {expected}")]
    Record {
        /// The record's first byte.
        at: Lsn,
        /// Which field.
        what: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
}

/// Checks one timeline's WAL, in pieces of any size. A clone goes on by itself from where the original stands.
#[derive(Clone, Debug)]
pub struct WalChecker {
    origin: WalOrigin,
    /// The first byte of a record; WAL before it is checked by its page headers alone.
    first_record: Lsn,
    /// Of a stream that begins anywhere: whether its first page is still to say where the first record begins.
    searching: bool,
    /// How many bytes are to come of a record whose beginning was never here.
    tail: u32,
    /// The first of its last bytes.
    tail_bytes: [u8; RECORD_HEADER],
    /// The next byte.
    at: Lsn,
    format: Option<Format>,
    /// The part of a page's header that is here.
    gathered: [u8; LONG_HEADER],
    have: usize,
    record: Option<Partial>,
    /// What is kept of that record for who takes records, as far as they want it.
    kept: Vec<u8>,
    /// Of the record that began before: what its first page here said is to come, and whether a crash cut it off.
    before: Before,
    /// Where the last whole record began.
    previous: Option<Lsn>,
    verified: Lsn,
    failed: Option<WalError>,
}

/// The record that runs into a stream, of which only the rest is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// The bytes that are to come of it, as the first page says; 0 where none runs in.
    pub length: u32,
    /// Whether a page says that a crash cut the record off: it is none then.
    pub cut_off: bool,
}

/// A record whose end is not here yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished<'a> {
    /// Its first byte.
    pub start: Lsn,
    /// How many of its bytes were here.
    pub have: u32,
    /// The first of these, as many as were to be kept.
    pub bytes: &'a [u8],
}

/// What the first page says of all.
#[derive(Clone, Copy, Debug)]
struct Format {
    order: ByteOrder,
    magic: u16,
    page_size: u64,
    /// Of the last page: timelines never go back.
    timeline: TimelineId,
}

impl WalChecker {
    /// A checker for the WAL from the beginning of the segment that holds `first_record`, where a record begins.
    #[must_use]
    pub fn new(origin: WalOrigin, first_record: Lsn) -> Self {
        Self {
            origin,
            first_record,
            searching: false,
            tail: 0,
            tail_bytes: [0; RECORD_HEADER],
            at: first_record.segment_start(origin.segment_size.bytes()),
            format: None,
            gathered: [0; LONG_HEADER],
            have: 0,
            record: None,
            kept: Vec::new(),
            before: Before::default(),
            previous: None,
            verified: first_record,
            failed: None,
        }
    }

    /// A checker for the WAL from `start`, the beginning of a segment, wherever its first record begins: its pages say
    /// that. The rest of a record that began before cannot be checked but for its length.
    #[must_use]
    pub fn from_segment(origin: WalOrigin, start: Lsn) -> Self {
        Self { searching: true, ..Self::new(origin, start.segment_start(origin.segment_size.bytes())) }
    }

    /// The position of the next byte.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.at
    }

    /// The end of the last record that was whole and right.
    #[must_use]
    pub fn verified(&self) -> Lsn {
        self.verified
    }

    /// The record that ran into the stream, once the stream's first page was here.
    #[must_use]
    pub fn before(&self) -> Before {
        self.before
    }

    /// The record that is under way, if one is.
    #[must_use]
    pub fn unfinished(&self) -> Option<Unfinished<'_>> {
        self.record.as_ref().map(|record| Unfinished {
            start: record.start,
            have: record.have(),
            bytes: &self.kept,
        })
    }

    /// The format of the records, once the first page was here; `None` also for a version that is not known.
    #[must_use]
    pub fn version(&self) -> Option<WalVersion> {
        self.format.and_then(|format| WalVersion::of_magic(format.magic))
    }

    /// Leaves out the pages between the first of the segment and the one on which the first record begins, as recovery
    /// does: nobody reads them. Returns the position of the next byte. Does nothing before the segment's first header is
    /// here, and behind the first record's page.
    pub fn skip_to_first_record(&mut self) -> Lsn {
        if let Some(format) = self.format {
            let page = Lsn(self.first_record.0 & !(format.page_size - 1));
            if page > self.at && self.record.is_none() {
                (self.at, self.have) = (page, 0);
            }
        }
        self.at
    }

    /// Lets later pages be of a newer timeline: where the segments that follow branched off this one.
    pub fn follow(&mut self, timeline: TimelineId) {
        self.origin.timeline = self.origin.timeline.max(timeline);
    }

    /// Whether the WAL up to `end`, where a record ends, is whole: to be asked once all bytes before `end` were taken.
    /// What was wrong behind `end` is of no account.
    ///
    /// # Errors
    /// [`WalError`] where bytes are missing, and where a record goes on behind `end`.
    pub fn finish(&self, end: Lsn) -> Result<(), WalError> {
        // A position that a server gives as the end may lie behind the header of a page on which nothing is yet.
        let header = header_length(self.verified.0, self.origin.segment_size.bytes());
        let empty_page = self.format.is_some_and(|format| self.verified.0.is_multiple_of(format.page_size))
            && self.verified.0.checked_add(header) == Some(end.0);
        if self.verified >= end || empty_page && self.at >= end {
            return Ok(());
        }
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let at = self.record.as_ref().map_or(self.verified, |record| record.start);
        let length = self
            .format
            .and_then(|format| self.record.as_ref().and_then(|record| record.length(format.order)));
        Err(WalError::Record {
            at,
            what: "no end",
            found: match length {
                Some(length) => format!("in the bytes up to {} for its length {length}", self.at),
                None => format!("in the bytes up to {}", self.at),
            },
            expected: format!("it at or before {end}"),
        })
    }

    /// Takes the bytes that follow.
    ///
    /// # Errors
    /// [`WalError`] for the first thing that is wrong, and the same again on every later call.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), WalError> {
        self.push_to(bytes, &mut NoRecords)
    }

    /// Takes the bytes that follow, and hands out every record that they end, once it was right.
    ///
    /// # Errors
    /// [`WalError`] for the first thing that is wrong, and the same again on every later call; and what `sink` says.
    pub fn push_to(&mut self, mut bytes: &[u8], sink: &mut impl RecordSink) -> Result<(), WalError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        while !bytes.is_empty() {
            match self.step(bytes, sink) {
                Ok(taken) => {
                    self.at = Lsn(self.at.0.saturating_add(taken as u64));
                    bytes = &bytes[taken..];
                }
                Err(error) => {
                    self.failed = Some(error.clone());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Takes some bytes and says how many; at least one.
    fn step(&mut self, bytes: &[u8], sink: &mut impl RecordSink) -> Result<usize, WalError> {
        let segment_size = self.origin.segment_size.bytes();
        // What follows a switch belongs to no record; its pages need no header either.
        if self.verified > self.at && self.verified.0.is_multiple_of(segment_size) {
            return Ok(cut(bytes, self.verified.0 - self.at.0));
        }
        let begins_segment = self.at.0.is_multiple_of(segment_size);
        let Some(format) = self.format.filter(|format| {
            let page_start = self.at.0 & !(format.page_size - 1);
            self.at.0 - page_start >= header_length(page_start, segment_size)
        }) else {
            if begins_segment || self.format.is_some_and(|format| self.at.0.is_multiple_of(format.page_size))
            {
                self.have = 0;
            }
            return self.take_page_header(bytes);
        };
        let page = &bytes[..cut(bytes, format.page_size - (self.at.0 & (format.page_size - 1)))];
        if self.tail > 0 {
            return Ok(self.take_tail(page, sink));
        }
        if self.record.is_some() {
            return self.take_record(page, format, sink);
        }
        // Before the first record, or in the padding behind one.
        let start = self.first_record.max(self.verified);
        if self.at < start {
            return Ok(cut(page, start.0 - self.at.0));
        }
        let taken = self.take_whole_records(page, format, sink)?;
        if taken > 0 { Ok(taken) } else { self.take_record(page, format, sink) }
    }

    fn take_page_header(&mut self, bytes: &[u8]) -> Result<usize, WalError> {
        let page_start = self.at.0 - self.have as u64;
        let wanted = if page_start.is_multiple_of(self.origin.segment_size.bytes()) {
            LONG_HEADER
        } else {
            SHORT_HEADER
        };
        let taken = bytes.len().min(wanted - self.have);
        self.gathered[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
        self.have += taken;
        if self.have == wanted {
            self.check_page(Lsn(page_start), wanted == LONG_HEADER)?;
        }
        Ok(taken)
    }

    fn check_page(&mut self, at: Lsn, long: bool) -> Result<(), WalError> {
        let wrong = |what, found: &dyn ToString, expected: &dyn ToString| WalError::Page {
            at,
            what,
            found: found.to_string(),
            expected: expected.to_string(),
        };
        let magic = [self.gathered[0], self.gathered[1]];
        let order = match self.format {
            Some(format) => format.order,
            None => ByteOrder::of_magic(magic).ok_or_else(|| {
                wrong("magic", &format!("{:#06X}", u16::from_le_bytes(magic)), &"0xD1 and a version")
            })?,
        };
        let page = PageHeader::parse(&self.gathered, order);
        let magic = self.format.map(|format| format.magic).or(self.origin.magic).unwrap_or(page.magic);
        if page.magic != magic {
            let hex = |magic| format!("{magic:#06X}");
            return Err(wrong("magic", &hex(page.magic), &hex(magic)));
        }
        if page.flags & !ALL_FLAGS != 0 || (page.flags & LONG != 0) != long {
            let expected = if long { "those of a segment's first page" } else { "those of a later page" };
            return Err(wrong("flags", &format!("{:#06x}", page.flags), &expected));
        }
        if page.address != at {
            return Err(wrong("address", &page.address, &at));
        }
        let oldest = self.format.map_or(TimelineId(1), |format| format.timeline);
        if !(oldest..=self.origin.timeline).contains(&page.timeline) {
            return Err(wrong("timeline", &page.timeline, &format!("{oldest} to {}", self.origin.timeline)));
        }
        let known = self.format.map(|format| format.page_size).or(self.origin.page_size.map(u64::from));
        let mut page_size = known.unwrap_or_default();
        if long {
            let facts = SegmentFacts::parse(&self.gathered, order);
            let WalOrigin { system_identifier, segment_size, .. } = self.origin;
            if facts.system_identifier != system_identifier {
                return Err(wrong("system identifier", &facts.system_identifier, &system_identifier));
            }
            if u64::from(facts.segment_size) != segment_size.bytes() {
                return Err(wrong("segment size", &facts.segment_size, &segment_size.bytes()));
            }
            let found = u64::from(facts.page_size);
            let allowed = known.map_or(PAGE_SIZES, |size| size..=size);
            if !found.is_power_of_two() || !allowed.contains(&found) {
                let expected = format!("a power of two from {} to {}", allowed.start(), allowed.end());
                return Err(wrong("page size", &found, &expected));
            }
            page_size = found;
        }
        // What the server says of itself may be as wrong as what it sends.
        if !page_size.is_power_of_two() || !PAGE_SIZES.contains(&page_size) {
            let expected = format!("a power of two from {} to {}", PAGE_SIZES.start(), PAGE_SIZES.end());
            return Err(wrong("page size", &page_size, &expected));
        }
        self.format = Some(Format { order, magic: page.magic, page_size, timeline: page.timeline });
        self.check_continuation(at, &page, order)
    }

    /// A record that runs into a page goes on there, and only then.
    fn check_continuation(&mut self, at: Lsn, page: &PageHeader, order: ByteOrder) -> Result<(), WalError> {
        if Lsn(at.0.saturating_add(header_length(at.0, self.origin.segment_size.bytes()))) < self.first_record
        {
            return Ok(());
        }
        let first = std::mem::take(&mut self.searching);
        if first {
            self.before = Before {
                length: if page.flags & CONTINUES == 0 { 0 } else { page.remaining },
                cut_off: page.flags & OVERWRITES != 0,
            };
        }
        if first && page.flags & CONTINUES != 0 {
            if !(1..TOO_LONG).contains(&page.remaining) {
                return Err(WalError::Page {
                    at,
                    what: "the rest of a record that began before:",
                    found: format!("{} bytes", page.remaining),
                    expected: format!("1 to {} bytes", TOO_LONG - 1),
                });
            }
            self.tail = page.remaining;
            return Ok(());
        }
        let left = match &self.record {
            Some(record) => record.left(order).unwrap_or_default(),
            None => self.tail,
        };
        if left > 0 && page.flags & OVERWRITES != 0 {
            self.before.cut_off |= self.tail > 0;
            (self.record, self.tail) = (None, 0);
            return Ok(());
        }
        let rest = |length: Option<u32>| length.map_or("none".to_owned(), |length| format!("{length} bytes"));
        let found = (page.flags & CONTINUES != 0).then_some(page.remaining);
        let expected = (left > 0).then_some(left);
        if found == expected {
            return Ok(());
        }
        Err(WalError::Page {
            at,
            what: "the rest of a record that began before:",
            found: rest(found),
            expected: rest(expected),
        })
    }

    /// Takes what belongs to a record that began before, from the part of one page.
    fn take_tail(&mut self, page: &[u8], sink: &mut impl RecordSink) -> usize {
        let taken = page.len().min(self.tail as usize);
        let left = self.tail as usize;
        sink.rest(&page[..taken]);
        for (at, byte) in page[..taken].iter().enumerate().skip(left.saturating_sub(RECORD_HEADER)) {
            self.tail_bytes[RECORD_HEADER + at - left] = *byte;
        }
        self.tail -= u32::try_from(taken).unwrap_or(self.tail);
        if self.tail == 0 {
            let end = self.at.0.saturating_add(taken as u64);
            self.first_record = Lsn(end.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX));
            self.verified = self.first_record;
        }
        taken
    }

    /// Takes the records that lie whole in the part of one page, which begins where a record begins: most do, and
    /// nothing of these is copied. Returns the bytes that they take, 0 where the first is not whole.
    fn take_whole_records(
        &mut self,
        page: &[u8],
        format: Format,
        sink: &mut impl RecordSink,
    ) -> Result<usize, WalError> {
        let mut taken = 0;
        while let Some((header, rest)) = page[taken..].split_first_chunk::<RECORD_HEADER>() {
            let length = format.order.u32(header, 0);
            let Some(body) =
                (length as usize).checked_sub(RECORD_HEADER).and_then(|length| rest.get(..length))
            else {
                break;
            };
            let start = Lsn(self.at.0.saturating_add(taken as u64));
            let checked = self.check_link(start, format.order.u64(header, 8)).and_then(|()| {
                let crc = crc32c::crc32c(body);
                check_sums(start, checksums(header, crc, format.order))
            });
            let bytes = &page[taken..taken + length as usize];
            let ended = checked.and_then(|()| {
                let end = Lsn(start.0.saturating_add(length.into()));
                self.end_record(start, end, is_switch(header));
                sink.record(&Record::new(start, self.verified, bytes, format.order, format.magic))
            });
            if let Err(error) = ended {
                self.at = start;
                return Err(error);
            }
            taken += length as usize;
            if is_switch(header) {
                break;
            }
            // What is behind the last record's end, but for padding, is the next step's.
            taken = taken.next_multiple_of(8).min(page.len());
        }
        Ok(taken)
    }

    /// Takes what belongs to the record here, from the part of one page.
    fn take_record(
        &mut self,
        page: &[u8],
        format: Format,
        sink: &mut impl RecordSink,
    ) -> Result<usize, WalError> {
        let order = format.order;
        let mut record = match self.record.take() {
            Some(record) => record,
            None => {
                self.kept.clear();
                Partial::begin(self.at)
            }
        };
        let at = record.start;
        let taken = if record.has_header() {
            record.take_body(page, order)
        } else {
            let taken = record.take_header(page);
            // A segment switch may begin before what was here, and end within its last bytes.
            if record.length(order) == Some(0) && self.previous.is_none() && is_switch(&self.tail_bytes) {
                self.verified = Lsn(at.0.next_multiple_of(self.origin.segment_size.bytes()));
                return Ok(taken);
            }
            if let Some(length) = record.length(order)
                && (length >= TOO_LONG || (length as usize) < RECORD_HEADER)
            {
                let expected = format!("{RECORD_HEADER} to {}", TOO_LONG - 1);
                return Err(wrong_record(at, "length", &length, &expected));
            }
            if record.has_header() {
                self.check_link(at, record.previous(order).0)?;
            }
            taken
        };
        let room = sink.keep().saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&page[..taken.min(room)]);
        if !record.has_header() || record.left(order) != Some(0) {
            self.record = Some(record);
            return Ok(taken);
        }
        check_sums(at, record.checksums(order))?;
        let end = Lsn(self.at.0.saturating_add(taken as u64));
        self.end_record(at, end, record.ends_segment());
        if sink.keep() > 0 {
            sink.record(&Record::new(at, self.verified, &self.kept, order, format.magic))?;
            // One record of many megabytes does not set the memory for all others.
            self.kept.clear();
            self.kept.shrink_to(KEPT_FOR_NEXT);
        }
        Ok(taken)
    }

    fn check_link(&self, at: Lsn, found: u64) -> Result<(), WalError> {
        match self.previous {
            Some(previous) if previous.0 != found => {
                Err(wrong_record(at, "a link to", &Lsn(found), &previous))
            }
            None if found >= at.0 => Err(wrong_record(at, "a link to", &Lsn(found), &"the record before")),
            _ => Ok(()),
        }
    }

    fn end_record(&mut self, start: Lsn, end: Lsn, ends_segment: bool) {
        let boundary = if ends_segment { self.origin.segment_size.bytes() } else { ALIGNMENT };
        self.verified = Lsn(end.0.checked_next_multiple_of(boundary).unwrap_or(u64::MAX));
        self.previous = Some(start);
    }
}

/// Of the memory for a record in pieces, what is left for the next, in bytes.
const KEPT_FOR_NEXT: usize = 64 << 10;

/// Takes records of no one.
struct NoRecords;

impl RecordSink for NoRecords {
    fn keep(&self) -> usize {
        0
    }

    fn record(&mut self, _: &Record<'_>) -> Result<(), WalError> {
        Ok(())
    }
}

fn check_sums(at: Lsn, (expected, found): (u32, u32)) -> Result<(), WalError> {
    let hex = |checksum| format!("{checksum:08X}");
    if expected == found {
        return Ok(());
    }
    Err(wrong_record(at, "content with CRC-32C", &hex(found), &hex(expected)))
}

pub(super) fn wrong_record(
    at: Lsn,
    what: &'static str,
    found: &dyn ToString,
    expected: &dyn ToString,
) -> WalError {
    WalError::Record { at, what, found: found.to_string(), expected: expected.to_string() }
}

/// The bytes of the header of a page that begins there.
fn header_length(page_start: u64, segment_size: u64) -> u64 {
    (if page_start.is_multiple_of(segment_size) { LONG_HEADER } else { SHORT_HEADER }) as u64
}

/// The length of `bytes`, but no more than `limit`.
fn cut(bytes: &[u8], limit: u64) -> usize {
    usize::try_from(limit).map_or(bytes.len(), |limit| limit.min(bytes.len()))
}

#[cfg(test)]
pub(super) mod tests;
