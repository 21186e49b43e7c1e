//! Verifies a backup where it lies, against its manifest. Of one in plain format:
//!
//! ```text
//! manifest ─► tally ─┐
//!                    ├─ equal? ─ yes ─► manifest ─► pieces ─► readers: open, read, sum up, compare
//! folders ──► tally ─┘      └─── no ──► name what differs, some buckets at a time ──┘
//! ```
//! 1. The manifest is read to its end and must carry its own checksum: nothing is compared with a damaged one.
//! 2. Paths and sizes of both sides are tallied and compared; differences are named.
//! 3. Contents are read and summed up, by all cores.
//! 4. The WAL that the manifest asks for is read, and every record of it checked.
//!
//! Invariants: nothing is written, not even access times where the files are ours; memory does not grow with the
//! number of files or their sizes, the manifest is streamed once more instead; no symbolic link is followed but
//! those of tablespaces; the page cache is used for what it holds and not filled with the rest.
//!
//! Of one in tar format, see `archives`.

mod algorithms;
mod archive;
mod archive_members;
mod archive_wal;
mod archive_worker;
mod archives;
mod cached;
mod config;
mod deal;
mod ignore;
mod lz4_frames;
#[cfg(test)]
pub(super) mod made_wal;
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
mod wal;
mod wal_range;
mod wal_store;
mod walk;
mod way;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam::channel::{Receiver, bounded};
use pgstrata_protocol::manifest::{ChecksumValue, ManifestEvent, ManifestFile, ManifestSummary, WalRange};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

pub use config::{BackupFormat, VerifyConfig, VerifyResources};
pub use ignore::IgnoreList;
pub use problem::Problem;
pub use progress::{VerifyPhase, VerifyProgress};
pub use report::{NeededWal, VerifyLimit, VerifyReport, VerifySeconds, WorkerSeconds};
pub(crate) use tree::{Tree, open_base};

use crate::basebackup::process_usage;
use crate::buffer::BufferPool;
use crate::failure::Failure;
use crate::ring::{IoMode, open_disk, open_faulty_disk};
use crate::sink::HELD_CONTROL_FILE;
use crate::stop::Stop;
use algorithms::Algorithms;
use deal::Hand;
use problem::Found;
use reader::Reader;
use report::{WorkerClock, WorkerTimes};
use run::Run;
use tally::Tally;
use way::Way;

/// The manifest's name in a backup.
const MANIFEST: &str = "backup_manifest";
/// Its name until the backup is complete.
const MANIFEST_TMP: &str = "backup_manifest.tmp";
/// The control file (`XLOG_CONTROL_FILE`, `access/xlog_internal.h`).
const CONTROL_FILE: &[u8] = b"global/pg_control";
/// How many of its bytes name the cluster.
const CONTROL_HEAD: usize = 12;
/// Bytes of a buffer: they stay in a core's cache between the read and the checksum.
const BUFFER: usize = 256 << 10;
/// Of more WAL ranges than this a report keeps the first.
const KEPT_RANGES: usize = 64;
/// More ranges, and so more timelines within one backup, are not believed.
const MOST_RANGES: usize = 4096;

/// What the first reading of the manifest tells.
struct ManifestFacts {
    summary: ManifestSummary,
    /// In tar format with the files' checksums, unless those are to be skipped.
    tally: Tally,
    /// Only in tar format.
    algorithms: Algorithms,
    wal_ranges: Vec<WalRange>,
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
    let manifest = open_manifest(config, &base)?;
    let format = config.format.unwrap_or_else(|| format_of(&base));
    let way = match format {
        BackupFormat::Plain => way::choose(config.resources.io, manifest)?,
        BackupFormat::Tar => way_through_archives(config)?,
    };
    let run = Run::new(config, &base, progress, stop);
    let mut seconds = VerifySeconds::default();

    progress.enter(VerifyPhase::Manifest);
    let facts = read_facts(&run, format).map_err(|failure| reason(stop, failure))?;
    seconds.manifest = began.elapsed().as_secs_f64();
    let outcome = match format {
        BackupFormat::Plain => compare(&run, &facts, way.clone(), &mut seconds),
        BackupFormat::Tar => archives::compare(&run, &facts, way.clone(), &mut seconds),
    };
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
        wal_ranges: facts.wal_ranges.iter().take(KEPT_RANGES).map(NeededWal::from).collect(),
        wal_parsed: config.parse_wal,
        wal_bytes: progress.wal_bytes.load(Ordering::Relaxed),
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

/// A data directory begins with its version; pg_verifybackup takes all others for tar format. Here one that lost that
/// file, and has no archive either, is still verified as what it was.
fn format_of(base: &OwnedFd) -> BackupFormat {
    if !exists(base, "PG_VERSION") && archive::has_base_archive(base) {
        BackupFormat::Tar
    } else {
        BackupFormat::Plain
    }
}

/// Archives are few and large: the kernel's own read-ahead serves them.
fn way_through_archives(config: &VerifyConfig) -> Result<Way, Failure> {
    match config.resources.io {
        None | Some(IoMode::Threads) => Ok(Way {
            mode: IoMode::Threads,
            alignment: 1,
            reason: "archives through the page cache, dropping what was not in it".into(),
        }),
        Some(other) => Err(Failure::Target(format!(
            "--io={other} is not supported for backups in tar format\nHINT: leave it out, or use --io=threads."
        ))),
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
                "could not open file \"{}\": {error}\n\
                 HINT: name the folder of a backup that was taken with a manifest, or the manifest's path with \
                 --manifest-path.",
                path.display()
            )),
            _ => Failure::disk("open", path, error),
        }
    })
}

/// Reads the whole manifest and tallies its files.
fn read_facts(run: &Run<'_>, format: BackupFormat) -> Result<ManifestFacts, Failure> {
    let (tally, mut algorithms) = (Tally::new(), Algorithms::default());
    let (mut files, mut bytes, mut wal_ranges) = (0, 0, Vec::new());
    let summary = run.read_manifest(&mut |event| {
        match event {
            ManifestEvent::File(file) if !run.config.ignore.covers(&file.path) => {
                match format {
                    BackupFormat::Plain => tally.add(&run.keys, &file.path, file.size),
                    BackupFormat::Tar => {
                        tally_content(run, &tally, &mut algorithms, &file)?;
                    }
                }
                files += 1;
                if file.checksum.is_some() {
                    bytes += file.size;
                }
            }
            ManifestEvent::WalRange { .. } if wal_ranges.len() >= MOST_RANGES => {
                return Err(Failure::Verification(format!(
                    "\"{}\" has more than {MOST_RANGES} WAL ranges, expected one for each timeline of the backup",
                    run.config.manifest.display()
                )));
            }
            ManifestEvent::WalRange { timeline, start, end } => {
                wal_ranges.push(WalRange { timeline, start, end });
            }
            _ => {}
        }
        Ok(())
    })?;
    run.progress.total_files.store(files, Ordering::Relaxed);
    run.progress.total_bytes.store(bytes, Ordering::Relaxed);
    Ok(ManifestFacts { summary, tally, algorithms, wal_ranges, files })
}

fn tally_content(
    run: &Run<'_>,
    tally: &Tally,
    algorithms: &mut Algorithms,
    file: &ManifestFile,
) -> Result<(), Failure> {
    let checksum = file.checksum.filter(|_| !run.config.skip_checksums);
    let noted = algorithms.note(&run.keys, &file.path, checksum.map(|(algorithm, _)| algorithm));
    noted.map_err(|_| {
        Failure::Verification(format!(
            "\"{}\" mixes checksum algorithms in more files than can be verified in tar format\n\
             HINT: unpack the archives into an empty folder and verify that.",
            run.config.manifest.display()
        ))
    })?;
    let value = checksum.map(|(_, value)| value);
    tally.add_content(&run.keys, &file.path, file.size, value.as_ref().map_or(&[], ChecksumValue::as_bytes));
    Ok(())
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
    let mut reading = Reading { way: way.clone(), from_cache: 0, workers: WorkerSeconds::default() };
    if !run.config.skip_checksums {
        let began = Instant::now();
        run.progress.enter(VerifyPhase::Checksums);
        let read = read_contents(run, facts, way);
        seconds.checksums = began.elapsed().as_secs_f64();
        reading = read?;
    }
    if run.config.parse_wal {
        let began = Instant::now();
        run.progress.enter(VerifyPhase::Wal);
        let identifier = facts.summary.system_identifier.or_else(|| control_identifier(run).ok().flatten());
        let checked = wal::check_folder(run, &facts.wal_ranges, identifier);
        seconds.wal = began.elapsed().as_secs_f64();
        checked?;
    }
    Ok(reading)
}

/// From version 2 on, a manifest names its cluster, and so does the control file.
fn check_system_identifier(run: &Run<'_>, facts: &ManifestFacts) -> Result<(), Failure> {
    let Some(expected) = facts.summary.system_identifier else { return Ok(()) };
    if run.config.ignore.covers(CONTROL_FILE) {
        return Ok(());
    }
    match control_identifier(run) {
        Ok(Some(found)) if found != expected => run.report(Problem::SystemIdentifier { found, expected }),
        // Too short or not there: presence and sizes have told. Not readable: the checksums will.
        Err(error) if run.config.skip_checksums && error.kind() != std::io::ErrorKind::NotFound => {
            let path = CONTROL_FILE.to_vec();
            run.report(Problem::Unreadable { path, action: "read file", reason: error.to_string() })
        }
        _ => Ok(()),
    }
}

/// The cluster that the control file names; `None` where the file is too short.
fn control_identifier(run: &Run<'_>) -> std::io::Result<Option<u64>> {
    let mut bytes = [0; CONTROL_HEAD];
    let file = Tree::new(run.base.as_fd()).open_file(CONTROL_FILE)?;
    let read = rustix::io::pread(file, &mut bytes, 0)?;
    Ok((read == bytes.len()).then(|| identifier_of(&bytes)))
}

/// The system identifier and the version that begin a control file (`ControlFileData`, `catalog/pg_control.h`), in the
/// byte order of the machine that wrote it: versions are small numbers, as PostgreSQL itself tells the order.
fn identifier_of(head: &[u8; CONTROL_HEAD]) -> u64 {
    let [identifier @ .., v0, v1, v2, v3] = *head;
    if u32::from_le_bytes([v0, v1, v2, v3]) > 0xFFFF {
        u64::from_be_bytes(identifier)
    } else {
        u64::from_le_bytes(identifier)
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
