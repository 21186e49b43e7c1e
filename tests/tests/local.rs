//! Backups that read the data directory itself: what they hold, what they refuse, and that nobody else notices them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgstrata::postmaster::{Server, Shutdown};
use pgstrata::repository::{BackupChoice, LocalStore, Repository};
use pgstrata_tests as harness;
use pgstrata_tests::repositories::{self, backup_by, command, expect_refused, expect_verified, init};
use pgstrata_tests::{Invocation, Source, Workload, basebackup, sql, wait_until};
use rustix::process::Signal;
use serde_json::Value;

/// What a run may hold, with the defaults.
const MEMORY: u64 = 128 << 20;

fn backup(server: &Server, repo: &Path) -> Invocation {
    backup_by(&server.socket_conninfo(), repo)
}

/// A backup of the data directory of the server.
fn local(server: &Server, repo: &Path) -> Invocation {
    backup(server, repo).arg("-D").arg(server.cluster().data_dir())
}

/// Restores the latest backup beside its source, tablespaces too.
fn restore(source: &Source, repo: &Path, name: &str) -> PathBuf {
    let into = source.dir(name);
    repositories::restore(source, repo, &into).run().expect_success();
    into
}

/// Manifests, and what lies in staging. Complete packs of a failed backup are kept for the next, and make none.
fn objects(repo: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["clusters/main/backups", "staging"] {
        let entries = fs::read_dir(repo.join(folder)).into_iter().flatten();
        found.extend(entries.map(|entry| entry.unwrap().path()));
    }
    found.sort();
    found
}

/// Paths with permission bits, owner and, for files whose content stands still, their sizes.
type Listing = BTreeMap<Vec<u8>, (u32, Option<(u32, u32)>, Option<u64>)>;

/// The folders and files of the latest backup, and its tablespaces.
fn listing(repo: &Path) -> (Listing, Vec<(u32, Vec<u8>)>, String) {
    let repository = Repository::open(Arc::new(LocalStore::new(repo))).expect("opened");
    let manifest = repository.backup(&"main".parse().unwrap(), BackupChoice::Latest).expect("a backup");
    let mut found = Listing::new();
    let owners = &manifest.summary.owners;
    let mut add = |path: Vec<u8>, mode: u32, owner: u16, size: Option<u64>| {
        let owner = owners.get(usize::from(owner).wrapping_sub(1)).map(|owner| (owner.uid, owner.gid));
        assert!(found.insert(path, (mode, owner, size)).is_none(), "a path comes twice");
    };
    manifest
        .each_folder(|folder| {
            add(folder.path, folder.mode, folder.owner, None);
            Ok(())
        })
        .expect("folders");
    manifest
        .each_file(|file| {
            // Which segments there are is another thing.
            let is_wal = file.path.starts_with(b"pg_wal/");
            let moves = [&b"backup_label"[..], b"backup_manifest"].contains(&&*file.path);
            if !is_wal {
                add(file.path, file.mode, file.owner, (!moves).then_some(file.size));
            }
            Ok(())
        })
        .expect("files");
    let spaces = manifest.summary.tablespaces.iter().map(|one| (one.oid, one.location.clone())).collect();
    (found, spaces, manifest.summary.source.clone())
}

#[test]
fn the_same_files_as_the_stream_brings() {
    harness::each_major(|major| {
        let workload =
            Workload::empty().rows(50).tablespaces(1).unlogged().temporary().odd_names().special_files();
        // In-place tablespaces, from where they are known in all minor versions.
        let workload = if major >= 15 { workload.in_place_tablespace() } else { workload };
        let cluster = harness::cluster(major).with(workload).setting("autovacuum", "off");
        let cluster = if major >= 15 { cluster.setting("allow_in_place_tablespaces", "on") } else { cluster };
        let cluster = if major < 15 { cluster.setting("stats_temp_directory", "pg_stat") } else { cluster };
        let source = cluster.start();
        let repo = init(&source);
        // What a server leaves out, wherever it lies.
        for path in ["backup_label.old", "pgsql_tmp.left", "current_logfiles.tmp", "base/pgsql_tmp4711.0"] {
            fs::write(source.data_dir().join(path), path).unwrap();
        }
        fs::create_dir(source.data_dir().join("empty")).unwrap();
        for path in
            ["empty", "backup_label.old", "pgsql_tmp.left", "current_logfiles.tmp", "base/pgsql_tmp4711.0"]
        {
            let mode = if path == "empty" { 0o755 } else { 0o644 };
            fs::set_permissions(source.data_dir().join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        sql(&source).execute("CHECKPOINT");
        backup(&source, &repo).run().expect_success();
        let (streamed, spaces, source_name) = listing(&repo);
        assert_eq!(source_name, "stream");
        let run = local(&source, &repo).run();
        let summary = run.expect_success().json_summary();
        assert!(run.peak_memory < MEMORY, "{run}");
        let (read, read_spaces, source_name) = listing(&repo);
        assert_eq!((source_name.as_str(), &summary["source"]), ("local", &Value::from("local")));
        assert_eq!(spaces, read_spaces);
        let differing: Vec<_> = streamed
            .iter()
            .filter(|(path, facts)| read.get(*path) != Some(*facts))
            .map(|(path, facts)| (path, Some(facts), read.get(path)))
            .chain(
                read.iter()
                    .filter(|(path, _)| !streamed.contains_key(*path))
                    .map(|(path, facts)| (path, None, Some(facts))),
            )
            .map(|(path, streamed, read)| format!("{}: {streamed:?} {read:?}", path.escape_ascii()))
            .collect();
        assert!(differing.is_empty(), "{differing:#?}");
        assert!(read.contains_key(&b"backup_label.old"[..]) && !read.contains_key(&b"pgsql_tmp.left"[..]));
        if major < 15 {
            return;
        }
        let copy = restore(&source, &repo, "copy");
        expect_verified(&copy, major);
        assert_eq!(source.check_files(&copy), Vec::<String>::new());
        // The manifest is ours; PostgreSQL's own program has to believe it.
        if major >= 17
            && let Some(complete) = harness::complete(major)
        {
            Invocation::new(&complete.tool("pg_verifybackup"), [&copy]).run().expect_success();
        }
        harness::compare(&source, &source.boot_with(&copy, &[("allow_in_place_tablespaces", "on")]));
    });
}

#[test]
fn under_load_what_was_committed_comes_back() {
    for (major, checksums) in [(14, true), (18, false)] {
        if !harness::majors().contains(&major) {
            continue;
        }
        eprintln!("PostgreSQL {major}");
        let workload = Workload::small().large_table_mib(40);
        let source = harness::cluster(major).checksums(checksums).with(workload).start();
        let repo = init(&source);
        // It creates, drops, truncates and rewrites tables all the time.
        let writer = source.writer(1);
        writer.wait_for(5);
        let before = writer.acknowledged();
        let run = local(&source, &repo).args(["-r", "60M", "--workers", "3"]).run();
        let summary = run.expect_success().json_summary();
        assert!(run.peak_memory < MEMORY, "{run}");
        assert_eq!(summary["pages_checked"], checksums);
        assert!(summary["seconds"]["data"].as_f64().unwrap() > 0.6, "{summary}");
        for io in ["threads", "auto"] {
            let run =
                local(&source, &repo).args(["--io", io, "-Z", "lz4", "--manifest-checksums", "sha256"]).run();
            assert_eq!(run.expect_success().json_summary()["checksum_algorithm"], "SHA256");
        }
        let ledger = writer.stop();
        let latest = restore(&source, &repo, "copy");
        expect_verified(&latest, major);
        let server = source.boot(&latest);
        ledger.check(&sql(&server), before);
        harness::amcheck(&server).unwrap_or_else(|error| panic!("{major}: {error:#}"));
        drop(server);
        command("verify", &repo).run().expect_success();
        // The same small files share frames again: the third backup adds what the second compressed alike.
        local(&source, &repo).run().expect_success();
        let copy = restore(&source, &repo, "idle");
        expect_verified(&copy, major);
        harness::compare(&source, &source.boot(&copy));
    }
}

#[test]
fn a_standby_gives_its_own_files() {
    let source = harness::cluster(16).with(Workload::empty().rows(200)).start();
    let copy = source.dir("standby");
    basebackup(&source).args(["-N", "-R", "-D"]).arg(&copy).run().expect_success();
    let standby = source.boot_with(&copy, &[("wal_keep_size", "512MB")]);
    let repo = init(&source);
    let writer = source.writer(1);
    writer.wait_for(20);
    // A standby's directory is not its primary's, nor the other way round.
    for (asked, read) in [(&*source, &copy), (&standby, &source.data_dir().to_owned())] {
        let run = backup(asked, &repo).arg("-D").arg(read).run();
        expect_refused(&run, &["is not the data directory of the server", "port"]);
    }
    assert_eq!(objects(&repo), Vec::<PathBuf>::new());
    let seen: u64 = sql(&standby).value("SELECT coalesce(max(n), 0) FROM churn_1.ledger");
    local(&standby, &repo).run().expect_success();
    let ledger = writer.stop();
    let copy = restore(&source, &repo, "copy");
    expect_verified(&copy, 16);
    let label = fs::read_to_string(copy.join("backup_label")).unwrap();
    assert!(label.contains("BACKUP FROM: standby"), "{label}");
    // A restore leaves its signal out: it stands on its own, with all that the backup needs.
    assert!(!copy.join("standby.signal").exists());
    ledger.check(&sql(&source.boot(&copy)), seen);
}

#[test]
fn another_directory_is_refused() {
    let mut source = harness::cluster(15).start();
    let repo = init(&source);
    let from = |dir: &Path| backup(&source, &repo).arg("-D").arg(dir);
    let nothing = source.dir("nothing");
    expect_refused(&from(&nothing).run(), &["could not read", "pg_control"]);
    // A copy of the directory, with the postmaster's file and all.
    let copy = source.dir("copy");
    let copied = std::process::Command::new("cp").arg("-a").args([source.data_dir(), &copy]).status();
    assert!(copied.expect("cp").success());
    expect_refused(&from(&copy).run(), &["is not the data directory of the server", "last checkpoint"]);
    fs::remove_file(copy.join("postmaster.pid")).unwrap();
    expect_refused(&from(&copy).run(), &["no server runs in"]);
    let control = fs::read(copy.join("global/pg_control")).unwrap();
    for (damage, words) in [(4usize, "its checksum is"), (8, "its version is")] {
        let mut damaged = control.clone();
        damaged[damage] ^= 1;
        fs::write(copy.join("global/pg_control"), damaged).unwrap();
        expect_refused(&from(&copy).run(), &[words]);
    }
    // Another cluster, another system.
    let other = harness::cluster(15).own_identity().start();
    expect_refused(&from(other.data_dir()).run(), &["its system identifier is"]);

    let session = sql(&source);
    session.execute("CREATE ROLE taker LOGIN REPLICATION");
    let taker = source.socket_conninfo().replace("user=postgres", "user=taker");
    assert!(taker.contains("user=taker"), "{taker}");
    let as_taker = || {
        let run = command("backup", &repo).args(["--cluster", "main", "-c", "fast", "-d", &taker]);
        run.arg("-D").arg(source.data_dir())
    };
    expect_refused(&as_taker().run(), &["may not execute pg_catalog.pg_backup_start", "GRANT EXECUTE"]);
    session.execute(
        "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO taker",
    );
    as_taker().run().expect_success();
    for (options, words) in [
        (&["--source", "local"][..], "--source local needs --pgdata"),
        (&["--source", "stream", "-D", "/"], "reads no data directory"),
    ] {
        expect_refused(&backup(&source, &repo).args(options).run(), &[words]);
    }
    let source_dir = source.data_dir().to_owned();
    let reached = backup(&source, &repo).args(["--source", "local", "-D"]);
    let link = source.dir("link");
    symlink(&source_dir, &link).unwrap();
    reached.arg(&link).run().expect_success();

    // A directory that may not be read.
    let open = source.dir("open");
    let run = harness::unprivileged_pgstrata(source.scratch(), ["init", "--repo"]).arg(&open).run();
    if run.status.success() {
        let closed = source.dir("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let run = harness::unprivileged_pgstrata(source.scratch(), ["backup", "--cluster", "main", "--repo"]);
        let run = run.arg(&open).args(["-d", &source.socket_conninfo(), "-D"]).arg(&closed).run();
        if rustix::process::geteuid().is_root() {
            expect_refused(&run, &["could not read", "--allow-group-access"]);
        }
    }
    source.stop(Shutdown::Fast);
}

#[test]
fn damaged_pages_are_named_and_make_no_backup() {
    let source = harness::cluster(17).with(Workload::empty().rows(2_000)).start();
    let repo = init(&source);
    let run = command("backup", &repo).args(["--cluster", "main", "-c", "fast", "-d"]);
    let run = run.arg(source.socket_conninfo()).arg("-D").arg(source.data_dir()).run();
    run.expect_success()
        .expect_stderr("  verified     page checksums; the manifest was made here, with CRC32C\n");
    let before = objects(&repo);
    let path = source.corrupt_page("data.numbers", 3);
    let run = local(&source, &repo).run();
    let named = format!("{}: block 3: page checksum found", path.display());
    expect_refused(&run, &["1 pages have wrong checksums", &named]);
    assert_eq!(objects(&repo), before);
    local(&source, &repo).arg("--no-verify-checksums").run().expect_success();
    command("verify", &repo).run().expect_success();
}

/// The sessions that hold a backup open, or stream its WAL.
fn sessions(server: &Server) -> u32 {
    sql(server).value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgstrata'")
}

#[test]
fn a_backup_dies_with_its_session_and_leaves_the_server_alone() {
    let source = harness::cluster(15).with(Workload::empty().rows(2_000).large_table_mib(20)).start();
    let repo = init(&source);
    let control = sql(&source);
    let packs = || fs::read_dir(repo.join("clusters/main/packs")).map_or(0, Iterator::count);
    let begin = || {
        let before = packs();
        let run = local(&source, &repo).args(["-r", "4M", "-Z", "none", "--reuse", "none"]).spawn();
        wait_until("packs are written", || packs() > before);
        run
    };
    // The session that holds it open is ended.
    let run = begin();
    control.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE application_name = 'pgstrata' AND backend_type = 'client backend'",
    );
    let finished = run.wait();
    expect_refused(&finished, &["the session that holds the backup open was lost"]);
    assert_eq!(objects(&repo), Vec::<PathBuf>::new());
    // A signal.
    let run = begin();
    run.signal(Signal::TERM);
    run.wait().expect_killed_by(Signal::TERM);
    assert_eq!(objects(&repo), Vec::<PathBuf>::new());
    // A kill: what it left is garbage, and the server ends the backup.
    let run = begin();
    run.signal(Signal::KILL);
    run.wait().expect_killed_by(Signal::KILL);
    assert!(!repo.join("clusters/main/backups").read_dir().is_ok_and(|mut found| found.next().is_some()));
    wait_until("its sessions are gone", || sessions(&source) == 0);
    control.execute("CREATE TABLE after AS SELECT 1; CHECKPOINT");
    local(&source, &repo).run().expect_success();
    command("verify", &repo).run().expect_success();
    let copy = restore(&source, &repo, "copy");
    harness::compare(&source, &source.boot(&copy));
}

/// The table's files, as they are called in the data directory.
fn path_of(server: &Server, table: &str) -> String {
    sql(server).value(&format!("SELECT pg_relation_filepath('{table}')"))
}

#[test]
fn files_change_under_the_reader() {
    let source = harness::cluster(18).with(Workload::empty().rows(500).large_table_mib(16)).start();
    let repo = init(&source);
    let session = sql(&source);
    let table: String = session.value(
        "SELECT oid::regclass FROM pg_class WHERE relkind = 'r' ORDER BY pg_relation_size(oid) DESC LIMIT 1",
    );
    session.execute(
        "CREATE TABLE grows (i int, t text); CREATE TABLE shrinks AS SELECT i, repeat('x', 500) AS t FROM \
         generate_series(1, 4000) AS i; CREATE TABLE zz_goes AS SELECT 1 AS i; CHECKPOINT",
    );
    let large = path_of(&source, &table);
    let run = local(&source, &repo).args(["-r", "6M", "--workers", "1", "-Z", "none"]).spawn();
    let fds = format!("/proc/{}/fd", run.pid());
    wait_until("the large table is open", || {
        let open = fs::read_dir(&fds).into_iter().flatten().filter_map(Result::ok);
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|path| path.ends_with(&large))
    });
    // The open file is cut, others go, grow and lose their ends; a new tablespace and a database come and go.
    session.execute(&format!("TRUNCATE {table}"));
    session.execute(
        "DROP TABLE zz_goes; INSERT INTO grows SELECT i, repeat('y', 900) FROM generate_series(1, 9000) AS i",
    );
    session.execute("DELETE FROM shrinks WHERE i > 10");
    session.execute("VACUUM shrinks");
    session.execute("CREATE DATABASE passing");
    session.execute("DROP DATABASE passing");
    session.execute("CHECKPOINT");
    assert!(run.is_running(), "the backup ended too early for this test");
    run.wait().expect_success();
    let copy = restore(&source, &repo, "copy");
    expect_verified(&copy, 18);
    harness::compare(&source, &source.boot(&copy));
}

/// Which pages of the files below `dir` the page cache holds.
fn resident(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<bool>>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            resident(&path, found);
            continue;
        }
        let file = File::open(&path).unwrap();
        let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
        if length == 0 {
            continue;
        }
        let mut pages = vec![0u8; length.div_ceil(4096)];
        // SAFETY: a new mapping of `length` bytes of an open file that nobody reads through; mincore writes a byte for
        // each of its pages, for which there is room; the mapping goes before anything else is done.
        unsafe {
            let map = libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(map, libc::MAP_FAILED);
            assert_eq!(libc::mincore(map, length, pages.as_mut_ptr()), 0);
            libc::munmap(map, length);
        }
        found.insert(path, pages.iter().map(|page| page & 1 == 1).collect());
    }
}

#[test]
fn the_page_cache_stays_as_it_was() {
    let source = harness::cluster(17).with(Workload::empty().rows(500).large_table_mib(32)).start();
    let repo = init(&source);
    sql(&source).execute("CHECKPOINT");
    let base = source.data_dir().join("base");
    // Half of each file is dropped from the cache.
    let mut files = BTreeMap::new();
    resident(&base, &mut files);
    rustix::fs::sync();
    for (path, pages) in &files {
        let file = File::open(path).unwrap();
        let half = (pages.len() / 2 * 4096) as u64;
        rustix::fs::fadvise(&file, half, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    resident(&base, &mut before);
    let summary = local(&source, &repo).run().expect_success().json_summary();
    resident(&base, &mut after);
    let count = |pages: &BTreeMap<PathBuf, Vec<bool>>, wanted| {
        pages.values().flatten().filter(|page| **page == wanted).count()
    };
    let io = summary["io_reason"].as_str().unwrap();
    if !io.contains("reading: direct") {
        eprintln!("skipped: no direct I/O here: {io}");
        return;
    }
    assert!(count(&before, true) > 1000 && count(&before, false) > 4000, "the test has something to look at");
    let changed: Vec<_> = before
        .iter()
        .filter(|(path, pages)| after.get(*path) != Some(*pages))
        .map(|(path, _)| path.display().to_string())
        .collect();
    let (gone, come) = (
        count(&before, true).saturating_sub(count(&after, true)),
        count(&after, true).saturating_sub(count(&before, true)),
    );
    // The kernel reclaims some under pressure, and the session reads catalogues; a copy through the cache, or one that
    // drops what it has read, changes nearly all of them.
    let (held, missing) = (count(&before, true), count(&before, false));
    assert!(
        gone < held / 4 && come < missing / 8,
        "{gone} of {held} pages went, {come} of {missing} came: {changed:?}"
    );
}
