//! WAL that comes within the archive (`-X fetch`), read as recovery will read it while its segments pass.
//!
//! The server sends the segments from start to end in their order, of every timeline that it has files of
//! (`perform_base_backup` in `basebackup.c`). Which timeline the backup ends on is known only afterwards, so a chain is
//! followed for each: it branches off the one before it at the segment that both have.
//!
//! Invariants: a chain's bytes are without a gap from the segment that the backup starts in; at most [`MOST_TIMELINES`]
//! chains are kept, and of each no more than the headers that a piece may cut.

use std::fmt;

use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::replication::BackupPosition;
use pgstrata_protocol::wal::{WalChecker, WalError, WalOrigin};
use pgstrata_protocol::{Lsn, TimelineId};

/// More timelines than a range of WAL that a server still has can sensibly lie on.
const MOST_TIMELINES: usize = 64;

/// Where the WAL begins, and what it says of itself.
#[derive(Clone, Copy, Debug)]
pub struct WalStart {
    /// Its origin, on the timeline on which the backup starts.
    pub origin: WalOrigin,
    /// The first record that is needed.
    pub first_record: Lsn,
}

/// WAL in an archive that recovery could not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchedWalError {
    /// A page or a record is wrong, or missing.
    Wal(WalError),
    /// A segment is not there.
    Missing {
        /// Its name.
        segment: String,
        /// The one that came in its place, if one came.
        found: Option<String>,
    },
    /// A segment is too short or too long.
    Length {
        /// Its name.
        segment: String,
        /// Its bytes.
        found: u64,
        /// What it should have.
        expected: u64,
    },
}

impl fmt::Display for FetchedWalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wal(error) => write!(f, "{error}"),
            Self::Missing { segment, found: None } => write!(f, "segment {segment} did not arrive"),
            Self::Missing { segment, found: Some(found) } => {
                write!(f, "segment {segment} did not arrive, found {found} in its place")
            }
            Self::Length { segment, found, expected } => {
                write!(f, "segment {segment} has {found} bytes, expected {expected}")
            }
        }
    }
}

/// Reads the segments of one backup.
#[derive(Debug)]
pub struct FetchedWal {
    start: WalStart,
    chains: Vec<Chain>,
    /// The chain whose segment passes.
    current: Option<usize>,
}

/// The WAL of one timeline, with that of older ones up to where it branched off.
#[derive(Clone, Debug)]
struct Chain {
    timeline: TimelineId,
    checker: WalChecker,
    /// The state before the latest segment, from which a newer timeline may branch off.
    before: WalChecker,
    broken: Option<FetchedWalError>,
    /// A segment came again that had passed. Whoever unpacks the archive gets the later one.
    again: Option<FetchedWalError>,
}

impl FetchedWal {
    /// A reader that has seen nothing yet.
    #[must_use]
    pub fn new(start: WalStart) -> Self {
        let checker = WalChecker::new(start.origin, start.first_record);
        let timeline = start.origin.timeline;
        let first = Chain { timeline, before: checker.clone(), checker, broken: None, again: None };
        Self { start, chains: vec![first], current: None }
    }

    /// The segment that a member is, by its path.
    #[must_use]
    pub fn segment(path: &[u8], size: WalSegmentSize) -> Option<WalSegment> {
        WalSegment::parse(path.strip_prefix(b"pg_wal/")?, size)
    }

    /// A segment of `length` bytes begins.
    pub fn begin(&mut self, segment: WalSegment, length: u64) {
        self.current = self.chain_for(segment);
        let Some(place) = self.current else { return };
        let size = self.start.origin.segment_size;
        let chain = &mut self.chains[place];
        let begins = segment.start(size);
        if begins.is_some_and(|begins| begins < chain.checker.position()) && chain.timeline == segment.timeline {
            chain.again.get_or_insert_with(|| FetchedWalError::Missing {
                segment: WalSegment::containing(chain.timeline, chain.checker.position(), size).file_name(size),
                found: Some(segment.file_name(size)),
            });
        }
        if chain.broken.is_some() {
            return;
        }
        if segment.start(size) != Some(chain.checker.position()) {
            let missing = WalSegment::containing(chain.timeline, chain.checker.position(), size);
            chain.broken = Some(FetchedWalError::Missing {
                segment: missing.file_name(size),
                found: Some(segment.file_name(size)),
            });
        } else if length != size.bytes() {
            chain.broken = Some(FetchedWalError::Length {
                segment: segment.file_name(size),
                found: length,
                expected: size.bytes(),
            });
        } else {
            chain.before = chain.checker.clone();
        }
    }

    /// The next bytes of the segment.
    pub fn update(&mut self, bytes: &[u8]) {
        let Some(chain) = self.current.map(|place| &mut self.chains[place]) else { return };
        if chain.broken.is_none()
            && let Err(error) = chain.checker.push(bytes)
        {
            chain.broken = Some(FetchedWalError::Wal(error));
        }
    }

    /// Whether all WAL up to the backup's end has passed, and is right. What lies behind the end, and on timelines that
    /// do not lead there, is of no account.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn finish(&self, end: BackupPosition) -> Result<(), FetchedWalError> {
        let BackupPosition { lsn, timeline } = end;
        let size = self.start.origin.segment_size;
        let Some(chain) = self.chains.iter().find(|chain| chain.timeline == timeline) else {
            // The last byte before the end tells the segment.
            let last = WalSegment::containing(timeline, Lsn(lsn.0.saturating_sub(1)), size);
            return Err(FetchedWalError::Missing { segment: last.file_name(size), found: None });
        };
        if let Some(again) = &chain.again {
            return Err(again.clone());
        }
        match (chain.checker.finish(lsn), &chain.broken) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(broken)) => Err(broken.clone()),
            (Err(_), None)
                if chain.checker.position() < lsn
                    && chain.checker.position().0.is_multiple_of(size.bytes()) =>
            {
                let next = WalSegment::containing(timeline, chain.checker.position(), size);
                Err(FetchedWalError::Missing { segment: next.file_name(size), found: None })
            }
            (Err(error), None) => Err(FetchedWalError::Wal(error)),
        }
    }

    /// The chain that a segment goes on with, made where its timeline is new. None for older timelines than the backup's
    /// start, which no recovery reads.
    fn chain_for(&mut self, segment: WalSegment) -> Option<usize> {
        if let Some(known) = self.chains.iter().position(|chain| chain.timeline == segment.timeline) {
            return Some(known);
        }
        if segment.timeline < self.start.origin.timeline || self.chains.len() == MOST_TIMELINES {
            return None;
        }
        let begins = segment.start(self.start.origin.segment_size);
        let fits = |checker: &WalChecker| begins == Some(checker.position());
        let older = self.chains.iter().filter(|chain| chain.timeline < segment.timeline);
        // A timeline that is no ancestor may have left a segment here; what branches off meets its parent's end.
        let parent =
            older.max_by_key(|chain| (fits(&chain.before) || fits(&chain.checker), chain.timeline))?;
        let mut branch = parent.clone();
        if fits(&parent.before) {
            // What was wrong with the older timeline's own segment lies behind the branch, or is in this one too.
            (branch.checker, branch.broken) = (parent.before.clone(), None);
        }
        branch.checker.follow(segment.timeline);
        branch.timeline = segment.timeline;
        self.chains.push(branch);
        Some(self.chains.len() - 1)
    }
}

#[cfg(test)]
mod tests;
