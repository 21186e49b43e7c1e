//! Puts files together: frames read, unpacked and compared with their hashes, copied to where maps say.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crossbeam::channel::Receiver;

use super::target::Target;
use crate::buffer::{BufferPool, PageBuffer};
use crate::failure::Failure;
use crate::pipeline::{FileSender, Folder, StageClock};
use crate::repository::{Extent, FileRecord, FrameDecoder, OpenPacks, RepositoryError};
use crate::stop::Stop;

/// One worker.
pub(super) struct Worker {
    pub(super) jobs: Receiver<Vec<FileRecord>>,
    pub(super) packs: OpenPacks,
    pub(super) target: Arc<Target>,
    pub(super) pool: BufferPool,
    pub(super) files: FileSender,
    pub(super) clock: StageClock,
    pub(super) frames: FrameReader,
    /// The folder of the last file, by the path up to its last slash.
    pub(super) last: Option<(Vec<u8>, Arc<Folder>)>,
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

    fn read(&mut self, packs: &mut OpenPacks, pack: u32, frame: u32) -> Result<&[u8], Failure> {
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

impl Worker {
    /// Works until no job is left. After a stop the rest is only drained.
    pub(super) fn run(mut self, stop: &Stop<Failure>) {
        while let Ok(job) = self.jobs.recv() {
            for file in job {
                if stop.is_thrown() {
                    break;
                }
                match self.restore(&file) {
                    Ok(()) | Err(Failure::Stopped) => {}
                    Err(failure) => stop.throw(failure),
                }
            }
        }
    }

    fn restore(&mut self, file: &FileRecord) -> Result<(), Failure> {
        let target = Arc::clone(&self.target);
        let path = target.held(&file.path);
        let parent = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (folder, name) = match &self.last {
            Some((last, folder)) if path[..parent] == *last => {
                (Arc::clone(folder), OsStr::from_bytes(&path[parent..]).to_owned())
            }
            _ => self.target.place(path)?,
        };
        self.last = Some((path[..parent].to_vec(), Arc::clone(&folder)));
        let output = self.files.begin(folder, name, file.mode, file.size);
        let (mut offset, mut buffer) = (0, None::<PageBuffer>);
        for extent in &file.map {
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
                    let mut filling = match buffer.take() {
                        Some(buffer) => buffer,
                        None => self.pool.take().ok_or(Failure::Stopped)?,
                    };
                    let copied = filling.extend_from_slice(bytes);
                    bytes = &bytes[copied..];
                    let full = filling.remaining() == 0 && offset + (filling.len() as u64) < file.size;
                    if full {
                        let length = filling.len() as u64;
                        self.files.send(&output, offset, Some(filling), None, &mut self.clock)?;
                        offset += length;
                    } else {
                        buffer = Some(filling);
                    }
                }
                (frame, begin) = (frame + 1, 0);
            }
        }
        self.files.send(&output, offset, buffer, Some(file.size), &mut self.clock)
    }
}
