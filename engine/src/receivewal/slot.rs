//! Replication slots: made, dropped, and asked where they stand.

use pgstrata_protocol::replication::ReplicationSlot;
use pgstrata_protocol::replication::command::{create_physical_slot, drop_slot, read_replication_slot};
use pgstrata_protocol::{Lsn, TimelineId};

use super::facts::query;
use crate::connect::Session;
use crate::failure::Failure;

/// `ERRCODE_DUPLICATE_OBJECT` (`errcodes.txt`).
const DUPLICATE_OBJECT: &str = "42710";

/// Makes a slot that reserves no WAL yet, as pg_receivewal does.
pub(super) async fn create(session: &mut Session, name: &str, if_not_exists: bool) -> Result<(), Failure> {
    let version = session.server_version();
    let command = create_physical_slot(name, false, false, version)
        .map_err(|error| Failure::Target(error.to_string()))?;
    match query(session, &command, &command).await {
        Err(Failure::Session { error, .. })
            if if_not_exists
                && error.server_error().is_some_and(|error| error.sqlstate() == DUPLICATE_OBJECT) =>
        {
            Ok(())
        }
        outcome => outcome.map(drop),
    }
}

/// Drops a slot.
pub(super) async fn remove(session: &mut Session, name: &str) -> Result<(), Failure> {
    let command = drop_slot(name, false).map_err(|error| Failure::Target(error.to_string()))?;
    query(session, &command, &command).await.map(drop)
}

/// Where the WAL begins that a slot holds; `None` where it holds none yet. From server 15 on.
pub(super) async fn position(
    session: &mut Session,
    name: &str,
) -> Result<Option<(Lsn, Option<TimelineId>)>, Failure> {
    let command = read_replication_slot(name).map_err(|error| Failure::Target(error.to_string()))?;
    let results = query(session, "READ_REPLICATION_SLOT", &command).await?;
    let refuse = |error: &dyn std::fmt::Display| Failure::stream("READ_REPLICATION_SLOT", error);
    let result = results.first().ok_or_else(|| refuse(&"no result"))?;
    let slot = ReplicationSlot::from_result(result)
        .map_err(|error| refuse(&error))?
        .ok_or_else(|| Failure::Target(format!("replication slot \"{name}\" does not exist")))?;
    if slot.slot_type != "physical" {
        let kind = slot.slot_type;
        return Err(Failure::Target(format!(
            "expected a physical replication slot, got type \"{kind}\" instead"
        )));
    }
    Ok(slot.restart_lsn.map(|lsn| (lsn, slot.restart_timeline)))
}

/// As [`position`], of servers that only SQL can ask, over a session for that.
pub(super) async fn position_by_sql(session: &mut Session, name: &str) -> Result<Option<Lsn>, Failure> {
    let query_text = format!(
        "SELECT restart_lsn FROM pg_catalog.pg_replication_slots WHERE slot_type = 'physical' AND slot_name = '{}'",
        name.replace('\'', "''")
    );
    let results = query(session, "SELECT", &query_text).await?;
    let row = results.first().and_then(|result| result.rows.first());
    let row = row.ok_or_else(|| Failure::Target(format!("replication slot \"{name}\" does not exist")))?;
    let refuse = |error: &dyn std::fmt::Display| Failure::stream("pg_replication_slots", error);
    match row.first().and_then(Option::as_deref) {
        None => Ok(None),
        Some(text) => {
            let text = std::str::from_utf8(text).map_err(|error| refuse(&error))?;
            text.parse().map(Some).map_err(|error| refuse(&error))
        }
    }
}
