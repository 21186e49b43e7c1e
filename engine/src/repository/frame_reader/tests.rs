//! Maps that alternate, disks that fail, packs that are not what they were.

use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::json;

use super::super::container::{FrameKind, ObjectKind};
use super::super::local::LocalStore;
use super::super::manifest::ManifestWriter;
use super::super::names::{BackupId, ClusterName, PackId};
use super::super::object_writer::ObjectWriter;
use super::super::place::{BackupChoice, Repository};
use super::super::records::{BLOCK, Extent, FileRecord, FolderRecord, PackRecord};
use super::*;
use crate::buffer::BufferPool;
use crate::restore::{RestoreConfig, RestoreOptions, RestoreReport, RestoreResources, run};
use crate::ring::{FaultKind, FaultPlan, open_faulty_disk};
use crate::stop::Stop;

/// Plain bytes of a frame, and blocks of it.
const FRAME: usize = 256 << 10;
const BLOCKS: u32 = 32;

fn cluster() -> ClusterName {
    "main".parse().expect("valid")
}

/// The bytes of a frame: no two are alike, nor two blocks of one.
fn content(pack: u32, frame: u32) -> Vec<u8> {
    let mut seed = u64::from(pack) << 32 | u64::from(frame);
    let word = || {
        // Steele, Lea and Flood: SplitMix64.
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).to_le_bytes()
    };
    std::iter::repeat_with(word).take(FRAME / 8).flatten().collect()
}

/// A backup of packs with so many frames each, and of a file with this map beside what every backup has.
fn write(root: &Path, packs: &[u32], map: Vec<Extent>) -> Repository {
    let repository = Repository::init(Arc::new(LocalStore::new(root))).expect("made");
    let (cluster, backup) = (cluster(), BackupId { seconds: 1_795_676_451, random: 1 });
    repository.claim_identity(&cluster, 7).expect("free");
    let mut records = Vec::new();
    for (number, frames) in (0u32..).zip(packs) {
        let id = PackId { backup, number };
        let mut pack = ObjectWriter::begin(&repository, ObjectKind::Pack, &cluster.pack(id)).expect("begun");
        for frame in 0..*frames {
            pack.frame(FrameKind::Data, &content(number, frame)).expect("written");
        }
        let built = pack.publish().expect("published").expect("free");
        let (length, checksum) = (built.length, built.checksum);
        records.push(PackRecord { id, length, frames: built.frames, checksum, needed: true });
    }
    let size = map.iter().map(|extent| u64::from(extent.count) * BLOCK).sum();
    let mut manifest = ManifestWriter::begin(&repository, &cluster.manifest(backup)).expect("begun");
    let small = vec![Extent { block: 0, count: 1, pack: 0, frame: 0, offset: 0 }];
    for (path, size, map) in
        [("base/1", size, map), ("global/pg_control", 10, small.clone()), ("backup_manifest", 10, small)]
    {
        let path = path.as_bytes().to_vec();
        manifest.file(&FileRecord { path, mode: 0o600, owner: 0, size, modified: 0, map }).expect("valid");
    }
    let folder = |path: &str| FolderRecord { path: path.as_bytes().to_vec(), mode: 0o700, owner: 0 };
    let summary = json!({
        "cluster": "main", "backup": backup.to_string(), "parent": null, "program": "x", "source": "stream",
        "server_version": "15", "system_identifier": "7", "wal_segment_size": 1, "start_lsn": "0/1",
        "start_timeline": 1, "end_lsn": "0/2", "end_timeline": 1, "label": "", "started": 1, "ended": 2,
        "compression": "none", "folder_mode": 0o700, "files": 3, "bytes": size + 20, "wal_bytes": 0,
        "stored_bytes": 0, "tablespaces": [], "requires": [],
    });
    let summary = serde_json::from_value(summary).expect("a summary");
    let published = manifest.commit(&[folder("base"), folder("global")], &records, &summary);
    published.expect("published").expect("free");
    repository
}

fn restore(repository: &Repository, target: &Path, buffers: usize) -> RestoreReport {
    let config = RestoreConfig {
        repository: repository.clone(),
        cluster: cluster(),
        backup: BackupChoice::Latest,
        target: target.to_owned(),
        tablespace_mapping: Vec::new(),
        recovery: None,
        options: RestoreOptions::default(),
        resources: RestoreResources { buffers, ..RestoreResources::for_cores(2) },
    };
    run(&config, &|_| {}, &Stop::new()).expect("restored")
}

fn reader(repository: &Repository) -> FrameReader {
    let manifest = repository.backup(&cluster(), BackupChoice::Latest).expect("there");
    let access = FrameAccess::choose(&manifest, None, 8 << 20, 1);
    assert!(access.memory() > 0, "a file can be read ahead everywhere");
    FrameReader::of(&Arc::new(manifest), &access).expect("memory")
}

/// A file of which each second block has changed, over two generations of changes: what did not change lies in frames
/// of its neighbours, changed blocks lie side by side.
#[test]
fn an_alternating_map_takes_each_frame_once() {
    let (old, blocks) = (40u32, 40 * BLOCKS);
    // Where changed blocks of each generation go next.
    let mut next = [0u32; 3];
    let mut map = Vec::new();
    let mut expected = Vec::new();
    for block in 0..blocks {
        let pack = [0, 1, 0, 2][block as usize % 4];
        let place = if pack == 0 { block } else { next[pack as usize] };
        next[pack as usize] += 1;
        let (frame, offset) = (place / BLOCKS, (place % BLOCKS) * 8192);
        map.push(Extent { block, count: 1, pack, frame, offset });
        expected.push((pack, frame, offset as usize));
    }
    let changed = next[1].div_ceil(BLOCKS);
    let scratch = tempfile::tempdir().expect("a folder");
    let repository = write(&scratch.path().join("r"), &[old, changed, changed], map);
    // With memory for reading ahead, and without.
    for buffers in [128, 8] {
        let target = scratch.path().join(format!("copy-{buffers}"));
        let report = restore(&repository, &target, buffers);
        // One more of each for a second worker's small files.
        let most = u64::from(old + 2 * changed) + 2;
        assert!((u64::from(old + 2 * changed)..=most).contains(&report.frames), "{} frames", report.frames);
        let restored = std::fs::read(target.join("base/1")).expect("there");
        assert_eq!(restored.len(), blocks as usize * 8192);
        let mut frames = std::collections::HashMap::new();
        for (block, (pack, frame, offset)) in restored.chunks(8192).zip(&expected) {
            let frame = frames.entry((*pack, *frame)).or_insert_with(|| content(*pack, *frame));
            assert!(*block == frame[*offset..offset + 8192]);
        }
    }
}

/// As a long file is read whose frames come once, some with others between them.
fn wanted() -> Vec<Key> {
    let plain = (0..30).map(|frame| (0, frame));
    let repeated = [(0, 3), (1, 0), (1, 1), (1, 0), (0, 29), (1, 2), (1, 0)];
    plain.chain(repeated).chain((3..8).map(|frame| (1, frame))).collect()
}

fn check(reader: &mut FrameReader, wanted: &[Key]) {
    for (pack, frame) in wanted {
        reader.expect(*pack, *frame);
    }
    let mut whole = vec![0; FRAME];
    for (number, (pack, frame)) in wanted.iter().enumerate() {
        if number % 3 == 0 {
            assert!(reader.frame(*pack, *frame).expect("whole") == content(*pack, *frame));
        } else {
            reader.frame_into(*pack, *frame, &mut whole).expect("whole");
            assert!(whole == content(*pack, *frame));
        }
    }
    assert!(reader.expected.is_empty());
}

#[test]
fn what_a_disk_fails_to_read_ahead_is_read_once_more() {
    let scratch = tempfile::tempdir().expect("a folder");
    let repository = write(scratch.path(), &[30, 8], Vec::new());
    let io = |plan: FaultPlan| plan;
    let plans = [
        io(FaultPlan::new(1).short_reads().reorder()),
        io(FaultPlan::new(2).fail(FaultKind::Read, 2, libc::EIO)),
        io(FaultPlan::new(3).fail_from(FaultKind::Read, 4, libc::EIO).reorder()),
    ];
    for plan in plans {
        let mut reader = reader(&repository);
        let pool = BufferPool::new(3, SPAN).expect("memory");
        let (disk, _) = open_faulty_disk(IoMode::Threads, 3, 1, Some(&pool), &plan).expect("opened");
        reader.ahead = Some(ReadAhead::over(disk, IoMode::Threads, pool));
        check(&mut reader, &wanted());
        assert!(plan.seen(FaultKind::Read) > 3, "it was read ahead");
    }
}

#[test]
fn each_way_of_reading_ahead_gives_the_same() {
    let scratch = tempfile::tempdir().expect("a folder");
    let repository = write(scratch.path(), &[30, 8], Vec::new());
    let mut reader = reader(&repository);
    check(&mut reader, &wanted());
    // What nobody said beforehand, and after what was said and not asked for.
    reader.expect(1, 7);
    for key in wanted() {
        assert!(reader.frame(key.0, key.1).expect("whole") == content(key.0, key.1));
    }
    reader.ahead = None;
    check(&mut reader, &wanted());
}

#[test]
fn a_frame_that_is_damaged_is_named_and_the_others_are_read() {
    let scratch = tempfile::tempdir().expect("a folder");
    let repository = write(scratch.path(), &[30], Vec::new());
    let manifest = repository.backup(&cluster(), BackupChoice::Latest).expect("there");
    let pack = manifest.open_pack(0).expect("whole");
    let entry = *pack.entry(7).expect("there");
    let file = std::fs::File::options().write(true).open(pack.path().expect("a file")).expect("there");
    file.write_all_at(b"damaged", entry.offset + 1000).expect("written");
    file.sync_all().expect("synced");
    let mut reader = reader(&repository);
    (0..30).for_each(|frame| reader.expect(0, frame));
    let mut plain = vec![0; FRAME];
    for frame in 0..30 {
        match reader.frame_into(0, frame, &mut plain) {
            Ok(()) => assert!(frame != 7 && plain == content(0, frame)),
            Err(failure) => {
                let text = failure.to_string();
                assert!(frame == 7 && text.contains("frame 7 at byte") && text.contains("CRC-32C"), "{text}");
            }
        }
    }
    // Cut off while it is open: what is gone is said, what is there is right.
    let mut reader = self::reader(&repository);
    assert!(reader.frame(0, 0).is_ok());
    file.set_len(entry.offset + 100).expect("cut");
    (0..30).for_each(|frame| reader.expect(0, frame));
    for frame in 0..30 {
        let read = reader.frame_into(0, frame, &mut plain);
        assert_eq!(read.is_ok(), frame < 7, "{frame}: {read:?}");
    }
}
