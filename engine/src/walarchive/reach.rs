//! How far recovery comes from a position with the WAL of an archive, along one timeline and its ancestors.
//!
//! Sans-IO. As the server does it (`XLogFileReadAnyTLI`, `xlogrecovery.c`): a segment in which a timeline was left is
//! taken from the newer one, which has a copy of what was before.

use pgstrata_protocol::replication::TimelineHistory;
use pgstrata_protocol::{Lsn, TimelineId};

use super::index::{ArchiveIndex, TimelineWal};

/// A part of the log that one timeline wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Which.
    pub timeline: TimelineId,
    /// Where the next one left it; none for the last.
    pub end: Option<Lsn>,
}

/// Where recovery comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The timeline there.
    pub timeline: TimelineId,
    /// The end of the WAL that there is.
    pub lsn: Lsn,
    /// The segment that is missing there: on which timeline, its number, and the first one that is there behind it, where
    /// the archive has more.
    pub gap: Option<Gap>,
}

/// Segments that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// On which timeline.
    pub timeline: TimelineId,
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl ArchiveIndex {
    /// The legs of a timeline's history; `None` where the archive does not have it.
    #[must_use]
    pub fn path(&self, timeline: TimelineId) -> Option<Vec<Leg>> {
        let last = Leg { timeline, end: None };
        match self.histories.get(&timeline) {
            Some(TimelineHistory { switches, .. }) => {
                let legs = switches.iter().map(|left| Leg { timeline: left.timeline, end: Some(left.end) });
                Some(legs.chain([last]).collect())
            }
            None if timeline == TimelineId(1) => Some(vec![last]),
            None => None,
        }
    }

    /// The timeline that recovery from a position on `timeline` takes for the latest (`findNewestTimeLine`,
    /// `timeline.c`): numbers are tried one after another.
    #[must_use]
    pub fn newest_from(&self, timeline: TimelineId) -> TimelineId {
        let mut newest = timeline;
        while let Some(next) = newest.0.checked_add(1).map(TimelineId)
            && self.histories.contains_key(&next)
        {
            newest = next;
        }
        newest
    }

    /// The last position at which a timeline was left for another, as the histories have it.
    #[must_use]
    pub fn left_at(&self, timeline: TimelineId) -> Option<Lsn> {
        let switches = self.histories.values().flat_map(|history| &history.switches);
        switches.filter(|left| left.timeline == timeline).map(|left| left.end).max()
    }

    /// Follows a path from a position of one of its timelines. `None` where the path does not lead over it.
    #[must_use]
    pub fn follow(&self, path: &[Leg], timeline: TimelineId, from: Lsn) -> Option<Reached> {
        let begin = path.iter().position(|leg| leg.timeline == timeline)?;
        if path[begin].end.is_some_and(|end| end < from) {
            return None;
        }
        let empty = TimelineWal::default();
        let (mut number, mut reached) = (self.number(from), Reached { timeline, lsn: from, gap: None });
        for leg in &path[begin..] {
            let wal = self.timelines.get(&leg.timeline).unwrap_or(&empty);
            // The segment in which it was left comes from the next timeline.
            let until = leg.end.map_or(u64::MAX, |end| self.number(end));
            let mut come_to = |lsn: Lsn| {
                if lsn > reached.lsn {
                    (reached.timeline, reached.lsn) = (leg.timeline, lsn);
                }
            };
            if number < until {
                number = wal.end_from(number).min(until);
                come_to(self.start(number));
            }
            if number < until {
                let more = wal.parts.get(&number).copied().unwrap_or_default();
                come_to(Lsn(self.start(number).0.saturating_add(more)));
                reached.gap = self.gap(leg, number, until);
                return Some(reached);
            }
        }
        Some(reached)
    }

    /// What is missing from a segment of a leg on, where there was more behind it: the archive has some of it, whole or
    /// in part, or another timeline begins there.
    fn gap(&self, leg: &Leg, number: u64, until: u64) -> Option<Gap> {
        let here = self.timelines.get(&leg.timeline).and_then(|wal| {
            let whole = wal.ranges.iter().map(|(first, _)| *first).find(|first| *first > number);
            let part = wal.parts.range(number + 1..).next().map(|(number, _)| *number);
            whole.into_iter().chain(part).min()
        });
        let next = here.filter(|first| *first < until).or(leg.end.map(|_| until))?;
        Some(Gap { timeline: leg.timeline, first: number, last: next - 1 })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pgstrata_protocol::names::WalSegmentSize;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A timeline, its ranges and its parts.
    type Content<'a> = (u32, &'a [(u64, u64)], &'a [(u64, u64)]);

    fn index(timelines: &[Content<'_>], histories: &[(u32, &str)]) -> ArchiveIndex {
        let wal = |(timeline, ranges, parts): &Content<'_>| {
            let parts = parts.iter().copied().collect();
            (TimelineId(*timeline), TimelineWal { ranges: ranges.to_vec(), parts })
        };
        let history = |(timeline, text): &(u32, &str)| {
            let timeline = TimelineId(*timeline);
            (timeline, TimelineHistory::parse(timeline, text.as_bytes()).expect("valid"))
        };
        ArchiveIndex {
            segment_size: WalSegmentSize::new(MIB).expect("valid"),
            timelines: timelines.iter().map(wal).collect(),
            histories: histories.iter().map(history).collect::<BTreeMap<_, _>>(),
            strays: Vec::new(),
        }
    }

    fn follow(index: &ArchiveIndex, to: u32, timeline: u32, from: u64) -> Option<Reached> {
        let path = index.path(TimelineId(to)).expect("a path");
        index.follow(&path, TimelineId(timeline), Lsn(from))
    }

    fn reached(timeline: u32, lsn: u64, gap: Option<(u32, u64, u64)>) -> Option<Reached> {
        let gap = gap.map(|(timeline, first, last)| Gap { timeline: TimelineId(timeline), first, last });
        Some(Reached { timeline: TimelineId(timeline), lsn: Lsn(lsn), gap })
    }

    #[test]
    fn gaps_and_parts_on_one_timeline() {
        let index = index(&[(1, &[(2, 5), (7, 9)], &[(9, 100)])], &[]);
        assert_eq!(follow(&index, 1, 1, 2 * MIB + 40), reached(1, 5 * MIB, Some((1, 5, 6))));
        assert_eq!(follow(&index, 1, 1, 7 * MIB + 40), reached(1, 9 * MIB + 100, None));
        assert_eq!(follow(&index, 1, 1, 9 * MIB + 200), reached(1, 9 * MIB + 200, None));
        assert_eq!(follow(&index, 1, 1, MIB + 7), reached(1, MIB + 7, Some((1, 1, 1))));
        let wal = &index.timelines[&TimelineId(1)];
        assert_eq!((wal.first(), wal.last_end()), (Some(2), Some(9)));
        assert_eq!(wal.missing(1, 12), [(1, 2), (5, 7), (9, 12)]);
        assert_eq!(wal.missing(3, 6), [(5, 6)]);
        assert_eq!((wal.missing(5, 5), wal.missing(2, 4)), (vec![], vec![]));
    }

    #[test]
    fn holes_before_parts() {
        // Segment 7 is there in part, 9 without its beginning.
        let index = index(&[(1, &[(2, 5)], &[(7, 100), (9, 0)])], &[]);
        assert_eq!(follow(&index, 1, 1, 2 * MIB + 40), reached(1, 5 * MIB, Some((1, 5, 6))));
        assert_eq!(follow(&index, 1, 1, 7 * MIB), reached(1, 7 * MIB + 100, Some((1, 7, 8))));
        assert_eq!(follow(&index, 1, 1, 9 * MIB), reached(1, 9 * MIB, None));
        let wal = &index.timelines[&TimelineId(1)];
        assert_eq!((wal.first(), wal.last_end()), (Some(2), Some(10)));
        let only_parts = TimelineWal { ranges: vec![], parts: [(7, 1)].into() };
        assert_eq!((only_parts.first(), only_parts.last_end()), (Some(7), Some(7)));
        assert_eq!((TimelineWal::default().first(), TimelineWal::default().last_end()), (None, None));
    }

    #[test]
    fn across_timelines() {
        // 2 left 1 within segment 4, 3 left 2 at the beginning of 7.
        let histories = [(2, "1\t0/480000\tx\n"), (3, "1\t0/480000\tx\n2\t0/700000\ty\n")];
        let whole: &[Content<'_>] =
            &[(1, &[(2, 4)], &[(4, 50)]), (2, &[(4, 7)], &[]), (3, &[(7, 8)], &[(8, 9)])];
        let all = index(whole, &histories);
        assert_eq!(follow(&all, 3, 1, 2 * MIB), reached(3, 8 * MIB + 9, None));
        assert_eq!(follow(&all, 2, 1, 2 * MIB), reached(2, 7 * MIB, None));
        assert_eq!(follow(&all, 1, 1, 2 * MIB), reached(1, 4 * MIB + 50, None));
        assert_eq!(follow(&all, 3, 2, 4 * MIB + 5), reached(3, 8 * MIB + 9, None));
        // Behind the place where it was left, timeline 1 leads nowhere.
        assert_eq!(follow(&all, 3, 1, 4 * MIB + 0x80001), None);
        assert_eq!(all.newest_from(TimelineId(1)), TimelineId(3));
        assert!(all.path(TimelineId(9)).is_none());
        let first_missing: &[Content<'_>] = &[(1, &[(2, 4)], &[]), (2, &[(5, 7)], &[]), (3, &[(7, 8)], &[])];
        let found = follow(&index(first_missing, &histories), 3, 1, 2 * MIB);
        assert_eq!(found, reached(1, 4 * MIB, Some((2, 4, 4))));
        let end_missing: &[Content<'_>] = &[(1, &[(2, 3)], &[]), (2, &[(4, 7)], &[]), (3, &[(7, 8)], &[])];
        let found = follow(&index(end_missing, &histories), 3, 1, 2 * MIB);
        assert_eq!(found, reached(1, 3 * MIB, Some((1, 3, 3))));
        // The history alone says that there was more.
        let alone: &[Content<'_>] = &[(1, &[(2, 3)], &[(3, 70)])];
        let found = follow(&index(alone, &histories), 3, 1, 2 * MIB);
        assert_eq!(found, reached(1, 3 * MIB + 70, Some((1, 3, 3))));
    }
}
