//! Restores over what is there, after interruptions, of some databases, and what owners and modes become.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgstrata::failure::Failure;
use pgstrata::repository::{BackupChoice, LocalStore, Repository};
use pgstrata::restore::{
    Onto, RestoreConfig, RestoreOptions, RestoreReport, RestoreResources, run as run_restore,
};
use pgstrata::ring::{FaultKind, FaultPlan};
use pgstrata::stop::Stop;
use pgstrata_tests as harness;
use pgstrata_tests::repositories::{
    self, backup, beside, command, expect_refused, init, space, with_tablespaces,
};
use pgstrata_tests::{Invocation, Source, Sql, Workload, unprivileged_pgstrata};
use rustix::process::Signal;
use serde_json::Value;

const MARKER: &str = "pgstrata_restore.json";

/// A restore with a summary as JSON.
fn restore(source: &Source, repo: &Path, into: &Path) -> Invocation {
    repositories::restore(source, repo, into).arg("--json")
}

/// Kind, mode, owner and bytes.
type Facts = (&'static str, u32, (u32, u32), Vec<u8>);

/// Everything below a folder. Where links lead is not in it.
fn tree(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            let facts = path.symlink_metadata().unwrap();
            let kind = facts.file_type();
            let (kind, bytes) = if kind.is_dir() {
                folders.push(path.clone());
                ("folder", Vec::new())
            } else if kind.is_symlink() {
                ("link", Vec::new())
            } else {
                assert!(!kind.is_fifo() && kind.is_file(), "{}", path.display());
                ("file", fs::read(&path).unwrap())
            };
            let owner = (facts.uid(), facts.gid());
            found.insert(path.strip_prefix(root).unwrap().to_owned(), (kind, facts.mode(), owner, bytes));
        }
    }
    found
}

#[track_caller]
fn expect_same(one: &Path, other: &Path) {
    let (one, other) = (tree(one), tree(other));
    let only = |these: &BTreeMap<PathBuf, _>, those: &BTreeMap<PathBuf, _>| -> Vec<PathBuf> {
        these.keys().filter(|path| !those.contains_key(*path)).cloned().collect()
    };
    assert_eq!((only(&one, &other), only(&other, &one)), (Vec::new(), Vec::new()));
    for (path, facts) in &one {
        let same = other[path] == *facts;
        assert!(
            same,
            "{}: {:?} and {:?}",
            path.display(),
            (facts.1, facts.2),
            (other[path].1, other[path].2)
        );
    }
}

/// The same data directory, WAL, and tablespaces.
#[track_caller]
fn expect_same_copy(source: &Source, one: &Path, other: &Path) {
    expect_same(one, other);
    expect_same(&beside(one, "wal"), &beside(other, "wal"));
    for tablespace in source.tablespaces() {
        expect_same(&space(one, tablespace.oid), &space(other, tablespace.oid));
    }
}

fn with_wal(source: &Source, repo: &Path, into: &Path) -> Invocation {
    restore(source, repo, into).arg("--waldir").arg(beside(into, "wal"))
}

/// In this process, on disks that fail.
fn faulty(source: &Source, repo: &Path, into: &Path, faults: FaultPlan) -> Result<RestoreReport, Failure> {
    let mut config = RestoreConfig {
        repository: Repository::open(Arc::new(LocalStore::new(repo)))?,
        cluster: "main".parse().unwrap(),
        backup: BackupChoice::Latest,
        target: into.to_owned(),
        recovery: None,
        tablespace_mapping: Vec::new(),
        options: RestoreOptions { clean: false, onto: Onto::Empty, ..RestoreOptions::default() },
        resources: RestoreResources::for_cores(2),
    };
    config.options.wal_directory = Some(beside(into, "wal"));
    for tablespace in source.tablespaces() {
        let place = space(into, tablespace.oid);
        config.tablespace_mapping.extend(tablespace.location.clone().map(|old| (old, place)));
    }
    config.resources.faults = Some(faults);
    run_restore(&config, &|text| assert!(text.contains("--resume goes on with it"), "{text}"), &Stop::new())
}

#[test]
fn over_an_old_cluster_only_what_differs_is_restored() {
    let workload = Workload::small().tablespaces(1).large_table_mib(24);
    let source = harness::cluster(15).with(workload).start();
    let repo = init(&source);
    let sql = source.sql();
    sql.execute("CREATE TABLE grows AS SELECT generate_series(1, 1000) AS a");
    sql.execute("CREATE TABLE shrinks AS SELECT generate_series(1, 100000) AS a");
    backup(&source, &repo).run().expect_success();
    let fresh = source.dir("fresh");
    with_wal(&source, &repo, &fresh).run().expect_success();
    assert_eq!(fs::read_link(fresh.join("pg_wal")).unwrap(), beside(&fresh, "wal"));
    assert!(!fresh.join(MARKER).exists());

    // An old cluster: recovered, written to, killed, and with whatever people leave in a data directory.
    let old = source.dir("old");
    let delta = || with_wal(&source, &repo, &old).arg("--delta");
    delta().run().expect_success();
    expect_same_copy(&source, &fresh, &old);
    let server = source.boot(&old);
    harness::compare(&source, &server);
    expect_refused(&delta().run(), &["a server runs in this data directory"]);
    assert!(old.join("global/pg_control").exists());
    let copied = harness::sql(&server);
    copied.execute("INSERT INTO grows SELECT generate_series(1, 100000)");
    copied.execute("DELETE FROM shrinks WHERE a > 10");
    copied.execute("VACUUM shrinks");
    for statement in ["CREATE TABLE foreigner AS SELECT 1", "CREATE DATABASE foreign_too", "CHECKPOINT"] {
        copied.execute(statement);
    }
    drop(copied);
    server.kill().unwrap();
    assert!(old.join("postmaster.pid").exists());
    let outside = source.dir("outside");
    fs::create_dir(&outside).unwrap();
    for name in ["linked", "twin"] {
        fs::write(outside.join(name), b"somebody's").unwrap();
    }
    fs::create_dir_all(old.join("base/777777/deeper")).unwrap();
    fs::write(old.join("base/777777/deeper/file"), b"x").unwrap();
    symlink(&outside, old.join("base/link")).unwrap();
    symlink(&outside, old.join("pg_tblspc/4242")).unwrap();
    symlink(outside.join("linked"), old.join("somewhere")).unwrap();
    // A file of the backup as a link, as a second name of another's file, as a folder, and closed.
    let version = old.join("base/1/PG_VERSION");
    fs::remove_file(&version).unwrap();
    symlink(outside.join("linked"), &version).unwrap();
    let label = old.join("backup_label");
    let _ = fs::remove_file(&label);
    fs::hard_link(outside.join("twin"), &label).unwrap();
    let map = old.join("global/pg_filenode.map");
    fs::remove_file(&map).unwrap();
    fs::create_dir(&map).unwrap();
    fs::set_permissions(old.join("PG_VERSION"), fs::Permissions::from_mode(0o440)).unwrap();

    let summary = delta().run().expect_success().json_summary();
    let number = |summary: &Value, name: &str| summary[name].as_u64().unwrap();
    assert!(number(&summary, "removed") > 5, "{summary}");
    // Much of it was right.
    assert!(number(&summary, "reused_bytes") * 4 > number(&summary, "bytes"), "{summary}");
    expect_same_copy(&source, &fresh, &old);
    for name in ["linked", "twin"] {
        assert_eq!(fs::read(outside.join(name)).unwrap(), b"somebody's", "{name}");
    }
    let again = delta().run().expect_success().json_summary();
    // The server's manifest comes anew each time, and the control file.
    assert!(number(&again, "reused_bytes") + (2 << 20) > number(&again, "bytes"), "{again}");
    let server = source.boot(&old);
    harness::compare(&source, &server);
    harness::amcheck(&server).unwrap_or_else(|error| panic!("{error:#}"));
    drop(server);

    // Damage is mended, wherever it is.
    let (mut folders, mut damaged) = (vec![fresh.join("base"), beside(&fresh, "wal")], 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if damaged % 3 == 0 {
                let mut bytes = fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes.get_mut(middle).into_iter().for_each(|byte| *byte ^= 1);
                fs::write(&path, bytes).unwrap();
            }
            damaged += 1;
        }
    }
    let untouched = source.dir("untouched");
    with_wal(&source, &repo, &untouched).run().expect_success();
    with_wal(&source, &repo, &fresh).arg("--delta").run().expect_success();
    expect_same_copy(&source, &untouched, &fresh);
    refusals(&source, &repo, &fresh, &outside);
}

/// What a delta restore does not touch.
fn refusals(source: &Source, repo: &Path, cluster: &Path, somebodys: &Path) {
    let before = tree(cluster);
    let with_wal = |into: &Path| with_wal(source, repo, into);
    expect_refused(&with_wal(cluster).run(), &["it is a data directory", "--delta"]);
    expect_refused(&with_wal(cluster).arg("--resume").run(), &["no restore is under way"]);
    for option in ["--delta", "--resume"] {
        let run = command("restore", repo).args(["--cluster", "main", option, "--into"]).arg(somebodys);
        expect_refused(&with_tablespaces(source, cluster, run).run(), &["no data directory"]);
    }
    // A link of WAL is followed by nobody's leave.
    expect_refused(&restore(source, repo, cluster).arg("--delta").run(), &["is a link to", "--waldir"]);
    // Nor are folders taken that are another's.
    let run = restore(source, repo, cluster).args(["--delta", "--waldir"]).arg(somebodys);
    expect_refused(&run.run(), &["the WAL is to go there"]);
    // Another system.
    let control = cluster.join("global/pg_control");
    let mut other = fs::read(&control).unwrap();
    other[0] ^= 1;
    fs::write(&control, &other).unwrap();
    let delta = || with_wal(cluster).arg("--delta");
    expect_refused(&delta().run(), &["is the data directory of system", "--overwrite-other-cluster"]);
    assert_eq!(fs::read(&control).unwrap(), other);
    delta().arg("--overwrite-other-cluster").run().expect_success();
    assert_eq!(tree(cluster), before);
    // The repository in the way.
    let inside = cluster.join("repo");
    fs::create_dir(&inside).unwrap();
    let copied = std::process::Command::new("cp").arg("-r").arg(repo).arg(&inside).status().unwrap();
    assert!(copied.success());
    let run = with_tablespaces(source, cluster, command("restore", &inside.join("repo")));
    let run = run.args(["--cluster", "main", "--delta", "--into"]).arg(cluster);
    expect_refused(&run.arg("--waldir").arg(beside(cluster, "wal")).run(), &["the repository lies in"]);
    assert!(inside.join("repo").exists());
}

#[test]
fn what_was_interrupted_goes_on() {
    let workload = Workload::small().tablespaces(1).large_table_mib(64);
    let source = harness::cluster(15).with(workload).start();
    let repo = init(&source);
    let first = backup(&source, &repo).run().expect_success().json_summary();
    let fresh = source.dir("fresh");
    with_wal(&source, &repo, &fresh).run().expect_success();

    // Killed, and then gone on with in both ways.
    for option in ["--resume", "--delta"] {
        let copy = source.dir(option);
        let mut tries = 0;
        while !copy.join(MARKER).exists() {
            tries += 1;
            assert!(tries < 10, "it was always faster");
            let _ = fs::remove_dir_all(&copy);
            let _ = fs::remove_dir_all(beside(&copy, "wal"));
            for tablespace in source.tablespaces() {
                let _ = fs::remove_dir_all(space(&copy, tablespace.oid));
            }
            let running = with_wal(&source, &repo, &copy).args(["--workers", "1", "--buffers", "4"]).spawn();
            harness::wait_until("some files", || copy.join("base/1/1259").exists() || !running.is_running());
            running.signal(Signal::KILL);
            drop(running.wait());
        }
        assert!(!copy.join("global/pg_control").exists());
        source.try_boot(&copy).expect_err("no control file");
        expect_refused(&with_wal(&source, &repo, &copy).run(), &["that did not end", "--resume"]);
        with_wal(&source, &repo, &copy).arg(option).run().expect_success();
        expect_same_copy(&source, &fresh, &copy);
    }
    // At any operation, and over a newer backup: what was begun is what is ended.
    let seen = FaultPlan::new(1);
    faulty(&source, &repo, &source.dir("whole"), seen.clone()).expect("no fault");
    let newer = backup(&source, &repo).run().expect_success().json_summary();
    let id = |summary: &Value| summary["stored"]["backup"].as_str().unwrap().to_owned();
    for (nth, kind) in
        [(0, FaultKind::Write), (seen.seen(FaultKind::Write) / 2, FaultKind::Write), (3, FaultKind::Sync)]
    {
        let copy = source.dir(&format!("{kind:?} {nth}"));
        faulty(&source, &repo, &copy, FaultPlan::new(2).fail(kind, nth, 5)).map(drop).expect_err("it failed");
        assert!(copy.join(MARKER).exists() && !copy.join("global/pg_control").exists());
        let of_first = with_wal(&source, &repo, &copy).args(["--resume", "--backup", &id(&first)]).run();
        expect_refused(&of_first, &[&id(&newer), "that did not end"]);
        let ended = with_wal(&source, &repo, &copy).arg("--resume").run().expect_success().json_summary();
        assert_eq!(ended["backup"].as_str().unwrap(), id(&newer));
        assert!(!copy.join(MARKER).exists());
        harness::verify_backup(&copy, 15).expect_good();
        for path in ["", "wal"] {
            let copy = if path.is_empty() { copy.clone() } else { beside(&copy, path) };
            fs::remove_dir_all(copy).unwrap();
        }
    }
    // A failure cleans up, unless it is told not to.
    let copy = source.dir("none");
    let pack = fs::read_dir(repo.join("clusters/main/packs")).unwrap().last().unwrap().unwrap().path();
    let good = fs::read(&pack).unwrap();
    fs::write(&pack, &good[..good.len() - 1]).unwrap();
    let failed = |option: &[&str]| {
        let run = with_wal(&source, &repo, &copy).args(option).args(["--backup", &id(&first)]).run();
        let other = with_wal(&source, &repo, &copy).args(option).args(["--backup", &id(&newer)]).run();
        assert!(!run.status.success() || !other.status.success(), "{run} {other}");
    };
    failed(&[]);
    let _ = fs::remove_dir_all(&copy);
    fs::write(&pack, good).unwrap();
}

fn in_database(server: &pgstrata::postmaster::Server, database: &str) -> anyhow::Result<Sql> {
    Sql::connect(&server.database_conninfo(database))
}

#[test]
fn chosen_databases_work_and_others_can_be_dropped() {
    let source = harness::cluster(15).with(Workload::empty().tablespaces(1)).start();
    let repo = init(&source);
    let sql = source.sql();
    for name in ["wanted", "Other One"] {
        sql.execute(&format!("CREATE DATABASE \"{name}\""));
        let own = Sql::connect(&format!("{} dbname='{name}'", source.socket_conninfo())).unwrap();
        own.execute(
            "CREATE TABLE t AS SELECT g AS a, repeat('x', 500) AS b FROM generate_series(1, 20000) g",
        );
        own.execute("CREATE INDEX ON t (a); CHECKPOINT; ANALYZE");
    }
    let oid: u32 = sql.value("SELECT oid::int8::text FROM pg_database WHERE datname = 'Other One'");
    let wanted: u32 = sql.value("SELECT oid::int8::text FROM pg_database WHERE datname = 'wanted'");
    // What recovery goes through is of both: written while the backup runs.
    let running = backup(&source, &repo).args(["-r", "20M"]).spawn();
    for name in ["wanted", "Other One"] {
        let own = Sql::connect(&format!("{} dbname='{name}'", source.socket_conninfo())).unwrap();
        while running.is_running() {
            own.execute("UPDATE t SET a = a + 1 WHERE a % 7 = 0; DELETE FROM t WHERE a % 31 = 0");
            own.execute("INSERT INTO t SELECT g, 'y' FROM generate_series(1, 100) g");
            own.execute("VACUUM t");
            own.execute("VACUUM FULL pg_class");
            if name == "wanted" {
                break;
            }
        }
    }
    running.wait().expect_success();
    let copy = source.dir("copy");
    let run = restore(&source, &repo, &copy).args(["--database", "nobody", "--database", "wanted"]).run();
    expect_refused(&run, &["no database \"nobody\"", "Other One", "wanted ("]);
    assert!(!copy.exists());
    for (number, choice) in ["wanted".to_owned(), wanted.to_string()].iter().enumerate() {
        let copy = source.dir(&format!("copy {number}"));
        let run = restore(&source, &repo, &copy).args(["--database", choice]).run();
        let summary = run.expect_success().json_summary();
        assert!(summary["omitted_files"].as_u64().unwrap() > 200, "{summary}");
        let (mut length, mut blocks) = (0, 0);
        for entry in fs::read_dir(copy.join(format!("base/{oid}"))).unwrap() {
            let facts = entry.unwrap().metadata().unwrap();
            (length, blocks) = (length + facts.len(), blocks + facts.blocks() * 512);
        }
        assert!(length > 8 << 20 && blocks < 64 << 10, "{length} {blocks}");
        // Over itself it stays so.
        let run = restore(&source, &repo, &copy).args(["--delta", "--database", choice]).run();
        let again = run.expect_success().json_summary();
        assert_eq!(again["omitted_files"], summary["omitted_files"]);
        let server = source.boot(&copy);
        let sums = "SELECT count(*) || ' ' || sum(a) || ' ' || count(DISTINCT b) FROM t";
        let own = Sql::connect(&format!("{} dbname=wanted", source.socket_conninfo())).unwrap();
        let (theirs, ours): (String, String) =
            (own.value(sums), in_database(&server, "wanted").unwrap().value(sums));
        assert_eq!(theirs, ours);
        in_database(&server, "Other One").map(drop).expect_err("it is not there");
        harness::sql(&server).execute("DROP DATABASE \"Other One\"");
        harness::sql(&server).execute("CREATE DATABASE \"Other One\"");
        // That one lies in a tablespace.
        harness::sql(&server).execute("DROP DATABASE spaced");
        harness::sql(&server).execute("CHECKPOINT");
        harness::amcheck(&server).unwrap();
        assert!(!copy.join(format!("base/{oid}")).exists());
    }
}

#[test]
fn owners_and_modes_are_as_they_were() {
    let source = harness::cluster(16).start();
    let repo = init(&source);
    // Somebody's folder that is closed to its owner.
    let (closed, file) = (source.data_dir().join("closed"), source.data_dir().join("closed/file"));
    fs::create_dir(&closed).unwrap();
    fs::write(&file, b"x").unwrap();
    let facts = fs::metadata(source.data_dir()).unwrap();
    let owner = |path: &Path| {
        let facts = path.symlink_metadata().unwrap();
        (facts.uid(), facts.gid())
    };
    let servers = (facts.uid(), facts.gid());
    for path in [&closed, &file] {
        std::os::unix::fs::chown(path, Some(servers.0), Some(servers.1)).unwrap();
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    backup(&source, &repo).run().expect_success();

    let is_root = rustix::process::geteuid().is_root();
    let copy = source.dir("copy");
    let with_wal = |into: &Path| restore(&source, &repo, into).arg("--waldir").arg(beside(into, "wal"));
    let run = with_wal(&copy).run();
    assert!(!run.expect_success().stderr_text().contains("warning"), "{run}");
    let expected = |copy: &Path| {
        for path in [copy, &beside(copy, "wal"), &copy.join("pg_wal"), &copy.join("closed/file")] {
            assert_eq!(owner(path), servers, "{}", path.display());
        }
        for (path, facts) in tree(copy) {
            assert_eq!(facts.2, servers, "{}", path.display());
        }
        let mode = |path: &str| fs::metadata(copy.join(path)).unwrap().mode() & 0o777;
        assert_eq!((mode("closed"), mode("closed/file")), (0o500, 0o440));
    };
    expected(&copy);
    with_wal(&copy).arg("--delta").run().expect_success();
    expected(&copy);
    if !is_root {
        return;
    }
    // As root for somebody else; as the server's user for itself, without a word; and what nobody may do.
    let given = source.dir("given");
    with_wal(&given).args(["--owner", "root:root"]).run().expect_success();
    assert_eq!((owner(&given), owner(&given.join("base/1/1259"))), ((0, 0), (0, 0)));
    let unknown = with_wal(&source.dir("x")).args(["--owner", "no such user"]).run();
    expect_refused(&unknown, &["no user \"no such user\""]);
    let run = std::process::Command::new("chmod").args(["-R", "a+rX"]).arg(&repo).status().unwrap();
    assert!(run.success());
    let own = source.dir("own");
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(servers.0), Some(servers.1)).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).unwrap();
    let unprivileged = |into: &Path| {
        let run = unprivileged_pgstrata(source.scratch(), ["restore", "--cluster", "main", "--repo"]);
        run.arg(&repo).arg("--into").arg(into)
    };
    let run = unprivileged(&own).run();
    assert!(!run.expect_success().stderr_text().contains("belong"), "{run}");
    let mode = |path: &str| fs::metadata(own.join(path)).unwrap().mode() & 0o777;
    assert_eq!((mode("closed"), mode("closed/file")), (0o500, 0o440));
    let run = unprivileged(&own).arg("--delta").run();
    run.expect_success();
    assert_eq!((mode("closed"), mode("closed/file")), (0o500, 0o440));
    expect_refused(
        &unprivileged(&own).args(["--delta", "--owner", "root"]).run(),
        &["cannot be given to user root"],
    );
    drop(source.boot(&own));
}

#[test]
fn a_dry_run_names_everything_at_once() {
    let source = harness::cluster(15).with(Workload::small().tablespaces(1)).start();
    let repo = init(&source);
    backup(&source, &repo).run().expect_success();
    let copy = source.dir("copy");
    let report = restore(&source, &repo, &copy).arg("--dry-run").run().expect_success().json_summary();
    assert_eq!((&report["dry_run"], &report["problem_count"]), (&true.into(), &0.into()));
    assert!(report["space"][0]["needed"].as_u64().unwrap() > 10 << 20, "{report}");
    assert!(!copy.exists());

    fs::create_dir(&copy).unwrap();
    fs::write(copy.join("file"), b"somebody's").unwrap();
    let packs = repo.join("clusters/main/packs");
    let pack = fs::read_dir(&packs).unwrap().next().unwrap().unwrap().path();
    fs::rename(&pack, source.dir("aside")).unwrap();
    let dangling = source.dir("dangling");
    symlink("/nowhere/at/all", &dangling).unwrap();
    let old = source.tablespaces()[0].location.clone().unwrap();
    let run = || {
        let run = command("restore", &repo).args(["--cluster", "main", "--dry-run", "--into"]).arg(&copy);
        let run = run.arg("-T").arg(format!("{}={}", old.display(), copy.join("inside").display()));
        let run = run.args(["-T", "/no/such=/anywhere", "--database", "nobody", "--owner", "no such user"]);
        run.arg("--waldir").arg(&dangling)
    };
    let words = [
        "exists but is not empty",
        "would go into the folder of the data directory",
        "lay in \"/no/such\"",
        "no database \"nobody\"",
        "no user \"no such user\"",
        "leads nowhere",
        pack.file_name().unwrap().to_str().unwrap(),
    ];
    expect_refused(&run().run(), &words);
    let finished = run().arg("--json").run();
    finished.expect_failure();
    let events = finished.events();
    let summary = events.iter().find(|event| event["event"] == "summary").expect("a summary");
    let problems = summary["problems"].to_string();
    assert_eq!(summary["problem_count"], 7, "{problems}");
    assert_eq!(fs::read_dir(&copy).unwrap().count(), 1);
}
