//! The answers to replication commands, as checked values.

use std::num::NonZeroU32;

use bytes::Bytes;

use super::result_set::{ResultError, ResultSet};
use crate::{Lsn, TimelineId};

const A_POSITION: &str = "a log position such as 16/B374D848";
const A_TIMELINE: &str = "a timeline number, which is at least 1";

fn timeline(
    result: &ResultSet,
    command: &'static str,
    column: &'static str,
) -> Result<TimelineId, ResultError> {
    let number: NonZeroU32 = result.parse(command, 0, column, A_TIMELINE)?;
    Ok(TimelineId(number.get()))
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifySystem {
    /// Identifies the cluster; `pg_control` and `backup_manifest` carry the same number.
    pub system_identifier: u64,
    /// The server's present timeline.
    pub timeline: TimelineId,
    /// How far its WAL is flushed.
    pub flushed: Lsn,
    /// The database of the session, none in a physical replication session.
    pub database: Option<String>,
}

impl IdentifySystem {
    /// Reads the result of [`super::command::identify_system`].
    pub fn from_result(result: &ResultSet) -> Result<Self, ResultError> {
        let command = "IDENTIFY_SYSTEM";
        result.one_row(command)?;
        Ok(Self {
            system_identifier: result.parse(command, 0, "systemid", "a 64-bit number")?,
            timeline: timeline(result, command, "timeline")?,
            flushed: result.parse(command, 0, "xlogpos", A_POSITION)?,
            database: result.parse_optional(command, 0, "dbname", "a name in UTF-8")?,
        })
    }
}

/// Reads the result of [`super::command::show`]: one row, one column, of any name.
pub fn show_value(result: &ResultSet) -> Result<String, ResultError> {
    let command = "SHOW";
    result.one_row(command)?;
    let value = match result.rows.first().map(Vec::as_slice) {
        Some([Some(value)]) => std::str::from_utf8(value).ok(),
        _ => None,
    };
    value.map(str::to_owned).ok_or_else(|| ResultError::BadValue {
        command,
        row: 0,
        column: "(the only one)",
        found: format!("{} columns, or a value that is NULL or not UTF-8", result.columns.len()),
        expected: "one column with a text",
    })
}

/// The answer to `CREATE_REPLICATION_SLOT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedSlot {
    /// The slot's name.
    pub name: String,
    /// Where its WAL begins; `0/0` for a physical slot that reserves none.
    pub consistent_point: Lsn,
}

impl CreatedSlot {
    /// Reads the result of [`super::command::create_physical_slot`].
    pub fn from_result(result: &ResultSet) -> Result<Self, ResultError> {
        let command = "CREATE_REPLICATION_SLOT";
        result.one_row(command)?;
        Ok(Self {
            name: result.parse(command, 0, "slot_name", "a name")?,
            consistent_point: result.parse(command, 0, "consistent_point", A_POSITION)?,
        })
    }
}

/// The answer to `READ_REPLICATION_SLOT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationSlot {
    /// `physical`; the server refuses to read others.
    pub slot_type: String,
    /// The oldest WAL that the slot holds back.
    pub restart_lsn: Option<Lsn>,
    /// The timeline of that WAL.
    pub restart_timeline: Option<TimelineId>,
}

impl ReplicationSlot {
    /// Reads the result of [`super::command::read_replication_slot`]; `None` where there is no such slot.
    pub fn from_result(result: &ResultSet) -> Result<Option<Self>, ResultError> {
        let command = "READ_REPLICATION_SLOT";
        result.one_row(command)?;
        let restart_lsn = result.parse_optional(command, 0, "restart_lsn", A_POSITION)?;
        let restart_timeline = result.parse_optional(command, 0, "restart_tli", A_TIMELINE)?.map(TimelineId);
        let slot_type = result.parse_optional(command, 0, "slot_type", "a slot type")?;
        Ok(slot_type.map(|slot_type| Self { slot_type, restart_lsn, restart_timeline }))
    }
}

/// Where a base backup begins or ends: the first and the last result of `BASE_BACKUP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupPosition {
    /// The position in the log.
    pub lsn: Lsn,
    /// The timeline.
    pub timeline: TimelineId,
}

impl BackupPosition {
    /// Reads a result with `recptr` and `tli`.
    pub fn from_result(result: &ResultSet) -> Result<Self, ResultError> {
        let command = "BASE_BACKUP";
        result.one_row(command)?;
        Ok(Self {
            lsn: result.parse(command, 0, "recptr", A_POSITION)?,
            timeline: timeline(result, command, "tli")?,
        })
    }
}

/// A row of the second result of `BASE_BACKUP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablespaceRow {
    /// The tablespace's OID, none for the data directory itself.
    pub oid: Option<u32>,
    /// Where it is on the server, in no particular encoding; none for the data directory.
    pub location: Option<Vec<u8>>,
    /// Its size in KiB, where the command asked for progress.
    pub size_kb: Option<u64>,
}

impl TablespaceRow {
    /// Reads all rows. The server sends the data directory, without OID, exactly once.
    pub fn from_result(result: &ResultSet) -> Result<Vec<Self>, ResultError> {
        let command = "BASE_BACKUP";
        let mut rows = Vec::with_capacity(result.rows.len());
        for row in 0..result.rows.len() {
            let oid: Option<u32> = result.parse_optional(command, row, "spcoid", "an OID")?;
            let location = match oid {
                Some(_) => Some(result.bytes(command, row, "spclocation", "a directory")?.to_vec()),
                None => result.value(command, row, "spclocation")?.map(|location| location.to_vec()),
            };
            let size_kb = result.parse_optional(command, row, "size", "a size in kB")?;
            rows.push(Self { oid, location, size_kb });
        }
        let bases = rows.iter().filter(|row| row.oid.is_none()).count();
        if bases != 1 {
            return Err(ResultError::RowCount {
                command,
                found: bases,
                expected: "one for the data directory",
            });
        }
        Ok(rows)
    }
}

/// The result that follows the WAL stream of a timeline that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineEnd {
    /// The timeline that the server went on with.
    pub next: TimelineId,
    /// Where that timeline begins.
    pub start: Lsn,
}

impl TimelineEnd {
    /// Reads the result that follows `CopyDone`.
    pub fn from_result(result: &ResultSet) -> Result<Self, ResultError> {
        let command = "START_REPLICATION";
        result.one_row(command)?;
        Ok(Self {
            next: timeline(result, command, "next_tli")?,
            start: result.parse(command, 0, "next_tli_startpos", A_POSITION)?,
        })
    }
}

/// The answer to `TIMELINE_HISTORY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistoryFile {
    /// The file's name on the server, such as `00000002.history`. Compare it with the name that you expect
    /// before you use it as a path.
    pub name: String,
    /// The file's bytes.
    pub content: Bytes,
}

impl TimelineHistoryFile {
    /// Reads the result of [`super::command::timeline_history`].
    pub fn from_result(result: &ResultSet) -> Result<Self, ResultError> {
        let command = "TIMELINE_HISTORY";
        result.one_row(command)?;
        Ok(Self {
            name: result.parse(command, 0, "filename", "a file name")?,
            content: result.bytes(command, 0, "content", "the file's bytes")?.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
