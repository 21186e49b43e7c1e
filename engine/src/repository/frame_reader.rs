//! Frames of a backup's packs for one thread: read ahead, opened, unpacked and compared with their hashes.
//!
//! Whoever knows which frames it will want says so with [`FrameReader::expect`], and asks for them in that order; others
//! just ask. Frames that are asked for more than once are kept for a while, and are read and unpacked once.

use std::collections::VecDeque;
use std::sync::Arc;

use super::codec::FrameDecoder;
use super::frame_cache::FrameCache;
use super::manifest::Manifest;
use super::open_packs::OpenPacks;
use super::read_ahead::{Begun, Key, ReadAhead, SPAN};
use crate::failure::Failure;
use crate::ring::IoMode;
use crate::source::local::ReadAccess;

/// The fewest reads at a time that are worth their memory, and the most.
const SPANS: std::ops::RangeInclusive<usize> = 2..=8;

/// Packs of fewer bytes are read without further ado.
const LEAST: u64 = 1 << 20;
/// As many frames as are expected at least, where it is known so early, for neighbours to be read together.
const ENOUGH: usize = 16;

/// How packs are read: the same for all threads of a run.
#[derive(Clone, Debug)]
pub(crate) struct FrameAccess {
    /// None where packs are not read ahead here: they are no files, there is no memory for it, or it is not worth it.
    ahead: Option<(ReadAccess, usize)>,
}

impl FrameAccess {
    /// The best way to the packs of a manifest for so many threads, which may take `memory` bytes for it.
    pub(crate) fn choose(manifest: &Manifest, wanted: Option<IoMode>, memory: usize, threads: usize) -> Self {
        let spans = (memory / SPAN / threads.max(1)).min(*SPANS.end());
        let needed = manifest.packs.iter().filter(|pack| pack.needed);
        let worth_it = SPANS.contains(&spans) && needed.map(|pack| pack.length).sum::<u64>() >= LEAST;
        let path = manifest.object().path().filter(|_| worth_it);
        // The back end that was asked for is the target's, and need not work here.
        let tried = path.and_then(|path| {
            let first = ReadAccess::by_trying(path, wanted);
            first.or_else(|_| ReadAccess::by_trying(path, None)).ok()
        });
        Self { ahead: tried.map(|access| (access, spans)) }
    }

    /// Bytes that one thread's reads take.
    pub(crate) fn memory(&self) -> usize {
        self.ahead.as_ref().map_or(0, |(_, spans)| spans * SPAN)
    }
}

/// One thread's frames.
pub(crate) struct FrameReader {
    packs: OpenPacks,
    decoder: FrameDecoder,
    ahead: Option<ReadAhead>,
    /// Frames that will be asked for and are not being read, in their order.
    expected: VecDeque<Key>,
    cache: FrameCache,
    /// Stored bytes of a frame that was not read ahead.
    stored: Vec<u8>,
    /// Frames unpacked so far.
    unpacked: u64,
}

impl FrameReader {
    /// Frames of a manifest's packs. Belongs to the thread that asks for the first one.
    pub(crate) fn of(manifest: &Arc<Manifest>, access: &FrameAccess) -> Result<Self, Failure> {
        let decoder = FrameDecoder::new().map_err(|error| Failure::Target(error.to_string()))?;
        Ok(Self {
            packs: OpenPacks::of(manifest),
            decoder,
            ahead: access.ahead.as_ref().and_then(|(access, spans)| ReadAhead::open(access, *spans)),
            expected: VecDeque::new(),
            cache: FrameCache::default(),
            stored: Vec::new(),
            unpacked: 0,
        })
    }

    /// The packs.
    pub(crate) fn packs(&mut self) -> &mut OpenPacks {
        &mut self.packs
    }

    /// Frames unpacked so far.
    pub(crate) fn unpacked(&self) -> u64 {
        self.unpacked
    }

    /// Says that a frame will be asked for, after all that were said before.
    pub(crate) fn expect(&mut self, pack: u32, frame: u32) {
        if self.ahead.is_some() {
            self.expected.push_back((pack, frame));
        }
    }

    /// Whether nearly everything that is expected is being read, so that it is good to expect more.
    pub(crate) fn wants_more(&self) -> bool {
        self.ahead.is_some() && self.expected.len() < ENOUGH
    }

    /// The bytes of a frame.
    ///
    /// # Errors
    /// Where it is not there, or damaged.
    pub(crate) fn frame(&mut self, pack: u32, frame: u32) -> Result<&[u8], Failure> {
        self.read_ahead();
        let key = (pack, frame);
        if !self.cache.has(key) {
            let length = self.packs.get(pack)?.entry(frame)?.plain as usize;
            let plain = self.cache.room(length);
            let mut plain = plain.map_err(|error| Failure::disk("allocate", "memory for a frame", error))?;
            self.unpack(key, &mut plain)?;
            self.cache.put(key, plain);
        }
        Ok(self.cache.get(key).expect("it was just made sure of"))
    }

    /// Puts the bytes of a frame into `plain`, which has room for just these.
    ///
    /// # Errors
    /// As [`Self::frame`]; what `plain` holds then is nothing.
    pub(crate) fn frame_into(&mut self, pack: u32, frame: u32, plain: &mut [u8]) -> Result<(), Failure> {
        self.read_ahead();
        let key = (pack, frame);
        if let Some(kept) = self.cache.get(key) {
            plain.copy_from_slice(kept);
            return Ok(());
        }
        if self.ahead.as_ref().is_some_and(|ahead| ahead.times(key) > 1) {
            plain.copy_from_slice(self.frame(pack, frame)?);
            return Ok(());
        }
        self.unpack(key, plain)
    }

    fn unpack(&mut self, key: Key, plain: &mut [u8]) -> Result<(), Failure> {
        let (pack, frame) = key;
        let object = self.packs.get(pack)?;
        let entry = *object.entry(frame)?;
        self.unpacked += 1;
        let unpacked = match self.ahead.as_mut().and_then(|ahead| ahead.stored(key, &entry)) {
            Some(stored) => object.unpack_into(frame, stored, &mut self.decoder, plain),
            None => object
                .read_stored(&entry, &mut self.stored)
                .and_then(|()| object.unpack_into(frame, &mut self.stored, &mut self.decoder, plain)),
        };
        if let Some(ahead) = &mut self.ahead {
            ahead.taken(key);
        }
        unpacked
    }

    /// Begins to read what is expected, as far as there is room.
    fn read_ahead(&mut self) {
        let Some(ahead) = &mut self.ahead else { return };
        while let Some(key) = self.expected.front().copied() {
            if !self.cache.has(key) && !ahead.again(key) {
                // What is wrong with a pack is said to whoever asks for the frame.
                let object = self.packs.get(key.0);
                let begun = object.and_then(|object| {
                    let entry = object.entry(key.1)?;
                    Ok(ahead.begin(key, entry, object))
                });
                if matches!(begun, Ok(Begun::Full)) {
                    return;
                }
            }
            self.expected.pop_front();
        }
        ahead.start();
    }
}

#[cfg(test)]
mod tests;
