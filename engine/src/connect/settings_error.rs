//! Settings that cannot be used, in libpq's words where libpq has words for it.

use std::fmt;

use pgstrata_protocol::wire::RequireAuthError;

use super::conninfo::ConninfoError;
use super::service_file::ServiceError;

/// Longest path of a Unix socket: `sun_path` of `sys/un.h` less its terminator.
pub(super) const LONGEST_SOCKET_PATH: usize = 107;

/// A setting's name as its user wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SettingName {
    pub(super) keyword: &'static str,
    pub(super) variable: Option<&'static str>,
}

impl fmt::Display for SettingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.variable {
            None => f.write_str(self.keyword),
            Some(variable) => write!(f, "{} (from the environment variable {variable})", self.keyword),
        }
    }
}

/// Settings that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The connection string cannot be read.
    #[error(transparent)]
    Conninfo(#[from] ConninfoError),
    /// A setting that this program does not support.
    #[error("{name}={value}: {reason}\nHINT: {hint}")]
    Unsupported {
        /// The setting.
        name: SettingName,
        /// Its value.
        value: String,
        /// What is missing.
        reason: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A value that libpq does not take either.
    #[error("invalid {name} value: \"{value}\"")]
    Invalid {
        /// The setting.
        name: SettingName,
        /// Its value.
        value: String,
    },
    /// Not a whole number.
    #[error("invalid integer value \"{value}\" for connection option \"{name}\"")]
    NotInteger {
        /// The setting.
        name: SettingName,
        /// Its value.
        value: String,
    },
    /// The service that was named gives no settings.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// A list of methods that libpq does not take either.
    #[error(transparent)]
    RequireAuth(#[from] RequireAuthError),
    /// A list of names that is not as long as that of addresses.
    #[error("could not match {names} host names to {addresses} hostaddr values")]
    HostCount {
        /// Items of `host`.
        names: usize,
        /// Items of `hostaddr`.
        addresses: usize,
    },
    /// A list of ports that is neither one nor as long as that of hosts.
    #[error("could not match {ports} port numbers to {hosts} hosts")]
    PortCount {
        /// Items of `port`.
        ports: usize,
        /// Servers.
        hosts: usize,
    },
    /// TLS from the first byte has nothing to fall back to.
    #[error(
        "weak sslmode \"{mode}\" may not be used with sslnegotiation=direct (use \"require\", \"verify-ca\", or \
         \"verify-full\")"
    )]
    WeakForDirect {
        /// The mode.
        mode: String,
    },
    /// The system's authorities sign for anyone: without the name their word says nothing.
    #[error("weak sslmode \"{mode}\" may not be used with sslrootcert=system (use \"verify-full\")")]
    WeakForSystem {
        /// The mode.
        mode: String,
    },
    /// A lower bound above the upper one.
    #[error("invalid SSL protocol version range")]
    ProtocolRange,
    /// A port outside of 1 to 65535.
    #[error("invalid port number: \"{0}\"")]
    Port(String),
    /// `hostaddr` that is no address.
    #[error(
        "could not parse network address \"{0}\"\nHINT: hostaddr takes an IP address; use host for a name."
    )]
    Address(String),
    /// A socket path that the operating system cannot take.
    #[error(
        "Unix-domain socket path \"{path}\" is too long (maximum {LONGEST_SOCKET_PATH} bytes)\n\
         HINT: give the server a shorter directory in unix_socket_directories, or connect over TCP."
    )]
    SocketPath {
        /// The path.
        path: String,
    },
    /// An environment variable that is no text.
    #[error("the environment variable {0} is not valid UTF-8")]
    NotUtf8(&'static str),
    /// A value that would end the string it is sent in.
    #[error("the value of {0} contains a zero byte")]
    ZeroByte(SettingName),
    /// No user name given, and none known to the operating system.
    #[error("no user name is known\nHINT: give one with -U, user= or PGUSER.")]
    NoUser,
    /// `client_encoding=auto` in a locale whose encoding has no name here.
    #[error(
        "client_encoding=auto: the locale's encoding \"{0}\" is not known\n\
         HINT: name the encoding, for example client_encoding=UTF8."
    )]
    LocaleEncoding(String),
}
