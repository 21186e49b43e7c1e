//! A writer: owns outputs from their first byte to their sync, and keeps the device's queue filled.
//!
//! Invariants: a file is synced only after all of its writes completed and its length is final; a file
//! counts as finished only after its sync succeeded. Syncs run beside the writes of later files. The number
//! of open files is bounded by [`MAX_OPEN`].

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, TryRecvError};

use super::chunk::{Chunk, Output};
use super::feeder;
use super::stage::{Spent, StageClock};
use crate::failure::Failure;
use crate::ring::{Completion, Disk, DiskFile, Doorbell, Operation, OperationKind};
use crate::stop::Stop;

/// Files that one writer holds open, being written or waiting for their sync.
const MAX_OPEN: usize = 256;
/// Completed files are synced in groups of so many: one journal commit then serves the whole group.
const SYNC_GROUP: usize = 64;
/// A file of this many bytes is synced at once, so that its sync runs beside the data of the next.
const SYNC_AT_ONCE: u64 = 32 << 20;
/// Space is reserved in steps of so many bytes for outputs whose length is not known.
const RESERVE_STEP: u64 = 256 << 20;
/// A disk with little room gets smaller steps, down to this.
const LEAST_STEP: u64 = 1 << 20;

/// The sending end of a writer.
#[derive(Clone, Debug)]
pub(super) struct WriterHandle {
    pub(super) input: Sender<Chunk>,
    /// Of a writer that waits for its device.
    pub(super) doorbell: Option<Doorbell>,
}

impl WriterHandle {
    pub(super) fn send(&self, chunk: Chunk, clock: &mut StageClock) -> Result<(), Failure> {
        // A writer that waits for its device with room to spare is to take this at once.
        let sent = feeder::send(&self.input, chunk, clock);
        if let Some(doorbell) = &self.doorbell {
            doorbell.ring();
        }
        sent
    }
}

/// A writer's state.
pub(super) struct Writer {
    input: Receiver<Chunk>,
    disk: Box<dyn Disk>,
    sync: bool,
    stop: Stop<Failure>,
    clock: StageClock,
    open: HashMap<u64, Open>,
    /// Outputs that are complete and wait for their sync.
    complete: VecDeque<u64>,
    syncs_in_flight: usize,
    reaped: Vec<Completion>,
}

struct Open {
    output: Arc<Output>,
    file: Arc<DiskFile>,
    /// Bytes that the file system has reserved, and that are the file's length until it is complete.
    reserved: u64,
    /// Whether to reserve more: not where there was no room for it.
    reserves: bool,
    writes_in_flight: usize,
    ends_at: Option<u64>,
}

impl Open {
    /// Reserves space behind `end`, in a step that leaves most of the free space to others: WAL arrives beside us.
    /// A disk that is nearly full reserves nothing; whether the data itself has room, its writes will tell.
    fn reserve_more(&mut self, end: u64) -> io::Result<()> {
        // A file system that does not say how much is free may refuse other things as well; the data needs no reserve.
        let most = if self.reserves { self.file.free_space().map_or(0, |free| free / 4) } else { 0 };
        let mut step = RESERVE_STEP;
        while step > most && step >= LEAST_STEP {
            step /= 4;
        }
        if step < LEAST_STEP {
            return Ok(());
        }
        let wanted = end.next_multiple_of(step);
        match self.file.preallocate(wanted) {
            Ok(_) => self.reserved = wanted,
            // Somebody was faster, or this is a quota. A part may have been reserved.
            Err(error) if is_full(&error) => {
                self.file.truncate(self.reserved)?;
                self.reserves = false;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Writer {
    pub(super) fn new(
        input: Receiver<Chunk>,
        disk: Box<dyn Disk>,
        sync: bool,
        stop: Stop<Failure>,
        clock: StageClock,
    ) -> Self {
        Self {
            input,
            disk,
            sync,
            stop,
            clock,
            open: HashMap::new(),
            complete: VecDeque::new(),
            syncs_in_flight: 0,
            reaped: Vec::new(),
        }
    }

    /// Works until the lanes are gone and everything they sent is written and synced.
    pub(super) fn run(mut self) {
        let mut more = true;
        while more || self.disk.in_flight() > 0 || !self.complete.is_empty() {
            if let Err(failure) = self.turn(&mut more) {
                if !matches!(failure, Failure::Stopped) {
                    self.stop.throw(failure);
                }
                self.drain();
                return;
            }
        }
        self.clock.book(Spent::Busy);
    }

    /// Takes what there is to take, then waits for the first thing that happens.
    fn turn(&mut self, more: &mut bool) -> Result<(), Failure> {
        while *more && self.has_room() {
            match self.input.try_recv() {
                Ok(chunk) => self.write(chunk)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => *more = false,
            }
            if self.stop.is_thrown() {
                return Err(Failure::Stopped);
            }
        }
        self.submit_syncs(!*more)?;
        if self.disk.in_flight() > 0 {
            let waits_for_work = self.input.is_empty() && self.has_room();
            self.clock.book(Spent::Busy);
            let mut finished = std::mem::take(&mut self.reaped);
            self.disk
                .reap(true, &mut finished)
                .map_err(|error| Failure::disk("wait for the device under", "the target", error))?;
            self.clock.book(if waits_for_work && *more { Spent::Starved } else { Spent::Busy });
            for completion in finished.drain(..) {
                self.on_completion(completion)?;
            }
            self.reaped = finished;
        } else if *more {
            self.clock.book(Spent::Busy);
            match self.input.recv() {
                Ok(chunk) => {
                    self.clock.book(Spent::Starved);
                    self.write(chunk)?;
                }
                Err(_) => *more = false,
            }
            if self.stop.is_thrown() {
                return Err(Failure::Stopped);
            }
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.disk.in_flight() < self.disk.depth() && self.open.len() < MAX_OPEN
    }

    fn write(&mut self, chunk: Chunk) -> Result<(), Failure> {
        let number = chunk.output.number;
        if !self.open.contains_key(&number) {
            let open = self.create(Arc::clone(&chunk.output))?;
            self.open.insert(number, open);
        }
        let open = self.open.get_mut(&number).expect("it was just made sure of");
        open.ends_at = chunk.ends_at;
        let Some(buffer) = chunk.data else { return self.end_if_complete(number) };
        let alignment = self.disk.alignment();
        let length = buffer.len().next_multiple_of(alignment);
        let end = chunk.offset + length as u64;
        // What has a length is reserved whole when it is begun, if it is worth it.
        if end > open.reserved && open.output.size.is_none() && chunk.ends_at.is_none() {
            open.reserve_more(end)
                .map_err(|error| Failure::disk("reserve space for", open.output.display_path(), error))?;
        }
        open.reserved = open.reserved.max(end);
        open.writes_in_flight += 1;
        self.clock.counters().passed(buffer.len());
        let file = Arc::clone(&open.file);
        let kind = OperationKind::Write { buffer, offset: chunk.offset, length };
        self.submit(Operation { token: number, file, kind })
    }

    fn create(&self, output: Arc<Output>) -> Result<Open, Failure> {
        let failed = |action, error| Failure::disk(action, output.display_path(), error);
        let file =
            DiskFile::create_new(output.folder.handle.as_fd(), &output.name, output.mode, self.disk.mode())
                .map_err(|error| failed("create file", error))?;
        let mut reserved = 0;
        // A file of one buffer is written in one piece, which reserves its space as well.
        if let Some(size) = output.size.filter(|size| *size >= SMALL_FILE) {
            let size = size.next_multiple_of(self.disk.alignment() as u64);
            file.preallocate(size).map_err(|error| failed("reserve space for", error))?;
            reserved = size;
        }
        Ok(Open {
            output,
            file: Arc::new(file),
            reserved,
            reserves: true,
            writes_in_flight: 0,
            ends_at: None,
        })
    }

    fn submit(&mut self, operation: Operation) -> Result<(), Failure> {
        self.disk.submit(operation).map_err(|refused| {
            debug_assert!(false, "the caller made sure of room");
            Failure::Target(format!("the disk queue refused operation {}: it is full", refused.token))
        })
    }

    fn on_completion(&mut self, completion: Completion) -> Result<(), Failure> {
        let number = completion.token;
        let open = self.open.get_mut(&number).expect("every operation belongs to an open output");
        let path = || open.output.display_path();
        match completion.buffer {
            Some(_) => {
                completion.result.map_err(|error| Failure::disk("write to", path(), error))?;
                open.writes_in_flight -= 1;
                self.end_if_complete(number)
            }
            None => {
                self.syncs_in_flight -= 1;
                completion.result.map_err(|error| Failure::disk("sync", path(), error))?;
                self.open.remove(&number);
                Ok(())
            }
        }
    }

    /// Gives a file whose writes are all done its length, and queues its sync.
    fn end_if_complete(&mut self, number: u64) -> Result<(), Failure> {
        let open = self.open.get_mut(&number).expect("the caller has it");
        let Some(length) = open.ends_at.filter(|_| open.writes_in_flight == 0) else { return Ok(()) };
        if open.reserved != length {
            open.file
                .truncate(length)
                .map_err(|error| Failure::disk("set the length of", open.output.display_path(), error))?;
        }
        if !self.sync {
            self.open.remove(&number);
        } else if length >= SYNC_AT_ONCE {
            self.complete.push_front(number);
            self.submit_syncs(true)?;
        } else {
            self.complete.push_back(number);
        }
        Ok(())
    }

    /// Submits syncs of complete files once a group has gathered, or `now`; at most half of the queue is theirs.
    fn submit_syncs(&mut self, now: bool) -> Result<(), Failure> {
        if !now && self.complete.len() < SYNC_GROUP && self.open.len() < MAX_OPEN {
            return Ok(());
        }
        let most = (self.disk.depth() / 2).max(1);
        while self.syncs_in_flight < most && self.disk.in_flight() < self.disk.depth() {
            let Some(number) = self.complete.pop_front() else { break };
            let file = Arc::clone(&self.open[&number].file);
            let kind = OperationKind::Sync { data_only: false };
            self.submit(Operation { token: number, file, kind })?;
            self.syncs_in_flight += 1;
        }
        Ok(())
    }

    /// After a failure: takes what the lanes still send, so that none of them blocks, and writes none of it.
    fn drain(&mut self) {
        while self.input.recv().is_ok() {}
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Below this length a file's space is not reserved beforehand.
const SMALL_FILE: u64 = 256 << 10;
