//! Every way of taking a backup, from every version of the server, of everything that a cluster may hold.
//!
//! One large cluster a version: tablespaces, in the data directory too where the version has them, unlogged and
//! temporary tables, file names that are no UTF-8, files that a server skips, 20,000 small relations, and a table of
//! more than one segment; with page checksums, and without for some versions. Plain and tar times WAL streamed,
//! fetched and not at all, each while a writer commits. Each copy is compared with its manifest, checked by
//! `pg_verifybackup` where one is at hand, started, and compared row by row with its source.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pgstrata::postmaster::Server;
use pgstrata_tests as harness;
use pgstrata_tests::{Baseline, Manifest, Relocation, Source, Workload, Writer};
use serde_json::Value;

/// The segment size of relations in a build with its defaults (`RELSEG_SIZE` pages): the large table has to pass it.
const SEGMENT_MIB: u32 = 1024;
const SMALL_RELATIONS: u32 = 20_000;
/// The first version that sends tablespaces in the data directory (`allow_in_place_tablespaces`) in every format: older
/// servers leave them out of backups in tar format (`sendDir` in src/backend/replication/basebackup.c).
const IN_PLACE_SINCE: u32 = 16;
/// The first version with manifests that name the system.
const SECOND_MANIFEST_SINCE: u32 = 17;
/// How many versions run at a time: each has up to 4 GiB on disk, and keeps a core busy.
const AT_A_TIME: u32 = 2;

/// Between a writer's transactions: enough of them for a backup, and WAL that stays within a few segments.
const PAUSE: Duration = Duration::from_millis(10);
/// How long recovery may take, and how often it is looked at.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Plain,
    Tar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wal {
    Stream,
    Fetch,
    None,
}

/// One of the ways to take a backup.
#[derive(Clone, Copy, Debug)]
struct Way {
    format: Format,
    wal: Wal,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.format, self.wal)
    }
}

const WAYS: [Way; 6] = [
    Way { format: Format::Plain, wal: Wal::Stream },
    Way { format: Format::Plain, wal: Wal::Fetch },
    Way { format: Format::Plain, wal: Wal::None },
    Way { format: Format::Tar, wal: Wal::Stream },
    Way { format: Format::Tar, wal: Wal::Fetch },
    Way { format: Format::Tar, wal: Wal::None },
];

#[test]
fn version_13() {
    every_way(13, true);
}

#[test]
fn version_14_without_checksums() {
    every_way(14, false);
}

#[test]
fn version_15() {
    every_way(15, true);
}

#[test]
fn version_16() {
    every_way(16, true);
}

#[test]
fn version_17_without_checksums() {
    every_way(17, false);
}

#[test]
fn version_18() {
    every_way(18, true);
}

/// A place among the versions that run at a time.
struct Turn;

static RUNNING: (Mutex<u32>, Condvar) = (Mutex::new(0), Condvar::new());

impl Turn {
    fn wait() -> Self {
        let (count, changed) = &RUNNING;
        let count = count.lock().expect("nobody panics with the lock");
        let count = changed.wait_while(count, |count| *count >= AT_A_TIME);
        *count.expect("nobody panics with the lock") += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.0.lock().expect("nobody panics with the lock") -= 1;
        RUNNING.1.notify_one();
    }
}

fn every_way(major: u32, checksums: bool) {
    if !harness::majors().contains(&major) {
        eprintln!("skipped: PostgreSQL {major} does not run here, or was not asked for");
        return;
    }
    let _turn = Turn::wait();
    let started = Instant::now();
    let bench = Bench::new(major, checksums);
    eprintln!("PostgreSQL {major}: loaded after {:?}", started.elapsed());
    for (number, way) in (1..).zip(WAYS) {
        bench.take(way, number);
    }
    eprintln!("PostgreSQL {major}: done after {:?}", started.elapsed());
}

/// A large source, what it holds, and where it archives its WAL to.
struct Bench {
    major: u32,
    source: Source,
    baseline: Baseline,
    archive: PathBuf,
}

impl Bench {
    fn new(major: u32, checksums: bool) -> Self {
        let mut workload = Workload::small()
            .tablespaces(2)
            .special_files()
            .small_relations(SMALL_RELATIONS)
            .large_table_mib(SEGMENT_MIB + 8);
        if major >= IN_PLACE_SINCE {
            workload = workload.in_place_tablespace();
        }
        let source = harness::cluster(major)
            .checksums(checksums)
            .with(workload)
            // The server archives only where and while a test wants it.
            .setting("archive_mode", "on")
            .setting("archive_command", "test ! -d ../archive || cp %p ../archive/%f")
            .start();
        let setting: String = source.sql().value("SHOW data_checksums");
        assert_eq!(setting, if checksums { "on" } else { "off" });
        let segments: u64 = source.sql().value("SELECT pg_relation_size('bulk.large') >> 30");
        assert_eq!(segments, 1, "the large table has a second segment");
        let (baseline, archive) = (Baseline::of(&source), source.dir("archive"));
        Self { major, source, baseline, archive }
    }

    /// Takes a backup in one way, durable where its WAL is streamed, and lets nothing of it pass unproven.
    fn take(&self, way: Way, number: u64) {
        let source = &self.source;
        if way.wal == Wal::None {
            source.cluster().run_as().create_dir(&self.archive).unwrap();
        }
        let writer = Writer::start_with_pause(&source.socket_conninfo(), number, PAUSE);
        writer.wait_for(20);
        let before = writer.acknowledged();
        let (archives, copy) = (source.dir("archives"), source.dir("copy"));
        let relocation = Relocation::new(source, &copy);
        let mut run = harness::pgstrata(["basebackup", "--json", "-c", "fast", "-d", &source.conninfo()]);
        let wal = match way.wal {
            Wal::Stream => "stream",
            Wal::Fetch => "fetch",
            Wal::None => "none",
        };
        run = run.arg("-X").arg(wal);
        if way.wal != Wal::Stream {
            run = run.arg("--no-sync");
        }
        run = match way.format {
            Format::Plain => run.arg("-D").arg(&copy).args(relocation.arguments()),
            Format::Tar => run.arg("-Ft").arg("-D").arg(&archives),
        };
        let started = Instant::now();
        let finished = run.run();
        let taken = Instant::now();
        finished.expect_success();
        let during = writer.acknowledged() - before;
        assert!(during > 0, "{way}: no transaction was committed during the backup");
        let ledger = writer.stop();

        if way.format == Format::Tar {
            self.check_archives(way, &archives);
            relocation.unpack(&archives, &copy);
            fs::remove_dir_all(&archives).unwrap();
        }
        self.check_files(way, &copy, &finished.json_summary());
        let checked = Instant::now();
        let server = self.boot(way, &copy, &relocation);
        let booted = Instant::now();
        let comparison = self.baseline.compare(source, &server);
        let at = ledger.check(&harness::sql(&server), before);
        // The large indexes take their time: once a version.
        let compared = Instant::now();
        let relations = (number == 1)
            .then(|| harness::amcheck(&server).unwrap_or_else(|error| panic!("{way}: {error:#}")));
        eprintln!(
            "PostgreSQL {}: {way}: {comparison}; {during} transactions during the backup, {at} of {} in the copy; \
             amcheck of {relations:?} relations; backup {:.1?}, files {:.1?}, boot {:.1?}, comparison {:.1?}, amcheck {:.1?}",
            self.major,
            ledger.acknowledged(),
            taken - started,
            checked - taken,
            booted - checked,
            compared - booted,
            compared.elapsed(),
        );
        drop(server);
        relocation.remove(&copy);
        if way.wal == Wal::None {
            fs::remove_dir_all(&self.archive).unwrap();
        }
    }

    /// The folder of a backup in tar format holds its archives and the manifest, and nothing else.
    fn check_archives(&self, way: Way, archives: &Path) {
        let mut expected: Vec<String> =
            self.source.tablespaces().iter().map(|space| format!("{}.tar", space.oid)).collect();
        expected.extend(["base.tar".to_owned(), "backup_manifest".to_owned()]);
        expected.extend((way.wal == Wal::Stream).then(|| "pg_wal.tar".to_owned()));
        expected.sort();
        let mut found: Vec<String> = fs::read_dir(archives)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, expected, "{way}");
    }

    /// Every byte as the server's manifest has it, and told so by the program.
    fn check_files(&self, way: Way, copy: &Path, summary: &Value) {
        let manifest = Manifest::check(copy);
        let expected = if self.major >= SECOND_MANIFEST_SINCE { 2 } else { 1 };
        assert_eq!(manifest.version, expected, "{way}");
        assert_eq!(manifest.algorithms, ["CRC32C".to_owned()].into(), "{way}");
        assert!(manifest.files > u64::from(SMALL_RELATIONS), "{way}: {} files", manifest.files);
        assert!(manifest.bytes > u64::from(SEGMENT_MIB) << 20, "{way}: {} bytes", manifest.bytes);
        // Twenty names, of which half have bytes that a manifest cannot hold as text.
        assert!(manifest.encoded > 0, "{way}");
        assert_eq!(summary["files_verified"], manifest.files, "{way}: {summary}");
        assert_eq!(summary["durable"], way.wal == Wal::Stream, "{way}: {summary}");
        let number =
            |key: &str| summary[key].as_u64().unwrap_or_else(|| panic!("{way}: no {key} in {summary}"));
        let text = |key: &str| summary[key].as_str().map(str::to_owned).unwrap_or_default();
        assert_eq!(manifest.wal_ranges, [(1, text("start_lsn"), text("end_lsn"))], "{way}");
        let verdict = match way.wal {
            Wal::None => harness::verify_files(copy, self.major),
            Wal::Stream | Wal::Fetch => harness::verify_backup(copy, self.major),
        };
        verdict.expect_good();

        let mut kinds = BTreeMap::new();
        for entry in fs::read_dir(copy.join("pg_wal")).unwrap() {
            let entry = entry.unwrap();
            let kind = if entry.file_type().unwrap().is_dir() { "folders" } else { "files" };
            *kinds.entry(kind).or_insert(0) += 1;
        }
        let wal_files = kinds.get("files").copied().unwrap_or(0);
        assert_eq!(wal_files > 0, way.wal != Wal::None, "{way}: {wal_files} files of WAL");
        assert_eq!(number("wal_bytes") > 0, way.wal == Wal::Stream, "{way}: {summary}");
    }

    /// Starts the copy. One that came without WAL recovers from the archive, as its operator would have it.
    fn boot(&self, way: Way, copy: &Path, relocation: &Relocation) -> Server {
        let cluster = self.source.adopt(copy).unwrap_or_else(|error| panic!("{way}: {error}"));
        if way.format == Format::Tar {
            relocation.rewrite_map(copy);
        }
        let archive = format!("cp '{}'/%f %p", self.archive.display());
        let mut settings = vec![("fsync", "off"), ("autovacuum", "off"), ("archive_mode", "off")];
        if self.major >= IN_PLACE_SINCE {
            // Recovery takes a folder in pg_tblspc for damage otherwise (`CheckTablespaceDirectory`).
            settings.push(("allow_in_place_tablespaces", "on"));
        }
        if way.wal == Wal::None {
            let signal = copy.join("recovery.signal");
            fs::write(&signal, "").unwrap();
            cluster.run_as().own(&signal).unwrap();
            settings.push(("restore_command", &archive));
        }
        let server = cluster.start(&settings).unwrap_or_else(|error| panic!("{way}: {error}"));
        // From an archive it recovers with connections open, and ends that by itself where the archive ends.
        let (sql, started) = (harness::sql(&server), Instant::now());
        while sql.value::<String>("SELECT pg_is_in_recovery()") == "t" {
            assert!(started.elapsed() < PATIENCE, "{way}: still in recovery\n{}", server.log_tail(20));
            thread::sleep(POLL);
        }
        server
    }
}
