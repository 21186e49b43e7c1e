//! WAL made here: the layout of `access/xlog_internal.h` written down a second time, by the other direction.

use proptest::prelude::*;

use super::*;
use crate::wal::SegmentStart;

pub(in crate::wal) const SEGMENT: u64 = 1 << 20;
pub(in crate::wal) const START: u64 = 5 * SEGMENT;
const SYSTEM: u64 = 7_345_678_901_234_567_890;

pub(in crate::wal) fn origin() -> WalOrigin {
    let segment_size = WalSegmentSize::new(SEGMENT).unwrap();
    WalOrigin {
        system_identifier: SYSTEM,
        timeline: TimelineId(3),
        segment_size,
        magic: Some(0xD118),
        page_size: None,
    }
}

/// Writes WAL from the beginning of a segment.
#[derive(Clone)]
pub(in crate::wal) struct Log {
    big_endian: bool,
    page_size: u64,
    pub(in crate::wal) bytes: Vec<u8>,
    previous: u64,
    /// The bits that a checksum or a comparison covers.
    covered: Vec<u8>,
    /// Where each record begins and ends.
    records: Vec<(u64, u64)>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("page_size", &self.page_size)
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

impl Log {
    pub(in crate::wal) fn new(page_size: u64) -> Self {
        Self::in_order(page_size, false)
    }

    fn in_order(page_size: u64, big_endian: bool) -> Self {
        let mut log = Log {
            big_endian,
            page_size,
            bytes: Vec::new(),
            previous: START - 64,
            covered: Vec::new(),
            records: Vec::new(),
        };
        log.page(0, 0);
        log
    }

    pub(in crate::wal) fn at(&self) -> u64 {
        START + self.bytes.len() as u64
    }

    fn number<const N: usize>(&self, mut little: [u8; N]) -> [u8; N] {
        if self.big_endian {
            little.reverse();
        }
        little
    }

    fn put(&mut self, bytes: &[u8], covered: bool) {
        self.bytes.extend_from_slice(bytes);
        self.covered.resize(self.bytes.len(), if covered { 0xFF } else { 0 });
    }

    /// Puts a number of which no harm comes from these bits.
    fn put_but_for<const N: usize>(&mut self, little: [u8; N], harmless: [u8; N]) {
        self.put(&self.number(little), true);
        let harmless = self.number(harmless);
        let begin = self.bytes.len() - N;
        for (covered, harmless) in self.covered[begin..].iter_mut().zip(harmless) {
            *covered &= !harmless;
        }
    }

    fn page(&mut self, flags: u16, remaining: u32) {
        let at = self.at();
        let long = at.is_multiple_of(SEGMENT);
        let flags = flags | if long { LONG } else { 0 };
        self.put(&self.number(0xD118_u16.to_le_bytes()), true);
        // BKP_REMOVABLE says nothing here, and nothing is overwritten where nothing continues.
        let harmless = if flags & CONTINUES == 0 { 0x4 | OVERWRITES } else { 0x4 };
        self.put_but_for(flags.to_le_bytes(), harmless.to_le_bytes());
        // The first page may be of any older timeline.
        let older = if self.bytes.len() < 40 { 3_u32 } else { 0 };
        self.put_but_for(3_u32.to_le_bytes(), older.to_le_bytes());
        self.put(&self.number(at.to_le_bytes()), true);
        // Without the flag the number means nothing.
        self.put(&self.number(remaining.to_le_bytes()), flags & CONTINUES != 0);
        self.put(&[0; 4], false);
        if long {
            self.put(&self.number(SYSTEM.to_le_bytes()), true);
            self.put(&self.number(u32::try_from(SEGMENT).unwrap().to_le_bytes()), true);
            self.put(&self.number(u32::try_from(self.page_size).unwrap().to_le_bytes()), true);
        }
    }

    fn record_bytes(&self, body: &[u8], manager: u8, info: u8) -> Vec<u8> {
        let mut header = Vec::new();
        header.extend(self.number((u32::try_from(body.len()).unwrap() + 24).to_le_bytes()));
        header.extend(self.number(77_u32.to_le_bytes()));
        header.extend(self.number(self.previous.to_le_bytes()));
        header.extend([info, manager, 0, 0]);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(body), &header);
        header.extend(self.number(checksum.to_le_bytes()));
        header.extend_from_slice(body);
        header
    }

    pub(in crate::wal) fn record(&mut self, body: &[u8], manager: u8, info: u8) {
        if self.at().is_multiple_of(self.page_size) {
            self.page(0, 0);
        }
        let (start, record) = (self.at(), self.record_bytes(body, manager, info));
        self.spread(&record);
        self.previous = start;
        self.records.push((start, self.at().next_multiple_of(8)));
        self.pad(8);
    }

    fn spread(&mut self, mut record: &[u8]) {
        while !record.is_empty() {
            if self.at().is_multiple_of(self.page_size) {
                self.page(CONTINUES, u32::try_from(record.len()).unwrap());
            }
            let room = usize::try_from(self.page_size - self.at() % self.page_size).unwrap();
            let (now, later) = record.split_at(room.min(record.len()));
            self.put(now, true);
            record = later;
        }
    }

    fn pad(&mut self, boundary: u64) {
        let length = self.at().next_multiple_of(boundary) - self.at();
        self.put(&vec![0; usize::try_from(length).unwrap()], false);
    }

    pub(in crate::wal) fn switch(&mut self) {
        self.record(&[], 0, 0x40);
        self.pad(SEGMENT);
        self.records.last_mut().unwrap().1 = self.at();
    }

    fn checker(&self) -> WalChecker {
        WalChecker::new(origin(), Lsn(START + 40))
    }
}

fn body(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| seed.wrapping_mul(31).wrapping_add(u8::try_from(at % 251).unwrap())).collect()
}

#[test]
fn records_are_verified_as_they_end() {
    let mut log = Log::new(8192);
    log.record(&[], 0, 0);
    log.record(&body(100, 1), 10, 0);
    log.record(&body(50_000, 2), 10, 0);
    let mut checker = log.checker();
    let mut ends = log.records.iter().map(|(_, end)| Lsn(*end));
    let mut next = ends.next();
    for byte in &log.bytes {
        let before = checker.verified();
        checker.push(&[*byte]).unwrap();
        if checker.verified() != before {
            assert_eq!(Some(checker.verified()), next);
            next = ends.next();
        }
    }
    assert_eq!(next, None);
    assert_eq!(checker.position(), Lsn(log.at()));
}

#[test]
fn a_switch_leaves_the_rest_of_a_segment_unused() {
    let mut log = Log::new(8192);
    log.record(&body(9000, 1), 10, 0);
    log.switch();
    assert_eq!(log.at(), START + SEGMENT);
    log.record(&body(10, 1), 10, 0);
    let mut checker = log.checker();
    let part = log.records[1].0 + 24 - START;
    let (first, rest) = log.bytes.split_at(usize::try_from(part).unwrap());
    checker.push(first).unwrap();
    assert_eq!(checker.verified(), Lsn(START + SEGMENT));
    checker.push(rest).unwrap();
    assert_eq!(checker.verified(), Lsn(log.records[2].1));
}

#[test]
fn a_record_that_a_crash_cut_off_is_left_out() {
    let mut log = Log::new(8192);
    log.record(&body(100, 1), 10, 0);
    let broken = log.record_bytes(&body(20_000, 2), 10, 0);
    let room = usize::try_from(8192 - log.at() % 8192).unwrap();
    log.spread(&broken[..room]);
    let verified = log.records[0].1;
    log.page(OVERWRITES, 0);
    let mut checker = log.checker();
    checker.push(&log.bytes).unwrap();
    assert_eq!(checker.verified(), Lsn(verified));
    let written = log.bytes.len();
    log.record(&body(16, 3), 0, 0xD0);
    checker.push(&log.bytes[written..]).unwrap();
    assert_eq!(checker.verified(), Lsn(log.records[1].1));
}

#[test]
fn what_comes_before_the_first_record_is_not_read_as_records() {
    let mut log = Log::new(8192);
    log.record(&body(30_000, 1), 10, 0);
    log.record(&body(100, 2), 10, 0);
    // Something that is no record, in the middle of the first.
    log.bytes[10_000] ^= 1;
    let mut checker = WalChecker::new(origin(), Lsn(log.records[1].0));
    checker.push(&log.bytes).unwrap();
    assert_eq!(checker.verified(), Lsn(log.records[1].1));
    let error = log.checker().push(&log.bytes).unwrap_err().to_string();
    assert!(error.starts_with("WAL record at 0/500028: found content with CRC-32C "), "{error}");
}

/// A log of several segments, and where the second begins in it.
fn second_segment(log: &Log) -> &[u8] {
    &log.bytes[usize::try_from(SEGMENT).unwrap()..]
}

#[test]
fn a_stream_may_begin_within_a_record() {
    for length in [100, 20_000, 1_200_000] {
        let mut log = Log::new(8192);
        log.record(&body(1_000_000, 1), 10, 0);
        while log.at() < START + SEGMENT - 4000 {
            log.record(&body(2000, 2), 10, 0);
        }
        log.record(&body(4000 + length, 3), 10, 0);
        let end = log.records.last().unwrap().1;
        log.record(&body(9000, 4), 10, 0);
        log.record(&[], 10, 0);
        let from = (end - START) / SEGMENT;
        let beginning = START + from * SEGMENT;
        let bytes = &log.bytes[usize::try_from(beginning - START).unwrap()..];
        let mut checker = WalChecker::from_segment(origin(), Lsn(beginning));
        for (at, byte) in bytes.iter().enumerate() {
            let before = checker.verified();
            checker.push(&[*byte]).unwrap();
            // Nothing is verified before the first record that began here has ended, but for where it begins.
            if checker.verified() != before {
                assert!(checker.verified().0 >= end, "{at}");
            }
        }
        assert_eq!(checker.verified(), Lsn(log.records.last().unwrap().1));
        // Every record from the first that begins here is checked, and so is the length of the rest before it.
        for at in [end + 30, end + 8800, beginning + 16] {
            let mut damaged = bytes.to_vec();
            damaged[usize::try_from(at - beginning).unwrap()] ^= 8;
            let mut checker = WalChecker::from_segment(origin(), Lsn(beginning));
            assert!(checker.push(&damaged).is_err(), "{length}: {at:X}");
        }
    }
}

#[test]
fn a_stream_may_begin_within_a_segment_switch() {
    for room in [8, 16] {
        let mut log = Log::new(8192);
        while SEGMENT - log.at() % SEGMENT > 9000 {
            log.record(&body(1000, 2), 10, 0);
        }
        let left = usize::try_from(SEGMENT - log.at() % SEGMENT).unwrap();
        // One header of a page lies between, unless the last page has begun.
        let header = if left > 8192 { 24 } else { 0 };
        log.record(&body(left - header - 24 - room, 2), 10, 0);
        assert_eq!(SEGMENT - log.at() % SEGMENT, room as u64);
        log.switch();
        assert_eq!(log.at(), START + 2 * SEGMENT);
        log.record(&body(10, 1), 10, 0);
        log.checker().push(&log.bytes).unwrap();
        let mut checker = WalChecker::from_segment(origin(), Lsn(START + SEGMENT));
        checker.push(second_segment(&log)).unwrap();
        assert_eq!(checker.verified(), Lsn(log.records.last().unwrap().1));
    }
}

#[test]
fn a_stream_may_begin_where_a_crash_cut_off_a_record() {
    let mut log = Log::new(8192);
    log.record(&body(1_000_000, 1), 10, 0);
    let broken = log.record_bytes(&body(200_000, 2), 10, 0);
    log.spread(&broken);
    log.bytes.truncate(usize::try_from(SEGMENT).unwrap());
    log.covered.truncate(log.bytes.len());
    for continued in [false, true] {
        let mut log = log.clone();
        if continued {
            // A page of the record was written before the crash.
            let left = 100_000;
            log.page(CONTINUES, left);
            log.put(&[7; 8192 - 40], false);
        }
        log.page(OVERWRITES, 0);
        log.record(&body(16, 3), 0, 0xD0);
        log.record(&body(16, 3), 10, 0);
        let mut checker = WalChecker::from_segment(origin(), Lsn(START + SEGMENT));
        checker.push(second_segment(&log)).unwrap();
        assert_eq!(checker.verified(), Lsn(log.records.last().unwrap().1));
    }
}

#[test]
fn the_origin_is_checked() {
    let log = Log::new(8192);
    let other = |change: fn(&mut WalOrigin)| {
        let mut origin = origin();
        change(&mut origin);
        WalChecker::new(origin, Lsn(START + 40)).push(&log.bytes).unwrap_err().to_string()
    };
    assert_eq!(
        other(|origin| origin.system_identifier = 5),
        "WAL page at 0/500000: found system identifier 7345678901234567890, expected 5"
    );
    assert_eq!(
        other(|origin| origin.timeline = TimelineId(2)),
        "WAL page at 0/500000: found timeline 3, expected 1 to 2"
    );
    // A page of an older timeline is one that was copied into this.
    let origin = WalOrigin { timeline: TimelineId(4), ..origin() };
    WalChecker::new(origin, Lsn(START + 40)).push(&log.bytes).unwrap();
}

#[test]
fn zeros_are_no_wal() {
    let mut checker = Log::new(8192).checker();
    let error = checker.push(&[0; 100]).unwrap_err();
    assert_eq!(error.to_string(), "WAL page at 0/500000: found magic 0x0000, expected 0xD1 and a version");
    assert_eq!(checker.push(&[]), Err(error));
    let mut log = Log::new(8192);
    log.record(&body(10, 1), 10, 0);
    log.put(&[0; 24], false);
    let error = log.checker().push(&log.bytes).unwrap_err().to_string();
    assert_eq!(error, "WAL record at 0/500050: found length 0, expected 24 to 1073741823");
}

#[test]
fn the_last_position_there_is_ends_nothing_in_a_loop() {
    let mut checker = WalChecker::new(origin(), Lsn(u64::MAX));
    assert!(checker.push(&[0; 4096]).is_err());
    checker = WalChecker::new(origin(), Lsn(u64::MAX));
    checker.at = Lsn(u64::MAX - 2);
    checker.format =
        Some(Format { order: ByteOrder::Little, magic: 0, page_size: 8192, timeline: TimelineId(1) });
    let _ = checker.push(&[1; 4096]);
}

#[test]
fn pages_before_the_first_record_can_be_left_out() {
    let mut log = Log::new(8192);
    log.record(&body(40_000, 1), 10, 0);
    log.record(&body(20_000, 2), 10, 0);
    let (start, end) = log.records[1];
    // Nobody reads this.
    log.bytes[17_000] ^= 0xFF;
    let mut checker = WalChecker::new(origin(), Lsn(start));
    assert_eq!(checker.skip_to_first_record(), Lsn(START));
    checker.push(&log.bytes[..40]).unwrap();
    let page = checker.skip_to_first_record();
    assert_eq!(page, Lsn(start & !8191));
    assert_eq!(checker.skip_to_first_record(), page);
    for byte in &log.bytes[usize::try_from(page.0 - START).unwrap()..] {
        checker.push(&[*byte]).unwrap();
    }
    assert_eq!(checker.verified(), Lsn(end));
    checker.finish(Lsn(end)).unwrap();
}

#[test]
fn an_end_is_where_a_record_ends() {
    let mut log = Log::new(8192);
    log.record(&body(100, 1), 10, 0);
    log.record(&body(10_000, 2), 10, 0);
    let [first, second] = [log.records[0], log.records[1]].map(|(_, end)| end);
    let judge = |taken: u64, end: u64| {
        let mut checker = log.checker();
        checker.push(&log.bytes[..usize::try_from(taken - START).unwrap()]).unwrap();
        checker.finish(Lsn(end)).map_err(|error| error.to_string())
    };
    assert_eq!((judge(first, first), judge(second, second)), (Ok(()), Ok(())));
    assert_eq!(
        judge(first + 64, first + 64).unwrap_err(),
        "WAL record at 0/5000A8: found no end in the bytes up to 0/5000E8 for its length 10024, \
         expected it at or before 0/5000E8"
    );
    assert!(
        judge(first, second).unwrap_err().starts_with("WAL record at 0/5000A8: found no end in the bytes")
    );
    // Behind the header of a page that is empty yet.
    let mut log = Log::new(8192);
    log.record(&body(8192 - 40 - 24, 1), 10, 0);
    assert_eq!(log.at(), START + 8192);
    log.page(0, 0);
    let mut checker = log.checker();
    checker.push(&log.bytes[..8192]).unwrap();
    checker.finish(Lsn(START + 8192)).unwrap();
    assert!(checker.finish(Lsn(START + 8192 + 24)).is_err());
    checker.push(&log.bytes[8192..]).unwrap();
    checker.finish(Lsn(START + 8192 + 24)).unwrap();
}

#[test]
fn a_segments_first_page_names_its_cluster() {
    for big_endian in [false, true] {
        let log = Log::in_order(8192, big_endian);
        let header: [u8; SegmentStart::LENGTH] = log.bytes[..40].try_into().unwrap();
        let expected = SegmentStart {
            system_identifier: SYSTEM,
            segment_size: WalSegmentSize::new(SEGMENT).unwrap(),
            address: Lsn(START),
            timeline: TimelineId(3),
        };
        assert_eq!(SegmentStart::parse(&header), Some(expected));
        // No magic, no long header, no size of a segment.
        for (at, flip) in [(usize::from(!big_endian), 0x10), (2 + usize::from(big_endian), 2), (33, 1)] {
            let mut damaged = header;
            damaged[at] ^= flip;
            assert_eq!(SegmentStart::parse(&damaged), None, "{at}");
        }
    }
}

fn logs() -> impl Strategy<Value = Log> {
    let record = (prop_oneof![0..40_usize, 0..3000_usize, 0..40_000_usize], any::<u8>(), 0..30_u8);
    (prop::collection::vec(record, 1..40), 10..14_u32, any::<bool>()).prop_map(
        |(records, page_size, big_endian)| {
            let mut log = Log::in_order(1 << page_size, big_endian);
            for (length, seed, kind) in records {
                if kind == 0 {
                    log.switch();
                } else {
                    log.record(&body(length, seed), 10, 0x40);
                }
            }
            log
        },
    )
}

proptest! {
    #[test]
    fn good_wal_is_verified_however_it_is_cut(log in logs(), cuts in prop::collection::vec(1..9000_usize, 1..50)) {
        let mut checker = log.checker();
        let (mut rest, mut cuts) = (&log.bytes[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            checker.push(now).unwrap();
            rest = later;
        }
        prop_assert_eq!(checker.verified(), Lsn(log.records.last().unwrap().1));
    }

    #[test]
    fn no_bit_that_matters_changes_unnoticed(log in logs(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let at = at.index(log.bytes.len());
        let mut changed = log.bytes.clone();
        changed[at] ^= 1 << bit;
        let mut checker = log.checker();
        let end = Lsn(log.records.last().unwrap().1);
        let noticed = checker.push(&changed).is_err() || checker.verified() < end;
        // Behind a switch record, and in padding, nothing is covered; elsewhere all is.
        prop_assert!(noticed || log.covered[at] & 1 << bit == 0, "bit {bit} of byte {at}");
    }

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), keep in 0..60_usize) {
        let mut log = Log::new(1024);
        log.record(&body(2000, 1), 10, 0);
        let keep = keep * 20;
        let mut checker = log.checker();
        let _ = checker.push(&log.bytes[..keep]).and_then(|()| checker.push(&bytes));
        prop_assert!(checker.verified() <= Lsn(log.records[0].1.max(log.at())));
    }
}

#[test]
fn pages_that_no_server_has_are_refused() {
    for size in [0, 16, 32, 512, 1 << 17] {
        let mut log = Log::new(8192);
        log.bytes[36..40].copy_from_slice(&u32::to_le_bytes(size));
        // Even where the server says the same of itself.
        let origin = WalOrigin { page_size: Some(size), ..origin() };
        let error = WalChecker::new(origin, Lsn(START + 40)).push(&log.bytes).unwrap_err();
        assert!(error.to_string().contains("page size"), "{size}: {error}");
    }
}
