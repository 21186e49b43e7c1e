//! The WAL archive of a repository under real servers: archive_command, restore_command, recovery to every kind of target,
//! standbys, and what must never end a recovery.

use std::fs;
use std::path::{Path, PathBuf};

use pgstrata::postmaster::{Server, Shutdown, Unprivileged};
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
            drop(server);
            fs::remove_dir_all(&copy).unwrap();
        }
        // What was fetched ahead is no part of the data directory for long.
        let shutdown = source.dir("shutdown");
        archived.restore(&shutdown, &["--target-lsn", &lsn, "--target-action", "shutdown"]).expect_success();
        assert!(source.try_boot(&shutdown).is_err(), "the server stops at the target");
    }
}
