//! Precedence, refusals, defaults and `primary_conninfo` as tables over invented surroundings.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::connect::tls_settings::{Roots, SslMode};

/// Resolves in surroundings with these variables, the OS user `me`, the home `/home/me` and sockets in `/run/pg`.
fn resolve(
    given: &GivenSettings<'_>,
    variables: &[(&str, &str)],
) -> Result<ConnectionSettings, SettingsError> {
    let variable = |name: &str| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
    };
    let around = Surroundings {
        variable: &variable,
        os_user: Some("me".to_owned()),
        home: Some(PathBuf::from("/home/me")),
        socket_directory: PathBuf::from("/run/pg"),
    };
    ConnectionSettings::resolve(given, &around)
}

fn conninfo(text: &str) -> Result<ConnectionSettings, SettingsError> {
    resolve(&GivenSettings { conninfo: Some(text), ..GivenSettings::default() }, &[])
}

#[test]
fn defaults() {
    let settings = conninfo("").unwrap();
    assert_eq!(settings.host(), "/run/pg");
    assert_eq!(settings.unix_socket(), Some(PathBuf::from("/run/pg/.s.PGSQL.5432")));
    assert_eq!((settings.port(), settings.user(), settings.sql_database()), (5432, "me", "me"));
    assert!(!settings.has_password());
    assert_eq!(settings.passfile(), Some(Path::new("/home/me/.pgpass")));
    assert_eq!(settings.connect_timeout, None);
    assert_eq!(settings.tcp_user_timeout, None);
    assert_eq!(settings.keepalive, Keepalive { enabled: true, idle: None, interval: None, count: None });
    assert_eq!(settings.parameters(), &[]);
}

#[test]
fn precedence() {
    let variables = &[
        ("PGHOST", "from-env"),
        ("PGPORT", "1"),
        ("PGUSER", "env-user"),
        ("PGDATABASE", "env-db"),
        ("PGPASSWORD", "env-password"),
        ("PGAPPNAME", "env-app"),
    ];
    let both = GivenSettings {
        conninfo: Some(
            "host=from-string port=2 user=string-user password=string-password application_name=string",
        ),
        host: Some("from-flag"),
        port: Some("3"),
        user: Some("flag-user"),
        database: Some("flag-db"),
        program: Some("program"),
    };
    let string = GivenSettings { conninfo: both.conninfo, program: both.program, ..GivenSettings::default() };
    // Empty values are none: in a string, as a flag, in the environment.
    let empty =
        GivenSettings { conninfo: Some("host='' user=''"), port: Some(""), ..GivenSettings::default() };
    for (given, variables, host, port, user, database, password, application) in [
        (
            &both,
            &variables[..],
            "from-flag",
            3,
            "flag-user",
            "flag-db",
            Some("string-password"),
            Some("string"),
        ),
        (
            &string,
            variables,
            "from-string",
            2,
            "string-user",
            "env-db",
            Some("string-password"),
            Some("string"),
        ),
        (&empty, variables, "from-env", 1, "env-user", "env-db", Some("env-password"), Some("env-app")),
        (&empty, &[("PGHOST", ""), ("PGUSER", "")], "/run/pg", 5432, "me", "me", None, None),
    ] {
        let settings = resolve(given, variables).unwrap();
        let found = settings.parameters().iter().find(|(name, _)| *name == "application_name");
        assert_eq!(settings.host(), host, "{given:?}");
        assert_eq!((settings.port(), settings.user()), (port, user), "{given:?}");
        assert_eq!(settings.sql_database(), database, "{given:?}");
        assert_eq!(settings.password.as_ref().map(Password::reveal), password, "{given:?}");
        assert_eq!(found.map(|(_, value)| value.as_str()), application, "{given:?}");
    }
}

#[test]
fn targets() {
    for (text, target) in [
        ("host=/tmp", Target::Unix { directory: "/tmp".into() }),
        ("host=@abstract", Target::Unix { directory: "@abstract".into() }),
        ("host=db.example", Target::Tcp { host: "db.example".into(), address: None }),
        ("hostaddr=::1", Target::Tcp { host: String::new(), address: Some("::1".into()) }),
        ("host=db hostaddr=192.0.2.1", Target::Tcp { host: "db".into(), address: Some("192.0.2.1".into()) }),
        (
            "host=/tmp hostaddr=fe80::1%lo",
            Target::Tcp { host: "/tmp".into(), address: Some("fe80::1%lo".into()) },
        ),
        ("postgresql://[::1]", Target::Tcp { host: "::1".into(), address: None }),
    ] {
        assert_eq!(conninfo(text).unwrap().hosts[0].target, target, "{text}");
    }
    assert_eq!(conninfo("hostaddr=::1").unwrap().host(), "::1");
}

#[test]
fn several_hosts() {
    let hosts = |text: &str| {
        let settings = conninfo(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        settings
            .hosts
            .iter()
            .map(|host| format!("{}:{}", host.name(), host.port))
            .collect::<Vec<_>>()
            .join(" ")
    };
    for (text, expected) in [
        ("host=a,b", "a:5432 b:5432"),
        ("host=a,b port=1", "a:1 b:1"),
        ("host=a,b,c port=1,,3", "a:1 b:5432 c:3"),
        ("host=a,,/tmp", "a:5432 /run/pg:5432 /tmp:5432"),
        ("hostaddr=192.0.2.1,192.0.2.2 port=1,2", "192.0.2.1:1 192.0.2.2:2"),
        ("host=a,b hostaddr=192.0.2.1,", "a:5432 b:5432"),
        ("postgresql://a:1,b:2/", "a:1 b:2"),
        ("postgresql://a,b:2/", "a:5432 b:2"),
        ("postgresql://[::1]:1,b/?target_session_attrs=standby", "::1:1 b:5432"),
    ] {
        assert_eq!(hosts(text), expected, "{text}");
    }
    let written = conninfo("host=a,b port=1,2 target_session_attrs=primary").unwrap().primary_conninfo();
    assert!(written.contains(" host='a,b' port='1,2' ") && written.ends_with("=primary"), "{written}");
}

#[test]
fn tls() {
    let settings = conninfo("host=h sslrootcert=system").unwrap();
    assert_eq!((settings.tls.mode, &settings.tls.roots), (SslMode::VerifyFull, &Roots::System));
    let settings = conninfo("host=h sslmode=require").unwrap();
    assert_eq!(settings.tls.roots, Roots::File("/home/me/.postgresql/root.crt".into()));
    assert_eq!(settings.tls.key, Some("/home/me/.postgresql/postgresql.key".into()));
    assert_eq!(settings.tls.crl_file, Some("/home/me/.postgresql/root.crl".into()));
    assert_eq!(conninfo("host=h sslcrldir=/crls").unwrap().tls.crl_file, None);
    for (text, versions) in [
        ("", (true, true)),
        ("ssl_min_protocol_version=TLSv1.3", (false, true)),
        ("ssl_max_protocol_version=TLSv1.2", (true, false)),
        ("ssl_min_protocol_version=TLSv1.1 ssl_max_protocol_version=tlsv1.3", (true, true)),
    ] {
        assert_eq!(conninfo(text).unwrap().tls.versions, versions, "{text}");
    }
    // A standby made from it connects in the same way; logs do not show how.
    let settings = conninfo("host=h sslmode=verify-ca sslcert=/c sslkey=/k sslpassword=geheim").unwrap();
    let written = settings.primary_conninfo();
    assert!(
        written.contains(" sslmode='verify-ca' ") && written.contains(" sslpassword=geheim "),
        "{written}"
    );
    assert!(!format!("{settings:?}").contains("geheim"));
}

#[test]
fn services() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("services");
    std::fs::write(&file, "[mine]\nhost=from-service\nport=7\nuser=served\n").unwrap();
    let file = file.to_str().unwrap();
    let given = |text| GivenSettings { conninfo: Some(text), ..GivenSettings::default() };
    let variables = [("PGSERVICEFILE", file), ("PGHOST", "from-env"), ("PGPORT", "1"), ("PGAPPNAME", "env")];
    for (text, variables, expected) in [
        ("service=mine", &variables[..], "from-service:7 served"),
        ("service=mine host=h", &variables, "h:7 served"),
        ("host=h port=8", &[("PGSERVICE", "mine"), ("PGSERVICEFILE", file)], "h:8 served"),
        ("", &variables, "from-env:1 me"),
    ] {
        let settings = resolve(&given(text), variables).unwrap();
        assert_eq!(
            format!("{}:{} {}", settings.host(), settings.port(), settings.user()),
            expected,
            "{text}"
        );
        assert!(!settings.primary_conninfo().contains("service="), "{}", settings.primary_conninfo());
    }
    assert!(matches!(resolve(&given("service=other"), &variables), Err(SettingsError::Service(_))));
}

#[test]
fn timeouts_and_keepalives() {
    let seconds = |n| Some(Duration::from_secs(n));
    for (text, connect, keepalive, user_timeout) in [
        ("connect_timeout=5", seconds(5), (true, None, None, None), None),
        ("connect_timeout=' 1 '", seconds(1), (true, None, None, None), None),
        ("connect_timeout=0", None, (true, None, None, None), None),
        ("connect_timeout=-3 tcp_user_timeout=0", None, (true, None, None, None), None),
        ("keepalives=0", None, (false, None, None, None), None),
        (
            "keepalives=1 keepalives_idle=60 keepalives_interval=7 keepalives_count=3 tcp_user_timeout=1500",
            None,
            (true, seconds(60), seconds(7), Some(3)),
            Some(Duration::from_millis(1500)),
        ),
        ("keepalives_idle=0 keepalives_count=-1", None, (true, None, None, None), None),
    ] {
        let settings = conninfo(text).unwrap();
        let (enabled, idle, interval, count) = keepalive;
        assert_eq!(settings.connect_timeout, connect, "{text}");
        assert_eq!(settings.keepalive, Keepalive { enabled, idle, interval, count }, "{text}");
        assert_eq!(settings.tcp_user_timeout, user_timeout, "{text}");
    }
}

#[test]
fn startup_parameters() {
    let program = GivenSettings { program: Some("backup"), ..GivenSettings::default() };
    let with = |text| GivenSettings { conninfo: Some(text), ..program };
    for (given, variables, parameters) in [
        (program, &[][..], &[("application_name", "backup")][..]),
        (with("fallback_application_name=own"), &[], &[("application_name", "own")]),
        (with("application_name=a fallback_application_name=own"), &[], &[("application_name", "a")]),
        (
            with("options='-c x=y' client_encoding=LATIN1"),
            &[("PGTZ", "UTC"), ("PGDATESTYLE", "Default"), ("PGGEQO", "off"), ("PGCLIENTENCODING", "UTF8")],
            &[
                ("application_name", "backup"),
                ("client_encoding", "LATIN1"),
                ("options", "-c x=y"),
                ("timezone", "UTC"),
                ("geqo", "off"),
            ],
        ),
        (
            program,
            &[("PGCLIENTENCODING", "auto"), ("LC_ALL", "C.UTF-8"), ("PGOPTIONS", "-c a=b")],
            &[("application_name", "backup"), ("client_encoding", "UTF8"), ("options", "-c a=b")],
        ),
    ] {
        let settings = resolve(&given, variables).unwrap();
        let found: Vec<_> =
            settings.parameters().iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(found, parameters, "{given:?}");
    }
}

#[test]
fn values_that_mean_what_is_done_are_taken() {
    for text in [
        // What pg_basebackup writes into primary_conninfo reads back.
        "user=u passfile=/p channel_binding=prefer host=h port=5432 sslmode=prefer sslcompression=0 sslsni=1 \
         ssl_min_protocol_version=TLSv1.2 gssencmode=prefer krbsrvname=postgres target_session_attrs=any",
        "sslmode=disable host=h",
        "sslmode=allow host=h channel_binding=disable gssencmode=disable",
        "replication=true",
        "load_balance_hosts=disable sslcertmode=allow sslnegotiation=postgres gssdelegation=0",
        "max_protocol_version=latest min_protocol_version=3.0",
        // TLS settings mean nothing on a Unix socket, to libpq neither.
        "host=/tmp sslmode=verify-full sslrootcert=/x sslcompression=1 ssl_min_protocol_version=TLSv1 \
         ssl_max_protocol_version=TLSv1.1",
        "host=h ssl_min_protocol_version=tlsv1 ssl_max_protocol_version=TLSv1.3",
        "host=h sslmode=require sslnegotiation=direct",
        "host=h sslmode=verify-full sslrootcert=system",
        "host=a,b,/tmp port=1,,3 target_session_attrs=prefer-standby load_balance_hosts=random",
        "requirepeer=postgres require_auth=!password,!none sslcertmode=require",
        "sslcert='' sslmode='' host=h",
    ] {
        conninfo(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

#[test]
fn refusals() {
    for (text, message) in [
        ("host=h sslcompression=1", "sslcompression=1: compression within TLS"),
        ("host=h sslkeylogfile=/x", "sslkeylogfile=/x: logging TLS keys"),
        (
            "host=h ssl_min_protocol_version=TLSv1 ssl_max_protocol_version=TLSv1.1",
            "ssl_max_protocol_version=TLSv1.1: TLS is spoken from",
        ),
        ("ssl_max_protocol_version=TLSv9", "invalid ssl_max_protocol_version value: \"TLSv9\""),
        (
            "host=h ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
            "invalid SSL protocol version",
        ),
        (
            "host=h sslnegotiation=direct",
            "weak sslmode \"prefer\" may not be used with sslnegotiation=direct",
        ),
        (
            "host=h sslrootcert=system sslmode=require",
            "weak sslmode \"require\" may not be used with sslrootcert",
        ),
        ("gssencmode=require", "gssencmode=require: GSSAPI is not supported"),
        ("krbsrvname=pg", "krbsrvname=pg: GSSAPI"),
        ("host=a,b hostaddr=192.0.2.1", "could not match 2 host names to 1 hostaddr values"),
        ("host=a,b port=1,2,3", "could not match 3 port numbers to 2 hosts"),
        ("port=1,2", "could not match 2 port numbers to 1 hosts"),
        ("host=a,b port=1,x", "invalid integer value \"x\" for connection option \"port\""),
        ("host=a,b port=1,0", "invalid port number: \"0\""),
        ("hostaddr=192.0.2.1,host", "could not parse network address \"host\""),
        ("require_auth=ident", "invalid require_auth value: \"ident\""),
        ("load_balance_hosts=yes", "invalid load_balance_hosts value: \"yes\""),
        ("servicefile=/nowhere/at/all service=x", "service file \"/nowhere/at/all\" not found"),
        ("replication=database", "replication=database: only physical replication"),
        ("min_protocol_version=3.2", "min_protocol_version=3.2: only protocol version 3.0"),
        ("scram_client_key=abc", "scram_client_key=(hidden): SCRAM keys"),
        ("oauth_issuer=x", "oauth_issuer=x: OAuth"),
        ("sslmode=on", "invalid sslmode value: \"on\""),
        ("channel_binding=x", "invalid channel_binding value: \"x\""),
        ("gssencmode=x", "invalid gssencmode value: \"x\""),
        ("target_session_attrs=x", "invalid target_session_attrs value: \"x\""),
        ("port=abc", "invalid integer value \"abc\" for connection option \"port\""),
        ("postgresql://h:1:2/", "invalid integer value \"1:2\" for connection option \"port\""),
        ("port=0", "invalid port number: \"0\""),
        ("port=70000", "invalid port number: \"70000\""),
        ("port=-1", "invalid port number: \"-1\""),
        ("connect_timeout=1x", "invalid integer value \"1x\" for connection option \"connect_timeout\""),
        ("connect_timeout=99999999999", "invalid integer value"),
        ("keepalives=on", "invalid integer value \"on\" for connection option \"keepalives\""),
        ("tcp_user_timeout=1s", "invalid integer value"),
        ("hostaddr=localhost", "could not parse network address \"localhost\""),
        ("user='a\0b'", "the value of user contains a zero byte"),
        ("client_encoding=auto", "SQL_ASCII"),
        ("nonsense=1", "invalid connection option \"nonsense\""),
    ] {
        match conninfo(text) {
            Err(error) => assert!(error.to_string().starts_with(message), "{text}: {error}"),
            // The last resort of client_encoding=auto is no refusal.
            Ok(settings) => {
                assert_eq!(settings.parameters(), &[("client_encoding", message.to_owned())], "{text}");
            }
        }
    }
    let long = format!("host=/{}", "x".repeat(100));
    assert!(matches!(conninfo(&long), Err(SettingsError::SocketPath { .. })));
}

#[test]
fn refusals_from_the_environment_name_the_variable() {
    let given = GivenSettings { host: Some("h"), ..GivenSettings::default() };
    for (variable, value, message) in [
        ("PGSSLMODE", "on", "invalid sslmode (from the environment variable PGSSLMODE) value: \"on\""),
        (
            "PGSSLCOMPRESSION",
            "1",
            "sslcompression (from the environment variable PGSSLCOMPRESSION)=1: compression",
        ),
        ("PGTARGETSESSIONATTRS", "x", "invalid target_session_attrs (from the environment variable"),
        ("PGPORT", "x", "invalid integer value \"x\" for connection option \"port (from"),
        ("PGREQUIREAUTH", "some", "invalid require_auth value"),
    ] {
        let error = resolve(&given, &[(variable, value)]).unwrap_err().to_string();
        assert!(error.starts_with(message), "{variable}: {error}");
    }
    // A string that says otherwise overrides the variable.
    let given = GivenSettings { conninfo: Some("host=h sslmode=disable"), ..GivenSettings::default() };
    let settings = resolve(&given, &[("PGSSLMODE", "require")]).unwrap();
    assert_eq!(settings.tls.mode, SslMode::Disable);
}

#[test]
fn no_user_is_an_error() {
    let around =
        Surroundings { variable: &|_| None, os_user: None, home: None, socket_directory: "/tmp".into() };
    assert!(matches!(
        ConnectionSettings::resolve(&GivenSettings::default(), &around),
        Err(SettingsError::NoUser)
    ));
}

#[test]
fn primary_conninfo() {
    let rest = "sslmode=prefer sslcompression=0 ssl_min_protocol_version=TLSv1.2 gssencmode=prefer \
                krbsrvname=postgres target_session_attrs=any";
    for (text, expected) in [
        ("", "user=me passfile='/home/me/.pgpass' channel_binding=prefer port=5432 @".to_owned()),
        (
            "host=/tmp port=54 user=postgres application_name='a b\\' c' password=x dbname=foo keepalives_idle=10 \
             replication=true fallback_application_name=f",
            "user=postgres password=x channel_binding=prefer host='/tmp' port=54 application_name='a b\\' c' \
             keepalives_idle=10 @ dbname=foo"
                .to_owned(),
        ),
        (
            "passfile=/p password='p\\\\w\\''",
            "user=me password='p\\\\w\\'' passfile='/p' channel_binding=prefer port=5432 @".to_owned(),
        ),
        (
            "hostaddr=127.0.0.1 host=db.example client_encoding=auto connect_timeout=3",
            "user=me passfile='/home/me/.pgpass' channel_binding=prefer connect_timeout=3 host=db.example \
             hostaddr=127.0.0.1 port=5432 client_encoding=SQL_ASCII @"
                .to_owned(),
        ),
    ] {
        assert_eq!(conninfo(text).unwrap().primary_conninfo(), expected.replace('@', rest), "{text}");
    }
    let asked = conninfo("").unwrap().with_password("asked".to_owned()).primary_conninfo();
    assert!(asked.starts_with("user=me password=asked channel_binding"), "{asked}");
    // What is written resolves to the same again.
    let first = conninfo("host=h user='a b' options='-c x=\\'y\\''").unwrap().primary_conninfo();
    assert_eq!(conninfo(&first).unwrap().primary_conninfo(), first);
}

#[test]
fn passwords_stay_out_of_debug_output_and_errors() {
    let settings = conninfo("host=h password=geheim").unwrap();
    assert!(!format!("{settings:?}").contains("geheim"));
    for text in [
        "password='geheim",
        "password=geheim nonsense=1",
        "postgresql://u:%geheim@h",
        "password=geheim port=x",
    ] {
        let error = conninfo(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("geheim"), "{text}: {error}");
    }
}

#[test]
fn password_file_keys() {
    for (text, host) in [
        ("", "localhost"),
        ("host=/run/pg", "localhost"),
        ("host=/tmp", "/tmp"),
        ("host=h", "h"),
        ("hostaddr=::1", "::1"),
    ] {
        let settings = conninfo(text).unwrap();
        settings.with_wanted(&settings.hosts[0], "replication", |wanted| {
            assert_eq!(wanted.host, host, "{text}");
            assert_eq!((wanted.port, wanted.database, wanted.user), ("5432", "replication", "me"));
        });
    }
}
