//! Proves the harness itself: servers of every version, copies that compare equal and copies that do not, and
//! nothing left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use pgstrata::postmaster::{Auth, Cluster, PasswordMethod, PostmasterError, Server, ServerProgram, Shutdown};
use pgstrata_tests as harness;
use pgstrata_tests::fake::{FakeBackup, FakeServer, Script};
use pgstrata_tests::{Interposer, Invocation, Source, Sql, Workload};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// Set in the process that a test starts from its own program, to be killed.
const HOLDER: &str = "PGSTRATA_TEST_HOLDS_A_SERVER";

fn sql(server: &Server) -> Sql {
    Sql::connect(&server.conninfo()).unwrap()
}

/// Whether a process is there, and not merely waiting for its parent to take note of its end.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn copy_directory(from: &Path, to: &Path) {
    assert!(Command::new("cp").args(["-a", "-T"]).args([from, to]).status().unwrap().success());
}

/// Copies a stopped source by `cp`, tablespaces and all.
fn copy_stopped(source: &Source, from: &Cluster) -> Cluster {
    let dir = source.dir("copy");
    copy_directory(from.data_dir(), &dir);
    for tablespace in source.tablespaces() {
        let Some(location) = &tablespace.location else { continue };
        let (moved, link) = (moved(location), dir.join(format!("pg_tblspc/{}", tablespace.oid)));
        copy_directory(location, &moved);
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&moved, &link).unwrap();
    }
    Cluster::from_backup(from.program(), &dir).unwrap()
}

fn moved(location: &Path) -> PathBuf {
    location.with_extension("copy")
}

#[test]
fn every_version_loads_a_workload_and_stops() {
    harness::each_major(|major| {
        let started = Instant::now();
        let mut source = harness::cluster(major).with(Workload::small().small_relations(500)).start();
        assert_eq!(sql(&source).value::<u32>("SHOW server_version_num"), source.program().version.0);
        assert_eq!(sql(&source).value::<u32>("SELECT count(*) FROM data.texts"), 2_000);
        assert_eq!(
            sql(&source).value::<u32>("SELECT count(*) FROM pg_class WHERE relname ~ '^r[0-9]+$'"),
            500
        );
        assert!(Path::new(&source.dir("tablespace 0")).is_dir());
        let (pid, socket_dir) = (source.pid(), source.socket_dir().to_owned());
        eprintln!("  {} is loaded after {:?}", source.program(), started.elapsed());
        source.stop(Shutdown::Fast);
        assert!(!runs(pid));
        assert_eq!(fs::read_dir(socket_dir).unwrap().count(), 1, "only the log remains");
    });
}

#[test]
fn a_copy_of_a_stopped_source_compares_equal_until_it_is_changed() {
    let workload = Workload::small().in_place_tablespace().special_files();
    let mut source = harness::cluster(17).with(workload).start();
    let writer = source.writer(1);
    writer.wait_for(700);
    let ledger = writer.stop();
    let cluster = source.stop(Shutdown::Immediate);
    let copy = copy_stopped(&source, &cluster);
    let unskipped = source.check_files(copy.data_dir());
    assert_eq!(unskipped.len(), 4, "{unskipped:?}");
    for name in ["special.fifo", "special.to-file", "special.to-folder", "special.to-nothing"] {
        fs::remove_file(copy.data_dir().join(name)).unwrap();
    }
    source.restart(&cluster);
    let copy = copy.start(&[]).unwrap();

    let started = Instant::now();
    let comparison = harness::compare(&source, &copy);
    eprintln!("{comparison} after {:?}", started.elapsed());
    assert!(comparison.databases >= 4 && comparison.tables >= 15 && comparison.rows > 10_000, "{comparison}");
    let done = ledger.acknowledged();
    assert_eq!(ledger.check(&sql(&copy), done), done);
    assert!(harness::amcheck(&copy).unwrap() > 200);

    // Each change is found, and only it.
    let other = Sql::connect(&copy.database_conninfo("other")).unwrap();
    let here = sql(&copy);
    for (session, change, undo, expected) in [
        (
            &here,
            "UPDATE data.numbers SET a = a + 1 WHERE id = 70",
            "UPDATE data.numbers SET a = a - 1 WHERE id = 70",
            "table data.numbers",
        ),
        (
            &here,
            "DELETE FROM data.toasted WHERE id = 7",
            "INSERT INTO data.toasted SELECT 7, '', '', ''",
            "table data.toasted",
        ),
        (
            &other,
            "INSERT INTO data.elsewhere VALUES (0, '')",
            "DELETE FROM data.elsewhere WHERE i = 0",
            "database other: table data.elsewhere",
        ),
        (
            &here,
            "INSERT INTO data.unlogged VALUES (1)",
            "TRUNCATE data.unlogged",
            "unlogged table data.unlogged: 1 rows",
        ),
        (&here, "CREATE TABLE data.more ()", "DROP TABLE data.more", "data.more: only in the copy"),
        (
            &here,
            "SELECT setval('data.assigned', 4710)",
            "SELECT setval('data.assigned', 4711)",
            "sequence data.assigned",
        ),
        (&here, "ALTER ROLE reader NOLOGIN", "ALTER ROLE reader LOGIN", "cluster role reader"),
    ] {
        session.execute(change);
        let found = harness::differences(&source, &copy).unwrap();
        // amcheck brought its extension to the copy; that is no table, and must not be taken for a difference.
        assert!(
            found.differences.iter().any(|difference| difference.contains(expected)),
            "{change}: {found}"
        );
        session.execute(undo);
    }
    let odd = copy.data_dir().join("-rf");
    fs::write(&odd, "changed").unwrap();
    assert_eq!(source.check_files(copy.data_dir()).len(), 1);

    for (change, expected) in [
        ("UPDATE churn_1.rows SET v = v || '.' WHERE k = (SELECT max(k) FROM churn_1.rows)", "rows: found"),
        ("DELETE FROM churn_1.ledger WHERE n = 350", "holes"),
        ("DELETE FROM churn_1.ledger WHERE n >= 350", "ends with transaction 349"),
    ] {
        here.execute(change);
        let error = format!("{:#}", ledger.try_check(&here, done).unwrap_err());
        assert!(error.contains(expected), "{change}: {error}");
    }
}

/// The stock client is the measure: what it copies must pass every check that our copies have to pass.
#[test]
fn a_backup_by_the_stock_client_passes_every_check() {
    let stock = |major: &u32| {
        let program = harness::program(*major).ok()?;
        Some((*major, program.companion("pg_basebackup")?))
    };
    let Some((major, client)) = harness::MAJORS.iter().rev().find_map(stock) else {
        eprintln!("skipped: no server here comes with pg_basebackup");
        return;
    };
    let source = harness::cluster(major).with(Workload::small().special_files()).start();
    let writer = source.writer(3);
    writer.wait_for(50);
    let before = writer.acknowledged();
    let (dir, network) = (source.dir("copy"), Interposer::before(&source, &[]));
    let mut run =
        Invocation::new(&client, ["-X", "stream", "-c", "fast", "-d", &network.conninfo(&source), "-D"])
            .arg(&dir);
    for tablespace in source.tablespaces() {
        let location = tablespace.location.as_ref().unwrap();
        run = run.arg("-T").arg(format!("{}={}", location.display(), moved(location).display()));
    }
    run.run().expect_success();
    assert!(network.connections() >= 2, "one for the data, one for the WAL");
    writer.wait_for_more(50);
    let ledger = writer.stop();
    harness::verify_backup(&dir, major).expect_good();
    let copy = source.boot(&dir);
    harness::compare(&source, &copy);
    let last = ledger.check(&sql(&copy), before);
    eprintln!("a copy of {before} to {} transactions holds {last}", ledger.acknowledged());
    harness::amcheck(&copy).unwrap();

    fs::write(dir.join("PG_VERSION"), "12\n").unwrap();
    assert!(matches!(harness::verify_backup(&dir, major), harness::Verdict::Bad(_)));
}

#[test]
fn the_fake_server_is_understood_by_real_clients() {
    let fake = FakeServer::start(Script::version(15).answer("BASE_BACKUP", FakeBackup::honest(15).reply()));
    let session = Sql::connect(&format!("{} dbname=postgres", fake.conninfo())).unwrap();
    assert_eq!(session.rows("IDENTIFY_SYSTEM")[0][1].as_deref(), Some("1"));
    assert!(session.try_rows("DROP EVERYTHING").unwrap_err().to_string().contains("no answer"));
    assert_eq!(fake.queries(), ["IDENTIFY_SYSTEM", "DROP EVERYTHING"]);

    let programs = ServerProgram::installed();
    let Some(client) = programs.iter().find_map(|program| program.companion("pg_basebackup")) else {
        eprintln!("skipped: no pg_basebackup here");
        return;
    };
    let scratch = harness::Scratch::new();
    for major in harness::MAJORS {
        let dir = scratch.join(&major.to_string());
        let location = scratch.join("elsewhere").to_string_lossy().into_owned();
        let members = vec![harness::fake::Member::directory("PG_15_202209061")];
        let backup = FakeBackup::honest(major).with_tablespace("16384", &location, members);
        let fake = FakeServer::start(Script::version(major).answer("BASE_BACKUP", backup.reply()));
        let mapping = format!("{location}={}", scratch.join(&format!("moved {major}")).display());
        let run = Invocation::new(&client, ["-X", "none", "-d", &fake.conninfo(), "-T", &mapping, "-D"])
            .arg(&dir)
            .run();
        if run.stderr_text().contains("incompatible server version") {
            eprintln!("skipped: {} does not talk to PostgreSQL {major}", client.display());
            continue;
        }
        run.expect_success();
        assert_eq!(fs::read(dir.join("base/1/1259")).unwrap().len(), 400_000);
        if let harness::Verdict::Bad(said) = harness::verify_backup(&dir, major) {
            // There is no WAL in it.
            assert!(!said.contains("checksum") && said.contains("WAL parsing failed"), "{said}");
        }
        let cut =
            FakeServer::start(Script::version(major).answer("BASE_BACKUP", backup.reply().cut_after(9_000)));
        let dir = scratch.join("cut");
        let run = Invocation::new(&client, ["-X", "none", "-d", &cut.conninfo(), "-T", &mapping, "-D"])
            .arg(&dir)
            .run();
        run.expect_failure();
    }
}

#[test]
fn the_program_under_test_is_built_and_runs() {
    let run = harness::pgstrata(["--version"]).run();
    run.expect_success();
    assert!(run.stderr.is_empty(), "{run}");
}

#[test]
fn a_killed_server_leaves_no_backend_and_recovers() {
    let mut source = harness::cluster(18).with(Workload::empty().rows(100)).start();
    let writer = source.writer(1);
    writer.wait_for(20);
    let backend: u32 = sql(&source).value("SELECT pg_backend_pid()");
    let waiting = sql(&source);
    let waiting_backend: u32 = waiting.value("SELECT pg_backend_pid()");
    let cluster = source.kill();
    for pid in [backend, waiting_backend] {
        assert!(!runs(pid), "backend {pid} is still there");
    }
    harness::wait_until("the writer has noticed", || writer.has_failed());
    let (ledger, failure) = writer.end();
    assert!(failure.is_some());
    source.restart(&cluster);
    ledger.check(&sql(&source), ledger.acknowledged());
    assert_eq!(sql(&source).value::<u32>("SELECT count(*) FROM data.empty"), 0);
}

#[test]
fn a_damaged_page_is_found_by_the_server() {
    let mut source = harness::cluster(14).with(Workload::empty().rows(5_000)).start();
    let path = source.corrupt_page("data.parts_low", 3);
    // A server that has none of it in memory.
    let cluster = source.stop(Shutdown::Fast);
    source.restart(&cluster);
    let error = sql(&source).try_rows("SELECT count(v) FROM data.parts_low").unwrap_err().to_string();
    assert!(error.contains(&format!("invalid page in block 3 of relation {}", path.display())), "{error}");
}

#[test]
fn options_of_a_cluster_take_effect() {
    let password = |method| Auth::Password { method, password: "o'pen \\sesame".to_owned() };
    for (auth, stored) in [
        (password(PasswordMethod::ScramSha256), "SCRAM-SHA-256$"),
        (password(PasswordMethod::Md5), "md5"),
        (password(PasswordMethod::Clear), ""),
    ] {
        let wal = harness::Scratch::new();
        let wal_dir = wal.join("wal");
        let builder =
            harness::cluster(16).auth(auth).checksums(false).wal_segsize_mb(1).setting("work_mem", "5MB");
        let builder = builder.init(|options| {
            options.group_access = true;
            options.wal_dir = (stored == "md5").then(|| wal_dir.clone());
        });
        let source = builder.start();
        let session = sql(&source);
        for (setting, expected) in [
            ("data_checksums", "off"),
            ("wal_segment_size", "1MB"),
            ("data_directory_mode", "0750"),
            ("work_mem", "5MB"),
            ("wal_level", "replica"),
            ("full_page_writes", "on"),
        ] {
            assert_eq!(session.value::<String>(&format!("SHOW {setting}")), expected, "{setting}");
        }
        let secret: String = session.value("SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'");
        assert!(secret.starts_with(stored), "{secret}");
        let wrong = source.conninfo().replace("sesame", "barley");
        assert!(
            format!("{:#}", Sql::connect(&wrong).unwrap_err()).contains("password authentication failed")
        );
        assert_eq!(wal_dir.exists(), stored == "md5");
    }
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let scratch = harness::Scratch::new();
    let source = harness::cluster(17).start();
    let taken = source.cluster().start(&[]).unwrap_err();
    assert!(matches!(taken, PostmasterError::Died { .. }), "{taken}");
    assert!(taken.to_string().contains("postmaster.pid"), "{taken}");
    assert!(source.is_running(), "the first server is not touched");

    let dir = scratch.join("data");
    fs::create_dir(&dir).unwrap();
    let error = Cluster::from_backup(source.program(), &dir).unwrap_err();
    assert!(matches!(error, PostmasterError::NotACluster { .. }), "{error}");

    let port = source.port();
    let error = harness::cluster(17).start().cluster().start_on(port, &[]).unwrap_err();
    assert!(error.to_string().contains("port"), "{error}");
    let error = harness::cluster(17).setting("wal_level", "maximal").try_start().unwrap_err();
    assert!(format!("{error:#}").contains("maximal"), "{error:#}");
}

#[test]
fn a_server_goes_with_the_process_that_started_it() {
    if std::env::var_os(HOLDER).is_some() {
        let source = harness::cluster(15).start();
        eprintln!("holding {} in {} .", source.pid(), source.scratch().path().display());
        std::thread::park();
    }
    let this = std::env::current_exe().unwrap();
    let test = "a_server_goes_with_the_process_that_started_it";
    let running = Invocation::new(&this, ["--exact", test, "--nocapture"]).env(HOLDER, "1").spawn();
    running.wait_for_stderr("holding ");
    running.wait_for_stderr(" .\n");
    let said = running.stderr_text();
    let (_, said) = said.split_once("holding ").unwrap();
    let (pid, dir) = said.trim_end_matches([' ', '.', '\n']).split_once(" in ").unwrap();
    let postmaster = Pid::from_raw(pid.parse().unwrap()).unwrap();
    let postmaster = rustix::process::pidfd_open(postmaster, PidfdFlags::empty()).unwrap();
    running.signal(Signal::KILL);
    running.wait().expect_killed_by(Signal::KILL);
    let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
    let ended = rustix::event::poll(&mut [PollFd::new(&postmaster, PollFlags::IN)], Some(&limit));
    assert_eq!(ended, Ok(1), "postmaster {pid} outlives its owner");
    // What it left is locked by nobody.
    assert!(Path::new(dir).exists());
    harness::Scratch::sweep();
    assert!(!Path::new(dir).exists());
}
