//! A worker: reads pieces of files and computes their checksums.
//!
//! What the page cache holds is read out of it, in steps that stay in the processor's cache while they are summed up.
//! What it does not hold is read by a disk of the worker's own that is kept full of requests, over as many files
//! as that takes.
//!
//! Invariants: a checksum gets its bytes in their order, whatever the order of completions; at most `pool.count()`
//! buffers are out; a stream is forgotten only when none of its reads is under way.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::{Receiver, TryRecvError};
use pgstrata_protocol::manifest::Checksum;
use rustix::fs::{Advice, FileType};
use rustix::io::Errno;

use super::cached::{Cached, cached};
use super::deal::{Hand, Piece};
use super::problem::Problem;
use super::report::{Moment, WorkerClock};
use super::run::Run;
use super::tree::Tree;
use super::way::open_direct;
use crate::buffer::{BufferPool, PageBuffer};
use crate::failure::Failure;
use crate::ring::{Completion, Disk, DiskFile, IoMode, Operation, OperationKind};

/// Streams are numbered modulo this, many times more than a worker can have at a time. What it leaves of a token's 64
/// bits numbers the reads of the largest file there can be.
const STREAMS: u64 = 1 << 20;

/// One worker.
pub(super) struct Reader<'a> {
    run: &'a Run<'a>,
    hands: Receiver<Hand>,
    /// What is left of the hand that was dealt last.
    hand: std::vec::IntoIter<Piece>,
    tree: Tree<'a>,
    disk: Box<dyn Disk>,
    pool: BufferPool,
    clock: WorkerClock<'a>,
    from_cache: &'a AtomicU64,
    streams: HashMap<u64, Stream>,
    /// The stream that still has reads to submit.
    feeding: Option<u64>,
    next_stream: u64,
    dealt_out: bool,
}

/// A piece that the disk reads.
struct Stream {
    piece: Piece,
    file: Arc<DiskFile>,
    checksum: Checksum,
    /// Where the next read begins.
    next_read: u64,
    /// Which read, counted from 0, is to be summed up next.
    next_sum: u64,
    /// Reads that came back before an earlier one.
    early: BTreeMap<u64, PageBuffer>,
    under_way: u64,
    failed: bool,
    /// Whether the cache held nothing of it before, and is to hold nothing after.
    clean_up: bool,
}

/// Why a piece could not be read. The whole run goes on.
enum Trouble {
    Unreadable {
        action: &'static str,
        reason: String,
    },
    /// No file, which the comparison of paths and sizes must have found if it was so then.
    Missing,
    /// Another length, likewise.
    Size {
        found: u64,
    },
    /// Reading ended at another length than the file had when it was opened.
    Length {
        found: u64,
    },
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        run: &'a Run<'a>,
        hands: Receiver<Hand>,
        disk: Box<dyn Disk>,
        pool: BufferPool,
        clock: WorkerClock<'a>,
        from_cache: &'a AtomicU64,
    ) -> Self {
        Self {
            run,
            hands,
            hand: Hand::new().into_iter(),
            tree: Tree::new(run.base.as_fd()),
            disk,
            pool,
            clock,
            from_cache,
            streams: HashMap::new(),
            feeding: None,
            next_stream: 0,
            dealt_out: false,
        }
    }

    /// Works until everything that was dealt is read.
    pub(super) fn run(mut self) -> Result<(), Failure> {
        let mut done = Vec::new();
        loop {
            self.fill()?;
            if self.streams.is_empty() {
                if self.dealt_out {
                    return Ok(());
                }
                continue;
            }
            self.clock.book(Moment::Checksums);
            let reaped = self.disk.reap(true, &mut done);
            self.clock.book(Moment::Device);
            reaped.map_err(|error| Failure::disk("read", &self.run.config.backup, error))?;
            for completion in done.drain(..) {
                self.settle(completion)?;
            }
        }
    }

    /// Uses every free buffer for a read, as long as there is something to read.
    fn fill(&mut self) -> Result<(), Failure> {
        while let Some(buffer) = self.pool.try_take() {
            if self.run.stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            match self.feeding {
                Some(number) => self.submit(number, buffer)?,
                None => match self.next_piece() {
                    Some(piece) => self.begin(piece, buffer)?,
                    None => return Ok(()),
                },
            }
        }
        Ok(())
    }

    /// The next piece, waited for only while there is nothing else to do.
    fn next_piece(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.hand.next() {
                return Some(piece);
            }
            let received = match self.hands.try_recv() {
                Err(TryRecvError::Empty) if self.streams.is_empty() => {
                    self.clock.book(Moment::Checksums);
                    let received = self.hands.recv().map_err(|_| TryRecvError::Disconnected);
                    self.clock.book(Moment::Manifest);
                    received
                }
                received => received,
            };
            self.dealt_out |= matches!(received, Err(TryRecvError::Disconnected));
            self.hand = received.ok()?.into_iter();
        }
    }

    /// Reads a piece out of the page cache at once, or begins to read it from the disk.
    fn begin(&mut self, piece: Piece, buffer: PageBuffer) -> Result<(), Failure> {
        if piece.file.has_failed() {
            return Ok(());
        }
        let file = match self.open(&piece) {
            Ok(file) => file,
            Err(trouble) => return self.give_up(&piece, trouble),
        };
        let (start, length) = (piece.start, piece.end - piece.start);
        let mut checksum = Checksum::new(piece.file.algorithm);
        let held = match length {
            0 => Cached::Whole,
            // Faults are in the disk, so nothing may go past it.
            _ if self.run.config.resources.faults.is_some() => Cached::Unknown,
            _ => cached(&file, start, length),
        };
        if held == Cached::Whole {
            return match self.read_cached(&file, &piece, &mut checksum, buffer)? {
                Ok(()) => {
                    self.from_cache.fetch_add(length, Ordering::Relaxed);
                    self.finish(&piece, checksum)
                }
                Err(trouble) => self.give_up(&piece, trouble),
            };
        }
        let mode = self.disk.mode();
        let opened = match mode {
            IoMode::Direct => open_direct(file),
            IoMode::Uncached | IoMode::Threads => DiskFile::from_fd(file, mode),
        };
        let file = match opened {
            Ok(file) => file,
            Err(error) => {
                let trouble = Trouble::Unreadable { action: "open file", reason: error.to_string() };
                return self.give_up(&piece, trouble);
            }
        };
        let number = self.next_stream;
        self.next_stream = (number + 1) % STREAMS;
        let stream = Stream {
            next_read: start,
            piece,
            file: Arc::new(file),
            checksum,
            next_sum: 0,
            early: BTreeMap::new(),
            under_way: 0,
            failed: false,
            clean_up: mode == IoMode::Threads && held == Cached::Nothing,
        };
        self.streams.insert(number, stream);
        self.feeding = Some(number);
        self.submit(number, buffer)
    }

    fn open(&mut self, piece: &Piece) -> Result<OwnedFd, Trouble> {
        let subject = &piece.file;
        let file =
            self.tree.open_file(&subject.path).map_err(|error| match Errno::from_io_error(&error) {
                // Also when a file lies where a folder belongs, or a link.
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Trouble::Missing,
                _ => Trouble::Unreadable { action: "open file", reason: error.to_string() },
            })?;
        let stat = rustix::fs::fstat(&file)
            .map_err(|error| Trouble::Unreadable { action: "stat file", reason: error.to_string() })?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Trouble::Missing);
        }
        match u64::try_from(stat.st_size) {
            Ok(size) if size == subject.size => Ok(file),
            found => Err(Trouble::Size { found: found.unwrap_or(0) }),
        }
    }

    /// The outer error ends the run, the inner one only this file.
    fn read_cached(
        &mut self,
        file: &OwnedFd,
        piece: &Piece,
        checksum: &mut Checksum,
        mut buffer: PageBuffer,
    ) -> Result<Result<(), Trouble>, Failure> {
        let mut at = piece.start;
        while at < piece.end {
            if self.run.stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            let length = clamp(piece.end - at, buffer.capacity());
            match rustix::io::pread(file, &mut buffer.as_mut_slice()[..length], at) {
                Ok(0) => return Ok(Err(Trouble::Length { found: at })),
                Ok(read) => {
                    checksum.update(&buffer.as_mut_slice()[..read]);
                    at += read as u64;
                    self.run.progress.bytes.fetch_add(read as u64, Ordering::Relaxed);
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    let reason = error.to_string();
                    return Ok(Err(Trouble::Unreadable { action: "read file", reason }));
                }
            }
        }
        Ok(Ok(()))
    }

    /// Submits the stream's next read.
    fn submit(&mut self, number: u64, buffer: PageBuffer) -> Result<(), Failure> {
        let Some(stream) = self.streams.get_mut(&number) else { return Ok(()) };
        let step = buffer.capacity() as u64;
        let read = (stream.next_read - stream.piece.start) / step;
        let wanted = clamp(stream.piece.end - stream.next_read, buffer.capacity());
        let length = wanted.next_multiple_of(stream.file.alignment());
        let operation = Operation {
            token: read * STREAMS + number,
            file: Arc::clone(&stream.file),
            kind: OperationKind::Read { buffer, offset: stream.next_read, length },
        };
        stream.next_read += wanted as u64;
        stream.under_way += 1;
        if stream.next_read == stream.piece.end {
            self.feeding = None;
        }
        self.disk.submit(operation).map_err(|_| {
            Failure::Target("the disk's queue is shorter than the pool; this is a bug in pgstrata".into())
        })
    }

    fn settle(&mut self, completion: Completion) -> Result<(), Failure> {
        let (number, read) = (completion.token % STREAMS, completion.token / STREAMS);
        let Some(mut stream) = self.streams.remove(&number) else { return Ok(()) };
        stream.under_way -= 1;
        let trouble = match (completion.result, completion.buffer) {
            _ if stream.failed => None,
            (Ok(_), Some(buffer)) => self.sum_up(&mut stream, read, buffer).err(),
            (Ok(_), None) => None,
            (Err(error), _) => Some(Trouble::Unreadable { action: "read file", reason: error.to_string() }),
        };
        if let Some(trouble) = trouble {
            stream.failed = true;
            stream.early.clear();
            if self.feeding == Some(number) {
                self.feeding = None;
            }
            self.give_up(&stream.piece, trouble)?;
        }
        let all_read = self.feeding != Some(number) && stream.under_way == 0;
        if !all_read {
            self.streams.insert(number, stream);
            return Ok(());
        }
        if stream.clean_up {
            let length = NonZeroU64::new(stream.piece.end - stream.piece.start);
            // Advice: if it is not taken, the cache is merely fuller.
            let _ = rustix::fs::fadvise(&*stream.file, stream.piece.start, length, Advice::DontNeed);
        }
        if stream.failed { Ok(()) } else { self.finish(&stream.piece, stream.checksum) }
    }

    /// Adds a read to its stream's checksum, and those that waited for it.
    fn sum_up(&self, stream: &mut Stream, read: u64, buffer: PageBuffer) -> Result<(), Trouble> {
        stream.early.insert(read, buffer);
        while let Some(buffer) = stream.early.remove(&stream.next_sum) {
            let at = stream.piece.start + stream.next_sum * buffer.capacity() as u64;
            let wanted = clamp(stream.piece.end - at, buffer.capacity());
            // Past the piece's end there may be the next piece, but not past the file's.
            if buffer.len() < wanted || buffer.len() > wanted && stream.piece.end == stream.piece.file.size {
                return Err(Trouble::Length { found: at + buffer.len() as u64 });
            }
            stream.checksum.update(&buffer.as_slice()[..wanted]);
            self.run.progress.bytes.fetch_add(wanted as u64, Ordering::Relaxed);
            stream.next_sum += 1;
        }
        Ok(())
    }

    fn finish(&self, piece: &Piece, checksum: Checksum) -> Result<(), Failure> {
        let subject = &piece.file;
        let Some(found) = subject.complete(piece.part, checksum.finish()) else { return Ok(()) };
        self.run.progress.files.fetch_add(1, Ordering::Relaxed);
        if found == subject.expected {
            return Ok(());
        }
        self.run.report(Problem::Checksum {
            path: subject.path.clone(),
            algorithm: subject.algorithm,
            found,
            expected: subject.expected,
        })
    }

    /// Tells why a file could not be read, once however many parts it has.
    fn give_up(&self, piece: &Piece, trouble: Trouble) -> Result<(), Failure> {
        let (path, expected) = (|| piece.file.path.clone(), piece.file.size);
        if !piece.file.fail() {
            return Ok(());
        }
        match trouble {
            Trouble::Unreadable { action, reason } => {
                self.run.report(Problem::Unreadable { path: path(), action, reason })
            }
            Trouble::Length { found } => self.run.report(Problem::Length { path: path(), found, expected }),
            Trouble::Missing => self.run.report_unless_known(Problem::Missing { path: path() }),
            Trouble::Size { found } => {
                self.run.report_unless_known(Problem::Size { path: path(), found, expected })
            }
        }
    }
}

/// What is left, but no more than fits.
fn clamp(left: u64, capacity: usize) -> usize {
    usize::try_from(left).map_or(capacity, |left| left.min(capacity))
}
