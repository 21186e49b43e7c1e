//! Replication commands as texts (`repl_gram.y`). `BASE_BACKUP` is built where its stream is read.

use super::quote::{QuoteError, quote_identifier};
use crate::{Lsn, ServerVersion, TimelineId};

/// The first server whose options stand in parentheses.
const PARENTHESISED_OPTIONS: ServerVersion = ServerVersion(150_000);

/// Asks for system identifier, timeline and flush position: [`super::IdentifySystem`].
#[must_use]
pub fn identify_system() -> String {
    "IDENTIFY_SYSTEM".to_owned()
}

/// Announces the manifest of an earlier backup, which the server then takes as a copy (server 17 and newer).
#[must_use]
pub fn upload_manifest() -> String {
    "UPLOAD_MANIFEST".to_owned()
}

/// Asks for the value of a setting, such as `wal_segment_size`: [`super::show_value`].
pub fn show(name: &str) -> Result<String, QuoteError> {
    let parts: Vec<String> = name.split('.').map(quote_identifier).collect::<Result<_, _>>()?;
    Ok(format!("SHOW {}", parts.join(".")))
}

/// Creates a physical slot: [`super::CreatedSlot`]. A temporary one ends with its session; `reserve_wal` holds
/// WAL back from now on rather than from the first use.
pub fn create_physical_slot(
    name: &str,
    temporary: bool,
    reserve_wal: bool,
    version: ServerVersion,
) -> Result<String, QuoteError> {
    let name = quote_identifier(name)?;
    let temporary = if temporary { " TEMPORARY" } else { "" };
    let reserve = match (reserve_wal, version >= PARENTHESISED_OPTIONS) {
        (false, _) => "",
        (true, true) => " ( RESERVE_WAL )",
        (true, false) => " RESERVE_WAL",
    };
    Ok(format!("CREATE_REPLICATION_SLOT {name}{temporary} PHYSICAL{reserve}"))
}

/// Drops a slot; with `wait`, once it is no longer in use rather than failing.
pub fn drop_slot(name: &str, wait: bool) -> Result<String, QuoteError> {
    Ok(format!("DROP_REPLICATION_SLOT {}{}", quote_identifier(name)?, if wait { " WAIT" } else { "" }))
}

/// Asks where a slot stands (server 15 and newer): [`super::ReplicationSlot`].
pub fn read_replication_slot(name: &str) -> Result<String, QuoteError> {
    Ok(format!("READ_REPLICATION_SLOT {}", quote_identifier(name)?))
}

/// Streams WAL from `start`, which should begin a segment, on `timeline`.
pub fn start_replication(slot: Option<&str>, start: Lsn, timeline: TimelineId) -> Result<String, QuoteError> {
    let slot = match slot {
        Some(name) => format!(" SLOT {}", quote_identifier(name)?),
        None => String::new(),
    };
    Ok(format!("START_REPLICATION{slot} PHYSICAL {start} TIMELINE {timeline}"))
}

/// Asks for a timeline's history file: [`super::TimelineHistoryFile`]. Timeline 1 has none.
#[must_use]
pub fn timeline_history(timeline: TimelineId) -> String {
    format!("TIMELINE_HISTORY {timeline}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let old = ServerVersion(140_023);
        let new = ServerVersion(150_000);
        for (built, expected) in [
            (Ok(identify_system()), "IDENTIFY_SYSTEM"),
            (show("wal_segment_size"), "SHOW \"wal_segment_size\""),
            (show("my.setting"), "SHOW \"my\".\"setting\""),
            (
                create_physical_slot("s", true, true, new),
                "CREATE_REPLICATION_SLOT \"s\" TEMPORARY PHYSICAL ( RESERVE_WAL )",
            ),
            (
                create_physical_slot("s", true, true, old),
                "CREATE_REPLICATION_SLOT \"s\" TEMPORARY PHYSICAL RESERVE_WAL",
            ),
            (create_physical_slot("a\"b", false, false, new), "CREATE_REPLICATION_SLOT \"a\"\"b\" PHYSICAL"),
            (drop_slot("s", true), "DROP_REPLICATION_SLOT \"s\" WAIT"),
            (drop_slot("s", false), "DROP_REPLICATION_SLOT \"s\""),
            (read_replication_slot("s"), "READ_REPLICATION_SLOT \"s\""),
            (
                start_replication(Some("s"), Lsn(0x1_0300_0000), TimelineId(2)),
                "START_REPLICATION SLOT \"s\" PHYSICAL 1/3000000 TIMELINE 2",
            ),
            (start_replication(None, Lsn(0), TimelineId(1)), "START_REPLICATION PHYSICAL 0/0 TIMELINE 1"),
            (Ok(timeline_history(TimelineId(3))), "TIMELINE_HISTORY 3"),
        ] {
            assert_eq!(built.as_deref(), Ok(expected));
        }
    }

    #[test]
    fn refuses_names_that_cannot_be_sent() {
        assert!(show("").is_err());
        assert!(show("a.").is_err());
        assert!(drop_slot("a\0", false).is_err());
        assert!(read_replication_slot("").is_err());
        assert!(start_replication(Some("\0"), Lsn(0), TimelineId(1)).is_err());
        assert!(create_physical_slot("", true, true, ServerVersion(150_000)).is_err());
    }
}
