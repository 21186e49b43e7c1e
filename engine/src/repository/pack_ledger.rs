//! What the lanes of one backup share: the numbers of packs, what became of each, and frames that are stored already.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::container::{Built, Hash};
use super::names::{BackupId, PackId};
use super::records::PackRecord;

/// Frames that are remembered to be stored once; about 6 MiB.
const KNOWN_MAX: usize = 65_536;

/// The packs of a backup under way.
#[derive(Debug)]
pub struct PackLedger {
    backup: BackupId,
    packs: Mutex<Vec<Option<PackRecord>>>,
    known: Mutex<HashMap<Hash, (u32, u32)>>,
}

impl PackLedger {
    pub(super) fn new(backup: BackupId) -> Self {
        Self { backup, packs: Mutex::default(), known: Mutex::default() }
    }

    /// Begins a pack.
    ///
    /// # Panics
    /// After 2^32 of them.
    pub fn begin(&self) -> PackId {
        let mut packs = lock(&self.packs);
        let number = u32::try_from(packs.len()).expect("fewer packs than 2^32");
        packs.push(None);
        PackId { backup: self.backup, number }
    }

    /// A pack has had its last byte.
    pub fn end(&self, id: PackId, built: &Built) {
        let Built { length, frames, checksum } = *built;
        lock(&self.packs)[id.number as usize] =
            Some(PackRecord { id, length, frames, checksum, needed: true });
    }

    /// The pack and frame that hold these bytes already, if that is known.
    pub fn find(&self, hash: &Hash) -> Option<(u32, u32)> {
        lock(&self.known).get(hash).copied()
    }

    /// These bytes are in this pack and frame. Beyond a bound nothing more is remembered.
    pub fn remember(&self, hash: Hash, pack: u32, frame: u32) {
        let mut known = lock(&self.known);
        if known.len() < KNOWN_MAX {
            known.entry(hash).or_insert((pack, frame));
        }
    }

    /// Every pack begun so far.
    pub(super) fn begun(&self) -> Vec<PackId> {
        let count = u32::try_from(lock(&self.packs).len()).unwrap_or(u32::MAX);
        (0..count).map(|number| PackId { backup: self.backup, number }).collect()
    }

    /// All packs; `None` where one was not ended.
    pub(super) fn table(&self) -> Option<Vec<PackRecord>> {
        lock(&self.packs).iter().copied().collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
