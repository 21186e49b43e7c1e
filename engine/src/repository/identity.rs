//! Whose backups lie under a cluster's name: one object, written before the first backup's packs and never again.
//!
//! Without it, a mistaken name would mix two systems, and "latest" would restore either.

use super::container::{FrameKind, ObjectKind};
use super::error::RepositoryError;
use super::names::ClusterName;
use super::object_reader::ObjectReader;
use super::object_writer::ObjectWriter;
use super::place::{Repository, now, read_summary};
use super::summary::IdentitySummary;
use crate::failure::Failure;

impl Repository {
    /// The system identifier of a cluster; `None` before its first backup.
    ///
    /// # Errors
    /// Where the object that says so is damaged, or lost.
    pub fn identity(&self, cluster: &ClusterName) -> Result<Option<u64>, Failure> {
        let name = cluster.identity();
        let opened = ObjectReader::open(self, &name, ObjectKind::Identity)?;
        let Some(object) = opened else {
            if self.backups(cluster)?.is_empty() {
                return Ok(None);
            }
            return Err(RepositoryError::damaged(name, "it is missing, and there are backups").into());
        };
        let summary: IdentitySummary = read_summary(&object)?;
        if summary.cluster == cluster.as_str() {
            return Ok(Some(summary.system_identifier));
        }
        let what = format!("it is of cluster \"{}\"", summary.cluster.escape_default());
        Err(RepositoryError::damaged(name, what).into())
    }

    /// Refuses a system that is not the one whose backups the cluster has.
    pub(crate) fn check_identity(&self, cluster: &ClusterName, system: u64) -> Result<(), Failure> {
        match self.identity(cluster)? {
            Some(found) if found != system => {
                let what = format!("it holds backups of system {found}, expected those of {system}");
                let hint = "this is another server's name in the repository, or the server was made anew; \
                            give its backups another --cluster name. Nothing was changed.";
                Err(RepositoryError::new(format!("cluster \"{cluster}\""), what, hint).into())
            }
            _ => Ok(()),
        }
    }

    /// Gives the cluster's name to a system, unless it has it or another does.
    pub(super) fn claim_identity(&self, cluster: &ClusterName, system: u64) -> Result<(), Failure> {
        if self.identity(cluster)?.is_none() {
            let mut object = ObjectWriter::begin(self, ObjectKind::Identity, &cluster.identity())?;
            let summary = IdentitySummary {
                cluster: cluster.to_string(),
                system_identifier: system,
                created: now(),
                program: env!("CARGO_PKG_VERSION").to_owned(),
                requires: Vec::new(),
            };
            object.frame(FrameKind::Summary, &serde_json::to_vec(&summary).expect("a summary is JSON"))?;
            // Where another was faster, that one counts.
            let _ = object.publish()?;
        }
        self.check_identity(cluster, system)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::LocalStore;
    use super::*;

    #[test]
    fn a_name_is_one_systems() {
        let scratch = tempfile::tempdir().expect("a folder");
        let repository = Repository::init(Arc::new(LocalStore::new(scratch.path()))).expect("made");
        let [one, two] = ["one", "two"].map(|name| name.parse::<ClusterName>().expect("valid"));
        assert_eq!(repository.identity(&one).expect("none"), None);
        repository.check_identity(&one, 7).expect("free");
        repository.claim_identity(&one, 7).expect("free");
        repository.claim_identity(&one, 7).expect("the same");
        assert_eq!(repository.identity(&one).expect("there"), Some(7));
        for refused in [repository.claim_identity(&one, 8), repository.check_identity(&one, 8)] {
            let refused = refused.expect_err("another").to_string();
            assert!(refused.contains("of system 7, expected those of 8"), "{refused}");
            assert!(refused.contains("--cluster"), "{refused}");
        }
        std::fs::create_dir(scratch.path().join("clusters/two")).expect("made");
        let [from, to] = [&one, &two].map(|cluster| scratch.path().join(cluster.identity()));
        std::fs::copy(from, to).expect("copied");
        let refused = repository.identity(&two).expect_err("of another").to_string();
        assert!(refused.contains("it is of cluster \"one\""), "{refused}");
    }
}
