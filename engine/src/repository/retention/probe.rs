//! Whether a repository takes objects, and what time its store has.

use super::super::container::ObjectKind;
use super::super::error::RepositoryError;
use super::super::place::{Repository, now};
use super::lease::{LeaseSummary, Purpose, holder};
use super::note;
use crate::failure::Failure;

/// The folder of probes.
const PROBES: &str = "probes";

impl Repository {
    /// Publishes an object that means nothing, and removes it. Returns when that was, by the store's clock: seconds since 1970.
    ///
    /// # Errors
    /// Where either fails.
    pub fn probe(&self) -> Result<u64, Failure> {
        let holder = holder()?;
        let name = format!("{PROBES}/{holder}.probe");
        let summary = LeaseSummary {
            cluster: String::new(),
            holder: holder.to_string(),
            purpose: Purpose::Verify,
            holds: Vec::new(),
            system_identifier: None,
            time_to_live: 0,
            host: String::new(),
            pid: std::process::id(),
            created: now(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            requires: Vec::new(),
        };
        note::publish(self, ObjectKind::Lease, &name, &summary)?;
        let found = self.store().list(PROBES)?;
        let found = found.into_iter().find(|object| name.ends_with(&object.name));
        let again = note::publish(self, ObjectKind::Lease, &name, &summary);
        self.store().remove(std::slice::from_ref(&name))?;
        if again? {
            let what = "it was published twice under one name";
            let hint = "backups and expire rely on a store that creates an object only where there is none (S3: \
                        If-None-Match on PutObject). This one, or what stands before it, passes that over: do not use it.";
            return Err(RepositoryError::new(&name, what, hint).into());
        }
        let missing = || {
            let hint = "the store must show an object as soon as it has taken it.";
            RepositoryError::new(&name, "it was published and is not listed", hint)
        };
        Ok(found.ok_or_else(missing)?.modified)
    }
}
