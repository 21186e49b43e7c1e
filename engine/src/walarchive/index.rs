//! What a cluster's WAL archive holds, by its names: whole segments as ranges, parts, histories.
//!
//! Memory grows with ranges and timelines, not with segments.

use std::collections::{BTreeMap, BTreeSet};

use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::replication::TimelineHistory;
use pgstrata_protocol::{Lsn, TimelineId};

use super::parts::chain;
use super::start::hex;
use crate::failure::Failure;
use crate::repository::{
    BackupSummary, ChangesName, ClusterName, Repository, SegmentName, WalName, WalSummary,
};

/// An archive's content.
#[derive(Clone, Debug)]
pub struct ArchiveIndex {
    /// The size of its segments.
    pub segment_size: WalSegmentSize,
    /// What each timeline has.
    pub timelines: BTreeMap<TimelineId, TimelineWal>,
    /// The histories, but for the first timeline's, which has none.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Names that are none of ours.
    pub strays: Vec<String>,
}

/// The WAL of one timeline.
#[derive(Clone, Debug, Default)]
pub struct TimelineWal {
    /// Whole segments, as ranges of numbers: the first, and the one behind the last.
    pub ranges: Vec<(u64, u64)>,
    /// Bytes that parts hold of segments that are not whole, from their beginning.
    pub parts: BTreeMap<u64, u64>,
}

impl TimelineWal {
    fn add(&mut self, number: u64) {
        match self.ranges.last_mut() {
            Some((_, end)) if *end == number => *end += 1,
            _ => self.ranges.push((number, number + 1)),
        }
    }

    /// The number behind the last whole segment that follows `number` without a gap; `number` where it is not here.
    #[must_use]
    pub fn end_from(&self, number: u64) -> u64 {
        let range = self.ranges.iter().find(|(first, end)| (*first..*end).contains(&number));
        range.map_or(number, |(_, end)| *end)
    }

    /// The number of the first segment of which there is something.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        let [whole, part] = [self.ranges.first().map(|(first, _)| *first), self.parts.keys().next().copied()];
        whole.into_iter().chain(part).min()
    }

    /// The number behind the last segment without which what there is has a hole: the last whole one, and the one before
    /// the last that is there in part. What is there in part without its beginning is a hole itself.
    #[must_use]
    pub fn last_end(&self) -> Option<u64> {
        let whole = self.ranges.last().map(|(_, end)| *end);
        let part = self.parts.last_key_value().map(|(number, bytes)| number + u64::from(*bytes == 0));
        whole.into_iter().chain(part).max()
    }

    /// What is not there whole from the segment `from` to the one before `until`, as ranges.
    #[must_use]
    pub fn missing(&self, from: u64, until: u64) -> Vec<(u64, u64)> {
        let (mut missing, mut at) = (Vec::new(), from);
        for (first, end) in self.ranges.iter().chain([&(until, until)]) {
            if at < *first && at < until {
                missing.push((at, (*first).min(until)));
            }
            at = at.max(*end);
        }
        missing
    }
}

impl ArchiveIndex {
    /// Reads the names of an archive and its histories. `backups` say the size of segments where no segment does.
    ///
    /// # Errors
    /// Where it cannot be listed, and where a history is damaged.
    pub fn read(
        repository: &Repository,
        cluster: &ClusterName,
        backups: &[BackupSummary],
    ) -> Result<Self, Failure> {
        let store = repository;
        let (mut histories, mut strays, mut timelines) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        let mut size = backups.first().and_then(|backup| WalSegmentSize::new(backup.wal_segment_size).ok());
        for name in store.wal_names(&cluster.wal())? {
            if let Ok(WalName::History(timeline)) = name.parse() {
                if let Some(history) = repository.wal_history(cluster, timeline)? {
                    histories.insert(timeline, history);
                }
            } else if let Some(timeline) = hex(&name).filter(|timeline| *timeline > 0).map(TimelineId) {
                let mut wal = TimelineWal::default();
                for folder in store.wal_names(&cluster.wal_timeline(timeline))? {
                    let Some(high) = hex(&folder) else {
                        strays.push(format!("{}/{folder}", cluster.wal_timeline(timeline)));
                        continue;
                    };
                    let folder = cluster.wal_folder(timeline, high);
                    let names = store.wal_names(&folder)?;
                    if size.is_none() {
                        size = first_size(repository, cluster, &names)?;
                    }
                    read_folder(&mut wal, size, &names, (timeline, high), |name| {
                        strays.push(format!("{folder}/{name}"));
                    });
                }
                timelines.insert(timeline, wal);
            } else {
                strays.push(format!("{}/{name}", cluster.wal()));
            }
        }
        let segment_size = size.unwrap_or(WalSegmentSize::DEFAULT);
        Ok(Self { segment_size, timelines, histories, strays })
    }

    /// A segment's name.
    #[must_use]
    pub fn segment_name(&self, timeline: TimelineId, number: u64) -> String {
        WalSegment { timeline, number }.file_name(self.segment_size)
    }

    /// The first position of a segment.
    #[must_use]
    pub fn start(&self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.segment_size.bytes()))
    }

    /// The number of the segment that holds a position.
    #[must_use]
    pub fn number(&self, lsn: Lsn) -> u64 {
        lsn.0 / self.segment_size.bytes()
    }
}

/// The names of one folder, sorted: a segment's parts come behind it, so that it is known whether they count.
fn read_folder(
    wal: &mut TimelineWal,
    size: Option<WalSegmentSize>,
    names: &[String],
    (timeline, high): (TimelineId, u32),
    mut stray: impl FnMut(&str),
) {
    let mut parts: BTreeMap<u64, BTreeSet<(u32, u32)>> = BTreeMap::new();
    let mut whole = BTreeSet::new();
    for name in names {
        let parsed = name.parse().ok().filter(|name: &WalName| {
            name.segment().is_some_and(|segment| (segment.timeline, segment.high) == (timeline, high))
        });
        let number =
            |segment: SegmentName| size.and_then(|size| segment.segment(size)).map(|named| named.number);
        match parsed {
            Some(WalName::Segment(segment)) => match number(segment) {
                Some(number) => drop(whole.insert(number)),
                None => stray(name),
            },
            Some(WalName::Part { segment, from, to }) => match number(segment) {
                Some(number) => drop(parts.entry(number).or_default().insert((from, to))),
                None => stray(name),
            },
            Some(_) => {}
            None if of_changes(name, timeline, high) => {}
            None => stray(name),
        }
    }
    for number in &whole {
        wal.add(*number);
    }
    for (number, parts) in parts.into_iter().filter(|(number, _)| !whole.contains(number)) {
        wal.parts.insert(number, chain(&parts).1.into());
    }
}

/// Whether a name is one of what the WAL of this folder changed.
fn of_changes(name: &str, timeline: TimelineId, high: u32) -> bool {
    name.parse().is_ok_and(|name: ChangesName| name.folder() == (timeline, high))
}

/// The size of segments that the first of these objects tells which is of one.
pub(super) fn first_size(
    repository: &Repository,
    cluster: &ClusterName,
    names: &[String],
) -> Result<Option<WalSegmentSize>, Failure> {
    for name in names.iter().filter_map(|name| name.parse().ok()) {
        if matches!(name, WalName::Segment(_) | WalName::Part { .. })
            && let Some(object) = repository.wal_object(cluster, name)?
        {
            let WalSummary { segment_size, .. } = object.summary;
            return Ok(WalSegmentSize::new(segment_size).ok());
        }
    }
    Ok(None)
}
