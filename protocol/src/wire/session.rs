//! What a server says of itself by the time it awaits the first query.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::ServerVersion;

/// A session that is ready for its first query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The settings that the server reported, by name.
    pub parameters: BTreeMap<String, String>,
    /// What a cancel request must show; some connection poolers send none.
    pub cancel_key: Option<CancelKey>,
}

/// What a cancel request must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelKey {
    /// The server process.
    pub process_id: i32,
    /// 4 bytes in protocol 3.0.
    pub secret_key: Bytes,
}

/// A server that does not say its version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server reported {}, expected server_version to begin with a number\n\
     HINT: check that host and port belong to a PostgreSQL server.",
    found.as_ref().map_or("no server_version".to_owned(), |text| format!("server_version {text:?}"))
)]
pub struct ServerVersionError {
    /// What it reported.
    pub found: Option<String>,
}

impl SessionInfo {
    /// A reported setting.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The server's version from `server_version`.
    pub fn server_version(&self) -> Result<ServerVersion, ServerVersionError> {
        let found = self.parameter("server_version");
        found
            .and_then(ServerVersion::parse)
            .ok_or_else(|| ServerVersionError { found: found.map(str::to_owned) })
    }
}
