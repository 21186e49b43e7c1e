//! Copies that become standbys, backups that standbys give, replication slots, and timelines beyond the first.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pgstrata::postmaster::{Auth, PasswordMethod, Server};
use pgstrata_tests as harness;
use pgstrata_tests::{Manifest, Relocation, Source, Workload, basebackup, sql, wait_until};

/// Before the typed archives of 15, with them, and with the manifests of 17 and later.
const WIRES: [u32; 3] = [14, 15, 18];

/// The versions of [`WIRES`] that run here and were asked for.
fn each_wire(body: impl Fn(u32)) {
    for major in harness::majors().into_iter().filter(|major| WIRES.contains(major)) {
        eprintln!("PostgreSQL {major}");
        body(major);
    }
}

fn source(major: u32) -> Source {
    let workload = Workload::empty().rows(200);
    harness::cluster(major).with(workload).setting("log_replication_commands", "on").start()
}

/// Takes a backup that a server can start from, in either format. Tar is unpacked beside it.
fn take(source: &Source, server: &Server, name: &str, format: &str, options: &[&str]) -> PathBuf {
    let (copy, taken) = (source.dir(name), source.dir(&format!("{name}.tar")));
    let target = if format == "p" { &copy } else { &taken };
    let run = basebackup(server).arg("-D").arg(target).args(["-N", "-F", format]).args(options);
    run.run().expect_success();
    if format == "t" {
        Relocation::of(&[], &copy).unpack(&taken, &copy);
    }
    copy
}

/// Waits until `standby` streams from `primary`, and until what the primary writes now can be read there.
fn expect_streaming(primary: &Server, standby: &Server) {
    let (here, there) = (sql(primary), sql(standby));
    assert_eq!(there.value::<String>("SELECT pg_is_in_recovery()"), "t");
    wait_until("the standby streams", || {
        let state = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walreceiver' AND state = 'streaming'";
        here.value::<u32>(state) == 1
    });
    here.execute("CREATE TABLE IF NOT EXISTS news (i int); INSERT INTO news SELECT count(*) FROM news");
    let expected: u32 = here.value("SELECT count(*) FROM news");
    wait_until("the news arrive", || {
        there.value::<String>("SELECT to_regclass('news') IS NOT NULL") == "t"
            && there.value::<u32>("SELECT count(*) FROM news") == expected
    });
}

fn settings(copy: &Path) -> String {
    fs::read_to_string(copy.join("postgresql.auto.conf")).unwrap()
}

/// The names of the slots, with those that a session uses in brackets.
fn slots(server: &Server) -> BTreeSet<String> {
    let rows = sql(server).rows(
        "SELECT CASE WHEN active THEN '[' || slot_name || ']' ELSE slot_name END FROM pg_replication_slots",
    );
    rows.into_iter().map(|row| row[0].clone().unwrap()).collect()
}

#[test]
fn a_copy_with_recovery_settings_is_a_standby() {
    each_wire(|major| {
        let source = source(major);
        sql(&source).execute("ALTER SYSTEM SET work_mem = '5MB'");
        sql(&source).execute("SELECT pg_create_physical_replication_slot('made_before')");
        let cases: [(&str, &[&str], Option<&str>); 4] = [
            ("p", &["-R"], None),
            ("p", &["-R", "-S", "made_before"], Some("made_before")),
            ("t", &["-R", "-C", "-S", "made_now"], Some("made_now")),
            ("t", &["-R", "-X", "fetch"], None),
        ];
        for (number, (format, options, slot)) in cases.into_iter().enumerate() {
            let copy = take(&source, &source, &format!("copy {number}"), format, options);
            assert_eq!(fs::read(copy.join("standby.signal")).unwrap(), b"");
            let text = settings(&copy);
            let (kept, added) = (text.find("work_mem = '5MB'"), text.find("\nprimary_conninfo = '"));
            assert!(kept.is_some() && kept < added, "{text}");
            assert!(text.contains(&format!(" port={} ", source.port())), "{text}");
            assert!(!text.contains("replication=") && !text.contains("fallback_application_name"), "{text}");
            let line = slot.map(|slot| format!("\nprimary_slot_name = '{slot}'\n"));
            assert_eq!(text.contains("primary_slot_name"), slot.is_some(), "{text}");
            assert!(line.is_none_or(|line| text.contains(&line)), "{text}");
            Manifest::check(&copy);
            harness::verify_backup(&copy, major).expect_good();

            let standby = source.boot(&copy);
            expect_streaming(&source, &standby);
            assert!(harness::differences(&source, &standby).unwrap().differences.is_empty());
            if let Some(slot) = slot {
                assert!(slots(&source).contains(&format!("[{slot}]")), "{:?}", slots(&source));
            }
        }
    });
}

#[test]
fn a_standby_logs_in_with_the_password_of_its_backup() {
    let password = "it's \\ a 'secret'".to_owned();
    let auth = Auth::Password { method: PasswordMethod::ScramSha256, password };
    let source = harness::cluster(15).auth(auth).start();
    let copy = take(&source, &source, "copy", "p", &["-R"]);
    expect_streaming(&source, &source.boot(&copy));
}

#[test]
fn slots_are_used_made_and_left_out() {
    each_wire(|major| {
        let source = source(major);
        let session = sql(&source);
        session.execute("SELECT pg_create_physical_replication_slot('kept')");
        // Options, the slots afterwards, and how the WAL was asked for.
        let cases: [(&[&str], &[&str], &str, &str); 4] = [
            (&[], &["kept"], "CREATE_REPLICATION_SLOT \"pgstrata_", "START_REPLICATION SLOT \"pgstrata_"),
            (&["--no-slot"], &["kept"], "", "START_REPLICATION PHYSICAL"),
            (&["-S", "kept"], &["kept"], "", "START_REPLICATION SLOT \"kept\""),
            (
                &["-C", "-S", "made"],
                &["kept", "made"],
                "CREATE_REPLICATION_SLOT \"made\" PHYSICAL",
                "START_REPLICATION SLOT \"made\"",
            ),
        ];
        for (number, (options, left, created, started)) in cases.into_iter().enumerate() {
            let seen = source.replication_commands().len();
            take(&source, &source, &format!("copy {number}"), "t", options);
            let commands = source.replication_commands().split_off(seen);
            let creation = commands.iter().find(|command| command.starts_with("CREATE_REPLICATION_SLOT"));
            match creation {
                Some(command) => assert!(!created.is_empty() && command.starts_with(created), "{command}"),
                None => assert!(created.is_empty(), "{commands:?}"),
            }
            let temporary = creation.is_some_and(|command| command.contains(" TEMPORARY "));
            assert_eq!(temporary, options.is_empty(), "{creation:?}");
            assert!(commands.iter().any(|command| command.starts_with(started)), "{options:?}: {commands:?}");
            wait_until("the sessions of the backup are gone", || {
                session.value::<u32>("SELECT count(*) FROM pg_stat_replication") == 0
            });
            assert_eq!(slots(&source), left.iter().map(|name| (*name).to_owned()).collect(), "{options:?}");
        }
        // Both hold the WAL since the backups that they were used for.
        let held = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical' AND restart_lsn IS NOT NULL AND NOT temporary";
        assert_eq!(session.value::<u32>(held), 2);
    });
}

#[test]
fn a_failed_backup_leaves_the_slots_as_they_were() {
    each_wire(|major| {
        let source = source(major);
        sql(&source).execute("SELECT pg_create_physical_replication_slot('kept')");
        source.corrupt_page("data.texts", 0);
        let fails = ["-N", "--no-verify-checksums", "--check-pages"];
        let copy = source.dir("copy");
        for (options, expected) in [
            (&["-C", "-S", "made"][..], "pages have wrong checksums"),
            (&["-S", "kept"], "pages have wrong checksums"),
            (&[], "pages have wrong checksums"),
            (&["-C", "-S", "kept"], "replication slot \"kept\" already exists"),
            (&["-S", "absent"], "replication slot \"absent\" does not exist"),
            (&["-C", "-S", "No Slot"], "replication slot name \"No Slot\" contains invalid character"),
        ] {
            let finished = basebackup(&source).arg("-D").arg(&copy).args(fails).args(options).run();
            finished.expect_failure().expect_stderr(expected);
            assert!(!copy.exists(), "{finished}");
            let session = sql(&source);
            wait_until("the sessions of the backup are gone", || {
                session.value::<u32>("SELECT count(*) FROM pg_stat_replication") == 0
            });
            assert_eq!(slots(&source), ["kept".to_owned()].into(), "{finished}");
        }
    });
}

#[test]
fn status_is_reported_as_often_as_asked() {
    let source = source(15);
    let session = sql(&source);
    for (interval, reports) in [("1", true), ("0", false)] {
        // As slow as a server can be asked to send.
        let copy = source.dir("copy");
        let run = basebackup(&source).arg("-D").arg(&copy).args(["-N", "-r", "32k", "-s", interval]).spawn();
        let sent = || -> u64 {
            session.value("SELECT coalesce(max(backup_streamed), 0) FROM pg_stat_progress_basebackup")
        };
        wait_until("data flows", || sent() > 0);
        let replied = || -> u64 {
            session.value(
                "SELECT coalesce(max(extract(epoch FROM reply_time) * 1000000), 0)::bigint
                 FROM pg_stat_replication WHERE state = 'streaming'",
            )
        };
        if reports {
            let mut times = BTreeSet::new();
            wait_until("reports come without new WAL", || {
                times.insert(replied());
                times.len() > 3
            });
        } else {
            let first = replied();
            let from = sent();
            wait_until("three seconds' worth of data flow", || sent() > from + 3 * 32 * 1024);
            assert_eq!(replied(), first);
        }
        run.signal(rustix::process::Signal::INT);
        run.wait().expect_killed_by(rustix::process::Signal::INT);
        assert!(!copy.exists());
        wait_until("the sessions of the backup are gone", || {
            session.value::<u32>("SELECT count(*) FROM pg_stat_replication") == 0
        });
    }
}

#[test]
fn a_promoted_server_is_backed_up_on_its_own_timeline() {
    each_wire(|major| {
        let source = source(major);
        let standby = take(&source, &source, "standby", "p", &["-R"]);
        let promoted = source.boot_with(&standby, &[("wal_keep_size", "512MB")]);
        expect_streaming(&source, &promoted);
        let session = sql(&promoted);
        assert_eq!(session.value::<String>("SELECT pg_promote()"), "t");
        session.execute("CREATE TABLE on_timeline_2 AS SELECT i FROM generate_series(1, 1000) AS i");
        let writer = harness::Writer::start(&promoted.socket_conninfo(), 1);
        writer.wait_for(20);
        for (format, method) in [("p", "stream"), ("t", "stream"), ("p", "fetch")] {
            let before = writer.acknowledged();
            let name = format!("copy {format} {method}");
            let copy = take(&source, &promoted, &name, format, &["-X", method]);
            let history = fs::read(promoted.data_dir().join("pg_wal/00000002.history")).unwrap();
            assert_eq!(fs::read(copy.join("pg_wal/00000002.history")).unwrap(), history);
            assert!(copy.join("pg_wal/archive_status/00000002.history.done").exists());
            let manifest = Manifest::check(&copy);
            assert!(manifest.wal_ranges.iter().all(|(timeline, ..)| *timeline == 2), "{manifest:?}");
            harness::verify_backup(&copy, major).expect_good();
            let server = source.boot(&copy);
            let copied = sql(&server);
            assert_eq!(copied.value::<u32>("SELECT timeline_id FROM pg_control_checkpoint()"), 2);
            assert_eq!(copied.value::<u32>("SELECT count(*) FROM on_timeline_2"), 1000);
            let last: u64 = copied.value("SELECT max(n) FROM churn_1.ledger");
            assert!(before <= last && last <= writer.acknowledged() + 1, "{before} {last}");
            assert!(harness::differences(&promoted, &server).unwrap().differences.is_empty());
        }
        let _ = writer.stop();
    });
}

#[test]
fn a_standby_is_backed_up_while_it_follows_its_primary() {
    each_wire(|major| {
        let source = source(major);
        let standby = take(&source, &source, "standby", "p", &["-R"]);
        let standby = source.boot_with(&standby, &[("wal_keep_size", "512MB")]);
        expect_streaming(&source, &standby);
        let writer = source.writer(1);
        writer.wait_for(50);
        for (format, method) in [("p", "stream"), ("t", "stream"), ("p", "fetch"), ("t", "fetch")] {
            let name = format!("copy {format} {method}");
            let copy = take(&source, &standby, &name, format, &["-X", method]);
            Manifest::check(&copy);
            harness::verify_backup(&copy, major).expect_good();
            let label = fs::read_to_string(copy.join("backup_label")).unwrap();
            assert!(label.contains("BACKUP FROM: standby"), "{label}");
            // It is a standby as its source is one, and follows the same primary.
            let second = source.boot(&copy);
            let (here, there) = (sql(&source), sql(&second));
            wait_until("both standbys stream", || {
                here.value::<u32>("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == 2
            });
            writer.wait_for_more(20);
            let last = writer.acknowledged();
            wait_until("the second standby has it all", || {
                there.value::<u64>("SELECT max(n) FROM churn_1.ledger") >= last
            });
        }
        // With -R it follows the one that it was taken from.
        let copy = take(&source, &standby, "cascaded", "t", &["-R"]);
        let text = settings(&copy);
        let last = text.lines().rfind(|line| line.starts_with("primary_conninfo")).unwrap_or_default();
        assert!(last.contains(&format!(" port={} ", standby.port())), "{text}");
        let third = source.boot(&copy);
        wait_until("the third standby streams from the first", || {
            sql(&standby).value::<u32>("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
                == 1
        });
        let ledger = writer.stop();
        let done = ledger.acknowledged();
        let there = sql(&third);
        wait_until("the third standby has it all", || {
            there.value::<u64>("SELECT max(n) FROM churn_1.ledger") == done
        });
        ledger.check(&there, done);

        // Without its signal it stands on its own, with all that the backup needs.
        let copy = take(&source, &standby, "alone", "p", &[]);
        fs::remove_file(copy.join("standby.signal")).unwrap();
        let alone = source.boot(&copy);
        assert_eq!(sql(&alone).value::<String>("SELECT pg_is_in_recovery()"), "f");
        ledger.check(&sql(&alone), done);
    });
}
