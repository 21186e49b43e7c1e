//! A reading thread: takes works, keeps several reads with its disk, and hands on what has come, in order, to its lane.
//!
//! Bytes lie where the disk put them: a piece of a large file, and the first small file of a frame, go on in the buffer
//! that they were read into; small files that share a frame with others are copied there.
//!
//! Invariants: pieces are handed on in the order in which their reads began; a reader waits for a free buffer only
//! while it has no read under way, and holds at most one buffer then, so that all of them together always go on.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::channel::{Receiver, TryRecvError};
use pgstrata_protocol::names::RelationFile;
use pgstrata_protocol::{BlockNumber, Lsn};
use rustix::io::Errno;

use super::access::ReadAccess;
use super::numbers::Numbers;
use super::owners::Owners;
use super::pace::Pace;
use super::pages::PageGuard;
use super::walk::{Found, Work, unreadable};
use crate::basebackup::Progress;
use crate::buffer::{BufferPool, PageBuffer};
use crate::failure::Failure;
use crate::pipeline::{Findings, LaneMouth, LargeFile, Member, Spent};
use crate::ring::{Completion, Disk, DiskFile, IoMode, Operation, OperationKind, open_disk};
use crate::sink::{GROUP, LARGE};
use crate::stop::Stop;

/// What all readers have in common.
#[derive(Clone)]
pub(crate) struct Reading {
    pub(crate) works: Receiver<Work>,
    pub(crate) access: ReadAccess,
    /// Reads that each keeps with the disk.
    pub(crate) depth: usize,
    pub(crate) pool: BufferPool,
    pub(crate) numbers: Arc<Numbers>,
    pub(crate) owners: Owners,
    /// Where the backup began, if page checksums are to be checked.
    pub(crate) checks_from: Option<Lsn>,
    pub(crate) findings: Arc<Findings>,
    pub(crate) pace: Option<Arc<Pace>>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) stop: Stop<Failure>,
}

/// A reader at work.
pub(crate) struct Reader {
    shared: Reading,
    number: usize,
    mouth: LaneMouth,
    disk: Box<dyn Disk>,
    guard: Option<PageGuard>,
    /// Pieces that were begun and are not handed on, the oldest first.
    pieces: VecDeque<Piece>,
    /// The number of the oldest.
    first: u64,
    /// Files of the work that is under way.
    files: std::vec::IntoIter<Found>,
    /// Counts works: small files of two share no frame.
    work: u64,
    /// A large file whose next piece is not begun.
    large: Option<(Arc<OpenFile>, u64)>,
    frame: Frame,
    /// The large file that is being handed on.
    handed: Option<LargeFile>,
}

/// A file that is open.
struct OpenFile {
    file: Arc<DiskFile>,
    path: Vec<u8>,
    size: u64,
    mode: u32,
    modified: u64,
    owner: u16,
    /// The number of its first page, if its pages may carry checksums.
    first_block: Option<BlockNumber>,
}

/// A part of a file, a buffer long at most.
struct Piece {
    file: Arc<OpenFile>,
    offset: u64,
    length: usize,
    work: u64,
    /// None while it is being read; the buffer is none for no bytes.
    read: Option<Option<PageBuffer>>,
}

/// Small files that share a frame, as far as it is filled.
#[derive(Default)]
struct Frame {
    work: u64,
    buffer: Option<PageBuffer>,
    /// Their numbers are given when the frame ends; the files are closed by then.
    files: Vec<(Member, Range<usize>)>,
}

impl Reader {
    /// Opens a disk, in the thread that is to read.
    pub(crate) fn open(shared: Reading, number: usize, mouth: LaneMouth) -> Result<Self, Failure> {
        let alignment = if shared.access.disk == IoMode::Direct { crate::buffer::PAGE } else { 1 };
        let opened = open_disk(shared.access.disk, shared.depth, alignment, Some(&shared.pool));
        let (disk, _) = opened.map_err(|error| Failure::Target(error.to_string()))?;
        let guard = match shared.checks_from {
            None => None,
            Some(backup_start) => {
                let scratch = BufferPool::new(1, shared.pool.buffer_size());
                let scratch = scratch.map_err(|error| Failure::disk("allocate", "buffers", error))?;
                let scratch = scratch.take().ok_or(Failure::Stopped)?;
                Some(PageGuard { backup_start, findings: Arc::clone(&shared.findings), scratch })
            }
        };
        Ok(Self {
            shared,
            number,
            mouth,
            disk,
            guard,
            pieces: VecDeque::new(),
            first: 0,
            files: Vec::new().into_iter(),
            work: 0,
            large: None,
            frame: Frame::default(),
            handed: None,
        })
    }

    /// Reads until there are no more works.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let mut done = Vec::new();
        loop {
            if self.shared.stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            let ended = self.begin_pieces()?;
            if self.pieces.is_empty() && ended {
                return self.end_frame();
            }
            let waits = self.pieces.front().is_some_and(|piece| piece.read.is_none());
            self.mouth.clock().book(Spent::Busy);
            let reaped = self.disk.reap(waits, &mut done);
            self.mouth.clock().book(if waits { Spent::Starved } else { Spent::Busy });
            reaped.map_err(|error| Failure::disk("read", "the data directory", error))?;
            for completion in done.drain(..) {
                self.completed(completion)?;
            }
            while self.pieces.front().is_some_and(|piece| piece.read.is_some()) {
                let piece = self.pieces.pop_front().expect("it was just looked at");
                self.first += 1;
                self.hand_on(piece)?;
            }
        }
    }

    /// Begins as many reads as may be. Says whether nothing is left to begin.
    fn begin_pieces(&mut self) -> Result<bool, Failure> {
        while self.pieces.len() < self.shared.depth {
            let Some((file, offset)) = self.next_piece()? else { return Ok(true) };
            let left = file.size - offset;
            let size = self.shared.pool.buffer_size();
            let length = usize::try_from(left).map_or(size, |left| left.min(size));
            if length == 0 {
                self.push(file, offset, 0, Some(None));
                continue;
            }
            let Some(buffer) = self.take_buffer()? else {
                // Taken up again when a buffer is free.
                self.large = Some((file, offset));
                return Ok(false);
            };
            if let Some(pace) = &self.shared.pace {
                self.mouth.clock().book(Spent::Busy);
                pace.wait(length, &self.shared.stop)?;
                self.mouth.clock().book(Spent::Starved);
            }
            let behind = offset + length as u64;
            if behind < file.size {
                self.large = Some((Arc::clone(&file), behind));
            }
            let aligned = length.next_multiple_of(file.file.alignment()).min(buffer.capacity());
            let kind = OperationKind::Read { buffer, offset, length: aligned };
            let token = self.first + self.pieces.len() as u64;
            let operation = Operation { token, file: Arc::clone(&file.file), kind };
            self.push(file, offset, length, None);
            // As many pieces as the disk takes are begun at most.
            self.disk.submit(operation).map_err(|_| Failure::Target("the disk's queue is full".into()))?;
        }
        Ok(false)
    }

    fn push(&mut self, file: Arc<OpenFile>, offset: u64, length: usize, read: Option<Option<PageBuffer>>) {
        self.pieces.push_back(Piece { file, offset, length, work: self.work, read });
    }

    /// A buffer; none where that would mean to wait while something else can be done.
    fn take_buffer(&mut self) -> Result<Option<PageBuffer>, Failure> {
        if let Some(buffer) = self.shared.pool.try_take() {
            return Ok(Some(buffer));
        }
        if !self.pieces.is_empty() {
            return Ok(None);
        }
        self.mouth.clock().book(Spent::Busy);
        let buffer = self.shared.pool.take();
        self.mouth.clock().book(Spent::Blocked);
        buffer.map(Some).ok_or(Failure::Stopped)
    }

    /// What is to be read next: of the large file under way, of the next file, of the next work. None where there is
    /// nothing (yet, while pieces are under way).
    fn next_piece(&mut self) -> Result<Option<(Arc<OpenFile>, u64)>, Failure> {
        if let Some(piece) = self.large.take() {
            return Ok(Some(piece));
        }
        loop {
            for found in self.files.by_ref() {
                if let Some(file) = open(&found, self.shared.access.files, &mut self.shared.owners)? {
                    self.shared.progress.begin_file(&file.path);
                    return Ok(Some((Arc::new(file), 0)));
                }
            }
            let next = match self.shared.works.try_recv() {
                Ok(work) => work,
                Err(TryRecvError::Disconnected) => return Ok(None),
                Err(TryRecvError::Empty) if !self.pieces.is_empty() => return Ok(None),
                Err(TryRecvError::Empty) => {
                    // Nobody may wait for what lies here.
                    self.end_frame()?;
                    self.mouth.clock().book(Spent::Busy);
                    let work = self.shared.works.recv();
                    self.mouth.clock().book(Spent::Starved);
                    match work {
                        Ok(work) => work,
                        Err(_) => return Ok(None),
                    }
                }
            };
            self.work += 1;
            self.files = next.into_iter();
        }
    }

    fn completed(&mut self, completion: Completion) -> Result<(), Failure> {
        let at = usize::try_from(completion.token - self.first).unwrap_or(usize::MAX);
        let piece = self.pieces.get_mut(at).expect("a read belongs to a piece");
        let failed = |error| Failure::disk("read", Path::new(OsStr::from_bytes(&piece.file.path)), error);
        completion.result.map_err(failed)?;
        let mut buffer = completion.buffer.expect("a read gives its buffer back");
        // What was cut off the file meanwhile is zeros, as the server pads it: recovery cuts it again. What the file
        // has grown by comes from the WAL.
        buffer.zero_until(piece.length);
        buffer.set_len(piece.length);
        piece.read = Some(Some(buffer));
        Ok(())
    }

    fn hand_on(&mut self, mut piece: Piece) -> Result<(), Failure> {
        let mut buffer = piece.read.take().expect("it was read");
        let file = piece.file;
        if let (Some(guard), Some(first), Some(buffer)) = (&mut self.guard, file.first_block, &mut buffer) {
            let bytes = &mut buffer.as_mut_slice()[..piece.length];
            let checked = guard.check(&file.file, &file.path, first, piece.offset, bytes);
            checked
                .map_err(|error| Failure::disk("read", Path::new(OsStr::from_bytes(&file.path)), error))?;
        }
        self.shared.progress.bytes.fetch_add(piece.length as u64, Ordering::Relaxed);
        if file.size < LARGE {
            return self.join_frame(file.member(0), piece.work, buffer);
        }
        if piece.offset == 0 {
            self.end_frame()?;
            self.mouth.clock().book(Spent::Busy);
            let number = self.shared.numbers.begin(self.number, &self.shared.stop)?;
            self.mouth.clock().book(Spent::Blocked);
            self.handed = Some(self.mouth.begin(file.member(number)));
        }
        let handed = self.handed.as_ref().expect("the first piece comes first");
        let ends = piece.offset + piece.length as u64 == file.size;
        let buffer = buffer.expect("a piece of a large file has bytes");
        self.mouth.piece(handed, piece.offset, buffer, ends)?;
        if ends {
            self.handed = None;
            self.shared.numbers.end(self.number);
        }
        Ok(())
    }

    /// Puts a small file into the frame, or begins the next one with it.
    fn join_frame(&mut self, file: Member, work: u64, buffer: Option<PageBuffer>) -> Result<(), Failure> {
        let length = buffer.as_ref().map_or(0, PageBuffer::len);
        let has_room = self.frame.buffer.as_ref().is_none_or(|frame| length <= frame.remaining());
        if self.frame.work != work || self.frame.files.len() >= GROUP || !has_room {
            self.end_frame()?;
        }
        self.frame.work = work;
        let begin = self.frame.buffer.as_ref().map_or(0, PageBuffer::len);
        match (&mut self.frame.buffer, buffer) {
            (Some(frame), Some(buffer)) => {
                frame.extend_from_slice(&buffer);
            }
            (none @ None, buffer) => *none = buffer,
            (Some(_), None) => {}
        }
        self.frame.files.push((file, begin..begin + length));
        Ok(())
    }

    /// Hands the frame on.
    fn end_frame(&mut self) -> Result<(), Failure> {
        let Frame { buffer, files, .. } = std::mem::take(&mut self.frame);
        if files.is_empty() {
            return Ok(());
        }
        self.mouth.clock().book(Spent::Busy);
        let first = self.shared.numbers.take(files.len() as u64, &self.shared.stop)?;
        self.mouth.clock().book(Spent::Blocked);
        let number = |(sequence, (file, range)): (u64, (Member, _))| (Member { sequence, ..file }, range);
        self.mouth.frame(buffer, (first..).zip(files).map(number).collect())
    }
}

impl OpenFile {
    fn member(&self, sequence: u64) -> Member {
        Member {
            sequence,
            path: self.path.clone(),
            size: self.size,
            mode: self.mode,
            modified: self.modified,
            owner: self.owner,
        }
    }
}

/// Opens a file; none where it has gone.
fn open(found: &Found, mode: IoMode, owners: &mut Owners) -> Result<Option<OpenFile>, Failure> {
    let name = OsStr::from_bytes(&found.name);
    let failed = |action, error: Errno| unreadable(action, &found.folder.path.join(name), error);
    let file = match DiskFile::open_read(&found.folder.handle, name, mode) {
        Ok(file) => file,
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => return Ok(None),
            Some(error) => return Err(failed("open", error)),
            // What took a file's name meanwhile is none, as what has gone is none.
            None if error.kind() == std::io::ErrorKind::InvalidInput => return Ok(None),
            None => return Err(Failure::disk("open", found.folder.path.join(name), error)),
        },
    };
    let facts = rustix::fs::fstat(&file).map_err(|error| failed("look at", error))?;
    Ok(Some(OpenFile {
        file: Arc::new(file),
        size: u64::try_from(facts.st_size).unwrap_or(0),
        mode: facts.st_mode & 0o777,
        modified: u64::try_from(facts.st_mtime).unwrap_or(0),
        owner: owners.number(facts.st_uid, facts.st_gid),
        first_block: RelationFile::parse(&found.path).map(|file| file.first_block()),
        path: found.path.clone(),
    }))
}
