//! Makes received WAL durable in a repository behind the stream, in a thread of its own.
//!
//! Jobs are done strictly in their order, so objects appear in the order of the log. The first failure ends it: nothing
//! behind it is done, and nobody is told that it was. Invariant: `flushed` never moves back, and never passes what was
//! published without a gap.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Receiver, Sender, bounded};
use pgstrata_protocol::Lsn;

use super::changes::Noting;
use super::parts::{chain, parts_of, read_parts};
use crate::connect::Alarm;
use crate::failure::Failure;
use crate::repository::{
    ClusterName, FrameCompression, Repository, SegmentName, WalName, WalObjectWriter, WalOwner,
};

/// Jobs that wait at most. Behind them the stream waits, and so does the server.
const WAITING: usize = 4;
/// Parts of one segment, after which they are made one.
const PARTS: usize = 64;

/// Where parts and segments go.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    pub(super) repository: Repository,
    pub(super) cluster: ClusterName,
    pub(super) owner: WalOwner,
    pub(super) compression: FrameCompression,
}

/// Something that is done once everything before it is.
pub(super) enum Job {
    /// A segment is whole. Its parts, if there are any, are of no use any more.
    Whole {
        object: Box<WalObjectWriter>,
        segment: SegmentName,
        /// What it changed, where that is known.
        noting: Option<Box<Noting>>,
        has_parts: bool,
        end: Lsn,
    },
    /// Bytes of a segment that is not whole, behind its byte `from`.
    Part { segment: SegmentName, from: u32, bytes: Vec<u8>, end: Lsn },
    /// Tells that everything before is done.
    Tell(Sender<()>),
}

/// The thread, from outside.
pub(super) struct Publisher {
    jobs: Option<Sender<Job>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    flushed: AtomicU64,
    failure: Mutex<Option<Failure>>,
}

impl Shelf {
    /// The names of a segment's folder.
    pub(super) fn names(&self, segment: SegmentName) -> Result<Vec<String>, Failure> {
        self.repository.wal_names(&self.cluster.wal_folder(segment.timeline, segment.high))
    }

    /// Begins an object.
    pub(super) fn begin(&self, name: WalName) -> Result<WalObjectWriter, Failure> {
        WalObjectWriter::begin(&self.repository, &self.cluster, name, self.owner, self.compression)
    }

    fn part(&self, segment: SegmentName, from: u32, bytes: &[u8]) -> Result<(), Failure> {
        let to = from.saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        let mut object = self.begin(WalName::Part { segment, from, to })?;
        object.write(bytes)?;
        object.publish().map(drop)
    }

    /// Makes the parts of a segment one, which is there before the others go.
    fn merge(&self, segment: SegmentName) -> Result<(), Failure> {
        let parts = parts_of(&self.names(segment)?, segment);
        let (chain, end) = chain(&parts);
        if chain.len() < 2 {
            return Ok(());
        }
        let mut object = self.begin(WalName::Part { segment, from: 0, to: end })?;
        read_parts(&self.repository, &self.cluster, segment, &chain, |_, piece| object.write(piece))?;
        object.publish()?;
        self.remove(segment, &parts.into_iter().filter(|part| *part != (0, end)).collect())
    }

    /// Keeps of a segment's parts what lies before a byte.
    pub(super) fn cut(&self, segment: SegmentName, keep: u64) -> Result<(), Failure> {
        let mut parts = parts_of(&self.names(segment)?, segment);
        let (chain, end) = chain(&parts);
        let keep = u32::try_from(keep).unwrap_or(u32::MAX).min(end);
        if keep > 0 {
            let (mut object, mut left) = (self.begin(WalName::Part { segment, from: 0, to: keep })?, keep);
            read_parts(&self.repository, &self.cluster, segment, &chain, |_, piece| {
                let most = piece.len().min(left as usize);
                left -= u32::try_from(most).unwrap_or(left);
                object.write(&piece[..most])
            })?;
            object.publish()?;
        }
        parts.remove(&(0, keep));
        self.remove(segment, &parts)?;
        // What is known to be wrong is not to come back after a crash.
        self.sync_folder(segment)
    }

    /// Makes names in a segment's folder durable.
    pub(super) fn sync_folder(&self, segment: SegmentName) -> Result<(), Failure> {
        self.repository.store().sync_folder(&self.cluster.wal_folder(segment.timeline, segment.high))
    }

    /// Removes parts.
    pub(super) fn remove(&self, segment: SegmentName, parts: &BTreeSet<(u32, u32)>) -> Result<(), Failure> {
        let name = |(from, to): &(u32, u32)| WalName::Part { segment, from: *from, to: *to };
        let names: Vec<_> = parts.iter().map(|part| name(part).object(&self.cluster)).collect();
        self.repository.store().remove(&names)
    }
}

impl Publisher {
    /// Starts the thread. Everything before `start` is durable. `alarm` rings whenever more is.
    pub(super) fn start(shelf: Shelf, start: Lsn, alarm: Alarm) -> Result<Self, Failure> {
        let (jobs, queue) = bounded(WAITING);
        let shared = Arc::new(Shared { flushed: AtomicU64::new(start.0), failure: Mutex::default() });
        let worker = Worker { shelf, shared: Arc::clone(&shared), alarm, parts: 0 };
        let thread = thread::Builder::new().name("publisher".into()).spawn(move || worker.work(&queue));
        let thread = thread.map_err(|error| Failure::disk("start thread", "publisher", error))?;
        Ok(Self { jobs: Some(jobs), shared, thread: Some(thread) })
    }

    /// The end of what is durable.
    pub(super) fn flushed(&self) -> Lsn {
        Lsn(self.shared.flushed.load(Ordering::Acquire))
    }

    /// Notes that an earlier run has made more durable.
    pub(super) fn reached(&self, end: Lsn) {
        self.shared.flushed.fetch_max(end.0, Ordering::AcqRel);
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
        Err(Failure::Wal("the thread that publishes WAL has ended".into()))
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been told as an end by now.
            let _ = thread.join();
        }
    }
}

struct Worker {
    shelf: Shelf,
    shared: Arc<Shared>,
    alarm: Alarm,
    /// Of the present segment, as far as this run has published them.
    parts: usize,
}

impl Worker {
    fn work(mut self, queue: &Receiver<Job>) {
        for job in queue {
            if let Err(failure) = self.perform(job) {
                *self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                self.alarm.ring();
                // Whoever waits for the end of what is behind it must not wait for ever.
                queue.iter().for_each(drop);
                return;
            }
        }
    }

    fn perform(&mut self, job: Job) -> Result<(), Failure> {
        match job {
            Job::Whole { object, segment, noting, has_parts, end } => {
                object.publish()?;
                self.reached(end);
                self.parts = 0;
                if has_parts {
                    let parts = parts_of(&self.shelf.names(segment)?, segment);
                    self.shelf.remove(segment, &parts)?;
                }
                let Shelf { repository, cluster, .. } = &self.shelf;
                if let Some(Err(failure)) = noting.map(|noting| noting.publish(repository, cluster)) {
                    // It can be read from the segment.
                    tracing::warn!("{segment} is archived, but not what it changed: {failure}");
                }
                Ok(())
            }
            Job::Part { segment, from, bytes, end } => {
                self.shelf.part(segment, from, &bytes)?;
                self.reached(end);
                self.parts += 1;
                if self.parts >= PARTS {
                    self.parts = 1;
                    self.shelf.merge(segment)?;
                }
                Ok(())
            }
            Job::Tell(tell) => {
                // Whoever asked waits for it.
                let _ = tell.send(());
                Ok(())
            }
        }
    }

    fn reached(&self, end: Lsn) {
        self.shared.flushed.fetch_max(end.0, Ordering::AcqRel);
        self.alarm.ring();
    }
}
