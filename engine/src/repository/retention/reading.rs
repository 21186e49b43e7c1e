//! A backup that is read while others may remove backups.

use super::super::error::RepositoryError;
use super::super::manifest::Manifest;
use super::super::names::{BackupId, ClusterName};
use super::super::place::{BackupChoice, Repository};
use super::condemn::Marks;
use super::lease::{Lease, Purpose};
use crate::failure::Failure;

impl Repository {
    /// Opens a backup to read all of it: `expire` leaves it alone as long as the lease is kept. `warn` hears where it
    /// could not be had.
    ///
    /// # Errors
    /// As [`Self::backup`].
    pub fn backup_to_read(
        &self,
        cluster: &ClusterName,
        choice: BackupChoice,
        warn: &dyn Fn(&str),
    ) -> Result<(Manifest, Option<Lease>), Failure> {
        let name = self.backup(cluster, choice)?.summary.backup;
        let backup: BackupId = name.parse().map_err(|error| RepositoryError::damaged(&name, error))?;
        let lease = Lease::try_take(self, cluster, Purpose::Restore, &[backup], warn)?;
        if Marks::list(self, cluster)?.contains(backup) {
            warn(&format!(
                "backup {backup} is being removed by `pgstrata expire`\n\
                 HINT: this may fail for want of it; choose a newer backup then."
            ));
        }
        // Only what is there now stays.
        Ok((self.backup(cluster, BackupChoice::Id(backup))?, lease))
    }
}
