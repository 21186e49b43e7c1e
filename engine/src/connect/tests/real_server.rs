//! Sessions with an installed server: every way to log in, errors, and ends of connections.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use pgstrata_protocol::replication::{IdentifySystem, ResultSet};
use rustix::process::{Pid, Signal, kill_process};

use super::cluster::Cluster;
use super::{notices, runtimes, settings};
use crate::connect::{ConnectError, ConnectionSettings, Purpose, Reply, Session, SessionError, SqlClient};

fn text(results: &[ResultSet]) -> String {
    String::from_utf8(results[0].rows[0][0].clone().unwrap().to_vec()).unwrap()
}

#[test]
fn sessions_with_a_real_server() {
    let Some(cluster) = Cluster::start() else { return };
    let mut sql = SqlClient::connect(&settings(&cluster.local())).unwrap();
    sql.query(
        "create role trusted login replication;
         create role scram login replication password 'p\u{e4}ss:w\\ord';
         set password_encryption = md5;
         create role md5 login replication password 'md5 secret';
         create role cleartext login replication password 'clear secret'",
    )
    .unwrap();

    logging_in(&cluster);
    errors_leave_the_session_usable(&cluster);
    primary_conninfo_is_what_pg_basebackup_writes(&cluster);
    cancelling_a_query(&cluster, &mut sql);
    ended_by_the_administrator(&cluster, &mut sql);
    a_killed_server_process(&cluster);
}

fn logging_in(cluster: &Cluster) {
    let passwords = [
        ("trusted", None),
        ("cleartext", Some("clear secret")),
        ("md5", Some("md5 secret")),
        ("scram", Some("p\u{e4}ss:w\\ord")),
    ];
    let wrong_file = cluster.secret("wrong", "*:*:*:*:wrong\n");
    let right_file = cluster.secret(
        "right",
        &format!(
            "127.0.0.1:{}:*:cleartext:clear secret\n*:*:replication:md5:md5 secret\n*:*:*:md5:md5 secret\n\
             *:*:*:scram:p\u{e4}ss\\:w\\\\ord\n",
            cluster.port
        ),
    );
    for runtime in runtimes() {
        for purpose in [Purpose::Sql, Purpose::Replication] {
            let connect = |settings: ConnectionSettings| {
                runtime.block_on(async {
                    let mut session = Session::connect(&settings, purpose, notices().0).await?;
                    let query =
                        if purpose == Purpose::Sql { "select current_user" } else { "IDENTIFY_SYSTEM" };
                    let results = session.simple_query(query).await.unwrap();
                    if purpose == Purpose::Sql {
                        assert_eq!(text(&results), settings.user());
                    } else {
                        assert!(IdentifySystem::from_result(&results[0]).unwrap().system_identifier > 0);
                    }
                    session.close().await;
                    Ok::<_, ConnectError>(())
                })
            };
            connect(settings(&cluster.local())).unwrap();
            for (role, password) in passwords {
                let base = settings(&cluster.tcp(role));
                let Some(password) = password else {
                    connect(base).unwrap();
                    continue;
                };
                assert!(
                    matches!(connect(base.clone()), Err(ConnectError::PasswordRequired { .. })),
                    "{role}"
                );
                connect(base.clone().with_password(password.to_owned())).unwrap();
                connect(settings(&format!("{} passfile={}", cluster.tcp(role), right_file.display())))
                    .unwrap();

                let wrong = connect(base.with_password("wrong".to_owned())).unwrap_err();
                assert_eq!(wrong.server_error().unwrap().sqlstate(), "28P01", "{role}");
                assert_eq!(
                    wrong.to_string(),
                    format!(
                        "connection to server at \"127.0.0.1\", port {} failed: \
                         FATAL:  password authentication failed for user \"{role}\"",
                        cluster.port
                    )
                );
                let from_file = settings(&format!("{} passfile={}", cluster.tcp(role), wrong_file.display()));
                let wrong = connect(from_file).unwrap_err().to_string();
                assert!(
                    wrong.ends_with(&format!("password retrieved from file \"{}\"", wrong_file.display())),
                    "{wrong}"
                );
            }
            let refused = connect(settings(&cluster.tcp("nobody_at_all"))).unwrap_err();
            assert!(refused.to_string().contains("no pg_hba.conf entry for "), "{refused}");
        }
    }
}

fn errors_leave_the_session_usable(cluster: &Cluster) {
    let mut sql = SqlClient::connect(&settings(&cluster.local())).unwrap();
    assert!(sql.server_version().major() >= 13);
    let error = sql.query("select 1; select 1/0; select 2").unwrap_err();
    assert_eq!(error.to_string(), "ERROR:  division by zero");
    assert!(matches!(error, SessionError::Server { results, .. } if text(&results) == "1"));
    // A copy that the caller did not expect ends the session's use, not the program.
    let two = sql.query("select 'a'; select 'b', null").unwrap();
    assert_eq!((two.len(), text(&two), two[1].rows[0][1].clone()), (2, "a".to_owned(), None));
    assert!(matches!(sql.query("copy (select 1) to stdout"), Err(SessionError::OutOfPlace(_))));
    assert!(sql.query("select 1").is_err());

    let mut sql = SqlClient::connect(&settings(&cluster.local())).unwrap();
    assert!(matches!(
        sql.query("select repeat('x', 200000) from generate_series(1, 200)"),
        Err(SessionError::Reply(_))
    ));
    sql.close();

    let with_settings = format!("{} application_name=x options='-c work_mem=7MB'", cluster.local());
    let mut sql = SqlClient::connect(&settings(&with_settings)).unwrap();
    assert_eq!(text(&sql.query("show application_name").unwrap()), "x");
    assert_eq!(text(&sql.query("show work_mem").unwrap()), "7MB");

    let [runtime, _] = runtimes();
    let (sink, seen) = notices();
    runtime.block_on(async {
        let mut session = Session::connect(&settings(&cluster.local()), Purpose::Sql, sink).await.unwrap();
        session.simple_query("do $$ begin raise warning 'look'; end $$").await.unwrap();
    });
    assert!(seen.lock().unwrap()[0].starts_with("WARNING:  look"), "{seen:?}");
}

/// The stock tool's own output is the reference, less what releases before 14 cannot read.
fn primary_conninfo_is_what_pg_basebackup_writes(cluster: &Cluster) {
    let program = cluster.bin.join("pg_basebackup");
    if !program.is_file() {
        println!("skipped a part: no pg_basebackup beside the server");
        return;
    }
    let passfile = cluster.folder().join("none");
    let host = cluster.folder().display();
    for extra in
        ["", "application_name='a b\\' c' connect_timeout=9 password='it\\'s \\\\' keepalives_idle=10"]
    {
        let conninfo = format!(
            "host={host} port={} user=postgres passfile={} {extra}",
            cluster.port,
            passfile.display()
        );
        let target = cluster.folder().join("copy");
        let output = Command::new(&program)
            .args(["-d", &conninfo, "-R", "-X", "none", "-c", "fast", "--no-sync", "--no-manifest", "-D"])
            .arg(&target)
            .env_clear()
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let written = fs::read_to_string(target.join("postgresql.auto.conf")).unwrap();
        let line = written.lines().find_map(|line| line.strip_prefix("primary_conninfo = '")).unwrap();
        let line = line.strip_suffix('\'').unwrap().replace("''", "'").replace("\\\\", "\\");
        let newer = ["sslsni", "sslcertmode", "sslnegotiation", "gssdelegation", "load_balance_hosts"];
        // None of these values holds a space; the tests' own do, and come before.
        let mut expected = line;
        for keyword in newer {
            if let Some(at) = expected.find(&format!(" {keyword}=")) {
                let end = expected[at + 1..].find(' ').map_or(expected.len(), |end| at + 1 + end);
                expected.replace_range(at..end, "");
            }
        }
        assert_eq!(settings(&conninfo).primary_conninfo(), expected);
        fs::remove_dir_all(target).unwrap();
    }
}

/// Waits until the server runs a query that begins so; returns its process.
fn wait_for_query(sql: &mut SqlClient, start: &str) -> i32 {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let found = sql
            .query(&format!(
                "select pid from pg_stat_activity where state = 'active' and query like '{start}%' \
                 and wait_event = 'PgSleep'"
            ))
            .unwrap();
        if !found[0].rows.is_empty() {
            return text(&found).parse().unwrap();
        }
        assert!(Instant::now() < deadline, "{start} never runs");
        thread::sleep(Duration::from_millis(10));
    }
}

fn cancelling_a_query(cluster: &Cluster, sql: &mut SqlClient) {
    for (number, runtime) in runtimes().into_iter().enumerate() {
        let query = format!("select pg_sleep(600), {number}");
        let mut session = runtime
            .block_on(Session::connect(&settings(&cluster.local()), Purpose::Sql, notices().0))
            .unwrap();
        let cancel = session.cancel_handle();
        thread::scope(|scope| {
            scope.spawn(|| {
                wait_for_query(&mut SqlClient::connect(&settings(&cluster.local())).unwrap(), &query);
                cancel.cancel();
            });
            let result = runtime.block_on(session.simple_query(&query));
            assert!(matches!(result, Err(SessionError::Cancelled)), "{result:?}");
        });
        let pid = wait_for_query(sql, &query);
        sql.query(&format!("select pg_terminate_backend({pid})")).unwrap();
    }
}

fn ended_by_the_administrator(cluster: &Cluster, sql: &mut SqlClient) {
    thread::scope(|scope| {
        let query = "select pg_sleep(600), 'ended'";
        let blocked = scope.spawn(|| SqlClient::connect(&settings(&cluster.local())).unwrap().query(query));
        let pid = wait_for_query(sql, "select pg_sleep(600), ''ended");
        sql.query(&format!("select pg_terminate_backend({pid})")).unwrap();
        let error = blocked.join().unwrap().unwrap_err();
        assert_eq!(error.server_error().unwrap().sqlstate(), "57P01", "{error}");
    });
}

/// Last, because the whole cluster restarts after a crash, and then ends.
fn a_killed_server_process(cluster: &Cluster) {
    let connect = || SqlClient::connect(&settings(&cluster.local())).unwrap();
    thread::scope(|scope| {
        let query = "select pg_sleep(600), 'killed'";
        let blocked = scope.spawn(move || connect().query(query));
        let pid = wait_for_query(&mut connect(), "select pg_sleep(600), ''killed");
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        let error = blocked.join().unwrap().unwrap_err();
        assert!(matches!(error, SessionError::Closed { .. } | SessionError::Io { .. }), "{error:?}");
    });
    let [runtime, _] = runtimes();
    let replication = settings(&cluster.local());
    runtime.block_on(async {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut session = loop {
            match Session::connect(&replication, Purpose::Replication, notices().0).await {
                Ok(session) => break session,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let position =
            IdentifySystem::from_result(&session.simple_query("IDENTIFY_SYSTEM").await.unwrap()[0]).unwrap();
        let command =
            format!("START_REPLICATION PHYSICAL {} TIMELINE 1", position.flushed.segment_start(16 << 20));
        assert!(matches!(session.begin_copy(&command).await.unwrap(), Reply::Copy { .. }));
        cluster.stop_at_once();
        let error = loop {
            match session.next_event() {
                Ok(Some(_)) => {}
                Ok(None) => match session.receive().await {
                    Ok(_) => {}
                    Err(error) => break error,
                },
                Err(error) => break error,
            }
        };
        assert!(!matches!(error, SessionError::Cancelled | SessionError::OutOfPlace(_)), "{error:?}");
    });
}
