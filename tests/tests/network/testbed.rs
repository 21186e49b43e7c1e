//! A source behind a faulty network, and the judgement on what comes of a run.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pgstrata::postmaster::{Auth, PasswordMethod};
use pgstrata_tests as harness;
use pgstrata_tests::{Fault, Finished, Interposer, Source};

use crate::map::Map;

/// The connection of the data, and that of the WAL.
pub(crate) const MAIN: usize = 0;
pub(crate) const WAL: usize = 1;

/// No run may take longer.
const LIMIT: Duration = Duration::from_secs(60);
/// The size of a WAL segment of the sources.
const SEGMENT: u64 = 1 << 20;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With a failure, and nothing left behind.
    Refused,
    /// With success and a copy that is right.
    Right,
}

pub(crate) struct Testbed {
    pub(crate) source: Source,
    /// What a copy consists of beside its files' contents.
    shape: BTreeMap<PathBuf, String>,
    /// What the connections send.
    pub(crate) maps: [Map; 2],
    number: AtomicUsize,
}

impl Testbed {
    /// Starts a source with a tablespace and a password, takes a backup of it, and maps its connections.
    pub(crate) fn start(major: u32) -> Self {
        let auth = Auth::Password { method: PasswordMethod::ScramSha256, password: "sesame".into() };
        let source = harness::cluster(major)
            .auth(auth)
            .wal_segsize_mb(1)
            .setting("autovacuum", "off")
            .setting("max_wal_senders", "40")
            .setting("max_replication_slots", "40")
            .start();
        let space = source.dir("space");
        source.cluster().run_as().create_dir(&space).expect("a new directory");
        let sql = source.sql();
        sql.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
        sql.execute("CREATE TABLE here TABLESPACE space AS SELECT i FROM generate_series(1, 1000) AS i");
        sql.execute("CHECKPOINT");
        let network = Interposer::recording(&source, &[]);
        let dir = source.dir("reference");
        let mut bed = Self {
            source,
            shape: BTreeMap::new(),
            maps: [Map::of(&[]), Map::of(&[])],
            number: AtomicUsize::new(0),
        };
        bed.run_through(&network, &dir, &[]).expect_success();
        bed.maps = [MAIN, WAL].map(|connection| Map::of(&network.recorded(connection)));
        bed.shape = shape(&dir);
        assert_eq!(bed.judge_copy(&dir), Ok(Ending::Right));
        bed
    }

    /// Takes a backup through a network with these faults, and judges what comes of it.
    pub(crate) fn run(&self, faults: &[Fault], arguments: &[&str]) -> Result<(Ending, Finished), String> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let dir = self.source.dir(&format!("copy {number}"));
        let network = Interposer::before(&self.source, faults);
        let finished = self.run_through(&network, &dir, arguments);
        let said = finished.stderr_text();
        let judged = if said.contains("panicked") {
            Err("a panic".to_owned())
        } else if finished.status.success() {
            self.judge_copy(&dir)
        } else if finished.status.code() != Some(1) || !said.contains("pgstrata: error: ") {
            Err("neither success nor a failure with a word".to_owned())
        } else if dir.exists() || moved(&dir).exists() {
            Err(format!("{} is still there", dir.display()))
        } else {
            Ok(Ending::Refused)
        };
        for leftover in [&dir, &moved(&dir)] {
            let _ = fs::remove_dir_all(leftover);
        }
        match judged {
            Ok(ending) => Ok((ending, finished)),
            Err(wrong) => Err(format!("{wrong}\n{finished}")),
        }
    }

    /// The WAL of the reference.
    pub(crate) fn reference_range(&self) -> [u64; 2] {
        wal_range(&self.source.dir("reference"))
    }

    fn run_through(&self, network: &Interposer, dir: &Path, arguments: &[&str]) -> Finished {
        let mapping = format!("{}={}", self.source.dir("space").display(), moved(dir).display());
        let conninfo = format!("{} connect_timeout=2", network.conninfo(&self.source));
        let mut run =
            harness::pgstrata(["basebackup", "-N", "-c", "fast", "-T", &mapping, "-d", &conninfo, "-D"])
                .arg(dir);
        for argument in arguments {
            run = run.arg(argument);
        }
        run.limit(LIMIT).run()
    }

    /// Compares a copy with its manifest, its shape with that of the reference, and its WAL with the source's.
    pub(crate) fn judge_copy(&self, dir: &Path) -> Result<Ending, String> {
        harness::check_manifest(dir).map_err(|error| format!("{error:#}"))?;
        let found = shape(dir);
        if !self.shape.is_empty() && found != self.shape {
            let differs = |(path, what): &(&PathBuf, &String)| self.shape.get(*path) != Some(*what);
            let more: Vec<_> = found.iter().filter(differs).collect();
            let missing: Vec<_> = self.shape.keys().filter(|path| !found.contains_key(*path)).collect();
            return Err(format!("another shape: {more:?}, without {missing:?}"));
        }
        // Padding between records is covered by no checksum, and read by nobody.
        if !self.wal_is_the_same(dir)? && self.source.try_boot(dir).is_err() {
            return Err("wrong WAL".to_owned());
        }
        Ok(Ending::Right)
    }

    /// Whether the WAL of the backup's range is the source's to the last bit.
    fn wal_is_the_same(&self, dir: &Path) -> Result<bool, String> {
        let [start, end] = wal_range(dir);
        let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
        for segment in start / SEGMENT..=(end - 1) / SEGMENT {
            let per_id = (1 << 32) / SEGMENT;
            let name = format!("pg_wal/{:08X}{:08X}{:08X}", 1, segment / per_id, segment % per_id);
            let [ours, theirs] = [dir, self.source.data_dir()].map(|dir| dir.join(&name));
            let copied = fs::read(&ours).map_err(|error| failed(&ours, error))?;
            let original = fs::read(&theirs).map_err(|error| failed(&theirs, error))?;
            let needed = usize::try_from((end - segment * SEGMENT).min(SEGMENT)).expect("a segment's length");
            if copied[..needed] != original[..needed] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Runs cases side by side, and panics with all that fail.
    pub(crate) fn each<T: Sync>(
        &self,
        threads: usize,
        cases: &[T],
        run: impl Fn(&T) -> Result<(), String> + Sync,
    ) {
        let next = AtomicUsize::new(0);
        let failures = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(failure) = run(case) {
                            failures.lock().expect("no panic with the lock").push(failure);
                        }
                    }
                });
            }
        });
        let failures = failures.into_inner().expect("no panic with the lock");
        let (count, all) = (failures.len(), cases.len());
        assert!(failures.is_empty(), "{count} of {all} cases:\n{}", failures.join("\n"));
        harness::expect_forgotten(&self.source);
        eprintln!("{all} cases");
    }
}

/// Where the tablespace of a copy goes.
fn moved(dir: &Path) -> PathBuf {
    dir.with_extension("space")
}

/// The manifest's WAL range as positions.
fn wal_range(dir: &Path) -> [u64; 2] {
    let text = fs::read_to_string(dir.join("backup_manifest")).expect("a manifest");
    let position = |key: &str| {
        let (_, rest) = text.split_once(&format!("\"{key}\": \"")).expect("it has a range");
        let (high, rest) = rest.split_once('/').expect("a position");
        let (low, _) = rest.split_once('"').expect("a position");
        let half = |digits: &str| u64::from_str_radix(digits, 16).expect("a position");
        half(high) << 32 | half(low)
    };
    [position("Start-LSN"), position("End-LSN")]
}

/// Names, kinds and modes below a directory; names in `pg_wal` and links' targets change from run to run.
fn shape(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut shape = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(here) = pending.pop() {
        for entry in fs::read_dir(&here).expect("it is readable").map(|entry| entry.expect("an entry")) {
            let meta = entry.metadata().expect("it is there");
            let name = entry.path().strip_prefix(dir).expect("below it").to_owned();
            if meta.is_dir() {
                pending.push(entry.path());
            } else if meta.is_symlink() {
                pending.push(entry.path());
                assert_eq!(fs::read_link(entry.path()).expect("a link"), moved(dir));
            } else if name.starts_with("pg_wal") {
                continue;
            }
            let mode = meta.permissions().mode();
            // A position or a list of times may have a digit more.
            let varies = ["backup_manifest", "backup_label"].iter().any(|file| name == Path::new(file));
            let length = if varies || !meta.is_file() { 0 } else { meta.len() };
            shape.insert(name, format!("mode {mode:o}, {length} bytes"));
        }
    }
    shape
}
