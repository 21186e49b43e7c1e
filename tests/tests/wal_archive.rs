//! The WAL archive of a repository under real servers: archive_command, restore_command, recovery to every kind of target,
//! standbys, and what must never end a recovery.

use std::fs;
use std::path::{Path, PathBuf};

use pgstrata::postmaster::{Server, Unprivileged};
use pgstrata_tests as harness;
use pgstrata_tests::{Finished, Invocation, Source, Sql, sql, unprivileged_pgstrata, wait_until};
use serde_json::Value;

/// A server that archives into a repository of its own account.
struct Archived {
    source: Source,
    repo: PathBuf,
}

impl Archived {
    fn start(major: u32) -> Self {
        let source = harness::cluster(major)
            .wal_segsize_mb(1)
            .setting("archive_mode", "on")
            .setting("log_min_messages", "log")
            .start();
        let archived = Self { repo: source.dir("the repo"), source };
        // Makes the copy of the program that servers can reach.
        unprivileged_pgstrata(archived.source.scratch(), ["--version"]).run().expect_success();
        archived.as_root("init").run().expect_success();
        Unprivileged::resolve().unwrap().own_tree(&archived.repo).unwrap();
        let command = archived.archive_command("main").replace('\'', "''");
        let session = archived.source.sql();
        session.execute(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
        session.execute("SELECT pg_reload_conf()");
        archived
    }

    fn program(&self) -> PathBuf {
        self.source.dir("pgstrata")
    }

    fn archive_command(&self, cluster: &str) -> String {
        format!(
            "{} wal push --repo '{}' --cluster {cluster} %p",
            self.program().display(),
            self.repo.display()
        )
    }

    /// A command as the account that servers run as.
    fn ours<const N: usize>(&self, command: [&str; N]) -> Invocation {
        unprivileged_pgstrata(self.source.scratch(), command).arg("--repo").arg(&self.repo)
    }

    /// The same program as ourselves, who may make folders here.
    fn as_root(&self, command: &str) -> Invocation {
        Invocation::new(&self.program(), [command]).arg("--repo").arg(&self.repo)
    }

    fn back_up(&self, server: &Server) -> Value {
        let run = self.ours(["backup"]).args(["--cluster", "main", "-c", "fast", "--json"]);
        run.args(["-d", &server.conninfo()]).run().expect_success().json_summary()
    }

    fn restore(&self, into: &Path, options: &[&str]) -> Finished {
        self.as_root("restore").args(["--cluster", "main", "--into"]).arg(into).args(options).run()
    }

    fn check(&self) -> Finished {
        self.ours(["wal", "check"]).args(["--cluster", "main", "--json"]).run()
    }

    fn get(&self, name: &str, target: &Path) -> Invocation {
        let run = Invocation::new(&self.program(), ["wal", "get", "--repo"]).arg(&self.repo);
        run.args(["--cluster", "main", "--wait", "0", name]).arg(target)
    }

    fn object(&self, segment: &str) -> PathBuf {
        self.repo.join("clusters/main/wal").join(&segment[..8]).join(&segment[8..16]).join(segment)
    }
}

/// Ends the segment, and waits until it is in the archive.
fn archive_all(server: &Server) -> String {
    let session = sql(server);
    session.execute("CREATE TABLE IF NOT EXISTS filler (x text); INSERT INTO filler VALUES ('x')");
    let name: String = session.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    session.execute("SELECT pg_switch_wal()");
    wait_until(format!("{name} is archived"), || {
        let archived = "SELECT coalesce(max(last_archived_wal), ''), max(failed_count) FROM pg_stat_archiver";
        let row = &session.rows(archived)[0];
        let last = row[0].clone().unwrap();
        assert_eq!(row[1].as_deref(), Some("0"), "{}", server.log_tail(20));
        last.get(..24).is_some_and(|last| last.len() == 24 && last >= &*name)
    });
    name
}

fn fill(session: &Sql, segments: u32) {
    session.execute("CREATE TABLE IF NOT EXISTS filler (x text)");
    for _ in 0..segments {
        session.execute(
            "INSERT INTO filler SELECT repeat(md5(random()::text), 8) FROM generate_series(1, 2500)",
        );
    }
}

fn rows(server: &Server) -> Vec<u32> {
    let rows = sql(server).rows("SELECT i FROM t ORDER BY i");
    rows.into_iter().map(|row| row[0].as_ref().unwrap().parse().unwrap()).collect()
}

fn wait_for_promotion(server: &Server) {
    let session = sql(server);
    wait_until("the server opens", || session.value::<String>("SELECT pg_is_in_recovery()") == "f");
}

#[track_caller]
fn expect_refused(finished: &Finished, status: i32, words: &[&str]) {
    assert_eq!(finished.status.code(), Some(status), "{finished}");
    for word in words {
        finished.expect_stderr(word);
    }
}

#[test]
fn recovery_comes_to_every_kind_of_target() {
    for major in [15, 18] {
        eprintln!("PostgreSQL {major}");
        let archived = Archived::start(major);
        let source = &archived.source;
        let session = source.sql();
        // A target that the copies inherit must not be one too many.
        session.execute("ALTER SYSTEM SET recovery_target_name = 'of an earlier recovery'");
        session.execute("CREATE TABLE t (i int); INSERT INTO t VALUES (0)");
        archived.back_up(source);
        let insert = |number: u32| session.execute(&format!("INSERT INTO t VALUES ({number})"));
        insert(1);
        fill(&session, 3);
        session.execute("CREATE INDEX ON filler (x)");
        // A backup tells its end in seconds; in which of them the target lies must be plain.
        let second = || session.value::<u64>("SELECT extract(epoch FROM clock_timestamp())::bigint");
        let now = second();
        wait_until("another second", || second() > now + 1);
        let time: String = session.value(
            "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'",
        );
        insert(2);
        session.execute("BEGIN");
        insert(3);
        let xid: String = session.value("SELECT pg_current_xact_id()::text::bigint % 4294967296");
        session.execute("COMMIT");
        insert(4);
        let lsn: String = session.value("SELECT pg_current_wal_insert_lsn()");
        fill(&session, 2);
        insert(5);
        session.execute("SELECT pg_create_restore_point('it''s \\here')");
        insert(6);
        archive_all(source);
        archived.back_up(source);
        insert(7);
        archive_all(source);

        let first = archived.ours(["list"]).arg("--json").run().json_summary();
        let first = first["backups"][0]["backup"].as_str().unwrap().to_owned();
        let cases: [(&[&str], bool, u32); 8] = [
            (&["--target", "immediate", "--backup", &first], true, 0),
            (&["--target-time", &time], false, 1),
            (&["--target-xid", &xid, "--backup", &first], true, 3),
            (&["--target-xid", &xid, "--target-exclusive", "--backup", &first], false, 2),
            (&["--target-lsn", &lsn], true, 4),
            (&["--target-name", "it's \\here", "--backup", &first], false, 5),
            (&["--target", "latest", "--backup", &first], true, 7),
            (&["--target", "latest"], true, 7),
        ];
        for (number, (options, promotes, last)) in cases.into_iter().enumerate() {
            let copy = source.dir(&format!("copy {number}"));
            let mut all = options.to_vec();
            if promotes && !options.contains(&"latest") {
                all.extend(["--target-action", "promote"]);
            }
            archived.restore(&copy, &all).expect_success();
            let server = source.boot(&copy);
            if promotes {
                wait_for_promotion(&server);
            } else {
                let paused = sql(&server);
                wait_until("recovery pauses", || {
                    paused.value::<String>("SELECT pg_is_wal_replay_paused()") == "t"
                });
            }
            assert_eq!(rows(&server), (0..=last).collect::<Vec<_>>(), "{major}: {options:?}");
            if promotes {
                harness::amcheck(&server).unwrap_or_else(|error| panic!("{major}: {options:?}: {error:#}"));
            }
            drop(server);
            fs::remove_dir_all(&copy).unwrap();
        }
        let shutdown = source.dir("shutdown");
        archived.restore(&shutdown, &["--target-lsn", &lsn, "--target-action", "shutdown"]).expect_success();
        let cluster = source.adopt(&shutdown).unwrap();
        // It may let sessions in for a moment before.
        if let Ok(server) = cluster.start(&[("fsync", "off"), ("shared_buffers", "32MB")]) {
            wait_until("the server stops at the target", || !server.is_running());
        }
        let log = fs::read_to_string(cluster.log_path()).unwrap();
        assert!(log.contains("recovery stopping") && !log.contains("selected new timeline"), "{log}");
    }
}

/// Starts a copy that archives as well, and waits until it has opened.
fn promoted(archived: &Archived, copy: &Path) -> Server {
    let server = archived.source.boot_with(copy, &[("archive_mode", "on")]);
    wait_for_promotion(&server);
    server
}

#[test]
fn timelines_are_followed_and_standbys_catch_up() {
    let archived = Archived::start(17);
    let session = archived.source.sql();
    session.execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)");
    archived.back_up(&archived.source);
    session.execute("INSERT INTO t VALUES (2)");
    archive_all(&archived.source);
    drop(session);

    // Two switches, each in the middle of a segment.
    let second = archived.source.dir("second");
    archived.restore(&second, &["--target", "latest"]).expect_success();
    let server = promoted(&archived, &second);
    sql(&server).execute("INSERT INTO t VALUES (3)");
    archive_all(&server);
    drop(server);
    let third = archived.source.dir("third");
    archived.restore(&third, &["--target", "latest"]).expect_success();
    let server = promoted(&archived, &third);
    assert_eq!(rows(&server), [1, 2, 3]);
    sql(&server).execute("INSERT INTO t VALUES (4)");
    archive_all(&server);

    for (number, (timeline, expected)) in [
        ("latest", &[1, 2, 3, 4][..]),
        ("3", &[1, 2, 3, 4]),
        ("2", &[1, 2, 3]),
        ("1", &[1, 2]),
        ("current", &[1, 2]),
    ]
    .into_iter()
    .enumerate()
    {
        let copy = archived.source.dir(&format!("copy {number}"));
        archived.restore(&copy, &["--target", "latest", "--target-timeline", timeline]).expect_success();
        let copied = archived.source.boot(&copy);
        wait_for_promotion(&copied);
        assert_eq!(rows(&copied), expected, "{timeline}");
        harness::amcheck(&copied).unwrap_or_else(|error| panic!("{timeline}: {error:#}"));
        drop(copied);
        fs::remove_dir_all(&copy).unwrap();
    }
    let refused =
        archived.restore(&archived.source.dir("x"), &["--target", "latest", "--target-timeline", "9"]);
    expect_refused(&refused, 1, &["no history of timeline 9", "HINT:"]);
    assert!(!archived.source.dir("x").exists());

    let checked = archived.check();
    let report = checked.expect_success().json_summary();
    assert_eq!(report["problems"], Value::Array(Vec::new()), "{report}");
    let along: Vec<u64> = report["windows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|window| window["timeline"].as_u64().unwrap())
        .collect();
    assert_eq!(along, [1, 2, 3], "{report}");

    // From the archive alone, and then by streaming.
    let standby = archived.source.dir("standby");
    let options = ["--standby", "-R", "-d", &server.conninfo()];
    archived.restore(&standby, &options).expect_success();
    let text = fs::read_to_string(standby.join("postgresql.auto.conf")).unwrap();
    assert!(text.contains("\nprimary_conninfo = '") && standby.join("standby.signal").exists(), "{text}");
    let standby = archived.source.boot(&standby);
    wait_until("it catches up", || rows(&standby) == [1, 2, 3, 4]);
    sql(&server).execute("INSERT INTO t VALUES (5)");
    wait_until("the news arrive by streaming", || rows(&standby) == [1, 2, 3, 4, 5]);
    assert_eq!(sql(&standby).value::<String>("SELECT pg_is_in_recovery()"), "t");
}

/// The first whole segment that a server has, copied elsewhere under its name, and changed there.
fn changed_segment(
    archived: &Archived,
    server: &Server,
    name: &str,
    change: impl FnOnce(&mut Vec<u8>),
) -> PathBuf {
    let mut content = fs::read(server.data_dir().join("pg_wal").join(name)).unwrap();
    change(&mut content);
    let folder = archived.source.dir("elsewhere");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn what_must_not_happen_is_refused() {
    let archived = Archived::start(15);
    let session = archived.source.sql();
    session.execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)");
    archived.back_up(&archived.source);
    fill(&session, 2);
    let full: String = session.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    fill(&session, 2);
    let last = archive_all(&archived.source);
    session.execute("INSERT INTO t VALUES (2)");
    let end = archive_all(&archived.source);
    let push = |path: &Path, cluster: &str, more: &[&str]| {
        let run =
            Invocation::new(&archived.program(), ["wal", "push", "--json", "--repo"]).arg(&archived.repo);
        run.args(["--cluster", cluster]).args(more).arg(path).run()
    };
    let wal = archived.source.data_dir().join("pg_wal");

    // The same again is success, whoever asks; anything else is not.
    let again = push(&wal.join(&last), "main", &[]).expect_success().json_summary();
    assert_eq!((&again["was_there"], &again["name"]), (&true.into(), &last.as_str().into()));
    let flip = |bytes: &mut Vec<u8>| {
        let at = bytes.len() - 9;
        bytes[at] ^= 1;
    };
    let object = archived.object(&last);
    let before = fs::read(&object).unwrap();
    let different = changed_segment(&archived, &archived.source, &last, flip);
    expect_refused(&push(&different, "main", &[]), 1, &["a different file of this name", "HINT:"]);
    assert_eq!(fs::read(&object).unwrap(), before);
    // Damage is not taken in unless somebody says so; a file that is not what its name says never is.
    let record = |bytes: &mut Vec<u8>| bytes[500_000..500_010].fill(0xAA);
    let damaged = changed_segment(&archived, &archived.source, &full, record);
    expect_refused(&push(&damaged, "other", &[]), 1, &["WAL record at", "--no-check-wal"]);
    push(&damaged, "other", &["--no-check-wal"]).expect_success();
    let misplaced = damaged.with_file_name("0000000100000000000000AA");
    fs::copy(&damaged, &misplaced).unwrap();
    expect_refused(&push(&misplaced, "other", &["--no-check-wal"]), 1, &["its first page is of"]);
    fs::write(&misplaced, &fs::read(&damaged).unwrap()[..500_000]).unwrap();
    expect_refused(&push(&misplaced, "other", &[]), 1, &["found 500000 bytes, expected 1048576"]);
    // Another system under the same name, be it by a name that is free.
    let foreign = changed_segment(&archived, &archived.source, &end, |bytes| {
        // The long header's system identifier (`xlp_sysid`).
        bytes[24] ^= 1;
    });
    let free = foreign.with_file_name("0000000100000000000000FF");
    let mut content = fs::read(&foreign).unwrap();
    content[8..16].copy_from_slice(&0xFF0_0000_u64.to_le_bytes());
    fs::write(&free, content).unwrap();
    expect_refused(&push(&foreign, "main", &[]), 1, &["a different file of this name"]);
    expect_refused(&push(&foreign, "third", &["--no-check-wal"]), 0, &[]);
    let free = free.with_file_name("00000001000000000000000FF");
    expect_refused(&push(&free, "main", &[]), 1, &["no name of a WAL file"]);
    let other = changed_segment(&archived, &archived.source, &end, |bytes| bytes[24] ^= 1);
    let renamed = archived.object(&end).with_extension("away");
    fs::rename(archived.object(&end), &renamed).unwrap();
    expect_refused(
        &push(&other, "main", &["--no-check-wal"]),
        1,
        &["it holds backups of system", "--cluster"],
    );

    // A gap is named, and neither taken for the end of the log.
    fs::rename(&renamed, archived.object(&end)).unwrap();
    let gone = archived.object(&last);
    let kept = gone.with_extension("kept");
    fs::rename(&gone, &kept).unwrap();
    let checked = archived.check();
    assert_eq!(checked.status.code(), Some(1), "{checked}");
    let report = checked.json_summary();
    assert_eq!(report["gaps"][0]["first"], last.as_str(), "{report}");
    assert_eq!(report["gaps"][0]["timeline"], 1);
    let target = archived.source.dir("RECOVERYXLOG");
    expect_refused(&archived.get(&last, &target).run(), 200, &["is missing, and there is", "wal check"]);
    let refused = archived.restore(&archived.source.dir("x"), &["--target", "latest"]);
    expect_refused(&refused, 1, &["are missing", &last, "Nothing was made"]);
    assert!(!archived.source.dir("x").exists());
    fs::rename(&kept, &gone).unwrap();

    // What is there, what is not, and what is neither.
    let got = archived.get(&last, &target).run();
    got.expect_success();
    assert_eq!(fs::read(&target).unwrap(), fs::read(wal.join(&last)).unwrap());
    fs::remove_file(&target).unwrap();
    for absent in ["0000000100000000000000EE", "00000002.history"] {
        let got = archived.get(absent, &target).run();
        assert_eq!((got.status.code(), got.stderr_text().as_str()), (Some(1), ""), "{got}");
    }
    expect_refused(&archived.get("pg_wal/RECOVERYXLOG", &target).run(), 200, &["no name of a WAL file"]);
    expect_refused(&archived.get(&last, &target).arg("--colour").run(), 200, &["--colour"]);
    let mistaken = Invocation::new(&archived.program(), ["wal", "get", "--repo"]).arg(&archived.repo);
    let mistaken = mistaken.args(["--wait", "0", "--cluster", "mian", &last]).arg(&target).run();
    expect_refused(&mistaken, 200, &["it has no cluster \"mian\""]);
    let good = fs::read(&gone).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&gone, &bad).unwrap();
    fs::remove_dir_all(archived.source.dir("pgstrata-prefetch")).ok();
    expect_refused(&archived.get(&last, &target).run(), 200, &["damaged"]);
    assert!(!target.exists(), "nothing of it is there");
    fs::write(&gone, &good).unwrap();

    // A repository that is out of reach stops recovery, and ends it nowhere.
    let copy = archived.source.dir("copy");
    archived.restore(&copy, &["--target", "latest"]).expect_success();
    let away = archived.repo.with_extension("away");
    fs::rename(&archived.repo, &away).unwrap();
    let command = format!(
        "{} wal get --repo '{}' --cluster main --wait 0 %f %p",
        archived.program().display(),
        archived.repo.display()
    );
    let settings = [("restore_command", command.as_str())];
    let cluster = archived.source.adopt(&copy).unwrap();
    let failed = cluster.start(&[&settings[..], &[("fsync", "off")]].concat());
    assert!(failed.is_err(), "the server must not open");
    let log = fs::read_to_string(cluster.log_path()).unwrap();
    assert!(log.contains("there is no repository") && !log.contains("selected new timeline"), "{log}");
    fs::rename(&away, &archived.repo).unwrap();
    let server = archived.source.boot_with(&copy, &settings);
    wait_for_promotion(&server);
    assert_eq!(rows(&server), [1, 2]);
    // Nothing that was fetched ahead is left.
    assert!(!server.data_dir().join("pg_wal/pgstrata-prefetch").exists());
}

#[test]
fn a_receiver_that_is_killed_leaves_no_gap_and_keeps_the_last_seconds() {
    let source = harness::cluster(18).wal_segsize_mb(1).start();
    let archived = Archived { repo: source.dir("repo"), source };
    unprivileged_pgstrata(archived.source.scratch(), ["--version"]).run().expect_success();
    archived.as_root("init").run().expect_success();
    Unprivileged::resolve().unwrap().own_tree(&archived.repo).unwrap();
    let session = archived.source.sql();
    session.execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)");
    let receive = |interval: &str| {
        let run = archived.ours(["wal", "receive"]).args([
            "--cluster",
            "main",
            "-S",
            "kept",
            "--create-slot",
            "-v",
        ]);
        run.args(["-s", interval, "-d", &archived.source.conninfo()])
    };
    let first = receive("1").spawn();
    first.wait_for_stderr("starting log streaming");
    archived.back_up(&archived.source);
    fill(&session, 3);
    let folder = archived.repo.join("clusters/main/wal/00000001/00000000");
    let whole = || {
        let names = fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().file_name());
        names.filter(|name| !name.to_str().unwrap().contains('.')).count()
    };
    wait_until("a segment is there", || whole() >= 2);
    first.signal(rustix::process::Signal::KILL);
    drop(first.wait());
    fill(&session, 2);
    // The server lets go of a slot only when it notices that its receiver is gone.
    let free = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'kept' AND NOT active";
    wait_until("the slot is free", || session.value::<u32>(free) == 1);
    let second = receive("0").spawn();
    session.execute("INSERT INTO t VALUES (2)");
    let position = session.value::<String>("SELECT pg_current_wal_flush_lsn()");
    let kept = format!("SELECT count(*) FROM pg_replication_slots WHERE restart_lsn >= '{position}'");
    wait_until("all of it is durable", || {
        assert!(second.is_running(), "{}", second.stderr_text());
        session.value::<u32>(&kept) == 1
    });
    second.signal(rustix::process::Signal::KILL);
    drop(second.wait());
    drop(session);
    let report = archived.check().expect_success().json_summary();
    assert_eq!(report["gaps"], Value::Array(Vec::new()), "{report}");
    assert!(report["timelines"][0]["received"].is_string(), "{report}");
    let copy = archived.source.dir("copy");
    archived.restore(&copy, &["--target", "latest"]).expect_success();
    let server = archived.source.boot_with(&copy, &[("archive_mode", "off")]);
    wait_for_promotion(&server);
    assert_eq!(rows(&server), [1, 2]);
}

#[test]
fn expired_backups_take_their_wal_along() {
    let archived = Archived::start(15);
    let (source, session) = (&archived.source, archived.source.sql());
    session.execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)");
    archived.back_up(source);
    fill(&session, 3);
    archive_all(source);
    let newest = archived.back_up(source);
    session.execute("INSERT INTO t VALUES (2)");
    fill(&session, 2);
    archive_all(source);
    let start: String =
        session.value(&format!("SELECT pg_walfile_name('{}')", newest["start_lsn"].as_str().unwrap()));
    let folder = archived.object(&start).parent().unwrap().to_owned();
    let below = || {
        let names =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name[..24] < *start).collect::<Vec<_>>()
    };
    let before = below();
    assert!(before.len() >= 4, "{before:?}");
    let expire = |options: &[&str]| {
        let run =
            archived.ours(["expire"]).args(["--cluster", "main", "--keep", "1", "--json"]).args(options);
        run.run().expect_success().json_summary()["clusters"][0]["wal"].clone()
    };
    // What is young stays, and a dry run says what would go.
    assert_eq!(expire(&[])["files"], 0);
    let planned = expire(&["--dry-run", "--grace", "0s"]);
    assert_eq!(
        (planned["files"].as_u64(), planned["kept_from"].as_str()),
        (Some(before.len() as u64), Some(&*start))
    );
    assert_eq!(below(), before);
    assert_eq!(expire(&["--grace", "0s"])["files"], planned["files"]);
    assert_eq!(below(), Vec::<String>::new());
    archived.check().expect_success();
    archived.ours(["verify"]).run().expect_success();
    let copy = source.dir("copy");
    archived.restore(&copy, &["--target", "latest"]).expect_success();
    let server = source.boot(&copy);
    wait_for_promotion(&server);
    assert_eq!(rows(&server), [1, 2]);
}
