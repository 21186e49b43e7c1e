//! What a backup need not store, because older packs hold it: those of the cluster's newest backup, and complete ones of
//! backups that have no manifest, because they were interrupted or are under way. No run removes a complete pack but the
//! collector, and that leaves what is held.
//!
//! Which frame is where says the index, which is built from the packs' footers beside the first data. Invariants: nothing
//! is referred to before its pack was opened and its footer, checked, lists that hash and length at that place; a
//! pack of a committed backup must be the one that its manifest names; a pack of an interrupted backup is synced, dropped
//! from the page cache, and read whole with every frame compared with its hash. Otherwise the bytes are stored anew.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use crossbeam::channel::bounded;
use rustix::fs::{Advice, Mode, OFlags, fadvise, openat};

use super::codec::FrameDecoder;
use super::container::{Frame, FrameKind, Hash, ObjectKind};
use super::error::RepositoryError;
use super::frame_index::FrameIndex;
use super::frame_sort::{FrameSorter, Known, entry};
use super::manifest::Manifest;
use super::names::{BackupId, ClusterName, PackId};
use super::object_reader::ObjectReader;
use super::pack_ledger::PackLedger;
use super::place::Repository;
use super::records::PackRecord;
use super::retention::Lease;
use crate::failure::Failure;
use crate::pipeline::Folder;
use crate::stop::Stop;

/// Packs that one lane has open: neighbours in a cluster lie in a few of them.
const OPEN: usize = 8;
/// Threads that read footers, at most, and footers on their way to the sorter.
const THREADS: usize = 16;
const QUEUE: usize = 32;
/// Backups without a manifest whose packs are used, at most: the newest ones.
const INTERRUPTED: usize = 64;
/// Of more packs that could not be used than these only the number is told.
const TOLD: usize = 5;

/// What older packs a backup may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReuseFrom {
    /// None: everything is stored anew.
    Nothing,
    /// Those of the cluster's newest backup.
    Backup,
    /// These, and complete packs of backups that have no manifest: interrupted ones, for the most part.
    All,
}

/// How a backup uses what is stored already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReuseConfig {
    /// Which older packs it may refer to.
    pub from: ReuseFrom,
    /// Bytes of memory for looking frames up.
    pub memory: usize,
}

impl Default for ReuseConfig {
    fn default() -> Self {
        Self { from: ReuseFrom::All, memory: 32 << 20 }
    }
}

/// Older packs and the index of their frames.
#[derive(Debug)]
pub struct Reuse {
    repository: Repository,
    cluster: ClusterName,
    /// Where packs lie as files, if they do.
    folder: Option<Arc<Folder>>,
    parent: Option<BackupId>,
    packs: Vec<OldPack>,
    index: FrameIndex,
    key: Hash,
    /// Plain bytes that were not stored again: of the newest backup, of interrupted ones.
    from_backup: AtomicU64,
    from_interrupted: AtomicU64,
    refused: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct OldPack {
    record: PackRecord,
    interrupted: bool,
    /// Its place in the table of this backup, once a frame of it was asked for; none where it cannot be used.
    place: OnceLock<Option<u32>>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Reused {
    /// The backup that bytes were taken from.
    pub(super) parent: Option<BackupId>,
    pub(super) from_backup: u64,
    pub(super) from_interrupted: u64,
    /// What could not be used, in words.
    pub(super) refused: Vec<String>,
}

/// Packs that one lane has open.
#[derive(Debug, Default)]
pub struct ReuseReader {
    /// The last one used stands last.
    open: Vec<(u32, ObjectReader)>,
}

/// What is needed to look for older packs.
pub(super) struct Search {
    /// The backup under way.
    pub(super) own: BackupId,
    pub(super) repository: Repository,
    pub(super) cluster: ClusterName,
    /// Where packs lie as files, if they do.
    pub(super) folder: Option<Arc<Folder>>,
    pub(super) config: ReuseConfig,
    /// Where temporary files may lie.
    pub(super) scratch: PathBuf,
}

/// Whether a failure is one of the backup and not of the search: it must not go on sealing with a key that was replaced.
pub(super) fn ends(failure: &Failure) -> bool {
    match failure {
        Failure::Stopped => true,
        Failure::Repository(error) => error.is_foreign,
        _ => false,
    }
}

enum Candidate {
    OfBackup(PackRecord),
    Interrupted(PackId),
}

impl Search {
    /// Looks for them and reads their footers. What cannot be read is not used, and said. The lease makes sure that what is
    /// found stays until this backup is committed: it is asked before anything is looked for.
    pub(super) fn gather(self, lease: &Lease, stop: &Stop<Failure>) -> Result<Reuse, Failure> {
        let mut refused = Vec::new();
        let parent = match self.parent(lease) {
            Ok(parent) => parent,
            Err(failure) if ends(&failure) => return Err(failure),
            Err(failure) => {
                refused.push(failure.to_string());
                None
            }
        };
        let mut candidates = Vec::new();
        if let Some(parent) = &parent {
            let needed = parent.packs.iter().filter(|pack| pack.needed);
            candidates.extend(needed.copied().map(Candidate::OfBackup));
        }
        if self.config.from == ReuseFrom::All {
            let known: HashSet<PackId> =
                parent.iter().flat_map(|parent| &parent.packs).map(|pack| pack.id).collect();
            let left = self.interrupted(&known, lease)?;
            candidates.extend(left.into_iter().map(Candidate::Interrupted));
        }
        let parent = parent.map(|manifest| manifest.summary.backup.parse()).transpose();
        let parent = parent.map_err(|error| Failure::Target(format!("{error}")))?;
        let key = super::random()?;
        let (packs, index) = self.read(&candidates, &key, &mut refused, stop)?;
        Ok(Reuse {
            repository: self.repository,
            cluster: self.cluster,
            folder: self.folder,
            parent,
            packs,
            index,
            key,
            from_backup: AtomicU64::new(0),
            from_interrupted: AtomicU64::new(0),
            refused: Mutex::new(refused),
        })
    }

    fn parent(&self, lease: &Lease) -> Result<Option<Manifest>, Failure> {
        if self.config.from == ReuseFrom::Nothing {
            return Ok(None);
        }
        match self.repository.backups(&self.cluster)?.pop() {
            Some(newest) if lease.hold(newest)? => Manifest::open(&self.repository, &self.cluster, newest),
            _ => Ok(None),
        }
    }

    /// Packs of backups that have no manifest, but for this one.
    fn interrupted(&self, known: &HashSet<PackId>, lease: &Lease) -> Result<Vec<PackId>, Failure> {
        // Packs first: of a backup that is committed between the two lists there is a manifest then.
        let packs = || -> Result<_, Failure> {
            let names = self.repository.store().list(&self.cluster.packs())?;
            Ok(names.into_iter().filter_map(|entry| entry.name.parse::<PackId>().ok()))
        };
        let mut writers: BTreeSet<BackupId> = packs()?.map(|pack| pack.backup).collect();
        for committed in self.repository.backups(&self.cluster)? {
            writers.remove(&committed);
        }
        writers.remove(&self.own);
        let mut held = HashSet::new();
        for writer in writers.into_iter().rev().take(INTERRUPTED) {
            if lease.hold_packs(writer)? {
                held.insert(writer);
            }
        }
        if held.is_empty() {
            return Ok(Vec::new());
        }
        // Once more: only what is there while it is held stays.
        Ok(packs()?.filter(|pack| held.contains(&pack.backup) && !known.contains(pack)).collect())
    }

    /// Reads footers side by side.
    fn read(
        &self,
        candidates: &[Candidate],
        key: &Hash,
        refused: &mut Vec<String>,
        stop: &Stop<Failure>,
    ) -> Result<(Vec<OldPack>, FrameIndex), Failure> {
        let next = AtomicUsize::new(0);
        let (send, opened) = bounded::<Result<(PackRecord, bool, Vec<Frame>), Failure>>(QUEUE);
        let count = thread::available_parallelism().map_or(1, usize::from).clamp(2, THREADS);
        let mut sorter = FrameSorter::new(&self.scratch);
        let mut packs = Vec::new();
        thread::scope(|scope| {
            for _ in 0..count.min(candidates.len()) {
                let (send, next) = (send.clone(), &next);
                scope.spawn(move || {
                    while let Some(candidate) = candidates.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let Some(opened) = self.open(candidate).transpose() else { continue };
                        if stop.is_thrown() || send.send(opened).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(send);
            for opened in opened {
                let (record, interrupted, frames) = match opened {
                    Ok(opened) => opened,
                    Err(failure) if ends(&failure) => return Err(failure),
                    Err(failure) => {
                        refused.push(failure.to_string());
                        continue;
                    }
                };
                let pack = u32::try_from(packs.len()).map_err(|_| Failure::Stopped)?;
                packs.push(OldPack { record, interrupted, place: OnceLock::new() });
                for (frame, Frame { plain, hash, .. }) in (0..).zip(frames) {
                    if let Some(entry) = entry(&veiled(key, &hash), Known { pack, frame, plain }) {
                        sorter.push(entry)?;
                    }
                }
            }
            Ok::<(), Failure>(())
        })?;
        if stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        Ok((packs, FrameIndex::build(sorter, self.config.memory / 2)?))
    }

    /// Opens a pack. `None` for one that an interrupted backup has not completed: that is nothing to speak of.
    fn open(&self, candidate: &Candidate) -> Result<Option<(PackRecord, bool, Vec<Frame>)>, Failure> {
        match candidate {
            Candidate::OfBackup(record) => {
                let object = open(&self.repository, &self.cluster, record)?;
                Ok(Some((*record, false, object.frames().to_vec())))
            }
            Candidate::Interrupted(id) => {
                let name = self.cluster.pack(*id);
                let Ok(Some(object)) = ObjectReader::open(&self.repository, &name, ObjectKind::Pack) else {
                    return Ok(None);
                };
                let frames = u32::try_from(object.frames().len()).unwrap_or(0);
                let (length, checksum) = (object.length(), object.checksum());
                let record = PackRecord { id: *id, length, frames, checksum, needed: true };
                let is_data = |frame: &Frame| frame.kind == FrameKind::Data;
                if frames == 0 || !object.frames().iter().all(is_data) {
                    return Ok(None);
                }
                Ok(Some((record, true, object.frames().to_vec())))
            }
        }
    }
}

/// What stands for a hash in the index, whose file lies where whoever keeps the repository may read it: with a key of
/// this run's own, it tells nothing of an encrypted one's content.
fn veiled(key: &Hash, hash: &Hash) -> Hash {
    *blake3::keyed_hash(key, hash).as_bytes()
}

/// Makes a file durable, and what is read of it come from the disk: not what was once meant to be there.
fn sync_to_disk(folder: &Folder, name: &str) -> Result<(), Failure> {
    let path = folder.path.join(name);
    let failed = |what: &'static str| {
        let path = path.clone();
        move |error: rustix::io::Errno| Failure::disk(what, path, error)
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&folder.handle, name, flags, Mode::empty()).map_err(failed("open"))?;
    rustix::fs::fsync(&file).map_err(failed("sync"))?;
    fadvise(&file, 0, None, Advice::DontNeed).map_err(failed("drop from the page cache"))
}

/// Opens a pack that must be the one of the record.
fn open(
    repository: &Repository,
    cluster: &ClusterName,
    record: &PackRecord,
) -> Result<ObjectReader, Failure> {
    let name = cluster.pack(record.id);
    let object = ObjectReader::open(repository, &name, ObjectKind::Pack)?;
    let object = object.ok_or_else(|| RepositoryError::damaged(&name, "it is missing"))?;
    if (object.length(), object.frames().len(), object.checksum())
        != (record.length, record.frames as usize, record.checksum)
    {
        return Err(
            RepositoryError::damaged(name, "it is another pack than the one that was found before").into()
        );
    }
    Ok(object)
}

impl Reuse {
    /// The pack, by its place in this backup's table, and the frame that hold bytes of this hash and length already.
    pub fn find(
        &self,
        hash: &Hash,
        length: usize,
        ledger: &PackLedger,
        reader: &mut ReuseReader,
    ) -> Option<(u32, u32)> {
        let Known { pack, frame, plain } = self.index.find(&veiled(&self.key, hash))?;
        if plain as usize != length {
            return None;
        }
        let old = self.packs.get(pack as usize).filter(|old| !ledger.is_avoided(&old.record.id))?;
        let place = (*old.place.get_or_init(|| self.adopt(old, ledger)))?;
        let listed = reader.open(pack, || open(&self.repository, &self.cluster, &old.record))?;
        let listed = listed.frames().get(frame as usize)?;
        if listed.hash != *hash || listed.plain != plain {
            return None;
        }
        let counter = if old.interrupted { &self.from_interrupted } else { &self.from_backup };
        counter.fetch_add(length as u64, Ordering::Relaxed);
        Some((place, frame))
    }

    /// Takes a pack into the table of this backup, unless it cannot be used.
    fn adopt(&self, old: &OldPack, ledger: &PackLedger) -> Option<u32> {
        let checked = if old.interrupted { self.check(old) } else { self.open(old).map(drop) };
        match checked {
            Ok(()) => Some(ledger.adopt(old.record)),
            Err(failure) => {
                self.refused.lock().unwrap_or_else(PoisonError::into_inner).push(failure.to_string());
                None
            }
        }
    }

    fn open(&self, old: &OldPack) -> Result<ObjectReader, Failure> {
        open(&self.repository, &self.cluster, &old.record)
    }

    /// Nobody has said that a pack of an interrupted backup is durable, or whole: whatever ended that backup may
    /// have ended its writes. An object store shows what is both, or nothing.
    fn check(&self, old: &OldPack) -> Result<(), Failure> {
        if let Some(folder) = &self.folder {
            sync_to_disk(folder, &old.record.id.to_string())?;
        }
        let object = self.open(old)?;
        if self.folder.is_none() {
            return Ok(());
        }
        let mut decoder = FrameDecoder::new().map_err(|error| Failure::Target(error.to_string()))?;
        let mut stored = Vec::new();
        for number in 0..old.record.frames {
            object.frame(number, &mut stored, &mut decoder)?;
        }
        Ok(())
    }

    /// The packs that this backup refers to are still there: asked before it is committed.
    pub(super) fn check_adopted(&self) -> Result<(), Failure> {
        let adopted: Vec<_> =
            self.packs.iter().filter(|old| matches!(old.place.get(), Some(Some(_)))).collect();
        let next = AtomicUsize::new(0);
        let check = || -> Result<(), Failure> {
            while let Some(old) = adopted.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.open(old)?;
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

    pub(super) fn outcome(&self) -> Reused {
        let [from_backup, from_interrupted] =
            [&self.from_backup, &self.from_interrupted].map(|bytes| bytes.load(Ordering::Relaxed));
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let text = |failure: &String| failure.split("\nHINT:").next().unwrap_or_default().to_owned();
        let mut told: Vec<_> = refused.iter().take(TOLD).map(text).collect();
        if refused.len() > TOLD {
            told.push(format!("{} more like these", refused.len() - TOLD));
        }
        let parent = self.parent.filter(|_| from_backup > 0);
        Reused { parent, from_backup, from_interrupted, refused: told }
    }
}

impl ReuseReader {
    fn open(
        &mut self,
        pack: u32,
        open: impl FnOnce() -> Result<ObjectReader, Failure>,
    ) -> Option<&ObjectReader> {
        match self.open.iter().position(|(open, _)| *open == pack) {
            Some(place) => {
                let found = self.open.remove(place);
                self.open.push(found);
            }
            None => {
                // Where it cannot be opened, the bytes are stored anew.
                let opened = open().ok()?;
                if self.open.len() >= OPEN {
                    self.open.remove(0);
                }
                self.open.push((pack, opened));
            }
        }
        self.open.last().map(|(_, object)| object)
    }
}
