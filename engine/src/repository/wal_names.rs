//! Names in a cluster's WAL archive: the server's own names of files, and the parts of segments that are not whole yet.
//!
//! A folder for each timeline and upper half of the log's positions (4 GiB), so that months of WAL are listed in pieces.
//! Sans-IO. Invariants: a name has one spelling; it says nothing of the size of segments, which its object does.

use std::fmt;
use std::str::FromStr;

use pgstrata_protocol::TimelineId;
use pgstrata_protocol::names::{WalSegment, WalSegmentSize};

use super::names::ClusterName;

/// The most segments of 4 GiB of WAL: those of 1 MiB, the smallest.
const LOW_MAX: u32 = 0xFFF;
/// The largest segment in bytes.
const SEGMENT_MAX: u32 = 1 << 30;

/// A segment, as it is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline.
    pub timeline: TimelineId,
    /// The upper 32 bits of its positions.
    pub high: u32,
    /// Its number within these.
    pub low: u32,
}

/// The name of an object of a WAL archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalName {
    /// A timeline's history.
    History(TimelineId),
    /// A whole segment.
    Segment(SegmentName),
    /// The last segment of a timeline that was left, as a promoted server archives it.
    Partial(SegmentName),
    /// A note on a finished backup: the segment in which it started, and the byte there.
    BackupHistory(SegmentName, u32),
    /// Bytes `from..to` of a segment that is still being received.
    Part {
        /// The segment.
        segment: SegmentName,
        /// The first byte.
        from: u32,
        /// The byte behind the last.
        to: u32,
    },
}

/// What is no name of a WAL file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is no name of a WAL file", .0.escape_default())]
pub struct InvalidWalName(pub String);

impl SegmentName {
    /// A segment's name.
    ///
    /// # Panics
    /// Never: positions have 64 bits.
    #[must_use]
    pub fn of(segment: WalSegment, size: WalSegmentSize) -> Self {
        segment.file_name(size).parse().expect("a segment's name")
    }

    /// The segment, where segments have this size; `None` where none of that size has the name.
    #[must_use]
    pub fn segment(self, size: WalSegmentSize) -> Option<WalSegment> {
        WalSegment::parse(self.to_string().as_bytes(), size)
    }

    /// The folder of its objects.
    fn folder(self, cluster: &ClusterName) -> String {
        format!("{}/{:08X}/{:08X}", cluster.wal(), self.timeline.0, self.high)
    }
}

impl WalName {
    /// The segment that it is about.
    #[must_use]
    pub fn segment(self) -> Option<SegmentName> {
        match self {
            Self::History(_) => None,
            Self::Segment(segment) | Self::Partial(segment) | Self::BackupHistory(segment, _) => {
                Some(segment)
            }
            Self::Part { segment, .. } => Some(segment),
        }
    }

    /// The object's name in the repository.
    #[must_use]
    pub fn object(self, cluster: &ClusterName) -> String {
        match self.segment() {
            None => format!("{}/{self}", cluster.wal()),
            Some(segment) => format!("{}/{self}", segment.folder(cluster)),
        }
    }
}

impl ClusterName {
    /// The folder of its WAL: histories, and a folder for each timeline.
    #[must_use]
    pub fn wal(&self) -> String {
        format!("clusters/{self}/wal")
    }

    /// The folder of a timeline's WAL: a folder for each upper half of positions.
    #[must_use]
    pub fn wal_timeline(&self, timeline: TimelineId) -> String {
        format!("{}/{:08X}", self.wal(), timeline.0)
    }

    /// The folder of the WAL of one upper half of positions.
    #[must_use]
    pub fn wal_folder(&self, timeline: TimelineId, high: u32) -> String {
        SegmentName { timeline, high, low: 0 }.folder(self)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.high, self.low)
    }
}

impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.0),
            Self::Segment(segment) => segment.fmt(f),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
            Self::BackupHistory(segment, offset) => write!(f, "{segment}.{offset:08X}.backup"),
            Self::Part { segment, from, to } => write!(f, "{segment}.{from:08X}-{to:08X}.part"),
        }
    }
}

impl FromStr for SegmentName {
    type Err = InvalidWalName;

    fn from_str(text: &str) -> Result<Self, InvalidWalName> {
        let parts = text.len() == 24 && text.is_ascii();
        let number = |range: std::ops::Range<usize>| hex(&text[range]);
        let read = || Some((number(0..8)?, number(8..16)?, number(16..24)?));
        match parts.then(read).flatten() {
            Some((timeline @ 1.., high, low @ ..=LOW_MAX)) => {
                Ok(Self { timeline: TimelineId(timeline), high, low })
            }
            _ => Err(InvalidWalName(text.to_owned())),
        }
    }
}

impl FromStr for WalName {
    type Err = InvalidWalName;

    fn from_str(text: &str) -> Result<Self, InvalidWalName> {
        read(text).ok_or_else(|| InvalidWalName(text.to_owned()))
    }
}

fn read(text: &str) -> Option<WalName> {
    if let Some(timeline) = text.strip_suffix(".history") {
        return hex(timeline).filter(|timeline| *timeline > 0).map(TimelineId).map(WalName::History);
    }
    let (segment, suffix) = text.split_at_checked(24)?;
    let segment = segment.parse().ok()?;
    match suffix {
        "" => return Some(WalName::Segment(segment)),
        ".partial" => return Some(WalName::Partial(segment)),
        _ => {}
    }
    let (middle, kind) = suffix.strip_prefix('.')?.split_once('.')?;
    match kind {
        "backup" => hex(middle).map(|offset| WalName::BackupHistory(segment, offset)),
        "part" => {
            let (from, to) = middle.split_once('-')?;
            let (from, to) = (hex(from)?, hex(to)?);
            (from < to && to <= SEGMENT_MAX).then_some(WalName::Part { segment, from, to })
        }
        _ => None,
    }
}

/// Eight digits as PostgreSQL writes them.
pub(super) fn hex(text: &str) -> Option<u32> {
    let plain = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    if text.len() == 8 && text.bytes().all(plain) { u32::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling_and_a_place() {
        let cluster: ClusterName = "main".parse().expect("valid");
        for (name, object) in [
            ("0000000A.history", "clusters/main/wal/0000000A.history"),
            ("000000010000000A00000002", "clusters/main/wal/00000001/0000000A/000000010000000A00000002"),
            (
                "000000010000000000000FFF.partial",
                "clusters/main/wal/00000001/00000000/000000010000000000000FFF.partial",
            ),
            (
                "000000010000000000000002.00000028.backup",
                "clusters/main/wal/00000001/00000000/000000010000000000000002.00000028.backup",
            ),
            (
                "000000010000000000000002.00000000-00000100.part",
                "clusters/main/wal/00000001/00000000/000000010000000000000002.00000000-00000100.part",
            ),
        ] {
            let parsed: WalName = name.parse().expect(name);
            assert_eq!((parsed.to_string().as_str(), parsed.object(&cluster).as_str()), (name, object));
        }
        for bad in [
            "",
            "x",
            ".history",
            "00000000.history",
            "0000000a.history",
            "000000010000000000001000",
            "000000000000000000000002",
            "00000001000000000000000é",
            "000000010000000000000002.",
            "000000010000000000000002.part",
            "000000010000000000000002.00000100-00000100.part",
            "000000010000000000000002.00000000-40000001.part",
            "000000010000000000000002.gz",
            "../../../../etc/passwd.history",
            "pg_wal/RECOVERYXLOG",
        ] {
            assert!(bad.parse::<WalName>().is_err(), "{bad}");
        }
    }
}
