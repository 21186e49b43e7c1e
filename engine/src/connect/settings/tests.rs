//! Precedence, refusals, defaults and `primary_conninfo` as tables over invented surroundings.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::*;

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
        assert_eq!(conninfo(text).unwrap().target, target, "{text}");
    }
    assert_eq!(conninfo("hostaddr=::1").unwrap().host(), "::1");
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
        "host=/tmp sslmode=verify-full sslrootcert=/x",
        "sslcert='' sslmode='' host=h",
    ] {
        conninfo(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

#[test]
fn refusals() {
    for (text, message) in [
        ("host=h sslmode=require", "sslmode=require: TLS is not supported yet"),
        ("host=h sslmode=verify-ca", "sslmode=verify-ca: TLS"),
        ("postgresql://h/?sslmode=verify-full", "sslmode=verify-full: TLS"),
        ("postgresql://h/?ssl=true", "sslmode=require: TLS"),
        ("host=h requiressl=1", "sslmode=require: TLS"),
        ("host=h sslcert=/x", "sslcert=/x: TLS"),
        ("host=h sslkey=/x", "sslkey=/x: TLS"),
        ("host=h sslpassword=geheim", "sslpassword=(hidden): TLS"),
        ("host=h sslrootcert=system", "sslrootcert=system: TLS"),
        ("host=h sslnegotiation=direct", "sslnegotiation=direct: TLS"),
        ("host=h ssl_min_protocol_version=TLSv1.3", "ssl_min_protocol_version=TLSv1.3: TLS"),
        ("channel_binding=require", "channel_binding=require: TLS"),
        ("gssencmode=require", "gssencmode=require: GSSAPI is not supported"),
        ("krbsrvname=pg", "krbsrvname=pg: GSSAPI"),
        ("host=a,b", "host=a,b: choosing among several servers"),
        ("hostaddr=192.0.2.1,192.0.2.2", "hostaddr=192.0.2.1,192.0.2.2: choosing"),
        ("postgresql://a:1,b:2/", "host=a,b: choosing"),
        ("port=1,2", "port=1,2: choosing"),
        ("target_session_attrs=primary", "target_session_attrs=primary: choosing"),
        ("load_balance_hosts=random", "load_balance_hosts=random: choosing"),
        ("service=x", "service=x: connection service files are not supported yet"),
        ("require_auth=none", "require_auth=none: restricting the authentication method"),
        ("requirepeer=postgres", "requirepeer=postgres: checking the server's operating system user"),
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
        ("PGSSLMODE", "require", "sslmode (from the environment variable PGSSLMODE)=require: TLS"),
        ("PGREQUIRESSL", "1", "sslmode (from the environment variable PGREQUIRESSL)=require: TLS"),
        ("PGSERVICE", "x", "service (from the environment variable PGSERVICE)=x: connection service"),
        ("PGTARGETSESSIONATTRS", "standby", "target_session_attrs (from the environment variable"),
        ("PGPORT", "x", "invalid integer value \"x\" for connection option \"port (from"),
        ("PGREQUIREAUTH", "none", "require_auth (from"),
    ] {
        let error = resolve(&given, &[(variable, value)]).unwrap_err().to_string();
        assert!(error.starts_with(message), "{variable}: {error}");
    }
    // A string that says otherwise overrides the variable.
    let given = GivenSettings { conninfo: Some("host=h sslmode=disable"), ..GivenSettings::default() };
    resolve(&given, &[("PGSSLMODE", "require")]).unwrap();
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
        settings.with_wanted("replication", |wanted| {
            assert_eq!(wanted.host, host, "{text}");
            assert_eq!((wanted.port, wanted.database, wanted.user), ("5432", "replication", "me"));
        });
    }
}
