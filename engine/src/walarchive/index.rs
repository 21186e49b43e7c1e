//! What a cluster's WAL archive holds, by its names: whole segments as ranges, parts, histories.
//!
//! Memory grows with ranges and timelines, not with segments.

use std::collections::{BTreeMap, BTreeSet};

use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::replication::TimelineHistory;
use pgstrata_protocol::{Lsn, TimelineId};

use super::parts::chain;
use crate::failure::Failure;
use crate::repository::{
    BackupSummary, ChangesName, ClusterName, Repository, RepositoryError, SegmentName, WalName, WalSummary,
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

    /// The ranges that lie between whole segments.
    pub fn gaps(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.windows(2).map(|pair| (pair[0].1, pair[1].0))
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
                histories.insert(timeline, history(repository, cluster, timeline)?);
            } else if let Some(timeline) = number(&name).filter(|timeline| *timeline > 0).map(TimelineId) {
                let mut wal = TimelineWal::default();
                for folder in store.wal_names(&cluster.wal_timeline(timeline))? {
                    let Some(high) = number(&folder) else {
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

fn number(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name, 16).ok()?;
    (name == format!("{number:08X}")).then_some(number)
}

fn first_size(
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

fn history(
    repository: &Repository,
    cluster: &ClusterName,
    timeline: TimelineId,
) -> Result<TimelineHistory, Failure> {
    /// Longer ones are refused when they are taken in.
    const MOST: usize = 4 << 20;
    let name = WalName::History(timeline);
    let damaged = |what: &dyn std::fmt::Display| RepositoryError::damaged(name.object(cluster), what);
    let object = repository.wal_object(cluster, name)?.ok_or_else(|| damaged(&"it is gone"))?;
    let mut content = Vec::new();
    object.read(|piece| {
        if content.len() + piece.len() > MOST {
            return Err(damaged(&"it is longer than any history").into());
        }
        content.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(TimelineHistory::parse(timeline, &content).map_err(|error| damaged(&error))?)
}
