//! SQL for tests: a blocking connection that speaks the simple protocol and hands out text.

use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::OnceLock;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// One row: a text for each column, `None` for NULL.
pub type Row = Vec<Option<String>>;

/// A connection. Dropping it ends the session.
#[derive(Debug)]
pub struct Sql {
    client: Client,
}

impl Sql {
    /// Connects by a connection string.
    ///
    /// # Errors
    /// What the server or the network said.
    pub fn connect(conninfo: &str) -> anyhow::Result<Self> {
        let (client, connection) = runtime()
            .block_on(tokio_postgres::connect(conninfo, NoTls))
            .with_context(|| format!("cannot connect by {conninfo:?}"))?;
        // Errors of the connection come back through the client's next call.
        runtime().spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { client })
    }

    /// Runs statements and returns the rows of all of them.
    ///
    /// # Errors
    /// What the server said, with the statement.
    pub fn try_rows(&self, sql: &str) -> anyhow::Result<Vec<Row>> {
        let messages =
            runtime().block_on(self.client.simple_query(sql)).map_err(|error| described(error, sql))?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
                }
                _ => None,
            })
            .collect())
    }

    /// As [`try_rows`](Self::try_rows).
    ///
    /// # Panics
    /// With what the server said and the statement.
    #[track_caller]
    #[must_use]
    pub fn rows(&self, sql: &str) -> Vec<Row> {
        self.try_rows(sql).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs statements whose rows do not matter. Several statements in one text are one transaction.
    ///
    /// # Errors
    /// What the server said, with the statement.
    pub fn try_execute(&self, sql: &str) -> anyhow::Result<()> {
        runtime().block_on(self.client.batch_execute(sql)).map_err(|error| described(error, sql))
    }

    /// As [`try_execute`](Self::try_execute).
    ///
    /// # Panics
    /// With what the server said and the statement.
    #[track_caller]
    pub fn execute(&self, sql: &str) {
        self.try_execute(sql).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// The single value that a query yields.
    ///
    /// # Panics
    /// Where there is not exactly one row with one value, or it is not a `T`.
    #[track_caller]
    #[must_use]
    pub fn value<T>(&self, sql: &str) -> T
    where
        T: FromStr,
        T::Err: Debug + Display,
    {
        match &self.rows(sql)[..] {
            [row] => match &row[..] {
                [Some(text)] => text.parse().unwrap_or_else(|error| panic!("{sql}: {text:?}: {error}")),
                other => panic!("{sql}: expected one value, found {other:?}"),
            },
            other => panic!("{sql}: expected one row, found {} rows", other.len()),
        }
    }

    /// Whether the session has ended, as when its server was stopped.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

fn described(error: tokio_postgres::Error, sql: &str) -> anyhow::Error {
    let sql: String = sql.chars().take(400).collect();
    match error.as_db_error() {
        Some(said) => anyhow::anyhow!("{said}\nin: {sql}"),
        None => anyhow::Error::new(error).context(format!("in: {sql}")),
    }
}

/// Connections are driven by one background thread, so that any thread may block on them.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime with one thread")
    })
}
