//! The servers that may be meant: `host`, `hostaddr` and `port`, each a list or a single value.
//!
//! Lists are matched as `pqConnectOptions2` of libpq (`fe-connect.c`) does: addresses decide how many servers there
//! are, then names; one port serves all of them; an empty item stands for its default.

use std::net::IpAddr;
use std::path::PathBuf;

use super::setting_values::Values;
use super::settings_error::{LONGEST_SOCKET_PATH, SettingsError};
use super::surroundings::Surroundings;

/// `DEF_PGPORT` as everyone builds it.
const DEFAULT_PORT: u16 = 5432;

/// What to connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// A socket in a folder, or in the abstract namespace (a leading `@`).
    Unix { directory: PathBuf },
    /// A name or an address; `address` overrides where the name resolves to.
    Tcp { host: String, address: Option<String> },
}

/// One server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Host {
    pub(super) target: Target,
    pub(super) port: u16,
}

impl Host {
    /// The folder of the Unix socket, the host name, or the address in lack of a name.
    pub(super) fn name(&self) -> String {
        match &self.target {
            Target::Unix { directory } => directory.display().to_string(),
            Target::Tcp { host, address } => match address {
                Some(address) if host.is_empty() => address.clone(),
                _ => host.clone(),
            },
        }
    }

    /// The path of the Unix socket, for one: `DIR/.s.PGSQL.PORT` (`UNIXSOCK_PATH`, `libpq/pqcomm.h`).
    pub(super) fn unix_socket(&self) -> Option<PathBuf> {
        match &self.target {
            Target::Unix { directory } => Some(directory.join(format!(".s.PGSQL.{}", self.port))),
            Target::Tcp { .. } => None,
        }
    }
}

/// The servers in the order given, never none.
pub(super) fn resolve(values: &Values, around: &Surroundings<'_>) -> Result<Vec<Host>, SettingsError> {
    let list = |name| values.get(name).map(|(value, _)| value.split(',').collect::<Vec<_>>());
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = addresses.as_ref().or(names.as_ref()).map_or(1, Vec::len);
    if let Some(names) = names.as_ref().filter(|names| names.len() != count) {
        return Err(SettingsError::HostCount { names: names.len(), addresses: count });
    }
    if let Some(ports) = ports.as_ref().filter(|ports| ports.len() != 1 && ports.len() != count) {
        return Err(SettingsError::PortCount { ports: ports.len(), hosts: count });
    }
    let item = |list: &Option<Vec<&str>>, at: usize| {
        list.as_ref().map(|list| list[at].to_owned()).filter(|item| !item.is_empty())
    };
    let mut hosts = Vec::with_capacity(count);
    for at in 0..count {
        let only_port = ports.as_ref().is_some_and(|ports| ports.len() == 1);
        let port = port_of(values, item(&ports, if only_port { 0 } else { at }))?;
        let host = Host { target: target_of(item(&names, at), item(&addresses, at), around)?, port };
        if let Some(path) = host.unix_socket().filter(|path| path.as_os_str().len() > LONGEST_SOCKET_PATH) {
            return Err(SettingsError::SocketPath { path: path.display().to_string() });
        }
        hosts.push(host);
    }
    Ok(hosts)
}

fn target_of(
    host: Option<String>,
    address: Option<String>,
    around: &Surroundings<'_>,
) -> Result<Target, SettingsError> {
    if let Some(address) = address {
        // A link-local address may carry its interface: fe80::1%eth0.
        let number = address.split_once('%').map_or(address.as_str(), |(number, _)| number);
        if number.parse::<IpAddr>().is_err() {
            return Err(SettingsError::Address(address));
        }
        return Ok(Target::Tcp { host: host.unwrap_or_default(), address: Some(address) });
    }
    Ok(match host {
        None => Target::Unix { directory: around.socket_directory.clone() },
        // `is_unixsock_path` of pqcomm.h: a path, or a name in the abstract namespace.
        Some(host) if host.starts_with(['/', '@']) => Target::Unix { directory: PathBuf::from(host) },
        Some(host) => Target::Tcp { host, address: None },
    })
}

fn port_of(values: &Values, text: Option<String>) -> Result<u16, SettingsError> {
    let Some(text) = text else { return Ok(DEFAULT_PORT) };
    let number = values.integer_in("port", &text)?;
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or(SettingsError::Port(text))
}
