//! SQL sessions with the two servers, whose failures name the server and what was tried.

use std::fmt::Debug;
use std::path::PathBuf;
use std::str::FromStr;

use pgstrata_protocol::replication::ResultSet;

use super::{DemoError, Side};
use crate::connect::{ConnectionSettings, GivenSettings, SqlClient, Surroundings};
use crate::postmaster::Server;

/// A value as text; `None` for NULL.
pub(super) type Value = Option<String>;

/// How to reach a server of ours, whatever `PG*` variables the caller has set.
pub(super) fn settings(server: &Server, side: Side) -> Result<ConnectionSettings, DemoError> {
    let conninfo = server.socket_conninfo();
    let given = GivenSettings {
        conninfo: Some(&conninfo),
        program: Some("pgstrata demo"),
        ..GivenSettings::default()
    };
    let nothing = Surroundings {
        variable: &|_| None,
        os_user: None,
        home: None,
        socket_directory: PathBuf::from("/tmp"),
    };
    ConnectionSettings::resolve(&given, &nothing).map_err(|error| DemoError::Settings { side, error })
}

/// A session. It belongs to the thread that opened it.
#[derive(Debug)]
pub(super) struct Sql {
    client: SqlClient,
    side: Side,
}

impl Sql {
    /// Connects.
    pub(super) fn connect(settings: &ConnectionSettings, side: Side) -> Result<Self, DemoError> {
        let client = SqlClient::connect(settings).map_err(|error| DemoError::Connect { side, error })?;
        Ok(Self { client, side })
    }

    /// Runs statements; `what` is a verb for the message where that fails.
    pub(super) fn run(&mut self, what: &str, sql: &str) -> Result<Vec<ResultSet>, DemoError> {
        let side = self.side;
        self.client.query(sql).map_err(|error| DemoError::Sql { what: what.to_owned(), side, error })
    }

    /// The rows of the last statement that returned some, each with `N` columns.
    pub(super) fn rows<const N: usize>(
        &mut self,
        what: &str,
        sql: &str,
    ) -> Result<Vec<[Value; N]>, DemoError> {
        let results = self.run(what, sql)?;
        let rows = results.into_iter().next_back().unwrap_or_default().rows;
        rows.into_iter().map(|row| self.columns(what, &row)).collect()
    }

    /// The one row that a statement returns, no value of it NULL.
    pub(super) fn row<T: FromStr + Debug, const N: usize>(
        &mut self,
        what: &str,
        sql: &str,
    ) -> Result<[T; N], DemoError> {
        let rows = self.rows::<N>(what, sql)?;
        let found = format!("{rows:?}");
        let refuse = || self.answer(what, found.clone(), format!("one row of {N} values"));
        let [row] = <[_; 1]>::try_from(rows).map_err(|_| refuse())?;
        let values: Option<Vec<T>> = row.into_iter().map(|value| value?.parse().ok()).collect();
        values.and_then(|values| values.try_into().ok()).ok_or_else(refuse)
    }

    fn columns<const N: usize>(
        &self,
        what: &str,
        row: &[Option<impl AsRef<[u8]>>],
    ) -> Result<[Value; N], DemoError> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let values: Vec<Value> =
            row.iter().map(|value| value.as_ref().map(|bytes| text(bytes.as_ref()))).collect();
        let found = values.len();
        values.try_into().map_err(|_| self.answer(what, format!("{found} columns"), format!("{N} columns")))
    }

    fn answer(&self, what: &str, found: String, expected: String) -> DemoError {
        DemoError::Answer { what: what.to_owned(), side: self.side, found, expected }
    }
}
