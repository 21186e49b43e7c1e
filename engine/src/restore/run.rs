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
use crate::repository::{FileRecord, Manifest, OpenPacks};
use crate::ring::{IoMode, ProbeReport, probe};
use crate::stop::Stop;

/// The most small files in one job.
const JOB: usize = 256;

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

/// Deals files to the workers. Neighbours that lie in one frame stay together, so that it is read once.
fn deal(manifest: &Manifest, jobs: &Sender<Vec<FileRecord>>, stop: &Stop<Failure>) -> Result<(), Failure> {
    let frame = |file: &FileRecord| match &file.map[..] {
        [] => None,
        [extent] => Some((extent.pack, extent.frame)),
        _ => Some((u32::MAX, u32::MAX)),
    };
    let send = |job: &mut Vec<FileRecord>| {
        if stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        if job.is_empty() { Ok(()) } else { jobs.send(std::mem::take(job)).map_err(|_| Failure::Stopped) }
    };
    let mut job: Vec<FileRecord> = Vec::new();
    let mut of = None;
    manifest.each_file(|file| {
        let place = frame(&file);
        // Empty files go along with anything.
        let together = place.is_none() || of.is_none() || place == of;
        if !together || job.len() >= JOB {
            send(&mut job)?;
            of = None;
        }
        of = place.or(of);
        job.push(file);
        Ok(())
    })?;
    send(&mut job)
}
