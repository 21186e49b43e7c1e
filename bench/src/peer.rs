//! The rival: PostgreSQL's own programs, beside the server that both clients are measured against.

use std::path::{Path, PathBuf};

use anyhow::bail;
use pgstrata::postmaster::ServerProgram;

/// A server program with the clients of the same installation.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The server.
    pub(crate) server: ServerProgram,
    /// `pg_basebackup`.
    pub(crate) basebackup: PathBuf,
    /// `pg_verifybackup`, where there is one.
    pub(crate) verifybackup: Option<PathBuf>,
}

impl Peer {
    /// The programs in `named`, or those of the newest installation that has `pg_basebackup`; one that has
    /// `pg_verifybackup` as well is preferred.
    pub(crate) fn find(named: Option<&Path>) -> anyhow::Result<Self> {
        let installed = match named {
            Some(dir) => vec![ServerProgram::at(dir)?],
            None => ServerProgram::installed(),
        };
        let seen: Vec<String> = installed.iter().map(ToString::to_string).collect();
        let complete = installed.into_iter().filter_map(Self::of);
        match complete.max_by_key(|peer| (peer.verifybackup.is_some(), peer.server.version)) {
            Some(peer) => Ok(peer),
            None => bail!(
                "no PostgreSQL installation with pg_basebackup found, so there is nothing to compare with; found {}\n\
                 HINT: install PostgreSQL from your distribution (for example the package postgresql-17), \
                 or name its bin directory with --pg-bin.",
                if seen.is_empty() { "none at all".to_owned() } else { seen.join(", ") }
            ),
        }
    }

    /// `pg_verifybackup`, which the comparison cannot do without.
    pub(crate) fn require_verifybackup(&self) -> anyhow::Result<&Path> {
        match &self.verifybackup {
            Some(path) => Ok(path),
            None => bail!(
                "{} has no pg_verifybackup, so there is nothing to compare with\n\
                 HINT: install PostgreSQL from your distribution, or name its bin directory with --pg-bin.",
                self.server
            ),
        }
    }

    fn of(server: ServerProgram) -> Option<Self> {
        if server.version < pgstrata_protocol::ServerVersion::OLDEST_SUPPORTED {
            return None;
        }
        let basebackup = server.companion("pg_basebackup")?;
        let verifybackup = server.companion("pg_verifybackup");
        Some(Self { server, basebackup, verifybackup })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstrata_protocol::ServerVersion;

    #[test]
    fn an_installation_without_clients_is_no_peer() {
        let dir = tempfile::tempdir().unwrap();
        let server = ServerProgram {
            bin_dir: dir.path().to_owned(),
            version: ServerVersion(170_004),
            origin: pgstrata::postmaster::Origin::Named,
        };
        assert!(Peer::of(server.clone()).is_none());
        std::fs::write(dir.path().join("pg_basebackup"), "").unwrap();
        let peer = Peer::of(server.clone()).unwrap();
        assert_eq!(peer.basebackup, dir.path().join("pg_basebackup"));
        let error = peer.require_verifybackup().unwrap_err();
        assert!(error.to_string().contains("HINT"), "{error}");
        assert!(Peer::of(ServerProgram { version: ServerVersion(90_600), ..server }).is_none());
    }
}
