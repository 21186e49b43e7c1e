//! What is wrong with an object of a repository: which one, what was found there, what was expected, what to do.

use std::fmt;

const DAMAGED: &str = "this object is damaged; backups that need it cannot be restored whole. Check the storage, have \
                       `pgstrata verify` name all that is affected, and take a new backup.";

/// An object that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {what}\nHINT: {hint}")]
pub struct RepositoryError {
    /// The object's name, or the repository's address.
    pub object: String,
    /// Found and expected.
    pub what: String,
    /// What the operator can do.
    pub hint: &'static str,
    /// Whether it is whole, for all that is known, and sealed with a data key that this process does not have.
    pub is_foreign: bool,
    /// Whether the store did not answer as it should, so that nothing is known of the object.
    pub is_outage: bool,
}

impl RepositoryError {
    /// Bytes that are not what was written.
    #[must_use]
    pub fn damaged(object: impl fmt::Display, what: impl fmt::Display) -> Self {
        let (object, what) = (object.to_string(), what.to_string());
        Self { object, what, hint: DAMAGED, is_foreign: false, is_outage: false }
    }

    /// Bytes of a version or kind that this program does not know.
    #[must_use]
    pub fn unknown(object: impl fmt::Display, what: impl fmt::Display) -> Self {
        let hint = "a newer pgstrata wrote this; use that version or a later one.";
        Self { object: object.to_string(), what: what.to_string(), hint, is_foreign: false, is_outage: false }
    }

    /// An object that is sealed with a data key which the head does not have.
    #[must_use]
    pub fn foreign(object: impl fmt::Display, key: u32) -> Self {
        let what = format!("it is encrypted with data key {key}, which the head does not hold");
        let hint = "the head that was read is older than this object. Where the keys were changed since this command \
                    began, start it again; else somebody put an older pgstrata-repository.* object back, or removed \
                    the newest: have it back before anything is written.";
        Self { object: object.to_string(), what, hint, is_foreign: true, is_outage: false }
    }

    /// Whether the object was read and is not what it should be.
    #[must_use]
    pub fn is_of_the_object(&self) -> bool {
        !self.is_foreign && !self.is_outage
    }

    /// Whether its bytes are not what was written: nothing can be had of it any more.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        self.hint == DAMAGED
    }

    /// Anything else.
    #[must_use]
    pub fn new(object: impl fmt::Display, what: impl fmt::Display, hint: &'static str) -> Self {
        Self { object: object.to_string(), what: what.to_string(), hint, is_foreign: false, is_outage: false }
    }
}
