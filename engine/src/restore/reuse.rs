//! Restores over files that are there: what has the right hash stays, and only the rest is read from the repository.
//!
//! A file is believed only as its device gives it back: before it is read it is synced, and what the page cache holds of
//! it is let go, so that pages whose write was lost are not taken for written. It is written to in place only where it has
//! no second name, which would be another cluster's file.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{Advice, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::worker::{Worker, make_sparse};
use crate::failure::Failure;
use crate::pipeline::Folder;
use crate::repository::{BLOCK, Extent, FileRecord, RepositoryError};
use crate::stop::Stop;

/// A file that is there.
struct There {
    file: File,
    size: u64,
    mode: u32,
}

impl Worker {
    /// Makes files right that may be there.
    pub(super) fn restore_over(&mut self, files: &[FileRecord], stop: &Stop<Failure>) -> Result<(), Failure> {
        let image = self.image(files)?;
        for file in files {
            if stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            let target = Arc::clone(&self.target);
            let (folder, name) = self.place(target.held(&file.path))?;
            if target.selection.omits(&file.path) {
                remove(&folder, &name)?;
                make_sparse(&folder, &name, file)?;
                continue;
            }
            let Some(mut there) = There::open(&folder, &name)? else {
                self.restore(file)?;
                continue;
            };
            let failed = |error| Failure::disk("write to", folder.path.join(&name), error);
            let wrote = match (&image, &file.map[..]) {
                (Some(image), [extent]) => {
                    let begin = extent.offset as usize;
                    let bytes =
                        usize::try_from(file.size).ok().and_then(|size| image.get(begin..begin + size));
                    let bytes = bytes.expect("the image was made of this file");
                    self.counts.reused.fetch_add(file.size, Ordering::Relaxed);
                    there.put(0, bytes).map_err(failed)?
                }
                _ => self.mend(file, &mut there, &folder, &name)?,
            };
            there.finish(file, wrote).map_err(failed)?;
        }
        Ok(())
    }

    /// The bytes of the one frame that files share, put together from these files, where that has its hash.
    fn image(&mut self, files: &[FileRecord]) -> Result<Option<Vec<u8>>, Failure> {
        let shared = files.iter().find_map(|file| file.map.first()).map(|extent| (extent.pack, extent.frame));
        let Some((pack, frame)) = shared.filter(|_| files.iter().all(|file| file.map.len() <= 1)) else {
            return Ok(None);
        };
        let Some(frame) = self.frames.packs().get(pack)?.frames().get(frame as usize).copied() else {
            return Ok(None);
        };
        let mut image = vec![0; frame.plain as usize];
        // Where the next file is due: files stand in a frame in their order.
        let mut due = 0;
        for file in files {
            let [extent] = &file.map[..] else { continue };
            let Ok(size) = usize::try_from(file.size) else { return Ok(None) };
            let begin = extent.offset as usize;
            let Some(place) = image.get_mut(begin..begin + size).filter(|_| begin == due) else {
                return Ok(None);
            };
            due += size;
            let target = Arc::clone(&self.target);
            let (folder, name) = self.place(target.held(&file.path))?;
            let Some(there) = There::open(&folder, &name)?.filter(|there| there.size == file.size) else {
                return Ok(None);
            };
            let read = there.file.read_exact_at(place, 0);
            read.map_err(|error| Failure::disk("read", folder.path.join(&name), error))?;
        }
        let whole = due == image.len() && *blake3::hash(&image).as_bytes() == frame.hash;
        Ok(whole.then_some(image))
    }

    /// Makes a file right that is there, frame by frame. Says whether anything was written.
    fn mend(
        &mut self,
        file: &FileRecord,
        there: &mut There,
        folder: &Folder,
        name: &OsStr,
    ) -> Result<bool, Failure> {
        let failed = |error| Failure::disk("write to", folder.path.join(name), error);
        let (mut at, mut wrote) = (0, false);
        let mut old = Vec::new();
        for extent in &file.map {
            let mut left = extent.length(file.size);
            let Extent { pack, mut frame, offset: begin, .. } = *extent;
            let mut begin = begin as usize;
            while left > 0 {
                let open = self.frames.packs().get(pack)?;
                let known = open.frames().get(frame as usize).copied();
                let plain = known.map_or(0, |known| known.plain as usize);
                if plain <= begin {
                    let what = format!("byte {begin} of frame {frame} is mapped, which has {plain}");
                    return Err(RepositoryError::damaged(open.name(), what).into());
                }
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(plain - begin);
                there.read(at, length, &mut old).map_err(failed)?;
                let whole = length == plain && old.len() == length;
                if whole && known.is_some_and(|known| *blake3::hash(&old).as_bytes() == known.hash) {
                    self.counts.reused.fetch_add(length as u64, Ordering::Relaxed);
                } else {
                    let bytes = self.frames.frame(pack, frame)?;
                    wrote |= there.write(at, &bytes[begin..begin + length], &old).map_err(failed)?;
                }
                at += length as u64;
                left -= length as u64;
                (frame, begin) = (frame + 1, 0);
            }
        }
        Ok(wrote)
    }
}

impl There {
    /// Opens a file that may be written to. One that may not, or is no file, is removed.
    fn open(folder: &Folder, name: &OsStr) -> Result<Option<Self>, Failure> {
        let failed = |error| Failure::disk("examine", folder.path.join(name), error);
        let found = match rustix::fs::statat(&folder.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            found => found.map_err(failed)?,
        };
        let usable = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && found.st_nlink == 1;
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = usable.then(|| rustix::fs::openat(&folder.handle, name, flags, Mode::empty()));
        let Some(Ok(file)) = opened else {
            remove(folder, name)?;
            return Ok(None);
        };
        rustix::fs::fsync(&file).map_err(failed)?;
        // Where it cannot be let go, it was written at least.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
        let size = u64::try_from(found.st_size).unwrap_or(0);
        Ok(Some(Self { file: File::from(file), size, mode: found.st_mode & 0o7777 }))
    }

    /// Reads up to so many bytes; fewer where the file ends.
    fn read(&self, at: u64, length: usize, into: &mut Vec<u8>) -> std::io::Result<()> {
        let there = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX).min(length);
        into.resize(there, 0);
        self.file.read_exact_at(into, at)
    }

    /// Writes what differs from the bytes there, by blocks. Says whether that was anything.
    fn write(&self, at: u64, bytes: &[u8], old: &[u8]) -> std::io::Result<bool> {
        let mut wrote = false;
        let mut from = 0;
        let block = usize::try_from(BLOCK).unwrap_or(bytes.len());
        while from < bytes.len() {
            let differs = |from: usize| {
                let to = (from + block).min(bytes.len());
                old.get(from..to) != Some(&bytes[from..to])
            };
            let mut to = from;
            while to < bytes.len() && differs(to) {
                to = (to + block).min(bytes.len());
            }
            if to == from {
                from = (from + block).min(bytes.len());
                continue;
            }
            self.file.write_all_at(&bytes[from..to], at + from as u64)?;
            (wrote, from) = (true, to);
        }
        Ok(wrote)
    }

    /// Writes what differs from the bytes there.
    fn put(&self, at: u64, bytes: &[u8]) -> std::io::Result<bool> {
        let mut old = Vec::new();
        self.read(at, bytes.len(), &mut old)?;
        self.write(at, bytes, &old)
    }

    /// Gives the file its length and mode, and makes it durable.
    fn finish(self, file: &FileRecord, wrote: bool) -> std::io::Result<()> {
        if self.size != file.size {
            self.file.set_len(file.size)?;
        }
        if self.mode != file.mode {
            rustix::fs::fchmod(&self.file, Mode::from_raw_mode(file.mode))?;
        }
        if wrote || self.size != file.size || self.mode != file.mode {
            self.file.sync_all()?;
        }
        let _ = rustix::fs::fadvise(self.file.as_fd(), 0, None, Advice::DontNeed);
        Ok(())
    }
}

fn remove(folder: &Folder, name: &OsStr) -> Result<(), Failure> {
    match rustix::fs::unlinkat(&folder.handle, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(Failure::disk("remove", folder.path.join(name), error)),
    }
}
