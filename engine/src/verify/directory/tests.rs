//! Damages a small synthetic backup in every way, and checks what is said about it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgstrata_protocol::manifest::{
    Checksum, ChecksumAlgorithm, ManifestFile, ManifestVersion, ManifestWriter, ModifiedTime, WalRange,
};
use tempfile::TempDir;

use super::made_wal::MadeWal;
use super::*;
use crate::ring::{FaultKind, FaultPlan, IoMode};

mod archives;
mod wal;

const IDENTIFIER: u64 = 7_000_000_000_000_000_001;
/// In the middle of a page, in the middle of a segment.
const WAL_START: u64 = 0x20_5028;
const LARGE: &str = "base/5/16384";
const ODD: &[u8] = b"base/5/odd\xff\xfename";
const IN_TABLESPACE: &str = "pg_tblspc/16400/PG_15_202209061/5/16500";

/// A backup with its manifest, and what its tablespace holds outside of it.
struct Sample {
    scratch: TempDir,
    files: Vec<ManifestFile>,
    wal: Vec<WalRange>,
}

fn content(seed: u8, length: usize) -> Vec<u8> {
    (0..=255).flat_map(|row| (0..=255).map(move |at| row ^ at ^ seed)).cycle().take(length).collect()
}

impl Sample {
    fn new(algorithm: ChecksumAlgorithm) -> Self {
        let scratch = tempfile::tempdir().expect("a temporary folder");
        let mut sample = Self { scratch, files: Vec::new(), wal: Vec::new() };
        let backup = sample.backup();
        for folder in ["base/1", "base/5", "global", "pg_tblspc", "pg_twophase", "pg_wal"] {
            fs::create_dir_all(backup.join(folder)).expect("made");
        }
        fs::create_dir_all(sample.tablespace().join("PG_15_202209061/5")).expect("made");
        symlink(sample.tablespace(), backup.join("pg_tblspc/16400")).expect("linked");
        let mut control = content(0, 8192);
        control[..8].copy_from_slice(&IDENTIFIER.to_le_bytes());
        control[8..12].copy_from_slice(&1300_u32.to_le_bytes());
        for (path, content) in [
            (IN_TABLESPACE.as_bytes(), content(1, 40_000)),
            (b"PG_VERSION", b"15\n".to_vec()),
            (b"base/1/1259", content(2, 98_304)),
            (b"base/1/2619", Vec::new()),
            (LARGE.as_bytes(), content(3, (1 << 20) + 777)),
            (ODD, content(4, 5000)),
            (b"global/pg_control", control),
        ] {
            sample.add(path, &content, algorithm);
        }
        for unlisted in ["pg_wal/archive_status", "standby.signal", "postgresql.auto.conf"] {
            fs::write(backup.join(unlisted), b"not in the manifest").expect("written");
        }
        let log = MadeWal::new(IDENTIFIER, 1, WAL_START, 5);
        log.write_to(&backup.join("pg_wal"));
        sample.wal.push(log.range());
        sample.write_manifest();
        sample
    }

    fn backup(&self) -> PathBuf {
        self.scratch.path().join("backup")
    }

    fn tablespace(&self) -> PathBuf {
        self.scratch.path().join("tablespace")
    }

    fn path(&self, path: impl AsRef<[u8]>) -> PathBuf {
        self.backup().join(OsStr::from_bytes(path.as_ref()))
    }

    fn add(&mut self, path: &[u8], content: &[u8], algorithm: ChecksumAlgorithm) {
        fs::write(self.path(path), content).expect("written");
        self.list(path, content.len() as u64, algorithm, &mut |checksum| checksum.update(content));
    }

    fn list(
        &mut self,
        path: &[u8],
        size: u64,
        algorithm: ChecksumAlgorithm,
        sum_up: &mut dyn FnMut(&mut Checksum),
    ) {
        let mut checksum = Checksum::new(algorithm);
        sum_up(&mut checksum);
        let checksum = (algorithm != ChecksumAlgorithm::None).then(|| (algorithm, checksum.finish()));
        let modified = ModifiedTime(1_700_000_000);
        self.files.push(ManifestFile { path: path.to_vec(), size, modified, checksum });
    }

    fn write_manifest(&self) {
        let file = File::create(self.path(MANIFEST)).expect("created");
        let version = ManifestVersion::Two { system_identifier: IDENTIFIER };
        let mut writer = ManifestWriter::new(file, version, false);
        for file in &self.files {
            writer.file(file).expect("written");
        }
        writer.finish(&self.wal).expect("finished");
    }

    /// Has the page cache forget the files, where the file system has one.
    fn forget(&self) {
        for file in &self.files {
            if let Ok(file) = File::open(self.path(&file.path)) {
                file.sync_all().expect("synced");
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
            }
        }
    }

    fn config(&self) -> VerifyConfig {
        let mut config = VerifyConfig::of(self.backup());
        config.resources.workers = 2;
        config.resources.buffer_bytes = 4 * BUFFER;
        config
    }

    fn verify(&self) -> Result<VerifyReport, Failure> {
        verify(&self.config())
    }
}

fn verify(config: &VerifyConfig) -> Result<VerifyReport, Failure> {
    verify_directory(config, &VerifyProgress::new(|_| {}), &Stop::new())
}

/// The problems, as `kind path`.
fn found(report: &VerifyReport) -> Vec<String> {
    let mut found: Vec<String> = report
        .problems
        .iter()
        .map(|problem| format!("{} {}", problem.kind(), problem.path().unwrap_or_default().escape_ascii()))
        .collect();
    found.sort();
    assert_eq!(report.problem_count, found.len() as u64);
    assert_eq!(report.verified, found.is_empty());
    found
}

/// What was found, in words.
fn told(report: &VerifyReport) -> Vec<String> {
    report.problems.iter().map(ToString::to_string).collect()
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
}

fn resize(path: &Path, size: u64) {
    OpenOptions::new().write(true).open(path).expect("opened").set_len(size).expect("resized");
}

#[test]
fn every_algorithm_on_every_back_end() {
    use ChecksumAlgorithm::{Crc32c, None as Unsummed, Sha224, Sha256, Sha384, Sha512};
    for algorithm in [Crc32c, Sha224, Sha256, Sha384, Sha512, Unsummed] {
        let sample = Sample::new(algorithm);
        for io in [None, Some(IoMode::Uncached), Some(IoMode::Threads)] {
            for forgotten in [true, false] {
                if forgotten {
                    sample.forget();
                }
                let mut config = sample.config();
                config.resources.io = io;
                let report = verify(&config).expect("verifiable");
                assert!(found(&report).is_empty(), "{algorithm} {io:?}: {:?}", report.problems);
                assert_eq!(report.files, 7);
                let (summed, bytes) = match algorithm {
                    Unsummed => (0, 0),
                    _ => (7, sample.files.iter().map(|file| file.size).sum()),
                };
                assert_eq!((report.files_summed, report.bytes), (summed, bytes), "{algorithm} {io:?}");
                assert_eq!(report.system_identifier, Some(IDENTIFIER.to_string()));
                assert_eq!(report.wal_ranges.len(), 1);
            }
        }
        if algorithm != Unsummed {
            flip(&sample.path(LARGE), 1 << 20);
            let report = sample.verify().expect("verifiable");
            assert_eq!(found(&report), ["checksum base/5/16384"], "{algorithm}");
        }
    }
}

type Damage = fn(&Sample);

#[test]
fn every_damage_is_named() {
    let rows: [(&str, Damage, &[&str]); 20] = [
        ("nothing", |_| {}, &[]),
        ("extra file", |s| fs::write(s.path("base/1/666"), b"x").expect("written"), &["extra base/1/666"]),
        (
            "extra file in a tablespace",
            |s| fs::write(s.tablespace().join("PG_15_202209061/5/1"), b"").expect("written"),
            &["extra pg_tblspc/16400/PG_15_202209061/5/1"],
        ),
        ("extra empty folder", |s| fs::create_dir(s.path("base/7")).expect("made"), &[]),
        (
            "missing file",
            |s| fs::remove_file(s.path("base/1/1259")).expect("removed"),
            &["missing base/1/1259"],
        ),
        (
            "missing empty file",
            |s| fs::remove_file(s.path("base/1/2619")).expect("removed"),
            &["missing base/1/2619"],
        ),
        (
            "missing folder",
            |s| fs::remove_dir_all(s.path("base/1")).expect("removed"),
            &["missing base/1/1259", "missing base/1/2619"],
        ),
        ("truncated", |s| resize(&s.path("base/1/1259"), 98_303), &["size base/1/1259"]),
        ("emptied", |s| resize(&s.path(LARGE), 0), &["size base/5/16384"]),
        ("grown", |s| resize(&s.path("base/1/2619"), 1), &["size base/1/2619"]),
        ("flipped byte", |s| flip(&s.path(LARGE), 1_048_576 + 776), &["checksum base/5/16384"]),
        (
            "flipped bytes in two files",
            |s| {
                flip(&s.path(ODD), 0);
                flip(&s.path(IN_TABLESPACE), 4096);
            },
            &["checksum base/5/odd\\xff\\xfename", "checksum pg_tblspc/16400/PG_15_202209061/5/16500"],
        ),
        (
            "two files exchanged",
            |s| {
                fs::rename(s.path("base/1/1259"), s.path("x")).expect("renamed");
                fs::rename(s.path(LARGE), s.path("base/1/1259")).expect("renamed");
                fs::rename(s.path("x"), s.path(LARGE)).expect("renamed");
            },
            &["size base/1/1259", "size base/5/16384"],
        ),
        (
            "folder in place of a file",
            |s| {
                fs::remove_file(s.path("PG_VERSION")).expect("removed");
                fs::create_dir(s.path("PG_VERSION")).expect("made");
            },
            &["missing PG_VERSION"],
        ),
        (
            "file in place of a folder",
            |s| {
                fs::remove_dir_all(s.path("base/1")).expect("removed");
                fs::write(s.path("base/1"), b"x").expect("written");
            },
            &["extra base/1", "missing base/1/1259", "missing base/1/2619"],
        ),
        (
            "link in place of a file, to its own content",
            |s| {
                fs::rename(s.path("base/1/1259"), s.scratch.path().join("moved")).expect("renamed");
                symlink(s.scratch.path().join("moved"), s.path("base/1/1259")).expect("linked");
            },
            &["not_regular base/1/1259"],
        ),
        (
            "link in place of a folder, to its own content",
            |s| {
                fs::rename(s.path("base/1"), s.scratch.path().join("moved")).expect("renamed");
                symlink(s.scratch.path().join("moved"), s.path("base/1")).expect("linked");
            },
            &["not_regular base/1"],
        ),
        (
            "link out of the backup",
            |s| symlink("/", s.path("base/5/root")).expect("linked"),
            &["not_regular base/5/root"],
        ),
        (
            "tablespace gone",
            |s| fs::remove_dir_all(s.tablespace()).expect("removed"),
            &["unreadable pg_tblspc/16400"],
        ),
        (
            "leftovers",
            |s| {
                fs::write(s.path(MANIFEST_TMP), b"{").expect("written");
                fs::rename(s.path("global/pg_control"), s.path(HELD_CONTROL_FILE)).expect("renamed");
            },
            &[
                "missing global/pg_control",
                "unfinished backup_manifest.tmp",
                "unfinished global/pg_control.pgstrata",
            ],
        ),
    ];
    for (name, damage, expected) in rows {
        for forgotten in [true, false] {
            let sample = Sample::new(ChecksumAlgorithm::Crc32c);
            damage(&sample);
            if forgotten {
                sample.forget();
            }
            let report = sample.verify().expect("verifiable");
            assert_eq!(found(&report), expected, "{name}");
        }
    }
}

#[test]
fn messages_say_found_and_expected() {
    let sample = Sample::new(ChecksumAlgorithm::Crc32c);
    resize(&sample.path("base/1/1259"), 5);
    fs::write(sample.path("PG_VERSION"), b"14\n").expect("written");
    let report = sample.verify().expect("verifiable");
    let told: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    assert_eq!(told[0], "\"base/1/1259\" has size 5 on disk but size 98304 in the manifest");
    let mut checksum = Checksum::new(ChecksumAlgorithm::Crc32c);
    checksum.update(b"14\n");
    let expected = sample.files[1].checksum.expect("it has one").1;
    let (path, found) = ("PG_VERSION", checksum.finish());
    assert_eq!(
        told[1],
        format!(
            "checksum mismatch for file \"{path}\": CRC32C found {found}, expected {expected} by the manifest"
        )
    );
    let json = serde_json::to_value(&report).expect("serializable");
    assert_eq!(json["problems"][0]["kind"], "size");
    assert_eq!(json["problems"][1]["path"], "PG_VERSION");
}

#[test]
fn what_is_no_file_is_never_waited_for() {
    let sample = Sample::new(ChecksumAlgorithm::Crc32c);
    fs::remove_file(sample.path(LARGE)).expect("removed");
    rustix::fs::mkfifoat(rustix::fs::CWD, sample.path(LARGE), Mode::from_bits_truncate(0o600)).expect("made");
    let report = sample.verify().expect("verifiable");
    assert_eq!(found(&report), ["not_regular base/5/16384"]);
}

#[test]
fn a_damaged_manifest_is_not_compared_with() {
    let rows: [(&str, Damage, &str); 6] = [
        ("flipped", |s| flip(&s.path(MANIFEST), 300), "backup manifest"),
        ("cut", |s| resize(&s.path(MANIFEST), 500), "cut short"),
        ("empty", |s| resize(&s.path(MANIFEST), 0), "cut short"),
        (
            "followed by something",
            |s| {
                let mut file = OpenOptions::new().append(true).open(s.path(MANIFEST)).expect("opened");
                file.write_all(b"{}\n").expect("written");
            },
            "followed by other data",
        ),
        ("gone", |s| fs::remove_file(s.path(MANIFEST)).expect("removed"), "--manifest-path"),
        (
            "not there yet",
            |s| fs::rename(s.path(MANIFEST), s.path(MANIFEST_TMP)).expect("renamed"),
            "was not completed",
        ),
    ];
    for (name, damage, expected) in rows {
        let sample = Sample::new(ChecksumAlgorithm::Crc32c);
        damage(&sample);
        match sample.verify() {
            Err(Failure::Verification(text)) => assert!(text.contains(expected), "{name}: {text}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn what_is_no_backup_is_refused() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let refused = verify(&VerifyConfig::of(scratch.path().join("nowhere"))).expect_err("not there");
    assert!(refused.to_string().contains("could not open directory"), "{refused}");
    let refused = verify(&VerifyConfig::of(scratch.path())).expect_err("empty");
    assert!(refused.to_string().contains("could not open"), "{refused}");
}

#[test]
fn the_manifest_must_be_this_clusters() {
    let mut sample = Sample::new(ChecksumAlgorithm::Crc32c);
    let mut control = content(0, 8192);
    control[..8].copy_from_slice(&5u64.to_le_bytes());
    control[8..12].copy_from_slice(&1300_u32.to_le_bytes());
    sample.files.retain(|file| file.path != b"global/pg_control");
    sample.add(b"global/pg_control", &control, ChecksumAlgorithm::Crc32c);
    sample.write_manifest();
    for skip_checksums in [true, false] {
        let report = verify(&VerifyConfig { skip_checksums, ..sample.config() }).expect("verifiable");
        assert_eq!(found(&report), ["system_identifier global/pg_control"]);
    }
}

#[test]
fn a_path_listed_twice_hides_no_extra_file() {
    let mut sample = Sample::new(ChecksumAlgorithm::Crc32c);
    let twice = sample.files[2].clone();
    sample.files.push(twice);
    sample.write_manifest();
    fs::write(sample.path("base/1/666"), content(2, 98_304)).expect("written");
    let report = sample.verify().expect("verifiable");
    assert_eq!(found(&report), ["duplicate base/1/1259", "extra base/1/666"]);
}

#[test]
fn ignored_paths_are_left_out() {
    let sample = Sample::new(ChecksumAlgorithm::Crc32c);
    fs::remove_file(sample.path("base/1/1259")).expect("removed");
    flip(&sample.path(LARGE), 0);
    fs::write(sample.path("base/1/666"), b"x").expect("written");
    symlink("/", sample.path("base/1/root")).expect("linked");
    let mut config = sample.config();
    config.ignore.add(b"base/1/");
    let report = verify(&config).expect("verifiable");
    assert_eq!(found(&report), ["checksum base/5/16384"]);
    config.ignore.add(LARGE.as_bytes());
    let report = verify(&config).expect("verifiable");
    assert!(found(&report).is_empty());
    assert_eq!(report.files, 4);
}

#[test]
fn without_checksums_contents_are_not_read() {
    let sample = Sample::new(ChecksumAlgorithm::Crc32c);
    flip(&sample.path(LARGE), 0);
    resize(&sample.path("base/1/1259"), 1);
    let report = verify(&VerifyConfig { skip_checksums: true, ..sample.config() }).expect("verifiable");
    assert_eq!(found(&report), ["size base/1/1259"]);
    assert_eq!(report.bytes, 0);
}

#[test]
fn the_first_problem_can_end_it() {
    let sample = Sample::new(ChecksumAlgorithm::Crc32c);
    let damages: [Damage; 2] = [
        |s| {
            flip(&s.path(LARGE), 0);
            flip(&s.path(ODD), 0);
        },
        |s| {
            fs::write(s.path("base/1/666"), b"x").expect("written");
            fs::remove_file(s.path("PG_VERSION")).expect("removed");
        },
    ];
    for damage in damages {
        damage(&sample);
        let report = verify(&VerifyConfig { exit_on_error: true, ..sample.config() }).expect("verifiable");
        assert_eq!(found(&report).len(), 1);
    }
}

#[test]
fn the_manifest_may_lie_elsewhere() {
    let sample = Sample::new(ChecksumAlgorithm::Sha256);
    let manifest = sample.scratch.path().join("elsewhere");
    fs::rename(sample.path(MANIFEST), &manifest).expect("renamed");
    let report = verify(&VerifyConfig { manifest, ..sample.config() }).expect("verifiable");
    assert!(found(&report).is_empty());
}

#[test]
fn faults_of_the_disk() {
    for (algorithm, plan, expected) in [
        (ChecksumAlgorithm::Sha256, FaultPlan::new(1).short_reads().reorder(), &[][..]),
        (ChecksumAlgorithm::Crc32c, FaultPlan::new(2).short_reads().reorder(), &[]),
        (
            ChecksumAlgorithm::Crc32c,
            FaultPlan::new(3).fail_from(FaultKind::Read, 0, libc::EIO),
            &[
                "unreadable PG_VERSION",
                "unreadable base/1/1259",
                "unreadable base/5/16384",
                "unreadable base/5/odd\\xff\\xfename",
                "unreadable global/pg_control",
                "unreadable pg_tblspc/16400/PG_15_202209061/5/16500",
            ],
        ),
    ] {
        let sample = Sample::new(algorithm);
        let mut config = sample.config();
        config.resources.faults = Some(plan);
        let report = verify(&config).expect("verifiable");
        assert_eq!(found(&report), expected, "{algorithm}");
    }
    // Whichever read fails, it is noticed.
    let sample = Sample::new(ChecksumAlgorithm::Sha512);
    for nth in 0..10 {
        let plan = FaultPlan::new(nth).reorder().fail(FaultKind::Read, nth, libc::EIO);
        let mut config = sample.config();
        config.resources.faults = Some(plan.clone());
        let report = verify(&config).expect("verifiable");
        assert!(plan.seen(FaultKind::Read) > nth);
        assert_eq!(report.problem_count, 1, "{nth}: {:?}", report.problems);
        assert!(report.problems[0].to_string().contains("could not read file"), "{:?}", report.problems);
    }
}

#[test]
fn a_large_file_is_shared_by_the_workers() {
    const SIZE: u64 = (3 << 30) + 4097;
    let mut sample = Sample::new(ChecksumAlgorithm::Crc32c);
    let path = "base/5/99999";
    let mut file = File::create(sample.path(path)).expect("created");
    file.set_len(SIZE).expect("resized");
    for at in [0, 1 << 30, SIZE - 10] {
        file.seek(SeekFrom::Start(at)).expect("sought");
        file.write_all(b"0123456789").expect("written");
    }
    drop(file);
    sample.list(path.as_bytes(), SIZE, ChecksumAlgorithm::Crc32c, &mut |checksum| {
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        for mark in [0, 1 << 30, SIZE - 10] {
            while at < mark {
                let step = usize::try_from(mark - at).expect("64 bits").min(zeros.len());
                checksum.update(&zeros[..step]);
                at += step as u64;
            }
            checksum.update(b"0123456789");
            at += 10;
        }
    });
    sample.write_manifest();
    let report = sample.verify().expect("verifiable");
    assert!(found(&report).is_empty(), "{:?}", report.problems);
    flip(&sample.path(path), (2 << 30) + 12_345);
    let report = sample.verify().expect("verifiable");
    assert_eq!(found(&report), ["checksum base/5/99999"]);
}

#[test]
fn many_files_in_one_folder() {
    let mut sample = Sample::new(ChecksumAlgorithm::None);
    for number in 0..3000 {
        let path = format!("base/5/{}", 20_000 + number);
        sample.add(path.as_bytes(), b"x", ChecksumAlgorithm::Crc32c);
    }
    sample.write_manifest();
    assert!(found(&sample.verify().expect("verifiable")).is_empty());
    let mut expected = Vec::new();
    for number in (0..3000).step_by(100) {
        let (path, moved) = (format!("base/5/{}", 20_000 + number), format!("base/5/{}_vm", 20_000 + number));
        fs::rename(sample.path(&path), sample.path(&moved)).expect("renamed");
        expected.extend([format!("missing {path}"), format!("extra {moved}")]);
    }
    expected.sort();
    assert_eq!(found(&sample.verify().expect("verifiable")), expected);
}

#[test]
fn a_signal_ends_it() {
    let sample = Sample::new(ChecksumAlgorithm::Crc32c);
    fs::write(sample.path("base/1/666"), b"x").expect("written");
    let stop = Stop::new();
    let (thrown, told) = (stop.clone(), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&told);
    let progress = VerifyProgress::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        thrown.throw(Failure::Signal(15));
    });
    match verify_directory(&sample.config(), &progress, &stop) {
        Err(Failure::Signal(15)) => assert_eq!(told.load(Ordering::SeqCst), 1),
        other => panic!("{other:?}"),
    }
    assert_eq!(progress.files.load(Ordering::Relaxed), 0);
}

#[test]
fn what_may_not_be_read_is_named() {
    let sample = Sample::new(ChecksumAlgorithm::Crc32c);
    for folder in [sample.scratch.path().to_path_buf(), sample.backup(), sample.tablespace()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("changed");
    }
    fs::set_permissions(sample.path(LARGE), fs::Permissions::from_mode(0o0)).expect("changed");
    fs::set_permissions(sample.path("base/1"), fs::Permissions::from_mode(0o0)).expect("changed");
    let report = thread::scope(|scope| {
        let verified = scope.spawn(|| {
            // Root may read everything. The id for file access is each thread's own and is inherited by those it
            // starts; changing it drops root's way around permissions.
            // SAFETY: a plain system call without pointers. It cannot fail for root, and others need not do it.
            unsafe { libc::syscall(libc::SYS_setfsuid, 65_534) };
            sample.verify()
        });
        verified.join().expect("no panic")
    });
    fs::set_permissions(sample.path("base/1"), fs::Permissions::from_mode(0o700)).expect("changed");
    assert_eq!(found(&report.expect("verifiable")), ["unreadable base/1", "unreadable base/5/16384"]);
}
