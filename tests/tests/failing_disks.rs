//! The faulty ring under a whole backup, in this process: every write and every sync fails once, with each way of
//! writing; and writes that are cut short and completed late and out of order change nothing.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use pgstrata::basebackup::{BaseBackupConfig, Destination, Report, Resources, SlotChoice, WalMethod};
use pgstrata::failure::Failure;
use pgstrata::ring::{FaultKind, FaultPlan, IoMode};
use pgstrata_tests as harness;
use pgstrata_tests::fake::{FakeBackup, FakeServer, Member, Script};
use pgstrata_tests::in_process::{backup_config, run_backup};
use pgstrata_tests::{FsKind, Scratch, SmallFs};

/// No run may take longer.
const LIMIT: Duration = Duration::from_secs(60);
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[derive(Clone)]
struct Setup {
    conninfo: String,
    path: PathBuf,
    tar: bool,
    wal: WalMethod,
    io: IoMode,
}

impl Setup {
    fn config(&self, plan: &FaultPlan) -> BaseBackupConfig {
        let path = self.path.clone();
        let mut resources = Resources::for_cores(2);
        // Small and few, so that everything has to come back and go round.
        (resources.buffers, resources.buffer_size, resources.depth) = (16, 64 << 10, 8);
        (resources.io, resources.faults) = (Some(self.io), Some(plan.clone()));
        let destination = match self.tar {
            true => Destination::Tar { path },
            false => Destination::Directory { path, wal_directory: None, tablespace_mapping: Vec::new() },
        };
        let mut config = backup_config(&self.conninfo, destination, resources);
        config.wal = self.wal.clone();
        config
    }

    /// Runs it in a thread, within the limit.
    #[track_caller]
    fn run(&self, plan: &FaultPlan) -> (Result<Report, Failure>, Vec<String>) {
        let (config, (done, wait)) = (self.config(plan), mpsc::channel());
        // Warnings, for failures to show.
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&heard);
        let thread = std::thread::spawn(move || {
            let hear = move |text: &str| hears.lock().expect("no panic with the lock").push(text.to_owned());
            let outcome = run_backup(&config, hear);
            // Nobody waits any more where that took too long.
            let _ = done.send(outcome);
        });
        let outcome =
            wait.recv_timeout(LIMIT).unwrap_or_else(|error| panic!("no end within {LIMIT:?}: {error}"));
        thread.join().expect("it has ended");
        let heard = std::mem::take(&mut *heard.lock().expect("no panic with the lock"));
        (outcome, heard)
    }
}

/// A backup with files of all sizes around those of buffers, sent by a fake server.
fn many_files(major: u32) -> FakeBackup {
    let buffer = 64 << 10;
    let sizes = [1, 511, 4096, 8192, buffer - 1, buffer, buffer + 1, 3 * buffer + 4096, 300_000, 1_200_000];
    let mut backup = FakeBackup::honest(major);
    for (number, size) in sizes.into_iter().cycle().take(30).enumerate() {
        let content: Vec<u8> =
            (0..size).map(|n| u8::try_from((n / 7 + number) % 251).expect("a byte")).collect();
        backup = backup.with(Member::file(format!("base/1/{}", 20_000 + number), content));
    }
    backup
}

fn fake(backup: &FakeBackup) -> FakeServer {
    FakeServer::start(Script::version(backup.major).answer("BASE_BACKUP", backup.reply()))
}

/// Threads, open files and mapped memory of this process: what a run that ends gives back.
fn held() -> BTreeMap<&'static str, u64> {
    let count = |dir: &str| fs::read_dir(dir).expect("proc is mounted").count() as u64;
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("a process has a size");
    let mapped = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
    BTreeMap::from([
        ("threads", count("/proc/self/task")),
        ("files", count("/proc/self/fd")),
        ("MiB", mapped >> 10),
    ])
}

/// The modes that a file system takes.
fn modes(path: &Path) -> Vec<IoMode> {
    let works = |mode: &IoMode| match pgstrata::ring::probe(path, Some(*mode)) {
        Ok(_) => true,
        Err(error) => {
            eprintln!("not {mode}: {error}");
            false
        }
    };
    IoMode::ALL.into_iter().filter(works).collect()
}

/// What this process holds is counted here, so its tests run one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn every_write_and_every_sync_fails_once() {
    let _alone = alone();
    let scratch = Scratch::new();
    let mut failed = 0;
    let mut before = held();
    for major in [14, 18] {
        if major == 18 {
            // By now every thread's allocator has taken its arena of 64 MiB.
            (before, failed) = (held(), 0);
        }
        let server = fake(&many_files(major));
        for io in modes(scratch.path()) {
            for tar in [false, true] {
                let setup = Setup {
                    conninfo: server.conninfo(),
                    path: scratch.join("copy"),
                    tar,
                    wal: WalMethod::None,
                    io,
                };
                let plan = FaultPlan::new(1);
                setup.run(&plan).0.unwrap_or_else(|failure| panic!("{failure}"));
                fs::remove_dir_all(&setup.path).expect("a backup");
                for kind in [FaultKind::Write, FaultKind::Sync] {
                    let count = plan.seen(kind);
                    assert!(count > if tar { 0 } else { 30 }, "{count} {kind:?}");
                    // All of the first layout's, a third of the second's: they differ only before the ring.
                    for nth in (0..count).step_by(if major == 18 { 1 } else { 3 }) {
                        let errno = if nth % 2 == 0 { EIO } else { ENOSPC };
                        expect_failure(&setup, kind, nth, errno, &scratch);
                        failed += 1;
                    }
                    // The disk stays full.
                    let plan = FaultPlan::new(2).fail_from(kind, count / 2, ENOSPC);
                    setup.run(&plan).0.expect_err("the disk is full");
                    assert!(!setup.path.exists());
                }
            }
        }
    }
    // The fake servers are gone, and their connections with them. A pool is a MiB.
    let after = held();
    eprintln!("{failed} failures; held before: {before:?}, after: {after:?}");
    for (what, slack) in [("threads", 4), ("files", 8), ("MiB", failed / 2)] {
        assert!(after[what] <= before[what] + slack, "{what}: {before:?}, then {after:?}");
    }
}

#[track_caller]
fn expect_failure(setup: &Setup, kind: FaultKind, nth: u64, errno: i32, scratch: &Scratch) {
    let plan = FaultPlan::new(nth).fail(kind, nth, errno);
    let (outcome, heard) = setup.run(&plan);
    let context = format!("{kind:?} {nth} with error {errno}, {}, tar {}", setup.io, setup.tar);
    let Err(failure) = outcome else { panic!("{context}: it was not told") };
    let text = failure.to_string();
    let action = if kind == FaultKind::Write { "could not write to \"" } else { "could not sync \"" };
    let file = text.split('"').nth(1).unwrap_or_default();
    assert!(
        text.starts_with(action) && file.starts_with(&*setup.path.to_string_lossy()),
        "{context}: {text}"
    );
    let words =
        if errno == EIO { ["Input/output error", "kernel log"] } else { ["No space left", "free space"] };
    assert!(words.iter().all(|word| text.contains(word)), "{context}: {text}");
    assert!(heard.is_empty(), "{context}: {heard:?}");
    let left = fs::read_dir(scratch.path()).expect("it is there").count();
    assert_eq!(left, 0, "{context}: something is left");
}

#[test]
fn short_and_late_writes_change_nothing() {
    let _alone = alone();
    let scratch = Scratch::new();
    for major in [14, 18] {
        let backup = many_files(major);
        let server = fake(&backup);
        for io in modes(scratch.path()) {
            for (seed, tar) in (0..12).flat_map(|seed| [(seed, false), (seed, true)]) {
                let path = scratch.join("copy");
                let setup =
                    Setup { conninfo: server.conninfo(), path: path.clone(), tar, wal: WalMethod::None, io };
                let plan = FaultPlan::new(seed).short_writes().reorder();
                let report = setup.run(&plan).0.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
                assert_eq!(report.files_verified, report.files);
                if tar {
                    let mut expected = backup.base_archive().concat();
                    if major < 15 {
                        expected.extend([0; 1024]);
                    }
                    assert!(
                        fs::read(path.join("base.tar")).expect("an archive") == expected,
                        "{io}, seed {seed}"
                    );
                } else {
                    harness::check_manifest(&path)
                        .unwrap_or_else(|error| panic!("{io}, seed {seed}: {error:#}"));
                }
                fs::remove_dir_all(&path).expect("a backup");
            }
        }
    }
}

#[test]
fn failures_that_pass_do_no_harm() {
    let _alone = alone();
    // EINTR and EAGAIN ask to try again.
    let scratch = Scratch::new();
    let server = fake(&many_files(18));
    for io in modes(scratch.path()) {
        let path = scratch.join("copy");
        let setup =
            Setup { conninfo: server.conninfo(), path: path.clone(), tar: false, wal: WalMethod::None, io };
        let plan = (0..30).fold(FaultPlan::new(3), |plan, n| {
            plan.fail(FaultKind::Write, n * 2, if n % 2 == 0 { 4 } else { 11 })
        });
        setup.run(&plan).0.unwrap_or_else(|failure| panic!("{io}: {failure}"));
        harness::check_manifest(&path).unwrap_or_else(|error| panic!("{io}: {error:#}"));
        fs::remove_dir_all(&path).expect("a backup");
    }
}

/// A real server with its thousand files and a WAL stream beside: a sample of all operations, several at once in the
/// same run, on each file system that can be had.
#[test]
fn a_real_backup_survives_no_failure_and_every_delay() {
    let _alone = alone();
    let source = harness::cluster(18).wal_segsize_mb(1).setting("autovacuum", "off").start();
    let ext4 = SmallFs::mount(FsKind::Ext4, 128, source.scratch());
    let tmpfs = SmallFs::mount(FsKind::Tmpfs, 128, source.scratch());
    let mounted: Vec<SmallFs> = [ext4, tmpfs]
        .into_iter()
        .filter_map(|mounted| mounted.inspect_err(|reason| eprintln!("skipped: {reason}")).ok())
        .collect();
    let mut places: Vec<PathBuf> = mounted.iter().map(|mounted| mounted.path().to_owned()).collect();
    places.push(source.scratch().path().to_owned());
    let number = AtomicUsize::new(0);
    for place in places {
        for io in modes(&place) {
            let path = place.join(format!("copy{}", number.fetch_add(1, Ordering::Relaxed)));
            let wal = WalMethod::Stream(SlotChoice::Temporary);
            let setup = Setup { conninfo: source.conninfo(), path: path.clone(), tar: false, wal, io };
            let plan = FaultPlan::new(7).short_writes().reorder();
            setup.run(&plan).0.unwrap_or_else(|failure| panic!("{io}: {failure}"));
            harness::check_manifest(&path).unwrap_or_else(|error| panic!("{io}: {error:#}"));
            fs::remove_dir_all(&path).expect("a backup");
            let plan = FaultPlan::new(8).reorder();
            setup.run(&plan).0.unwrap_or_else(|failure| panic!("{io}: {failure}"));
            fs::remove_dir_all(&path).expect("a backup");
            for kind in [FaultKind::Write, FaultKind::Sync] {
                // The count differs a little from run to run, with the number of WAL files.
                let count = plan.seen(kind) - 20;
                let step =
                    usize::try_from(count / 3).ok().and_then(NonZeroUsize::new).expect("many operations");
                for nth in (0..count).step_by(step.get()) {
                    let plan = FaultPlan::new(nth).reorder().fail(kind, nth, EIO).fail(kind, nth + 3, ENOSPC);
                    let (outcome, heard) = setup.run(&plan);
                    let failure = outcome.expect_err("an operation failed");
                    let told = matches!(failure, Failure::Disk { .. })
                        && failure.to_string().contains(&*path.to_string_lossy());
                    assert!(told, "{io}, {kind:?} {nth}: {failure}");
                    assert!(heard.is_empty() && !path.exists(), "{io}, {kind:?} {nth}: {failure}, {heard:?}");
                }
            }
        }
    }
    harness::expect_forgotten(&source);
}
