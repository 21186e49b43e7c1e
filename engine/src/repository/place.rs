//! A repository: made, opened, asked for its clusters and backups.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::codec::FrameDecoder;
use super::container::{FrameKind, RepositoryId};
use super::error::RepositoryError;
use super::head::{self, Head, KeySource};
use super::key_change;
use super::manifest::Manifest;
use super::names::{BackupId, CLUSTERS, ClusterName, HEADS, MANIFEST_SUFFIX};
use super::object_reader::ObjectReader;
use super::retention::{Marks, is_fenced};
use super::sealing::Sealing;
use super::secret::Secret;
use super::store::{Entry, Store};
use super::summary::{HeadSummary, parse};
use crate::failure::Failure;

/// An open repository.
#[derive(Clone, Debug)]
pub struct Repository {
    store: Arc<dyn Store>,
    sealing: Sealing,
    /// The number of the head that it was opened by.
    head: u32,
}

/// Which backup is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupChoice {
    /// The last that was begun.
    Latest,
    /// This one.
    Id(BackupId),
}

impl std::str::FromStr for BackupChoice {
    type Err = super::names::InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "latest" { Ok(Self::Latest) } else { text.parse().map(Self::Id) }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Repository {
    /// Makes a repository that is not encrypted. One that is there already is left alone and refused.
    ///
    /// # Errors
    /// Where the place cannot be written to, or has something in it.
    pub fn init(store: Arc<dyn Store>) -> Result<Self, Failure> {
        Self::init_for(store, None)
    }

    /// Makes a repository; an encrypted one where there is a first recipient, with a label.
    ///
    /// # Errors
    /// As [`Self::init`].
    pub fn init_for(store: Arc<dyn Store>, recipient: Option<(&Secret, &str)>) -> Result<Self, Failure> {
        let taken = |what: &str| {
            let hint = "name an empty folder or one that does not exist; nothing was changed.";
            Failure::from(RepositoryError::new(store.address(), what, hint))
        };
        // What an init that was killed has left is no reason to refuse.
        match store.list("")?.iter().find(|entry| entry.name != "staging") {
            Some(entry) if entry.name.starts_with(HEADS) => {
                return Err(taken("there is a repository already"));
            }
            Some(_) => return Err(taken("the folder is not empty, expected none or an empty one")),
            None => {}
        }
        let id: RepositoryId = super::random()?;
        let first = recipient.map(|(secret, label)| key_change::first(secret, label, &id)).transpose()?;
        let (slot, opened) = first.unzip();
        let summary = HeadSummary {
            created: now(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            last_slot: slot.as_ref().map_or(0, |slot| slot.number),
            key_slots: slot.into_iter().collect(),
            requires: Vec::new(),
        };
        if !head::publish(&*store, 0, id, &summary, opened.as_ref())? {
            return Err(taken("another process has just made a repository there"));
        }
        let sealing = match opened {
            Some(opened) => Sealing::with(id, opened.data_keys),
            None => Sealing::none(id),
        };
        Ok(Self { store, sealing, head: 0 })
    }

    /// Opens a repository that is not encrypted.
    ///
    /// # Errors
    /// Where there is none, or none that this version knows.
    pub fn open(store: Arc<dyn Store>) -> Result<Self, Failure> {
        Self::open_with(store, KeySource::None)
    }

    /// Opens a repository with a key.
    ///
    /// # Errors
    /// As [`Self::open`], and where the key does not open it.
    pub fn open_with(store: Arc<dyn Store>, key: KeySource<'_>) -> Result<Self, Failure> {
        let address = store.address();
        let Some(head) = Head::read(&*store)? else {
            // Where there is not even a place for one, that is the better answer.
            store.list("")?;
            let hint = "check the name, or make a repository with `pgstrata init`.";
            return Err(RepositoryError::new(address, "there is no repository", hint).into());
        };
        let sealing = head.open(&address, key)?;
        Ok(Self { store, sealing, head: head.number })
    }

    /// Refuses to go on where the keys were changed since it was opened: what is written now would be for those who
    /// could read it then.
    ///
    /// # Errors
    /// Where they were, or that cannot be found out.
    pub fn check_keys(&self) -> Result<(), Failure> {
        if self.sealing.keys().is_none() || head::numbers(&*self.store)?.last() == Some(&self.head) {
            return Ok(());
        }
        let what = "the repository's keys have been changed since this process opened it";
        let hint = "start it again, with a key of the repository as it is now; it goes on where it stopped.";
        Err(RepositoryError::new(self.store.address(), what, hint).into())
    }

    /// Where its objects are.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The same repository, reached another way.
    #[cfg(test)]
    pub(super) fn with_store(&self, store: Arc<dyn Store>) -> Self {
        Self { store, ..self.clone() }
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> RepositoryId {
        self.sealing.repository()
    }

    /// What its objects are sealed with.
    #[must_use]
    pub fn sealing(&self) -> &Sealing {
        &self.sealing
    }

    /// Its clusters, by name.
    ///
    /// # Errors
    /// Where they cannot be listed.
    pub fn clusters(&self) -> Result<Vec<ClusterName>, Failure> {
        Ok(self.store.list(CLUSTERS)?.iter().filter_map(|entry| entry.name.parse().ok()).collect())
    }

    /// A cluster's backups, the oldest first.
    ///
    /// # Errors
    /// Where they cannot be listed.
    pub fn backups(&self, cluster: &ClusterName) -> Result<Vec<BackupId>, Failure> {
        let names = self.store.list(&cluster.backups())?;
        let id = |entry: &Entry| entry.name.strip_suffix(MANIFEST_SUFFIX)?.parse().ok();
        let mut backups: Vec<BackupId> = names.iter().filter_map(id).collect();
        backups.sort_unstable();
        // Where a run was taken for dead, a fence may lie in the place of its manifest.
        for dead in Marks::list(self, cluster)?.dead() {
            if let Ok(place) = backups.binary_search(&dead)
                && is_fenced(self, cluster, dead)?
            {
                backups.remove(place);
            }
        }
        Ok(backups)
    }

    /// Names among a cluster's backups that are none.
    pub(super) fn strays(&self, cluster: &ClusterName) -> Result<Vec<String>, Failure> {
        let is_backup =
            |name: &str| name.strip_suffix(MANIFEST_SUFFIX).is_some_and(|id| id.parse::<BackupId>().is_ok());
        let names = self.store.list(&cluster.backups())?.into_iter().map(|entry| entry.name);
        Ok(names.filter(|name| !is_backup(name)).collect())
    }

    /// Opens a backup.
    ///
    /// # Errors
    /// Where there is no such backup, or its manifest is damaged.
    pub fn backup(&self, cluster: &ClusterName, choice: BackupChoice) -> Result<Manifest, Failure> {
        let missing = |what: String| {
            let hint = "see `pgstrata list` for the clusters and backups that there are.";
            Failure::from(RepositoryError::new(self.store.address(), what, hint))
        };
        let id = match choice {
            BackupChoice::Id(id) => id,
            BackupChoice::Latest => {
                let last = self.backups(cluster)?.pop();
                last.ok_or_else(|| missing(format!("cluster \"{cluster}\" has no backup")))?
            }
        };
        let opened = Manifest::open(self, cluster, id)?;
        opened.ok_or_else(|| missing(format!("cluster \"{cluster}\" has no backup {id}")))
    }

    /// A new id for a backup of a cluster, later than all there are.
    pub(super) fn next_backup(&self, cluster: &ClusterName) -> Result<BackupId, Failure> {
        let last = self.backups(cluster)?.pop();
        // A clock that went back must not make an older backup the latest.
        let seconds = last.map_or(0, |last| last.seconds.saturating_add(1)).max(now());
        Ok(BackupId { seconds, random: u32::from_le_bytes(super::random()?) })
    }
}

/// Reads the frame that says what an object is about.
pub(in crate::repository) fn read_summary<T: serde::de::DeserializeOwned>(
    object: &ObjectReader,
) -> Result<T, Failure> {
    let number = object.of_kind(FrameKind::Summary).last();
    let number = number.ok_or_else(|| RepositoryError::damaged(object.name(), "it has no summary"))?;
    let mut decoder = FrameDecoder::new().map_err(|error| Failure::Target(error.to_string()))?;
    let bytes = object.frame(number, &mut Vec::new(), &mut decoder)?;
    Ok(parse(bytes, object.name())?)
}

#[cfg(test)]
mod tests {
    use super::super::LocalStore;
    use super::*;

    #[test]
    fn made_once_and_opened() {
        let scratch = tempfile::tempdir().expect("a folder");
        let store = || -> Arc<dyn Store> { Arc::new(LocalStore::new(scratch.path().join("r"))) };
        let refused = Repository::open(store()).expect_err("none there").to_string();
        assert!(refused.contains("there is no repository") && refused.contains("HINT:"), "{refused}");
        let made = Repository::init(store()).expect("made");
        assert_eq!(Repository::open(store()).expect("opened").id(), made.id());
        let refused = Repository::init(store()).expect_err("twice").to_string();
        assert!(refused.contains("repository already"), "{refused}");
        std::fs::write(scratch.path().join("x"), b"x").expect("written");
        let other: Arc<dyn Store> = Arc::new(LocalStore::new(scratch.path()));
        let refused = Repository::init(other).expect_err("in use").to_string();
        assert!(refused.contains("not empty"), "{refused}");
        let higher = scratch.path().join("r/pgstrata-repository.00000001");
        std::fs::write(&higher, b"later").expect("written");
        let refused = Repository::open(store()).expect_err("a later head").to_string();
        assert!(refused.contains("00000001: found 5 bytes"), "{refused}");
        std::fs::remove_file(higher).expect("removed");
        let strange = scratch.path().join("r/pgstrata-repository.1");
        std::fs::write(&strange, b"later").expect("written");
        let refused = Repository::open(store()).expect_err("a strange head").to_string();
        assert!(refused.contains("repository.1: it is no name of a head"), "{refused}");
        std::fs::remove_file(strange).expect("removed");
        let cluster: ClusterName = "main".parse().expect("valid");
        let refused = made.backup(&cluster, BackupChoice::Latest).expect_err("none").to_string();
        assert!(refused.contains("has no backup"), "{refused}");
    }
}
