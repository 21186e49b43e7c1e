//! Objects that say what WAL changed: of a segment, or of a whole folder of segments put together.
//!
//! They lie beside the segments, and whoever finds one missing reads the segments themselves. Invariant: an object is made of
//! WAL that was whole and right, and of all of it; two that were made of the same WAL say the same, so the first one of a name
//! stays.

use std::fmt;
use std::str::FromStr;

use pgstrata_protocol::names::WalSegmentSize;
use pgstrata_protocol::summary::{BlockReferences, SummaryMerger};
use pgstrata_protocol::wal::{Before, Head, Links, Tail, WalStretch};
use pgstrata_protocol::{Lsn, TimelineId};
use serde::{Deserialize, Serialize};

use super::codec::FrameDecoder;
use super::container::{FrameKind, ObjectKind, PLAIN_MAX};
use super::error::RepositoryError;
use super::names::ClusterName;
use super::object_reader::ObjectReader;
use super::object_writer::ObjectWriter;
use super::place::{Repository, now, read_summary};
use super::summary::decimal;
use super::wal_names::{InvalidWalName, SegmentName, hex};
use crate::failure::Failure;

/// What the names end with.
const SUFFIX: &str = ".changes";
/// The most bytes of a record that are kept of one that lies in two segments: as many as its reader keeps.
const PIECE_MAX: u64 = 16 << 20;

/// The name of an object that says what WAL changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangesName {
    /// Of one segment.
    Segment(SegmentName),
    /// Of all segments of a folder.
    Folder {
        /// The timeline.
        timeline: TimelineId,
        /// The upper 32 bits of its positions.
        high: u32,
    },
}

impl ChangesName {
    /// The object's name in the repository.
    #[must_use]
    pub fn object(self, cluster: &ClusterName) -> String {
        let (timeline, high) = self.folder();
        format!("{}/{self}", cluster.wal_folder(timeline, high))
    }

    /// The timeline and the upper half of positions of its folder.
    #[must_use]
    pub fn folder(self) -> (TimelineId, u32) {
        match self {
            Self::Segment(segment) => (segment.timeline, segment.high),
            Self::Folder { timeline, high } => (timeline, high),
        }
    }

    /// The last segment that it is about, as far as names tell.
    #[must_use]
    pub fn last_segment(self) -> SegmentName {
        match self {
            Self::Segment(segment) => segment,
            Self::Folder { timeline, high } => SegmentName { timeline, high, low: u32::MAX },
        }
    }
}

impl fmt::Display for ChangesName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => write!(f, "{segment}{SUFFIX}"),
            Self::Folder { timeline, high } => write!(f, "{:08X}{high:08X}{SUFFIX}", timeline.0),
        }
    }
}

impl FromStr for ChangesName {
    type Err = InvalidWalName;

    fn from_str(text: &str) -> Result<Self, InvalidWalName> {
        let invalid = || InvalidWalName(text.to_owned());
        let stem = text.strip_suffix(SUFFIX).ok_or_else(invalid)?;
        if let Some((timeline, high)) = stem.split_at_checked(8)
            && let (Some(timeline @ 1..), Some(high)) = (hex(timeline), hex(high))
        {
            return Ok(Self::Folder { timeline: TimelineId(timeline), high });
        }
        stem.parse().map(Self::Segment).map_err(|_| invalid())
    }
}

/// What such an object says beside its table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesObjectSummary {
    /// The cluster's name.
    pub cluster: String,
    /// The object's name.
    pub name: String,
    /// The system whose WAL it is.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// Bytes of a segment of that system.
    pub segment_size: u64,
    /// The first position.
    pub start: String,
    /// The position behind the last.
    pub end: String,
    /// What the pages begin with, in hex.
    pub magic: String,
    /// Where the first record begins, and the one before it.
    pub first: Option<[String; 2]>,
    /// Where the last record begins.
    pub last: Option<String>,
    /// Where a record says that `wal_level` is `minimal`.
    pub minimal: Option<String>,
    /// The rest of a record that began before.
    pub head: RecordHead,
    /// The record that ends behind.
    pub tail: Option<RecordTail>,
    /// Seconds since 1970.
    pub created: u64,
    /// The program's version that wrote it.
    pub program: String,
    /// What a reader must know.
    pub requires: Vec<String>,
}

/// The rest of a record that began before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordHead {
    /// Bytes that are to come of it, as the first page says.
    pub length: u32,
    /// Whether a crash cut it off.
    pub cut_off: bool,
    /// How many bytes of it are there.
    pub taken: u32,
    /// How many of these are kept: the first bytes of the object.
    pub kept: u64,
}

/// A record that ends behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordTail {
    /// Its first byte.
    pub start: String,
    /// How many bytes of it are there.
    pub have: u32,
    /// How many of these are kept, behind those of the head.
    pub kept: u64,
}

impl Repository {
    /// Publishes what WAL changed. Returns whether it was new: where there is one of that name already, it is as good.
    pub(crate) fn publish_changes(
        &self,
        cluster: &ClusterName,
        name: ChangesName,
        (system_identifier, segment_size): (u64, WalSegmentSize),
        stretch: &WalStretch,
    ) -> Result<bool, Failure> {
        let object = name.object(cluster);
        let mut writer = ObjectWriter::begin(self, ObjectKind::WalChanges, &object)?;
        let (head, tail) = (&stretch.head, stretch.tail.as_ref());
        let table = stretch.references.write(Vec::new());
        let (table, _) = table.map_err(|error| Failure::Target(format!("{object}: {error}")))?;
        let mut content = head.bytes.clone();
        content.extend(tail.iter().flat_map(|tail| &tail.bytes));
        content.extend(table);
        for piece in content.chunks(PLAIN_MAX) {
            writer.frame(FrameKind::Data, piece)?;
        }
        let text = |lsn: Lsn| lsn.to_string();
        let Links { first, last, minimal } = stretch.links;
        let summary = ChangesObjectSummary {
            cluster: cluster.to_string(),
            name: name.to_string(),
            system_identifier,
            segment_size: segment_size.bytes(),
            start: text(stretch.start),
            end: text(stretch.end),
            magic: format!("{:02x}{:02x}", stretch.magic[0], stretch.magic[1]),
            first: first.map(|(first, before)| [text(first), text(before)]),
            last: last.map(text),
            minimal: minimal.map(text),
            head: RecordHead {
                length: head.before.length,
                cut_off: head.before.cut_off,
                taken: head.taken,
                kept: head.bytes.len() as u64,
            },
            tail: tail.map(|tail| RecordTail {
                start: text(tail.start),
                have: tail.have,
                kept: tail.bytes.len() as u64,
            }),
            created: now(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            requires: Vec::new(),
        };
        writer.frame(FrameKind::Summary, &serde_json::to_vec(&summary).expect("a summary is JSON"))?;
        Ok(writer.publish()?.is_some())
    }

    /// Reads what WAL changed; `None` where there is no such object.
    ///
    /// # Errors
    /// Where it is damaged, of another system, cluster or name.
    pub fn wal_changes(
        &self,
        cluster: &ClusterName,
        name: ChangesName,
        system_identifier: Option<u64>,
    ) -> Result<Option<(WalStretch, WalSegmentSize)>, Failure> {
        let Some(object) = ObjectReader::open(self, &name.object(cluster), ObjectKind::WalChanges)? else {
            return Ok(None);
        };
        let summary: ChangesObjectSummary = read_summary(&object)?;
        let damaged = |what: String| -> Failure { RepositoryError::damaged(object.name(), what).into() };
        if summary.cluster != cluster.as_str() || summary.name != name.to_string() {
            let [of, found] = [&summary.cluster, &summary.name].map(|text| text.escape_default());
            return Err(damaged(format!("it is \"{found}\" of cluster \"{of}\"")));
        }
        if let Some(expected) = system_identifier.filter(|expected| *expected != summary.system_identifier) {
            return Err(damaged(format!(
                "it is of system {}, expected {expected}",
                summary.system_identifier
            )));
        }
        let size = WalSegmentSize::new(summary.segment_size).map_err(|error| damaged(error.to_string()))?;
        let stretch = read_stretch(&object, &summary)?;
        let (timeline, high) = name.folder();
        let named = match name {
            ChangesName::Segment(segment) => segment.segment(size).and_then(|segment| segment.start(size)),
            ChangesName::Folder { .. } => Some(Lsn(u64::from(high) << 32)),
        };
        let length = match name {
            ChangesName::Segment(_) => size.bytes(),
            ChangesName::Folder { .. } => 1 << 32,
        };
        let expected = named.map(|start| (start, Lsn(start.0.saturating_add(length))));
        if timeline.0 == 0 || expected != Some((stretch.start, stretch.end)) {
            return Err(damaged(format!(
                "it is of {} to {}, not of what its name says",
                stretch.start, stretch.end
            )));
        }
        Ok(Some((stretch, size)))
    }
}

fn read_stretch(object: &ObjectReader, summary: &ChangesObjectSummary) -> Result<WalStretch, Failure> {
    let damaged = |what: String| -> Failure { RepositoryError::damaged(object.name(), what).into() };
    let lsn = |text: &String| text.parse::<Lsn>().map_err(|error| damaged(error.to_string()));
    let magic =
        u16::from_str_radix(&summary.magic, 16).map_err(|error| damaged(format!("magic: {error}")))?;
    let tail_kept = summary.tail.as_ref().map_or(0, |tail| tail.kept);
    for (kept, of) in [
        (summary.head.kept, summary.head.taken),
        (tail_kept, summary.tail.as_ref().map_or(0, |tail| tail.have)),
    ] {
        if kept > PIECE_MAX.min(of.into()) {
            return Err(damaged(format!("it keeps {kept} bytes of a record that has {of}")));
        }
    }
    let mut decoder = FrameDecoder::new().map_err(|error| Failure::Target(error.to_string()))?;
    let (mut stored, mut head, mut tail) = (Vec::new(), Vec::new(), Vec::new());
    let (mut references, mut merger) = (BlockReferences::new(), SummaryMerger::new());
    for number in object.of_kind(FrameKind::Data) {
        let mut plain = object.frame(number, &mut stored, &mut decoder)?;
        for (piece, kept) in [(&mut head, summary.head.kept), (&mut tail, tail_kept)] {
            let wanted = usize::try_from(kept).unwrap_or(usize::MAX).saturating_sub(piece.len());
            let (now, later) = plain.split_at(wanted.min(plain.len()));
            piece.extend_from_slice(now);
            plain = later;
        }
        merger.feed(&mut references, plain).map_err(|error| damaged(error.to_string()))?;
    }
    merger.finish().map_err(|error| damaged(error.to_string()))?;
    Ok(WalStretch {
        start: lsn(&summary.start)?,
        end: lsn(&summary.end)?,
        magic: magic.to_be_bytes(),
        references,
        links: Links {
            first: match &summary.first {
                Some([first, before]) => Some((lsn(first)?, lsn(before)?)),
                None => None,
            },
            last: summary.last.as_ref().map(lsn).transpose()?,
            minimal: summary.minimal.as_ref().map(lsn).transpose()?,
        },
        head: Head {
            before: Before { length: summary.head.length, cut_off: summary.head.cut_off },
            taken: summary.head.taken,
            bytes: head,
        },
        tail: match &summary.tail {
            Some(facts) => Some(Tail { start: lsn(&facts.start)?, have: facts.have, bytes: tail }),
            None => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling_and_a_place() {
        let cluster: ClusterName = "main".parse().expect("valid");
        for (name, object) in [
            (
                "000000010000000A00000002.changes",
                "clusters/main/wal/00000001/0000000A/000000010000000A00000002.changes",
            ),
            ("000000010000000A.changes", "clusters/main/wal/00000001/0000000A/000000010000000A.changes"),
        ] {
            let parsed: ChangesName = name.parse().expect(name);
            assert_eq!((parsed.to_string().as_str(), parsed.object(&cluster).as_str()), (name, object));
        }
        for bad in
            ["", ".changes", "00000001.changes", "000000000000000A.changes", "000000010000000a.changes"]
        {
            assert!(bad.parse::<ChangesName>().is_err(), "{bad}");
        }
    }
}
