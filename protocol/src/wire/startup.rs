//! What a client says of itself when it connects.

use std::fmt;

use bytes::BytesMut;

use super::frontend::{self, EncodeError};

/// The parameters of a startup packet.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StartupParameters {
    /// The role to connect as; must not be empty.
    pub user: String,
    /// The database; a replication session needs none and says `replication`, any other defaults to the user's name.
    pub database: Option<String>,
    /// Whether this is a physical replication session, which takes replication commands instead of SQL.
    pub replication: bool,
    /// What `pg_stat_activity` and the server's log call this session.
    pub application_name: Option<String>,
    /// The encoding of texts; the server's own where `None`.
    pub client_encoding: Option<String>,
    /// Server options in the form `-c name=value`.
    pub options: Option<String>,
    /// Further settings by name, sent last.
    pub extra: Vec<(String, String)>,
}

impl StartupParameters {
    /// A physical replication session of `user`, with texts in UTF-8.
    #[must_use]
    pub fn replication(user: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            replication: true,
            client_encoding: Some("UTF8".to_owned()),
            ..Self::default()
        }
    }

    /// An SQL session of `user` in `database`, with texts in UTF-8.
    #[must_use]
    pub fn sql(user: impl Into<String>, database: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            database: Some(database.into()),
            client_encoding: Some("UTF8".to_owned()),
            ..Self::default()
        }
    }

    /// The (name, value) pairs in the order in which they are sent.
    pub(super) fn pairs(&self) -> Vec<(&str, &str)> {
        let mut pairs = vec![("user", self.user.as_str())];
        // A server ignores the database of a physical replication session; the stock tools send this name.
        let database = self.database.as_deref().or(self.replication.then_some("replication"));
        pairs.extend(database.map(|name| ("database", name)));
        if self.replication {
            pairs.push(("replication", "true"));
        }
        pairs.extend(self.options.as_deref().map(|text| ("options", text)));
        pairs.extend(self.application_name.as_deref().map(|name| ("application_name", name)));
        pairs.extend(self.client_encoding.as_deref().map(|name| ("client_encoding", name)));
        pairs.extend(self.extra.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        pairs
    }

    /// The startup packet.
    pub(super) fn encode(&self) -> Result<BytesMut, EncodeError> {
        if self.user.is_empty() {
            return Err(EncodeError::EmptyUser);
        }
        let mut out = BytesMut::new();
        frontend::startup(&self.pairs(), &mut out)?;
        Ok(out)
    }
}

/// What proves the client's identity. `Debug` never shows it.
#[derive(Clone, Default)]
pub struct Credentials {
    password: Option<Vec<u8>>,
}

impl Credentials {
    /// No password: only methods that need none will do.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// A password. An empty one counts as none, as in libpq.
    #[must_use]
    pub fn password(password: impl Into<Vec<u8>>) -> Self {
        Self { password: Some(password.into()).filter(|password| !password.is_empty()) }
    }

    pub(super) fn get(&self) -> Option<&[u8]> {
        self.password.as_deref()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.password.is_some() { "Credentials(password)" } else { "Credentials(none)" })
    }
}
