//! Packing: what becomes of a lane's chunks on their way into a repository.
//!
//! A chunk is a frame: hashed, compressed, sealed, and appended to the pack that this lane fills; each lane fills one of its
//! own, so none waits for another. Frames that the backup holds already are referred to instead. When a file's last
//! bytes are placed, its record goes to the catalogue.
//!
//! Invariant: a file's frames begin at multiples of a block of it (the sink sees to that), so every extent does.

use std::ffi::OsString;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crossbeam::channel::Sender;

use super::chunk::{Chunk, Folder, Member, Output, Span};
use super::compress::{Outlet, Packer};
use super::feeder::send;
use crate::buffer::BufferPool;
use crate::failure::Failure;
use crate::repository::{
    BLOCK, ClusterName, ContainerBuilder, EXTENTS_MAX, FileRecord, FrameCompression, FrameEncoder, FrameKind,
    ObjectKind, PACK_FRAMES_MAX, PackId, PackLedger, Placed, Reuse, ReuseReader, Sealing, Uploads,
};
use crate::tracking::{self, BlockRun, Cursor, MapBuilder, Overlay};

/// Packs are the cluster's data.
const PACK_MODE: u32 = 0o600;

/// How a pipeline packs.
#[derive(Clone, Debug)]
pub struct Packing {
    /// What frames are compressed with.
    pub compression: FrameCompression,
    /// What packs are sealed with.
    pub sealing: Sealing,
    /// Whose packs these are.
    pub cluster: ClusterName,
    /// The folder they are written to.
    pub folder: Arc<Folder>,
    /// A pack of so many bytes is ended.
    pub pack_size: u64,
    /// Where they are sent instead, if they are; that folder is for messages then.
    pub uploads: Option<Arc<dyn Uploads>>,
    /// Their numbers, and what is in them.
    pub packs: Arc<PackLedger>,
    /// What older packs hold, once that is known.
    pub reuse: Arc<OnceLock<Reuse>>,
    /// Where records of placed files go.
    pub placed: Sender<Placed>,
    /// Buffers for packed bytes; of the same size as the others.
    pub buffers: usize,
}

/// A lane's end of packing.
pub(super) struct FramePacker {
    packing: Packing,
    pool: BufferPool,
    encoder: FrameEncoder,
    older: ReuseReader,
    open: Option<OpenPack>,
    member: Option<OpenMember>,
}

struct OpenPack {
    id: PackId,
    /// Its place in the table.
    place: u32,
    builder: ContainerBuilder,
    packer: Packer,
}

struct OpenMember {
    member: Arc<Member>,
    /// Bytes that have passed.
    placed: u64,
    map: MapBuilder,
    /// How far the blocks that are kept of an older map were taken over.
    kept: Cursor,
}

/// A frame in its pack.
#[derive(Clone, Copy)]
struct Place {
    pack: u32,
    frame: u32,
    length: usize,
}

impl std::fmt::Debug for FramePacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FramePacker").field("packing", &self.packing).finish_non_exhaustive()
    }
}

impl FramePacker {
    pub(super) fn new(packing: Packing, pool: BufferPool) -> Result<Self, Failure> {
        let encoder = FrameEncoder::new(packing.compression).map_err(|error| no_memory(&error))?;
        Ok(Self { packing, pool, encoder, older: ReuseReader::default(), open: None, member: None })
    }

    /// Places a chunk, and the files within it.
    pub(super) fn take(&mut self, chunk: Chunk, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        let place = match chunk.data.as_ref().filter(|data| !data.is_empty()) {
            Some(data) => {
                let may_share =
                    |span: &Span| span.member.overlay.as_ref().is_none_or(|over| over.may_share());
                Some(self.place(data, chunk.spans.iter().all(may_share), outlet)?)
            }
            None => None,
        };
        // The buffer is free for what arrives next.
        drop(chunk.data);
        for Span { member, range, runs, ends } in chunk.spans {
            let open = self.member.get_or_insert_with(|| OpenMember {
                member: Arc::clone(&member),
                placed: 0,
                map: MapBuilder::default(),
                kept: Cursor::default(),
            });
            debug_assert!(Arc::ptr_eq(&open.member, &member), "members arrive one after the other");
            if let Some(place) = place.filter(|_| !range.is_empty()) {
                open.add(range, &runs, place)?;
            }
            if ends && let Some(done) = self.member.take() {
                send(&self.packing.placed, done.into_placed()?, outlet.clock)?;
            }
        }
        Ok(())
    }

    /// Ends the pack that is being filled.
    pub(super) fn finish(&mut self, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        let Some(OpenPack { id, place, builder, mut packer }) = self.open.take() else { return Ok(()) };
        let (end, built) = builder.finish();
        packer.write(&end, outlet)?;
        packer.finish(outlet)?;
        self.packing.packs.end(place, id, &built);
        Ok(())
    }

    fn place(&mut self, plain: &[u8], may_share: bool, outlet: &mut Outlet<'_>) -> Result<Place, Failure> {
        let length = plain.len();
        let hash = *blake3::hash(plain).as_bytes();
        // Shared frames break a map into more extents, of which it has only so many.
        let has_room = self.member.as_ref().is_none_or(|open| open.map.len() < EXTENTS_MAX / 4);
        let may_share = may_share && has_room;
        if may_share {
            let Packing { packs, reuse, .. } = &self.packing;
            let older = |reuse: &Reuse| reuse.find(&hash, length, packs, &mut self.older);
            if let Some((pack, frame)) = packs.find(&hash).or_else(|| reuse.get().and_then(older)) {
                return Ok(Place { pack, frame, length });
            }
        }
        let most = self.packing.pack_size;
        if self.open.as_ref().is_some_and(|open| open.is_full(most)) {
            self.finish(outlet)?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(OpenPack::begin(&self.packing, &self.pool, outlet)?),
        };
        let framed = open.builder.frame(&mut self.encoder, FrameKind::Data, plain, hash);
        let (frame, stored) = framed.map_err(|error| no_memory(&error))?;
        open.packer.write(stored, outlet)?;
        let pack = open.place;
        self.packing.packs.remember(&hash, pack, frame);
        Ok(Place { pack, frame, length })
    }
}

impl OpenPack {
    fn begin(packing: &Packing, pool: &BufferPool, outlet: &mut Outlet<'_>) -> Result<Self, Failure> {
        let (id, place) = packing.packs.begin();
        let number = u64::from(id.number);
        let writer = usize::try_from(number).unwrap_or(0) % outlet.writers.len().max(1);
        let output = Output {
            number,
            folder: Arc::clone(&packing.folder),
            name: OsString::from(id.to_string()),
            mode: PACK_MODE,
            size: None,
            writer: Some(writer),
        };
        let builder = ContainerBuilder::new(ObjectKind::Pack, &packing.cluster.pack(id), &packing.sealing)?;
        let mut packer = Packer::new(pool.clone(), Arc::new(output));
        packer.write(builder.prologue(), outlet)?;
        Ok(Self { id, place, builder, packer })
    }

    fn is_full(&self, most: u64) -> bool {
        self.builder.position() >= most || self.builder.frames() >= PACK_FRAMES_MAX
    }
}

impl OpenMember {
    /// Notes where bytes of the file are: those that follow, or the blocks of `runs`.
    fn add(&mut self, range: Range<usize>, runs: &[BlockRun], place: Place) -> Result<(), Failure> {
        let Place { pack, frame, length } = place;
        let member = Arc::clone(&self.member);
        let number = |number: u64| {
            let path = || member.display_path().display();
            let too_large = || Failure::Target(format!("\"{}\" is too large for a repository", path()));
            u32::try_from(number).map_err(|_| too_large())
        };
        let mut offset = number(range.start as u64)?;
        if runs.is_empty() {
            assert!(self.placed.is_multiple_of(BLOCK), "the sink cuts files at blocks only");
            let block = number(self.placed / BLOCK)?;
            let count = number((range.len() as u64).div_ceil(BLOCK))?;
            self.placed += range.len() as u64;
            let ends_frame = range.end == length;
            self.map.push(tracking::Placed { block, count, pack, frame, offset, ends_frame });
            return Ok(());
        }
        assert_eq!(tracking::blocks_of(runs) * BLOCK, range.len() as u64, "runs are of whole blocks");
        for BlockRun { block, count } in runs.iter().copied() {
            self.keep_until(block)?;
            let behind = number(u64::from(offset) + u64::from(count) * BLOCK)?;
            let ends_frame = behind as usize == length;
            self.map.push(tracking::Placed { block, count, pack, frame, offset, ends_frame });
            offset = behind;
        }
        self.placed += range.len() as u64;
        Ok(())
    }

    /// Takes over what is kept in front of a block.
    fn keep_until(&mut self, block: u32) -> Result<(), Failure> {
        let kept = match self.member.overlay.as_deref() {
            Some(Overlay::Changed { kept, .. }) => &kept[..],
            _ => &[],
        };
        if self.map.end() <= block && self.kept.keep(kept, block, &mut self.map) {
            return Ok(());
        }
        // Nothing that the older backup or the data directory says may come to this: a map with a hole is no map.
        Err(Failure::Target(format!(
            "\"{}\": block {} is mapped nowhere\nHINT: take the backup with --full, and tell the makers of pgstrata.",
            self.member.display_path().display(),
            self.map.end()
        )))
    }

    fn into_placed(mut self) -> Result<Placed, Failure> {
        let map = match self.member.overlay.as_deref() {
            Some(Overlay::Unchanged(map)) => map.clone(),
            Some(Overlay::Changed { blocks, .. }) => {
                self.keep_until(*blocks)?;
                self.map.into_extents()
            }
            Some(Overlay::Renewed) | None => self.map.into_extents(),
        };
        let Member { sequence, path, size, mode, modified, owner, .. } = &*self.member;
        let (path, mode, owner, size, modified) = (path.clone(), *mode, *owner, *size, *modified);
        Ok(Placed { sequence: *sequence, file: FileRecord { path, mode, owner, size, modified, map } })
    }
}

fn no_memory(error: &std::io::Error) -> Failure {
    Failure::Target(format!(
        "could not compress: {error}\nHINT: a lower compression level needs less memory."
    ))
}
