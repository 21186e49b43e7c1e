//! Puts files together: what a job needs is found out first, so that frames are read ahead; they are unpacked into the
//! buffers that are written, or copied there where maps take but a part of them.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam::channel::Receiver;
use rustix::fs::{Mode, OFlags};

use super::target::Target;
use crate::buffer::{BufferPool, PageBuffer};
use crate::failure::Failure;
use crate::pipeline::{FileSender, Folder, Output, StageClock};
use crate::repository::{BLOCK, Extent, FileRecord, FrameReader, RepositoryError};
use crate::stop::Stop;

/// One worker.
pub(super) struct Worker {
    pub(super) jobs: Receiver<Job>,
    pub(super) target: Arc<Target>,
    pub(super) pool: BufferPool,
    pub(super) files: FileSender,
    pub(super) clock: StageClock,
    pub(super) frames: FrameReader,
    /// Jobs that were taken, the one at work not among them.
    pub(super) planned: VecDeque<Planned>,
    /// The folder of the last file, by the path up to its last slash.
    pub(super) last: Option<(Vec<u8>, Arc<Folder>)>,
    pub(super) counts: Arc<Counts>,
}

/// What one worker does at a time.
pub(super) enum Job {
    /// Whole files. Several where they share a frame.
    Files(Vec<FileRecord>),
    /// A part of a large file, of which other workers do the rest.
    Part(Arc<LargeFile>, Range<usize>),
}

/// A file that several workers put together.
pub(super) struct LargeFile {
    file: FileRecord,
    output: Arc<Output>,
    /// Parts that are not all sent yet. Who sends the last one ends the file.
    left: AtomicUsize,
}

/// Bytes of a part, at least.
const PART: u64 = 32 << 20;
/// Jobs that a worker takes beside the one at work, at most.
const AHEAD: usize = 64;

/// What became of the files.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Bytes that were there already.
    pub(super) reused: AtomicU64,
    /// Frames unpacked.
    pub(super) frames: AtomicU64,
}

/// A job whose frames are being read.
pub(super) struct Planned {
    job: Job,
    /// What is to be read for each of its files, in order; nothing where that is found out on the way.
    uses: Vec<Vec<Use>>,
}

/// Bytes of a frame that a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    pack: u32,
    frame: u32,
    begin: u32,
    length: u32,
    /// These are all that the frame has.
    whole: bool,
}

impl LargeFile {
    /// The parts of a file that is worth it; what is not comes back.
    pub(super) fn parts(
        file: FileRecord,
        target: &Target,
        files: &FileSender,
    ) -> Result<Result<Vec<Job>, FileRecord>, Failure> {
        let mut ranges = Vec::new();
        let mut begin = 0;
        for end in 1..=file.map.len() {
            let bytes: u64 = file.map[begin..end].iter().map(|extent| u64::from(extent.count) * BLOCK).sum();
            if bytes >= PART || end == file.map.len() {
                ranges.push(begin..end);
                begin = end;
            }
        }
        if ranges.len() < 2 {
            return Ok(Err(file));
        }
        let (folder, name) = target.place(target.held(&file.path))?;
        let output = files.begin(folder, name, file.mode, file.size);
        let large = Arc::new(Self { file, output, left: AtomicUsize::new(ranges.len()) });
        Ok(Ok(ranges.into_iter().map(|range| Job::Part(Arc::clone(&large), range)).collect()))
    }
}

impl Worker {
    /// Works until no job is left. After a stop the rest is only drained.
    pub(super) fn run(mut self, stop: &Stop<Failure>) {
        loop {
            let outcome = match self.next_job() {
                Ok(None) => break,
                _ if stop.is_thrown() => continue,
                Ok(Some(planned)) => self.work(planned, stop),
                Err(failure) => Err(failure),
            };
            match outcome {
                Ok(()) | Err(Failure::Stopped) => {}
                Err(failure) => stop.throw(failure),
            }
        }
        self.counts.frames.fetch_add(self.frames.unpacked(), Ordering::Relaxed);
    }

    /// The next job; waits for one only where none was taken already.
    fn next_job(&mut self) -> Result<Option<Planned>, Failure> {
        if self.planned.is_empty() {
            let Ok(job) = self.jobs.recv() else { return Ok(None) };
            self.plan(job)?;
        }
        self.look_ahead()?;
        Ok(self.planned.pop_front())
    }

    /// Takes jobs while their frames can be read beside those of this one.
    fn look_ahead(&mut self) -> Result<(), Failure> {
        // Of files that are there it is not known what they need: these are for whoever is free.
        while !self.target.reuses && self.frames.wants_more() && self.planned.len() < AHEAD {
            let Ok(job) = self.jobs.try_recv() else { break };
            self.plan(job)?;
        }
        Ok(())
    }

    /// Finds out what a job needs, so that it is being read by then.
    fn plan(&mut self, job: Job) -> Result<(), Failure> {
        let uses = match &job {
            // Who finds files there needs but what differs.
            Job::Files(_) if self.target.reuses => Vec::new(),
            Job::Files(files) => {
                files.iter().map(|file| self.uses(file, &file.map)).collect::<Result<_, _>>()?
            }
            Job::Part(large, range) => vec![self.uses(&large.file, &large.file.map[range.clone()])?],
        };
        uses.iter().for_each(|uses| self.expect(uses));
        self.planned.push_back(Planned { job, uses });
        Ok(())
    }

    fn expect(&mut self, uses: &[Use]) {
        for one in uses {
            self.frames.expect(one.pack, one.frame);
        }
    }

    /// What some extents of a file consist of.
    fn uses(&mut self, file: &FileRecord, extents: &[Extent]) -> Result<Vec<Use>, Failure> {
        let mut uses = Vec::with_capacity(extents.len());
        if self.target.selection.omits(&file.path) {
            return Ok(uses);
        }
        for extent in extents {
            let mut left = extent.length(file.size);
            let Extent { pack, mut frame, offset: mut begin, .. } = *extent;
            let open = self.frames.packs().get(pack)?;
            while left > 0 {
                let plain = open.entry(frame)?.plain;
                let there = plain.saturating_sub(begin);
                if there == 0 {
                    let what = format!("byte {begin} of frame {frame} is mapped, which has {plain}");
                    return Err(RepositoryError::damaged(open.name(), what).into());
                }
                let length = u32::try_from(left).map_or(there, |left| left.min(there));
                uses.push(Use { pack, frame, begin, length, whole: length == plain });
                left -= u64::from(length);
                (frame, begin) = (frame + 1, 0);
            }
        }
        Ok(uses)
    }

    fn work(&mut self, Planned { job, uses }: Planned, stop: &Stop<Failure>) -> Result<(), Failure> {
        match job {
            Job::Files(files) if self.target.reuses => self.restore_over(&files, stop),
            Job::Files(files) => {
                for (file, uses) in files.iter().zip(uses) {
                    if stop.is_thrown() {
                        return Err(Failure::Stopped);
                    }
                    self.make(file, &uses)?;
                }
                Ok(())
            }
            Job::Part(large, range) => {
                let LargeFile { file, output, left } = &*large;
                let begin = file.map.get(range.start).map_or(0, |first| u64::from(first.block) * BLOCK);
                for uses in uses {
                    if let Some((offset, buffer)) = self.fill(output, begin, &uses)? {
                        self.files.send(output, offset, Some(buffer), None, &mut self.clock)?;
                    }
                }
                // Everybody else's bytes are in the writer's queue by then.
                if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    self.files.send(output, file.size, None, Some(file.size), &mut self.clock)?;
                }
                Ok(())
            }
        }
    }

    /// The folder of a file, and its name there.
    pub(super) fn place(&mut self, path: &[u8]) -> Result<(Arc<Folder>, OsString), Failure> {
        let parent = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (folder, name) = match &self.last {
            Some((last, folder)) if path[..parent] == *last => {
                (Arc::clone(folder), OsStr::from_bytes(&path[parent..]).to_owned())
            }
            _ => self.target.place(path)?,
        };
        self.last = Some((path[..parent].to_vec(), Arc::clone(&folder)));
        Ok((folder, name))
    }

    /// Makes a file of which nothing was planned.
    pub(super) fn restore(&mut self, file: &FileRecord) -> Result<(), Failure> {
        let uses = self.uses(file, &file.map)?;
        self.expect(&uses);
        self.make(file, &uses)
    }

    fn make(&mut self, file: &FileRecord, uses: &[Use]) -> Result<(), Failure> {
        let target = Arc::clone(&self.target);
        let (folder, name) = self.place(target.held(&file.path))?;
        if target.selection.omits(&file.path) {
            return make_sparse(&folder, &name, file);
        }
        let output = self.files.begin(folder, name, file.mode, file.size);
        let (offset, buffer) = match self.fill(&output, 0, uses)? {
            Some((offset, buffer)) => (offset, Some(buffer)),
            None => (file.size, None),
        };
        self.files.send(&output, offset, buffer, Some(file.size), &mut self.clock)
    }

    /// Sends bytes that lie one behind the other from `offset` on. Returns the last of them.
    fn fill(
        &mut self,
        output: &Arc<Output>,
        mut offset: u64,
        uses: &[Use],
    ) -> Result<Option<(u64, PageBuffer)>, Failure> {
        let mut buffer = None::<PageBuffer>;
        let end = offset + uses.iter().map(|one| u64::from(one.length)).sum::<u64>();
        for one in uses {
            let Use { pack, frame, begin, length, whole } = *one;
            let (begin, length) = (begin as usize, length as usize);
            let mut done = 0;
            while done < length {
                if let Some(full) = buffer.take_if(|buffer| buffer.remaining() == 0) {
                    let length = full.len() as u64;
                    self.files.send(output, offset, Some(full), None, &mut self.clock)?;
                    offset += length;
                    self.look_ahead()?;
                }
                let mut filling = match buffer.take() {
                    Some(buffer) => buffer,
                    None => self.pool.take().ok_or(Failure::Stopped)?,
                };
                // Not where a part of it went into the buffer before.
                if whole && done == 0 && filling.remaining() >= length {
                    // Unpacked where it is written from.
                    let end = filling.len() + length;
                    self.frames.frame_into(pack, frame, &mut filling.spare_mut()[..length])?;
                    filling.set_len(end);
                    done = length;
                } else {
                    let plain = self.frames.frame(pack, frame)?;
                    let bytes = plain.get(begin + done..begin + length).unwrap_or_default();
                    done += filling.extend_from_slice(bytes);
                }
                buffer = Some(filling);
            }
        }
        let reached = offset + buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
        assert_eq!(reached, end, "a file is put together of what its map says, and of nothing else");
        Ok(buffer.map(|buffer| (offset, buffer)))
    }
}

/// Makes a file of zeros that takes no place. The end of the restore syncs its file system.
pub(super) fn make_sparse(folder: &Folder, name: &OsStr, file: &FileRecord) -> Result<(), Failure> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let made = rustix::fs::openat(&folder.handle, name, flags, Mode::from_raw_mode(file.mode));
    made.and_then(|made| rustix::fs::ftruncate(made, file.size))
        .map_err(|error| Failure::disk("create file", folder.path.join(name), error))
}
