//! SIGINT and SIGTERM at any moment: the run dies of that signal, and leaves nothing behind.

use std::time::{Duration, Instant};

use pgstrata_tests as harness;
use pgstrata_tests::fake::{FakeServer, Reply, Script, Step};
use pgstrata_tests::{Action, Direction, Fault, Interposer, Source, Workload};
use rustix::process::Signal;

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// When a signal is sent.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So many bytes of a connection have come.
    Bytes { connection: usize, count: u64 },
    /// So much time after everything has come.
    Behind(Duration),
    /// So much time after the start.
    After(Duration),
}

fn backup(source: &Source, network: &Interposer, arguments: &[&str]) -> harness::Invocation {
    let conninfo = network.conninfo(source);
    let mut run =
        harness::pgstrata(["basebackup", "-c", "fast", "-d", &conninfo, "-D"]).arg(source.dir("copy"));
    for argument in arguments {
        run = run.arg(argument);
    }
    run.limit(Duration::from_secs(60))
}

#[test]
fn signals_at_random_moments_leave_nothing() {
    let source = harness::cluster(17).wal_segsize_mb(1).with(Workload::empty().rows(200)).start();
    let dir = source.dir("copy");
    let network = Interposer::before(&source, &[]);
    let finished = backup(&source, &network, &[]).run();
    finished.expect_success();
    std::fs::remove_dir_all(&dir).expect("a copy");
    let (whole, took) = (network.passed(0, Direction::ToClient), finished.wall);
    let wal = network.passed(1, Direction::ToClient);

    let mut random = Random(20);
    let mut died = 0;
    let mut late = Vec::new();
    for number in 0..40 {
        let moment = match number % 4 {
            0 | 1 => Moment::Bytes { connection: 0, count: random.below(whole) },
            2 => Moment::After(
                took.mul_f64(f64::from(u32::try_from(random.below(1000)).unwrap_or(0)) / 1000.0),
            ),
            _ if number % 8 == 3 => Moment::Bytes { connection: 1, count: random.below(wal / 2) },
            _ => Moment::Behind(Duration::from_micros(random.below(20_000))),
        };
        // A few bytes from the start: in the greeting, and in the wait for the checkpoint.
        let moment =
            if number < 8 { Moment::Bytes { connection: 0, count: random.below(2_000) } } else { moment };
        let signal = if number % 2 == 0 { Signal::INT } else { Signal::TERM };
        let format = if number % 3 == 0 { "-Ft" } else { "-Fp" };
        let network = Interposer::before(&source, &[]);
        let running = backup(&source, &network, &[format]).spawn();
        match moment {
            Moment::Bytes { connection, count } => {
                network.wait_for_passed(connection, Direction::ToClient, count);
            }
            Moment::Behind(time) => {
                network.wait_for_passed(0, Direction::ToClient, whole - 100);
                std::thread::sleep(time);
            }
            Moment::After(time) => std::thread::sleep(time),
        }
        running.signal(signal);
        let signalled = Instant::now();
        let finished = running.wait();
        assert!(signalled.elapsed() < Duration::from_secs(30), "{moment:?}: slow to end: {finished}");
        assert!(!finished.stderr_text().contains("panicked"), "{moment:?}: {finished}");
        if finished.status.success() {
            // It came too late: then the backup is whole.
            if format == "-Fp" {
                harness::check_manifest(&dir).unwrap_or_else(|error| panic!("{moment:?}: {error:#}"));
            }
            late.push(moment);
            std::fs::remove_dir_all(&dir).expect("a copy");
        } else {
            finished.expect_killed_by(signal);
            assert!(!dir.exists(), "{moment:?}: {} is still there: {finished}", dir.display());
            died += 1;
        }
    }
    harness::expect_forgotten(&source);
    eprintln!("{died} of 40 died; too late: {late:?}");
    assert!(died >= 30, "{died} of 40 died; too late: {late:?}");
}

#[test]
fn signals_end_every_wait() {
    // A server that never greets, one that is never ready, and one whose network stands still.
    let scratch = harness::Scratch::new();
    let dir = scratch.join("copy");
    for signal in [Signal::INT, Signal::TERM] {
        for script in [
            Script::version(18).welcome(Reply::default().then(Step::Stall)),
            Script::version(18).answer("IDENTIFY_SYSTEM", Reply::default().then(Step::Stall)),
            Script::version(18).answer("CREATE_REPLICATION_SLOT", Reply::default().then(Step::Stall)),
        ] {
            let fake = FakeServer::start(script);
            let running = harness::pgstrata(["basebackup", "-d", &fake.conninfo(), "-D"])
                .arg(&dir)
                .limit(Duration::from_secs(60))
                .spawn();
            let started = Instant::now();
            while fake.connections() == 0 {
                assert!(started.elapsed() < Duration::from_secs(30), "nobody connects");
                std::thread::yield_now();
            }
            running.signal(signal);
            running.wait().expect_killed_by(signal);
            assert!(!dir.exists());
        }
    }
}

#[test]
fn signals_end_the_wait_for_a_checkpoint() {
    let builder = harness::cluster(18).setting("checkpoint_timeout", "1h").setting("autovacuum", "off");
    let source = builder.with(Workload::empty().rows(500)).start();
    let sql = source.sql();
    for signal in [Signal::INT, Signal::TERM] {
        sql.execute(
            "CREATE TABLE IF NOT EXISTS dirty (v text);
             INSERT INTO dirty SELECT repeat('x', 900) FROM generate_series(1, 3000)",
        );
        let network = Interposer::before(&source, &[]);
        let dir = source.dir("copy");
        let running = harness::pgstrata(["basebackup", "-d", &network.conninfo(&source), "-D"])
            .arg(&dir)
            .limit(Duration::from_secs(60))
            .spawn();
        let started = Instant::now();
        while sql
            .rows("SELECT 1 FROM pg_stat_progress_basebackup WHERE phase LIKE 'waiting for checkpoint%'")
            .is_empty()
        {
            assert!(started.elapsed() < Duration::from_secs(30), "no backup waits for a checkpoint");
            std::thread::sleep(Duration::from_millis(10));
        }
        running.signal(signal);
        running.wait().expect_killed_by(signal);
        assert!(!dir.exists());
        // The server's own process waits on, until there is a checkpoint.
        sql.execute("CHECKPOINT");
        harness::expect_forgotten(&source);
    }
}

#[test]
fn a_second_signal_ends_a_cleanup_that_hangs() {
    let source = harness::cluster(18).start();
    // The third connection is the one that drops the slot: it hangs.
    let network = Interposer::before(&source, &[Fault::on(2, 0, Action::Stall)]);
    let dir = source.dir("copy");
    let running = backup(&source, &network, &["-r", "8M", "-C", "-S", "mine"]).spawn();
    network.wait_for_passed(0, Direction::ToClient, 1 << 20);
    running.signal(Signal::INT);
    network.wait_for_stall(2);
    assert!(running.is_running());
    let again = Instant::now();
    running.signal(Signal::INT);
    let finished = running.wait();
    finished.expect_killed_by(Signal::INT);
    assert!(again.elapsed() < Duration::from_secs(5), "{:?}", again.elapsed());
    assert!(!dir.join("global/pg_control").exists());
    drop(network);
    source.sql().execute("SELECT pg_drop_replication_slot('mine')");
    harness::expect_forgotten(&source);
}
