//! What is wrong with a set-up, before a backup finds out: the repository, the server, and what they say of each other.
//!
//! Changes nothing but for a probe object in the repository, which it removes again. Every finding says what was looked
//! at; one that is not fine says what to do.

mod finding;
mod repository;
mod server;

pub use finding::{Finding, Level};

use crate::connect::ConnectionSettings;
use crate::failure::Failure;
use crate::repository::{ClusterName, Repository, Secret, Store};
use std::sync::Arc;

use self::finding::Findings;

/// What to look at.
#[derive(Debug)]
pub struct ReadinessConfig {
    /// Where the repository is; the reason where that is not known.
    pub store: Result<Arc<dyn Store>, String>,
    /// What opens it where it is encrypted.
    pub key: Option<Secret>,
    /// The cluster's name there.
    pub cluster: Option<ClusterName>,
    /// How to reach the server; the reason where that is not known.
    pub connection: Result<ConnectionSettings, String>,
}

/// Looks at everything. What it finds is no failure.
#[must_use]
pub fn check_readiness(config: &ReadinessConfig) -> Vec<Finding> {
    let mut findings = Findings::default();
    let repository = match &config.store {
        Ok(store) => repository::look(store, config.key.as_ref(), config.cluster.as_ref(), &mut findings),
        Err(reason) => {
            findings.error_told("repository", reason);
            None
        }
    };
    let server = match &config.connection {
        Ok(settings) => server::look(settings, config.store.as_ref().ok(), &mut findings),
        Err(reason) => {
            findings.error_told("connection settings", reason);
            None
        }
    };
    if let (Some(repository), Some(server)) = (&repository, &server) {
        compare(repository, config.cluster.as_ref(), server, &mut findings);
    }
    findings.0
}

/// What the server says that the repository is compared with.
struct ServerSays {
    system: u64,
    /// Bytes of all databases, where that may be asked.
    database_bytes: Option<u64>,
}

fn compare(
    repository: &Repository,
    cluster: Option<&ClusterName>,
    server: &ServerSays,
    findings: &mut Findings,
) {
    if let Some(cluster) = cluster {
        let system = server.system;
        match (repository.identity(cluster), repository.check_identity(cluster, system)) {
            (Ok(Some(found)), Ok(())) if found == system => {
                findings
                    .ok("identity", format!("cluster \"{cluster}\" is of system {system}, as the server is"));
            }
            (Ok(_), Ok(())) => findings.ok(
                "identity",
                format!("cluster \"{cluster}\" has no backup yet, the first one makes it system {system}'s"),
            ),
            (Err(failure), _) | (_, Err(failure)) => findings.failed("identity", &failure),
        }
    }
    let (Some(needed), Some(free)) = (server.database_bytes, repository::free_bytes(repository)) else {
        return;
    };
    if free < needed {
        findings.warning(
            "space",
            format!("{free} bytes are free in the repository, and the databases have {needed}"),
            "compression may make it fit; free space, or expire backups, before the next one.",
        );
    } else {
        findings.ok("space", format!("{free} bytes are free in the repository, the databases have {needed}"));
    }
}

impl Findings {
    /// Notes a failure, whose own hint is the finding's.
    fn failed(&mut self, subject: &'static str, failure: &Failure) {
        self.error_told(subject, &failure.to_string());
    }
}
