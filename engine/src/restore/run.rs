//! Runs a restore.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use crossbeam::channel::{Sender, bounded};

use super::config::{Onto, RestoreConfig, RestoreReport};
use super::examine::{check_packs, examine, refusal};
use super::inherited;
use super::marker::{MARKER, Marker};
use super::occupied::{check_no_server, lock, put_control_back, take_control_away};
use super::sweep::sweep;
use super::target::Target;
use super::worker::{Counts, Job, LargeFile, Worker};
use crate::basebackup::{Claims, PlainEnd, sync_file_systems};
use crate::buffer::BufferPool;
use crate::failure::Failure;
use crate::pipeline::{FileSender, FileWriters, Layout, StageClock};
use crate::repository::{BackupChoice, FileRecord, FrameAccess, FrameReader, Manifest, PLAIN_MAX};
use crate::ring::{IoMode, ProbeReport, probe};
use crate::stop::Stop;

/// The most small files in one job.
const JOB: usize = 256;
/// A file of more bytes is put together by several workers.
const LARGE: u64 = 64 << 20;
/// A file of more bytes does not lie in one frame.
const SMALL: u64 = PLAIN_MAX as u64;

/// Restores. `warn` hears what could not be cleaned up after a failure; `stop` ends it early.
pub fn run(
    config: &RestoreConfig,
    warn: &dyn Fn(&str),
    stop: &Stop<Failure>,
) -> Result<RestoreReport, Failure> {
    let mut claims = Claims::new(config.options.clean);
    let outcome = restore(config, &mut claims, warn, stop);
    let Err(failure) = outcome else {
        claims.keep();
        return outcome;
    };
    // What was there before is nobody's to remove: over an old cluster only its folder's mark says how it stands.
    if config.options.clean && claims.has(&config.target) {
        for failure in claims.remove() {
            warn(&format!("could not clean up: {failure}"));
        }
    } else {
        claims.keep();
        if config.target.join(MARKER).exists() {
            warn(&format!(
                "the unfinished restore in \"{}\" was not removed: --resume goes on with it",
                config.target.display()
            ));
        }
    }
    Err(stop.take_reason().unwrap_or(failure))
}

fn restore(
    config: &RestoreConfig,
    claims: &mut Claims,
    warn: &dyn Fn(&str),
    stop: &Stop<Failure>,
) -> Result<RestoreReport, Failure> {
    let began = Instant::now();
    let store = Arc::clone(config.repository.store());
    stop.on_thrown(move || store.give_up());
    let given = choose(config)?;
    let prepared = config.recovery.as_ref();
    let recovery =
        prepared.map(|plan| plan.prepare(&config.repository, &config.cluster, given)).transpose()?;
    recovery.iter().flat_map(|recovery| &recovery.warnings).for_each(|text| warn(text));
    let backup = recovery.as_ref().map_or(given, |recovery| recovery.backup);
    let (manifest, _lease) = config.repository.backup_to_read(&config.cluster, backup, warn)?;
    let manifest = Arc::new(manifest);
    let mut problems = Vec::new();
    let mut plan = examine(config, &manifest, &mut problems)?;
    let reuses = !plan.found.is_nothing();
    if reuses && problems.is_empty() {
        // An old cluster is not given up for a backup that is not there.
        check_packs(config, &manifest, &mut problems)?;
    }
    refusal(&problems)?;
    let (summary, base) = (&manifest.summary, &config.target);
    // Before it is claimed: whoever comes second has nothing to clean up.
    let early = if base.is_dir() { Some(lock(base)?) } else { None };
    if !reuses {
        claims.claim(base, summary.folder_mode & 0o777)?;
    }
    let lock = match early {
        Some(lock) => lock,
        None => lock(base).inspect_err(|_| std::mem::replace(claims, Claims::new(true)).keep())?,
    };
    if reuses {
        check_no_server(base)?;
        take_control_away(base)?;
    }
    plan.marker(summary).write(base, &lock).inspect_err(|_| {
        if reuses {
            put_control_back(base);
        }
    })?;
    let removed = if reuses { sweep(&manifest, &plan.tree, base, &plan.places, stop)? } else { 0 };
    let target = Target::make(claims, &manifest, base, &mut plan)?;
    let probed = probe(&config.target, config.resources.io);
    let ProbeReport { mode, reason, alignment, .. } =
        probed.map_err(|error| Failure::Target(error.to_string()))?;
    let target = Arc::new(target);
    let counts = Arc::new(Counts::default());
    write_files(config, &manifest, &target, &counts, (mode, alignment), stop)?;
    if stop.is_thrown() {
        return Err(Failure::Stopped);
    }
    plan.owners.apply(&manifest, &target)?;
    if let Some(text) = &plan.owners.warning {
        warn(text);
    }
    target.close_folders()?;
    if plan.owners.give() || plan.omitted > 0 {
        // Files that were synced were changed since, or were not.
        sync_file_systems(target.roots().map(|root| root.path.as_path()))?;
    }
    let inherited = match &recovery {
        Some(recovery) => inherited::note(base, &recovery.files.settings),
        None => inherited::remove_signals(base)?,
    };
    inherited.iter().for_each(|text| warn(text));
    let mut folders = target.made.clone();
    folders.extend(claims.parents());
    let end = PlainEnd {
        base: &config.target,
        folders,
        recovery: recovery.as_ref().map(|recovery| recovery.files.clone()),
        has_manifest: true,
        held: target.held.clone(),
        file_mode: 0o600,
        sync: true,
    };
    end.finish()?;
    Marker::remove(base)?;
    Ok(RestoreReport {
        path: config.target.clone(),
        cluster: summary.cluster.clone(),
        backup: summary.backup.clone(),
        server_version: summary.server_version.clone(),
        start_lsn: summary.start_lsn.clone(),
        end_lsn: summary.end_lsn.clone(),
        timeline: summary.end_timeline,
        reachable_lsn: recovery.map(|recovery| recovery.reached.lsn.to_string()),
        files: summary.files,
        bytes: summary.bytes,
        reused_bytes: counts.reused.load(Ordering::Relaxed),
        frames: counts.frames.load(Ordering::Relaxed),
        removed,
        omitted_files: plan.omitted,
        seconds: began.elapsed().as_secs_f64(),
        io: format!("{mode} ({reason})"),
        requests: config.repository.store().requests(),
    })
}

/// The backup that is meant. What was interrupted goes on with the backup that it began with.
pub(super) fn choose(config: &RestoreConfig) -> Result<BackupChoice, Failure> {
    let mut choice = config.backup;
    if (config.options.onto, choice) == (Onto::Interrupted, BackupChoice::Latest)
        && let Some(marker) = Marker::read(&config.target)?
        && let Ok(backup) = marker.backup.parse()
    {
        choice = BackupChoice::Id(backup);
    }
    Ok(choice)
}

fn write_files(
    config: &RestoreConfig,
    manifest: &Arc<Manifest>,
    target: &Arc<Target>,
    counts: &Arc<Counts>,
    (mode, alignment): (IoMode, usize),
    stop: &Stop<Failure>,
) -> Result<(), Failure> {
    let resources = &config.resources;
    let memory = resources.buffers * resources.buffer_size;
    let access = FrameAccess::choose(manifest, resources.io, memory / 2, resources.workers);
    let buffers = (memory - access.memory() * resources.workers) / resources.buffer_size;
    let pool = BufferPool::new(buffers, resources.buffer_size).map_err(|error| {
        Failure::Target(format!("could not allocate buffers: {error}\nHINT: ask for less with --buffers."))
    })?;
    let wake = pool.clone();
    stop.on_thrown(move || wake.close());
    let layout = Layout {
        workers: 0,
        writers: resources.writers,
        stream: None,
        depth: resources.depth,
        mode,
        alignment,
        sync: true,
        compression: None,
        packing: None,
        faults: resources.faults.clone(),
    };
    let writers = FileWriters::start(&layout, &pool, stop)?;
    let (jobs, waiting) = bounded(resources.workers * 2);
    let mut workers = Vec::new();
    for number in 0..resources.workers {
        let worker = Worker {
            jobs: waiting.clone(),
            target: Arc::clone(target),
            pool: pool.clone(),
            files: writers.sender(),
            clock: StageClock::start(Arc::default()),
            frames: FrameReader::of(manifest, &access)?,
            planned: VecDeque::new(),
            last: None,
            counts: Arc::clone(counts),
        };
        let stop = stop.clone();
        let name = format!("restore-{number}");
        let thread = thread::Builder::new().name(name.clone()).spawn(move || {
            let _told = stop.tell_of_panics("a restoring thread");
            worker.run(&stop);
        });
        workers.push(thread.map_err(|error| Failure::disk("start thread", Path::new(&name), error))?);
    }
    drop(waiting);
    let dealt = deal(manifest, target, &writers.sender(), &jobs, stop);
    if let Err(failure) = dealt
        && !matches!(failure, Failure::Stopped)
    {
        stop.throw(failure);
    }
    drop(jobs);
    for worker in workers {
        // A thread that panicked has thrown the switch.
        let _ = worker.join();
    }
    writers.finish();
    Ok(())
}

/// Deals files to the workers.
fn deal(
    manifest: &Manifest,
    target: &Target,
    files: &FileSender,
    jobs: &Sender<Job>,
    stop: &Stop<Failure>,
) -> Result<(), Failure> {
    let send = |job: Job| {
        if stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        jobs.send(job).map_err(|_| Failure::Stopped)
    };
    let mut under_way = Neighbours::default();
    manifest.each_file(|mut file| {
        if target.selection.omits(&file.path) {
            // It needs no frame.
            file.map.clear();
        } else if file.size > LARGE && !target.reuses {
            match LargeFile::parts(file, target, files)? {
                Ok(parts) => return parts.into_iter().try_for_each(send),
                Err(whole) => file = whole,
            }
        }
        match under_way.join(file) {
            Some(full) => send(Job::Files(full)),
            None => Ok(()),
        }
    })?;
    if under_way.files.is_empty() { Ok(()) } else { send(Job::Files(under_way.files)) }
}

/// Neighbours that lie in one frame, so that it is read once. A file that has frames of its own is a job of its own:
/// nothing is saved by one worker for several of these.
#[derive(Default)]
struct Neighbours {
    files: Vec<FileRecord>,
    /// The frame that they share; none while all are empty.
    of: Option<Lies>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lies {
    /// In a frame of a pack.
    In(u32, u32),
    /// In several.
    Apart,
}

impl Neighbours {
    /// Takes a file in. Returns the job before it, where it does not belong there.
    fn join(&mut self, file: FileRecord) -> Option<Vec<FileRecord>> {
        let lies = match &file.map[..] {
            [] => None,
            [extent] if file.size <= SMALL => Some(Lies::In(extent.pack, extent.frame)),
            _ => Some(Lies::Apart),
        };
        // Empty files go along with anything.
        let together = lies.is_none() || self.of.is_none() || (lies == self.of && lies != Some(Lies::Apart));
        let full = (!together || self.files.len() >= JOB).then(|| {
            self.of = None;
            std::mem::take(&mut self.files)
        });
        self.of = lies.or(self.of);
        self.files.push(file);
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{BLOCK, Extent};

    #[test]
    fn only_files_that_share_a_frame_share_a_job() {
        let file = |size: u64, places: &[(u32, u32)]| {
            let count = u32::try_from(size.div_ceil(BLOCK)).expect("small");
            let extent = |(at, (pack, frame)): (u32, &(u32, u32))| {
                let share = count / u32::try_from(places.len()).expect("few");
                Extent { block: at * share, count: share, pack: *pack, frame: *frame, offset: 0 }
            };
            let map = (0..).zip(places).map(extent).collect();
            FileRecord { path: b"x".to_vec(), mode: 0, owner: 0, size, modified: 0, map }
        };
        let jobs = |files: Vec<FileRecord>| {
            let mut job = Neighbours::default();
            let mut lengths: Vec<_> =
                files.into_iter().filter_map(|file| job.join(file)).map(|job| job.len()).collect();
            lengths.push(job.files.len());
            lengths
        };
        let gib = 1 << 30;
        let segment = || file(gib, &[(0, 0), (1, 0)]);
        assert_eq!(jobs(vec![segment(), segment(), segment()]), [1, 1, 1]);
        // The same bytes are the same frames, and still each file is written whole.
        assert_eq!(jobs(vec![file(gib, &[(0, 0)]), file(gib, &[(0, 0)])]), [1, 1]);
        let small = |frame: u32| file(BLOCK, &[(0, frame)]);
        assert_eq!(jobs(vec![small(1), file(0, &[]), small(1), small(2), segment(), small(2)]), [3, 1, 1, 1]);
        assert_eq!(jobs((0..JOB + 1).map(|_| small(1)).collect()), [JOB, 1]);
    }
}
