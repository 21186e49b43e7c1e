//! What archived WAL changed, noted beside it: an object for each segment, made as the segment passes, and one for a folder of
//! segments once all of them are there.
//!
//! A note is a convenience: where one could not be made, or the program died before, whoever wants it reads the segment. So
//! nothing here makes archiving fail. Invariant: the note comes after its segment, so it is never one of WAL that was refused.

use std::collections::BTreeSet;

use pgstrata_protocol::Lsn;
use pgstrata_protocol::names::WalSegmentSize;
use pgstrata_protocol::wal::{StretchSummarizer, WalStretch};

use super::file::origin;
use crate::failure::Failure;
use crate::repository::{ChangesName, ClusterName, Repository, SegmentName, WalOwner};

/// Segments of the next folder that look whether the one before is complete: files are pushed side by side, and the last of a
/// folder need not be the last to arrive.
const LATE: u32 = 8;

/// Reads a segment on its way into the archive.
#[derive(Debug)]
pub(super) struct Noting {
    segment: SegmentName,
    size: WalSegmentSize,
    system_identifier: u64,
    summarizer: StretchSummarizer,
}

impl Noting {
    /// One for a whole segment.
    pub(super) fn begin(segment: SegmentName, owner: WalOwner) -> Option<Self> {
        let (size, system_identifier) = (owner.segment_size?, owner.system_identifier);
        let start = segment.segment(size)?.start(size)?;
        let origin = origin(system_identifier, segment, size);
        let summarizer = StretchSummarizer::new(origin, start, Lsn(u64::MAX));
        Some(Self { segment, size, system_identifier, summarizer })
    }

    /// Takes the bytes that follow.
    ///
    /// # Errors
    /// What is wrong with the WAL.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), pgstrata_protocol::wal::WalError> {
        self.summarizer.push(bytes)
    }

    /// Publishes the note; the segment is in the archive.
    pub(super) fn publish(self, repository: &Repository, cluster: &ClusterName) -> Result<(), Failure> {
        let Self { segment, size, system_identifier, summarizer } = self;
        let stretch = summarizer.finish().map_err(|error| Failure::Wal(error.to_string()))?;
        let owner = (system_identifier, size);
        repository.publish_changes(cluster, ChangesName::Segment(segment), owner, &stretch)?;
        // The last of its folder, or one of the first of the next.
        let SegmentName { timeline, high, low } = segment;
        if low + 1 == per_folder(size) {
            put_together(repository, cluster, SegmentName { timeline, high, low: 0 }, owner)?;
        } else if low < LATE && high > 0 {
            put_together(repository, cluster, SegmentName { timeline, high: high - 1, low: 0 }, owner)?;
        }
        Ok(())
    }
}

/// How many segments a folder has.
pub(crate) fn per_folder(size: WalSegmentSize) -> u32 {
    u32::try_from((1_u64 << 32) / size.bytes()).unwrap_or(u32::MAX)
}

/// Makes one object of all of a folder, where all are there and that one is not.
fn put_together(
    repository: &Repository,
    cluster: &ClusterName,
    first: SegmentName,
    (system_identifier, size): (u64, WalSegmentSize),
) -> Result<(), Failure> {
    let SegmentName { timeline, high, .. } = first;
    let folder = ChangesName::Folder { timeline, high };
    let names = repository.wal_names(&cluster.wal_folder(timeline, high))?;
    let there: BTreeSet<ChangesName> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let wanted = (0..per_folder(size)).map(|low| ChangesName::Segment(SegmentName { low, ..first }));
    if there.contains(&folder) || !wanted.clone().all(|name| there.contains(&name)) {
        return Ok(());
    }
    let mut all: Option<WalStretch> = None;
    for name in wanted {
        let Some((next, _)) = repository.wal_changes(cluster, name, Some(system_identifier))? else {
            return Ok(());
        };
        all = Some(match all {
            None => next,
            Some(before) => before.join(next).map_err(|error| Failure::Wal(error.to_string()))?,
        });
    }
    let Some(all) = all else { return Ok(()) };
    repository.publish_changes(cluster, folder, (system_identifier, size), &all).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgstrata_protocol::TimelineId;
    use pgstrata_protocol::summary::{BlockReferences, RelationFork};
    use pgstrata_protocol::wal::{Head, Links, Tail};

    use super::*;
    use crate::repository::LocalStore;

    /// The fourth part of a folder, which changed one block.
    fn quarter(number: u32) -> WalStretch {
        let at = |offset: u64| Lsn((u64::from(number) << 30) + offset);
        let fork = RelationFork { tablespace: 1663, database: 5, relation: 16384, fork: 0 };
        let mut references = BlockReferences::new();
        references.mark_block(fork, pgstrata_protocol::BlockNumber(number));
        WalStretch {
            start: at(0),
            end: at(1 << 30),
            magic: [0x18, 0xD1],
            references,
            links: Links {
                first: Some((at(40), if number == 0 { Lsn(0) } else { Lsn(at(0).0 - 100) })),
                last: Some(Lsn(at(1 << 30).0 - 100)),
                minimal: None,
            },
            head: Head::default(),
            tail: None,
        }
    }

    #[test]
    fn a_folder_is_put_together_once_all_of_it_is_there() {
        let scratch = tempfile::tempdir().expect("a folder");
        let repository = Repository::init(Arc::new(LocalStore::new(scratch.path().join("r")))).expect("made");
        let cluster: ClusterName = "main".parse().expect("valid");
        let (timeline, owner) = (TimelineId(1), (7, WalSegmentSize::new(1 << 30).expect("valid")));
        let name = |low| SegmentName { timeline, high: 0, low };
        let folder = ChangesName::Folder { timeline, high: 0 };
        for low in [3, 0, 2, 1] {
            let there = repository.wal_changes(&cluster, folder, None).expect("asked");
            assert!(there.is_none());
            let published =
                repository.publish_changes(&cluster, ChangesName::Segment(name(low)), owner, &quarter(low));
            assert!(published.expect("published"));
            put_together(&repository, &cluster, name(0), owner).expect("looked at");
        }
        let (all, size) = repository.wal_changes(&cluster, folder, Some(7)).expect("asked").expect("there");
        assert_eq!((all.start, all.end, size), (Lsn(0), Lsn(1 << 32), owner.1));
        assert_eq!(all.references.count(), 4);
        assert_eq!(all.links.first, quarter(0).links.first);
        assert_eq!(all.links.last, quarter(3).links.last);
        // Of another system it is none.
        repository.wal_changes(&cluster, folder, Some(8)).expect_err("another system");
    }

    #[test]
    fn an_object_gives_back_what_it_was_given() {
        let scratch = tempfile::tempdir().expect("a folder");
        let repository = Repository::init(Arc::new(LocalStore::new(scratch.path().join("r")))).expect("made");
        let cluster: ClusterName = "main".parse().expect("valid");
        let segment = SegmentName { timeline: TimelineId(2), high: 0, low: 1 };
        let mut stretch = quarter(1);
        stretch.head.bytes = vec![1; 3_000_000];
        (stretch.head.before.length, stretch.head.taken) = (4_000_000, 4_000_000);
        stretch.tail = Some(Tail { start: Lsn((2 << 30) - 50), have: 50, bytes: vec![2; 50] });
        stretch.links.minimal = Some(Lsn((1 << 30) + 400));
        let owner = (7, WalSegmentSize::new(1 << 30).expect("valid"));
        let name = ChangesName::Segment(segment);
        repository.publish_changes(&cluster, name, owner, &stretch).expect("published");
        let (found, _) = repository.wal_changes(&cluster, name, Some(7)).expect("asked").expect("there");
        assert!(found.references == stretch.references);
        assert_eq!((found.links, found.head, found.tail), (stretch.links, stretch.head, stretch.tail));
        assert_eq!((found.start, found.end, found.magic), (stretch.start, stretch.end, stretch.magic));
    }
}
