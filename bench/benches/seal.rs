//! What encryption costs a worker: frames appended to a pack as they are, and sealed. One core.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pgstrata::repository::{
    ContainerBuilder, FrameCompression, FrameEncoder, FrameKind, LocalStore, ObjectKind, Repository, Secret,
};

/// The engine's buffer, which is a frame.
const FRAME: usize = 256 << 10;
/// Frames of a pack.
const FRAMES: usize = 256;

/// A page's worth of text, then of noise, as tables are.
fn plain() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let noise = move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let noise: Vec<u8> = (0..FRAME / 8).flat_map(noise).collect();
    let text = b"a row of a table, and another; ".iter().cycle();
    let mixed = noise.chunks(4096).enumerate();
    let mixed = mixed.flat_map(|(at, chunk)| {
        if at % 2 == 0 { chunk.to_vec() } else { text.clone().take(chunk.len()).copied().collect() }
    });
    mixed.collect()
}

fn seal(criterion: &mut Criterion) {
    let scratch = tempfile::tempdir().expect("a folder");
    let key = scratch.path().join("key");
    Secret::generate_key_file(&key).expect("made");
    let secret = Secret::from_key_file(&key).expect("read");
    let make = |name: &str, recipient: Option<(&Secret, &str)>| {
        let store = Arc::new(LocalStore::new(scratch.path().join(name)));
        Repository::init_for(store, recipient).expect("made")
    };
    let repositories = [("open", make("open", None)), ("sealed", make("sealed", Some((&secret, ""))))];
    let plain = plain();
    let hash = [0; 32];
    let mut group = criterion.benchmark_group("frames");
    group.throughput(Throughput::Bytes((FRAME * FRAMES) as u64));
    for compression in [FrameCompression::None, FrameCompression::Zstd(1), FrameCompression::Lz4] {
        for (name, repository) in &repositories {
            group.bench_function(BenchmarkId::new(compression.to_string(), name), |bencher| {
                let mut encoder = FrameEncoder::new(compression).expect("memory");
                bencher.iter(|| {
                    let builder = ContainerBuilder::new(ObjectKind::Pack, "pack", repository.sealing());
                    let mut builder = builder.expect("begun");
                    for _ in 0..FRAMES {
                        let framed = builder.frame(&mut encoder, FrameKind::Data, black_box(&plain), hash);
                        black_box(framed.expect("packed").1);
                    }
                    black_box(builder.finish())
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = seal
}
criterion_main!(benches);
