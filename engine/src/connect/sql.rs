//! SQL for programs without a runtime: every call blocks until the server has answered.

use std::io;
use std::sync::Arc;

use pgstrata_protocol::ServerVersion;
use pgstrata_protocol::replication::ResultSet;

use super::error::{ConnectError, SessionError};
use super::runtime::ControlRuntime;
use super::session::{Purpose, Session};
use super::settings::ConnectionSettings;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SqlConnectError {
    /// The operating system gave no runtime.
    #[error("could not set up a runtime for the connection: {0}")]
    Runtime(#[from] io::Error),
    /// The server gave no session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// A SQL session that blocks its caller. It belongs to the thread that opened it.
#[derive(Debug)]
pub struct SqlClient {
    // Before the runtime: what a session still has in the ring ends with the session.
    session: Session,
    runtime: ControlRuntime,
}

impl SqlClient {
    /// Connects to the settings' database. Notices go to the log.
    ///
    /// # Errors
    /// As [`Session::connect`], and where the operating system gives no runtime.
    pub fn connect(settings: &ConnectionSettings) -> Result<Self, SqlConnectError> {
        let runtime = ControlRuntime::new()?;
        let notices = Arc::new(|notice: &_| tracing::info!("{notice}"));
        let session = runtime.block_on(Session::connect(settings, Purpose::Sql, notices))?;
        Ok(Self { session, runtime })
    }

    /// Runs one or more statements and returns their results, all values as text.
    ///
    /// # Errors
    /// As [`Session::simple_query`].
    pub fn query(&mut self, sql: &str) -> Result<Vec<ResultSet>, SessionError> {
        self.runtime.block_on(self.session.simple_query(sql))
    }

    /// The server's version.
    #[must_use]
    pub fn server_version(&self) -> ServerVersion {
        self.session.server_version()
    }

    /// Says goodbye and ends the connection.
    pub fn close(self) {
        let Self { session, runtime } = self;
        runtime.block_on(session.close());
    }
}
