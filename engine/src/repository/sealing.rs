//! Whose objects these are, and what they are sealed with: what every object of a repository is made and read by.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::cipher::{Key, ObjectCipher};
use super::container::RepositoryId;
use super::error::RepositoryError;

/// A repository's identity, and its data keys where it is encrypted. Cheap to clone.
#[derive(Clone)]
pub struct Sealing {
    repository: RepositoryId,
    keys: Option<Arc<DataKeys>>,
}

/// Data keys by number, from 1. The highest is what new objects are sealed with.
///
/// Invariant: there is one at least.
#[derive(Debug)]
pub(super) struct DataKeys(BTreeMap<u32, Key>);

impl DataKeys {
    pub(super) fn newest(&self) -> (u32, &Key) {
        let (number, key) = self.0.last_key_value().expect("it was not empty");
        (*number, key)
    }
}

impl Sealing {
    /// Of a repository that is not encrypted.
    #[must_use]
    pub fn none(repository: RepositoryId) -> Self {
        Self { repository, keys: None }
    }

    /// Of one that is.
    ///
    /// # Panics
    /// Without a key: who opens a head has one.
    pub(super) fn with(repository: RepositoryId, keys: BTreeMap<u32, Key>) -> Self {
        assert!(!keys.is_empty(), "an encrypted repository has data keys");
        Self { repository, keys: Some(Arc::new(DataKeys(keys))) }
    }

    /// The repository's identity.
    #[must_use]
    pub fn repository(&self) -> RepositoryId {
        self.repository
    }

    /// Whether its objects are encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.keys.is_some()
    }

    /// Its data keys.
    pub(super) fn keys(&self) -> Option<&DataKeys> {
        self.keys.as_deref()
    }

    /// The cipher that opens an object: of one that says by which data key it was sealed.
    ///
    /// # Errors
    /// Where the object is sealed and the repository is not, or the reverse, or the key is none of the repository's.
    pub(super) fn cipher(
        &self,
        key: Option<u32>,
        prologue: &[u8],
        object: &str,
    ) -> Result<Option<ObjectCipher>, RepositoryError> {
        match (key, &self.keys) {
            (None, None) => Ok(None),
            (Some(number), Some(keys)) => match keys.0.get(&number) {
                Some(key) => Ok(Some(ObjectCipher::new(key, prologue, object))),
                None => Err(RepositoryError::foreign(object, number)),
            },
            (None, Some(_)) => {
                let what = "it is not encrypted, and its repository is: it was put in the place of another";
                Err(RepositoryError::damaged(object, what))
            }
            (Some(_), None) => {
                let what = "it is encrypted, and by its head the repository is not";
                Err(RepositoryError::damaged(object, what))
            }
        }
    }
}

impl fmt::Debug for Sealing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encrypted = self.keys.is_some();
        f.debug_struct("Sealing").field("encrypted", &encrypted).finish_non_exhaustive()
    }
}
