//! Puts files together: frames read, unpacked and compared with their hashes, copied to where maps say.

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
use crate::repository::{BLOCK, Extent, FileRecord, FrameDecoder, OpenPacks, RepositoryError};
use crate::stop::Stop;

/// One worker.
pub(super) struct Worker {
    pub(super) jobs: Receiver<Job>,
    pub(super) packs: OpenPacks,
    pub(super) target: Arc<Target>,
    pub(super) pool: BufferPool,
    pub(super) files: FileSender,
    pub(super) clock: StageClock,
    pub(super) frames: FrameReader,
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

/// What became of the files.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Bytes that were there already.
    pub(super) reused: AtomicU64,
}

/// The frame that was read last, unpacked.
pub(super) struct FrameReader {
    decoder: FrameDecoder,
    stored: Vec<u8>,
    plain: Vec<u8>,
    holds: Option<(u32, u32)>,
}

impl FrameReader {
    pub(super) fn new() -> Result<Self, Failure> {
        let decoder = FrameDecoder::new().map_err(|error| Failure::Target(error.to_string()))?;
        Ok(Self { decoder, stored: Vec::new(), plain: Vec::new(), holds: None })
    }

    pub(super) fn read(&mut self, packs: &mut OpenPacks, pack: u32, frame: u32) -> Result<&[u8], Failure> {
        if self.holds != Some((pack, frame)) {
            self.holds = None;
            let plain = packs.get(pack)?.frame(frame, &mut self.stored, &mut self.decoder)?;
            self.plain.clear();
            self.plain.extend_from_slice(plain);
            self.holds = Some((pack, frame));
        }
        Ok(&self.plain)
    }
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
        while let Ok(job) = self.jobs.recv() {
            if stop.is_thrown() {
                continue;
            }
            match self.work(job, stop) {
                Ok(()) | Err(Failure::Stopped) => {}
                Err(failure) => stop.throw(failure),
            }
        }
    }

    fn work(&mut self, job: Job, stop: &Stop<Failure>) -> Result<(), Failure> {
        match job {
            Job::Files(files) if self.target.reuses => self.restore_over(&files, stop),
            Job::Files(files) => {
                for file in files {
                    if stop.is_thrown() {
                        return Err(Failure::Stopped);
                    }
                    self.restore(&file)?;
                }
                Ok(())
            }
            Job::Part(large, range) => {
                let LargeFile { file, output, left } = &*large;
                let extents = &file.map[range];
                if let Some((offset, buffer)) = self.fill(file, output, extents)? {
                    self.files.send(output, offset, Some(buffer), None, &mut self.clock)?;
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

    /// Makes a file.
    pub(super) fn restore(&mut self, file: &FileRecord) -> Result<(), Failure> {
        let target = Arc::clone(&self.target);
        let (folder, name) = self.place(target.held(&file.path))?;
        if target.selection.omits(&file.path) {
            return make_sparse(&folder, &name, file);
        }
        let output = self.files.begin(folder, name, file.mode, file.size);
        let (offset, buffer) = match self.fill(file, &output, &file.map)? {
            Some((offset, buffer)) => (offset, Some(buffer)),
            None => (file.size, None),
        };
        self.files.send(&output, offset, buffer, Some(file.size), &mut self.clock)
    }

    /// Sends the bytes of extents that lie one behind the other. Returns the last of them.
    fn fill(
        &mut self,
        file: &FileRecord,
        output: &Arc<Output>,
        extents: &[Extent],
    ) -> Result<Option<(u64, PageBuffer)>, Failure> {
        let Some(first) = extents.first() else { return Ok(None) };
        let mut offset = u64::from(first.block) * BLOCK;
        let mut buffer = None::<PageBuffer>;
        for extent in extents {
            let mut left = extent.length(file.size);
            let Extent { pack, mut frame, offset: begin, .. } = *extent;
            let mut begin = begin as usize;
            while left > 0 {
                let plain = self.frames.read(&mut self.packs, pack, frame)?;
                let mut bytes = plain.get(begin..).unwrap_or_default();
                if bytes.is_empty() {
                    let what = format!("byte {begin} of frame {frame} is mapped, which has {}", plain.len());
                    let name = self.packs.get(pack)?.name().to_owned();
                    return Err(RepositoryError::damaged(name, what).into());
                }
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                bytes = &bytes[..most];
                left -= most as u64;
                while !bytes.is_empty() {
                    if let Some(full) = buffer.take_if(|buffer| buffer.remaining() == 0) {
                        let length = full.len() as u64;
                        self.files.send(output, offset, Some(full), None, &mut self.clock)?;
                        offset += length;
                    }
                    let mut filling = match buffer.take() {
                        Some(buffer) => buffer,
                        None => self.pool.take().ok_or(Failure::Stopped)?,
                    };
                    let copied = filling.extend_from_slice(bytes);
                    bytes = &bytes[copied..];
                    buffer = Some(filling);
                }
                (frame, begin) = (frame + 1, 0);
            }
        }
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
