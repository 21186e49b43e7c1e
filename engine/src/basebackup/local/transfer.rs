//! The time in which data flows: walker, readers and pipeline started, watched, and settled.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Sender, bounded};
use pgstrata_protocol::label::{BackupLabel, BackupOrigin};
use pgstrata_protocol::manifest::ChecksumAlgorithm;
use pgstrata_protocol::replication::BackupPosition;
use tokio::sync::Notify;

use super::super::prepare::ServerFacts;
use super::super::progress::Phase;
use super::super::run::{Io, Run};
use super::control::read_control;
use super::held::Held;
use super::manifest::LocalManifest;
use crate::buffer::BufferPool;
use crate::connect::ControlRuntime;
use crate::failure::Failure;
use crate::pipeline::{Checks, Counters, Feeder, Folder, Layout, Member, Pipeline, StageCounters};
use crate::repository::{BaseBackup, RepositoryWriting, now};
use crate::ring::Registered;
use crate::sink::Archive;
use crate::source::local::{
    FOUND_QUEUE, Numbers, Owners, Pace, ReadAccess, Reader, Reading, Rules, Walker, Work,
};
use crate::stop::Stop;
use crate::tracking::{Planner, Tally};
use crate::verify::ContentChecks;

/// Members on their way to the manifest.
const QUEUE: usize = 1024;
/// Reads that a reader keeps with the disk, at most.
const DEPTH: usize = 32;

/// What is to be read, and how.
pub(super) struct Job<'a> {
    pub(super) base: &'a Arc<Folder>,
    pub(super) archives: &'a [Archive],
    pub(super) rules: Rules,
    pub(super) access: ReadAccess,
    pub(super) start: BackupPosition,
    pub(super) checks_pages: bool,
    pub(super) in_recovery: bool,
    /// Says what is kept of an older backup, if something is.
    pub(super) planner: Option<Planner>,
    /// That backup.
    pub(super) base_backup: Option<Arc<BaseBackup>>,
    pub(super) tally: Arc<Tally>,
}

/// What a transfer leaves.
pub(super) struct Moved {
    pub(super) end: BackupPosition,
    pub(super) pipeline: Pipeline,
    pub(super) counters: Counters,
    pub(super) manifest: std::fs::File,
    pub(super) files: u64,
}

/// Tells that a thread has ended, however it did.
struct Ended(Arc<Notify>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Run<'_> {
    /// Moves all data, and returns once it is checked, written and synced. `ended` is called as soon as the server has
    /// said where the backup ends.
    pub(super) fn transfer_local(
        &self,
        (runtime, held): (&ControlRuntime, &mut Held),
        job: Job<'_>,
        facts: &ServerFacts,
        io: &Io,
        writing: &mut RepositoryWriting,
        ended: impl FnOnce(BackupPosition),
    ) -> Result<Moved, Failure> {
        let config = self.config;
        let resources = &config.resources;
        let pool = BufferPool::new(self.buffers_before(), resources.buffer_size).map_err(|error| {
            Failure::Target(format!(
                "could not allocate buffers: {error}\nHINT: ask for less with --buffers."
            ))
        })?;
        let wake = pool.clone();
        self.stop.on_thrown(move || wake.close());
        let algorithm =
            config.manifest.and_then(|manifest| manifest.checksums).unwrap_or(ChecksumAlgorithm::None);
        let force_encode = config.manifest.is_some_and(|manifest| manifest.force_encode);
        let file = self.create_manifest(facts.file_mode)?;
        let file = file.ok_or_else(|| Failure::Target("a backup in a repository needs a manifest".into()))?;
        let (major, system) = (facts.version.major(), facts.system.system_identifier);
        let manifest = LocalManifest::new(file, major, system, (algorithm, force_encode));
        let (ledger, arrivals) = bounded(QUEUE);
        let manifest = self.spawn("manifest", move |_| manifest.run(&arrivals))?;
        let layout = Layout {
            workers: resources.workers,
            writers: resources.writers,
            stream: None,
            depth: resources.depth,
            mode: io.mode,
            alignment: io.alignment,
            sync: true,
            compression: None,
            packing: Some(writing.packing(self.buffers_behind())),
            faults: resources.faults.clone(),
        };
        let checks = Checks { algorithm, content: ContentChecks::default() };
        let (mut pipeline, feeder) = Pipeline::start(&layout, &pool, &checks, &ledger, self.stop)?;
        // The last of its senders is to go with the lanes.
        drop((ledger, layout));
        if let Registered::No(reason) = &pipeline.registered {
            self.note(format_args!("buffers are not registered with the kernel: {reason}"));
        }

        self.enter(Phase::Receiving);
        let start = job.start;
        let readers = Arc::new(StageCounters::default());
        let counters = Counters { feeder: Arc::clone(&readers), ..pipeline.counters.clone() };
        let reading = self.reading(&job, &pool, &pipeline, readers);
        let fed =
            self.feed((runtime, held), job, reading, facts, feeder, writing).inspect(|(end, _)| ended(*end));
        match &fed {
            Err(Failure::Stopped) => self.stop.throw_quietly(),
            _ => self.enter(Phase::Settling),
        }
        let fed = fed.map_err(|failure| {
            // Before the lanes find what follows from it.
            if !matches!(failure, Failure::Stopped) {
                self.stop.throw(failure);
            }
            Failure::Stopped
        });
        pipeline.finish();
        let manifest = manifest.join().ok().flatten();
        let (end, files) = fed?;
        self.check_stopped()?;
        let manifest = manifest.ok_or(Failure::Stopped)?.finish(files, [start, end])?;
        Ok(Moved { end, pipeline, counters, manifest, files })
    }

    /// What all readers have in common.
    fn reading(
        &self,
        job: &Job<'_>,
        pool: &BufferPool,
        pipeline: &Pipeline,
        counters: Arc<StageCounters>,
    ) -> (Reading, Sender<Work>, Arc<StageCounters>) {
        let (config, readers) = (self.config, self.config.resources.workers.max(1));
        let (works, found) = bounded(FOUND_QUEUE);
        let reading = Reading {
            works: found,
            access: job.access.clone(),
            // Half of the buffers at most, so that the lanes always have some.
            depth: (pool.count() / (2 * readers)).clamp(1, DEPTH),
            pool: pool.clone(),
            numbers: Arc::new(Numbers::new(readers)),
            owners: Owners::default(),
            checks_from: job.checks_pages.then_some(job.start.lsn),
            findings: Arc::clone(&pipeline.findings),
            pace: config.max_rate_kb.map(|rate| Arc::new(Pace::new(rate))),
            base: job.base_backup.clone(),
            tally: Arc::clone(&job.tally),
            progress: Arc::clone(self.progress),
            stop: self.stop.clone(),
        };
        (reading, works, counters)
    }

    /// Feeds the lanes with all there is. Returns where the backup ends, and how many files it has.
    fn feed(
        &self,
        (runtime, held): (&ControlRuntime, &mut Held),
        job: Job<'_>,
        (reading, works, counters): (Reading, Sender<Work>, Arc<StageCounters>),
        facts: &ServerFacts,
        mut feeder: Feeder,
        writing: &mut RepositoryWriting,
    ) -> Result<(BackupPosition, u64), Failure> {
        let Job { base, archives, rules, start, in_recovery, planner, .. } = job;
        let (numbers, mut owners) = (Arc::clone(&reading.numbers), reading.owners.clone());
        let ended = Arc::new(Notify::new());
        let all = Arc::new(Ended(Arc::clone(&ended)));
        let mut readers = Vec::new();
        for (number, mouth) in feeder.mouths(writing.packs_folder(), &counters).into_iter().enumerate() {
            let (reading, all) = (reading.clone(), Arc::clone(&all));
            readers.push(self.spawn(&format!("read-{number}"), move |_| {
                let _all = all;
                Reader::open(reading, number, mouth)?.run()
            })?);
        }
        drop((reading, all));
        let (folder, archives) = (Arc::clone(base), archives.to_vec());
        let (observer, theirs) = (Arc::clone(self.observer), owners.clone());
        let buffer_size = self.config.resources.buffer_size as u64;
        let walker = self.spawn("walk", move |stop| {
            Walker::new(rules, (works, theirs), planner, buffer_size, &*observer, stop)
                .walk(&folder, &archives)
        })?;
        // Where the session dies the server ends the backup, and what was read is worth nothing.
        let watched = self.wait(runtime, async {
            tokio::select! {
                error = held.watch() => {
                    let hint = "the server's log says why it ended; the server has ended the backup with it: take it again.";
                    Err(Failure::session_with_hint(
                        "the session that holds the backup open was lost",
                        error,
                        Some(hint.into()),
                    ))
                }
                () = ended.notified() => Ok(()),
            }
        });
        if let Err(failure) = watched {
            // Readers that wait for the disk or for a buffer are to end before the lanes do.
            match failure {
                Failure::Stopped => self.stop.throw_quietly(),
                failure => self.stop.throw(failure),
            }
        }
        let mut all_ended = true;
        for reader in readers {
            all_ended &= reader.join().ok().flatten().is_some();
        }
        let folders = walker.join().ok().flatten();
        self.check_stopped()?;
        if !all_ended {
            return Err(Failure::Stopped);
        }
        let path = base.path.join("global/pg_control");
        let facts_of_control =
            rustix::fs::stat(&path).map_err(|error| Failure::disk("look at", &path, error))?;
        // The server starts with its control file or not at all: whose that is, the directory is.
        let owner = owners.number(facts_of_control.st_uid, facts_of_control.st_gid);
        let folders = folders.ok_or(Failure::Stopped)?;
        writing.sink.add_folders(folders, owners.into_table(), owner);

        // After everything else: a standby's says how far recovery must go for all of it.
        let (control, said) = read_control(&base.path)?;
        let sequence = numbers.count();
        self.add(writing, &mut feeder, facts, (sequence, "global/pg_control"), &control)?;
        let stopped = self.wait(runtime, held.stop())?;
        let end = BackupPosition { lsn: stopped.lsn, timeline: start.timeline };
        let label = &stopped.label;
        check_label(label, in_recovery, [start, end])?;
        if in_recovery {
            let (point, on) = (said.min_recovery_point, said.min_recovery_timeline);
            if point > stopped.lsn || (point.0 > 0 && on != start.timeline) {
                return Err(Failure::Target(format!(
                    "the control file says that recovery is consistent at {point} on timeline {on} at the earliest, \
                     expected no later than the backup's end at {} on timeline {}\n\
                     HINT: see that -d leads to the very server whose data directory this is, and take the backup again.",
                    stopped.lsn, start.timeline
                )));
            }
            let timeline = self.wait(runtime, held.recovery_timeline())?;
            if timeline != end.timeline {
                return Err(Failure::Target(format!(
                    "the standby changed from timeline {} to {timeline} while the backup ran\n\
                     HINT: take the backup again.",
                    end.timeline
                )));
            }
        }
        self.add(writing, &mut feeder, facts, (sequence + 1, "backup_label"), label)?;
        writing.sink.end_group(&mut feeder)?;
        Ok((end, sequence + 2))
    }

    /// Feeds a file that is in memory.
    fn add(
        &self,
        writing: &mut RepositoryWriting,
        feeder: &mut Feeder,
        facts: &ServerFacts,
        (sequence, path): (u64, &str),
        content: &[u8],
    ) -> Result<(), Failure> {
        self.progress.begin_file(path.as_bytes());
        let (path, size) = (path.as_bytes().to_vec(), content.len() as u64);
        let member = Member {
            sequence,
            path,
            size,
            mode: facts.file_mode,
            modified: now(),
            owner: writing.sink.folder_owner(),
            overlay: None,
        };
        writing.sink.begin_file(feeder, member)?;
        feeder.append(content)?;
        writing.sink.end_file(feeder)
    }

    /// Starts a thread whose failure ends the run.
    fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&Stop<Failure>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<JoinHandle<Option<T>>, Failure> {
        let stop = self.stop.clone();
        let run = move || {
            let _told = stop.tell_of_panics("a thread that reads the data directory");
            match work(&stop) {
                Ok(done) => Some(done),
                Err(Failure::Stopped) => None,
                Err(failure) => {
                    stop.throw(failure);
                    None
                }
            }
        };
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
        spawned.map_err(|error| Failure::disk("start thread", name, error))
    }
}

/// That the label which ends the backup is that of this one.
fn check_label(label: &[u8], in_recovery: bool, [start, end]: [BackupPosition; 2]) -> Result<(), Failure> {
    let refuse = |why: &dyn std::fmt::Display| Failure::stream("backup_label", why);
    let read = BackupLabel::parse(label).map_err(|error| refuse(&error))?;
    let BackupPosition { lsn, timeline } = start;
    if (read.start, read.timeline) != (lsn, timeline) {
        return Err(refuse(&format!(
            "it begins at {} on timeline {}, expected {lsn} on timeline {timeline}",
            read.start, read.timeline
        )));
    }
    let origin = if in_recovery { BackupOrigin::Standby } else { BackupOrigin::Primary };
    if read.origin != origin {
        return Err(Failure::Target(
            "the standby was promoted while the backup ran\nHINT: take the backup again.".into(),
        ));
    }
    if end.lsn < lsn {
        return Err(refuse(&format!("the backup ends at {}, expected nothing before {lsn}", end.lsn)));
    }
    Ok(())
}
