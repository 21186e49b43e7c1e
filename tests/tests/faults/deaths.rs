//! Servers and walsenders that end while a backup waits for the checkpoint, receives files, or waits for the end.

use std::path::Path;
use std::time::{Duration, Instant};

use pgstrata::postmaster::Shutdown;
use pgstrata_tests as harness;
use pgstrata_tests::{Action, ClusterBuilder, Direction, Fault, Interposer, Running, Source, Sql, Workload};

/// The connection of the data, and that of the WAL.
const MAIN: usize = 0;
const WAL: usize = 1;

/// What ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// The postmaster and all its backends, by SIGKILL.
    Kill,
    Stop(Shutdown),
    /// The walsender that sends the files, by `pg_terminate_backend`.
    MainWalsender,
    /// The one that sends the WAL.
    WalWalsender,
}

const ALL: [Death; 5] = [
    Death::Kill,
    Death::Stop(Shutdown::Immediate),
    Death::Stop(Shutdown::Fast),
    Death::MainWalsender,
    Death::WalWalsender,
];

impl Death {
    /// Strikes, and starts the server again where it went.
    fn strike(self, source: &mut Source) {
        let cluster = match self {
            Death::Kill => source.kill(),
            Death::Stop(mode) => source.stop(mode),
            Death::MainWalsender => return terminate(&source.sql(), "state = 'backup'"),
            Death::WalWalsender => return terminate(&source.sql(), "state <> 'backup'"),
        };
        source.restart(&cluster);
    }
}

fn terminate(sql: &Sql, which: &str) {
    let query = format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication WHERE {which}");
    assert_eq!(sql.value::<u32>(&query), 1, "one walsender with {which}");
}

fn small(major: u32) -> ClusterBuilder {
    harness::cluster(major).wal_segsize_mb(1).setting("autovacuum", "off")
}

fn start(network: &Interposer, source: &Source, dir: &Path, arguments: &[&str]) -> Running {
    let mut run = harness::pgstrata(["basebackup", "-N", "-d", &network.conninfo(source), "-D"]).arg(dir);
    for argument in arguments {
        run = run.arg(argument);
    }
    run.limit(Duration::from_secs(90)).spawn()
}

/// Waits until the server says that a backup is in this phase.
fn wait_for_phase(source: &Source, phase: &str) {
    let (sql, started) = (source.sql(), Instant::now());
    loop {
        let found = sql.rows("SELECT phase FROM pg_stat_progress_basebackup");
        if found.iter().flatten().flatten().any(|found| found == phase) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "no backup was {phase:?}, but {found:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The run has failed with a word for it, and nothing of it is left.
#[track_caller]
fn expect_gone(death: Death, running: Running, source: &Source, dir: &Path) {
    let finished = running.wait();
    finished.expect_failure();
    let said = finished.stderr_text();
    let words = match death {
        Death::WalWalsender => &["WAL receiver: the WAL connection was lost before the backup began"][..],
        Death::MainWalsender => {
            &["terminating connection due to administrator command", "closed the connection"]
        }
        _ => {
            &["closed the connection", "terminating", "reset", "connection to server", "shutting down", "WAL"]
        }
    };
    assert!(words.iter().any(|word| said.contains(word)), "{death:?}: {finished}");
    assert!(!said.contains("pgstrata: error: stopped"), "{death:?}: {finished}");
    assert!(!dir.exists(), "{death:?}: {} is still there: {finished}", dir.display());
    harness::expect_forgotten(source);
}

/// The run has lost its WAL connection, has made it again, and its copy starts.
#[track_caller]
fn expect_reconnected(running: Running, source: &Source, dir: &Path) {
    let finished = running.wait();
    finished
        .expect_success()
        .expect_stderr("warning: WAL receiver: ")
        .expect_stderr("; connecting again for WAL");
    harness::check_manifest(dir).unwrap_or_else(|error| panic!("{error:#}: {finished}"));
    drop(source.boot(dir));
    std::fs::remove_dir_all(dir).expect("it was made");
}

#[test]
fn deaths_within_the_stream() {
    for major in [14, 18] {
        let mut source = small(major).start();
        for death in ALL {
            let (network, dir) = (Interposer::before(&source, &[]), source.dir("copy"));
            let running = start(&network, &source, &dir, &["-c", "fast", "-r", "8M"]);
            network.wait_for_passed(MAIN, Direction::ToClient, 2 << 20);
            death.strike(&mut source);
            match death {
                Death::WalWalsender => expect_reconnected(running, &source, &dir),
                _ => expect_gone(death, running, &source, &dir),
            }
        }
    }
}

#[test]
fn deaths_within_the_wait_for_the_checkpoint() {
    for major in [15, 18] {
        // A spread checkpoint with something to write takes most of an hour here.
        let builder =
            small(major).setting("checkpoint_timeout", "1h").setting("checkpoint_completion_target", "0.9");
        let mut source = builder.with(Workload::empty().rows(500)).start();
        for death in ALL {
            source.sql().execute(
                "CREATE TABLE IF NOT EXISTS dirty (v text);
                 INSERT INTO dirty SELECT repeat('x', 900) FROM generate_series(1, 3000)",
            );
            let (network, dir) = (Interposer::before(&source, &[]), source.dir("copy"));
            let running = start(&network, &source, &dir, &[]);
            wait_for_phase(&source, "waiting for checkpoint to finish");
            death.strike(&mut source);
            // A walsender notices that its client is gone only once it has its checkpoint.
            source.sql().execute("CHECKPOINT");
            expect_gone(death, running, &source, &dir);
        }
    }
}

#[test]
fn deaths_within_the_wait_for_the_archive() {
    // All files are here; the server waits for an archive that never comes.
    let builder = small(17).setting("archive_mode", "on").setting("archive_command", "false");
    let mut source = builder.start();
    for death in &ALL[..4] {
        let (network, dir) = (Interposer::before(&source, &[]), source.dir("copy"));
        let running = start(&network, &source, &dir, &["-c", "fast", "-X", "none", "--stall-timeout", "5"]);
        wait_for_phase(&source, "waiting for wal archiving to finish");
        death.strike(&mut source);
        expect_gone(*death, running, &source, &dir);
    }
}

#[test]
fn deaths_within_the_wait_for_the_last_wal() {
    let mut source = small(16).start();
    for death in [Death::Kill, Death::Stop(Shutdown::Immediate), Death::WalWalsender] {
        // The WAL stream begins, and stands still until the files are all here.
        let network = Interposer::before(&source, &[Fault::on(WAL, 2_000, Action::Stall)]);
        let dir = source.dir("copy");
        let arguments = ["-c", "fast", "-v", "-r", "8M", "--stall-timeout", "15"];
        let running = start(&network, &source, &dir, &arguments);
        // The backup needs more than passes.
        network.wait_for_passed(MAIN, Direction::ToClient, 1 << 20);
        let sql = source.sql();
        sql.execute(
            "CREATE TABLE more AS SELECT repeat('x', 900) FROM generate_series(1, 100); DROP TABLE more",
        );
        network.wait_for_stall(WAL);
        let (waiting, started) =
            ("SELECT count(*) FROM pg_stat_replication WHERE state = 'backup'", Instant::now());
        while sql.value::<u32>(waiting) > 0 {
            assert!(started.elapsed() < Duration::from_secs(60), "the backup does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(sql);
        death.strike(&mut source);
        network.cut_all();
        network.release();
        if death == Death::WalWalsender {
            // The backup is complete on the server, and its WAL is there to be had over another connection.
            expect_reconnected(running, &source, &dir);
        } else {
            // The server is back, but not where it was: that is tried as long as silence is borne.
            let finished = running.wait();
            let said = finished.expect_failure().stderr_text();
            assert!(
                said.contains("error: WAL receiver: the WAL stream broke off: "),
                "{death:?}: {finished}"
            );
            assert!(said.contains("; then connection to server"), "{death:?}: {finished}");
            assert!(!dir.exists(), "{death:?}: {finished}");
        }
        harness::expect_forgotten(&source);
    }
}

#[test]
fn a_slot_that_was_made_goes_with_the_run() {
    let mut source = small(18).start();
    for death in [Death::MainWalsender, Death::WalWalsender] {
        let (network, dir) = (Interposer::before(&source, &[]), source.dir("copy"));
        let running = start(&network, &source, &dir, &["-c", "fast", "-r", "8M", "-C", "-S", "mine"]);
        network.wait_for_passed(MAIN, Direction::ToClient, 1 << 20);
        death.strike(&mut source);
        if death == Death::WalWalsender {
            expect_reconnected(running, &source, &dir);
            // It was made to stay.
            source.sql().execute("SELECT pg_drop_replication_slot('mine')");
        } else {
            expect_gone(death, running, &source, &dir);
        }
    }
    // A server that is gone keeps it; the operator is told.
    let (network, dir) = (Interposer::before(&source, &[]), source.dir("copy"));
    let running = start(&network, &source, &dir, &["-c", "fast", "-r", "8M", "-C", "-S", "mine"]);
    network.wait_for_passed(MAIN, Direction::ToClient, 1 << 20);
    let cluster = source.kill();
    let finished = running.wait();
    finished.expect_failure().expect_stderr("\"mine\"").expect_stderr("pg_drop_replication_slot");
    source.restart(&cluster);
    assert!(!dir.exists(), "{finished}");
    source.sql().execute("SELECT pg_drop_replication_slot('mine')");
    harness::expect_forgotten(&source);
}

#[test]
fn what_no_clean_keeps_starts_no_server() {
    let mut source = small(18).start();
    for format in ["-Fp", "-Ft"] {
        for (passed, death) in [(1 << 20, Death::MainWalsender), (10 << 20, Death::MainWalsender)] {
            let (network, dir) = (Interposer::before(&source, &[]), source.dir("copy"));
            let running = start(&network, &source, &dir, &["-c", "fast", "-r", "16M", "--no-clean", format]);
            network.wait_for_passed(MAIN, Direction::ToClient, passed);
            death.strike(&mut source);
            let finished = running.wait();
            finished.expect_failure().expect_stderr("was not removed");
            harness::expect_unfinished(&dir);
            assert!(dir.read_dir().expect("it was kept").count() > 0, "{finished}");
            if format == "-Fp" && dir.join("PG_VERSION").exists() {
                assert!(source.try_boot(&dir).is_err(), "a server starts from half a backup");
            }
            std::fs::remove_dir_all(&dir).expect("it was kept");
            harness::expect_forgotten(&source);
        }
    }
}
