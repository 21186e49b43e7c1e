//! Full disks: small file systems of each kind with so much free space that it ends in reserved files, in data, in WAL,
//! in the list of what arrived, in the manifest. Each run fails with a hint and gives all the space back.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgstrata_tests as harness;
use pgstrata_tests::fake::{FakeBackup, FakeServer, Manifest, Script};
use pgstrata_tests::{Finished, FsKind, SmallFs, Source};

/// A file system with a file that takes most of its space.
struct Filled<'a> {
    mounted: &'a SmallFs,
    filler: PathBuf,
}

impl<'a> Filled<'a> {
    /// Leaves about so many bytes free.
    fn leave(mounted: &'a SmallFs, free: u64) -> Self {
        settle(mounted);
        let filler = mounted.path().join("filler");
        let file = File::create(&filler).expect("an empty file system");
        let mut size = mounted.free_bytes().saturating_sub(free).max(1);
        // A file system may keep some of its free space for what it writes about files.
        while let Err(error) = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
            assert_eq!(error, rustix::io::Errno::NOSPC, "{filler:?}");
            size = size.checked_sub(256 << 10).expect("there is some space");
        }
        Self { mounted, filler }
    }

    fn target(&self) -> PathBuf {
        self.mounted.path().join("copy")
    }
}

impl Drop for Filled<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.filler);
    }
}

/// Lets the file system count what was made and removed last: some do so only with their next commit.
fn settle(mounted: &SmallFs) {
    let root = File::open(mounted.path()).expect("it is mounted");
    rustix::fs::syncfs(root).expect("it can be synced");
}

fn run(conninfo: &str, target: &Path, arguments: &[&str]) -> Finished {
    let mut run = harness::pgstrata(["basebackup", "-c", "fast", "-d", conninfo, "-D"]).arg(target);
    for argument in arguments {
        run = run.arg(argument);
    }
    run.limit(Duration::from_secs(120)).run()
}

/// What a full disk struck: the action and the kind of file, from the message.
fn struck(said: &str, target: &Path) -> String {
    let line = said.lines().find(|line| line.contains("No space left")).unwrap_or_default();
    let (action, rest) = line.split_once(" \"").unwrap_or((line, ""));
    let action = action.rsplit("could not ").next().unwrap_or_default();
    let path = rest.split('"').next().unwrap_or_default();
    let path = path.strip_prefix(&*target.to_string_lossy()).unwrap_or(path).trim_start_matches('/');
    let file = match path.split('/').next().unwrap_or_default() {
        "" => "the target",
        other => other,
    };
    format!("{action} {file}")
}

/// Runs with so much space; says what it ended in, or nothing where it was enough.
#[track_caller]
fn with_space(source: &Source, mounted: &SmallFs, free: u64, arguments: &[&str]) -> Option<String> {
    let filled = Filled::leave(mounted, free);
    let target = filled.target();
    let finished = run(&source.conninfo(), &target, arguments);
    if finished.status.success() {
        if target.join("backup_manifest").exists() && !target.join("base.tar").exists() {
            harness::check_manifest(&target).unwrap_or_else(|error| panic!("{error:#}: {finished}"));
        }
        fs::remove_dir_all(&target).expect("a backup");
        return None;
    }
    finished.expect_failure();
    let said = finished.stderr_text();
    let context = format!("{} with {free} bytes free, {arguments:?}: {finished}", mounted.kind());
    assert!(
        said.contains("No space left on device") && said.contains("HINT") && said.contains("free space"),
        "{context}"
    );
    assert!(!target.exists(), "{} is still there: {context}", target.display());
    assert!(!said.contains("could not clean up"), "{context}");
    Some(struck(&said, &target))
}

/// How much a whole backup needs on this file system.
fn need(source: &Source, mounted: &SmallFs, arguments: &[&str]) -> u64 {
    settle(mounted);
    let before = mounted.free_bytes();
    let target = mounted.path().join("copy");
    run(&source.conninfo(), &target, arguments).expect_success();
    settle(mounted);
    let taken = before.saturating_sub(mounted.free_bytes());
    fs::remove_dir_all(&target).expect("a backup");
    taken
}

#[test]
fn full_disks_end_in_order() {
    let source = harness::cluster(18).wal_segsize_mb(1).setting("autovacuum", "off").start();
    let mut seen = BTreeSet::new();
    for kind in FsKind::ALL {
        let mounted = match SmallFs::mount(kind, 64, source.scratch()) {
            Ok(mounted) => mounted,
            Err(reason) => {
                eprintln!("skipped: {reason}");
                continue;
            }
        };
        let before = names(mounted.path());
        for (number, io) in ["direct", "uncached", "threads"].into_iter().enumerate() {
            // tmpfs takes neither of the first two on most kernels; a probe says so, and that is no full disk.
            let arguments = |format| ["--io", io, format];
            let target = mounted.path().join("probe");
            let probe = run(&source.conninfo(), &target, &arguments("-Fp"));
            if !probe.status.success() {
                probe.expect_failure().expect_stderr(&format!("--io={io}"));
                assert!(!target.exists(), "{probe}");
                eprintln!("{kind}: not {io}");
                continue;
            }
            fs::remove_dir_all(&target).expect("a backup");
            for format in ["-Fp", "-Ft"] {
                let need = need(&source, &mounted, &arguments(format));
                // Some of it, nearly all of it: another share for each way of writing.
                let n = u64::try_from(number).expect("a small number");
                for share in [3 + n, 20 + 10 * n, 55 + 7 * n, 80 + 3 * n, 92 + 2 * n] {
                    let ended = with_space(&source, &mounted, need * share / 100, &arguments(format));
                    if let Some(ended) = ended {
                        seen.insert(format!("{format} {ended}"));
                    }
                }
                assert_eq!(names(mounted.path()), before, "{kind} {io} {format}");
            }
        }
    }
    harness::expect_forgotten(&source);
    eprintln!("{seen:#?}");
    // What is struck first where files and WAL arrive side by side differs from run to run.
    for (format, places) in [("-Fp", ["base", "pg_wal"]), ("-Ft", ["base.tar.partial", "pg_wal.tar.partial"])]
    {
        let struck =
            |place: &&str| seen.iter().any(|ended| ended.starts_with(format) && ended.ends_with(*place));
        assert!(places.iter().any(struck), "{format}: {seen:#?}");
    }
}

/// The last steps of a backup, in steps of a few blocks: the manifest, the list of arrivals, the last segment of WAL.
#[test]
fn disks_that_are_full_just_before_the_end() {
    let source = harness::cluster(17).wal_segsize_mb(1).setting("autovacuum", "off").start();
    let mounted = SmallFs::mount_first(&[FsKind::Tmpfs, FsKind::Ext4], 64, source.scratch());
    let mut seen = BTreeSet::new();
    for format in ["-Fp", "-Ft"] {
        let arguments = ["--io", "threads", format];
        let need = need(&source, &mounted, &arguments);
        for step in 0..10 {
            let free = (need + (40 << 10)).saturating_sub(step * (20 << 10));
            let ended = with_space(&source, &mounted, free, &arguments);
            seen.extend(ended.map(|ended| format!("{format} {ended}")));
        }
    }
    harness::expect_forgotten(&source);
    assert!(!seen.is_empty(), "no disk was full");

    // A manifest that is larger than everything before it.
    let backup = FakeBackup::honest(18).with_manifest(Manifest::Bytes(vec![b' '; 8 << 20]));
    let server = FakeServer::start(Script::version(18).answer("BASE_BACKUP", backup.reply()));
    let filled = Filled::leave(&mounted, 4 << 20);
    for format in ["-Fp", "-Ft"] {
        let finished = run(&server.conninfo(), &filled.target(), &["-X", "none", format]);
        finished.expect_failure().expect_stderr("No space left on device");
        assert!(!filled.target().exists(), "{finished}");
    }
}

/// WAL that fills the disk while files still arrive, and a disk too small for a single segment.
#[test]
fn wal_fills_the_disk() {
    let source = harness::cluster(16).wal_segsize_mb(16).start();
    let mounted = SmallFs::mount_first(&[FsKind::Tmpfs, FsKind::Ext4], 64, source.scratch());
    for format in ["-Fp", "-Ft"] {
        let ended = with_space(&source, &mounted, 12 << 20, &[format]).expect("a segment has 16 MiB");
        eprintln!("{format}: {ended}");
    }
    let writer = source.writer(1);
    let wal = source.dir("wal");
    fs::create_dir(&wal).expect("a new directory");
    // Only the WAL lies on the small disk.
    let filled = Filled::leave(&mounted, 20 << 20);
    let there = mounted.path().join("wal");
    let sql = source.sql();
    let network = pgstrata_tests::Interposer::before(&source, &[]);
    let conninfo = network.conninfo(&source);
    let target = source.dir("copy");
    let running = harness::pgstrata(["basebackup", "-c", "fast", "-r", "8M", "-d", &conninfo, "--waldir"])
        .arg(&there)
        .arg("-D")
        .arg(&target)
        .limit(Duration::from_secs(120))
        .spawn();
    network.wait_for_passed(0, pgstrata_tests::Direction::ToClient, 1 << 20);
    sql.execute(
        "CREATE TABLE much AS SELECT i, repeat(md5(i::text), 20) AS v FROM generate_series(1, 40000) AS i",
    );
    let finished = running.wait();
    finished.expect_failure().expect_stderr("WAL receiver").expect_stderr("No space left on device");
    finished.expect_stderr(&there.to_string_lossy()).expect_stderr("HINT: free space");
    assert!(!target.exists() && !there.exists(), "{finished}");
    drop(filled);
    drop(writer);
    harness::expect_forgotten(&source);
}

fn names(dir: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(dir).expect("it is mounted").map(|entry| entry.expect("an entry").path()).collect()
}
