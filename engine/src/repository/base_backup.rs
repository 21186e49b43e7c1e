//! The backup that another one is laid over: its files by path, and its packs, as far as they can be used.
//!
//! Its manifest is read once. What stands for a file is where its record lies in there: entries are keyed hashes of paths,
//! sorted in runs of a few MiB and mapped, so that memory does not grow with files; a hash is believed only with the path
//! in the record. Packs are opened beforehand, side by side: one that is not what the manifest says is not referred to.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use super::codec::FrameDecoder;
use super::container::{FrameKind, Hash, PLAIN_MAX};
use super::error::RepositoryError;
use super::frame_index::FrameIndex;
use super::frame_sort::{FrameSorter, Known, entry};
use super::manifest::Manifest;
use super::names::PackId;
use super::object_reader::ObjectReader;
use super::pack_ledger::PackLedger;
use super::records::{BLOCK, BadRecord, Extent, FileRecord, PackRecord};
use crate::failure::Failure;
use crate::stop::Stop;
use crate::tracking::Placed;

/// Threads that open packs, at most.
const THREADS: usize = 16;
/// Packs whose frames' sizes are remembered, at most: 4 bytes for each of up to 4,096 frames.
const FOOTERS: usize = 256;
/// Frames of records that are kept unpacked, each of 256 KiB or little more: files are looked up nearly in their order.
const FRAMES: usize = 4;

/// An older backup, open to be laid under a new one.
#[derive(Debug)]
pub(crate) struct BaseBackup {
    manifest: Arc<Manifest>,
    packs: Vec<BasePack>,
    index: FrameIndex,
    key: Hash,
    ledger: Arc<PackLedger>,
    /// Sizes of frames of packs, the last ones used stand last.
    footers: Mutex<Vec<(u32, Arc<[u32]>)>>,
}

/// A pack of its table.
#[derive(Debug, Default)]
struct BasePack {
    /// Plain bytes that the backup refers to.
    used: u64,
    /// Plain bytes that the pack holds; none where it cannot be used.
    plain: Option<u64>,
    /// Its place in the table of the new backup.
    place: OnceLock<u32>,
}

/// Looks files up, with the records that were looked at last.
pub(crate) struct BaseFiles {
    base: Arc<BaseBackup>,
    decoder: FrameDecoder,
    /// Unpacked frames of records, the last one used stands last.
    frames: Vec<(u32, Vec<u8>)>,
}

impl BaseBackup {
    /// Reads the manifest's files, of which those that `wanted` names can be looked up, and opens its packs. Returns with it
    /// what was wrong with packs. Temporary files lie in `scratch`; looking up takes up to `memory` bytes.
    pub(crate) fn open(
        manifest: Arc<Manifest>,
        ledger: Arc<PackLedger>,
        (scratch, memory): (&Path, usize),
        stop: &Stop<Failure>,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<(Self, Vec<Failure>), Failure> {
        let key: Hash = super::random()?;
        let mut packs: Vec<BasePack> = manifest.packs.iter().map(|_| BasePack::default()).collect();
        let mut sorter = FrameSorter::new(scratch);
        let mut decoder = FrameDecoder::new().map_err(|error| Failure::Target(error.to_string()))?;
        let (object, mut stored) = (manifest.object(), Vec::new());
        let mut listed = 0;
        for number in object.of_kind(FrameKind::Files) {
            if stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            let bytes = object.frame(number, &mut stored, &mut decoder)?;
            let mut rest = bytes;
            loop {
                let offset = bytes.len() - rest.len();
                let Some(file) =
                    FileRecord::decode(&mut rest).map_err(|error| bad(object, number, &error))?
                else {
                    break;
                };
                listed += 1;
                for extent in &file.map {
                    if let Some(pack) = packs.get_mut(extent.pack as usize) {
                        pack.used += extent.length(file.size);
                    }
                }
                if wanted(&file.path) {
                    // A record ends within its frame, so it begins in front of the last byte that one can have.
                    let plain = u32::try_from(offset + 1).unwrap_or(u32::MAX);
                    let known = Known { pack: number, frame: 0, plain };
                    if let Some(entry) = entry(&hash(&key, &file.path), known) {
                        sorter.push(entry)?;
                    }
                }
            }
        }
        if listed != manifest.summary.files {
            let what = format!("it lists {listed} files, expected {} by its summary", manifest.summary.files);
            return Err(RepositoryError::damaged(object.name(), what).into());
        }
        let index = FrameIndex::build(sorter, memory)?;
        let (next, refused) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let opened: Vec<OnceLock<u64>> = packs.iter().map(|_| OnceLock::new()).collect();
        let open = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(pack) = packs.get(number) else { return };
                if stop.is_thrown() || pack.used == 0 {
                    continue;
                }
                match manifest.open_pack(u32::try_from(number).unwrap_or(u32::MAX)) {
                    Ok(object) => {
                        let plain = object.frames().iter().map(|frame| u64::from(frame.plain)).sum();
                        let _ = opened[number].set(plain);
                    }
                    Err(failure) => refused.lock().unwrap_or_else(PoisonError::into_inner).push(failure),
                }
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).clamp(2, THREADS);
        thread::scope(|scope| {
            for _ in 0..threads.min(packs.len()) {
                scope.spawn(open);
            }
        });
        if stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        for (pack, opened) in packs.iter_mut().zip(opened) {
            pack.plain = opened.into_inner();
        }
        let refused = refused.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((Self { manifest, packs, index, key, ledger, footers: Mutex::default() }, refused))
    }

    /// What the backup is.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The share of a pack that the backup refers to, in percent. Frames that files share count for each.
    pub(crate) fn used_percent(&self, pack: u32) -> u64 {
        let Some(BasePack { used, plain: Some(plain), .. }) = self.packs.get(pack as usize) else { return 0 };
        (used.saturating_mul(100) / (*plain).max(1)).min(100)
    }

    /// Packs of which less than `percent` is used.
    pub(super) fn sparse(&self, percent: u64) -> impl Iterator<Item = PackId> + '_ {
        let sparse =
            move |(number, pack): &(u32, &PackRecord)| pack.needed && self.used_percent(*number) < percent;
        (0..).zip(&self.manifest.packs).filter(sparse).map(|(_, pack)| pack.id)
    }

    /// Whether every pack that a map names can be used.
    pub(crate) fn can_use(&self, map: &[Extent]) -> bool {
        let usable =
            |extent: &Extent| self.packs.get(extent.pack as usize).is_some_and(|p| p.plain.is_some());
        map.iter().all(usable)
    }

    /// The place of a pack in the table of the new backup, into which it is taken when it is first asked for.
    pub(crate) fn place(&self, pack: u32) -> Option<u32> {
        let known = self.packs.get(pack as usize)?;
        known.plain?;
        Some(*known.place.get_or_init(|| self.ledger.adopt(self.manifest.packs[pack as usize])))
    }

    /// The first `blocks` of a map in this backup's table.
    pub(crate) fn taken_over(&self, map: &[Extent], blocks: u32) -> Option<Vec<Extent>> {
        let cut = |extent: &Extent| {
            let count = extent.count.min(blocks - extent.block);
            Some(Extent { count, pack: self.place(extent.pack)?, ..*extent })
        };
        map.iter().filter(|extent| extent.block < blocks).map(cut).collect()
    }

    /// The first `blocks` of a map in this backup's table, frame by frame. `None` where the map says what its packs have
    /// not: the file is to be stored whole then.
    pub(crate) fn by_frames(&self, map: &[Extent], blocks: u32) -> Option<Vec<Placed>> {
        let mut all: Vec<Placed> = Vec::with_capacity(map.len());
        for extent in map.iter().filter(|extent| extent.block < blocks) {
            let place = self.place(extent.pack)?;
            let sizes = self.frame_sizes(extent.pack).ok()?;
            let Extent { mut block, mut count, mut frame, mut offset, .. } = *extent;
            while count > 0 {
                let size = *sizes.get(frame as usize)?;
                let there = size.checked_sub(offset)? / u32::try_from(BLOCK).ok()?;
                let taken = there.min(count);
                let behind = offset + taken * u32::try_from(BLOCK).ok()?;
                // Files are whole blocks, so frames that one goes on behind are.
                if taken == 0 || (taken < count && behind != size) {
                    return None;
                }
                let ends_frame = behind == size;
                all.push(Placed { block, count: taken, pack: place, frame, offset, ends_frame });
                (block, count, frame, offset) = (block + taken, count - taken, frame + 1, 0);
            }
        }
        // What must not be kept is not there to be kept.
        while let Some(last) = all.last_mut() {
            match last.within(0, blocks) {
                Some(part) => {
                    *last = part;
                    break;
                }
                None => drop(all.pop()),
            }
        }
        Some(all)
    }

    /// Plain bytes of each frame of a pack.
    fn frame_sizes(&self, pack: u32) -> Result<Arc<[u32]>, Failure> {
        let lock = || self.footers.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut footers = lock();
            if let Some(at) = footers.iter().position(|(known, _)| *known == pack) {
                let found = footers.remove(at);
                let sizes = Arc::clone(&found.1);
                footers.push(found);
                return Ok(sizes);
            }
        }
        // Two may open the same one at once; that costs a read.
        let sizes: Arc<[u32]> = self.manifest.open_pack(pack)?.frames().iter().map(|f| f.plain).collect();
        let mut footers = lock();
        if footers.len() >= FOOTERS {
            footers.remove(0);
        }
        footers.push((pack, Arc::clone(&sizes)));
        Ok(sizes)
    }

    /// The packs that were taken over are still there: asked before the new backup is committed.
    pub(super) fn check_adopted(&self) -> Result<(), Failure> {
        let adopted: Vec<usize> =
            (0..self.packs.len()).filter(|number| self.packs[*number].place.get().is_some()).collect();
        let next = AtomicUsize::new(0);
        let check = || -> Result<(), Failure> {
            while let Some(number) = adopted.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.manifest.open_pack(u32::try_from(*number).unwrap_or(u32::MAX))?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS.min(adopted.len())).map(|_| scope.spawn(check)).collect();
            for thread in threads {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(())
        })
    }

    /// The bytes of a small file, such as `pg_control`.
    pub(crate) fn content(&self, file: &FileRecord) -> Result<Vec<u8>, Failure> {
        const MOST: u64 = 1 << 20;
        if file.size > MOST {
            let what = format!("\"{}\" has {} bytes", file.path.escape_ascii(), file.size);
            return Err(RepositoryError::damaged(self.manifest.object().name(), what).into());
        }
        let mut decoder = FrameDecoder::new().map_err(|error| Failure::Target(error.to_string()))?;
        let (mut content, mut stored) = (Vec::new(), Vec::new());
        for extent in &file.map {
            let object = self.manifest.open_pack(extent.pack)?;
            let (mut left, mut number, mut offset) = (
                usize::try_from(extent.length(file.size)).unwrap_or(0),
                extent.frame,
                extent.offset as usize,
            );
            while left > 0 {
                let bytes = object.frame(number, &mut stored, &mut decoder)?;
                let part = bytes.get(offset..).filter(|part| !part.is_empty()).ok_or_else(|| {
                    RepositoryError::damaged(object.name(), format!("frame {number} ends at {}", bytes.len()))
                })?;
                let taken = part.len().min(left);
                content.extend_from_slice(&part[..taken]);
                (left, number, offset) = (left - taken, number + 1, 0);
            }
        }
        Ok(content)
    }
}

impl BaseFiles {
    /// Looks files of a backup up.
    pub(crate) fn of(base: &Arc<BaseBackup>) -> Result<Self, Failure> {
        let decoder = FrameDecoder::new().map_err(|error| Failure::Target(error.to_string()))?;
        Ok(Self { base: Arc::clone(base), decoder, frames: Vec::new() })
    }

    /// The record of a file, if the backup has it.
    pub(crate) fn find(&mut self, path: &[u8]) -> Result<Option<FileRecord>, Failure> {
        let Some(known) = self.base.index.find(&hash(&self.base.key, path)) else { return Ok(None) };
        let object = self.base.manifest.object();
        let number = known.pack;
        match self.frames.iter().position(|(open, _)| *open == number) {
            Some(at) => {
                let found = self.frames.remove(at);
                self.frames.push(found);
            }
            None => {
                let bytes = object.frame(number, &mut Vec::new(), &mut self.decoder)?.to_vec();
                if self.frames.len() >= FRAMES {
                    self.frames.remove(0);
                }
                self.frames.push((number, bytes));
            }
        }
        let (_, bytes) = self.frames.last().expect("it was just put there");
        let mut record = bytes.get(known.plain as usize - 1..).unwrap_or_default();
        let file = FileRecord::decode(&mut record).map_err(|error| bad(object, number, &error))?;
        Ok(file.filter(|file| file.path == path))
    }
}

const _: () = assert!(PLAIN_MAX <= 1 << 20, "an offset in a frame of records goes into an entry");

fn hash(key: &Hash, path: &[u8]) -> Hash {
    *blake3::keyed_hash(key, path).as_bytes()
}

fn bad(object: &ObjectReader, number: u32, error: &BadRecord) -> Failure {
    let what = format!("frame {number}: {error}");
    if error.unknown {
        RepositoryError::unknown(object.name(), what).into()
    } else {
        RepositoryError::damaged(object.name(), what).into()
    }
}

impl std::fmt::Debug for BaseFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BaseFiles").field("base", &self.base).finish_non_exhaustive()
    }
}
