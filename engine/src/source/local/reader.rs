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
use pgstrata_protocol::Lsn;
use pgstrata_protocol::page::PAGE_SIZE;

use super::access::ReadAccess;
use super::changed::{Gathered, changed_runs};
use super::numbers::Numbers;
use super::open_file::{OpenFile, Passed, open};
use super::owners::Owners;
use super::pace::Pace;
use super::pages::PageGuard;
use super::walk::{Found, Work};
use crate::basebackup::Progress;
use crate::buffer::{BufferPool, PageBuffer};
use crate::failure::Failure;
use crate::pipeline::{Findings, LaneMouth, LargeFile, Member, Spent};
use crate::repository::{BLOCK, BaseBackup};
use crate::ring::{Completion, Disk, IoMode, Operation, OperationKind, open_disk};
use crate::sink::{GROUP, LARGE};
use crate::stop::Stop;
use crate::tracking::{BlockRun, Overlay, Tally};

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
    /// The backup that files are laid over, if they are.
    pub(crate) base: Option<Arc<BaseBackup>>,
    pub(crate) tally: Arc<Tally>,
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
    /// A large file whose next piece is not begun: where that begins, or its number among the file's reads.
    large: Option<(Arc<OpenFile>, u64)>,
    frame: Frame,
    /// The large file that is being handed on.
    handed: Option<LargeFile>,
    /// Changed blocks of it, where only these are.
    gathered: Gathered,
}

/// A part of a file, a buffer long at most.
struct Piece {
    file: Arc<OpenFile>,
    offset: u64,
    length: usize,
    /// Whether it is the first of its file, and the last.
    begins: bool,
    ends: bool,
    /// Its number among the reads of a file of which only some blocks are read.
    number: u64,
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
    /// Of these, files that were read.
    read: usize,
}

impl Piece {
    /// The part of a file at `place`, which is a byte, or the number of a read.
    fn of(file: &Arc<OpenFile>, place: u64, most: usize, work: u64) -> Self {
        let (offset, length, ends) = match &file.passed {
            Passed::Nothing => (0, 0, true),
            Passed::Blocks(reads) => {
                let number = usize::try_from(place).unwrap_or(usize::MAX);
                let blocks = reads.reads[number].blocks;
                let length = blocks.count as usize * PAGE_SIZE;
                (u64::from(blocks.block) * BLOCK, length, number + 1 == reads.reads.len())
            }
            Passed::All | Passed::ByPage(_) => {
                let left = file.size - place;
                let length = usize::try_from(left).map_or(most, |left| left.min(most));
                (place, length, place + length as u64 == file.size)
            }
        };
        let file = Arc::clone(file);
        Self { file, offset, length, begins: place == 0, ends, number: place, work, read: None }
    }
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
            gathered: Gathered::default(),
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
            let Some((file, place)) = self.next_piece()? else { return Ok(true) };
            let mut piece = Piece::of(&file, place, self.shared.pool.buffer_size(), self.work);
            let Some(handle) = file.file.clone().filter(|_| piece.length > 0) else {
                piece.read = Some(None);
                self.pieces.push_back(piece);
                continue;
            };
            let (offset, length) = (piece.offset, piece.length);
            let Some(buffer) = self.take_buffer()? else {
                // Taken up again when a buffer is free.
                self.large = Some((file, place));
                return Ok(false);
            };
            if let Some(pace) = &self.shared.pace {
                self.mouth.clock().book(Spent::Busy);
                pace.wait(length, &self.shared.stop)?;
                self.mouth.clock().book(Spent::Starved);
            }
            if !piece.ends {
                let next = match file.passed {
                    Passed::Blocks(_) => place + 1,
                    _ => offset + length as u64,
                };
                self.large = Some((Arc::clone(&file), next));
            }
            Tally::add(&self.shared.tally.read_bytes, length as u64);
            let aligned = length.next_multiple_of(handle.alignment()).min(buffer.capacity());
            let kind = OperationKind::Read { buffer, offset, length: aligned };
            let token = self.first + self.pieces.len() as u64;
            let operation = Operation { token, file: handle, kind };
            self.pieces.push_back(piece);
            // As many pieces as the disk takes are begun at most.
            self.disk.submit(operation).map_err(|_| Failure::Target("the disk's queue is full".into()))?;
        }
        Ok(false)
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
            let most = u32::try_from(self.shared.pool.buffer_size() / PAGE_SIZE).unwrap_or(1);
            for mut found in self.files.by_ref() {
                let Reading { access, base, owners, .. } = &mut self.shared;
                if let Some(file) = open(&mut found, (access.files, most), base.as_deref(), owners)? {
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
        let buffer = piece.read.take().expect("it was read");
        let file = Arc::clone(&piece.file);
        let buffer = match buffer {
            Some(mut buffer) => {
                self.check_pages(&piece, &mut buffer)?;
                Some(buffer)
            }
            None => None,
        };
        self.shared.progress.bytes.fetch_add(piece.length as u64, Ordering::Relaxed);
        match &file.passed {
            Passed::Nothing => {
                Tally::add(&self.shared.tally.unchanged_files, 1);
                Tally::add(&self.shared.tally.kept_bytes, file.size);
                self.join_frame(file.member(0), piece.work, None, false)
            }
            Passed::All if file.size < LARGE => self.join_frame(file.member(0), piece.work, buffer, true),
            Passed::All => {
                self.begin_large(&piece)?;
                let handed = self.handed.as_ref().expect("the first piece comes first");
                let buffer = buffer.expect("a piece of a large file has bytes");
                self.mouth.piece(handed, piece.offset, buffer, piece.ends)?;
                self.end_large(&piece);
                Ok(())
            }
            Passed::ByPage(by) if file.size < LARGE => {
                let same = buffer.as_ref().is_some_and(|bytes| changed_runs(by, 0, bytes).is_empty());
                if same && !by.map.is_empty() {
                    Tally::add(&self.shared.tally.unchanged_files, 1);
                    Tally::add(&self.shared.tally.kept_bytes, file.size);
                    let member = file.small_member(Some(by.map.clone()));
                    return self.join_frame(member, piece.work, None, false);
                }
                self.join_frame(file.small_member(None), piece.work, buffer, true)
            }
            Passed::ByPage(by) => {
                let first = u32::try_from(piece.offset / BLOCK).unwrap_or(u32::MAX);
                let buffer = buffer.expect("a piece of a large file has bytes");
                self.begin_large(&piece)?;
                let runs = self.gathered.changed(by, first, &buffer);
                self.hand_on_blocks(&piece, buffer, first, &runs)
            }
            Passed::Blocks(reads) => {
                let read = reads.reads[usize::try_from(piece.number).unwrap_or(usize::MAX)];
                let buffer = buffer.expect("a read of blocks has bytes");
                self.begin_large(&piece)?;
                self.hand_on_blocks(&piece, buffer, read.blocks.block, reads.runs(&read))
            }
        }
    }

    /// Checks the pages that are to be passed on, and those that say whether they are.
    fn check_pages(&mut self, piece: &Piece, buffer: &mut PageBuffer) -> Result<(), Failure> {
        let file = &piece.file;
        let (Some(guard), Some(first), Some(handle)) = (&mut self.guard, file.first_block, &file.file) else {
            return Ok(());
        };
        let failed = |error| Failure::disk("read", Path::new(OsStr::from_bytes(&file.path)), error);
        let bytes = &mut buffer.as_mut_slice()[..piece.length];
        let Passed::Blocks(reads) = &file.passed else {
            return guard.check(handle, &file.path, first, piece.offset, bytes).map_err(failed);
        };
        // What was read along is nobody's business.
        let read = reads.reads[usize::try_from(piece.number).unwrap_or(usize::MAX)];
        for run in reads.runs(&read) {
            let begin = (run.block - read.blocks.block) as usize * PAGE_SIZE;
            let part = &mut bytes[begin..begin + run.count as usize * PAGE_SIZE];
            let offset = u64::from(run.block) * BLOCK;
            guard.check(handle, &file.path, first, offset, part).map_err(failed)?;
        }
        Ok(())
    }

    /// Begins a file that has frames of its own, with its first piece.
    fn begin_large(&mut self, piece: &Piece) -> Result<(), Failure> {
        if !piece.begins {
            return Ok(());
        }
        self.end_frame()?;
        self.mouth.clock().book(Spent::Busy);
        let number = self.shared.numbers.begin(self.number, &self.shared.stop)?;
        self.mouth.clock().book(Spent::Blocked);
        self.handed = Some(self.mouth.begin(piece.file.member(number)));
        self.gathered.begin();
        Ok(())
    }

    fn end_large(&mut self, piece: &Piece) {
        if piece.ends {
            self.handed = None;
            self.shared.numbers.end(self.number);
        }
    }

    /// Hands on the blocks of `runs` out of a piece that begins with block `first`.
    fn hand_on_blocks(
        &mut self,
        piece: &Piece,
        buffer: PageBuffer,
        first: u32,
        runs: &[BlockRun],
    ) -> Result<(), Failure> {
        self.gathered.add(buffer, first, runs);
        let handed = self.handed.as_ref().expect("the first piece comes first");
        while let Some((full, runs)) = self.gathered.next_full() {
            self.mouth.blocks(handed, Some(full), runs, false)?;
        }
        if piece.ends {
            let (rest, runs) = self.gathered.rest();
            self.mouth.blocks(handed, rest, runs, true)?;
            let (tally, stored) = (&self.shared.tally, self.gathered.blocks * BLOCK);
            let files = if stored == 0 { &tally.unchanged_files } else { &tally.changed_files };
            Tally::add(files, 1);
            Tally::add(&tally.changed_bytes, stored);
            Tally::add(&tally.kept_bytes, piece.file.size.saturating_sub(stored));
        }
        self.end_large(piece);
        Ok(())
    }

    /// Puts a small file into the frame, or begins the next one with it.
    fn join_frame(
        &mut self,
        file: Member,
        work: u64,
        buffer: Option<PageBuffer>,
        was_read: bool,
    ) -> Result<(), Failure> {
        let length = buffer.as_ref().map_or(0, PageBuffer::len);
        let has_room = self.frame.buffer.as_ref().is_none_or(|frame| length <= frame.remaining());
        let is_full = self.frame.read >= GROUP && was_read;
        if self.frame.work != work || is_full || !has_room {
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
        self.frame.read += usize::from(was_read);
        Ok(())
    }

    /// Hands the frame on.
    fn end_frame(&mut self) -> Result<(), Failure> {
        let Frame { buffer, files, .. } = std::mem::take(&mut self.frame);
        if files.is_empty() {
            return Ok(());
        }
        self.mouth.clock().book(Spent::Busy);
        let extents = |(member, _): &(Member, _)| match member.overlay.as_deref() {
            Some(Overlay::Unchanged(map)) => map.len() as u64,
            _ => 0,
        };
        let extents = files.iter().map(extents).sum();
        let first = self.shared.numbers.take(files.len() as u64, extents, &self.shared.stop)?;
        self.mouth.clock().book(Spent::Blocked);
        let number = |(sequence, (file, range)): (u64, (Member, _))| (Member { sequence, ..file }, range);
        self.mouth.frame(buffer, (first..).zip(files).map(number).collect())
    }
}
