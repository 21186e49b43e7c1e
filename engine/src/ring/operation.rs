//! What a disk is asked to do and what it answers.
//!
//! An operation owns its file and its buffer. Both come back in the completion, whatever the outcome;
//! when a disk is dropped, they are released only after the kernel is done with them.

use super::doorbell::Doorbell;
use super::file::DiskFile;
use super::mode::IoMode;
use crate::buffer::PageBuffer;
use std::io;
use std::sync::Arc;

/// One request to a disk.
#[derive(Debug)]
pub struct Operation {
    /// Chosen by the caller and returned with the completion; a disk does not look at it.
    pub token: u64,
    /// The file to work on, kept open until the operation is over.
    pub file: Arc<DiskFile>,
    /// What to do with it.
    pub kind: OperationKind,
}

/// What an operation does. Offsets and lengths are in bytes.
#[derive(Debug)]
pub enum OperationKind {
    /// Writes the first `length` bytes of `buffer` at `offset`. Both must be multiples of the file's
    /// alignment, so `length` may exceed the filled part up to the next multiple of the disk's: the
    /// difference is written as zeros, for the caller to truncate away.
    Write {
        /// The data.
        buffer: PageBuffer,
        /// Where in the file.
        offset: u64,
        /// How much, at most the filled part rounded up to the disk's alignment.
        length: usize,
    },
    /// Reads up to `length` bytes from `offset` into the start of `buffer`, whose filled length becomes
    /// what was read. Fewer than `length` bytes means the end of the file.
    Read {
        /// Receives the data.
        buffer: PageBuffer,
        /// Where in the file; a multiple of the file's alignment.
        offset: u64,
        /// How much, at most the buffer's capacity; a multiple of the file's alignment.
        length: usize,
    },
    /// Makes the file durable. Orders nothing: it covers writes that completed before it was submitted.
    Sync {
        /// Leave out metadata that is not needed to read the data back, as `fdatasync` does.
        data_only: bool,
    },
}

impl OperationKind {
    /// The buffer, out of the operation.
    pub(super) fn into_buffer(self) -> Option<PageBuffer> {
        match self {
            Self::Write { buffer, .. } | Self::Read { buffer, .. } => Some(buffer),
            Self::Sync { .. } => None,
        }
    }
}

/// A finished operation, with everything it owned.
#[derive(Debug)]
pub struct Completion {
    /// The operation's token.
    pub token: u64,
    /// The operation's file.
    pub file: Arc<DiskFile>,
    /// The operation's buffer; none for a sync.
    pub buffer: Option<PageBuffer>,
    /// Bytes moved: the whole length for a write, up to the end of the file for a read, 0 for a sync.
    /// After an error a write may have reached the disk in part.
    pub result: io::Result<usize>,
}

/// Asynchronous disk I/O. Used by one thread at a time: the first call to [`reap`](Self::reap) may bind it
/// to the calling thread, and from then on it must be reaped and dropped there.
pub trait Disk: Send {
    /// Queues an operation; never blocks and starts nothing until [`reap`](Self::reap). An operation that
    /// makes no sense (unaligned, past its buffer) is accepted and completes with `InvalidInput`.
    ///
    /// # Errors
    /// Gives the operation back when [`depth`](Self::depth) operations are in flight.
    fn submit(&mut self, operation: Operation) -> Result<(), Operation>;

    /// Starts what was queued and appends what has finished to `done`, with at most one system call.
    /// With `wait`, blocks until something finished or the doorbell rang; it may also return early with
    /// nothing, for a signal, so callers loop.
    ///
    /// # Errors
    /// When the kernel refuses to run the queue. Operations in flight stay owned by the disk.
    fn reap(&mut self, wait: bool, done: &mut Vec<Completion>) -> io::Result<()>;

    /// Operations submitted whose completion was not handed out yet.
    fn in_flight(&self) -> usize;

    /// The most operations that can be in flight.
    fn depth(&self) -> usize;

    /// The back end.
    fn mode(&self) -> IoMode;

    /// Bytes to which offsets and lengths are to be aligned; 1 when it does not matter.
    fn alignment(&self) -> usize;

    /// A handle that interrupts a waiting [`reap`](Self::reap) from any thread.
    fn doorbell(&self) -> Doorbell;
}
