//! How fast WAL is checked, decoded and summarized, its records' CRC-32C included, and how fast summaries merge. One core.
//!
//! The log is made here as a server makes it: pages, records that run through them, links and checksums. `small` is rows that
//! come one by one, of which each record has some 100 bytes; `mixed` has the image of a page in every sixteenth record, as a
//! server under load that checkpoints every few minutes; `images` little else, as just behind a checkpoint.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pgstrata_protocol::names::WalSegmentSize;
use pgstrata_protocol::summary::{BlockReferences, RelationFork, SummaryMerger};
use pgstrata_protocol::wal::{Record, RecordSink, StretchSummarizer, WalChecker, WalError, WalOrigin};
use pgstrata_protocol::{BlockNumber, Lsn, TimelineId};

/// A segment as everyone has it.
const SEGMENT: usize = 16 << 20;
/// A page of WAL.
const PAGE: usize = 8192;
/// What is read at a time.
const PIECE: usize = 1 << 20;
const SYSTEM: u64 = 7_345_678_901_234_567_890;
const START: u64 = 3 * SEGMENT as u64;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u32 {
        u32::try_from(self.next() % limit).expect("small")
    }
}

/// A segment whose records have an image in one of so many.
fn segment(images: u64) -> Vec<u8> {
    let (mut log, mut random) = (Vec::with_capacity(SEGMENT), Random(0x9E37_79B9_7F4A_7C15));
    let mut previous = START - 64;
    while log.len() + 3 * PAGE < SEGMENT {
        let begins_page = log.len().is_multiple_of(PAGE);
        if begins_page {
            page(&mut log, 0);
        }
        let start = START + log.len() as u64;
        let record = record(&mut random, previous, images);
        spread(&mut log, &record);
        previous = start;
        log.resize(log.len().next_multiple_of(8), 0);
    }
    if log.len().is_multiple_of(PAGE) {
        page(&mut log, 0);
    }
    // A switch leaves the rest unused.
    let switch = seal(previous, 0x40, 0, &[]);
    spread(&mut log, &switch);
    log.resize(SEGMENT, 0);
    log
}

fn page(log: &mut Vec<u8>, remaining: usize) {
    let at = START + log.len() as u64;
    let long = log.is_empty();
    let flags = u16::from(remaining > 0) | if long { 2 } else { 0 };
    log.extend(0xD118_u16.to_le_bytes());
    log.extend(flags.to_le_bytes());
    log.extend(1_u32.to_le_bytes());
    log.extend(at.to_le_bytes());
    log.extend(u32::try_from(remaining).expect("short").to_le_bytes());
    log.extend([0; 4]);
    if long {
        log.extend(SYSTEM.to_le_bytes());
        log.extend(u32::try_from(SEGMENT).expect("short").to_le_bytes());
        log.extend(u32::try_from(PAGE).expect("short").to_le_bytes());
    }
}

fn spread(log: &mut Vec<u8>, mut record: &[u8]) {
    while !record.is_empty() {
        if log.len().is_multiple_of(PAGE) {
            page(log, record.len());
        }
        let (now, later) = record.split_at(record.len().min(PAGE - log.len() % PAGE));
        log.extend_from_slice(now);
        record = later;
    }
}

/// The insertion of a row into one of eight tables, or of an entry into one of their indexes.
fn record(random: &mut Random, previous: u64, images: u64) -> Vec<u8> {
    let manager = if random.next() & 1 == 0 { 10 } else { 11 };
    let relation = 16384 + random.below(8) * 2 + u32::from(manager == 11);
    let block = random.below(40_000);
    let length = 20 + u16::try_from(random.below(60)).expect("short");
    let image = images > 0 && random.next().is_multiple_of(images);
    let mut body = vec![0, if image { 0x30 } else { 0x20 }];
    body.extend(length.to_le_bytes());
    let stored = 5000 + u16::try_from(random.below(3000)).expect("short");
    if image {
        body.extend(stored.to_le_bytes());
        body.extend(100_u16.to_le_bytes());
        body.push(0x03);
    }
    for number in [1663, 5, relation, block] {
        body.extend(number.to_le_bytes());
    }
    body.extend([255, 3]);
    let payload = usize::from(length) + if image { usize::from(stored) } else { 0 } + 3;
    let filled = body.len() + payload;
    while body.len() < filled {
        body.extend(random.next().to_le_bytes());
    }
    body.truncate(filled);
    seal(previous, 0, manager, &body)
}

fn seal(previous: u64, info: u8, manager: u8, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(24 + body.len());
    record.extend(u32::try_from(24 + body.len()).expect("short").to_le_bytes());
    record.extend(700_u32.to_le_bytes());
    record.extend(previous.to_le_bytes());
    record.extend([info, manager, 0, 0]);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(body), &record);
    record.extend(checksum.to_le_bytes());
    record.extend_from_slice(body);
    record
}

fn origin() -> WalOrigin {
    WalOrigin {
        system_identifier: SYSTEM,
        timeline: TimelineId(1),
        segment_size: WalSegmentSize::DEFAULT,
        magic: None,
        page_size: None,
    }
}

/// Counts records and the blocks that they name.
#[derive(Default)]
struct Count {
    records: u64,
    named: u64,
    blocks: Vec<pgstrata_protocol::wal::BlockReference>,
}

impl RecordSink for Count {
    fn record(&mut self, record: &Record<'_>) -> Result<(), WalError> {
        record.decode(&mut self.blocks)?;
        self.records += 1;
        self.named += self.blocks.len() as u64;
        Ok(())
    }
}

fn wal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal");
    group.throughput(Throughput::Bytes(SEGMENT as u64));
    for (name, images) in [("small", 0), ("mixed", 16), ("images", 1)] {
        let log = segment(images);
        group.bench_function(BenchmarkId::new("check", name), |bencher| {
            bencher.iter(|| {
                let mut checker = WalChecker::from_segment(origin(), Lsn(START));
                log.chunks(PIECE).for_each(|piece| checker.push(black_box(piece)).expect("sound"));
                checker.verified()
            });
        });
        group.bench_function(BenchmarkId::new("decode", name), |bencher| {
            bencher.iter(|| {
                let (mut checker, mut count) =
                    (WalChecker::from_segment(origin(), Lsn(START)), Count::default());
                log.chunks(PIECE)
                    .for_each(|piece| checker.push_to(black_box(piece), &mut count).expect("sound"));
                assert!(count.records > 1000);
                count.named
            });
        });
        group.bench_function(BenchmarkId::new("summarize", name), |bencher| {
            bencher.iter(|| {
                let mut summarizer = StretchSummarizer::new(origin(), Lsn(START), Lsn(u64::MAX));
                log.chunks(PIECE).for_each(|piece| summarizer.push(black_box(piece)).expect("sound"));
                summarizer.finish().expect("understood").references.len()
            });
        });
    }
    group.finish();
}

/// What a segment changed: some hot blocks, and others anywhere in 256 GB of tables.
fn changed(random: &mut Random) -> BlockReferences {
    let mut table = BlockReferences::new();
    for _ in 0..1500 {
        let relation = random.below(200);
        let fork = RelationFork { tablespace: 1663, database: 5, relation: 16384 + relation, fork: 0 };
        let block = if random.next() & 1 == 0 { random.below(2000) } else { random.below(160_000) };
        table.mark_block(fork, BlockNumber(block));
    }
    table
}

/// Months of WAL: 100,000 segments of 16 MiB, one by one, and as the tables of folders of 256.
fn merge(criterion: &mut Criterion) {
    const SEGMENTS: usize = 100_000;
    const FOLDER: usize = 256;
    const POOL: usize = 2048;
    let mut random = Random(0x0123_4567_89AB_CDEF);
    let bytes = |table: &BlockReferences| table.write(Vec::new()).expect("written").0;
    let tables: Vec<BlockReferences> = (0..POOL).map(|_| changed(&mut random)).collect();
    let segments: Vec<Vec<u8>> = tables.iter().map(bytes).collect();
    let folder = |chunk: &[BlockReferences]| {
        let mut all = BlockReferences::new();
        chunk.iter().for_each(|table| all.merge(table.clone()));
        bytes(&all)
    };
    let folders: Vec<Vec<u8>> = tables.chunks(FOLDER).map(folder).collect();
    let mut group = criterion.benchmark_group("merge");
    for (name, pool, count) in
        [("segments", &segments, SEGMENTS), ("folders", &folders, SEGMENTS.div_ceil(FOLDER))]
    {
        group.throughput(Throughput::Elements(SEGMENTS as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut all = BlockReferences::new();
                for file in pool.iter().cycle().take(count) {
                    let mut merger = SummaryMerger::new();
                    merger.feed(&mut all, black_box(file)).expect("sound");
                    merger.finish().expect("whole");
                }
                assert!(all.memory() < 200 << 20, "{} bytes", all.memory());
                all.len()
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(3));
    targets = wal, merge
}
criterion_main!(benches);
