//! Every way to say which server is meant and who one is: flags, connection strings, the environment, password files and
//! prompts. A discarded backup proves a connection; one with its WAL streamed makes a second one the same way.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use pgstrata::postmaster::{Auth, PasswordMethod};
use pgstrata_tests as harness;
use pgstrata_tests::{Finished, Invocation, Source, wait_until};
use rustix::process::Signal;

/// What has to be quoted in a connection string, escaped in a URI and in a password file, and is no ASCII.
const PASSWORD: &str = "pa:ss w'o\\rd@/größe%";

/// A backup that keeps nothing, with no home to find a password file in, and no server named yet.
fn discard(source: &Source) -> Invocation {
    let run = harness::pgstrata(["basebackup", "--discard", "-c", "fast", "-N", "-w"]);
    run.env("HOME", source.dir("nowhere"))
}

fn guarded(major: u32, method: PasswordMethod) -> Source {
    harness::cluster(major).auth(Auth::Password { method, password: PASSWORD.to_owned() }).start()
}

/// `-h`, `-p` and `-U`.
fn flags(source: &Source) -> [String; 6] {
    let port = source.port().to_string();
    ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"].map(str::to_owned)
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn conninfo_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn password_file(source: &Source, name: &str, lines: &str, mode: u32) -> PathBuf {
    let path = source.dir(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, lines).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn servers_are_named_by_flags_strings_and_variables() {
    let source = harness::cluster(15)
        .setting("log_replication_commands", "on")
        .setting("log_line_prefix", "%a by %u from %h|")
        .start();
    source.sql().execute("CREATE ROLE taker LOGIN REPLICATION");
    let port = source.port().to_string();
    let socket_dir = source.socket_dir().to_str().unwrap().to_owned();
    let copy = source.dir("copy");
    let run = || {
        let run = harness::pgstrata(["basebackup", "-c", "fast", "-Ft", "-N", "-w"]);
        run.arg("-D").arg(&copy).env("HOME", source.dir("nowhere"))
    };
    let uri = format!("postgresql://taker@127.0.0.1:{port}/?application_name=by%20uri");
    let socket_uri = format!("postgres://taker@{}:{port}/", percent_encoded(&socket_dir));
    let tcp = format!("host=127.0.0.1 port={port} user=taker");
    // A run, and what the server logs of it: application name, user, where from.
    let cases = [
        (run().args(["-h", "127.0.0.1", "-p", &port, "-U", "taker"]), "pgstrata by taker from 127.0.0.1"),
        (run().args(["-h", &socket_dir, "-p", &port, "-U", "taker"]), "pgstrata by taker from [local]"),
        (
            run().args(["--host=127.0.0.1", &format!("--port={port}"), "--username=taker"]),
            "pgstrata by taker from 127.0.0.1",
        ),
        (run().args(["-d", &tcp]), "pgstrata by taker from 127.0.0.1"),
        (run().args(["-d", &format!("{tcp} application_name='my app'")]), "my app by taker from 127.0.0.1"),
        (run().args(["-d", &uri]), "by uri by taker from 127.0.0.1"),
        (run().args(["-d", &socket_uri]), "pgstrata by taker from [local]"),
        (
            run().args(["-d", &format!("host=example.invalid hostaddr=127.0.0.1 port={port} user=taker")]),
            "pgstrata by taker from 127.0.0.1",
        ),
        (
            run().env("PGHOST", "127.0.0.1").env("PGPORT", &port).env("PGUSER", "taker"),
            "pgstrata by taker from 127.0.0.1",
        ),
        (
            run()
                .env("PGHOST", &socket_dir)
                .env("PGPORT", &port)
                .env("PGUSER", "taker")
                .env("PGAPPNAME", "nightly"),
            "nightly by taker from [local]",
        ),
        // Flags go before the string, and that before the environment.
        (
            run().args(["-d", "host=127.0.0.1 port=1 user=nobody", "-p", &port, "-U", "taker"]),
            "pgstrata by taker from 127.0.0.1",
        ),
        (
            run().args(["-d", &tcp]).env("PGPORT", "1").env("PGHOST", "/nowhere").env("PGUSER", "nobody"),
            "pgstrata by taker from 127.0.0.1",
        ),
        (
            run().args(["-d", &tcp]).env("PGDATABASE", "none such").env("PGOPTIONS", "-c work_mem=1MB"),
            "pgstrata by taker from 127.0.0.1",
        ),
        (
            run().args([
                "-d",
                &format!("{tcp} dbname=ignored sslmode=disable connect_timeout=20 keepalives_idle=9"),
            ]),
            "pgstrata by taker from 127.0.0.1",
        ),
    ];
    for (run, expected) in cases {
        let seen = fs::read_to_string(source.log_path()).unwrap().len();
        run.run().expect_success();
        let log = fs::read_to_string(source.log_path()).unwrap().split_off(seen);
        for command in ["BASE_BACKUP", "START_REPLICATION"] {
            let line =
                log.lines().find(|line| line.contains(&format!("received replication command: {command}")));
            let line = line.unwrap_or_else(|| panic!("no {command} in:\n{log}"));
            let prefix = line.split_once('|').unwrap().0;
            // Over TCP the port follows the address.
            assert!(prefix.starts_with(expected), "expected {expected:?}: {line}");
        }
        fs::remove_dir_all(&copy).unwrap();
    }
}

#[test]
fn passwords_come_from_everywhere_and_by_every_method() {
    for major in harness::majors().into_iter().filter(|major| *major >= 14) {
        for method in [PasswordMethod::ScramSha256, PasswordMethod::Md5, PasswordMethod::Clear] {
            eprintln!("PostgreSQL {major} {method:?}");
            let source = guarded(major, method);
            let port = source.port();
            let escaped = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
            let file = password_file(
                &source,
                "passwords",
                &format!(
                    "# a comment\n127.0.0.1:1:*:*:wrong\n127.0.0.1:{port}:replication:postgres:{escaped}\n*:*:*:*:wrong\n"
                ),
                0o600,
            );
            password_file(&source, "home/.pgpass", &format!("*:*:*:postgres:{escaped}\n"), 0o400);
            let named = format!("host=127.0.0.1 port={port} user=postgres");
            let runs = [
                discard(&source).args(flags(&source)).env("PGPASSWORD", PASSWORD),
                discard(&source).args(["-d", &format!("{named} password={}", conninfo_quoted(PASSWORD))]),
                discard(&source).args([
                    "-d",
                    &format!("postgresql://postgres:{}@127.0.0.1:{port}", percent_encoded(PASSWORD)),
                ]),
                discard(&source).args(flags(&source)).env("PGPASSFILE", &file),
                discard(&source)
                    .args(["-d", &format!("{named} passfile={}", conninfo_quoted(file.to_str().unwrap()))]),
                discard(&source).args(flags(&source)).env("HOME", source.dir("home")),
                // What is said outright goes before what a file says.
                discard(&source)
                    .args(flags(&source))
                    .env("PGPASSFILE", source.dir("none such"))
                    .env("PGPASSWORD", PASSWORD),
            ];
            for run in runs {
                run.run().expect_success();
            }
            let wrong = discard(&source).args(flags(&source)).env("PGPASSWORD", "barley").run();
            wrong.expect_failure().expect_stderr("password authentication failed for user \"postgres\"");
            let none = discard(&source).args(flags(&source)).run();
            none.expect_failure().expect_stderr("no password supplied").expect_stderr("HINT: ");
        }
    }
}

#[test]
fn a_password_file_that_others_may_read_is_not_used() {
    let source = guarded(15, PasswordMethod::ScramSha256);
    let open = password_file(&source, "open", "*:*:*:*:whatever\n", 0o644);
    let finished = discard(&source).args(flags(&source)).env("PGPASSFILE", &open).run();
    finished
        .expect_failure()
        .expect_stderr("has group or world access")
        .expect_stderr("no password supplied");
    let wrong = password_file(&source, "wrong", "*:*:*:*:whatever\n", 0o600);
    let finished = discard(&source).args(flags(&source)).env("PGPASSFILE", &wrong).run();
    finished.expect_failure().expect_stderr("password authentication failed");
    finished.expect_stderr(&format!("password retrieved from file \"{}\"", wrong.display()));
}

/// A backup that may ask for a password.
fn asking(source: &Source) -> Invocation {
    let run = harness::pgstrata(["basebackup", "--discard", "-c", "fast"]);
    run.args(flags(source)).env("HOME", source.dir("nowhere"))
}

#[test]
fn a_password_is_asked_for_at_the_terminal() {
    let source = guarded(15, PasswordMethod::ScramSha256);
    let expect_unseen = |finished: &Finished| {
        let screen = finished.stderr_text();
        assert!(!screen.contains(PASSWORD), "the password was shown: {finished}");
    };
    for run in [asking(&source), asking(&source).arg("-W"), asking(&source).arg("-w").arg("-W")] {
        let (running, mut keyboard) = run.spawn_at_terminal();
        running.wait_for_stderr("Password: ");
        keyboard.type_secret(PASSWORD);
        let finished = running.wait();
        expect_unseen(finished.expect_success());
    }
    let (running, mut keyboard) = asking(&source).spawn_at_terminal();
    running.wait_for_stderr("Password: ");
    keyboard.type_secret("barley");
    running.wait().expect_failure().expect_stderr("password authentication failed");

    // Nobody is asked where -w says so, and where the server wants none.
    let (running, _keyboard) = asking(&source).arg("-w").spawn_at_terminal();
    let finished = running.wait();
    finished.expect_failure().expect_stderr("no password supplied");
    assert!(!finished.stderr_text().contains("Password: "), "{finished}");
    let trusting = harness::cluster(15).start();
    let (running, _keyboard) = asking(&trusting).spawn_at_terminal();
    let finished = running.wait();
    finished.expect_success();
    assert!(!finished.stderr_text().contains("Password: "), "{finished}");

    // The interrupt key ends it, at the prompt and after it.
    let (running, mut keyboard) = asking(&source).spawn_at_terminal();
    running.wait_for_stderr("Password: ");
    keyboard.type_text("\x03");
    running.wait().expect_killed_by(Signal::INT);
    let (running, mut keyboard) = asking(&source).args(["-r", "32k"]).spawn_at_terminal();
    running.wait_for_stderr("Password: ");
    keyboard.type_secret(PASSWORD);
    let session = source.sql();
    wait_until("data flows", || {
        session.value::<u32>("SELECT count(*) FROM pg_stat_progress_basebackup WHERE backup_streamed > 0")
            == 1
    });
    keyboard.type_text("\x03");
    running.wait().expect_killed_by(Signal::INT);
}

#[test]
fn a_server_that_is_not_there_or_does_not_want_us() {
    let source = harness::cluster(15).setting("max_wal_senders", "1").start();
    source.sql().execute("CREATE ROLE nobody LOGIN");
    let port = source.port().to_string();
    let socket_dir = source.socket_dir().to_str().unwrap().to_owned();
    let nowhere = source.dir("nowhere").to_str().unwrap().to_owned();
    let options = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    for (options, expected) in [
        (options(&["-h", "127.0.0.1", "-p", "1"]), "connection to server at \"127.0.0.1\", port 1 failed: "),
        (options(&["-h", &nowhere, "-p", &port]), "No such file or directory"),
        (options(&["-h", "no-such-host.invalid"]), "could not translate host name \"no-such-host.invalid\""),
        (options(&["-h", &socket_dir, "-p", &port, "-U", "none such"]), "role \"none such\" does not exist"),
        (options(&["-h", &socket_dir, "-p", &port, "-U", "nobody"]), "must be superuser or replication role"),
        (options(&["-p", "0"]), "invalid port number: \"0\""),
        (options(&["-p", "70000"]), "invalid port number: \"70000\""),
        (options(&["-p", "five"]), "invalid integer value \"five\""),
        (options(&["-d", "host"]), "missing \"=\" after \"host\""),
        (options(&["-d", "hots=db"]), "invalid connection option \"hots\""),
        (options(&["-d", "postgresql://[::1"]), "end of string reached"),
    ] {
        let finished = discard(&source).args(&options).run();
        finished.expect_failure().expect_stderr(expected);
        assert!(finished.stderr_text().starts_with("pgstrata: error: "), "{finished}");
    }
    // One connection comes about, and the second has no place.
    let copy = source.dir("copy");
    let finished = harness::basebackup(&source).arg("-D").arg(&copy).run();
    finished.expect_failure().expect_stderr("max_wal_senders");
    assert!(!copy.exists());
}

#[test]
fn settings_that_are_not_there_are_refused_by_name() {
    let source = harness::cluster(15).start();
    let tcp = format!("host=127.0.0.1 port={} user=postgres", source.port());
    for setting in ["gssencmode=require", "sslcompression=1", "sslkeylogfile=/nowhere", "oauth_issuer=mine"] {
        let finished = discard(&source).args(["-d", &format!("{tcp} {setting}")]).run();
        finished.expect_failure().expect_stderr(setting).expect_stderr("HINT: ");
    }
    let finished = discard(&source).args(["-d", &tcp]).env("PGGSSENCMODE", "require").run();
    finished
        .expect_failure()
        .expect_stderr("gssencmode (from the environment variable PGGSSENCMODE)=require")
        .expect_stderr("HINT: ");
    for (variable, value) in [("PGSSLMODE", "require"), ("PGREQUIRESSL", "1")] {
        let finished = discard(&source).args(["-d", &tcp]).env(variable, value).run();
        finished.expect_failure().expect_stderr("server does not support SSL, but SSL was required");
    }
    for setting in ["sslmode=prefer", "sslmode=disable", "gssencmode=prefer", "target_session_attrs=any"] {
        discard(&source).args(["-d", &format!("{tcp} {setting}")]).run().expect_success();
    }
}

#[test]
fn one_of_several_servers_is_chosen() {
    for major in harness::majors().into_iter().filter(|major| *major >= 14) {
        eprintln!("PostgreSQL {major}");
        let primary = harness::cluster(major).start();
        let copy = primary.dir("standby");
        harness::basebackup(&primary).args(["-R", "-N", "-D"]).arg(&copy).run().expect_success();
        let standby = primary.boot(&copy);
        let (first, second) = (primary.port(), standby.port());
        let ports = [(first, "primary"), (second, "standby")];
        let is_asked = |attributes: &str, ports: &str| {
            let hosts = vec!["127.0.0.1"; ports.split(',').count()].join(",");
            let conninfo =
                format!("host={hosts} port={ports} user=postgres target_session_attrs={attributes}");
            let run = harness::pgstrata(["basebackup", "-c", "fast", "-N", "-w", "-X", "none", "-R"]);
            let target = primary.dir("chosen");
            let finished = run.args(["-d", &conninfo, "-D"]).arg(&target).run();
            if !finished.status.success() {
                return Err(finished.stderr_text());
            }
            // The server's own files say whether it was a standby.
            let was_standby = fs::read_to_string(target.join("backup_label")).unwrap();
            fs::remove_dir_all(&target).unwrap();
            Ok(if was_standby.contains("BACKUP FROM: standby") { "standby" } else { "primary" })
        };
        let both = format!("{first},{second}");
        let turned = format!("1,{second},{first}");
        for (attributes, ports, expected) in [
            ("any", &both, "primary"),
            ("any", &turned, "standby"),
            ("read-write", &turned, "primary"),
            ("read-only", &both, "standby"),
            ("primary", &turned, "primary"),
            ("standby", &both, "standby"),
            ("prefer-standby", &both, "standby"),
            ("prefer-standby", &first.to_string(), "primary"),
        ] {
            assert_eq!(is_asked(attributes, ports).as_deref(), Ok(expected), "{attributes} {ports}");
        }
        for (attributes, port, problem) in [
            ("read-write", second, "session is read-only"),
            ("read-only", first, "session is not read-only"),
            ("primary", second, "server is in hot standby mode"),
            ("standby", first, "server is not in hot standby mode"),
        ] {
            let said = is_asked(attributes, &port.to_string()).unwrap_err();
            assert!(said.contains(problem), "{attributes}: {said}");
        }
        let all = ports.map(|(port, _)| port.to_string()).join(",");
        assert!(is_asked("any load_balance_hosts=random", &all).is_ok());
    }
}

#[test]
fn services_and_peers() {
    let source = harness::cluster(15).start();
    let services = source.dir("services.conf");
    let socket_dir = source.socket_dir().display().to_string();
    let text = format!("[local]\nhost={socket_dir}\nport={}\nuser=postgres\n", source.port());
    fs::write(&services, &text).unwrap();
    fs::create_dir_all(source.dir("system")).unwrap();
    fs::write(source.dir("system").join("pg_service.conf"), &text).unwrap();
    let runs = [
        discard(&source).args(["-d", "service=local"]).env("PGSERVICEFILE", &services),
        discard(&source).env("PGSERVICE", "local").env("PGSERVICEFILE", &services),
        discard(&source)
            .args(["-d", "postgresql:///?service=local"])
            .env("PGSYSCONFDIR", source.dir("system")),
    ];
    for run in runs {
        run.run().expect_success();
    }
    let finished = discard(&source).args(["-d", "service=none"]).env("PGSERVICEFILE", &services).run();
    finished.expect_failure().expect_stderr("definition of service \"none\" not found");

    // Who runs the server owns its data directory.
    let owner = fs::metadata(source.data_dir()).unwrap().uid();
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    let name = accounts.lines().map(|line| line.split(':').collect::<Vec<_>>()).find_map(|fields| {
        fields.get(2).is_some_and(|number| number.parse() == Ok(owner)).then(|| fields[0].to_owned())
    });
    let Some(name) = name else {
        eprintln!("skipped a part: user {owner} has no name");
        return;
    };
    let local = format!("host={socket_dir} port={} user=postgres", source.port());
    discard(&source).args(["-d", &format!("{local} requirepeer={name}")]).run().expect_success();
    let finished = discard(&source).args(["-d", &local]).env("PGREQUIREPEER", "somebody_else").run();
    finished.expect_failure().expect_stderr(&format!(
        "requirepeer specifies \"somebody_else\", but actual peer user name is \"{name}\""
    ));
}
