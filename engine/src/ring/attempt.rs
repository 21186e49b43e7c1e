//! The seam below `Disk`: one try at one operation, which may move fewer bytes than asked.
//!
//! Back ends and the fault injector implement this; `whole.rs` above turns attempts into whole operations,
//! so real and injected short results take the same path.

use super::doorbell::Doorbell;
use super::mode::IoMode;
use super::operation::{Operation, OperationKind};
use crate::buffer::PageBuffer;
use std::io;

/// An operation and how far it got.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) operation: Operation,
    /// Bytes of the operation that are already moved; where this attempt starts.
    pub(super) done: usize,
    /// Where this attempt ends; the operation's length unless a fault cuts it short.
    pub(super) end: usize,
    /// Tries in a row that moved nothing.
    pub(super) stalls: u32,
}

/// What one attempt does.
pub(super) enum Task<'a> {
    /// Write `length` bytes from `start` in the buffer to `offset` in the file.
    Write { buffer: &'a PageBuffer, start: usize, length: usize, offset: u64 },
    /// Read up to `length` bytes at `offset` in the file to `start` in the buffer.
    Read { buffer: &'a mut PageBuffer, start: usize, length: usize, offset: u64 },
    /// Sync the file.
    Sync { data_only: bool },
}

impl Attempt {
    pub(super) fn new(operation: Operation) -> Self {
        let mut attempt = Self { operation, done: 0, end: 0, stalls: 0 };
        attempt.restore_end();
        attempt
    }

    /// Aims at the whole rest of the operation again.
    pub(super) fn restore_end(&mut self) {
        self.end = match self.operation.kind {
            OperationKind::Write { length, .. } | OperationKind::Read { length, .. } => length,
            OperationKind::Sync { .. } => 0,
        };
    }

    /// What is left to do, up to `end`. Ranges lie within the buffer and offsets do not overflow, because
    /// `whole.rs` refuses operations for which they would.
    pub(super) fn task(&mut self) -> Task<'_> {
        let (start, length) = (self.done, self.end - self.done);
        match &mut self.operation.kind {
            OperationKind::Write { buffer, offset, .. } => {
                Task::Write { buffer, start, length, offset: *offset + start as u64 }
            }
            OperationKind::Read { buffer, offset, .. } => {
                Task::Read { buffer, start, length, offset: *offset + start as u64 }
            }
            OperationKind::Sync { data_only } => Task::Sync { data_only: *data_only },
        }
    }
}

/// An attempt that is over; the result counts the bytes that this attempt moved.
#[derive(Debug)]
pub(super) struct Attempted {
    pub(super) attempt: Attempt,
    pub(super) result: io::Result<usize>,
}

/// A back end. At most `depth` attempts are in flight; `whole.rs` keeps to that.
pub(super) trait RawDisk: Send {
    /// Queues an attempt.
    fn push(&mut self, attempt: Attempt);

    /// Starts what is queued, appends what is over to `done`, and says whether the doorbell rang. With
    /// `wait`, blocks until one of the two, or a signal.
    fn collect(&mut self, wait: bool, done: &mut Vec<Attempted>) -> io::Result<bool>;

    /// Attempts pushed and not collected.
    fn in_flight(&self) -> usize;

    fn depth(&self) -> usize;

    fn mode(&self) -> IoMode;

    fn doorbell(&self) -> Doorbell;
}
