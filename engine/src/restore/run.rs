//! Runs a restore.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam::channel::{Sender, bounded};

use super::config::{RestoreConfig, RestoreReport};
use super::target::Target;
use super::worker::{FrameReader, Worker};
use crate::basebackup::{Claims, PlainEnd};
use crate::buffer::BufferPool;
use crate::failure::Failure;
use crate::pipeline::{FileWriters, Layout, StageClock};
use crate::repository::{FileRecord, Manifest, OpenPacks, PLAIN_MAX};
use crate::ring::{IoMode, ProbeReport, probe};
use crate::stop::Stop;

/// The most small files in one job.
const JOB: usize = 256;
/// A file of more bytes does not lie in one frame.
const SMALL: u64 = PLAIN_MAX as u64;

/// Restores. `warn` hears what could not be cleaned up after a failure; `stop` ends it early.
pub fn run(
    config: &RestoreConfig,
    warn: &dyn Fn(&str),
    stop: &Stop<Failure>,
) -> Result<RestoreReport, Failure> {
    let mut claims = Claims::new(true);
    match restore(config, &mut claims, stop) {
        Ok(report) => {
            claims.keep();
            Ok(report)
        }
        Err(failure) => {
            for failure in claims.remove() {
                warn(&format!("could not clean up: {failure}"));
            }
            Err(stop.take_reason().unwrap_or(failure))
        }
    }
}

fn restore(
    config: &RestoreConfig,
    claims: &mut Claims,
    stop: &Stop<Failure>,
) -> Result<RestoreReport, Failure> {
    let began = Instant::now();
    let store = Arc::clone(config.repository.store());
    stop.on_thrown(move || store.give_up());
    let manifest = Arc::new(config.repository.backup(&config.cluster, config.backup)?);
    let target = Target::make(claims, &manifest, &config.target, &config.tablespace_mapping)?;
    let probed = probe(&config.target, config.resources.io);
    let ProbeReport { mode, reason, alignment, .. } =
        probed.map_err(|error| Failure::Target(error.to_string()))?;
    let target = Arc::new(target);
    write_files(config, &manifest, &target, (mode, alignment), stop)?;
    if stop.is_thrown() {
        return Err(Failure::Stopped);
    }
    let mut folders = target.made.clone();
    folders.extend(claims.parents());
    let end = PlainEnd {
        base: &config.target,
        folders,
        recovery: None,
        has_manifest: true,
        held: target.held.clone(),
        file_mode: 0o600,
        sync: true,
    };
    end.finish()?;
    let summary = &manifest.summary;
    Ok(RestoreReport {
        path: config.target.clone(),
        cluster: summary.cluster.clone(),
        backup: summary.backup.clone(),
        server_version: summary.server_version.clone(),
        start_lsn: summary.start_lsn.clone(),
        end_lsn: summary.end_lsn.clone(),
        timeline: summary.end_timeline,
        files: summary.files,
        bytes: summary.bytes,
        seconds: began.elapsed().as_secs_f64(),
        io: format!("{mode} ({reason})"),
        requests: config.repository.store().requests(),
    })
}

fn write_files(
    config: &RestoreConfig,
    manifest: &Arc<Manifest>,
    target: &Arc<Target>,
    (mode, alignment): (IoMode, usize),
    stop: &Stop<Failure>,
) -> Result<(), Failure> {
    let resources = &config.resources;
    let pool = BufferPool::new(resources.buffers, resources.buffer_size).map_err(|error| {
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
            packs: OpenPacks::of(manifest),
            target: Arc::clone(target),
            pool: pool.clone(),
            files: writers.sender(),
            clock: StageClock::start(Arc::default()),
            frames: FrameReader::new()?,
            last: None,
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
    let dealt = deal(manifest, &jobs, stop);
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
fn deal(manifest: &Manifest, jobs: &Sender<Vec<FileRecord>>, stop: &Stop<Failure>) -> Result<(), Failure> {
    let send = |job: Vec<FileRecord>| {
        if stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        if job.is_empty() { Ok(()) } else { jobs.send(job).map_err(|_| Failure::Stopped) }
    };
    let mut under_way = Job::default();
    manifest.each_file(|file| match under_way.join(file) {
        Some(full) => send(full),
        None => Ok(()),
    })?;
    send(under_way.files)
}

/// Neighbours that lie in one frame, so that it is read once. A file that has frames of its own is a job of its own:
/// nothing is saved by one worker for several of these.
#[derive(Default)]
struct Job {
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

impl Job {
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
            FileRecord { path: b"x".to_vec(), mode: 0, size, modified: 0, map }
        };
        let jobs = |files: Vec<FileRecord>| {
            let mut job = Job::default();
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
