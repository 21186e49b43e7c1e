//! Verifies a plain backup where it lies, against its manifest.
//!
//! ```text
//! manifest ─► tally ─┐
//!                    ├─ equal? ─ yes ─► manifest ─► pieces ─► readers: open, read, sum up, compare
//! folders ──► tally ─┘      └─── no ──► name what differs, some buckets at a time ──┘
//! ```
//! 1. The manifest is read to its end and must carry its own checksum: nothing is compared with a damaged one.
//! 2. Paths and sizes of both sides are tallied and compared; differences are named.
//! 3. Contents are read and summed up, by all cores.
//!
//! Invariants: nothing is written, not even access times where the files are ours; memory does not grow with the
//! number of files or their sizes, the manifest is streamed once more instead; no symbolic link is followed but
//! those of tablespaces; the page cache is used for what it holds and not filled with the rest.
//!
//! Does not look at WAL, nor at backups in tar format.

mod cached;
mod config;
mod deal;
mod ignore;
mod presence;
mod problem;
mod progress;
mod reader;
mod report;
mod run;
mod tally;
#[cfg(test)]
mod tests;
mod tree;
mod walk;
mod way;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam::channel::{Receiver, bounded};
use pgstrata_protocol::manifest::{ManifestEvent, ManifestSummary};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

pub use config::{VerifyConfig, VerifyResources};
pub use ignore::IgnoreList;
pub use problem::Problem;
pub use progress::{VerifyPhase, VerifyProgress};
pub use report::{NeededWal, VerifyLimit, VerifyReport, VerifySeconds, WorkerSeconds};

use crate::basebackup::process_usage;
use crate::buffer::BufferPool;
use crate::failure::Failure;
use crate::ring::{open_disk, open_faulty_disk};
use crate::sink::HELD_CONTROL_FILE;
use crate::stop::Stop;
use deal::Hand;
use problem::Found;
use reader::Reader;
use report::{WorkerClock, WorkerTimes};
use run::Run;
use tally::Tally;
use tree::Tree;
use way::Way;

/// The manifest's name in a backup.
const MANIFEST: &str = "backup_manifest";
/// Its name until the backup is complete.
const MANIFEST_TMP: &str = "backup_manifest.tmp";
/// The control file (`XLOG_CONTROL_FILE`, `access/xlog_internal.h`).
const CONTROL_FILE: &[u8] = b"global/pg_control";
/// Bytes of a buffer: they stay in a core's cache between the read and the checksum.
const BUFFER: usize = 256 << 10;
/// Of more WAL ranges than this a report keeps the first.
const KEPT_RANGES: usize = 64;

/// What the first reading of the manifest tells.
struct ManifestFacts {
    summary: ManifestSummary,
    tally: Tally,
    wal_ranges: Vec<NeededWal>,
    /// Files that are not ignored.
    files: u64,
}

/// What reading contents took.
struct Reading {
    way: Way,
    from_cache: u64,
    workers: WorkerSeconds,
}

/// Verifies the backup. `Ok` says that it could be verified, not that it is sound: the report tells that.
///
/// # Errors
/// When the folder or the manifest cannot be read, when the manifest is damaged, and when `stop` is thrown.
pub fn verify_directory(
    config: &VerifyConfig,
    progress: &VerifyProgress,
    stop: &Stop<Failure>,
) -> Result<VerifyReport, Failure> {
    let began = Instant::now();
    let base = tree::open_base(&config.backup)?;
    refuse_what_is_no_plain_backup(config, &base)?;
    let manifest = open_manifest(config, &base)?;
    let way = way::choose(config.resources.io, manifest)?;
    let run = Run::new(config, &base, progress, stop);
    let mut seconds = VerifySeconds::default();

    progress.enter(VerifyPhase::Manifest);
    let facts = read_facts(&run).map_err(|failure| reason(stop, failure))?;
    seconds.manifest = began.elapsed().as_secs_f64();
    let outcome = compare(&run, &facts, way.clone(), &mut seconds);
    progress.enter(VerifyPhase::Finished);
    let Found { count, kept } = run.problems.into_found();
    let reading = match outcome {
        Ok(reading) => reading,
        // The first problem ended the run, as it was to.
        Err(Failure::Stopped) if config.exit_on_error && count > 0 => {
            Reading { way, from_cache: 0, workers: WorkerSeconds::default() }
        }
        Err(failure) => return Err(reason(stop, failure)),
    };

    seconds.total = began.elapsed().as_secs_f64();
    let (cpu_seconds, peak_memory) = process_usage();
    let bytes = progress.bytes.load(Ordering::Relaxed);
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let bytes_per_second = bytes as f64 / seconds.checksums.max(f64::MIN_POSITIVE);
    Ok(VerifyReport {
        path: config.backup.clone(),
        verified: count == 0,
        problem_count: count,
        problems: kept,
        manifest_version: facts.summary.version,
        system_identifier: facts.summary.system_identifier.map(|identifier| identifier.to_string()),
        wal_ranges: facts.wal_ranges,
        files: facts.files,
        files_summed: progress.files.load(Ordering::Relaxed),
        bytes,
        bytes_from_cache: reading.from_cache,
        bytes_per_second: if bytes == 0 { 0.0 } else { bytes_per_second },
        cpu_seconds,
        peak_memory,
        workers: config.resources.workers.max(1),
        io: reading.way.mode.to_string(),
        io_reason: reading.way.reason,
        limited_by: VerifyLimit::judge(&seconds, &reading.workers),
        worker_seconds: reading.workers,
        seconds,
    })
}

/// The reason of whoever threw the switch, if it was not the caller.
fn reason(stop: &Stop<Failure>, failure: Failure) -> Failure {
    match failure {
        Failure::Stopped => stop.take_reason().unwrap_or(Failure::Stopped),
        failure => failure,
    }
}

fn exists(base: &OwnedFd, name: &str) -> bool {
    rustix::fs::statat(base, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn refuse_what_is_no_plain_backup(config: &VerifyConfig, base: &OwnedFd) -> Result<(), Failure> {
    let archives = ["base.tar", "base.tar.gz", "base.tar.lz4", "base.tar.zst"];
    match archives.into_iter().find(|archive| exists(base, archive)) {
        Some(archive) if !exists(base, "PG_VERSION") => Err(Failure::Target(format!(
            "\"{}\" holds a backup in tar format (\"{archive}\"), which this version does not verify\n\
             HINT: unpack it into an empty folder and verify that, or use pg_verifybackup of PostgreSQL 18.",
            config.backup.display()
        ))),
        _ => Ok(()),
    }
}

fn open_manifest(config: &VerifyConfig, base: &OwnedFd) -> Result<OwnedFd, Failure> {
    let path = &config.manifest;
    let opened = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    opened.map_err(|error| {
        let leftover = [MANIFEST_TMP, HELD_CONTROL_FILE].into_iter().find(|name| exists(base, name));
        match (error, leftover) {
            (Errno::NOENT, Some(leftover)) => Failure::Verification(format!(
                "\"{}\" is a backup that was not completed: there is \"{leftover}\", but no \"{}\"\n\
                 HINT: do not use this backup; take it again.",
                config.backup.display(),
                path.display()
            )),
            (Errno::NOENT, None) => Failure::Verification(format!(
                "could not open \"{}\": {error}\n\
                 HINT: name the folder of a backup that was taken with a manifest, or the manifest's path with \
                 --manifest-path.",
                path.display()
            )),
            _ => Failure::disk("open", path, error),
        }
    })
}

/// Reads the whole manifest and tallies its files.
fn read_facts(run: &Run<'_>) -> Result<ManifestFacts, Failure> {
    let tally = Tally::new();
    let (mut files, mut bytes, mut wal_ranges) = (0, 0, Vec::new());
    let summary = run.read_manifest(&mut |event| {
        match event {
            ManifestEvent::File(file) if !run.config.ignore.covers(&file.path) => {
                tally.add(&run.keys, &file.path, file.size);
                files += 1;
                if file.checksum.is_some() {
                    bytes += file.size;
                }
            }
            ManifestEvent::WalRange { timeline, start, end } if wal_ranges.len() < KEPT_RANGES => {
                let (start, end) = (start.to_string(), end.to_string());
                wal_ranges.push(NeededWal { timeline: timeline.0, start, end });
            }
            _ => {}
        }
        Ok(())
    })?;
    run.progress.total_files.store(files, Ordering::Relaxed);
    run.progress.total_bytes.store(bytes, Ordering::Relaxed);
    Ok(ManifestFacts { summary, tally, wal_ranges, files })
}

/// Presence and sizes, then contents.
fn compare(
    run: &Run<'_>,
    facts: &ManifestFacts,
    way: Way,
    seconds: &mut VerifySeconds,
) -> Result<Reading, Failure> {
    let began = Instant::now();
    run.progress.enter(VerifyPhase::Presence);
    let compared = presence::check(run, facts).and_then(|()| check_system_identifier(run, facts));
    seconds.presence = began.elapsed().as_secs_f64();
    compared?;
    run.presence_is_known();
    if run.config.skip_checksums {
        return Ok(Reading { way, from_cache: 0, workers: WorkerSeconds::default() });
    }
    let began = Instant::now();
    run.progress.enter(VerifyPhase::Checksums);
    let read = read_contents(run, facts, way);
    seconds.checksums = began.elapsed().as_secs_f64();
    read
}

/// From version 2 on, a manifest names its cluster, and so does the control file in its first eight bytes
/// (`catalog/pg_control.h`).
fn check_system_identifier(run: &Run<'_>, facts: &ManifestFacts) -> Result<(), Failure> {
    let Some(expected) = facts.summary.system_identifier else { return Ok(()) };
    if run.config.ignore.covers(CONTROL_FILE) {
        return Ok(());
    }
    let mut bytes = [0; 8];
    let read = Tree::new(run.base.as_fd())
        .open_file(CONTROL_FILE)
        .and_then(|file| Ok(rustix::io::pread(file, &mut bytes, 0)?));
    match read {
        Ok(8) if u64::from_le_bytes(bytes) != expected => {
            run.report(Problem::SystemIdentifier { found: u64::from_le_bytes(bytes), expected })
        }
        // Too short or not there: presence and sizes have told. Not readable: the checksums will.
        Err(error) if run.config.skip_checksums && error.kind() != std::io::ErrorKind::NotFound => {
            let path = CONTROL_FILE.to_vec();
            run.report(Problem::Unreadable { path, action: "read file", reason: error.to_string() })
        }
        _ => Ok(()),
    }
}

/// Deals the manifest's files to readers, each with a disk and buffers of its own.
fn read_contents(run: &Run<'_>, facts: &ManifestFacts, way: Way) -> Result<Reading, Failure> {
    let readers = run.config.resources.workers.max(1);
    let buffers = (run.config.resources.buffer_bytes / BUFFER / readers).max(1);
    let (times, from_cache) = (WorkerTimes::default(), AtomicU64::new(0));
    let (sender, receiver) = bounded(2 * readers);
    let work = |hands: Receiver<Hand>| {
        let pool = BufferPool::new(buffers, BUFFER)
            .map_err(|error| Failure::disk("reserve buffers to read", &run.config.backup, error))?;
        let opened = match &run.config.resources.faults {
            None => open_disk(way.mode, buffers, way.alignment, Some(&pool)),
            Some(plan) => open_faulty_disk(way.mode, buffers, way.alignment, Some(&pool), plan),
        };
        let (disk, _) = opened.map_err(|error| Failure::Target(error.to_string()))?;
        let doorbell = disk.doorbell();
        run.stop.on_thrown(move || doorbell.ring());
        Reader::new(run, hands, disk, pool, WorkerClock::start(&times), &from_cache).run()
    };
    thread::scope(|scope| {
        let handles: Vec<_> = (0..readers)
            .map(|number| {
                let hands = receiver.clone();
                let work = || {
                    work(hands).inspect_err(|failure| {
                        // The others are to end too; the first reason is the one that is told.
                        if !matches!(failure, Failure::Stopped) {
                            run.stop.throw_quietly();
                        }
                    })
                };
                thread::Builder::new()
                    .name(format!("verify-{number}"))
                    .spawn_scoped(scope, work)
                    .map_err(|error| Failure::disk("start a thread to read", &run.config.backup, error))
            })
            .collect();
        // With the last reader the queue is to close, so that dealing ends.
        drop(receiver);
        let mut outcome = all_started(&handles).and_then(|()| deal::deal(run, facts, &sender));
        drop(sender);
        for handle in handles.into_iter().flatten() {
            let worked = handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            if let (Err(_), Ok(()) | Err(Failure::Stopped)) = (&worked, &outcome) {
                outcome = worked;
            }
        }
        outcome
    })?;
    Ok(Reading { way, from_cache: from_cache.into_inner(), workers: times.seconds() })
}

/// The first thread that could not be started.
fn all_started<T>(started: &[Result<T, Failure>]) -> Result<(), Failure> {
    match started.iter().find_map(|started| started.as_ref().err()) {
        None => Ok(()),
        Some(failure) => Err(Failure::Target(failure.to_string())),
    }
}
