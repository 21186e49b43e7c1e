//! The table of connection keywords: where each takes its value from and which values are honoured.
//!
//! Names, environment variables, defaults and their order follow `PQconninfoOptions` of libpq
//! (`src/interfaces/libpq/fe-connect.c`, releases 13 to 18). A keyword of libpq that asks for something this
//! program cannot do yet is in the table too, so that it is refused by name and never mistaken or ignored.

/// What a keyword's value must be.
#[derive(Debug)]
pub(super) enum Rule {
    /// Read and acted upon.
    Used,
    /// One of these, and acted upon.
    OneOf(&'static [&'static str]),
    /// Only these values describe what this program does; the others of libpq wait for `lack`.
    Only { honoured: &'static [&'static str], later: &'static [&'static str], lack: Lack },
    /// Any value but the keyword's default asks for `lack`.
    Later(Lack),
}

/// What is missing for a refused keyword.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lack {
    TlsCompression,
    TlsKeyLog,
    OldTls,
    Gss,
    OAuth,
    ScramKeys,
    NewerProtocol,
    LogicalReplication,
}

impl Lack {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TlsCompression => "compression within TLS is not supported",
            Self::TlsKeyLog => "logging TLS keys is not supported",
            Self::OldTls => "TLS is spoken from version 1.2 on",
            Self::Gss => "GSSAPI is not supported",
            Self::OAuth => "OAuth is not supported",
            Self::ScramKeys => "SCRAM keys in place of a password are not supported",
            Self::NewerProtocol => "only protocol version 3.0 is spoken",
            Self::LogicalReplication => "only physical replication connections are made",
        }
    }

    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::OldTls => "let the server speak TLS 1.2 or later, and remove the setting.",
            Self::TlsCompression
            | Self::TlsKeyLog
            | Self::Gss
            | Self::OAuth
            | Self::ScramKeys
            | Self::NewerProtocol
            | Self::LogicalReplication => "remove the setting.",
        }
    }

    /// Whether it is of no account where there is no TLS at all.
    pub(super) fn is_of_tls(self) -> bool {
        matches!(self, Self::TlsCompression | Self::TlsKeyLog | Self::OldTls)
    }
}

/// One keyword.
#[derive(Debug)]
pub(super) struct Keyword {
    pub(super) name: &'static str,
    pub(super) variable: Option<&'static str>,
    /// What libpq has compiled in and reports as the connection's value.
    pub(super) default: Option<&'static str>,
    pub(super) rule: Rule,
}

const fn used(name: &'static str, variable: Option<&'static str>, default: Option<&'static str>) -> Keyword {
    Keyword { name, variable, default, rule: Rule::Used }
}

const fn one_of(
    name: &'static str,
    variable: Option<&'static str>,
    default: Option<&'static str>,
    values: &'static [&'static str],
) -> Keyword {
    Keyword { name, variable, default, rule: Rule::OneOf(values) }
}

const fn only(
    name: &'static str,
    variable: Option<&'static str>,
    default: Option<&'static str>,
    honoured: &'static [&'static str],
    later: &'static [&'static str],
    lack: Lack,
) -> Keyword {
    Keyword { name, variable, default, rule: Rule::Only { honoured, later, lack } }
}

const fn later(name: &'static str, variable: Option<&'static str>, lack: Lack) -> Keyword {
    Keyword { name, variable, default: None, rule: Rule::Later(lack) }
}

/// Every keyword, in the order in which libpq lists them, which is the order in `primary_conninfo`.
///
/// Defaults are those that every release from 13 on knows: a string written for one of them is read by all.
#[rustfmt::skip]
pub(super) static KEYWORDS: &[Keyword] = &[
    used("service", Some("PGSERVICE"), None),
    used("servicefile", None, None),
    used("user", Some("PGUSER"), None),
    used("password", Some("PGPASSWORD"), None),
    used("passfile", Some("PGPASSFILE"), None),
    one_of("channel_binding", Some("PGCHANNELBINDING"), Some("prefer"), &["disable", "prefer", "require"]),
    used("connect_timeout", Some("PGCONNECT_TIMEOUT"), None),
    used("dbname", Some("PGDATABASE"), None),
    used("host", Some("PGHOST"), None),
    used("hostaddr", Some("PGHOSTADDR"), None),
    used("port", Some("PGPORT"), Some("5432")),
    used("client_encoding", Some("PGCLIENTENCODING"), None),
    used("options", Some("PGOPTIONS"), None),
    used("application_name", Some("PGAPPNAME"), None),
    used("fallback_application_name", None, None),
    used("keepalives", None, None),
    used("keepalives_idle", None, None),
    used("keepalives_interval", None, None),
    used("keepalives_count", None, None),
    used("tcp_user_timeout", None, None),
    one_of("sslmode", Some("PGSSLMODE"), Some("prefer"), &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]),
    one_of("sslnegotiation", Some("PGSSLNEGOTIATION"), None, &["postgres", "direct"]),
    only("sslcompression", Some("PGSSLCOMPRESSION"), Some("0"), &["0"], &["1"], Lack::TlsCompression),
    used("sslcert", Some("PGSSLCERT"), None),
    used("sslkey", Some("PGSSLKEY"), None),
    one_of("sslcertmode", Some("PGSSLCERTMODE"), None, &["disable", "allow", "require"]),
    used("sslpassword", None, None),
    used("sslrootcert", Some("PGSSLROOTCERT"), None),
    used("sslcrl", Some("PGSSLCRL"), None),
    used("sslcrldir", Some("PGSSLCRLDIR"), None),
    one_of("sslsni", Some("PGSSLSNI"), None, &["0", "1"]),
    later("sslkeylogfile", None, Lack::TlsKeyLog),
    used("requirepeer", Some("PGREQUIREPEER"), None),
    used("require_auth", Some("PGREQUIREAUTH"), None),
    only("min_protocol_version", Some("PGMINPROTOCOLVERSION"), None, &["3.0"], &["3.2", "latest"], Lack::NewerProtocol),
    only("max_protocol_version", Some("PGMAXPROTOCOLVERSION"), None, &["3.0", "3.2", "latest"], &[], Lack::NewerProtocol),
    used("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION"), Some("TLSv1.2")),
    used("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION"), None),
    only("gssencmode", Some("PGGSSENCMODE"), Some("prefer"), &["disable", "prefer"], &["require"], Lack::Gss),
    Keyword { name: "krbsrvname", variable: Some("PGKRBSRVNAME"), default: Some("postgres"), rule: Rule::Later(Lack::Gss) },
    only("gsslib", Some("PGGSSLIB"), None, &["gssapi"], &["sspi"], Lack::Gss),
    only("gssdelegation", Some("PGGSSDELEGATION"), None, &["0"], &["1"], Lack::Gss),
    only("replication", None, None, &["true", "on", "yes", "1"], &["database", "false", "off", "no", "0"], Lack::LogicalReplication),
    one_of("target_session_attrs", Some("PGTARGETSESSIONATTRS"), Some("any"), &["any", "read-write", "read-only", "primary", "standby", "prefer-standby"]),
    one_of("load_balance_hosts", Some("PGLOADBALANCEHOSTS"), None, &["disable", "random"]),
    later("scram_client_key", None, Lack::ScramKeys),
    later("scram_server_key", None, Lack::ScramKeys),
    later("oauth_issuer", None, Lack::OAuth),
    later("oauth_client_id", None, Lack::OAuth),
    later("oauth_client_secret", None, Lack::OAuth),
    later("oauth_scope", None, Lack::OAuth),
];

/// The keyword of that name, exactly as written.
pub(super) fn find(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}

/// Every environment variable that gives the value of a connection keyword which this program acts upon, with that
/// keyword, in the order in which libpq lists them.
pub fn environment_variables() -> impl Iterator<Item = (&'static str, &'static str)> {
    let heeded = KEYWORDS.iter().filter(|keyword| !matches!(keyword.rule, Rule::Later(_)));
    heeded.filter_map(|keyword| Some((keyword.variable?, keyword.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_and_variable_once_and_each_default_honoured() {
        for (at, keyword) in KEYWORDS.iter().enumerate() {
            let others = &KEYWORDS[at + 1..];
            assert!(others.iter().all(|other| other.name != keyword.name), "{}", keyword.name);
            assert!(
                keyword.variable.is_none() || others.iter().all(|other| other.variable != keyword.variable),
                "{}",
                keyword.name
            );
            if let (Rule::Only { honoured, .. } | Rule::OneOf(honoured), Some(default)) =
                (&keyword.rule, keyword.default)
            {
                assert!(honoured.contains(&default), "{}", keyword.name);
            }
        }
    }

    #[test]
    fn the_compatibility_page_has_every_keyword() {
        let page = include_str!("../../../docs/compatibility.md");
        let section = page.split("## Connections").nth(1).and_then(|rest| rest.split("\n## ").next());
        let rows = section.unwrap_or_default().lines().filter_map(|line| line.strip_prefix("| `"));
        let rows: Vec<(&str, bool)> = rows
            .map(|row| {
                let mut cells = row.split('|');
                let name = cells.next().unwrap_or_default().trim().trim_end_matches('`');
                (name, cells.next().unwrap_or_default().trim() == "refused")
            })
            .collect();
        let expected: Vec<(&str, bool)> =
            KEYWORDS.iter().map(|keyword| (keyword.name, matches!(keyword.rule, Rule::Later(_)))).collect();
        assert_eq!(rows, expected);
    }
}
