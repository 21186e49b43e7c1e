//! Turns attempts into whole operations: checks them, resumes short ones, retries interrupted ones, and
//! keeps errors of writes and syncs sticky.
//!
//! Invariants: every operation accepted comes back exactly once; a write completes with success only when
//! all its bytes were written; a failed sync is never tried again.

use super::attempt::{Attempt, Attempted, RawDisk};
use super::doorbell::Doorbell;
use super::file::DiskFile;
use super::mode::IoMode;
use super::operation::{Completion, Disk, Operation, OperationKind};
use rustix::io::Errno;
use std::io;

/// Tries in a row that may move nothing before an operation is given up.
const MAX_STALLS: u32 = 64;

/// A disk over a back end.
pub(super) struct WholeDisk {
    raw: Box<dyn RawDisk>,
    alignment: usize,
    attempted: Vec<Attempted>,
    /// Operations that were over without reaching the back end.
    ready: Vec<Completion>,
}

/// What becomes of an attempt.
enum Verdict {
    Finished(io::Result<usize>),
    Again,
}

impl WholeDisk {
    pub(super) fn new(raw: Box<dyn RawDisk>, alignment: usize) -> Self {
        let depth = raw.depth();
        Self { raw, alignment, attempted: Vec::with_capacity(depth), ready: Vec::with_capacity(depth) }
    }

    fn settle(&mut self, attempted: Attempted) -> Option<Completion> {
        let Attempted { mut attempt, result } = attempted;
        match judge(&mut attempt, result) {
            Verdict::Finished(result) => Some(complete(attempt.operation, result)),
            Verdict::Again => {
                attempt.restore_end();
                self.raw.push(attempt);
                None
            }
        }
    }
}

impl Disk for WholeDisk {
    fn submit(&mut self, mut operation: Operation) -> Result<(), Operation> {
        if self.in_flight() >= self.raw.depth() {
            return Err(operation);
        }
        match check(&operation, self.alignment) {
            Err(error) => self.ready.push(complete(operation, Err(error))),
            Ok(0) if !matches!(operation.kind, OperationKind::Sync { .. }) => {
                self.ready.push(complete(operation, Ok(0)));
            }
            Ok(_) => {
                if let OperationKind::Write { buffer, length, .. } = &mut operation.kind {
                    buffer.zero_until(*length);
                }
                self.raw.push(Attempt::new(operation));
            }
        }
        Ok(())
    }

    fn reap(&mut self, wait: bool, done: &mut Vec<Completion>) -> io::Result<()> {
        let before = done.len();
        done.append(&mut self.ready);
        loop {
            let wait = wait && done.len() == before;
            let mut attempted = std::mem::take(&mut self.attempted);
            let collected = self.raw.collect(wait, &mut attempted);
            let woken_by_progress = !attempted.is_empty();
            done.extend(attempted.drain(..).filter_map(|attempted| self.settle(attempted)));
            self.attempted = attempted;
            let rung = collected?;
            if !wait || rung || !woken_by_progress || done.len() > before {
                return Ok(());
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.raw.in_flight() + self.ready.len()
    }

    fn depth(&self) -> usize {
        self.raw.depth()
    }

    fn mode(&self) -> IoMode {
        self.raw.mode()
    }

    fn alignment(&self) -> usize {
        self.alignment
    }

    fn doorbell(&self) -> Doorbell {
        self.raw.doorbell()
    }
}

fn complete(operation: Operation, result: io::Result<usize>) -> Completion {
    let Operation { token, file, kind } = operation;
    let is_read = matches!(kind, OperationKind::Read { .. });
    let mut buffer = kind.into_buffer();
    if let (true, Some(buffer)) = (is_read, &mut buffer) {
        buffer.set_len(*result.as_ref().unwrap_or(&0));
    }
    Completion { token, file, buffer, result }
}

/// Refuses what must not reach the kernel; else tells the bytes to move. A write may be padded to the disk's
/// alignment even where its file would do with a smaller one or with none.
fn check(operation: &Operation, padding: usize) -> io::Result<usize> {
    let file = &operation.file;
    let (most, offset, length) = match &operation.kind {
        OperationKind::Sync { .. } => return file.failure().map_or(Ok(0), Err),
        OperationKind::Write { buffer, offset, length } => {
            let filled = buffer.len().next_multiple_of(padding.max(file.alignment()));
            (filled.min(buffer.capacity()), *offset, *length)
        }
        OperationKind::Read { buffer, offset, length } => (buffer.capacity(), *offset, *length),
    };
    if length > most {
        return Err(invalid(format!("{length} bytes in a buffer that has {most}")));
    }
    if offset.checked_add(length as u64).is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(invalid(format!("{length} bytes at offset {offset} end past the largest file")));
    }
    let alignment = file.alignment();
    if !length.is_multiple_of(alignment) || !offset.is_multiple_of(alignment as u64) {
        return Err(invalid(format!(
            "{length} bytes at offset {offset}, but the file needs multiples of {alignment} for direct I/O"
        )));
    }
    Ok(length)
}

fn judge(attempt: &mut Attempt, result: io::Result<usize>) -> Verdict {
    let verdict = match (&attempt.operation.kind, result) {
        // The kernel reports a page it lost once; asking again could be told that all is well.
        (OperationKind::Sync { .. }, result) => {
            let result = result.and_then(|_| attempt.operation.file.failure().map_or(Ok(0), Err));
            Verdict::Finished(result)
        }
        (_, Err(error)) => judge_error(&attempt.operation.file, &mut attempt.stalls, error),
        (&OperationKind::Write { length, .. }, Ok(moved)) => {
            let reached = attempt.end.min(attempt.done + moved);
            if reached == length { Verdict::Finished(Ok(length)) } else { resume(attempt, reached, length) }
        }
        (&OperationKind::Read { length, offset, .. }, Ok(moved)) => {
            let reached = attempt.end.min(attempt.done + moved);
            if reached == length || moved == 0 {
                Verdict::Finished(Ok(reached))
            } else {
                // Fewer bytes than asked is either the end of the file or just a short read.
                match attempt.operation.file.size() {
                    Ok(size) if offset + reached as u64 >= size => Verdict::Finished(Ok(reached)),
                    Ok(_) => resume(attempt, reached, length),
                    Err(error) => Verdict::Finished(Err(error)),
                }
            }
        }
    };
    if let (Verdict::Finished(Err(error)), false) =
        (&verdict, matches!(attempt.operation.kind, OperationKind::Read { .. }))
    {
        attempt.operation.file.record_failure(error);
    }
    verdict
}

fn judge_error(file: &DiskFile, stalls: &mut u32, error: io::Error) -> Verdict {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::INTR | Errno::AGAIN) if *stalls < MAX_STALLS => {
            *stalls += 1;
            Verdict::Again
        }
        Some(Errno::OPNOTSUPP) if file.is_uncached() => {
            file.give_up_uncached();
            Verdict::Again
        }
        _ => Verdict::Finished(Err(error)),
    }
}

/// Goes on after a short result. Direct I/O must start at an aligned place, so the bytes before `reached`
/// that share its block are moved again.
fn resume(attempt: &mut Attempt, reached: usize, length: usize) -> Verdict {
    let next = reached - reached % attempt.operation.file.alignment();
    if next > attempt.done {
        attempt.stalls = 0;
    } else {
        attempt.stalls += 1;
        if attempt.stalls > MAX_STALLS {
            let message = format!("no progress in {MAX_STALLS} tries, {next} of {length} bytes done");
            let kind = match attempt.operation.kind {
                OperationKind::Read { .. } => io::ErrorKind::UnexpectedEof,
                OperationKind::Write { .. } | OperationKind::Sync { .. } => io::ErrorKind::WriteZero,
            };
            return Verdict::Finished(Err(io::Error::new(kind, message)));
        }
    }
    attempt.done = next;
    Verdict::Again
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
