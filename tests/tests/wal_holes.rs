//! What is missing in a WAL archive, what an earlier run or an earlier recovery has left, and servers that fail over.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pgstrata::postmaster::{Server, Unprivileged};
use pgstrata_tests as harness;
use pgstrata_tests::{Finished, Invocation, Source, Sql, basebackup, sql, unprivileged_pgstrata, wait_until};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A server, and a repository for its WAL.
struct Kept {
    source: Source,
    repo: PathBuf,
}

impl Kept {
    fn start(major: u32, settings: &[(&str, &str)]) -> Self {
        let cluster = harness::cluster(major).wal_segsize_mb(1).setting("wal_keep_size", "64MB");
        let source =
            settings.iter().fold(cluster, |cluster, (name, value)| cluster.setting(name, value)).start();
        let kept = Self { repo: source.dir("repo"), source };
        unprivileged_pgstrata(kept.source.scratch(), ["--version"]).run().expect_success();
        kept.init(&kept.repo);
        kept
    }

    fn init(&self, repo: &Path) {
        Invocation::new(&self.program(), ["init", "--repo"]).arg(repo).run().expect_success();
        Unprivileged::resolve().unwrap().own_tree(repo).unwrap();
    }

    fn program(&self) -> PathBuf {
        self.source.dir("pgstrata")
    }

    /// A command as the account that servers run as.
    fn ours<const N: usize>(&self, command: [&str; N]) -> Invocation {
        let run = unprivileged_pgstrata(self.source.scratch(), command);
        run.arg("--repo").arg(&self.repo).args(["--cluster", "main"])
    }

    /// Receives until so much is here, once.
    fn receive(&self, server: &Server, until: u64) -> Invocation {
        let run = self.ours(["wal", "receive"]).args(["-v", "-n", "-s", "0", "-S", "kept", "--create-slot"]);
        run.args(["-E", &lsn(until), "-d", &server.conninfo()])
    }

    fn push(&self, server: &Server, segment: u64) -> Finished {
        let path = server.data_dir().join("pg_wal").join(name(1, segment));
        self.ours(["wal", "push"]).args(["-j", "1"]).arg(path).run()
    }

    fn check(&self) -> (i32, Value) {
        let checked = self.ours(["wal", "check"]).arg("--json").run();
        (checked.status.code().unwrap(), checked.json_summary())
    }

    fn get(&self, segment: &str, target: &Path) -> Invocation {
        self.ours(["wal", "get"]).args(["--wait", "0", segment]).arg(target)
    }

    fn folder(&self, timeline: u32) -> PathBuf {
        self.repo.join(format!("clusters/main/wal/{timeline:08X}/00000000"))
    }

    /// The numbers of whole segments that are there.
    fn whole(&self, timeline: u32) -> Vec<u64> {
        let names = fs::read_dir(self.folder(timeline)).into_iter().flatten();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut whole: Vec<_> = names
            .filter(|name| !name.contains('.'))
            .map(|name| u64::from_str_radix(&name[16..], 16).unwrap())
            .collect();
        whole.sort_unstable();
        whole
    }

    fn back_up(&self, server: &Server) -> String {
        let run = self.ours(["backup"]).args(["-c", "fast", "--json", "-d", &server.conninfo()]);
        run.run().expect_success().json_summary()["backup"].as_str().unwrap().to_owned()
    }

    /// Has the slot hold WAL from the present segment on.
    fn hold(&self, session: &Sql) -> u64 {
        let first = next_segment(session);
        session.execute("CHECKPOINT");
        session.execute("SELECT pg_create_physical_replication_slot('kept', true)");
        first
    }

    fn restore(&self, into: &Path, options: &[&str]) -> Finished {
        let run = Invocation::new(&self.program(), ["restore", "--repo"]).arg(&self.repo);
        run.args(["--cluster", "main", "--into"]).arg(into).args(options).run()
    }
}

fn name(timeline: u32, segment: u64) -> String {
    format!("{timeline:08X}00000000{segment:08X}")
}

fn lsn(position: u64) -> String {
    format!("{:X}/{:X}", position >> 32, position & 0xFFFF_FFFF)
}

fn position(session: &Sql, of: &str) -> u64 {
    session.value(&format!("SELECT ({of} - '0/0')::bigint"))
}

/// Writes on to the next segment, and returns where.
fn next_segment(session: &Sql) -> u64 {
    session.execute("CREATE TABLE IF NOT EXISTS filler (x text); INSERT INTO filler VALUES ('x')");
    session.execute("SELECT pg_switch_wal()");
    position(session, "pg_current_wal_lsn()") / MIB
}

#[track_caller]
fn expect_refused(finished: &Finished, status: i32, words: &[&str]) {
    assert_eq!(finished.status.code(), Some(status), "{finished}");
    for word in words {
        finished.expect_stderr(word);
    }
}

fn wait_for_promotion(server: &Server) {
    let session = sql(server);
    wait_until("the server opens", || session.value::<String>("SELECT pg_is_in_recovery()") == "f");
}

#[test]
fn holes_below_the_end_are_filled_and_nothing_is_taken_on_trust() {
    // Of one the slot is asked by SQL, of the other by replication.
    for major in [14, 18] {
        eprintln!("PostgreSQL {major}");
        let kept = Kept::start(major, &[]);
        let session = kept.source.sql();
        let first = kept.hold(&session);
        let receive = |until: u64| kept.receive(&kept.source, until).run();
        let kept_by_slot =
            || position(&session, "(SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'kept')");
        next_segment(&session);
        receive((first + 1) * MIB - 1).expect_success();
        assert_eq!(kept.whole(1), [first]);

        // A push that runs beside has taken later ones, and left a hole.
        while next_segment(&session) < first + 6 {}
        for pushed in [first + 2, first + 3, first + 5] {
            kept.push(&kept.source, pushed).expect_success();
        }
        let (status, report) = kept.check();
        // Without a backup nothing is needed.
        assert_eq!((status, report["gaps"].as_array().unwrap().len()), (0, 2), "{report}");
        let run = receive((first + 6) * MIB - 1);
        let start = format!("starting log streaming at {} (timeline 1)", lsn((first + 1) * MIB));
        run.expect_success().expect_stderr(&start);
        assert_eq!(kept.whole(1), (first..first + 6).collect::<Vec<_>>());
        assert_eq!(kept.check().1["gaps"], Value::Array(Vec::new()));
        assert!(kept_by_slot() >= (first + 6) * MIB, "{}", kept_by_slot());

        // What is whole is passed over, once it was read: a slot that does not know of it is told.
        while next_segment(&session) < first + 10 {}
        for pushed in first + 6..first + 9 {
            kept.push(&kept.source, pushed).expect_success();
        }
        let object = kept.folder(1).join(name(1, first + 7));
        let good = fs::read(&object).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        fs::write(&object, &bad).unwrap();
        let before = kept_by_slot();
        let refused = receive((first + 10) * MIB - 1);
        expect_refused(&refused, 1, &[&name(1, first + 7), "damaged"]);
        assert_eq!(kept_by_slot(), before, "nothing behind it counts as durable");
        fs::write(&object, &good).unwrap();
        let run = receive((first + 10) * MIB - 1);
        let start = format!("starting log streaming at {} (timeline 1)", lsn((first + 9) * MIB));
        run.expect_success().expect_stderr(&start);
        assert_eq!(kept.whole(1), (first..first + 10).collect::<Vec<_>>());
        for segment in first..first + 10 {
            let target = kept.source.dir("segment");
            kept.get(&name(1, segment), &target).run().expect_success();
            let server = kept.source.data_dir().join("pg_wal").join(name(1, segment));
            assert!(fs::read(&target).unwrap() == fs::read(server).unwrap(), "{segment}");
        }
    }
}

#[test]
fn parts_of_an_earlier_run_are_compared_before_they_count() {
    let kept = Kept::start(17, &[]);
    let session = kept.source.sql();
    let first = next_segment(&session);
    let parts = || {
        let names = fs::read_dir(kept.folder(1)).into_iter().flatten();
        let paths = names.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|end| end == "part")).collect::<Vec<_>>()
    };
    let running = || {
        let run = kept.ours(["wal", "receive"]).args(["-n", "-s", "0", "-S", "kept", "--create-slot"]);
        run.args(["-d", &kept.source.conninfo()]).spawn()
    };
    let durable = || {
        let flushed: String = session.value("SELECT pg_current_wal_flush_lsn()");
        let kept = format!("SELECT count(*) FROM pg_replication_slots WHERE restart_lsn >= '{flushed}'");
        session.value::<u32>(&kept) == 1
    };
    let free = || session.value::<u32>("SELECT count(*) FROM pg_replication_slots WHERE NOT active") == 1;
    let receiver = running();
    session.execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)");
    wait_until("parts are there", || durable() && !parts().is_empty());
    receiver.signal(rustix::process::Signal::KILL);
    drop(receiver.wait());
    wait_until("the slot is free", free);

    // What was kept in good order is gone on with, and is not received into the archive twice.
    let before = parts();
    let receiver = running();
    session.execute("INSERT INTO t VALUES (2)");
    wait_until("it is durable", durable);
    assert!(before.iter().all(|part| part.exists()), "{before:?}");
    receiver.signal(rustix::process::Signal::KILL);
    drop(receiver.wait());
    wait_until("the slot is free", free);

    // What is damaged is told, and received once more.
    let damaged = parts().into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut content = fs::read(&damaged).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&damaged, &content).unwrap();
    let receiver = running();
    receiver.wait_for_stderr("is removed, and received once more");
    session.execute("INSERT INTO t VALUES (3)");
    wait_until("it is durable", durable);
    let target = kept.source.dir("segment");
    let end = usize::try_from(position(&session, "pg_current_wal_flush_lsn()") % MIB).unwrap();
    wait_until("it is durable", durable);
    kept.get(&name(1, first), &target).run().expect_success();
    assert!(end > 0 && fs::read(&target).unwrap()[..end] == server_file(&kept, first)[..end]);
    next_segment(&session);
    wait_until("the segment is whole", || kept.whole(1) == [first]);
    fs::remove_file(&target).unwrap();
    kept.get(&name(1, first), &target).run().expect_success();
    assert!(fs::read(&target).unwrap() == server_file(&kept, first));
    receiver.signal(rustix::process::Signal::INT);
    drop(receiver.wait());
    kept.ours(["verify"]).run().expect_success();
}

fn server_file(kept: &Kept, segment: u64) -> Vec<u8> {
    fs::read(kept.source.data_dir().join("pg_wal").join(name(1, segment))).unwrap()
}

#[test]
fn a_failover_behind_the_receiver_is_followed_and_its_gaps_are_seen() {
    let mut kept = Kept::start(16, &[]);
    let session = kept.source.sql();
    let first = kept.hold(&session);
    kept.back_up(&kept.source);
    let copy = kept.source.dir("standby");
    basebackup(&kept.source).arg("-D").arg(&copy).args(["-N", "-R"]).run().expect_success();
    let left = next_segment(&session);
    let standby = kept.source.boot(&copy);
    let there = sql(&standby);
    wait_until("the standby has it", || {
        position(&there, "coalesce(pg_last_wal_receive_lsn(), '0/0')") / MIB >= left
    });
    drop(there);
    let cluster = standby.cluster().clone();
    drop(standby);
    // What comes now the standby never hears of, and the archive does.
    while next_segment(&session) < left + 4 {}
    kept.receive(&kept.source, (left + 4) * MIB - 1).run().expect_success();
    let old = kept.whole(1);
    assert_eq!(old.last(), Some(&(left + 3)), "{old:?}");
    drop(session);
    drop(kept.source.kill());
    let standby = cluster.start(&[("fsync", "off"), ("shared_buffers", "32MB")]).unwrap();
    sql(&standby).execute("SELECT pg_promote()");
    wait_for_promotion(&standby);
    let session = sql(&standby);
    session.execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)");
    let next = next_segment(&session);
    assert!(next < left + 4, "the new timeline is behind the receiver");
    for reached in [next, next + 1] {
        if reached > next {
            next_segment(&session);
        }
        // The second time the old timeline still has the higher segments.
        let run = kept.receive(&standby, reached * MIB - 1).run();
        run.expect_success().expect_stderr("(timeline 2)");
        assert_eq!(kept.whole(2).last(), Some(&(reached - 1)), "{run}");
    }
    assert_eq!(kept.whole(1), old, "what is the old timeline's stays");
    let (status, report) = kept.check();
    assert_eq!((status, &report["gaps"]), (0, &Value::Array(Vec::new())), "{report}");

    // The end of the old timeline is lost: the history says that there was more.
    let end = kept.whole(2)[0];
    assert!(end > first, "there is a segment before the switch");
    let away = kept.source.dir("away");
    fs::create_dir(&away).unwrap();
    for segment in old.iter().filter(|segment| **segment >= end - 1) {
        fs::rename(kept.folder(1).join(name(1, *segment)), away.join(name(1, *segment))).unwrap();
    }
    for entry in fs::read_dir(kept.folder(1)).unwrap().map(|entry| entry.unwrap()) {
        if entry.file_name().to_str().unwrap().contains(".part") {
            fs::rename(entry.path(), away.join(entry.file_name())).unwrap();
        }
    }
    let target = kept.source.dir("RECOVERYXLOG");
    let refused = kept.get(&name(1, end - 1), &target).run();
    expect_refused(&refused, 200, &["is missing, and there is a history (00000002.history)", "wal check"]);
    assert_eq!(kept.get(&name(1, end), &target).run().status.code(), Some(1));
    let (status, report) = kept.check();
    assert_eq!(status, 1, "{report}");
    let gap = &report["gaps"].as_array().unwrap().iter().find(|gap| gap["harmless"] == false).unwrap();
    assert_eq!((&gap["timeline"], &gap["last"]), (&1.into(), &name(1, end - 1).into()), "{report}");
    let refused = kept.restore(&kept.source.dir("x"), &["--target", "latest"]);
    expect_refused(&refused, 1, &["are missing", &name(1, end - 1), "Nothing was made"]);

    // Another server's timeline 2 is not mixed with this one.
    let history = kept.repo.join("clusters/main/wal/00000002.history");
    let there = fs::read(&history).unwrap();
    let other = kept.source.dir("00000002.history");
    fs::write(&other, "1\t0/1000028\tanother one\n").unwrap();
    fs::remove_file(&history).unwrap();
    let push = kept.ours(["wal", "push"]).args(["-D", standby.data_dir().to_str().unwrap()]);
    push.arg(&other).run().expect_success();
    let refused = kept.receive(&standby, (next + 9) * MIB).run();
    expect_refused(&refused, 1, &["it leads over timeline 1 up to 0/1000028", "two servers were promoted"]);
    fs::write(&history, there).unwrap();
}

#[test]
fn what_an_earlier_recovery_left_does_not_count_and_its_backup_is_kept() {
    let mut kept = Kept::start(15, &[("archive_mode", "on")]);
    let archive =
        format!("{} wal push --repo '{}' --cluster main %p", kept.program().display(), kept.repo.display());
    let session = kept.source.sql();
    let moved = kept.source.dir("moved");
    for (name, value) in [
        ("archive_command", archive.replace('\'', "''")),
        ("recovery_min_apply_delay", "1h".into()),
        ("primary_slot_name", "anothers".into()),
        ("primary_conninfo", "host=/nowhere".into()),
        ("recovery_end_command", format!("touch {}", moved.display())),
        ("archive_cleanup_command", format!("touch {}", moved.display())),
        ("recovery_target_name", "an old one".into()),
    ] {
        session.execute(&format!("ALTER SYSTEM SET {name} = '{value}'"));
    }
    session.execute("SELECT pg_reload_conf(); CREATE TABLE t (i int); INSERT INTO t VALUES (1)");
    let first = kept.back_up(&kept.source);
    session.execute("INSERT INTO t VALUES (2)");
    let second = kept.back_up(&kept.source);
    let last = next_segment(&session) - 1;
    wait_until("the backups' WAL is archived", || kept.whole(1).contains(&last));

    // A line break is refused before anything is made, whatever it is in.
    let copy = kept.source.dir("copy");
    let refused = kept.restore(&copy, &["--target-name", "a\nb"]);
    expect_refused(&refused, 1, &["the restore point's name has a line break", "HINT:"]);
    let refused = kept.restore(&copy, &["--standby", "-R", "-d", "host=a password='x\ny'"]);
    expect_refused(&refused, 1, &["the connection string", "has a line break"]);
    assert!(!refused.stderr_text().contains("x\ny"));
    let run = harness::pgstrata(["basebackup", "-R", "-d", "host=a password='x\ny'", "-D"]);
    let refused = run.arg(&copy).run();
    expect_refused(&refused, 1, &["has a line break"]);
    assert!(!copy.exists());

    // A standby that was given its primary anew keeps that, and nothing else of before.
    let standby = kept.source.dir("standby");
    let restored = kept.restore(&standby, &["--standby", "-R", "-d", &kept.source.conninfo()]);
    restored
        .expect_success()
        .expect_stderr("primary_slot_name, recovery_end_command, recovery_min_apply_delay");
    assert!(!restored.stderr_text().contains("primary_conninfo"), "{restored}");
    let server = kept.source.boot_with(&standby, &[("archive_mode", "off")]);
    let there = sql(&server);
    session.execute("INSERT INTO t VALUES (3)");
    wait_until("news arrive at once", || there.value::<u32>("SELECT count(*) FROM t") == 3);
    assert_eq!(there.value::<String>("SHOW primary_slot_name"), "");
    drop(there);
    drop(server);

    // Recovery to a point before the second backup: what it leads from is the first.
    let restored =
        kept.restore(&copy, &["--target", "immediate", "--target-action", "promote", "--backup", &first]);
    restored.expect_success().expect_stderr("settings of an earlier recovery");
    drop(session);
    drop(kept.source.kill());
    let server = kept.source.boot_with(&copy, &[("archive_mode", "on")]);
    wait_for_promotion(&server);
    assert!(!moved.exists(), "no command of before was run");
    assert_eq!(sql(&server).value::<u32>("SELECT count(*) FROM t"), 1);
    let history = kept.repo.join("clusters/main/wal/00000002.history");
    wait_until("the history is archived", || history.exists());
    let expire = || {
        let run = kept.ours(["expire"]).args(["--keep", "1", "--grace", "0s", "--json"]);
        run.run().expect_success().json_summary()["clusters"][0]["kept"].clone()
    };
    let stays = expire();
    let reasons = |backup: &str| {
        let found = stays.as_array().unwrap().iter().find(|kept| kept["backup"] == backup);
        found.unwrap_or_else(|| panic!("{stays}"))["reasons"].to_string()
    };
    assert_eq!(reasons(&first), r#"["leads_to_newest_timeline"]"#);
    assert_eq!(reasons(&second), r#"["newest","count"]"#);
    let again = kept.source.dir("again");
    kept.restore(&again, &["--target", "latest", "--backup", &first]).expect_success();
    let third = kept.back_up(&server);
    let stays = expire();
    assert_eq!(stays.as_array().unwrap().len(), 1, "{stays}");
    assert_eq!(stays[0]["backup"], third.as_str());
}

#[test]
fn who_outlives_its_server_or_comes_to_another_repository_gives_nothing() {
    let kept = Kept::start(18, &[]);
    let session = kept.source.sql();
    let first = next_segment(&session);
    while next_segment(&session) < first + 4 {}
    for segment in first..first + 3 {
        kept.push(&kept.source, segment).expect_success();
    }
    let (server, target) = (kept.source.dir("pg_wal"), kept.source.dir("pg_wal/RECOVERYXLOG"));
    fs::create_dir(&server).unwrap();
    Unprivileged::resolve().unwrap().own_tree(&server).unwrap();

    // The repository is away until the shell that stands for a server is gone.
    let away = kept.source.dir("away");
    fs::rename(&kept.repo, &away).unwrap();
    let said = kept.source.dir("said");
    let command = format!(
        "'{}' wal get --repo '{}' --cluster main --wait 60 {} '{}'; true",
        kept.program().display(),
        kept.repo.display(),
        name(1, first),
        target.display()
    );
    let stale = kept.source.dir("pg_wal/RECOVERYXLOG.pgstrata.4194305.tmp");
    fs::write(&stale, b"of a dead process").unwrap();
    let mut shell = Command::new("sh")
        .args(["-c", &command])
        .stdout(Stdio::null())
        .stderr(fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    wait_until("it has begun", || !stale.exists());
    shell.kill().unwrap();
    shell.wait().unwrap();
    fs::rename(&away, &kept.repo).unwrap();
    wait_until("it gives up", || fs::read_to_string(&said).unwrap().contains('\n'));
    let names = || fs::read_dir(&server).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    wait_until("its file is gone", || !names().iter().any(|name| name.to_str().unwrap().ends_with(".tmp")));
    assert!(!target.exists(), "{:?}", names());

    // What was fetched ahead from one repository is not given from another at its address.
    kept.get(&name(1, first), &target).run().expect_success();
    fs::remove_file(&target).unwrap();
    let got = |json: &Finished| json.expect_success().json_summary()["got"].as_str().unwrap().to_owned();
    assert_eq!(got(&kept.get(&name(1, first + 1), &target).arg("--json").run()), "spooled");
    fs::remove_file(&target).unwrap();
    fs::rename(&kept.repo, &away).unwrap();
    kept.init(&kept.repo);
    kept.push(&kept.source, first).expect_success();
    let absent = kept.get(&name(1, first + 2), &target).run();
    assert_eq!(absent.status.code(), Some(1), "{absent}");
    assert!(!target.exists());
}
