//! WAL made for tests: segments of 1 MiB with records in them (`access/xlog_internal.h`, `access/xlogrecord.h`).

use std::fs;
use std::path::Path;

use pgstrata_protocol::manifest::WalRange;
use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::{Lsn, TimelineId};

pub(in crate::verify) const SEGMENT: u64 = 1 << 20;
const PAGE: u64 = 8192;

/// Some segments of one timeline, full of records from a position on; pages before it are empty.
pub(in crate::verify) struct MadeWal {
    identifier: u64,
    timeline: u32,
    /// The first segment's first position.
    base: u64,
    start: u64,
    end: u64,
    previous: u64,
    pub(in crate::verify) bytes: Vec<u8>,
}

impl MadeWal {
    /// Records from `start` on, until they reach into the last of so many segments.
    pub(in crate::verify) fn new(identifier: u64, timeline: u32, start: u64, segments: u64) -> Self {
        let base = start & !(SEGMENT - 1);
        let previous = start - 8;
        let mut made = Self { identifier, timeline, base, start, end: start, previous, bytes: Vec::new() };
        while made.at() < start {
            if made.at().is_multiple_of(PAGE) {
                made.page(0);
            }
            let left = (start - made.at()).min(PAGE - made.at() % PAGE);
            made.put_zeros(left);
        }
        let mut length = 100_u32;
        while made.end < base + (segments - 1) * SEGMENT + SEGMENT / 2 {
            made.record(length);
            length = (length * 7 + 13) % 20_000;
        }
        made
    }

    /// What a manifest would say of it.
    pub(in crate::verify) fn range(&self) -> WalRange {
        WalRange { timeline: TimelineId(self.timeline), start: Lsn(self.start), end: Lsn(self.end) }
    }

    /// The segments' names and contents, each of its full size.
    pub(in crate::verify) fn segments(&self) -> Vec<(String, Vec<u8>)> {
        let size = WalSegmentSize::new(SEGMENT).expect("a size of segments");
        let chunks = self.bytes.chunks(usize::try_from(SEGMENT).expect("small"));
        let named = chunks.enumerate().map(|(number, bytes)| {
            let number = self.base / SEGMENT + number as u64;
            let name = WalSegment { timeline: TimelineId(self.timeline), number }.file_name(size);
            let mut bytes = bytes.to_vec();
            bytes.resize(usize::try_from(SEGMENT).expect("small"), 0);
            (name, bytes)
        });
        named.collect()
    }

    /// Writes the segments as files.
    pub(in crate::verify) fn write_to(&self, folder: &Path) {
        for (name, bytes) in self.segments() {
            fs::write(folder.join(name), bytes).expect("written");
        }
    }

    fn at(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    fn put_zeros(&mut self, count: u64) {
        self.bytes.resize(self.bytes.len() + usize::try_from(count).expect("small"), 0);
    }

    /// A page's header, with the length of the record that runs into it.
    fn page(&mut self, remaining: u32) {
        let at = self.at();
        let long = at.is_multiple_of(SEGMENT);
        let flags = u16::from(remaining > 0) | if long { 2 } else { 0 };
        self.bytes.extend(0xD110_u16.to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(self.timeline.to_le_bytes());
        self.bytes.extend(at.to_le_bytes());
        self.bytes.extend(remaining.to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(self.identifier.to_le_bytes());
            self.bytes.extend(u32::try_from(SEGMENT).expect("small").to_le_bytes());
            self.bytes.extend(u32::try_from(PAGE).expect("small").to_le_bytes());
        }
    }

    /// A record with a body of so many bytes.
    fn record(&mut self, length: u32) {
        if self.at().is_multiple_of(PAGE) {
            self.page(0);
        }
        let start = self.at();
        let body: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).expect("small")).collect();
        let mut record = Vec::new();
        record.extend((length + 24).to_le_bytes());
        record.extend(700_u32.to_le_bytes());
        record.extend(self.previous.to_le_bytes());
        record.extend([0, 10, 0, 0]);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&body), &record);
        record.extend(checksum.to_le_bytes());
        record.extend(body);
        let mut rest = &record[..];
        while !rest.is_empty() {
            if self.at().is_multiple_of(PAGE) {
                self.page(u32::try_from(rest.len()).expect("small"));
            }
            let room = usize::try_from(PAGE - self.at() % PAGE).expect("small");
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.bytes.extend_from_slice(now);
            rest = later;
        }
        self.put_zeros(self.at().next_multiple_of(8) - self.at());
        (self.previous, self.end) = (start, self.at());
    }
}
