//! Marks and fences: what makes a removal safe against those who begin to rely on it at the same time.
//!
//! A mark of a backup is never taken back while that is there: nobody begins to hold or pin a marked backup, so it goes
//! as soon as nobody does. A fence lies in the place of a manifest, so that a run which was taken for
//! dead can never commit. Whoever sees a fence finds its mark as well: that is published first.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::super::container::ObjectKind;
use super::super::error::RepositoryError;
use super::super::names::{BackupId, ClusterName};
use super::super::object_reader::ObjectReader;
use super::super::place::{Repository, now};
use super::lease::{Lease, LeaseHolder, Purpose, leases};
use super::note;
use crate::failure::Failure;

/// What is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// A backup that goes.
    Condemned,
    /// A run that was taken for dead.
    Dead,
    /// A run without a manifest whose packs go.
    Swept,
}

impl Mark {
    fn suffix(self) -> &'static str {
        match self {
            Self::Condemned => ".condemned",
            Self::Dead => ".dead",
            Self::Swept => ".swept",
        }
    }

    /// The mark's name.
    pub(super) fn name(self, cluster: &ClusterName, backup: BackupId) -> String {
        format!("{}/{backup}{}", cluster.condemned(), self.suffix())
    }
}

/// What a mark or a fence says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CondemnedSummary {
    cluster: String,
    backup: String,
    /// Seconds since 1970.
    created: u64,
    program: String,
    requires: Vec<String>,
}

fn summary(cluster: &ClusterName, backup: BackupId) -> CondemnedSummary {
    CondemnedSummary {
        cluster: cluster.to_string(),
        backup: backup.to_string(),
        created: now(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        requires: Vec::new(),
    }
}

/// The marks of a cluster.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Marks {
    condemned: HashSet<BackupId>,
    dead: HashSet<BackupId>,
    swept: HashSet<BackupId>,
}

impl Marks {
    pub(in super::super) fn list(repository: &Repository, cluster: &ClusterName) -> Result<Self, Failure> {
        let mut marks = Self::default();
        for entry in repository.store().list(&cluster.condemned())? {
            for (mark, found) in [
                (Mark::Condemned, &mut marks.condemned),
                (Mark::Dead, &mut marks.dead),
                (Mark::Swept, &mut marks.swept),
            ] {
                found.extend(
                    entry.name.strip_suffix(mark.suffix()).and_then(|id| id.parse::<BackupId>().ok()),
                );
            }
        }
        Ok(marks)
    }

    /// Whether nobody may begin to rely on a backup.
    pub(in super::super) fn contains(&self, backup: BackupId) -> bool {
        self.condemned.contains(&backup) || self.dead.contains(&backup)
    }

    /// Whether nobody may begin to rely on the packs of a run that has no manifest. That it is dead is no reason.
    pub(super) fn sweeps(&self, writer: BackupId) -> bool {
        self.condemned.contains(&writer) || self.swept.contains(&writer)
    }

    /// Whether a backup is being removed.
    pub(super) fn condemns(&self, backup: BackupId) -> bool {
        self.condemned.contains(&backup)
    }

    /// Backups that are being removed, or were.
    pub(super) fn condemned(&self) -> impl Iterator<Item = BackupId> + '_ {
        self.condemned.iter().copied()
    }

    /// Runs that were taken for dead.
    pub(in super::super) fn dead(&self) -> impl Iterator<Item = BackupId> + '_ {
        self.dead.iter().copied()
    }
}

/// Marks a backup. One that is marked already stays as it is.
pub(super) fn mark(
    repository: &Repository,
    cluster: &ClusterName,
    backup: BackupId,
    mark: Mark,
) -> Result<(), Failure> {
    let (name, summary) = (mark.name(cluster, backup), summary(cluster, backup));
    note::publish(repository, ObjectKind::Condemned, &name, &summary).map(drop)
}

/// Whether a fence lies in the place of a backup's manifest.
pub(in super::super) fn is_fenced(
    repository: &Repository,
    cluster: &ClusterName,
    backup: BackupId,
) -> Result<bool, Failure> {
    match ObjectReader::open(repository, &cluster.manifest(backup), ObjectKind::Fence) {
        Ok(found) => Ok(found.is_some()),
        // Whatever it is, it is no fence; but what cannot be opened may be one.
        Err(Failure::Repository(error)) if error.is_of_the_object() => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Makes sure that a run which is taken for dead never commits. False where it did before.
pub(super) fn fence(
    repository: &Repository,
    cluster: &ClusterName,
    backup: BackupId,
) -> Result<bool, Failure> {
    mark(repository, cluster, backup, Mark::Dead)?;
    let (name, summary) = (cluster.manifest(backup), summary(cluster, backup));
    if note::publish(repository, ObjectKind::Fence, &name, &summary)?
        || is_fenced(repository, cluster, backup)?
    {
        return Ok(true);
    }
    acquit(repository, cluster, backup)?;
    Ok(false)
}

/// Takes the mark off a run that had committed after all: no fence can come any more.
pub(super) fn acquit(
    repository: &Repository,
    cluster: &ClusterName,
    backup: BackupId,
) -> Result<(), Failure> {
    repository.store().remove(&[Mark::Dead.name(cluster, backup)])
}

/// The leases that count.
#[derive(Debug)]
pub(in super::super) struct Survey {
    /// The store's time, in seconds since 1970.
    pub(in super::super) now: u64,
    /// Those that live, but for one's own.
    pub(in super::super) alive: Vec<LeaseHolder>,
    /// Backups that were taken for dead.
    pub(super) broken: Vec<LeaseHolder>,
}

impl Survey {
    /// Who needs a backup to stay.
    pub(super) fn protector(&self, backup: BackupId) -> Option<&LeaseHolder> {
        self.alive.iter().find(|lease| lease.protects(backup))
    }
}

/// Looks at all leases. `own` is renewed before, so that the time is the store's. One that has expired is disregarded
/// only after its backup was fenced.
pub(in super::super) fn survey(
    repository: &Repository,
    cluster: &ClusterName,
    own: &Lease,
) -> Result<Survey, Failure> {
    own.renew()?;
    let mut found = leases(repository, cluster)?;
    let Some(place) = found.iter().position(|lease| lease.holder == own.holder()) else {
        let what = format!("the lease {} of this run was removed by another", own.holder());
        let hint = "another run took this one for dead: see whether the store's clock jumps, and try again.";
        return Err(RepositoryError::new(cluster.leases(), what, hint).into());
    };
    let now = found.remove(place).renewed;
    let (alive, dead): (Vec<_>, Vec<_>) = found.into_iter().partition(|lease| lease.is_alive(now));
    let mut broken = Vec::new();
    for lease in dead {
        if lease.summary.purpose == Purpose::Backup && fence(repository, cluster, lease.holder)? {
            broken.push(lease.clone());
        }
        repository.store().remove(&lease.names(cluster))?;
    }
    Ok(Survey { now, alive, broken })
}
