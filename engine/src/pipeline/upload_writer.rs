//! A writer whose outputs are objects that are sent to an object store.
//!
//! It hands buffers on and waits for nobody: what limits the bytes under way is the pool that the buffers come from, which
//! they go back to once they were sent. An output counts as finished once the store has said that it is there for good.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, never, select, unbounded};

use super::chunk::Chunk;
use super::stage::{Spent, StageClock};
use crate::buffer::PageBuffer;
use crate::failure::Failure;
use crate::repository::{Upload, Uploads};
use crate::stop::Stop;

/// How many buffers uploads need: each lane's open object holds one part back, and others are under way.
pub(super) fn buffers_for(uploads: &dyn Uploads, lanes: usize, size: usize) -> usize {
    let part = uploads.part_size().div_ceil(size) + 1;
    lanes * part + uploads.window().div_ceil(size)
}

/// A filled buffer on its way.
struct Piece(PageBuffer);

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

/// What became of an output.
type Ended = (u64, Result<(), Failure>);

enum Event {
    Came(Option<Chunk>),
    Ended(Option<Ended>),
    Stopped,
}

/// A writer's state.
pub(super) struct UploadWriter {
    input: Receiver<Chunk>,
    uploads: Arc<dyn Uploads>,
    stop: Stop<Failure>,
    clock: StageClock,
    open: HashMap<u64, Box<dyn Upload>>,
    /// Objects that nobody has said anything of yet.
    under_way: usize,
    tell: Sender<Ended>,
    ended: Receiver<Ended>,
}

impl UploadWriter {
    pub(super) fn new(
        input: Receiver<Chunk>,
        uploads: Arc<dyn Uploads>,
        stop: Stop<Failure>,
        clock: StageClock,
    ) -> Self {
        let (tell, ended) = unbounded();
        Self { input, uploads, stop, clock, open: HashMap::new(), under_way: 0, tell, ended }
    }

    /// Works until the lanes are gone and everything they sent is stored.
    pub(super) fn run(mut self) {
        let (throw, mut thrown) = unbounded();
        self.stop.on_thrown(move || {
            // Nobody listens once all is done.
            let _ = throw.send(());
        });
        let mut input = self.input.clone();
        let mut more = true;
        while more || self.under_way > 0 {
            self.clock.book(Spent::Busy);
            let event = select! {
                recv(input) -> chunk => Event::Came(chunk.ok()),
                recv(self.ended) -> ended => Event::Ended(ended.ok()),
                recv(thrown) -> _ => Event::Stopped,
            };
            self.clock.book(Spent::Starved);
            match event {
                Event::Came(Some(chunk)) => self.take(chunk),
                Event::Came(None) => (more, input) = (false, never()),
                Event::Ended(ended) => ended.into_iter().for_each(|ended| self.settle(ended)),
                Event::Stopped => {
                    thrown = never();
                    self.open.clear();
                }
            }
        }
    }

    fn take(&mut self, chunk: Chunk) {
        // After a stop the rest is only drained, so that no lane blocks.
        if self.stop.is_thrown() {
            return;
        }
        let number = chunk.output.number;
        let (uploads, tell, under_way) = (&self.uploads, &self.tell, &mut self.under_way);
        let upload = self.open.entry(number).or_insert_with(|| {
            *under_way += 1;
            let tell = tell.clone();
            let done = move |outcome| {
                // The writer is there until all are done.
                let _ = tell.send((number, outcome));
            };
            uploads.begin(&chunk.output.name.to_string_lossy(), Box::new(done))
        });
        if let Some(buffer) = chunk.data.filter(|buffer| !buffer.is_empty()) {
            self.clock.counters().passed(buffer.len());
            upload.send(Bytes::from_owner(Piece(buffer)));
        }
        if chunk.ends_at.is_some() {
            upload.end();
        }
    }

    fn settle(&mut self, (number, outcome): Ended) {
        self.under_way -= 1;
        self.open.remove(&number);
        if let Err(failure) = outcome
            && !matches!(failure, Failure::Stopped)
        {
            self.stop.throw(failure);
        }
    }
}
