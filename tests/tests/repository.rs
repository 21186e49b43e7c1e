//! The repository: a backup goes in, a cluster comes out, and damage is named on the way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgstrata::basebackup::{Destination, Report, Resources};
use pgstrata::failure::Failure;
use pgstrata::repository::{
    BackupChoice, CheckConfig, CheckReport, FrameCompression, LocalStore, PACK_SIZE, Repository,
    RepositoryDestination, ReuseConfig, ReuseFrom, check,
};
use pgstrata::restore::{RestoreConfig, RestoreOptions, RestoreReport, RestoreResources, run as run_restore};
use pgstrata::ring::{FaultKind, FaultPlan};
use pgstrata::stop::Stop;
use pgstrata::tracking::ChangesWanted;
use pgstrata_tests as harness;
use pgstrata_tests::fake::{FakeBackup, FakeServer, Member, Script};
use pgstrata_tests::in_process::{backup_config, run_backup};
use pgstrata_tests::repositories::{
    backup, command, expect_refused, expect_verified, init, names, restore, space,
};
use pgstrata_tests::{Invocation, Scratch, Source, Workload};
use rustix::process::Signal;
use serde_json::Value;

/// What a run may hold, with the defaults.
const MEMORY: u64 = 128 << 20;

/// A backup that stores everything.
fn anew(source: &Source, repo: &Path) -> Invocation {
    backup(source, repo).args(["--reuse", "none"])
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode()
        & 0o7777
}

#[test]
fn what_goes_in_comes_out() {
    for major in harness::majors().into_iter().filter(|major| *major == 15) {
        eprintln!("PostgreSQL {major}");
        let source = harness::cluster(major).with(Workload::small()).start();
        let repo = init(&source);
        let writer = source.writer(1);
        writer.wait_for(5);
        let before = writer.acknowledged();
        let run = backup(&source, &repo).run();
        let first = run.expect_success().json_summary();
        // What the system counts begins with the peak of this process, which tests share.
        assert!(first["peak_memory"].as_u64().unwrap() < MEMORY, "{first}");
        let ledger = writer.stop();
        assert!(first["files_verified"].as_u64().unwrap() > 900, "{first}");
        assert_eq!(first["durable"], true);
        let second = backup(&source, &repo)
            .args(["--reuse", "none", "--compress", "lz4"])
            .run()
            .expect_success()
            .json_summary();
        let third = backup(&source, &repo).args(["--reuse", "none", "-Z", "none", "--check-pages"]).run();
        let third = third.expect_success().json_summary();
        let stored = |summary: &Value| summary["stored"]["bytes"].as_u64().unwrap();
        assert!(stored(&first) < stored(&third) && stored(&second) < stored(&third));
        // The databases' common files are stored once.
        assert!(
            stored(&third)
                < third["bytes"].as_u64().unwrap() + third["wal_bytes"].as_u64().unwrap() + (32 << 20)
        );
        assert_eq!(names(&repo.join("staging")), Vec::<String>::new(), "nothing is left in staging");

        let listed = command("list", &repo).arg("--json").run().expect_success().json_summary();
        let ids = |listed: &Value| -> Vec<String> {
            let backups = listed["backups"].as_array().unwrap();
            backups.iter().map(|one| one["backup"].as_str().unwrap().to_owned()).collect()
        };
        let expected =
            [&first, &second, &third].map(|one| one["stored"]["backup"].as_str().unwrap().to_owned());
        assert_eq!(ids(&listed), expected);
        let words = command("list", &repo).run();
        assert!(words.expect_success().stdout_text().lines().count() == 3, "{words}");
        let shown =
            command("show", &repo).args(["--cluster", "main", "--backup", &expected[0], "--json"]).run();
        let shown = shown.expect_success().json_summary();
        assert_eq!(
            (&shown["backup"], &shown["start_lsn"]),
            (&first["stored"]["backup"], &first["start_lsn"])
        );
        let verified = command("verify", &repo).arg("--json").run().expect_success().json_summary();
        assert_eq!((&verified["backups"], &verified["problem_count"]), (&3.into(), &0.into()));

        // Under a writer: what it had committed before the backup ended is there.
        let copy = source.dir("first");
        restore(&source, &repo, &copy).args(["--backup", &expected[0]]).run().expect_success();
        expect_verified(&copy, major);
        let server = source.boot(&copy);
        ledger.check(&harness::sql(&server), before);
        harness::amcheck(&server).unwrap_or_else(|error| panic!("{major}: {error:#}"));
        drop(server);
        for (name, io) in [("latest", "auto"), ("threads", "threads")] {
            let copy = source.dir(name);
            let run = restore(&source, &repo, &copy).args(["--io", io]).run();
            assert!(run.expect_success().peak_memory < MEMORY, "{run}");
            expect_verified(&copy, major);
            harness::compare(&source, &source.boot(&copy));
        }
        let copy = source.dir("lz4");
        restore(&source, &repo, &copy)
            .args(["--backup", &expected[1], "--workers", "3"])
            .run()
            .expect_success();
        expect_verified(&copy, major);
        for path in ["", "base", "PG_VERSION", "global/pg_control", "pg_wal", "backup_manifest"] {
            assert_eq!(mode(&copy.join(path)) & 0o077, 0, "{path}");
            let there = source.data_dir().join(path);
            assert!(path == "backup_manifest" || mode(&copy.join(path)) == mode(&there), "{path}");
        }
        for tablespace in source.tablespaces() {
            let link = fs::read_link(copy.join(format!("pg_tblspc/{}", tablespace.oid))).expect("a link");
            assert_eq!(link, space(&copy, tablespace.oid));
        }
    }
}

#[test]
fn tablespaces_in_place_and_names_of_any_kind() {
    let workload = Workload::small().tablespaces(2).in_place_tablespace();
    let source = harness::cluster(17).with(workload).setting("allow_in_place_tablespaces", "on").start();
    let repo = init(&source);
    backup(&source, &repo).run().expect_success();
    let copy = source.dir("copy");
    restore(&source, &repo, &copy).run().expect_success();
    expect_verified(&copy, 17);
    for tablespace in source.tablespaces().iter().filter(|tablespace| tablespace.location.is_none()) {
        assert!(!copy.join(format!("pg_tblspc/{}", tablespace.oid)).is_symlink());
    }
    let server = source.boot_with(&copy, &[("allow_in_place_tablespaces", "on")]);
    harness::compare(&source, &server);
    drop(server);

    // Where they lay they cannot go again, and a mapping of nothing is a mistake.
    let other = source.dir("other");
    let plain = || command("restore", &repo).args(["--cluster", "main", "--into"]).arg(&other);
    expect_refused(&plain().run(), &["exists but is not empty"]);
    expect_refused(&plain().args(["-T", "/nowhere=/anywhere"]).run(), &["lay in \"/nowhere\""]);
    let outside: Vec<_> = source.tablespaces().iter().filter_map(|one| one.location.clone()).collect();
    assert_eq!(outside.len(), 2);
    let onto = |place: &Path| {
        let map = |old: &PathBuf| format!("{}={}", old.display(), place.display());
        outside.iter().fold(plain(), |run, old| run.arg("-T").arg(map(old)))
    };
    for place in [&source.dir("one place"), &other] {
        expect_refused(&onto(place).run(), &["would both go to"]);
        assert!(!place.exists());
    }
    assert!(!other.exists());
}

#[test]
fn mistakes_are_refused_by_name() {
    let source = harness::cluster(15).start();
    let repo = init(&source);
    expect_refused(&command("init", &repo).run(), &["there is a repository already"]);
    let nothing = source.dir("nothing");
    for name in ["list", "verify"] {
        expect_refused(&command(name, &nothing).run(), &["there is no repository", "pgstrata init"]);
    }
    expect_refused(&command("init", Path::new("https://bucket/x")).run(), &["\"https:\" are not supported"]);
    expect_refused(&backup(&source, &nothing).run(), &["there is no repository"]);
    for compression in ["gzip", "zstd:99", "server-zstd", "zstd:workers=2", "lz4:9"] {
        backup(&source, &repo).args(["-Z", compression]).run().expect_failure();
    }
    expect_refused(&restore(&source, &repo, &source.dir("x")).run(), &["\"main\" has no backup"]);
    backup(&source, &repo).run().expect_success();
    let unknown =
        restore(&source, &repo, &source.dir("x")).args(["--backup", "20200101T000000Z-00000000"]).run();
    expect_refused(&unknown, &["has no backup 20200101T000000Z-00000000"]);
    // Another system may not have the name, and leaves nothing under it.
    let packs = names(&repo.join("clusters/main/packs"));
    let another =
        FakeServer::start(Script::version(18).answer("BASE_BACKUP", FakeBackup::honest(18).reply()));
    let refused = faulty_backup(&another.conninfo(), &repo, None).expect_err("another system").to_string();
    let system: String = source.sql().value("SELECT system_identifier FROM pg_control_system()");
    assert!(refused.contains(&format!("it holds backups of system {system}")), "{refused}");
    assert!(refused.contains("another --cluster name"), "{refused}");
    assert_eq!(names(&repo.join("clusters/main/packs")), packs);
    for run in [command("list", &repo).run(), command("show", &repo).args(["--cluster", "main"]).run()] {
        let shown = run.expect_success().stdout_text();
        assert!(shown.contains(&format!("system {system}")), "{shown}");
    }
    let unsafe_name = command("restore", &repo).args(["--cluster", "../main", "--into", "x"]).run();
    assert!(!unsafe_name.status.success(), "{unsafe_name}");
    unsafe_name.expect_stderr("invalid cluster name");
    let full = source.dir("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("file"), b"somebody's").unwrap();
    expect_refused(&restore(&source, &repo, &full).run(), &["exists but is not empty"]);
    assert_eq!(names(&full), ["file"]);
    assert!(!source.dir("x").exists());
}

/// The only backup of a repository: its manifest and its packs.
fn objects(repo: &Path) -> (PathBuf, Vec<PathBuf>) {
    let cluster = repo.join("clusters/main");
    let manifests = names(&cluster.join("backups"));
    assert_eq!(manifests.len(), 1, "{manifests:?}");
    let packs = names(&cluster.join("packs")).iter().map(|name| cluster.join("packs").join(name)).collect();
    (cluster.join("backups").join(&manifests[0]), packs)
}

/// Does something to an object, and undoes it.
fn damaged(path: &Path, damage: impl FnOnce(&mut Vec<u8>), then: impl FnOnce()) {
    let good = fs::read(path).unwrap();
    let mut bad = good.clone();
    damage(&mut bad);
    fs::write(path, bad).unwrap();
    then();
    fs::write(path, good).unwrap();
}

fn open(repo: &Path) -> Result<Repository, Failure> {
    Repository::open(Arc::new(LocalStore::new(repo)))
}

fn check_all(repo: &Path) -> Result<CheckReport, Failure> {
    check(&CheckConfig { repository: open(repo)?, cluster: None, workers: 2 }, &Stop::new())
}

fn restore_config(repo: &Path, target: &Path) -> Result<RestoreConfig, Failure> {
    Ok(RestoreConfig {
        repository: open(repo)?,
        cluster: "main".parse().unwrap(),
        backup: BackupChoice::Latest,
        target: target.to_owned(),
        tablespace_mapping: Vec::new(),
        recovery: None,
        options: RestoreOptions::default(),
        resources: RestoreResources::for_cores(2),
    })
}

/// Restores in this process. Nothing may be left of a restore that failed, and nothing there is to warn of.
fn try_restore(repo: &Path, target: &Path, faults: Option<FaultPlan>) -> Result<RestoreReport, Failure> {
    let mut config = restore_config(repo, target)?;
    config.resources.faults = faults;
    // That files belong to root, whoever restores as root is told.
    let warned = |text: &str| assert!(text.contains("belong"), "{text}");
    let outcome = run_restore(&config, &warned, &Stop::new());
    assert!(outcome.is_ok() || !target.exists(), "something is left");
    outcome
}

#[test]
fn damage_is_named_and_never_passed_on() {
    let source = harness::cluster(15).start();
    let repo = init(&source);
    backup(&source, &repo).run().expect_success();
    let copy = source.dir("copy");
    let (manifest, packs) = objects(&repo);
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let (largest, _) = packs
        .iter()
        .map(|pack| (pack, fs::metadata(pack).unwrap().len()))
        .max_by_key(|(_, size)| *size)
        .unwrap();

    type Damage = fn(&mut Vec<u8>);
    let middle: Damage = |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    let footer: Damage = |bytes| {
        let place = bytes.len() - 100;
        bytes[place] ^= 0x10;
    };
    let cut: Damage = |bytes| bytes.truncate(bytes.len() - 1);
    let stump: Damage = |bytes| bytes.truncate(10);
    let future: Damage = |bytes| bytes[8] = 7;
    let longer: Damage = |bytes| bytes.push(0);
    for (damage, words) in [
        (middle, "found CRC-32C"),
        (footer, "does not match its checksum"),
        (cut, "cut off or overwritten"),
        (longer, "cut off or overwritten"),
        (stump, "found 10 bytes"),
        (future, "format version 7"),
    ] {
        for object in [largest, &manifest] {
            let place = name(object);
            damaged(object, damage, || {
                let finished = restore(&source, &repo, &copy).run();
                expect_refused(&finished, &[&place, words]);
                assert!(!copy.exists());
                expect_refused(&command("verify", &repo).run(), &[&place, words]);
            });
        }
    }
    let aside = source.dir("aside");
    fs::rename(largest, &aside).unwrap();
    expect_refused(&restore(&source, &repo, &copy).run(), &[&name(largest), "it is missing"]);
    expect_refused(&command("verify", &repo).run(), &[&name(largest), "it is missing"]);
    // A pack of the same repository in its place is another.
    let other = packs.iter().find(|pack| *pack != largest).expect("WAL has packs of its own");
    fs::copy(other, largest).unwrap();
    expect_refused(&restore(&source, &repo, &copy).run(), &[&name(largest), "which are not the"]);
    fs::rename(&aside, largest).unwrap();
    fs::rename(&manifest, &aside).unwrap();
    let other_name = manifest.with_file_name("20200101T000000Z-00000000.manifest");
    fs::copy(&aside, &other_name).unwrap();
    expect_refused(&restore(&source, &repo, &copy).run(), &["it is backup "]);
    expect_refused(&command("list", &repo).run(), &["it is backup "]);
    fs::remove_file(other_name).unwrap();
    fs::rename(&aside, &manifest).unwrap();
    let head = repo.join("pgstrata-repository.00000000");
    damaged(&head, future, || expect_refused(&command("list", &repo).run(), &["newer pgstrata"]));
    damaged(&head, middle, || expect_refused(&command("list", &repo).run(), &[&name(&head)]));

    // What is lost or strange beside the backups.
    let identity = repo.join("clusters/main/identity.00000000");
    let stray = manifest.with_file_name("20261126T070051Z.manifest");
    fs::write(&stray, b"?").unwrap();
    expect_refused(&command("verify", &repo).run(), &[&name(&stray), "no name of a backup"]);
    fs::remove_file(stray).unwrap();
    fs::rename(&manifest, &aside).unwrap();
    expect_refused(&command("verify", &repo).run(), &["packs and no backup"]);
    fs::rename(&aside, &manifest).unwrap();
    fs::rename(&identity, &aside).unwrap();
    for run in [command("verify", &repo).run(), backup(&source, &repo).run()] {
        expect_refused(&run, &["identity.00000000", "it is missing, and there are backups"]);
    }
    fs::rename(&aside, &identity).unwrap();

    // One bit anywhere in anything.
    let whole = check_all(&repo).expect("whole");
    assert_eq!(whole.problem_count, 0, "{whole:?}");
    for (number, object) in [&head, &manifest, &identity].into_iter().chain(&packs).enumerate() {
        let length = fs::metadata(object).unwrap().len();
        for step in 0..6 {
            let place = usize::try_from((length - 1) * step / 5).unwrap();
            damaged(
                object,
                |bytes| bytes[place] ^= 1 << (step % 8),
                || {
                    let context = format!("byte {place} of {length} in {}", object.display());
                    let found = match check_all(&repo) {
                        Ok(report) => report.problems.join("\n"),
                        Err(failure) => failure.to_string(),
                    };
                    assert!(found.contains(&name(object)), "{context}: {found:?}");
                    if (step == 3 || number == 0) && *object != identity {
                        let refused = try_restore(&repo, &copy, None);
                        let refused = refused.map(|_| ()).expect_err(&context).to_string();
                        assert!(refused.contains(&name(object)), "{context}: {refused}");
                    }
                },
            );
        }
    }
    try_restore(&repo, &copy, None).expect("whole again");
    expect_verified(&copy, 15);
    harness::compare(&source, &source.boot(&copy));
}

#[test]
fn a_backup_that_dies_leaves_the_others_and_itself_nowhere() {
    let source = harness::cluster(15).with(Workload::empty().large_table_mib(16)).start();
    let repo = init(&source);
    backup(&source, &repo).run().expect_success();
    let packs = repo.join("clusters/main/packs");
    let before = names(&packs);
    for signal in [Signal::TERM, Signal::KILL] {
        let running = anew(&source, &repo).args(["-r", "4M"]).spawn();
        harness::wait_until("the next backup's first pack", || names(&packs).len() > before.len());
        running.signal(signal);
        running.wait().expect_killed_by(signal);
        assert_eq!(names(&repo.join("clusters/main/backups")).len(), 1);
        if signal == Signal::TERM {
            assert_eq!(names(&packs), before);
            assert_eq!(names(&repo.join("staging")), Vec::<String>::new());
        }
        command("verify", &repo).run().expect_success();
    }
    // What a kill left is in nobody's way.
    backup(&source, &repo).run().expect_success();
    let copy = source.dir("copy");
    restore(&source, &repo, &copy).run().expect_success();
    expect_verified(&copy, 15);
    harness::compare(&source, &source.boot(&copy));

    // Data that the server finds damaged is no evidence here: its WAL does not stay. Its complete packs do, as after any
    // failure, and make no backup.
    let state = || [names(&repo.join("clusters/main/backups")), names(&repo.join("staging"))];
    let (before, packs_before) = (state(), names(&packs));
    source.corrupt_page("bulk.large", 3);
    let refused = anew(&source, &repo).run();
    refused.expect_failure().expect_stderr("checksum error occurred").expect_stderr("are kept");
    assert_eq!(state(), before);
    let after = names(&packs);
    let new: Vec<_> = after.iter().filter(|name| !packs_before.contains(name)).collect();
    assert!(!new.is_empty());
    for name in new {
        assert!(fs::read(packs.join(name)).unwrap().ends_with(b"ATARTSGP"), "{name} is not complete");
    }
    command("verify", &repo).run().expect_success();
}

fn faulty_backup(conninfo: &str, repo: &Path, faults: Option<FaultPlan>) -> Result<Report, Failure> {
    let mut resources = Resources::for_cores(4);
    (resources.buffers, resources.buffer_size, resources.depth) = (24, 64 << 10, 8);
    resources.faults = faults;
    let destination = Destination::Repository(RepositoryDestination {
        repository: open(repo)?,
        cluster: "main".parse().unwrap(),
        compression: FrameCompression::Lz4,
        pack_size: PACK_SIZE,
        reuse: ReuseConfig { from: ReuseFrom::Nothing, ..ReuseConfig::default() },
        changes: ChangesWanted::Full,
    });
    // Nothing that anybody would want to hear, but for what a failed backup leaves.
    let warned = |text: &str| assert!(text.contains("are kept: the next backup"), "{text}");
    run_backup(&backup_config(conninfo, destination, resources), warned)
}

#[test]
fn every_operation_of_the_ring_may_fail() {
    let scratch = Scratch::new();
    let repo = scratch.join("repo");
    Repository::init(Arc::new(LocalStore::new(&repo))).expect("made");
    // Of all lengths around those of buffers, blocks and small files; half of them the same twice.
    let buffer = 64 << 10;
    let sizes = [0, 1, 8191, 8192, 8193, buffer - 1, buffer, 131_071, 131_072, 131_073, 300_000, 1_000_000];
    let mut fake = FakeBackup::honest(18);
    for (number, size) in sizes.into_iter().cycle().take(36).enumerate() {
        let seed = u64::try_from(number / 4).unwrap();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56).to_le_bytes()[0]
        };
        let content: Vec<u8> = (0..size).map(|_| byte()).collect();
        fake = fake.with(Member::file(format!("base/1/{}", 20_000 + number), content));
    }
    // Named as what a restore holds back, and as good as any other.
    let held = ["backup_manifest.tmp", "global/pg_control.pgstrata"];
    for path in held {
        fake = fake.with(Member::file(path, path.as_bytes().to_vec()));
    }
    let server = FakeServer::start(Script::version(18).answer("BASE_BACKUP", fake.reply()));
    let short_and_late = FaultPlan::new(1).short_writes().reorder();
    faulty_backup(&server.conninfo(), &repo, Some(short_and_late.clone())).expect("only late");
    let state = |repo: &Path| [names(&repo.join("clusters/main/backups")), names(&repo.join("staging"))];
    let before = state(&repo);
    for kind in [FaultKind::Write, FaultKind::Sync] {
        let count = short_and_late.seen(kind);
        assert!(count > 1, "{count} {kind:?}");
        // How often writes are cut short, and over how many packs lanes share the data, differs from run to run.
        for nth in if kind == FaultKind::Sync { vec![0, 1] } else { vec![0, count / 8, count / 4] } {
            let plan = FaultPlan::new(2).short_writes().fail(kind, nth, 5);
            let failure =
                faulty_backup(&server.conninfo(), &repo, Some(plan)).expect_err("it failed").to_string();
            assert!(failure.contains("packs/") && failure.contains("Input/output error"), "{failure}");
            assert_eq!(state(&repo), before, "{kind:?} {nth}");
        }
    }
    assert_eq!(check_all(&repo).expect("readable").problem_count, 0);

    let copy = scratch.join("copy");
    let plan = FaultPlan::new(3).short_writes().reorder();
    try_restore(&repo, &copy, Some(plan.clone())).expect("only late");
    harness::check_manifest(&copy).unwrap_or_else(|error| panic!("{error:#}"));
    for path in held {
        assert_eq!(fs::read(copy.join(path)).unwrap(), path.as_bytes());
    }
    assert!(copy.join("global/pg_control").exists() && copy.join("backup_manifest").exists());
    let held_back = |name: &String| name.starts_with("backup_manifest.tmp.") || name.contains(".pgstrata.");
    assert!(!names(&copy).iter().chain(&names(&copy.join("global"))).any(held_back));
    fs::remove_dir_all(&copy).unwrap();
    for kind in [FaultKind::Write, FaultKind::Sync] {
        let count = plan.seen(kind);
        for nth in [0, count / 8, count / 4] {
            let plan = FaultPlan::new(4).short_writes().fail(kind, nth, 28);
            let failure =
                try_restore(&repo, &copy, Some(plan)).map(|_| ()).expect_err("it failed").to_string();
            assert!(failure.contains("No space left") && failure.contains("/copy"), "{failure}");
        }
    }
}
