//! Servers that do not serve: too old, set up for something else, full, or not for us.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use pgstrata::postmaster::Cluster;
use pgstrata_tests as harness;
use pgstrata_tests::fake::{FakeServer, Reply, Script, message};
use pgstrata_tests::{Direction, Finished, Interposer, Source};
use rustix::process::Signal;

fn backup(conninfo: &str, dir: &Path, arguments: &[&str]) -> Finished {
    let mut run = harness::pgstrata(["basebackup", "-N", "-c", "fast", "-d", conninfo, "-D"]).arg(dir);
    for argument in arguments {
        run = run.arg(argument);
    }
    run.limit(Duration::from_secs(60)).run()
}

#[track_caller]
fn expect_refused(source: &Source, arguments: &[&str], words: &[&str]) {
    let dir = source.dir("copy");
    let finished = backup(&source.conninfo(), &dir, arguments);
    finished.expect_failure();
    for word in words {
        finished.expect_stderr(word);
    }
    assert!(!dir.exists(), "{finished}");
}

#[test]
fn servers_that_are_too_old_are_refused_by_name() {
    let scratch = harness::Scratch::new();
    for (version, shown) in
        [("9.6.24", "9.6.24"), ("10.23", "10.23"), ("12.22", "12.22"), ("12.0 (beta)", "12.0")]
    {
        let welcome = [
            message::authentication_ok(),
            message::parameter_status("server_version", version),
            message::ready(),
        ];
        let fake = FakeServer::start(Script::version(12).welcome(Reply::bytes(welcome.concat())));
        let dir = scratch.join("copy");
        let finished = backup(&fake.conninfo(), &dir, &[]);
        finished.expect_failure().expect_stderr(shown).expect_stderr("13").expect_stderr("HINT");
        assert!(!dir.exists() && fake.queries().is_empty(), "{finished}");
    }
}

#[test]
fn servers_that_are_set_up_otherwise_are_refused() {
    let minimal =
        harness::cluster(18).setting("wal_level", "minimal").setting("max_wal_senders", "0").start();
    expect_refused(&minimal, &[], &["max_wal_senders"]);
    harness::expect_forgotten(&minimal);

    // The connection of the data is the only one.
    let single = harness::cluster(18).setting("max_wal_senders", "1").start();
    expect_refused(&single, &[], &["max_wal_senders"]);
    let dir = single.dir("fetched");
    backup(&single.conninfo(), &dir, &["-X", "fetch"]).expect_success();
    harness::expect_forgotten(&single);

    let no_slots = harness::cluster(18).setting("max_replication_slots", "0").start();
    expect_refused(&no_slots, &[], &["max_replication_slots", "pgstrata_"]);
    backup(&no_slots.conninfo(), &no_slots.dir("without"), &["--no-slot"]).expect_success();
    harness::expect_forgotten(&no_slots);

    let unchecked = harness::cluster(18).checksums(false).start();
    expect_refused(&unchecked, &["--check-pages"], &["--check-pages", "data checksums", "HINT"]);
}

#[test]
fn servers_that_do_not_let_us_in_say_so() {
    let source = harness::cluster(18).start();
    let sql = source.sql();
    sql.execute("CREATE ROLE plain LOGIN");
    let dir = source.dir("copy");
    let as_plain = source.conninfo().replace("user=postgres", "user=plain");
    backup(&as_plain, &dir, &[]).expect_failure().expect_stderr("REPLICATION");
    let as_nobody = source.conninfo().replace("user=postgres", "user=nobody_here");
    backup(&as_nobody, &dir, &[]).expect_failure().expect_stderr("nobody_here");

    let hba = source.data_dir().join("pg_hba.conf");
    fs::write(&hba, "local all all trust\nhost all all 127.0.0.1/32 trust\n").expect("it is writable");
    source.signal(Signal::HUP).expect("the server runs");
    // The postmaster reads the file when it gets to it.
    let refused = (0..200).map(|_| backup(&source.conninfo(), &dir, &["-X", "none"])).find(|finished| {
        let _ = fs::remove_dir_all(&dir);
        !finished.status.success()
    });
    refused.expect("it reads the file").expect_failure().expect_stderr("pg_hba.conf");
    assert!(!dir.exists());
    harness::expect_forgotten(&source);
}

#[test]
fn slots_that_cannot_be_had_are_named() {
    let source = harness::cluster(18).start();
    expect_refused(&source, &["-S", "absent"], &["absent", "does not exist"]);
    let sql = source.sql();
    sql.execute("SELECT pg_create_physical_replication_slot('there')");
    expect_refused(&source, &["-C", "-S", "there"], &["there", "already exists"]);
    let kept = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'there'";
    assert_eq!(sql.value::<u32>(kept), 1, "a slot that was there before is not ours to drop");

    // In use by a backup that goes on.
    let (network, dir) = (Interposer::before(&source, &[]), source.dir("first"));
    let conninfo = network.conninfo(&source);
    let first = harness::pgstrata([
        "basebackup",
        "-N",
        "-c",
        "fast",
        "-r",
        "8M",
        "-S",
        "there",
        "-d",
        &conninfo,
        "-D",
    ])
    .arg(&dir)
    .spawn();
    network.wait_for_passed(0, Direction::ToClient, 1 << 20);
    expect_refused(&source, &["-S", "there"], &["there", "active"]);
    first.wait().expect_success();
    harness::check_manifest(&dir).unwrap_or_else(|error| panic!("{error:#}"));
    sql.execute("SELECT pg_drop_replication_slot('there')");
    harness::expect_forgotten(&source);
}

#[test]
fn commands_that_are_refused_are_told_as_the_server_puts_it() {
    let source = harness::cluster(15).start();
    // A folder that the server itself may not read: it finds out while it adds up sizes, or else while it sends.
    let locked = source.data_dir().join("base/locked");
    source.cluster().run_as().create_dir(&locked).expect("a new directory");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).expect("it is ours");
    for (arguments, words) in [
        (&[][..], ["could not initiate base backup", "ERROR:  could not open directory", "base/locked"]),
        (
            &["--no-estimate-size"],
            ["the backup stream broke off", "ERROR:  could not open directory", "base/locked"],
        ),
    ] {
        expect_refused(&source, arguments, &words);
    }
    harness::expect_forgotten(&source);
}

#[test]
fn a_standby_that_is_promoted_meanwhile_ends_the_backup() {
    let source = harness::cluster(18).wal_segsize_mb(1).start();
    let dir = source.dir("standby");
    backup(&source.conninfo(), &dir, &["-R"]).expect_success();
    let standby = Cluster::from_backup(source.program(), &dir).expect("a standby");
    let standby =
        standby.start(&[("max_wal_senders", "10"), ("hot_standby", "on")]).expect("a standby starts");
    let network = Interposer::before(&standby, &[]);
    let copy = source.dir("copy");
    let conninfo = network.conninfo(&standby);
    let running = harness::pgstrata(["basebackup", "-N", "-c", "fast", "-r", "8M", "-d", &conninfo, "-D"])
        .arg(&copy)
        .limit(Duration::from_secs(90))
        .spawn();
    network.wait_for_passed(0, Direction::ToClient, 1 << 20);
    let sql = harness::Sql::connect(&standby.socket_conninfo()).expect("a hot standby");
    sql.execute("SELECT pg_promote(false)");
    let finished = running.wait();
    finished.expect_failure();
    // The server tells it at the end, unless the WAL stream ended with the timeline before that.
    let said = finished.stderr_text();
    assert!(said.contains("standby was promoted") || said.contains("WAL"), "{finished}");
    assert!(!copy.exists(), "{finished}");
    harness::expect_forgotten(&standby);
}
