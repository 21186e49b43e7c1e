//! Which backups lead to the newest timeline.
//!
//! After a recovery to an earlier point the newest backups by time are of a timeline that nobody goes on with, and the one
//! that the server's present state comes from is older. Until there is a backup of the new timeline, that one is all there is.

use pgstrata_protocol::replication::TimelineHistory;
use pgstrata_protocol::{Lsn, TimelineId};

use super::super::names::ClusterName;
use super::super::place::Repository;
use super::super::wal_names::WalName;
use crate::failure::Failure;

/// Where a backup ended.
pub(super) type End = (TimelineId, Lsn);

/// Of each backup, whether recovery comes from it to the newest timeline that they or the archive know.
///
/// # Errors
/// Where the archive cannot be listed, or that timeline's history is damaged.
pub(super) fn leads_to_newest(
    repository: &Repository,
    cluster: &ClusterName,
    ends: &[Option<End>],
) -> Result<Vec<bool>, Failure> {
    let names = repository.wal_names(&cluster.wal())?;
    let archived = names.iter().filter_map(|name| match name.parse() {
        Ok(WalName::History(timeline)) => Some(timeline),
        _ => None,
    });
    let newest = archived.chain(ends.iter().flatten().map(|(timeline, _)| *timeline)).max();
    let Some(newest) = newest else { return Ok(vec![false; ends.len()]) };
    let history = repository.wal_history(cluster, newest)?;
    Ok(ends.iter().map(|end| end.is_some_and(|end| leads(end, newest, history.as_ref()))).collect())
}

fn leads((timeline, end): End, newest: TimelineId, history: Option<&TimelineHistory>) -> bool {
    let mut switches = history.iter().flat_map(|history| &history.switches);
    timeline == newest || switches.any(|left| left.timeline == timeline && end <= left.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_leads_where_it_ended_before_its_timeline_was_left() {
        let history = TimelineHistory::parse(TimelineId(4), b"1\t0/500\tx\n3\t0/900\ty\n").expect("valid");
        for (timeline, end, expected) in [
            (1, 0x500, true),
            (1, 0x501, false),
            (2, 0x300, false),
            (3, 0x900, true),
            (3, 0x901, false),
            (4, 0xFFFF, true),
        ] {
            let end = (TimelineId(timeline), Lsn(end));
            assert_eq!(leads(end, TimelineId(4), Some(&history)), expected, "{end:?}");
            assert_eq!(leads(end, TimelineId(4), None), timeline == 4, "{end:?}");
        }
    }
}
