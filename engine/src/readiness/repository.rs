//! The repository: whether it opens, takes objects, and what time it has.

use std::sync::Arc;
use std::time::SystemTime;

use super::finding::Findings;
use crate::failure::Failure;
use crate::repository::{BackupId, ClusterName, KeySource, PackPlace, Repository, Secret, Store};

/// Clocks that differ by more are worth a word.
pub(super) const SKEW: u64 = 60;
/// A last backup that is older is worth a word.
const LAST_BACKUP: u64 = 7 * 86_400;

/// Looks at it. `None` where it does not open.
pub(super) fn look(
    store: &Arc<dyn Store>,
    key: Option<&Secret>,
    cluster: Option<&ClusterName>,
    findings: &mut Findings,
) -> Option<Repository> {
    let repository =
        match Repository::open_with(Arc::clone(store), key.map_or(KeySource::None, KeySource::Given)) {
            Ok(repository) => repository,
            Err(failure) => {
                findings.failed("repository", &failure);
                return None;
            }
        };
    findings.ok("repository", format!("{} opens", store.address()));
    let asked = local_now();
    match repository.probe() {
        Ok(stored) => {
            findings.ok("writing", "an object was published and removed");
            let skew = asked.abs_diff(stored);
            if skew > SKEW {
                findings.warning(
                    "clock",
                    format!("the store's clock and this machine's differ by {} seconds", skew),
                    "set both by NTP: retention goes by them.",
                );
            } else {
                findings.ok("clock", "the store's clock agrees with this machine's");
            }
        }
        Err(failure) => findings.failed("writing", &failure),
    }
    if let Some(cluster) = cluster {
        last_backup(&repository, cluster, asked, findings);
    }
    Some(repository)
}

/// Seconds since 1970, by this machine's clock.
pub(super) fn local_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

fn last_backup(repository: &Repository, cluster: &ClusterName, now: u64, findings: &mut Findings) {
    let newest: Result<Option<BackupId>, Failure> = repository.backups(cluster).map(|mut all| all.pop());
    let last = match newest {
        Ok(Some(last)) => last,
        Ok(None) => {
            return findings.warning(
                "last backup",
                format!("cluster \"{cluster}\" has none"),
                "take one with `pgstrata backup`.",
            );
        }
        Err(failure) => return findings.failed("last backup", &failure),
    };
    match repository.backup(cluster, crate::repository::BackupChoice::Id(last)) {
        Err(failure) => findings.failed("last backup", &failure),
        Ok(manifest) => {
            let age = now.saturating_sub(manifest.summary.ended);
            let text = format!("{last} ended {} hours ago", age / 3600);
            if age > LAST_BACKUP {
                let hint = "see whether backups are still taken, and why they fail.";
                findings.warning("last backup", text, hint);
            } else {
                findings.ok("last backup", text);
            }
        }
    }
}

/// Bytes that are free where the repository is, if that can be known.
pub(super) fn free_bytes(repository: &Repository) -> Option<u64> {
    let PackPlace::Folder(folder) = repository.store().packs("").ok()? else { return None };
    let found = rustix::fs::statvfs(&folder).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}
