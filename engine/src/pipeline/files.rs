//! Writers without lanes before them: for many threads that make files out of what they read elsewhere.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::chunk::{Chunk, Folder, Output};
use super::stage::{StageClock, StageCounters};
use super::writer::WriterHandle;
use super::{Layout, start_writers};
use crate::buffer::{BufferPool, PageBuffer};
use crate::failure::Failure;
use crate::stop::Stop;

/// Writers that wait for files.
#[derive(Debug)]
pub struct FileWriters {
    threads: Vec<JoinHandle<()>>,
    sender: FileSender,
}

/// One thread's way to the writers.
#[derive(Clone, Debug)]
pub struct FileSender {
    writers: Vec<WriterHandle>,
    files: Arc<AtomicU64>,
}

impl FileWriters {
    /// Starts `layout`'s writers.
    pub fn start(layout: &Layout, pool: &BufferPool, stop: &Stop<Failure>) -> Result<Self, Failure> {
        let counters: Vec<_> = (0..layout.writers).map(|_| Arc::new(StageCounters::default())).collect();
        let mut threads = Vec::new();
        let (writers, _) = start_writers(layout, pool, &counters, &mut threads, stop)?;
        Ok(Self { threads, sender: FileSender { writers, files: Arc::default() } })
    }

    /// A way to them.
    #[must_use]
    pub fn sender(&self) -> FileSender {
        self.sender.clone()
    }

    /// Waits until everything that was sent is written and synced. All other senders must be gone.
    pub fn finish(self) {
        drop(self.sender);
        for thread in self.threads {
            // A thread that panicked has thrown the switch.
            let _ = thread.join();
        }
    }
}

impl FileSender {
    /// Begins a file of a known size; it is made when its first bytes come.
    #[must_use]
    pub fn begin(&self, folder: Arc<Folder>, name: OsString, mode: u32, size: u64) -> Arc<Output> {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let writer = usize::try_from(number).unwrap_or(0) % self.writers.len().max(1);
        Arc::new(Output { number, folder, name, mode, size: Some(size), writer: Some(writer) })
    }

    /// Sends bytes of a file, in order and in multiples of what direct I/O needs but for the last. `ends_at` is the
    /// file's length, with the last of them.
    pub fn send(
        &self,
        output: &Arc<Output>,
        offset: u64,
        data: Option<PageBuffer>,
        ends_at: Option<u64>,
        clock: &mut StageClock,
    ) -> Result<(), Failure> {
        let chunk = Chunk { output: Arc::clone(output), offset, data, spans: Vec::new(), ends_at };
        let writer = output.writer.and_then(|writer| self.writers.get(writer));
        writer.expect("a file has a writer").send(chunk, clock)
    }
}
