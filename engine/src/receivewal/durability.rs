//! Makes segments durable behind the one that is being received, in a thread of its own.
//!
//! Jobs are done strictly in their order, so names appear in the order of the log, whenever the process dies. A failed
//! sync is final: nothing behind it is done, and nobody is told that it was. Invariant: `flushed` never moves back, and
//! never passes what a sync of the file, and of the folder where that changed, has confirmed.

use std::fs::File;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Receiver, Sender, bounded};
use pgstrata_protocol::Lsn;
use rustix::fs::{renameat, unlinkat};

use crate::connect::Alarm;
use crate::failure::Failure;
use crate::pipeline::Folder;

/// Jobs that wait at most: a segment is two. Behind them the stream waits, and so does the server.
const WAITING: usize = 4;

/// A name for another one in the same folder.
#[derive(Debug)]
pub(super) struct Rename {
    pub(super) from: String,
    pub(super) to: String,
}

/// Something that is done once everything before it is.
#[derive(Debug)]
pub(super) enum Job {
    /// A file was made in the folder, and gets its name only now where it has another.
    Made(Option<Rename>),
    /// What a file holds is to be durable, and to have this name.
    Sync { file: Arc<File>, name: String, rename: Option<Rename>, upto: Lsn },
    /// A segment is whole: durable first, then named. What has the other name is of no use any more.
    Finish { file: Arc<File>, rename: Rename, stale: Option<String>, end: Lsn },
    /// Tells that everything before is done.
    Tell(Sender<()>),
}

/// The thread, from outside.
#[derive(Debug)]
pub(super) struct Durability {
    jobs: Option<Sender<Job>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    flushed: AtomicU64,
    failure: Mutex<Option<Failure>>,
}

impl Durability {
    /// Starts the thread for a folder in which everything before `start` is durable. `alarm` rings whenever more is.
    pub(super) fn start(folder: Arc<Folder>, sync: bool, start: Lsn, alarm: Alarm) -> Result<Self, Failure> {
        let (jobs, queue) = bounded(WAITING);
        let shared = Arc::new(Shared { flushed: AtomicU64::new(start.0), failure: Mutex::default() });
        let worker = Worker { folder, sync, changed: false, shared: Arc::clone(&shared), alarm };
        let thread = thread::Builder::new()
            .name("durability".into())
            .spawn(move || worker.work(&queue))
            .map_err(|error| Failure::disk("start thread", "durability", error))?;
        Ok(Self { jobs: Some(jobs), shared, thread: Some(thread) })
    }

    /// The end of what is durable.
    pub(super) fn flushed(&self) -> Lsn {
        Lsn(self.shared.flushed.load(Ordering::Acquire))
    }

    /// Fails where a job has failed; told once.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let failure = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(()), Err)
    }

    /// Adds a job. Waits while there are too many.
    pub(super) fn send(&self, job: Job) -> Result<(), Failure> {
        self.check()?;
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if sent { Ok(()) } else { self.gone() }
    }

    /// Waits until all jobs are done.
    pub(super) fn drain(&self) -> Result<(), Failure> {
        let (tell, told) = bounded(1);
        self.send(Job::Tell(tell))?;
        match told.recv() {
            Ok(()) => self.check(),
            Err(_) => self.gone(),
        }
    }

    fn gone(&self) -> Result<(), Failure> {
        self.check()?;
        Err(Failure::Wal("the thread that makes WAL durable has ended".into()))
    }
}

impl Drop for Durability {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been told as an end by now.
            let _ = thread.join();
        }
    }
}

struct Worker {
    folder: Arc<Folder>,
    sync: bool,
    /// Whether names in the folder have changed since it was synced.
    changed: bool,
    shared: Arc<Shared>,
    alarm: Alarm,
}

impl Worker {
    fn work(mut self, queue: &Receiver<Job>) {
        for job in queue {
            if let Err(failure) = self.perform(job) {
                *self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                self.alarm.ring();
                // What waits behind it is given up at once: whoever waits for the end of that must not wait for ever.
                queue.iter().for_each(drop);
                return;
            }
        }
    }

    fn perform(&mut self, job: Job) -> Result<(), Failure> {
        match job {
            Job::Made(rename) => {
                self.changed = true;
                rename.map_or(Ok(()), |rename| self.rename(&rename))
            }
            Job::Sync { file, name, rename, upto } => {
                if self.sync {
                    file.sync_data()
                        .map_err(|error| Failure::disk("sync", self.folder.path.join(name), error))?;
                }
                if let Some(rename) = rename {
                    self.rename(&rename)?;
                }
                self.sync_folder()?;
                self.reached(upto);
                Ok(())
            }
            Job::Finish { file, rename, stale, end } => {
                if self.sync {
                    let path = self.folder.path.join(&rename.from);
                    file.sync_all().map_err(|error| Failure::disk("sync", path, error))?;
                }
                self.rename(&rename)?;
                if let Some(stale) = stale {
                    let path = self.folder.path.join(&stale);
                    unlinkat(&self.folder.handle, stale, rustix::fs::AtFlags::empty())
                        .map_err(|error| Failure::disk("remove", path, error))?;
                }
                self.sync_folder()?;
                self.reached(end);
                Ok(())
            }
            Job::Tell(tell) => {
                // Whoever asked waits for it.
                let _ = tell.send(());
                Ok(())
            }
        }
    }

    fn rename(&mut self, Rename { from, to }: &Rename) -> Result<(), Failure> {
        self.changed = true;
        renameat(&self.folder.handle, from.as_str(), &self.folder.handle, to.as_str())
            .map_err(|error| Failure::disk("rename", self.folder.path.join(from), error))
    }

    fn sync_folder(&mut self) -> Result<(), Failure> {
        if self.sync && self.changed {
            self.folder.sync()?;
        }
        self.changed = false;
        Ok(())
    }

    fn reached(&self, end: Lsn) {
        self.shared.flushed.fetch_max(end.0, Ordering::AcqRel);
        self.alarm.ring();
    }
}
