//! How fast bytes pass the codecs of the data path, and the checksums that are computed on the way. One core.
//!
//! Input stays in the processor's caches only where it does so in the engine: streams are larger, buffers are not.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pgstrata_protocol::basebackup::{ArchiveDecoder, ArchiveEvent};
use pgstrata_protocol::manifest::{
    Checksum, ChecksumAlgorithm, ManifestFile, ManifestVersion, ManifestWriter, ModifiedTime, read_manifest,
};
use pgstrata_protocol::page::{PAGE_SIZE, check_page, page_checksum};
use pgstrata_protocol::tar::{END_OF_ARCHIVE, MemberHeader, MemberPath, TarDecoder, TarEvent, padding_for};
use pgstrata_protocol::wire::{Frame, FrameDecoder};
use pgstrata_protocol::{BlockNumber, Lsn};

/// What a server puts into one message at most (`SINK_BUFFER_LENGTH`, `backup/basebackup_sink.h`).
const MESSAGE: usize = 32 << 10;
/// What a large receive delivers.
const RECEIVE: usize = 1 << 20;
/// Enough to leave the last level of cache.
const STREAM: usize = 64 << 20;
/// The engine's buffer.
const BUFFER: usize = 256 << 10;

/// Bytes without a pattern that any of the codecs could use; the same in every run.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn message(tag: u8, parts: &[&[u8]], out: &mut Vec<u8>) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.push(tag);
    out.extend_from_slice(&u32::try_from(length + 4).expect("short").to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// A tar archive of relation files, as a server sends it: one of many pages, then many of few.
fn archive(length: usize) -> Vec<u8> {
    let content = noise(length);
    let sizes = std::iter::once(length / 2).chain(std::iter::repeat(24 << 10));
    let (mut out, mut at) = (Vec::with_capacity(length + length / 8), 0);
    for (number, size) in sizes.enumerate() {
        if at + size > content.len() {
            break;
        }
        let path = MemberPath::parse(format!("base/5/{}", 16384 + number).as_bytes()).expect("a path");
        let header = MemberHeader::file(&path, size as u64, 0o600, 1_700_000_000).expect("a short name");
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&content[at..at + size]);
        out.resize(out.len() + padding_for(size as u64), 0);
        at += size;
    }
    out.extend_from_slice(&END_OF_ARCHIVE);
    out
}

/// The copy stream of a base backup.
fn copy_stream(archive: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(archive.len() + archive.len() / 1024);
    message(b'd', &[b"nbase.tar\0\0"], &mut out);
    for piece in archive.chunks(MESSAGE) {
        message(b'd', &[b"d", piece], &mut out);
    }
    message(b'c', &[], &mut out);
    out
}

fn decoding(c: &mut Criterion) {
    let archive = archive(STREAM);
    let stream = copy_stream(&archive);
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes(stream.len() as u64));

    group.bench_function("frames", |b| {
        b.iter(|| {
            let (mut decoder, mut bytes) = (FrameDecoder::new(), 0);
            for mut piece in stream.chunks(RECEIVE) {
                while let Some(frame) = decoder.next(&mut piece).expect("a sound stream") {
                    if let Frame::CopyData { chunk, .. } = frame {
                        bytes += black_box(chunk).len();
                    }
                }
            }
            bytes
        });
    });

    group.bench_function("frames, archive and tar", |b| {
        b.iter(|| {
            let (mut frames, mut archives, mut tar) =
                (FrameDecoder::new(), ArchiveDecoder::new(), TarDecoder::new());
            let (mut members, mut bytes) = (0, 0);
            for mut piece in stream.chunks(RECEIVE) {
                while let Some(frame) = frames.next(&mut piece).expect("a sound stream") {
                    let Frame::CopyData { chunk, first, last } = frame else { continue };
                    let event = archives.push(chunk, first, last).expect("a sound stream");
                    let Some(ArchiveEvent::Data(mut data)) = event else { continue };
                    while let Some(event) = tar.next(&mut data).expect("a sound archive") {
                        match event {
                            TarEvent::Member(member) => members += usize::from(!member.path.is_root()),
                            TarEvent::Data(content) => bytes += black_box(content).len(),
                            TarEvent::MemberEnd => {}
                        }
                    }
                }
            }
            (members, bytes)
        });
    });

    group.throughput(Throughput::Bytes(archive.len() as u64));
    group.bench_function("tar", |b| {
        b.iter(|| {
            let (mut tar, mut bytes) = (TarDecoder::new(), 0);
            for mut piece in archive.chunks(MESSAGE) {
                while let Some(event) = tar.next(&mut piece).expect("a sound archive") {
                    if let TarEvent::Data(content) = event {
                        bytes += black_box(content).len();
                    }
                }
            }
            bytes
        });
    });
    group.finish();
}

fn manifest(c: &mut Criterion) {
    const FILES: u64 = 100_000;
    let mut writer = ManifestWriter::new(Vec::new(), ManifestVersion::One, false);
    for number in 0..FILES {
        let mut checksum = Checksum::new(ChecksumAlgorithm::Crc32c);
        checksum.update(&number.to_le_bytes());
        let file = ManifestFile {
            path: format!("base/16384/{}", 16384 + number).into_bytes(),
            size: 8192,
            modified: ModifiedTime(1_700_000_000),
            checksum: Some((ChecksumAlgorithm::Crc32c, checksum.finish())),
        };
        writer.file(&file).expect("a Vec takes all");
    }
    let manifest = writer.finish(&[]).expect("a Vec takes all").sink;
    let mut group = c.benchmark_group("manifest");
    group.throughput(Throughput::Elements(FILES));
    group.bench_function("read, files", |b| {
        b.iter(|| {
            read_manifest::<_, std::convert::Infallible>(&manifest[..], &mut |event| {
                black_box(event);
                Ok(())
            })
            .expect("a sound manifest")
            .files
        });
    });
    group.finish();
}

fn pages(c: &mut Criterion) {
    const PAGES: u32 = 4096;
    let mut pages: Vec<[u8; PAGE_SIZE]> = noise(PAGE_SIZE * PAGES as usize)
        .chunks_exact(PAGE_SIZE)
        .map(|page| page.try_into().expect("a whole page"))
        .collect();
    for (block, page) in (0..).map(BlockNumber).zip(&mut pages) {
        page[..8].fill(0);
        page[14..16].copy_from_slice(&8000_u16.to_le_bytes()); // pd_upper: not a new page
        let checksum = page_checksum(page, block);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
    }
    let mut group = c.benchmark_group("page");
    group.throughput(Throughput::Bytes(PAGE_SIZE as u64 * u64::from(PAGES)));
    group.bench_function("check", |b| {
        b.iter(|| {
            let good = |(page, block)| check_page(page, block, Lsn(1)).is_ok();
            let count = pages.iter().zip((0..).map(BlockNumber)).filter(|pair| good(*pair)).count();
            assert_eq!(count, PAGES as usize);
        });
    });
    group.finish();
}

fn checksums(c: &mut Criterion) {
    let buffer = noise(BUFFER);
    let mut group = c.benchmark_group("checksum");
    group.throughput(Throughput::Bytes(BUFFER as u64));
    use ChecksumAlgorithm::{Crc32c, Sha224, Sha256, Sha384, Sha512};
    for algorithm in [Crc32c, Sha224, Sha256, Sha384, Sha512] {
        group.bench_with_input(BenchmarkId::from_parameter(algorithm), &buffer, |b, buffer| {
            b.iter(|| {
                let mut checksum = Checksum::new(algorithm);
                checksum.update(black_box(buffer));
                checksum.finish()
            });
        });
    }
    let parts = [crc32c::crc32c(&buffer), crc32c::crc32c(&buffer[1..])];
    group.throughput(Throughput::Elements(1));
    group.bench_function("CRC32C, join two parts of 32 MiB", |b| {
        b.iter(|| crc32c::crc32c_combine(black_box(parts[0]), black_box(parts[1]), 32 << 20));
    });
    group.finish();
}

criterion_group! {
    name = codecs;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = decoding, manifest, pages, checksums
}
criterion_main!(codecs);
