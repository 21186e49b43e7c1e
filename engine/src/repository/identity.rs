//! Whose backups lie under a cluster's name: one object, written before the first backup's packs and never again.
//!
//! Without it, a mistaken name would mix two systems, and "latest" would restore either.

use super::container::{FrameKind, ObjectKind, PROLOGUE, Prologue};
use super::error::RepositoryError;
use super::names::ClusterName;
use super::object_reader::ObjectReader;
use super::object_writer::ObjectWriter;
use super::place::{Repository, now, read_summary};
use super::retention::{Lease, LeaseHolder, Purpose, survey};
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

    /// Refuses a system that is not the one whose backups the cluster has. Where there are none, it may become the one.
    pub(crate) fn check_identity(&self, cluster: &ClusterName, system: u64) -> Result<(), Failure> {
        let found = self.identity(cluster)?;
        if found.is_none() {
            self.check_openness()?;
        }
        if found.is_some_and(|found| found != system) && self.is_unused(cluster)? {
            return Ok(());
        }
        self.compare_identity(cluster, system)
    }

    /// Refuses to write a first object of a cluster in the open where another cluster's are encrypted: somebody has put a
    /// head without key slots there, by which nobody is asked for a passphrase.
    fn check_openness(&self) -> Result<(), Failure> {
        if self.sealing().is_encrypted() {
            return Ok(());
        }
        for other in self.clusters()? {
            let name = other.identity();
            let Some(object) = self.store().open(&name)? else { continue };
            let mut first = [0; PROLOGUE];
            if object.length() < first.len() as u64 {
                continue;
            }
            object.read(0, &mut first)?;
            let prologue = Prologue::decode(&first, ObjectKind::Identity, Some(&self.id()), &name);
            if prologue.is_ok_and(|prologue| prologue.key().is_some()) {
                let what = "it is encrypted, and by its head the repository is not";
                let hint = "somebody has changed or replaced the head (pgstrata-repository.*) of an encrypted repository: \
                            have the right one back before anything is written. Nothing was.";
                return Err(RepositoryError::new(name, what, hint).into());
            }
        }
        Ok(())
    }

    /// Whether nothing lies under a cluster's name but what a first backup that died has left of itself.
    fn is_unused(&self, cluster: &ClusterName) -> Result<bool, Failure> {
        Ok(self.backups(cluster)?.is_empty()
            && self.store().list(&cluster.packs())?.is_empty()
            // WAL may be kept before the first backup is taken.
            && self.store().list(&cluster.wal())?.is_empty())
    }

    /// Removes the identity that a first backup of another system has left which died. `lease` is the caller's, and a
    /// backup of that system at the same time is refused here or there: each looks for the other's lease behind its own.
    pub(super) fn release_identity(
        &self,
        cluster: &ClusterName,
        system: u64,
        lease: &Lease,
    ) -> Result<(), Failure> {
        let survey = survey(self, cluster, lease)?;
        let others = || survey.alive.iter().filter(|lease| lease.summary.purpose == Purpose::Backup);
        let own = system.to_string();
        let of_another =
            |lease: &&LeaseHolder| lease.summary.system_identifier.as_ref().is_some_and(|of| *of != own);
        if let Some(other) = others().find(of_another) {
            let what = format!("{} of another system is under way", other.run());
            let hint = "give the backups of this server another --cluster name. Nothing was changed.";
            return Err(RepositoryError::new(format!("cluster \"{cluster}\""), what, hint).into());
        }
        let stale = self.identity(cluster)?.is_some_and(|found| found != system);
        if stale && others().next().is_none() && self.is_unused(cluster)? {
            self.store().remove(&[cluster.identity()])?;
        }
        Ok(())
    }

    fn compare_identity(&self, cluster: &ClusterName, system: u64) -> Result<(), Failure> {
        match self.identity(cluster)? {
            Some(found) if found != system && self.backups(cluster)?.is_empty() => {
                let what = format!("a backup of system {found} that died has left packs, expected {system}");
                let hint = "once that server's backup is given up, `pgstrata expire --grace 0` removes what it left; \
                            or give this server another --cluster name. Nothing was changed.";
                Err(RepositoryError::new(format!("cluster \"{cluster}\""), what, hint).into())
            }
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
    pub(crate) fn claim_identity(&self, cluster: &ClusterName, system: u64) -> Result<(), Failure> {
        if self.identity(cluster)?.is_none() {
            self.check_openness()?;
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
        self.compare_identity(cluster, system)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::summary::HeadSummary;
    use super::super::{BackupId, KeySource, LocalStore, Secret, head};
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
        let refused = repository.claim_identity(&one, 8).expect_err("another").to_string();
        assert!(refused.contains("of system 7 that died has left packs, expected 8"), "{refused}");
        assert!(refused.contains("--cluster"), "{refused}");
        repository.check_identity(&one, 8).expect("nothing is there yet");
        std::fs::create_dir(scratch.path().join("clusters/two")).expect("made");
        let [from, to] = [&one, &two].map(|cluster| scratch.path().join(cluster.identity()));
        std::fs::copy(from, to).expect("copied");
        let refused = repository.identity(&two).expect_err("of another").to_string();
        assert!(refused.contains("it is of cluster \"one\""), "{refused}");
    }

    #[test]
    fn a_head_without_slots_in_an_encrypted_repository_is_noticed() {
        let scratch = tempfile::tempdir().expect("a folder");
        let store = || Arc::new(LocalStore::new(scratch.path().join("r")));
        let secret = Secret::passphrase(b"correct horse").expect("long enough");
        let [one, two] = ["one", "two"].map(|name| name.parse::<ClusterName>().expect("valid"));
        let made = Repository::init_for(store(), Some((&secret, "x"))).expect("made");
        made.claim_identity(&one, 7).expect("free");
        let head = scratch.path().join("r/pgstrata-repository.00000000");
        std::fs::remove_file(&head).expect("removed");
        let open = HeadSummary {
            created: now(),
            program: "x".into(),
            last_slot: 0,
            key_slots: Vec::new(),
            requires: Vec::new(),
        };
        assert!(head::publish(&*store(), 0, made.id(), &open, None).expect("published"));
        let nobody =
            || -> Result<Secret, Failure> { panic!("nobody is asked for a passphrase that nothing needs") };
        let opened = Repository::open_with(store(), KeySource::Ask(&nobody)).expect("by its head it is open");
        for refused in [opened.check_identity(&two, 8), opened.claim_identity(&two, 8)] {
            let refused = refused.expect_err("not into the open").to_string();
            assert!(refused.contains("clusters/one") && refused.contains("HINT: somebody"), "{refused}");
        }
        assert!(!scratch.path().join("r/clusters/two").exists());
        // One that never was encrypted takes a second cluster.
        let plain = Repository::init(Arc::new(LocalStore::new(scratch.path().join("p")))).expect("made");
        plain.claim_identity(&one, 7).expect("free");
        plain.claim_identity(&two, 8).expect("free");
    }

    #[test]
    fn what_a_first_backup_left_gives_way_to_another_system() {
        let scratch = tempfile::tempdir().expect("a folder");
        let repository = Repository::init(Arc::new(LocalStore::new(scratch.path()))).expect("made");
        let cluster: ClusterName = "main".parse().expect("valid");
        let begin = |random, system| {
            let backup = BackupId { seconds: now(), random };
            Lease::take(&repository, &cluster, Purpose::Backup, backup, &[], Some(system)).expect("taken")
        };
        let claim = |system, lease: &Lease| {
            repository.release_identity(&cluster, system, lease)?;
            repository.claim_identity(&cluster, system)
        };
        let first = begin(1, 7);
        claim(7, &first).expect("free");
        // While it is under way, and others of its system are.
        let second = begin(2, 8);
        let refused = claim(8, &second).expect_err("under way").to_string();
        assert!(refused.contains("of another system is under way"), "{refused}");
        let refused = claim(7, &first).expect_err("and the other way round").to_string();
        assert!(refused.contains("of another system is under way"), "{refused}");
        drop(first);
        let packs = scratch.path().join(cluster.packs());
        std::fs::create_dir(&packs).expect("made");
        std::fs::write(packs.join("x"), b"x").expect("written");
        let refused = claim(8, &second).expect_err("packs").to_string();
        assert!(refused.contains("pgstrata expire"), "{refused}");
        std::fs::remove_file(packs.join("x")).expect("removed");
        claim(8, &second).expect("nothing is left");
        assert_eq!(repository.identity(&cluster).expect("there"), Some(8));
    }
}
