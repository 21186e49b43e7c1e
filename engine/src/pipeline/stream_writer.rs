//! Writes one output to a file that is open already: standard output, mostly a pipe.
//!
//! Never blocks where it could not be woken: a reader that has gone to sleep must not keep a stopped run alive.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam::channel::Receiver;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::chunk::Chunk;
use super::stage::{Spent, StageClock};
use crate::failure::Failure;
use crate::stop::Stop;

/// What a pipe that can be written to has room for, at least (`PIPE_BUF`, pipe(7)).
const PIPE_ROOM: usize = 4096;

/// The writer of a stream.
pub(super) struct StreamWriter {
    input: Receiver<Chunk>,
    file: Arc<File>,
    /// Readable once the run is stopped.
    stopped: Arc<OwnedFd>,
    /// A regular file takes everything at once.
    is_regular: bool,
    stop: Stop<Failure>,
    clock: StageClock,
}

impl StreamWriter {
    pub(super) fn new(
        input: Receiver<Chunk>,
        file: Arc<File>,
        stop: Stop<Failure>,
        clock: StageClock,
    ) -> io::Result<Self> {
        let stopped = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let wake = Arc::clone(&stopped);
        stop.on_thrown(move || {
            while rustix::io::write(&wake, &1u64.to_ne_bytes()) == Err(rustix::io::Errno::INTR) {}
        });
        let is_regular = file.metadata()?.is_file();
        Ok(Self { input, file, stopped, is_regular, stop, clock })
    }

    /// Works until the lanes are gone and everything they sent is written.
    pub(super) fn run(mut self) {
        while let Ok(chunk) = self.input.recv() {
            self.clock.book(Spent::Starved);
            // After a stop the rest is only drained, so that no lane blocks.
            if self.stop.is_thrown() {
                continue;
            }
            let Some(data) = chunk.data else { continue };
            match self.write(&data) {
                Ok(true) => self.clock.counters().passed(data.len()),
                Ok(false) => {}
                Err(error) => self.stop.throw(Failure::disk("write to", "standard output", error)),
            }
            self.clock.book(Spent::Busy);
        }
    }

    /// Writes it all; false where the run was stopped meanwhile.
    fn write(&self, mut rest: &[u8]) -> io::Result<bool> {
        let mut file = &*self.file;
        if self.is_regular {
            return file.write_all(rest).map(|()| true);
        }
        while !rest.is_empty() {
            let mut events = [PollFd::new(file, PollFlags::OUT), PollFd::new(&*self.stopped, PollFlags::IN)];
            match poll(&mut events, None) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled?,
            };
            if self.stop.is_thrown() {
                return Ok(false);
            }
            match file.write(&rest[..rest.len().min(PIPE_ROOM)]) {
                Ok(written) => rest = &rest[written..],
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
