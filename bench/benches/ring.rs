//! Disk back ends, the buffer pool, and the hand-over between threads.
//!
//! `PGSTRATA_BENCH_DIR` names the directory to write in (default: under the build directory), and
//! `PGSTRATA_BENCH_MIB` the MiB written per iteration (default 128). Each iteration creates a file, writes
//! it in 256 KiB blocks, syncs and removes it.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use pgstrata::buffer::BufferPool;
use pgstrata::ring::{Completion, Disk, DiskFile, IoMode, Operation, OperationKind, open_disk, probe};
use std::fs::File;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const BLOCK: usize = 256 << 10;
const DEPTH: usize = 16;
const HANDOVERS: u64 = 10_000;

fn folder() -> TempDir {
    let place = std::env::var_os("PGSTRATA_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    TempDir::with_prefix_in("pgstrata-bench-", place).expect("a directory to write in")
}

fn mebibytes() -> usize {
    std::env::var("PGSTRATA_BENCH_MIB")
        .ok()
        .map_or(128, |text| text.parse().expect("PGSTRATA_BENCH_MIB: MiB"))
}

/// Incompressible, and different for each block, so that no layer below can cheat.
fn fill(buffer: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for chunk in buffer.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
}

/// Writes one file with the queue kept full, and syncs it.
fn write_file(disk: &mut dyn Disk, pool: &BufferPool, file: &Arc<DiskFile>, bytes: usize) {
    let mut done: Vec<Completion> = Vec::with_capacity(DEPTH);
    let mut settle = |disk: &mut dyn Disk, wait| {
        disk.reap(wait, &mut done).expect("reap");
        for completion in done.drain(..) {
            completion.result.expect("the operation succeeds");
        }
    };
    for (token, offset) in (0u64..).zip((0..bytes).step_by(BLOCK)) {
        let buffer = loop {
            match pool.try_take() {
                Some(buffer) => break buffer,
                None => settle(disk, true),
            }
        };
        let mut buffer = buffer;
        buffer.set_len(BLOCK);
        let kind = OperationKind::Write { buffer, offset: offset as u64, length: BLOCK };
        assert!(disk.submit(Operation { token, file: Arc::clone(file), kind }).is_ok());
        settle(disk, false);
    }
    while disk.in_flight() > 0 {
        settle(disk, true);
    }
    let kind = OperationKind::Sync { data_only: true };
    assert!(disk.submit(Operation { token: 0, file: Arc::clone(file), kind }).is_ok());
    while disk.in_flight() > 0 {
        settle(disk, true);
    }
}

fn bench_writes(criterion: &mut Criterion) {
    let folder = folder();
    let bytes = mebibytes() << 20;
    let mut group = criterion.benchmark_group("write-and-sync");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    for mode in IoMode::ALL {
        match probe(folder.path(), Some(mode)) {
            Ok(report) => {
                for preallocated in [true, false] {
                    write_with(&mut group, &folder, mode, report.alignment, bytes, preallocated);
                }
            }
            Err(error) => println!("skipped: {error}"),
        }
    }
    group.finish();
}

fn write_with(
    group: &mut BenchmarkGroup<'_, WallTime>,
    folder: &TempDir,
    mode: IoMode,
    alignment: usize,
    bytes: usize,
    preallocated: bool,
) {
    let handle = File::open(folder.path()).expect("the directory");
    let pool = BufferPool::new(DEPTH, BLOCK).expect("a pool");
    let mut all: Vec<_> = (0..DEPTH).filter_map(|_| pool.take()).collect();
    for (seed, buffer) in (1u64..).zip(&mut all) {
        fill(buffer.as_mut_slice(), seed);
    }
    drop(all);
    let (mut disk, registered) = open_disk(mode, DEPTH, alignment, Some(&pool)).expect("a disk");
    println!("{mode}: registered buffers: {registered:?}");
    let name = format!("{mode}/{}", if preallocated { "preallocated" } else { "growing" });
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..iterations {
                let started = Instant::now();
                let file = Arc::new(DiskFile::create_new(&handle, "data", 0o600, mode).expect("create"));
                if preallocated {
                    file.preallocate(bytes as u64).expect("space");
                }
                write_file(&mut *disk, &pool, &file, bytes);
                elapsed += started.elapsed();
                std::fs::remove_file(folder.path().join("data")).expect("remove");
            }
            elapsed
        });
    });
}

fn bench_pool(criterion: &mut Criterion) {
    let pool = BufferPool::new(64, BLOCK).expect("a pool");
    let mut group = criterion.benchmark_group("pool");
    group.throughput(Throughput::Elements(1));
    group.bench_function("take-and-return", |bencher| bencher.iter(|| black_box(pool.take())));
    group.finish();
}

/// A buffer from the pool goes to another thread, which drops it: the path of every block.
fn bench_handover(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("handover");
    group.throughput(Throughput::Elements(HANDOVERS)).sample_size(20);
    group.bench_function("pool-and-channel", |bencher| {
        bencher.iter(|| {
            let pool = BufferPool::new(32, BLOCK).expect("a pool");
            let (sender, receiver) = crossbeam::channel::bounded(32);
            std::thread::scope(|scope| {
                scope.spawn(move || receiver.into_iter().for_each(drop));
                for _ in 0..HANDOVERS {
                    sender.send(pool.take()).expect("the receiver lives");
                }
                drop(sender);
            });
        });
    });
    group.finish();
}

/// What ringing costs while the owner is awake.
fn bench_doorbell(criterion: &mut Criterion) {
    let (disk, _) = open_disk(IoMode::Threads, 1, 1, None).expect("a disk");
    let bell = disk.doorbell();
    let mut group = criterion.benchmark_group("doorbell");
    group.throughput(Throughput::Elements(1));
    group.bench_function("ring-while-awake", |bencher| bencher.iter(|| bell.ring()));
    group.finish();
}

criterion_group!(benches, bench_writes, bench_pool, bench_handover, bench_doorbell);
criterion_main!(benches);
