//! Connection settings, resolved the way libpq resolves them and checked once.
//!
//! Order of precedence: flags, then the connection string, then its service, then `PG…` environment variables, then
//! defaults, as `GetConnection` of pg_basebackup's `streamutil.c` has it. An empty value counts as not given.
//! A setting that asks for something this program cannot do is refused by name, wherever it came from.
//! Resolving reads no file but the service file, where a service is named.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgstrata_protocol::wire::{BindingMode, RequiredMethods};

use super::conninfo;
use super::hosts::{self, Host, Target};
use super::keyword::Keyword;
use super::locale_encoding::encoding_of_locale;
use super::passfile::Wanted;
use super::setting_values::{Values, check, gather};
use super::settings_error::SettingsError;
use super::surroundings::Surroundings;
use super::tls_settings::{TlsSettings, strengthen_for_system_roots};

/// What the user gave, before the environment and the defaults.
#[derive(Clone, Copy, Default, Debug)]
pub struct GivenSettings<'a> {
    /// `-d`: keywords and values, or a URI.
    pub conninfo: Option<&'a str>,
    /// `-h`.
    pub host: Option<&'a str>,
    /// `-p`.
    pub port: Option<&'a str>,
    /// `-U`.
    pub user: Option<&'a str>,
    /// The database for SQL connections.
    pub database: Option<&'a str>,
    /// The program's name, for servers' logs and views when no application name is given.
    pub program: Option<&'a str>,
}

/// A password, which no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// `target_session_attrs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanting {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// Keywords and values for a connection string, some of which are secrets.
#[derive(Clone)]
struct Written(Vec<(&'static str, String)>);

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().filter(|(name, _)| *name != "sslpassword");
        f.debug_map().entries(shown.map(|(name, value)| (name, value))).finish()
    }
}

/// TCP keepalive, zero and absent meaning the system's own values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Keepalive {
    pub(super) enabled: bool,
    pub(super) idle: Option<Duration>,
    pub(super) interval: Option<Duration>,
    pub(super) count: Option<u32>,
}

/// Checked settings of a connection.
#[derive(Clone, Debug)]
pub struct ConnectionSettings {
    /// Never empty; tried in this order unless they are balanced.
    pub(super) hosts: Vec<Host>,
    pub(super) balance: bool,
    pub(super) wanting: Wanting,
    pub(super) tls: TlsSettings,
    pub(super) binding: BindingMode,
    pub(super) required_methods: Option<RequiredMethods>,
    /// The operating system user that a server behind a Unix socket must run as.
    pub(super) peer: Option<String>,
    pub(super) user: String,
    pub(super) password: Option<Password>,
    /// Given, or `~/.pgpass`.
    passfile: Option<PathBuf>,
    passfile_given: bool,
    database: Option<String>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) keepalive: Keepalive,
    pub(super) tcp_user_timeout: Option<Duration>,
    /// Further parameters of the startup message, in order.
    parameters: Vec<(&'static str, String)>,
    /// The default socket folder, which `.pgpass` calls `localhost`.
    socket_directory: PathBuf,
    /// For `primary_conninfo`: every keyword's value but the password's, passfile's and database's.
    values: Written,
}

impl ConnectionSettings {
    /// Resolves what was given against its surroundings.
    ///
    /// # Errors
    /// [`SettingsError`] where a setting is malformed, unknown to libpq, or not supported here.
    pub fn resolve(given: &GivenSettings<'_>, around: &Surroundings<'_>) -> Result<Self, SettingsError> {
        let mut values = gather(given, around)?;
        strengthen_for_system_roots(&mut values);
        let hosts = hosts::resolve(&values, around)?;
        let only_unix = hosts.iter().all(|host| host.unix_socket().is_some());
        for (keyword, value, origin) in values.iter() {
            check(keyword, value, origin, only_unix)?;
        }
        let tls = TlsSettings::resolve(&values, around, only_unix)?;
        let user = values.text("user").or_else(|| around.os_user.clone()).ok_or(SettingsError::NoUser)?;
        let kept = |keyword: &Keyword| {
            !matches!(
                keyword.name,
                "password"
                    | "passfile"
                    | "dbname"
                    | "replication"
                    | "fallback_application_name"
                    | "user"
                    // What a service said stands in its settings; its file may not be where the string is used.
                    | "service"
                    | "servicefile"
            )
        };
        let mut written = vec![("user", user.clone())];
        written.extend(
            values
                .iter()
                .filter(|(keyword, ..)| kept(keyword))
                .map(|(keyword, value, _)| (keyword.name, value.to_owned())),
        );
        let parameters = parameters(&values, given, around, &mut written)?;
        let home_passfile = around.home.as_ref().map(|home| home.join(".pgpass"));
        Ok(Self {
            hosts,
            balance: values.get("load_balance_hosts").is_some_and(|(value, _)| value == "random"),
            wanting: match values.get("target_session_attrs") {
                Some(("read-write", _)) => Wanting::ReadWrite,
                Some(("read-only", _)) => Wanting::ReadOnly,
                Some(("primary", _)) => Wanting::Primary,
                Some(("standby", _)) => Wanting::Standby,
                Some(("prefer-standby", _)) => Wanting::PreferStandby,
                _ => Wanting::Any,
            },
            tls,
            binding: match values.get("channel_binding") {
                Some(("disable", _)) => BindingMode::Disable,
                Some(("require", _)) => BindingMode::Require,
                _ => BindingMode::Prefer,
            },
            required_methods: values
                .get("require_auth")
                .map(|(methods, _)| RequiredMethods::parse(methods))
                .transpose()?,
            peer: values.text("requirepeer"),
            user,
            password: values.text("password").map(Password),
            passfile_given: values.get("passfile").is_some(),
            passfile: values.text("passfile").map(PathBuf::from).or(home_passfile),
            database: values.text("dbname"),
            connect_timeout: values.seconds("connect_timeout")?,
            keepalive: Keepalive {
                enabled: values.integer("keepalives")?.is_none_or(|number| number != 0),
                idle: values.seconds("keepalives_idle")?,
                interval: values.seconds("keepalives_interval")?,
                count: values
                    .integer("keepalives_count")?
                    .and_then(|number| u32::try_from(number).ok())
                    .filter(|number| *number > 0),
            },
            tcp_user_timeout: values
                .integer("tcp_user_timeout")?
                .and_then(|number| u64::try_from(number).ok())
                .filter(|number| *number > 0)
                .map(Duration::from_millis),
            parameters,
            socket_directory: around.socket_directory.clone(),
            values: Written(written),
        })
    }

    /// The same settings with this password, as asked from a terminal.
    #[must_use]
    pub fn with_password(mut self, password: String) -> Self {
        self.password = Some(Password::new(password));
        self
    }

    /// The same settings for another database. Replication connections name no database.
    #[must_use]
    pub fn with_database(mut self, database: &str) -> Self {
        self.database = Some(database.to_owned());
        self
    }

    /// The same settings for this database, unless one was named.
    #[must_use]
    pub fn or_database(mut self, database: &str) -> Self {
        self.database.get_or_insert_with(|| database.to_owned());
        self
    }

    /// The database of SQL connections, where one was given.
    #[must_use]
    pub fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    /// The user name the server is asked for.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The first server's port, which is part of the name of a Unix socket too.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.hosts[0].port
    }

    /// Of the first server the folder of the Unix socket, the host name, or the address in lack of a name.
    #[must_use]
    pub fn host(&self) -> String {
        self.hosts[0].name()
    }

    /// Whether a password was given: by setting, variable or [`Self::with_password`], not by password file.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// The path of the first server's Unix socket, if it has one.
    #[must_use]
    pub fn unix_socket(&self) -> Option<PathBuf> {
        self.hosts[0].unix_socket()
    }

    /// The connection string that `-R` writes as `primary_conninfo`, not yet quoted for a configuration file.
    ///
    /// All settings but `replication`, `dbname` and `fallback_application_name`, defaults included, as
    /// `GenerateRecoveryConfig` (`src/fe_utils/recovery_gen.c`) has it; the password in clear if one was given,
    /// else the password file; `dbname` last, where one was given.
    #[must_use]
    pub fn primary_conninfo(&self) -> String {
        let mut text = String::new();
        for (at, (name, value)) in self.values.0.iter().enumerate() {
            conninfo::append_pair(&mut text, name, value);
            if at > 0 {
                continue;
            }
            // "user" comes first, and these next.
            if let Some(password) = self.password.as_ref().filter(|password| !password.0.is_empty()) {
                conninfo::append_pair(&mut text, "password", password.reveal());
            }
            let passfile = self.passfile.as_deref().and_then(Path::to_str);
            if let Some(passfile) = passfile.filter(|_| self.passfile_given || self.password.is_none()) {
                conninfo::append_pair(&mut text, "passfile", passfile);
            }
        }
        if let Some(database) = &self.database {
            conninfo::append_pair(&mut text, "dbname", database);
        }
        text
    }

    /// The database of a SQL connection.
    pub(super) fn sql_database(&self) -> &str {
        self.database.as_deref().unwrap_or(&self.user)
    }

    /// Startup parameters besides `user`, `database` and `replication`.
    pub(super) fn parameters(&self) -> &[(&'static str, String)] {
        &self.parameters
    }

    /// The password file to ask where no password was given.
    pub(super) fn passfile(&self) -> Option<&Path> {
        self.passfile.as_deref().filter(|_| self.password.is_none())
    }

    /// Asks `look` with what a password file is searched for.
    pub(super) fn with_wanted<T>(
        &self,
        host: &Host,
        database: &str,
        look: impl FnOnce(Wanted<'_>) -> T,
    ) -> T {
        let name = match &host.target {
            Target::Unix { directory } if *directory == self.socket_directory => "localhost".to_owned(),
            Target::Unix { .. } | Target::Tcp { .. } => host.name(),
        };
        look(Wanted { host: &name, port: &host.port.to_string(), database, user: &self.user })
    }
}

/// The startup message's further parameters (`build_startup_packet`, `fe-protocol3.c`).
fn parameters(
    values: &Values,
    given: &GivenSettings<'_>,
    around: &Surroundings<'_>,
    written: &mut [(&'static str, String)],
) -> Result<Vec<(&'static str, String)>, SettingsError> {
    let mut parameters = Vec::new();
    let application = values
        .text("application_name")
        .or_else(|| values.text("fallback_application_name"))
        .or_else(|| given.program.filter(|program| !program.is_empty()).map(str::to_owned));
    parameters.extend(application.map(|name| ("application_name", name)));
    if let Some(mut encoding) = values.text("client_encoding") {
        if encoding == "auto" {
            encoding = encoding_of_locale(around.variable).map_err(SettingsError::LocaleEncoding)?.to_owned();
            for (_, value) in written.iter_mut().filter(|(name, _)| *name == "client_encoding") {
                value.clone_from(&encoding);
            }
        }
        parameters.push(("client_encoding", encoding));
    }
    parameters.extend(values.text("options").map(|options| ("options", options)));
    for (variable, parameter) in [("PGDATESTYLE", "datestyle"), ("PGTZ", "timezone"), ("PGGEQO", "geqo")] {
        let Some(value) = (around.variable)(variable) else { continue };
        let value = value.into_string().map_err(|_| SettingsError::NotUtf8(variable))?;
        if !value.eq_ignore_ascii_case("default") {
            parameters.push((parameter, value));
        }
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests;
