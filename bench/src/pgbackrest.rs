//! The rival of the repository: pgBackRest, as the distribution packs it, on two processes.
//!
//! It is given everything on its command line, so that no configuration of the machine takes part. Its own syncs stay
//! as they are: a backup is durable when it ends. WAL is not archived and not waited for, which spares it work that
//! pgstrata does: a backup of pgstrata has its WAL in it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use pgstrata::postmaster::Server;

use crate::arguments::Packed;
use crate::invocation::Invocation;
use crate::measure;

/// Its worker processes: as many as the machine that the bars were set on has cores.
const PROCESSES: &str = "--process-max=2";

/// pgBackRest with a repository of one cluster.
#[derive(Debug)]
pub(crate) struct PgBackRest {
    common: Vec<OsString>,
    /// Where its locks lie, for the commands that take some.
    locks: OsString,
    cluster: Vec<OsString>,
    method: Packed,
}

impl PgBackRest {
    /// The program, with everything that it keeps below `home`.
    ///
    /// # Errors
    /// Where it is not installed.
    pub(crate) fn find(home: &Path, method: Packed) -> anyhow::Result<Self> {
        let version = Command::new("pgbackrest").arg("version").output();
        if !version.as_ref().is_ok_and(|output| output.status.success()) {
            bail!(
                "pgbackrest does not run, so there is nothing to compare with\n\
                 HINT: install the package pgbackrest from your distribution."
            );
        }
        let mut common: Vec<OsString> =
            ["--no-config", "--stanza=bench", "--log-level-console=warn", "--log-level-file=off"]
                .map(OsString::from)
                .into();
        let placed = |option: &str, folder: &str| {
            let mut word = OsString::from(format!("--{option}="));
            word.push(home.join(folder));
            word
        };
        common.extend([placed("repo1-path", "repo"), placed("log-path", "log")]);
        Ok(Self { common, locks: placed("lock-path", "lock"), cluster: Vec::new(), method })
    }

    /// Its version, as it says it.
    pub(crate) fn version() -> anyhow::Result<String> {
        let output = Command::new("pgbackrest").arg("version").output().context("cannot run pgbackrest")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Names the cluster.
    pub(crate) fn of(mut self, server: &Server) -> Self {
        let conninfo = server.socket_conninfo();
        let value = |key: &str| {
            let pair = conninfo.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            pair.unwrap_or_default().trim_matches('\'').to_owned()
        };
        let mut path = OsString::from("--pg1-path=");
        path.push(server.data_dir());
        self.cluster = vec![
            path,
            format!("--pg1-socket-path={}", value("host")).into(),
            format!("--pg1-port={}", value("port")).into(),
            format!("--pg1-user={}", value("user")).into(),
        ];
        self
    }

    /// Makes the repository, outside of all measuring.
    pub(crate) fn create(&self) -> anyhow::Result<()> {
        let create = self.locking().with(self.cluster.iter().cloned()).with(["--no-online", "stanza-create"]);
        measure::run(&create).map(drop)
    }

    /// A full backup.
    pub(crate) fn backup(&self) -> Invocation {
        self.backup_of("--type=full")
    }

    /// A backup of what changed since the last one.
    pub(crate) fn incremental(&self) -> Invocation {
        self.backup_of("--type=incr")
    }

    fn backup_of(&self, kind: &str) -> Invocation {
        let method = match self.method {
            Packed::Zstd => ["--compress-type=zst", "--compress-level=1"].as_slice(),
            Packed::Lz4 => &["--compress-type=lz4", "--compress-level=1"],
            Packed::None => &["--compress-type=none"],
        };
        self.locking()
            .with(self.cluster.iter().cloned())
            .with([kind, "--start-fast", "--no-archive-check", "--repo1-retention-full=1", PROCESSES])
            .with(method.iter().copied())
            .with(["backup"])
    }

    /// A restore into an empty folder.
    pub(crate) fn restore(&self, into: &Path) -> Invocation {
        let mut path = OsString::from("--pg1-path=");
        path.push(into);
        self.locking().with([path]).with([PROCESSES, "restore"])
    }

    /// A check of everything.
    pub(crate) fn verify(&self) -> Invocation {
        self.invocation().with([PROCESSES, "verify"])
    }

    fn locking(&self) -> Invocation {
        self.invocation().with([self.locks.clone()])
    }

    fn invocation(&self) -> Invocation {
        Invocation::new(PathBuf::from("pgbackrest")).with(self.common.iter().cloned())
    }
}
