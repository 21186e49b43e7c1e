//! SQL on the benchmark's own server.

use anyhow::{Context, bail};
use pgstrata::connect::{ConnectionSettings, GivenSettings, SqlClient, Surroundings};
use pgstrata::postmaster::Server;

/// Connects to the server as its superuser. Nothing of the caller's `PG…` environment counts.
pub(crate) fn connect(server: &Server) -> anyhow::Result<SqlClient> {
    let conninfo = server.socket_conninfo();
    let given = GivenSettings { conninfo: Some(&conninfo), ..GivenSettings::default() };
    let around = Surroundings { variable: &|_| None, ..Surroundings::of_process() };
    let settings = ConnectionSettings::resolve(&given, &around)?;
    SqlClient::connect(&settings).with_context(|| format!("cannot connect to the server of {conninfo:?}"))
}

/// Runs statements whose rows do not matter.
pub(crate) fn execute(client: &mut SqlClient, sql: &str) -> anyhow::Result<()> {
    client.query(sql).with_context(|| format!("in {sql}")).map(drop)
}

/// The single number that a query yields.
pub(crate) fn number(client: &mut SqlClient, sql: &str) -> anyhow::Result<u64> {
    let results = client.query(sql).with_context(|| format!("in {sql}"))?;
    match &results[..] {
        [result] => match &result.rows[..] {
            [row] if row.len() == 1 => row[0]
                .as_ref()
                .and_then(|value| std::str::from_utf8(value).ok()?.parse().ok())
                .with_context(|| format!("expected a number from {sql}, found {:?}", row[0])),
            rows => bail!("expected one value from {sql}, found {} rows", rows.len()),
        },
        results => bail!("expected one result from {sql}, found {}", results.len()),
    }
}

/// A text as a literal of SQL.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
