//! WAL that no backup needs any more: everything below the segment in which the oldest backup starts.
//!
//! Positions grow along every history, so the number of a segment, not its timeline, says whether a recovery from a backup
//! that is kept could ever ask for it. Histories of timelines stay: they are small, and tell which way was taken.

use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::{Lsn, TimelineId};
use serde::Serialize;

use super::super::error::RepositoryError;
use super::super::manifest::Manifest;
use super::super::names::{BackupId, ClusterName};
use super::super::place::Repository;
use super::super::wal_changes::ChangesName;
use super::super::wal_names::{SegmentName, WalName};
use super::lease::{Purpose, leases};
use crate::failure::Failure;
use crate::stop::Stop;

/// Objects removed at a time.
const BATCH: usize = 500;

/// What became of a cluster's WAL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExpiredWal {
    /// Files that are gone.
    pub files: u64,
    /// Their bytes in the repository.
    pub bytes: u64,
    /// The segment from which on all is kept, on every timeline; its name's timeline is that of the oldest backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_from: Option<String>,
    /// Why nothing was judged, where that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

/// Removes WAL below the start of the oldest backup that is there, but for what is younger than `grace`. With `going`,
/// says what would go once these backups are gone, and changes nothing.
pub(super) fn expire_wal(
    repository: &Repository,
    cluster: &ClusterName,
    (now, grace): (u64, u64),
    going: Option<&[BackupId]>,
    stop: &Stop<Failure>,
) -> Result<ExpiredWal, Failure> {
    let mut expired = ExpiredWal::default();
    if repository.store().list(&cluster.wal())?.is_empty() {
        return Ok(expired);
    }
    // A backup under way may start before all others, from a standby that lags; it is known once it is there.
    let running = leases(repository, cluster)?;
    let is_backup = |purpose: &Purpose| *purpose == Purpose::Backup;
    if let Some(backup) =
        running.iter().find(|lease| is_backup(&lease.summary.purpose) && lease.is_alive(now))
    {
        expired.waits_for = Some(backup.run());
        return Ok(expired);
    }
    let there = repository.backups(cluster)?;
    let stays = there.into_iter().filter(|backup| going.is_none_or(|going| !going.contains(backup)));
    let Some(first) = oldest(repository, cluster, stays)? else {
        // Without a backup nobody knows what the WAL is kept for.
        return Ok(expired);
    };
    expired.kept_from = Some(first.to_string());
    let store = repository.store();
    let mut batch = Vec::new();
    for timeline in store.list(&cluster.wal())?.into_iter().filter(|entry| entry.is_folder) {
        let Some(timeline) = number(&timeline.name) else { continue };
        for folder in store.list(&cluster.wal_timeline(TimelineId(timeline)))? {
            let Some(high) = number(&folder.name).filter(|high| *high <= first.high) else { continue };
            let path = cluster.wal_folder(TimelineId(timeline), high);
            for object in store.list(&path)? {
                if stop.is_thrown() {
                    return Err(Failure::Stopped);
                }
                // What is no WAL of ours is not ours to remove.
                let Some(segment) = segment_of(&object.name) else {
                    continue;
                };
                let needed = (segment.high, segment.low) >= (first.high, first.low);
                let young = grace > 0 && object.modified.saturating_add(grace) > now;
                if needed || young || (segment.timeline.0, segment.high) != (timeline, high) {
                    continue;
                }
                expired.files += 1;
                expired.bytes += object.length;
                batch.push(format!("{path}/{}", object.name));
                if batch.len() == BATCH {
                    remove(repository, &mut batch, going)?;
                }
            }
        }
    }
    remove(repository, &mut batch, going)?;
    Ok(expired)
}

/// The segment that an object is about: the last one, where it is about many.
fn segment_of(name: &str) -> Option<SegmentName> {
    match name.parse::<ChangesName>() {
        Ok(name) => Some(name.last_segment()),
        Err(_) => name.parse::<WalName>().ok()?.segment(),
    }
}

fn remove(
    repository: &Repository,
    batch: &mut Vec<String>,
    going: Option<&[BackupId]>,
) -> Result<(), Failure> {
    if going.is_none() {
        repository.store().remove(batch)?;
    }
    batch.clear();
    Ok(())
}

/// The segment in which the first of these backups starts.
fn oldest(
    repository: &Repository,
    cluster: &ClusterName,
    backups: impl Iterator<Item = BackupId>,
) -> Result<Option<SegmentName>, Failure> {
    let mut oldest: Option<(Lsn, SegmentName, u64)> = None;
    for backup in backups {
        let Some((object, summary)) = Manifest::open_summary(repository, cluster, backup)? else { continue };
        let start: Lsn = summary.start_lsn.parse().map_err(|error| {
            RepositoryError::damaged(object.name(), format!("start_lsn \"{}\": {error}", summary.start_lsn))
        })?;
        let size = WalSegmentSize::new(summary.wal_segment_size)
            .map_err(|error| RepositoryError::damaged(object.name(), error.to_string()))?;
        if summary.start_timeline == 0 {
            return Err(RepositoryError::damaged(object.name(), "it starts on timeline 0").into());
        }
        let segment = WalSegment::containing(TimelineId(summary.start_timeline), start, size);
        let segment = SegmentName::of(segment, size);
        match &oldest {
            Some((_, _, other)) if *other != size.bytes() => {
                // Numbers of segments of different sizes cannot be compared.
                return Ok(None);
            }
            Some((lsn, ..)) if *lsn <= start => {}
            _ => oldest = Some((start, segment, size.bytes())),
        }
    }
    Ok(oldest.map(|(_, segment, _)| segment))
}

/// A number of eight upper-case hexadecimal digits, as folders are named.
fn number(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name, 16).ok()?;
    (format!("{number:08X}") == name).then_some(number)
}
