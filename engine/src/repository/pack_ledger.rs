//! What the lanes of one backup share: the table of packs that it refers to, and frames that it has stored already.
//!
//! The table is locked once a pack. What is asked for each frame has no lock (`known_frames`).

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::container::{Built, Hash};
use super::known_frames::KnownFrames;
use super::names::{BackupId, PackId};
use super::records::PackRecord;

/// The packs of a backup under way.
#[derive(Debug)]
pub struct PackLedger {
    backup: BackupId,
    table: Mutex<Table>,
    known: KnownFrames,
    /// Older packs that are to be left.
    avoided: OnceLock<HashSet<PackId>>,
}

#[derive(Debug, Default)]
struct Table {
    /// In the order of the manifest's; none where a pack is still being written.
    packs: Vec<Option<PackRecord>>,
    /// How many of them this backup writes.
    own: u32,
    /// Where those of older backups stand.
    adopted: HashMap<PackId, u32>,
}

impl PackLedger {
    /// No packs yet. Frames are remembered in so many bytes.
    pub(super) fn new(backup: BackupId, memory: usize) -> Self {
        Self { backup, table: Mutex::default(), known: KnownFrames::new(memory), avoided: OnceLock::new() }
    }

    /// Begins a pack: its name, and its place in the table.
    ///
    /// # Panics
    /// After 2^32 of them.
    pub fn begin(&self) -> (PackId, u32) {
        let mut table = lock(&self.table);
        let number = table.own;
        table.own = number.checked_add(1).expect("fewer packs than 2^32");
        (PackId { backup: self.backup, number }, table.push(None))
    }

    /// A pack has had its last byte.
    pub fn end(&self, place: u32, id: PackId, built: &Built) {
        let Built { length, frames, checksum } = *built;
        lock(&self.table).packs[place as usize] =
            Some(PackRecord { id, length, frames, checksum, needed: true });
    }

    /// Takes in a pack that is there already, once, and returns its place in the table.
    pub(super) fn adopt(&self, record: PackRecord) -> u32 {
        let mut table = lock(&self.table);
        if let Some(place) = table.adopted.get(&record.id) {
            return *place;
        }
        let place = table.push(Some(record));
        table.adopted.insert(record.id, place);
        place
    }

    /// Older packs of which a backup is to take no more frames by their content, so that they can go one day.
    pub(super) fn avoid(&self, packs: impl Iterator<Item = PackId>) {
        let _ = self.avoided.set(packs.collect());
    }

    /// Whether frames of a pack are not to be taken.
    pub(super) fn is_avoided(&self, pack: &PackId) -> bool {
        self.avoided.get().is_some_and(|avoided| avoided.contains(pack))
    }

    /// The pack and frame that hold these bytes already, if that is known.
    pub fn find(&self, hash: &Hash) -> Option<(u32, u32)> {
        self.known.find(hash)
    }

    /// These bytes are in this pack and frame. Beyond a bound nothing more is remembered.
    pub fn remember(&self, hash: &Hash, pack: u32, frame: u32) {
        self.known.remember(hash, pack, frame);
    }

    /// Every pack that was begun so far.
    pub(super) fn begun(&self) -> Vec<PackId> {
        (0..lock(&self.table).own).map(|number| PackId { backup: self.backup, number }).collect()
    }

    /// All packs; `None` where one was not ended.
    pub(super) fn table(&self) -> Option<Vec<PackRecord>> {
        lock(&self.table).packs.iter().copied().collect()
    }
}

impl Table {
    fn push(&mut self, pack: Option<PackRecord>) -> u32 {
        let place = u32::try_from(self.packs.len()).expect("fewer packs than 2^32");
        self.packs.push(pack);
        place
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
