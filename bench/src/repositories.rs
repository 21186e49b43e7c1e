//! What the comparisons of repositories share: the two repositories, side by side in one place, and their backups.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use pgstrata::postmaster::{Server, Shutdown};

use crate::arguments::{Packed, RepositoryOptions, Source};
use crate::cache;
use crate::cluster;
use crate::compare::Comparison;
use crate::invocation::Invocation;
use crate::measure;
use crate::pgbackrest::PgBackRest;
use crate::tree::{self, Contents};

/// The two repositories.
pub(crate) struct Repositories {
    /// Everything that a run makes.
    pub(crate) home: PathBuf,
    /// The rival.
    pub(crate) rival: PgBackRest,
    /// The cluster.
    pub(crate) server: Server,
    /// What a backup has to read.
    pub(crate) contents: Contents,
    program: PathBuf,
    backup: Vec<OsString>,
    ours: PathBuf,
}

impl Repositories {
    /// The cluster running, and no repository yet.
    pub(crate) fn set_up(options: &RepositoryOptions, comparison: &Comparison) -> anyhow::Result<Self> {
        Self::set_up_with(options, comparison, &[])
    }

    /// The same, with further settings of the server.
    pub(crate) fn set_up_with(
        options: &RepositoryOptions,
        comparison: &Comparison,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let (place, common) = (&comparison.place, &options.compare.common);
        let size = options.compare.size_gb.0;
        let cluster = cluster::compared(&comparison.peer.server, place, size, common.rebuild)?;
        let server = cluster::start_with(&cluster, place, settings)?;
        let home = place.copy();
        let ours = home.join("ours");
        let compress = match options.method {
            Packed::Zstd => "zstd:1",
            Packed::Lz4 => "lz4",
            Packed::None => "none",
        };
        let mut backup: Vec<OsString> = vec!["-Z".into(), compress.into(), "-c".into(), "fast".into()];
        backup.extend(["-d".into(), server.socket_conninfo().into()]);
        match options.source {
            Source::Local => {
                backup.extend(["--source".into(), "local".into(), "--pgdata".into()]);
                backup.push(server.data_dir().into());
            }
            Source::Stream => backup.extend(["--source".into(), "stream".into()]),
        }
        let contents =
            tree::contents(server.data_dir())? - tree::contents(&server.data_dir().join("pg_wal"))?;
        let rival = PgBackRest::find(&home.join("rival"), options.method)?.of(&server);
        Ok(Self { home, rival, server, contents, program: comparison.program.path.clone(), backup, ours })
    }

    /// Makes both repositories, empty.
    pub(crate) fn create(&self) -> anyhow::Result<()> {
        tree::remove(&self.home)?;
        std::fs::create_dir_all(&self.home)?;
        measure::run(&self.command("init", &[]))?;
        self.rival.create()
    }

    /// Makes both repositories with a backup in each, and says how much each holds.
    pub(crate) fn fill(&self, options: &[OsString]) -> anyhow::Result<(Contents, Contents)> {
        self.create()?;
        measure::run(&self.rival.backup())?;
        measure::run(&self.backup(options))?;
        cache::settle(&self.home)?;
        Ok((tree::contents(&self.home.join("rival/repo"))?, tree::contents(&self.ours)?))
    }

    /// Our backup.
    pub(crate) fn backup(&self, options: &[OsString]) -> Invocation {
        self.command("backup", &self.backup).with(["--cluster", "bench"]).with(options.iter().cloned())
    }

    /// A command on our repository.
    pub(crate) fn command(&self, name: &str, arguments: &[OsString]) -> Invocation {
        Invocation::new(&self.program)
            .with([name, "--json", "--repo"])
            .with([self.ours.clone()])
            .with(arguments.iter().cloned())
    }

    /// What archives a segment in our repository; its path is to follow.
    pub(crate) fn push(&self) -> Invocation {
        Invocation::new(&self.program)
            .with(["wal", "push", "--cluster", "bench", "--repo"])
            .with([self.ours.clone()])
    }

    /// Where a restore goes.
    pub(crate) fn target(&self) -> PathBuf {
        self.home.join("restored")
    }

    /// Our repository's folder.
    pub(crate) fn ours(&self) -> &Path {
        &self.ours
    }

    /// The rival's repository's folder.
    pub(crate) fn theirs(&self) -> PathBuf {
        self.home.join("rival/repo")
    }

    /// Stops the server and removes everything that was made.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        self.server.stop(Shutdown::Fast)?;
        tree::remove(&self.home)
    }
}
