//! Pins: backups that are to be kept, whatever the rules say.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::super::container::ObjectKind;
use super::super::error::RepositoryError;
use super::super::names::{BackupId, ClusterName, numbered};
use super::super::place::{BackupChoice, Repository, now};
use super::condemn::Marks;
use super::note;
use crate::failure::Failure;

/// What a pin's name ends with.
const SUFFIX: &str = ".pin";

/// What a pin's object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinSummary {
    /// The cluster's name.
    pub cluster: String,
    /// The backup.
    pub backup: String,
    /// Seconds since 1970 until when it holds; for good where there is none.
    pub until: Option<u64>,
    /// Why, for people.
    pub reason: Option<String>,
    /// Seconds since 1970.
    pub created: u64,
    /// The program's version that wrote it.
    pub program: String,
    /// What a reader must know.
    pub requires: Vec<String>,
}

/// A pin that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The backup.
    pub backup: BackupId,
    /// What it says.
    pub summary: PinSummary,
    pub(super) object: String,
}

impl Pin {
    /// Whether it holds at a time, in seconds since 1970.
    #[must_use]
    pub fn holds(&self, now: u64) -> bool {
        self.summary.until.is_none_or(|until| now <= until)
    }
}

/// All pins of a cluster, sorted by backup. One that goes while they are read is left out.
///
/// # Errors
/// Where they cannot be listed, or one is damaged.
pub fn pins(repository: &Repository, cluster: &ClusterName) -> Result<Vec<Pin>, Failure> {
    let mut found = Vec::new();
    for entry in repository.store().list(&cluster.pins())? {
        let Some((backup, _)) = numbered(&entry.name, SUFFIX) else { continue };
        let object = format!("{}/{}", cluster.pins(), entry.name);
        if let Some(summary) = note::read(repository, ObjectKind::Pin, &object)? {
            found.push(Pin { backup, summary, object });
        }
    }
    Ok(found)
}

/// What is said of a cluster's backups beside their manifests.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Pins, sorted by backup.
    pub pins: Vec<Pin>,
    /// Backups whose removal has begun.
    pub removing: HashSet<BackupId>,
}

impl Standing {
    /// Reads it.
    ///
    /// # Errors
    /// As [`pins`].
    pub fn read(repository: &Repository, cluster: &ClusterName) -> Result<Self, Failure> {
        let pins = pins(repository, cluster)?;
        let removing = Marks::list(repository, cluster)?.condemned().collect();
        Ok(Self { pins, removing })
    }
}

/// Pins a backup.
///
/// # Errors
/// Where there is no such backup, it is being removed, or the pin cannot be published.
pub fn pin(
    repository: &Repository,
    cluster: &ClusterName,
    choice: BackupChoice,
    until: Option<u64>,
    reason: Option<String>,
) -> Result<Pin, Failure> {
    let manifest = repository.backup(cluster, choice)?;
    let text = &manifest.summary.backup;
    let backup: BackupId = text.parse().map_err(|error| RepositoryError::damaged(text, error))?;
    let summary = PinSummary {
        cluster: cluster.to_string(),
        backup: text.clone(),
        until,
        reason,
        created: now(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        requires: Vec::new(),
    };
    for number in 0..=u32::MAX {
        let object = format!("{}/{backup}.{number:08x}{SUFFIX}", cluster.pins());
        if !note::publish(repository, ObjectKind::Pin, &object, &summary)? {
            continue;
        }
        // Whoever marks it from now on finds the pin.
        let marked = Marks::list(repository, cluster)?.contains(backup);
        if marked || !repository.backups(cluster)?.contains(&backup) {
            repository.store().remove(&[object])?;
            let what = format!("backup {backup} of cluster \"{cluster}\" is being removed");
            let hint = "it is too late to pin it; pin another backup.";
            return Err(RepositoryError::new(repository.store().address(), what, hint).into());
        }
        return Ok(Pin { backup, summary, object });
    }
    let hint = "remove them with `pgstrata unpin`.";
    Err(RepositoryError::new(cluster.pins(), "a backup has too many pins", hint).into())
}

/// Removes all pins of a backup. Returns how many there were.
///
/// # Errors
/// Where they cannot be listed or removed.
pub fn unpin(repository: &Repository, cluster: &ClusterName, backup: BackupId) -> Result<usize, Failure> {
    let listed = repository.store().list(&cluster.pins())?;
    let of_it =
        listed.iter().filter(|entry| numbered(&entry.name, SUFFIX).is_some_and(|(of, _)| of == backup));
    let names: Vec<_> = of_it.map(|entry| format!("{}/{}", cluster.pins(), entry.name)).collect();
    repository.store().remove(&names)?;
    if !names.is_empty() {
        repository.store().sync_folder(&cluster.pins())?;
    }
    Ok(names.len())
}
