//! Mark and sweep: packs that no manifest needs.
//!
//! The order is the argument (docs/repository-format.md): packs are listed first, leases next, manifests last, so that a
//! pack of a run under way is either not listed, or under a lease, or needed by a manifest that is seen. Memory: one
//! entry of a listing for each pack of the store.

use std::collections::{BTreeSet, HashSet};

use super::super::error::RepositoryError;
use super::super::manifest::{Manifest, each_pack};
use super::super::names::{BackupId, ClusterName, PackId};
use super::super::place::Repository;
use super::condemn::{Mark, Marks, fence, mark, survey};
use super::lease::{Lease, LeaseHolder};
use crate::failure::Failure;
use crate::stop::Stop;

/// Packs removed at a time.
const BATCH: usize = 500;

/// What was swept.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Swept {
    pub(super) packs: u64,
    pub(super) bytes: u64,
    /// Unneeded, and younger than the grace age.
    pub(super) young: u64,
    /// Unneeded, and under a lease.
    pub(super) leased: u64,
}

struct Pack {
    id: PackId,
    length: u64,
    /// When it was written, by the later of two clocks.
    written: u64,
    needed: bool,
}

/// The packs of a cluster, sorted.
struct Packs(Vec<Pack>);

impl Packs {
    fn list(repository: &Repository, cluster: &ClusterName) -> Result<Self, Failure> {
        let listed = repository.store().list(&cluster.packs())?;
        let known = listed.into_iter().filter_map(|object| {
            // What is no pack of ours is not ours to remove.
            let id: PackId = object.name.parse().ok()?;
            let written = id.backup.seconds.max(object.modified);
            Some(Pack { id, length: object.length, written, needed: false })
        });
        let mut packs: Vec<_> = known.collect();
        packs.sort_unstable_by_key(|pack| pack.id);
        Ok(Self(packs))
    }

    /// Notes what a backup that was listed needs. Where it has gone meanwhile another `expire` is at work: what needed
    /// its packs after it may not be known.
    fn mark(
        &mut self,
        repository: &Repository,
        cluster: &ClusterName,
        backup: BackupId,
    ) -> Result<(), Failure> {
        let Some((manifest, _)) = Manifest::open_summary(repository, cluster, backup)? else {
            let hint =
                "another expire is at work; nothing was swept: start this one again once that has ended.";
            return Err(
                RepositoryError::new(cluster.manifest(backup), "it was listed and has gone", hint).into()
            );
        };
        each_pack(&manifest, |record| {
            if record.needed
                && let Ok(place) = self.0.binary_search_by_key(&record.id, |pack| pack.id)
            {
                self.0[place].needed = true;
            }
            Ok(())
        })
    }
}

impl Pack {
    /// Whether it is younger than the grace age. Ids of backups that were begun in one second lie in the future.
    fn is_young(&self, now: u64, grace: u64) -> bool {
        grace > 0 && self.written.saturating_add(grace) > now
    }
}

/// Who protects a backup's packs.
fn is_protected(alive: &[LeaseHolder], backup: BackupId) -> bool {
    alive.iter().any(|lease| lease.protects(backup))
}

/// What would be swept once the backups in `going` have gone. Changes nothing.
pub(super) fn plan(
    repository: &Repository,
    cluster: &ClusterName,
    alive: &[LeaseHolder],
    (now, grace): (u64, u64),
    going: &HashSet<BackupId>,
) -> Result<Swept, Failure> {
    let mut packs = Packs::list(repository, cluster)?;
    for backup in repository.backups(cluster)?.into_iter().filter(|backup| !going.contains(backup)) {
        packs.mark(repository, cluster, backup)?;
    }
    let mut swept = Swept::default();
    for pack in packs.0.iter().filter(|pack| !pack.needed) {
        if pack.is_young(now, grace) {
            swept.young += 1;
        } else if is_protected(alive, pack.id.backup) {
            swept.leased += 1;
        } else {
            swept.packs += 1;
            swept.bytes += pack.length;
        }
    }
    Ok(swept)
}

/// Removes what no manifest needs. Runs that were taken for dead on the way are added to `broken`.
pub(super) fn sweep(
    repository: &Repository,
    cluster: &ClusterName,
    own: &Lease,
    grace: u64,
    broken: &mut Vec<LeaseHolder>,
    stop: &Stop<Failure>,
) -> Result<Swept, Failure> {
    let store = repository.store();
    let mut packs = Packs::list(repository, cluster)?;
    let first = survey(repository, cluster, own)?;
    broken.extend(first.broken);
    let backups: HashSet<_> = repository.backups(cluster)?.into_iter().collect();
    for backup in &backups {
        if stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        packs.mark(repository, cluster, *backup)?;
    }
    let mut swept = Swept::default();
    let mut writers = BTreeSet::new();
    let mut garbage = Vec::new();
    for (place, pack) in packs.0.iter().enumerate().filter(|(_, pack)| !pack.needed) {
        if pack.is_young(first.now, grace) {
            swept.young += 1;
        } else if is_protected(&first.alive, pack.id.backup) {
            swept.leased += 1;
        } else {
            garbage.push(place);
            writers.insert(pack.id.backup);
        }
    }
    // Whoever has no manifest may be about to write one, unless it was there and is removed. Nobody adopts its packs
    // from the mark on, and it commits nothing from the fence on.
    let marks = Marks::list(repository, cluster)?;
    if backups.is_empty() && grace > 0 && writers.iter().any(|writer| !marks.contains(*writer)) {
        let what = format!("it has packs of {} backups and no manifest", writers.len());
        let hint = "nothing was swept: manifests may have been moved, or not be mounted. Where no backup was ever completed, \
                    --grace 0s removes what the failed ones have left.";
        return Err(RepositoryError::new(format!("cluster \"{cluster}\""), what, hint).into());
    }
    writers.retain(|writer| !backups.contains(writer) && !marks.condemns(*writer));
    for writer in &writers {
        mark(repository, cluster, *writer, Mark::Dead)?;
        mark(repository, cluster, *writer, Mark::Swept)?;
    }
    let second = survey(repository, cluster, own)?;
    broken.extend(second.broken);
    // Who began to hold a writer before its mark, was committed, and gave its lease back before it was looked for, is
    // seen by its manifest now.
    for backup in repository.backups(cluster)?.into_iter().filter(|backup| !backups.contains(backup)) {
        packs.mark(repository, cluster, backup)?;
    }
    for writer in writers {
        if !is_protected(&second.alive, writer) && !fence(repository, cluster, writer)? {
            packs.mark(repository, cluster, writer)?;
        }
    }
    garbage.retain(|place| {
        let pack = &packs.0[*place];
        let leased = is_protected(&second.alive, pack.id.backup);
        swept.leased += u64::from(leased && !pack.needed);
        !leased && !pack.needed
    });
    for batch in garbage.chunks(BATCH) {
        if stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        let names: Vec<_> = batch.iter().map(|place| cluster.pack(packs.0[*place].id)).collect();
        store.remove(&names)?;
        swept.packs += batch.len() as u64;
        swept.bytes += batch.iter().map(|place| packs.0[*place].length).sum::<u64>();
    }
    if !garbage.is_empty() {
        store.sync_folder(&cluster.packs())?;
    }
    forget(repository, cluster, &packs, &garbage)?;
    Ok(swept)
}

/// Removes the marks of backups of which no pack is left. As long as others need some, the mark says whose these were.
fn forget(
    repository: &Repository,
    cluster: &ClusterName,
    packs: &Packs,
    swept: &[usize],
) -> Result<(), Failure> {
    let swept: HashSet<_> = swept.iter().copied().collect();
    let left = packs.0.iter().enumerate().filter(|(place, _)| !swept.contains(place));
    let left: HashSet<_> = left.map(|(_, pack)| pack.id.backup).collect();
    let marks = Marks::list(repository, cluster)?;
    let backups = repository.backups(cluster)?;
    let over: Vec<_> = marks
        .condemned()
        .filter(|backup| backups.binary_search(backup).is_err() && !left.contains(backup))
        .map(|backup| Mark::Condemned.name(cluster, backup))
        .collect();
    repository.store().remove(&over)
}
