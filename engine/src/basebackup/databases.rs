//! The names of the databases, for a backup that is to keep them: a replication connection cannot run queries, so one
//! for SQL is tried. Where nobody lets us in, the backup has no names, and a restore goes by OIDs.

use std::sync::Arc;
use std::time::Duration;

use pgstrata_protocol::replication::ResultSet;

use crate::connect::{ConnectionSettings, ControlRuntime, Purpose, Session};
use crate::repository::DatabaseSummary;

/// How long a server may take to answer; names are not worth more.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of names that are kept: they share one frame with the rest of the summary.
const NAMES_MAX: usize = 256 << 10;
const QUERY: &str = "SELECT oid, datname FROM pg_catalog.pg_database ORDER BY oid";

/// The databases of the server; none where it does not say.
pub(super) fn databases(settings: &ConnectionSettings) -> Vec<DatabaseSummary> {
    let Ok(runtime) = ControlRuntime::new() else { return Vec::new() };
    let ask = |settings: ConnectionSettings| {
        runtime.block_on(async {
            let work = async {
                let mut session = Session::connect(&settings, Purpose::Sql, Arc::new(|_| {})).await.ok()?;
                let results = session.simple_query(QUERY).await.ok()?;
                session.close().await;
                results.first().and_then(read)
            };
            tokio::time::timeout(PATIENCE, work).await
        })
    };
    // The connection string's own database first: it is the one that is known to be allowed, if any is.
    for settings in [settings.clone(), settings.clone().with_database("postgres")] {
        match ask(settings) {
            Ok(Some(databases)) => return databases,
            Ok(None) => {}
            // Whoever is silent once is not asked again.
            Err(_) => break,
        }
    }
    Vec::new()
}

/// Names that are not UTF-8 are left out: nobody could type them.
fn read(result: &ResultSet) -> Option<Vec<DatabaseSummary>> {
    let text = |value: &Option<bytes::Bytes>| String::from_utf8(value.as_ref()?.to_vec()).ok();
    let mut left = NAMES_MAX;
    let mut databases = Vec::new();
    for row in &result.rows {
        let [oid, name] = &row[..] else { return None };
        let (Some(oid), Some(name)) = (text(oid).and_then(|oid| oid.parse().ok()), text(name)) else {
            continue;
        };
        left = left.checked_sub(name.len() + 32)?;
        databases.push(DatabaseSummary { oid, name });
    }
    Some(databases)
}
