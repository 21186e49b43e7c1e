//! The server that a test takes its backup from.

use std::fs::File;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pgstrata::postmaster::{Auth, Cluster, InitOptions, PostmasterError, Server, Shutdown};

use crate::workload::Loaded;
use crate::{Complete, Scratch, Sql, Tablespace, Workload, Writer, servers, template};

/// BLCKSZ as everyone builds it.
const PAGE: u64 = 8192;

/// Settings of every source. A backup is consistent whatever its source syncs: recovery reads what was written, and
/// no test cuts the power.
const SETTINGS: [(&str, &str); 6] = [
    ("wal_level", "replica"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("full_page_writes", "on"),
    ("restart_after_crash", "off"),
    // A backup that fetches its WAL at the end finds it still there, whatever checkpoints came in between.
    ("wal_keep_size", "512MB"),
];

/// Settings of every server of a test: they keep many small servers side by side affordable.
pub(crate) const FRUGAL: [(&str, &str); 5] = [
    ("fsync", "off"),
    ("shared_buffers", "32MB"),
    ("max_connections", "40"),
    ("max_wal_size", "256MB"),
    // In the data directory, where a killed server leaves nothing behind on the machine.
    ("dynamic_shared_memory_type", "mmap"),
];

/// Starts to describe a source of a major version.
///
/// # Panics
/// Where that version does not run here.
#[must_use]
pub fn cluster(major: u32) -> ClusterBuilder {
    let settings = SETTINGS
        .iter()
        .chain(&FRUGAL)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    ClusterBuilder {
        major,
        program: None,
        options: InitOptions::default(),
        settings,
        own_identity: false,
        workload: Workload::empty(),
    }
}

/// A source that is not made yet.
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    major: u32,
    program: Option<&'static Complete>,
    options: InitOptions,
    settings: Vec<(String, String)>,
    own_identity: bool,
    workload: Workload,
}

impl ClusterBuilder {
    /// The server of a complete installation, which is built with lz4 and zstd.
    #[must_use]
    pub fn complete(mut self, complete: &'static Complete) -> Self {
        self.program = Some(complete);
        self
    }

    /// Data page checksums; on unless said otherwise.
    #[must_use]
    pub fn checksums(mut self, on: bool) -> Self {
        self.options.checksums = on;
        self
    }

    /// The size of a WAL segment in MiB.
    #[must_use]
    pub fn wal_segsize_mb(mut self, size: u32) -> Self {
        self.options.wal_segsize_mb = Some(size);
        self
    }

    /// How clients log in; anyone may unless said otherwise.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.options.auth = auth;
        self
    }

    /// Any other option of `initdb`.
    #[must_use]
    pub fn init(mut self, change: impl FnOnce(&mut InitOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// A server setting; the last one of a name counts.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The data to load; none unless said otherwise.
    #[must_use]
    pub fn with(mut self, workload: Workload) -> Self {
        self.workload = workload;
        self
    }

    /// Runs `initdb` for this source alone, so that its system identifier is its own.
    #[must_use]
    pub fn own_identity(mut self) -> Self {
        self.own_identity = true;
        self
    }

    /// Makes the cluster, starts it and loads the data.
    ///
    /// # Panics
    /// Where any of that fails, with what the server said.
    #[track_caller]
    #[must_use]
    pub fn start(self) -> Source {
        let major = self.major;
        self.try_start().unwrap_or_else(|error| panic!("PostgreSQL {major}: {error:#}"))
    }

    /// As [`start`](Self::start).
    ///
    /// # Errors
    /// What failed, with what the server said.
    pub fn try_start(self) -> anyhow::Result<Source> {
        let program = match self.program {
            Some(complete) => complete.server(),
            None => servers::program(self.major).map_err(anyhow::Error::msg)?,
        };
        let scratch = Scratch::new();
        let dir = scratch.join("source");
        let cluster = if self.own_identity || self.options.wal_dir.is_some() {
            Cluster::init(program, &dir, &self.options)?
        } else {
            template::instantiate(program, &dir, &self.options)?
        };
        let cluster = cluster.with_run_dir(&scratch.join("run"))?;
        self.workload.load_bulk(&cluster)?;
        let server = start(&cluster, &self.settings)?;
        let loaded = self.workload.load(&server, &scratch)?;
        Ok(Source { loaded, server: Some(server), settings: self.settings, scratch })
    }
}

/// A running server with data in it, and a scratch directory for what the test makes of it.
#[derive(Debug)]
pub struct Source {
    loaded: Loaded,
    server: Option<Server>,
    settings: Vec<(String, String)>,
    /// Last: the server must be gone before its directory is.
    scratch: Scratch,
}

impl Source {
    /// A path in the scratch directory; nothing is created.
    #[must_use]
    pub fn dir(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// The scratch directory.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// A session of the superuser in the database `postgres`.
    ///
    /// # Panics
    /// Where the server refuses.
    #[track_caller]
    #[must_use]
    pub fn sql(&self) -> Sql {
        Sql::connect(&self.socket_conninfo()).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Starts a background writer; writers side by side need different numbers.
    ///
    /// # Panics
    /// Where its tables cannot be made.
    #[track_caller]
    #[must_use]
    pub fn writer(&self, number: u64) -> Writer {
        Writer::start(&self.socket_conninfo(), number)
    }

    /// Starts a copy: a backup of this source in plain format, in `dir`.
    ///
    /// # Panics
    /// Where it does not start, with what the server said.
    #[track_caller]
    #[must_use]
    pub fn boot(&self, dir: &Path) -> Server {
        self.try_boot(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
    }

    /// As [`boot`](Self::boot), for copies that must not start.
    ///
    /// # Errors
    /// What the server said.
    pub fn try_boot(&self, dir: &Path) -> Result<Server, PostmasterError> {
        self.adopt(dir)?.start(&FRUGAL)
    }

    /// Takes over a copy in plain format, with this source's program and superuser.
    ///
    /// # Errors
    /// As [`Cluster::from_backup`].
    pub fn adopt(&self, dir: &Path) -> Result<Cluster, PostmasterError> {
        let cluster = self.cluster();
        Ok(Cluster::from_backup(cluster.program(), dir)?.with_login(cluster.user(), cluster.password()))
    }

    /// The tablespaces of the workload.
    #[must_use]
    pub fn tablespaces(&self) -> &[Tablespace] {
        &self.loaded.tablespaces
    }

    /// Damages one byte of a page in the file of a relation, as a bad disk would. Returns the file's path in the data
    /// directory. The page has to be out of the server's way: static data, written by the checkpoint that this asks for.
    ///
    /// # Panics
    /// Where the relation has no such page.
    #[track_caller]
    pub fn corrupt_page(&self, relation: &str, block: u32) -> PathBuf {
        let sql = self.sql();
        sql.execute("CHECKPOINT");
        let path: String = sql.value(&format!("SELECT pg_relation_filepath('{relation}')"));
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.data_dir().join(&path))
            .expect("the relation's file");
        // In the middle of the page: neither its header nor its checksum.
        let place = u64::from(block) * PAGE + PAGE / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap_or_else(|error| panic!("{path}: block {block}: {error}"));
        file.write_all_at(&[!byte[0]], place).expect("a page that was read can be written");
        PathBuf::from(path)
    }

    /// What is wrong with the files of a copy's data directory: odd names that are missing or differ, special files
    /// that should have been skipped.
    #[must_use]
    pub fn check_files(&self, data_dir: &Path) -> Vec<String> {
        let odd = self.loaded.odd_files.iter().filter_map(|file| file.check(data_dir).err());
        let special = self.loaded.special_files.iter().map(|path| data_dir.join(path));
        let copied = special.filter(|path| path.symlink_metadata().is_ok());
        odd.chain(copied.map(|path| format!("{}: expected to be skipped", path.display()))).collect()
    }

    /// Stops the server; afterwards only [`restart`](Self::restart) makes sense.
    ///
    /// # Panics
    /// Where it does not stop.
    #[track_caller]
    pub fn stop(&mut self, mode: Shutdown) -> Cluster {
        let server = self.server.take().expect("the server runs");
        let cluster = server.cluster().clone();
        self.loaded.sessions.clear();
        server.stop(mode).unwrap_or_else(|error| panic!("{error}"));
        cluster
    }

    /// Kills the server as a crash would; afterwards only [`restart`](Self::restart) makes sense.
    ///
    /// # Panics
    /// Where the system refuses.
    #[track_caller]
    pub fn kill(&mut self) -> Cluster {
        let server = self.server.take().expect("the server runs");
        let cluster = server.cluster().clone();
        self.loaded.sessions.clear();
        server.kill().unwrap_or_else(|error| panic!("{error}"));
        cluster
    }

    /// Starts a cluster that was stopped or killed again, with the same settings.
    ///
    /// # Panics
    /// Where it does not start.
    #[track_caller]
    pub fn restart(&mut self, cluster: &Cluster) {
        assert!(self.server.is_none(), "stop the server first");
        self.server = Some(start(cluster, &self.settings).unwrap_or_else(|error| panic!("{error:#}")));
    }
}

impl Deref for Source {
    type Target = Server;

    fn deref(&self) -> &Server {
        self.server.as_ref().expect("the server was stopped by this test")
    }
}

fn start(cluster: &Cluster, settings: &[(String, String)]) -> anyhow::Result<Server> {
    let settings: Vec<(&str, &str)> =
        settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    cluster.start(&settings).context("cannot start the source")
}
