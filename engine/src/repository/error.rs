//! What is wrong with an object of a repository: which one, what was found there, what was expected, what to do.

use std::fmt;

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
}

impl RepositoryError {
    /// Bytes that are not what was written.
    #[must_use]
    pub fn damaged(object: impl fmt::Display, what: impl fmt::Display) -> Self {
        let hint = "this object is damaged; backups that need it cannot be restored whole. Check the storage, \
                    have `pgstrata verify` name all that is affected, and take a new backup.";
        Self { object: object.to_string(), what: what.to_string(), hint }
    }

    /// Bytes of a version or kind that this program does not know.
    #[must_use]
    pub fn unknown(object: impl fmt::Display, what: impl fmt::Display) -> Self {
        let hint = "a newer pgstrata wrote this; use that version or a later one.";
        Self { object: object.to_string(), what: what.to_string(), hint }
    }

    /// Anything else.
    #[must_use]
    pub fn new(object: impl fmt::Display, what: impl fmt::Display, hint: &'static str) -> Self {
        Self { object: object.to_string(), what: what.to_string(), hint }
    }
}
