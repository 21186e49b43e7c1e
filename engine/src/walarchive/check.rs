//! What an operator wants to know of a WAL archive: what is missing, and to where each backup can be recovered.
//!
//! Reads names and histories, no WAL. Goes on after what it finds, so that all of it is named.

use std::collections::BTreeSet;

use pgstrata_protocol::{Lsn, TimelineId};
use serde::Serialize;

use super::index::{ArchiveIndex, TimelineWal};
use super::reach::{Leg, Reached};
use crate::failure::Failure;
use crate::repository::{BackupChoice, BackupSummary, ClusterName, Repository};

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ArchiveReport {
    /// The cluster's name.
    pub cluster: String,
    /// Bytes of a segment.
    pub segment_size: u64,
    /// What each timeline has.
    pub timelines: Vec<TimelineReport>,
    /// Segments that are missing.
    pub gaps: Vec<GapReport>,
    /// Where each backup can be recovered to.
    pub windows: Vec<WindowReport>,
    /// What is wrong, in words. Empty where every backup can be recovered to the end of the archive.
    pub problems: Vec<String>,
}

/// The WAL of a timeline.
#[derive(Clone, Debug, Serialize)]
pub struct TimelineReport {
    /// Which.
    pub timeline: u32,
    /// Whole segments.
    pub segments: u64,
    /// The first of these.
    pub first: Option<String>,
    /// The last.
    pub last: Option<String>,
    /// The end of what there is of segments that are not whole.
    pub received: Option<String>,
}

/// Segments that are missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GapReport {
    /// On which timeline.
    pub timeline: u32,
    /// The first.
    pub first: String,
    /// The last.
    pub last: String,
    /// How many.
    pub segments: u64,
    /// Whether all of it lies before the oldest backup, so that no recovery needs it.
    pub harmless: bool,
}

/// To where a backup can be recovered.
#[derive(Clone, Debug, Serialize)]
pub struct WindowReport {
    /// The backup's id.
    pub backup: String,
    /// Along which timeline.
    pub timeline: u32,
    /// Where it is consistent.
    pub from: String,
    /// The end of the WAL that there is without a gap.
    pub to: String,
    /// The timeline there.
    pub to_timeline: u32,
}

/// Looks through a cluster's archive.
///
/// # Errors
/// Where it cannot be listed, or a backup's manifest or a history is damaged.
pub fn check(repository: &Repository, cluster: &ClusterName) -> Result<ArchiveReport, Failure> {
    let mut backups = Vec::new();
    for id in repository.backups(cluster)? {
        backups.push(repository.backup(cluster, BackupChoice::Id(id))?.summary);
    }
    let index = ArchiveIndex::read(repository, cluster, &backups)?;
    Ok(judge(&index, cluster.as_str(), &backups))
}

/// What an archive and its backups come to.
fn judge(index: &ArchiveIndex, cluster: &str, backups: &[BackupSummary]) -> ArchiveReport {
    let mut report = ArchiveReport {
        cluster: cluster.to_owned(),
        segment_size: index.segment_size.bytes(),
        ..ArchiveReport::default()
    };
    report.problems.extend(index.strays.iter().map(|name| format!("{name} is no name of WAL")));
    let oldest = backups.iter().filter_map(|backup| Some(index.number(begin_of(backup)?.0))).min();
    for (timeline, wal) in &index.timelines {
        let name = |number| index.segment_name(*timeline, number);
        let received = wal.parts.iter().next_back().filter(|(_, bytes)| **bytes > 0);
        report.timelines.push(TimelineReport {
            timeline: timeline.0,
            segments: wal.ranges.iter().map(|(first, end)| end - first).sum(),
            first: wal.ranges.first().map(|(first, _)| name(*first)),
            last: wal.ranges.last().map(|(_, end)| name(end - 1)),
            received: received.map(|(number, bytes)| Lsn(index.start(*number).0 + bytes).to_string()),
        });
        if index.path(*timeline).is_none() {
            report.problems.push(format!("timeline {timeline} has WAL and no history"));
        }
    }
    for (timeline, first, end) in gaps(index, backups) {
        let name = |number| index.segment_name(timeline, number);
        let harmless = oldest.is_none_or(|oldest| end <= oldest);
        // What went with the backups that needed it.
        if harmless && !index.timelines.contains_key(&timeline) {
            continue;
        }
        let gap = GapReport {
            timeline: timeline.0,
            first: name(first),
            last: name(end - 1),
            segments: end - first,
            harmless,
        };
        if !harmless {
            let GapReport { first, last, segments, .. } = &gap;
            report
                .problems
                .push(format!("timeline {timeline}: {segments} segments are missing, {first} to {last}"));
        }
        report.gaps.push(gap);
    }
    for backup in backups {
        windows(index, backup, &mut report);
    }
    report
}

/// What is missing of each timeline: from where it left the one before, its first backup or the first segment that is there
/// on, up to the last that is there or the last place where another timeline left it. The segment of that place comes
/// from the newer one.
fn gaps(index: &ArchiveIndex, backups: &[BackupSummary]) -> Vec<(TimelineId, u64, u64)> {
    let empty = TimelineWal::default();
    let mut known: BTreeSet<TimelineId> =
        index.timelines.keys().chain(index.histories.keys()).copied().collect();
    known.extend(
        index.histories.values().flat_map(|history| history.switches.iter().map(|left| left.timeline)),
    );
    let mut gaps = Vec::new();
    for timeline in known {
        let wal = index.timelines.get(&timeline).unwrap_or(&empty);
        let path = index.path(timeline);
        let began = path.as_ref().and_then(|path| path.iter().rev().nth(1)?.end).map(|end| index.number(end));
        let left = index.left_at(timeline).map(|end| index.number(end));
        let needed = backups.iter().filter_map(begin_of).filter(|(_, of)| *of == timeline);
        let needed = needed.map(|(lsn, _)| index.number(lsn));
        let from = began.into_iter().chain(wal.first()).chain(needed).min();
        let (Some(from), Some(until)) = (from, wal.last_end().into_iter().chain(left).max()) else {
            continue;
        };
        gaps.extend(wal.missing(from, until).into_iter().map(|(first, end)| (timeline, first, end)));
    }
    gaps
}

/// Where recovery begins to need the archive, and on which timeline.
fn begin_of(backup: &BackupSummary) -> Option<(Lsn, TimelineId)> {
    // A backup that has WAL has all of it up to its end.
    Some(if backup.wal_bytes > 0 {
        (backup.end_lsn.parse().ok()?, TimelineId(backup.end_timeline))
    } else {
        (backup.start_lsn.parse().ok()?, TimelineId(backup.start_timeline))
    })
}

fn windows(index: &ArchiveIndex, backup: &BackupSummary, report: &mut ArchiveReport) {
    let name = &backup.backup;
    let (Some((from, timeline)), Ok(end)) = (begin_of(backup), backup.end_lsn.parse::<Lsn>()) else {
        report.problems.push(format!("backup {name} does not say where it begins and ends"));
        return;
    };
    let own = index.path(timeline).unwrap_or_else(|| vec![Leg { timeline, end: None }]);
    let others = index.histories.keys().filter(|other| **other != timeline);
    let others = others.filter_map(|other| Some((*other, index.path(*other)?)));
    let mut complete = false;
    for (along, path) in [(timeline, own)].into_iter().chain(others) {
        let Some(Reached { timeline: to_timeline, lsn, .. }) = index.follow(&path, timeline, from) else {
            continue;
        };
        complete |= lsn >= end;
        // Without its own WAL a timeline leads to where others lead as well.
        if lsn < end || (along != timeline && to_timeline != along) {
            continue;
        }
        report.windows.push(WindowReport {
            backup: name.clone(),
            timeline: along.0,
            from: end.to_string(),
            to: lsn.to_string(),
            to_timeline: to_timeline.0,
        });
    }
    if !complete {
        report
            .problems
            .push(format!("backup {name} cannot be recovered: WAL from {from} to {end} is missing"));
    }
}

#[cfg(test)]
mod tests {
    use pgstrata_protocol::names::WalSegmentSize;
    use pgstrata_protocol::replication::TimelineHistory;

    use super::super::index::TimelineWal;
    use super::*;

    fn backup(begin: &str, end: &str, wal_bytes: u64) -> BackupSummary {
        serde_json::from_value(serde_json::json!({
            "cluster": "main", "backup": "b", "parent": null, "program": "x", "source": "stream", "server_version": "15",
            "system_identifier": "7", "wal_segment_size": 1 << 20, "start_lsn": begin, "start_timeline": 1,
            "end_lsn": end, "end_timeline": 1, "label": "x", "started": 1, "ended": 2, "compression": "none",
            "folder_mode": 448, "files": 1, "bytes": 1, "wal_bytes": wal_bytes, "stored_bytes": 1, "tablespaces": [],
            "requires": [],
        }))
        .expect("a summary")
    }

    #[test]
    fn gaps_and_windows_are_named() {
        let wal = |ranges: &[(u64, u64)]| TimelineWal { ranges: ranges.to_vec(), ..TimelineWal::default() };
        let history = TimelineHistory::parse(TimelineId(2), b"1\t0/880000\tx\n").expect("valid");
        let index = ArchiveIndex {
            segment_size: WalSegmentSize::new(1 << 20).expect("valid"),
            timelines: [(TimelineId(1), wal(&[(1, 2), (4, 8), (9, 10)])), (TimelineId(2), wal(&[(9, 11)]))]
                .into(),
            histories: [(TimelineId(2), history)].into(),
            strays: Vec::new(),
        };
        let report = judge(&index, "main", &[backup("0/400028", "0/480000", 9)]);
        let gaps: Vec<_> =
            report.gaps.iter().map(|gap| (gap.timeline, &*gap.first, &*gap.last, gap.harmless)).collect();
        assert_eq!(
            gaps,
            [
                (1, "000000010000000000000002", "000000010000000000000003", true),
                (1, "000000010000000000000008", "000000010000000000000008", false),
                (2, "000000020000000000000008", "000000020000000000000008", false),
            ]
        );
        assert_eq!(report.problems.len(), 2, "{:?}", report.problems);
        // Timeline 1 is there up to where 2 left it, but for the gap before.
        let [window] = &report.windows[..] else { panic!("{:?}", report.windows) };
        assert_eq!((&*window.from, &*window.to, window.to_timeline), ("0/480000", "0/800000", 1));
        // One that has no WAL of its own needs the archive's.
        let report = judge(&index, "main", &[backup("0/300028", "0/480000", 0)]);
        assert!(
            report.problems.iter().any(|text| text.contains("cannot be recovered")),
            "{:?}",
            report.problems
        );
        assert!(judge(&index, "main", &[]).problems.is_empty(), "without backups nothing is needed");
    }

    /// The gaps that count, and to where the windows lead.
    fn found(
        timelines: &[(u32, TimelineWal)],
        histories: &[(u32, &str)],
        backups: &[BackupSummary],
    ) -> (Vec<(u32, u64, u64)>, Vec<(u32, String)>) {
        let history = |(timeline, text): &(u32, &str)| {
            let timeline = TimelineId(*timeline);
            (timeline, TimelineHistory::parse(timeline, text.as_bytes()).expect("valid"))
        };
        let index = ArchiveIndex {
            segment_size: WalSegmentSize::new(1 << 20).expect("valid"),
            timelines: timelines.iter().map(|(timeline, wal)| (TimelineId(*timeline), wal.clone())).collect(),
            histories: histories.iter().map(history).collect(),
            strays: Vec::new(),
        };
        let report = judge(&index, "main", backups);
        let number = |name: &str| u64::from_str_radix(&name[16..], 16).expect("low");
        let counts = report.gaps.iter().filter(|gap| !gap.harmless);
        let gaps: Vec<_> = counts.map(|gap| (gap.timeline, number(&gap.first), number(&gap.last))).collect();
        assert_eq!(gaps.len(), report.problems.len(), "{:?}", report.problems);
        (gaps, report.windows.into_iter().map(|window| (window.timeline, window.to)).collect())
    }

    #[test]
    fn the_end_of_an_older_timeline_and_holes_before_parts() {
        let wal = |ranges: &[(u64, u64)], parts: &[(u64, u64)]| TimelineWal {
            ranges: ranges.to_vec(),
            parts: parts.iter().copied().collect(),
        };
        let to = |windows: &[(u32, &str)]| {
            windows.iter().map(|(timeline, lsn)| (*timeline, (*lsn).to_owned())).collect::<Vec<_>>()
        };
        let second = [(2, "1\t0/880000\tx\n")];
        let backups = [backup("0/400028", "0/480000", 9)];
        // Segments 6 and 7 of timeline 1 are lost; 8 comes from timeline 2.
        let lost = [(1, wal(&[(4, 6)], &[])), (2, wal(&[(8, 11)], &[]))];
        assert_eq!(found(&lost, &second, &backups), (vec![(1, 6, 7)], to(&[(1, "0/600000")])));
        // Not all of it by a copy in parts.
        let parts = [(1, wal(&[(4, 6)], &[(7, 9)])), (2, wal(&[(8, 11)], &[]))];
        assert_eq!(found(&parts, &second, &backups), (vec![(1, 6, 7)], to(&[(1, "0/600000")])));
        // The history alone tells it, and so does the backup where nothing of timeline 1 is there.
        assert_eq!(found(&lost[..1], &second, &backups).0, [(1, 6, 7)]);
        assert_eq!(found(&lost[1..], &second, &backups).0, [(1, 4, 7)]);
        // A third timeline shows what is missing of the second, of which nothing is there.
        let third = [second[0], (3, "1\t0/880000\tx\n2\t0/A80000\ty\n")];
        let skipped = [(1, wal(&[(4, 8)], &[])), (3, wal(&[(10, 12)], &[]))];
        assert_eq!(found(&skipped, &third, &backups), (vec![(2, 8, 9)], to(&[(1, "0/800000")])));
        let whole = [skipped[0].clone(), (2, wal(&[(8, 10)], &[])), (3, wal(&[(10, 12)], &[(12, 5)]))];
        let (gaps, windows) = found(&whole, &third, &backups);
        assert_eq!((gaps, windows), (vec![], to(&[(1, "0/800000"), (2, "0/A00000"), (3, "0/C00005")])));
        // What went on behind the place where it was left is no reason to miss anything.
        let beyond = [(1, wal(&[(4, 12)], &[])), (2, wal(&[(8, 9)], &[]))];
        assert_eq!(found(&beyond, &second, &backups).0, []);
        // Parts behind a hole, and a part without its beginning.
        let behind = [(1, wal(&[(4, 6)], &[(8, 100)]))];
        assert_eq!(found(&behind, &[], &backups), (vec![(1, 6, 7)], to(&[(1, "0/600000")])));
        let within = [(1, wal(&[(4, 6), (7, 8)], &[(6, 100), (8, 0)]))];
        assert_eq!(found(&within, &[], &backups), (vec![(1, 6, 6), (1, 8, 8)], to(&[(1, "0/600064")])));
        let orderly = [(1, wal(&[(4, 6)], &[(6, 100)]))];
        assert_eq!(found(&orderly, &[], &backups), (vec![], to(&[(1, "0/600064")])));
        // The archive begins behind the backup.
        let late = [(1, wal(&[(6, 8)], &[]))];
        assert_eq!(found(&late, &[], &backups).0, [(1, 4, 5)]);
    }
}
