//! TLS as libpq makes it: what each `sslmode` makes of each server and each certificate, client certificates, SCRAM bound
//! to the channel, and backups over it. Where `psql` of PostgreSQL 15 is at hand, its verdict is asked for too.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use pgstrata::connect::{ConnectionSettings, ControlRuntime, GivenSettings, Purpose, Session, Surroundings};
use pgstrata_tests as harness;
use pgstrata_tests::{Authority, Manifest, Source, Subject};

/// The name that the server's certificate has. It resolves nowhere: `hostaddr` says where the server is.
const NAME: &str = "db.pgstrata.example";

const HBA: &str = "\
local     all         postgres                trust
local     replication postgres                trust
hostssl   all         only_tls   127.0.0.1/32 trust
hostnossl all         only_plain 127.0.0.1/32 trust
hostssl   all         by_cert    127.0.0.1/32 cert
hostssl   replication by_cert    127.0.0.1/32 cert
host      all         scram      127.0.0.1/32 scram-sha-256
hostssl   replication scram      127.0.0.1/32 scram-sha-256
host      all         postgres   127.0.0.1/32 trust
hostssl   replication postgres   127.0.0.1/32 trust
";

/// Versions from 14 on.
fn versions() -> Vec<u32> {
    harness::majors().into_iter().filter(|major| *major >= 14).collect()
}

fn secured(major: u32, authority: &Authority) -> Source {
    let source = harness::cluster(major).start();
    source.sql().execute(
        "CREATE ROLE only_tls LOGIN; CREATE ROLE only_plain LOGIN; CREATE ROLE by_cert LOGIN REPLICATION;
         SET password_encryption = 'scram-sha-256'; CREATE ROLE scram LOGIN REPLICATION PASSWORD 'geheim'",
    );
    source.set_hba(HBA);
    source.serve_tls(&authority.sign(&server()), authority);
    source
}

fn server() -> Subject<'static> {
    Subject { common_name: Some("server"), names: &[NAME], serial: 10, ..Subject::default() }
}

/// `tls`, `plain`, or why there is no session.
type Verdict = Result<&'static str, String>;

const ASK: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

fn verdict_of(answer: &str) -> &'static str {
    match answer {
        "t" => "tls",
        "f" => "plain",
        other => panic!("{other:?}"),
    }
}

/// Connects with our own client, in that home folder.
fn ours(conninfo: &str, home: &Path) -> Verdict {
    let around = Surroundings {
        variable: &|_| None,
        os_user: Some("nobody".to_owned()),
        home: Some(home.to_owned()),
        socket_directory: "/nowhere".into(),
    };
    let given = GivenSettings { conninfo: Some(conninfo), ..GivenSettings::default() };
    let settings = ConnectionSettings::resolve(&given, &around).map_err(|error| error.to_string())?;
    let mut answers = Vec::new();
    for runtime in [ControlRuntime::new().unwrap(), ControlRuntime::without_ring().unwrap()] {
        let answer = runtime.block_on(async {
            let session = Session::connect(&settings, Purpose::Sql, Arc::new(|_| ())).await;
            let mut session = session.map_err(|error| error.to_string())?;
            let results = session.simple_query(ASK).await.map_err(|error| error.to_string())?;
            let value = results[0].rows[0][0].clone().expect("a session that sees itself");
            session.close().await;
            Ok(verdict_of(std::str::from_utf8(&value).unwrap()))
        });
        answers.push(answer);
    }
    assert_eq!(answers[0].is_ok(), answers[1].is_ok(), "{conninfo}: {answers:?}");
    answers.remove(0)
}

/// Connects with `psql` of PostgreSQL 15, if there is one.
fn theirs(conninfo: &str, home: &Path) -> Option<Verdict> {
    let psql = Path::new("/usr/lib/postgresql/15/bin/psql");
    if !psql.is_file() {
        return None;
    }
    let mut command = Command::new(psql);
    command.env_clear().env("HOME", home).args(["-XAtw", "-c", ASK, "-d", conninfo]);
    // It asks for nothing: there is no terminal.
    let output = command.stdin(Stdio::null()).output().expect("psql runs");
    Some(if output.status.success() {
        Ok(verdict_of(String::from_utf8_lossy(&output.stdout).trim()))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    })
}

/// The keywords that psql 15 does not know, and what it means otherwise than later releases.
fn is_newer(conninfo: &str) -> bool {
    ["sslnegotiation", "sslcertmode", "require_auth", "=system"].iter().any(|word| conninfo.contains(word))
}

#[track_caller]
fn expect(conninfo: &str, home: &Path, expected: Result<&str, &str>) {
    let found = ours(conninfo, home);
    match (&found, expected) {
        (Ok(found), Ok(expected)) => assert_eq!(*found, expected, "{conninfo}"),
        (Err(found), Err(expected)) => assert!(found.contains(expected), "{conninfo}: {found}"),
        _ => panic!("{conninfo}: expected {expected:?}, found {found:?}"),
    }
    if let Some(theirs) = theirs(conninfo, home).filter(|_| !is_newer(conninfo)) {
        assert_eq!(
            theirs.clone().ok(),
            found.clone().ok(),
            "{conninfo}: psql {theirs:?}, pgstrata {found:?}"
        );
    }
}

fn to(source: &Source) -> String {
    format!("host={NAME} hostaddr=127.0.0.1 port={} dbname=postgres", source.port())
}

#[test]
fn modes() {
    let (authority, other) = (Authority::new("the authority"), Authority::new("another authority"));
    for major in versions() {
        eprintln!("PostgreSQL {major}");
        let source = secured(major, &authority);
        let right = source.client_file("right.crt", &authority.root());
        let wrong = source.client_file("wrong.crt", &other.root());
        let both = source.client_file("both.crt", &(other.root() + &authority.root()));
        let (right, wrong, both) = (right.display(), wrong.display(), both.display());
        source.client_file("home/.postgresql/root.crt", &authority.root());
        source.client_file("wrong home/.postgresql/root.crt", &other.root());
        let [nobody, home, wrong_home] = ["nobody", "home", "wrong home"].map(|name| source.dir(name));
        let tcp = to(&source);

        let untrusted = "signed by none of the root certificates";
        for (user, settings, home, expected) in [
            ("postgres", "sslmode=disable".to_owned(), &nobody, Ok("plain")),
            ("postgres", "sslmode=allow".to_owned(), &nobody, Ok("plain")),
            ("postgres", String::new(), &nobody, Ok("tls")),
            ("postgres", "sslmode=require".to_owned(), &nobody, Ok("tls")),
            ("only_tls", "sslmode=disable".to_owned(), &nobody, Err("no pg_hba.conf entry")),
            ("only_tls", "sslmode=allow".to_owned(), &nobody, Ok("tls")),
            ("only_tls", "sslmode=prefer".to_owned(), &nobody, Ok("tls")),
            ("only_plain", "sslmode=allow".to_owned(), &nobody, Ok("plain")),
            ("only_plain", "sslmode=prefer".to_owned(), &nobody, Ok("plain")),
            ("only_plain", "sslmode=require".to_owned(), &nobody, Err("no pg_hba.conf entry")),
            // A root certificate is used wherever there is one.
            ("postgres", format!("sslmode=require sslrootcert={right}"), &nobody, Ok("tls")),
            ("postgres", format!("sslmode=require sslrootcert={wrong}"), &nobody, Err(untrusted)),
            ("postgres", "sslmode=require sslrootcert=/nowhere".to_owned(), &nobody, Ok("tls")),
            ("postgres", "sslmode=require".to_owned(), &home, Ok("tls")),
            ("postgres", "sslmode=require".to_owned(), &wrong_home, Err(untrusted)),
            // Who only prefers TLS goes on without.
            ("postgres", "sslmode=prefer".to_owned(), &wrong_home, Ok("plain")),
            ("postgres", "sslmode=allow".to_owned(), &wrong_home, Ok("plain")),
            ("only_tls", "sslmode=allow".to_owned(), &wrong_home, Err(untrusted)),
            ("only_tls", "sslmode=prefer".to_owned(), &wrong_home, Err("no pg_hba.conf entry")),
            ("postgres", "sslmode=verify-ca".to_owned(), &nobody, Err("root.crt\" does not exist")),
            ("postgres", "sslmode=verify-full".to_owned(), &nobody, Err("root.crt\" does not exist")),
            ("postgres", "sslmode=verify-ca".to_owned(), &home, Ok("tls")),
            ("postgres", format!("sslmode=verify-ca sslrootcert={both}"), &nobody, Ok("tls")),
            ("postgres", format!("sslmode=verify-ca sslrootcert={wrong}"), &nobody, Err(untrusted)),
            ("postgres", format!("sslmode=verify-full sslrootcert={right}"), &nobody, Ok("tls")),
            (
                "postgres",
                format!("sslmode=verify-ca sslrootcert={right} host=else.example"),
                &nobody,
                Ok("tls"),
            ),
            (
                "postgres",
                format!("sslmode=verify-full sslrootcert={right} host=else.example"),
                &nobody,
                Err(
                    "server certificate for \"db.pgstrata.example\" does not match host name \"else.example\"",
                ),
            ),
            (
                "postgres",
                format!("sslmode=verify-full sslrootcert={right} host=''"),
                &nobody,
                Err("host name must be specified for a verified SSL connection"),
            ),
            ("postgres", "sslrootcert=system".to_owned(), &nobody, Err("certificate verify failed")),
            ("postgres", "sslmode=require ssl_min_protocol_version=TLSv1.3".to_owned(), &nobody, Ok("tls")),
            ("postgres", "sslmode=require ssl_max_protocol_version=TLSv1.2".to_owned(), &nobody, Ok("tls")),
            ("postgres", "sslmode=require sslsni=0".to_owned(), &nobody, Ok("tls")),
        ] {
            expect(&format!("{tcp} user={user} {settings}"), home, expected);
        }
        let direct = format!("{tcp} user=postgres sslmode=require sslnegotiation=direct");
        let expected = if major >= 17 { Ok("tls") } else { Err("") };
        expect(&direct, &nobody, expected);

        source.serve_plain();
        for (settings, expected) in [
            ("sslmode=disable", Ok("plain")),
            ("sslmode=allow", Ok("plain")),
            ("sslmode=prefer", Ok("plain")),
            ("sslmode=require", Err("server does not support SSL, but SSL was required")),
            ("sslmode=verify-full", Err("server does not support SSL, but SSL was required")),
        ] {
            expect(&format!("{tcp} user=postgres {settings}"), &home, expected);
        }
    }
}

#[test]
fn certificates_of_servers() {
    let authority = Authority::new("the authority");
    let source = secured(15, &authority);
    let root = source.client_file("root.crt", &authority.root());
    let home = source.dir("nobody");
    let full = |host: &str| {
        let port = source.port();
        format!(
            "host={host} hostaddr=127.0.0.1 port={port} dbname=postgres user=postgres sslmode=verify-full sslrootcert={}",
            root.display()
        )
    };
    let subject = |common_name, names| Subject { common_name, names, serial: 20, ..Subject::default() };
    type Hosts = &'static [(&'static str, Result<&'static str, &'static str>)];
    let cases: [(Subject<'_>, Hosts); 7] = [
        (
            subject(None, &["*.pgstrata.example"]),
            &[
                (NAME, Ok("tls")),
                ("DB.PGSTRATA.example", Ok("tls")),
                ("a.db.pgstrata.example", Err("does not match host name")),
                ("pgstrata.example", Err("does not match host name")),
            ],
        ),
        (
            subject(Some("cn.example"), &[]),
            &[("cn.example", Ok("tls")), (NAME, Err("certificate for \"cn.example\" does not"))],
        ),
        // Alternative names hide the common one.
        (
            subject(Some("cn.example"), &["a.example", "b.example"]),
            &[
                ("b.example", Ok("tls")),
                ("cn.example", Err("certificate for \"a.example\" (and 1 other name) does not match")),
            ],
        ),
        (
            subject(Some("cn.example"), &["127.0.0.1"]),
            &[
                ("127.0.0.1", Ok("tls")),
                ("cn.example", Ok("tls")),
                ("127.0.0.2", Err("does not match host name")),
            ],
        ),
        (subject(Some("127.0.0.1"), &["a.example"]), &[("127.0.0.1", Ok("tls")), ("a.example", Ok("tls"))]),
        (subject(None, &[]), &[(NAME, Err("could not get server's host name from server certificate"))]),
        (
            Subject { expired_days_ago: Some(1), ..subject(None, &[NAME]) },
            &[(NAME, Err("certificate has expired"))],
        ),
    ];
    for (subject, hosts) in cases {
        source.serve_tls(&authority.sign(&subject), &authority);
        for (host, expected) in hosts {
            expect(&full(host), &home, *expected);
        }
        if subject.expired_days_ago.is_some() {
            expect(&format!("{} user=postgres sslmode=require", to(&source)), &home, Ok("tls"));
        }
    }

    // A certificate that is its own authority is trusted where it is in the root file itself.
    let own = Subject { serial: 21, ..server() }.self_signed();
    let own_root = source.client_file("own.crt", &own.certificate);
    source.serve_tls(&own, &authority);
    let tcp = format!("{} user=postgres", to(&source));
    for mode in ["verify-ca", "verify-full", "require"] {
        expect(&format!("{tcp} sslmode={mode} sslrootcert={}", own_root.display()), &home, Ok("tls"));
        let foreign = format!("{tcp} sslmode={mode} sslrootcert={}", root.display());
        expect(&foreign, &home, Err("SSL error: "));
    }

    let revoked = authority.sign(&Subject { serial: 22, ..server() });
    source.serve_tls(&revoked, &authority);
    let list = source.client_file("root.crl", &authority.revoke(&[&revoked]));
    let empty = source.client_file("empty.crl", &authority.revoke(&[]));
    let stranger = source.client_file("stranger.crl", &Authority::new("a stranger").revoke(&[]));
    for (settings, expected) in [
        (format!("sslcrl={}", list.display()), Err("certificate revoked")),
        (format!("sslcrl={}", empty.display()), Ok("tls")),
        (format!("sslcrl={}", stranger.display()), Err("unable to get certificate CRL")),
        ("sslcrl=/nowhere".to_owned(), Ok("tls")),
        (String::new(), Ok("tls")),
    ] {
        expect(&format!("{} {settings}", full(NAME)), &home, expected);
    }
    // Without a root there is nothing that the list could belong to.
    expect(&format!("{tcp} sslmode=require sslcrl={}", list.display()), &home, Ok("tls"));
}

/// A certificate as `openssl x509 -req` has long made them, without any extension.
#[test]
fn certificates_of_the_first_version() {
    let Ok(openssl) = Command::new("openssl").arg("version").output() else {
        eprintln!("skipped: no openssl program");
        return;
    };
    assert!(openssl.status.success());
    let authority = Authority::new("the authority");
    let source = secured(15, &authority);
    let folder = source.dir("openssl");
    fs::create_dir_all(&folder).unwrap();
    let run = |words: &str| {
        let output = Command::new("openssl").args(words.split(' ')).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("req -x509 -newkey rsa:2048 -nodes -subj /CN=root -days 9 -keyout root.key -out root.crt");
    run("req -x509 -newkey rsa:2048 -nodes -subj /CN=root -days 9 -keyout false.key -out false.crt");
    run(&format!("req -newkey rsa:2048 -nodes -subj /CN={NAME} -keyout server.key -out server.csr"));
    run("x509 -req -in server.csr -CA root.crt -CAkey root.key -set_serial 7 -days 9 -out server.crt");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let identity = harness::Identity::from_pem(read("server.crt"), read("server.key"));
    source.serve_tls(&identity, &authority);
    let home = source.dir("nobody");
    let tcp = format!("{} user=postgres", to(&source));
    for (settings, expected) in [
        ("sslmode=require".to_owned(), Ok("tls")),
        (format!("sslmode=verify-full sslrootcert={}", folder.join("root.crt").display()), Ok("tls")),
        // An authority of the same name.
        (
            format!("sslmode=verify-full sslrootcert={}", folder.join("false.crt").display()),
            Err("SSL error: "),
        ),
    ] {
        expect(&format!("{tcp} {settings}"), &home, expected);
    }
}

/// The same key, encrypted with the password `geheim`, if there is a program for that.
fn encrypted(source: &Source, key: &Path) -> Option<PathBuf> {
    let path = source.client_file("encrypted.key", "");
    let mut command = Command::new("openssl");
    command.args(["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "pass:geheim", "-in"]).arg(key);
    let output = command.arg("-out").arg(&path).output().ok()?;
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Some(path)
}

#[test]
fn certificates_of_clients() {
    let (authority, other) = (Authority::new("the authority"), Authority::new("another authority"));
    let client = |common_name| Subject { common_name: Some(common_name), serial: 30, ..Subject::default() };
    for major in versions() {
        eprintln!("PostgreSQL {major}");
        let source = secured(major, &authority);
        let identity = authority.sign(&client("by_cert"));
        let file = |name: &str, content: &str| source.client_file(name, content);
        let (certificate, key) = (file("c.crt", &identity.certificate), file("c.key", &identity.key));
        let stranger = other.sign(&client("by_cert"));
        let (strange, strange_key) = (file("s.crt", &stranger.certificate), file("s.key", &stranger.key));
        let somebody = authority.sign(&client("somebody"));
        let (some, some_key) = (file("o.crt", &somebody.certificate), file("o.key", &somebody.key));
        file("home/.postgresql/postgresql.crt", &identity.certificate);
        file("home/.postgresql/postgresql.key", &identity.key);
        let open_key = file("open.key", &identity.key);
        fs::set_permissions(&open_key, fs::Permissions::from_mode(0o644)).unwrap();
        let [nobody, home] = ["nobody", "home"].map(|name| source.dir(name));
        let tcp = format!("{} user=by_cert sslmode=require", to(&source));
        let pair = |certificate: &PathBuf, key: &PathBuf| {
            format!("sslcert={} sslkey={}", certificate.display(), key.display())
        };
        for (settings, home, expected) in [
            (String::new(), &home, Ok("tls")),
            (String::new(), &nobody, Err("connection requires a valid client certificate")),
            (pair(&certificate, &key), &nobody, Ok("tls")),
            (pair(&some, &some_key), &nobody, Err("certificate authentication failed for user \"by_cert\"")),
            // The server breaks off, in words that depend on its version.
            (pair(&strange, &strange_key), &nobody, Err("")),
            (pair(&certificate, &strange_key), &nobody, Err("certificate does not match private key file")),
            (pair(&certificate, &open_key), &nobody, Err("has group or world access")),
            (pair(&certificate, &nobody), &nobody, Err("certificate present, but not private key file")),
            (pair(&key, &key), &nobody, Err("could not read certificate file")),
            ("sslcert=/nowhere".to_owned(), &home, Err("connection requires a valid client certificate")),
            ("sslcertmode=disable".to_owned(), &home, Err("connection requires a valid client certificate")),
            ("sslcertmode=require".to_owned(), &home, Ok("tls")),
            ("sslcertmode=require user=postgres".to_owned(), &nobody, Err("without a valid SSL certificate")),
            (
                "sslcertmode=require user=postgres sslmode=disable".to_owned(),
                &home,
                Err("server did not request an SSL certificate"),
            ),
            ("ssl_max_protocol_version=TLSv1.2".to_owned(), &home, Ok("tls")),
        ] {
            expect(&format!("{tcp} {settings}"), home, expected);
        }
        if let Some(encrypted) = encrypted(&source, &key) {
            let pair = pair(&certificate, &encrypted);
            expect(&format!("{tcp} {pair} sslpassword=geheim"), &nobody, Ok("tls"));
            expect(&format!("{tcp} {pair} sslpassword=wrong"), &nobody, Err("cannot be decrypted"));
            expect(&format!("{tcp} {pair}"), &nobody, Err("is encrypted, and no password was given"));
        }
        // Who only prefers TLS goes on without, whatever is wrong with his key.
        let preferring =
            format!("{} user=postgres sslmode=prefer {}", to(&source), pair(&certificate, &open_key));
        expect(&preferring, &nobody, Ok("plain"));
    }
}

#[test]
fn passwords_bound_to_the_channel() {
    let authority = Authority::new("the authority");
    for major in versions() {
        eprintln!("PostgreSQL {major}");
        let source = secured(major, &authority);
        let home = source.dir("nobody");
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
            // The signature's hash function is the authority's key's: each key its own authority.
            let own = Subject { algorithm: Some(algorithm), ..server() }.self_signed();
            source.serve_tls(&own, &authority);
            let tcp = format!("{} user=scram password=geheim", to(&source));
            for (settings, expected) in [
                ("sslmode=require channel_binding=require", Ok("tls")),
                ("sslmode=require channel_binding=prefer", Ok("tls")),
                ("sslmode=require channel_binding=disable", Ok("tls")),
                ("sslmode=disable", Ok("plain")),
                (
                    "sslmode=disable channel_binding=require",
                    Err("channel binding required, but SSL not in use"),
                ),
                (
                    "sslmode=require channel_binding=require password=wrong",
                    Err("password authentication failed"),
                ),
                (
                    "sslmode=require channel_binding=require user=postgres",
                    Err("channel binding required, but server authenticated client without channel binding"),
                ),
                ("sslmode=require require_auth=scram-sha-256", Ok("tls")),
                (
                    "sslmode=require require_auth=md5,password",
                    Err("server requested SCRAM-SHA-256 authentication"),
                ),
                (
                    "sslmode=require require_auth=scram-sha-256 user=postgres",
                    Err("did not complete authentication"),
                ),
                ("sslmode=require require_auth=none user=postgres", Ok("tls")),
            ] {
                expect(&format!("{tcp} {settings}"), &home, expected);
            }
        }
    }
}

#[test]
fn backups_over_tls() {
    let authority = Authority::new("the authority");
    for major in versions() {
        eprintln!("PostgreSQL {major}");
        let source = secured(major, &authority);
        source.sql().execute("SELECT pg_create_physical_replication_slot('held', true)");
        source.sql().execute(
            "CREATE TABLE filling AS SELECT n, repeat(md5(n::text), 20) AS text FROM generate_series(1, 60000) n",
        );
        let root = source.client_file("root.crt", &authority.root());
        let identity =
            authority.sign(&Subject { common_name: Some("by_cert"), serial: 31, ..Subject::default() });
        let certificate = source.client_file("c.crt", &identity.certificate);
        let key = source.client_file("c.key", &identity.key);
        let full = format!("{} sslmode=verify-full sslrootcert={}", to(&source), root.display());
        let bound = format!("{full} user=scram channel_binding=require");
        let by_cert = format!(
            "{full} user=by_cert sslcert={} sslkey={} ssl_max_protocol_version=TLSv1.2",
            certificate.display(),
            key.display()
        );
        for (name, conninfo, written) in
            [("bound", bound, "channel_binding=require"), ("by cert", by_cert, "sslcert=")]
        {
            let copy = source.dir(name);
            let run = harness::pgstrata(["basebackup", "-c", "fast", "-R", "-d", &conninfo, "-D"]).arg(&copy);
            let run = run.env("PGPASSWORD", "geheim").env("HOME", source.dir("nobody"));
            run.run().expect_success();
            Manifest::check(&copy);
            harness::verify_backup(&copy, major).expect_good();
            let settings = fs::read_to_string(copy.join("postgresql.auto.conf")).unwrap();
            for part in ["sslmode=''verify-full''", "sslrootcert=''", written] {
                assert!(settings.contains(part), "{part}: {settings}");
            }
            // The other way of receiving: WAL, with words that go back all the time.
            let dir = source.dir(&format!("{name} wal"));
            fs::create_dir(&dir).unwrap();
            // The backup's end has switched to a new segment.
            source.sql().execute(&format!("CREATE TABLE \"{name}\" (i int)"));
            let end: String = source.sql().value("SELECT pg_current_wal_flush_lsn() - 1");
            let run =
                harness::pgstrata(["receivewal", "-n", "-S", "held", "-E", &end, "-d", &conninfo, "-D"]);
            run.arg(&dir)
                .env("PGPASSWORD", "geheim")
                .env("HOME", source.dir("nobody"))
                .run()
                .expect_success();
            let (mut whole, mut partial) = (0, 0);
            for entry in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
                match entry.extension() {
                    Some(_) => partial += 1,
                    None => {
                        let theirs = source.data_dir().join("pg_wal").join(entry.file_name().unwrap());
                        assert!(
                            fs::read(&entry).unwrap() == fs::read(theirs).unwrap(),
                            "{}",
                            entry.display()
                        );
                        whole += 1;
                    }
                }
            }
            // Older servers' slots cannot be asked where they stand.
            assert!(
                partial == 1 && (whole > 0 || major < 15),
                "{major}: {whole} segments, {partial} partial"
            );
        }
        // The lines of this role and database are all hostssl.
        let plain = format!("{} user=scram sslmode=disable", to(&source));
        let refused = harness::pgstrata(["basebackup", "--discard", "-N", "-w", "-d", &plain]).run();
        refused.expect_failure().expect_stderr("no pg_hba.conf entry for replication connection");
    }
}
