//! Whether summaries cover the WAL between two backups, and which of them are needed (`PrepareForIncrementalBackup` in
//! `basebackup_incremental.c`, `WalSummariesAreComplete` in `walsummary.c`).

use super::SummaryName;
use crate::replication::{BackupPosition, TimelineHistory};
use crate::{Lsn, TimelineId};

/// WAL between two backups that is not on one way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineageError {
    /// The first backup's timeline is not among the ancestors.
    #[error("timeline {timeline} is not in the history of timeline {of}")]
    Foreign {
        /// Of the first backup.
        timeline: TimelineId,
        /// Of the second one.
        of: TimelineId,
    },
    /// The first position was never on the way to the second: its timeline was left before it.
    #[error("{position} on timeline {timeline} is behind {end}, where that timeline was left")]
    Behind {
        /// The position.
        position: Lsn,
        /// Its timeline.
        timeline: TimelineId,
        /// Where the next timeline begins.
        end: Lsn,
    },
}

/// The WAL from one position to another, timeline by timeline, oldest first; a timeline of which there is none is left out.
/// `history` is that of the second position's timeline; timeline 1 has none.
///
/// # Errors
/// [`LineageError`] where the first position is no ancestor of the second. Where it is behind it, there is no WAL.
pub fn wal_between(
    from: BackupPosition,
    to: BackupPosition,
    history: Option<&TimelineHistory>,
) -> Result<Vec<SummaryName>, LineageError> {
    let switches = history.map_or(&[][..], |history| &history.switches);
    let mut ends = switches.iter().map(|switch| (switch.timeline, switch.end)).collect::<Vec<_>>();
    ends.retain(|(timeline, _)| *timeline < to.timeline);
    ends.push((to.timeline, to.lsn));
    let foreign = LineageError::Foreign { timeline: from.timeline, of: to.timeline };
    let first = ends.iter().position(|(timeline, _)| *timeline == from.timeline).ok_or(foreign)?;
    let mut start = from.lsn;
    let mut parts = Vec::new();
    for (at, (timeline, end)) in ends.iter().copied().enumerate().skip(first) {
        if at == first && start > end && at + 1 < ends.len() {
            return Err(LineageError::Behind { position: start, timeline, end });
        }
        if start < end {
            parts.push(SummaryName { timeline, start, end });
        }
        start = end;
    }
    Ok(parts)
}

/// The summaries that are needed for some WAL of one timeline, in the order in which they are to be laid over each other.
/// One whose WAL others have as well is left out: laid over them, it would cut what changed after it.
///
/// # Errors
/// The first position that no summary covers.
pub fn covering(part: &SummaryName, summaries: &[SummaryName]) -> Result<Vec<SummaryName>, Lsn> {
    let mut candidates: Vec<_> = summaries
        .iter()
        .filter(|it| it.timeline == part.timeline && it.end > part.start && it.start < part.end)
        .copied()
        .collect();
    // Of those that begin at one place the longest first: it makes the others needless.
    candidates.sort_unstable_by_key(|it| (it.start, std::cmp::Reverse(it.end)));
    let mut covered = part.start;
    let mut needed = Vec::new();
    for it in candidates {
        if covered >= part.end || it.start > covered {
            break;
        }
        if it.end > covered {
            covered = it.end;
            needed.push(it);
        }
    }
    if covered < part.end { Err(covered) } else { Ok(needed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::TimelineSwitch;

    fn at(timeline: u32, lsn: u64) -> BackupPosition {
        BackupPosition { lsn: Lsn(lsn), timeline: TimelineId(timeline) }
    }

    fn wal(timeline: u32, start: u64, end: u64) -> SummaryName {
        SummaryName { timeline: TimelineId(timeline), start: Lsn(start), end: Lsn(end) }
    }

    #[test]
    fn the_way_goes_over_timelines() {
        let left = |timeline, end| TimelineSwitch {
            timeline: TimelineId(timeline),
            end: Lsn(end),
            reason: String::new(),
        };
        let history = TimelineHistory {
            timeline: TimelineId(5),
            switches: vec![left(1, 100), left(2, 200), left(4, 200)],
        };
        let way = |from, to| wal_between(from, to, Some(&history));
        assert_eq!(way(at(1, 40), at(5, 300)), Ok(vec![wal(1, 40, 100), wal(2, 100, 200), wal(5, 200, 300)]));
        assert_eq!(way(at(5, 250), at(5, 300)), Ok(vec![wal(5, 250, 300)]));
        assert_eq!(way(at(1, 100), at(2, 150)), Ok(vec![wal(2, 100, 150)]));
        assert_eq!(way(at(5, 300), at(5, 300)), Ok(vec![]));
        let foreign = LineageError::Foreign { timeline: TimelineId(3), of: TimelineId(5) };
        assert_eq!(way(at(3, 40), at(5, 300)), Err(foreign));
        let behind = LineageError::Behind { position: Lsn(101), timeline: TimelineId(1), end: Lsn(100) };
        assert_eq!(way(at(1, 101), at(5, 300)), Err(behind));
        assert_eq!(wal_between(at(1, 10), at(1, 20), None), Ok(vec![wal(1, 10, 20)]));
        assert!(wal_between(at(1, 10), at(2, 20), None).is_err());
    }

    #[test]
    fn gaps_are_found_and_what_is_needless_is_left() {
        let part = wal(1, 100, 200);
        for (summaries, expected) in [
            (vec![], Err(Lsn(100))),
            (vec![wal(1, 150, 250), wal(1, 50, 150)], Ok(vec![wal(1, 50, 150), wal(1, 150, 250)])),
            (vec![wal(1, 100, 150), wal(1, 151, 200)], Err(Lsn(150))),
            (vec![wal(1, 101, 200)], Err(Lsn(100))),
            (vec![wal(1, 100, 199)], Err(Lsn(199))),
            (vec![wal(2, 100, 200)], Err(Lsn(100))),
            (vec![wal(1, 10, 100), wal(1, 100, 200), wal(1, 200, 300)], Ok(vec![wal(1, 100, 200)])),
            (
                vec![wal(1, 120, 130), wal(1, 90, 140), wal(1, 90, 120), wal(1, 130, 200)],
                Ok(vec![wal(1, 90, 140), wal(1, 130, 200)]),
            ),
        ] {
            assert_eq!(covering(&part, &summaries), expected, "{summaries:?}");
        }
    }
}
