//! Names in `pg_wal` and in WAL archives (`access/xlog_internal.h`, `pg_receivewal.c`).

use std::fmt;
use std::str::FromStr;

use crate::setting::parse_memory;
use crate::{Lsn, TimelineId};

/// The size of WAL segments: a power of two from 1 MiB to 1 GiB (`IsValidWalSegSize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WalSegmentSize(u32);

/// What is no size of WAL segments.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid WAL segment size {0:?}, expected a power of two from 1MB to 1GB, such as 16MB")]
pub struct InvalidSegmentSize(pub String);

impl WalSegmentSize {
    /// What initdb takes unasked (`DEFAULT_XLOG_SEG_SIZE`).
    pub const DEFAULT: WalSegmentSize = WalSegmentSize(16 << 20);

    const MIN: u64 = 1 << 20;
    const MAX: u64 = 1 << 30;

    /// Checks a size in bytes.
    pub fn new(bytes: u64) -> Result<Self, InvalidSegmentSize> {
        let invalid = || InvalidSegmentSize(bytes.to_string());
        if !bytes.is_power_of_two() || !(Self::MIN..=Self::MAX).contains(&bytes) {
            return Err(invalid());
        }
        u32::try_from(bytes).map(Self).map_err(|_| invalid())
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0.into()
    }

    /// How many segments share the middle part of a name (`XLogSegmentsPerXLogId`).
    fn per_log_id(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl FromStr for WalSegmentSize {
    type Err = InvalidSegmentSize;

    /// Reads what `SHOW wal_segment_size` answers: a number with a unit, such as `16MB`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSegmentSize(text.to_owned());
        let bytes = parse_memory(text).ok_or_else(invalid)?;
        Self::new(bytes).map_err(|_| invalid())
    }
}

/// A WAL segment of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegment {
    /// The timeline it was written on.
    pub timeline: TimelineId,
    /// Its number, counted from the beginning of the log (`XLogSegNo`).
    pub number: u64,
}

impl WalSegment {
    /// The segment that holds a position.
    #[must_use]
    pub fn containing(timeline: TimelineId, lsn: Lsn, size: WalSegmentSize) -> Self {
        Self { timeline, number: lsn.0 / size.bytes() }
    }

    /// The segment's first position; `None` beyond the end of what a position can hold.
    #[must_use]
    pub fn start(self, size: WalSegmentSize) -> Option<Lsn> {
        self.number.checked_mul(size.bytes()).map(Lsn)
    }

    /// The segment that follows on the same timeline.
    #[must_use]
    pub fn next(self) -> Self {
        Self { number: self.number.saturating_add(1), ..self }
    }

    /// The file's name (`XLogFileName`): timeline, log and segment in eight digits each.
    #[must_use]
    pub fn file_name(self, size: WalSegmentSize) -> String {
        let (log, segment) = (self.number / size.per_log_id(), self.number % size.per_log_id());
        format!("{:08X}{log:08X}{segment:08X}", self.timeline.0)
    }

    /// Reads a plain segment's name; `None` for anything else and for a name that this segment size cannot have.
    #[must_use]
    pub fn parse(name: &[u8], size: WalSegmentSize) -> Option<Self> {
        let parts: &[u8; 24] = name.try_into().ok()?;
        let timeline = TimelineId(hex(&parts[..8])?);
        let (log, segment) = (u64::from(hex(&parts[8..16])?), u64::from(hex(&parts[16..])?));
        if timeline.0 == 0 || segment >= size.per_log_id() {
            return None;
        }
        Some(Self { timeline, number: log * size.per_log_id() + segment })
    }
}

/// How a segment is compressed: by pg_receivewal, but for Zstandard, which only pgstrata's own writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WalCompression {
    /// `.gz`
    Gzip,
    /// `.lz4`
    Lz4,
    /// `.zst`
    Zstd,
}

impl WalCompression {
    /// What the name ends with, dot included.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            WalCompression::Gzip => ".gz",
            WalCompression::Lz4 => ".lz4",
            WalCompression::Zstd => ".zst",
        }
    }
}

/// A file of a WAL archive, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WalFile {
    /// A segment.
    Segment {
        /// Which one.
        segment: WalSegment,
        /// How it is compressed, if it is.
        compression: Option<WalCompression>,
        /// Whether it is still being written.
        partial: bool,
    },
    /// A timeline's history.
    History(TimelineId),
    /// A note on a finished backup.
    BackupHistory {
        /// The segment in which the backup started.
        segment: WalSegment,
        /// The start's offset in the segment.
        offset: u32,
    },
}

impl WalFile {
    /// Reads a name; `None` for what is no WAL file.
    #[must_use]
    pub fn parse(name: &[u8], size: WalSegmentSize) -> Option<Self> {
        if let Some(timeline) = name.strip_suffix(b".history") {
            let timeline: &[u8; 8] = timeline.try_into().ok()?;
            return Some(WalFile::History(TimelineId(hex(timeline)?))).filter(|_| timeline != b"00000000");
        }
        if let Some(rest) = name.strip_suffix(b".backup") {
            let (segment, offset) = rest.split_at_checked(24)?;
            let offset: &[u8; 8] = offset.strip_prefix(b".")?.try_into().ok()?;
            let (segment, offset) = (WalSegment::parse(segment, size)?, hex(offset)?);
            return (u64::from(offset) < size.bytes()).then_some(WalFile::BackupHistory { segment, offset });
        }
        let (segment, suffix) = name.split_at_checked(24)?;
        let (suffix, partial) = match suffix.strip_suffix(b".partial") {
            Some(suffix) => (suffix, true),
            None => (suffix, false),
        };
        let compression = match suffix {
            b"" => None,
            b".gz" => Some(WalCompression::Gzip),
            b".lz4" => Some(WalCompression::Lz4),
            b".zst" => Some(WalCompression::Zstd),
            _ => return None,
        };
        Some(WalFile::Segment { segment: WalSegment::parse(segment, size)?, compression, partial })
    }

    /// The name that [`WalFile::parse`] reads.
    #[must_use]
    pub fn file_name(self, size: WalSegmentSize) -> String {
        match self {
            WalFile::Segment { segment, compression, partial } => {
                let compression = compression.map_or("", WalCompression::extension);
                format!("{}{compression}{}", segment.file_name(size), if partial { ".partial" } else { "" })
            }
            WalFile::History(timeline) => format!("{:08X}.history", timeline.0),
            WalFile::BackupHistory { segment, offset } => {
                format!("{}.{offset:08X}.backup", segment.file_name(size))
            }
        }
    }
}

impl fmt::Display for WalSegmentSize {
    /// As `SHOW wal_segment_size` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bytes() == Self::MAX { f.write_str("1GB") } else { write!(f, "{}MB", self.0 >> 20) }
    }
}

/// Eight digits as PostgreSQL writes them: upper case only, so that each file has one name.
fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0u32, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'A'..=b'F' => digit - b'A' + 10,
            _ => return None,
        };
        number.checked_mul(16)?.checked_add(digit.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(text: &str) -> WalSegmentSize {
        text.parse().unwrap()
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("1MB", 1 << 20), ("16MB", 16 << 20), ("1GB", 1 << 30), ("512MB", 1 << 29)] {
            assert_eq!(size(text).bytes(), bytes);
            assert_eq!(size(text).to_string(), text);
        }
        assert_eq!(size("16384kB"), WalSegmentSize::DEFAULT);
        assert_eq!(size("16777216"), WalSegmentSize::DEFAULT);
        for text in [
            "",
            "MB",
            "0",
            "512kB",
            "2GB",
            "24MB",
            "16mb",
            "16 MB",
            "-16MB",
            "99999999999999999999GB",
            "17592186044416MB",
        ] {
            assert_eq!(text.parse::<WalSegmentSize>(), Err(InvalidSegmentSize(text.to_owned())));
        }
    }

    #[test]
    fn segment_names() {
        let (small, usual, large) = (size("1MB"), WalSegmentSize::DEFAULT, size("1GB"));
        for (name, size, timeline, number) in [
            ("000000010000000000000002", usual, 1, 2),
            ("0000000A00000001000000FF", usual, 10, 511),
            ("000000010000000100000FFF", small, 1, 8191),
            ("FFFFFFFFFFFFFFFF00000003", large, u32::MAX, (1 << 34) - 1),
        ] {
            let segment = WalSegment { timeline: TimelineId(timeline), number };
            assert_eq!(WalSegment::parse(name.as_bytes(), size), Some(segment), "{name}");
            assert_eq!(segment.file_name(size), name);
            let start = segment.start(size).unwrap();
            assert_eq!(WalSegment::containing(TimelineId(timeline), start, size), segment);
            assert_eq!(segment.next().number, number + 1);
        }
        let beyond = WalSegment { timeline: TimelineId(1), number: u64::MAX };
        assert_eq!((beyond.start(usual), beyond.next()), (None, beyond));
        for name in [
            "",
            "00000001000000000000000",
            "0000000100000000000000021",
            "000000010000000000000100",
            "00000000000000000000000a",
            "000000000000000000000002",
            "00000001000000000000000G",
            "+00000010000000000000002",
        ] {
            assert_eq!(WalSegment::parse(name.as_bytes(), usual), None, "{name}");
        }
    }

    #[test]
    fn archive_names() {
        let segment = WalSegment { timeline: TimelineId(1), number: 2 };
        for (name, file) in [
            (
                "000000010000000000000002",
                Some(WalFile::Segment { segment, compression: None, partial: false }),
            ),
            (
                "000000010000000000000002.partial",
                Some(WalFile::Segment { segment, compression: None, partial: true }),
            ),
            (
                "000000010000000000000002.gz",
                Some(WalFile::Segment { segment, compression: Some(WalCompression::Gzip), partial: false }),
            ),
            (
                "000000010000000000000002.lz4.partial",
                Some(WalFile::Segment { segment, compression: Some(WalCompression::Lz4), partial: true }),
            ),
            ("0000000A.history", Some(WalFile::History(TimelineId(10)))),
            (
                "000000010000000000000002.00000028.backup",
                Some(WalFile::BackupHistory { segment, offset: 0x28 }),
            ),
            ("000000010000000000000002.01000000.backup", None),
            ("000000010000000000000002.28.backup", None),
            ("000000010000000000000002x00000028.backup", None),
            ("00000000.history", None),
            ("0000000a.history", None),
            (
                "000000010000000000000002.zst",
                Some(WalFile::Segment { segment, compression: Some(WalCompression::Zstd), partial: false }),
            ),
            ("000000010000000000000002.bz2", None),
            ("000000010000000000000002.partial.gz", None),
            ("000000010000000000000002.", None),
            ("archive_status", None),
            (".history", None),
            (".backup", None),
        ] {
            assert_eq!(WalFile::parse(name.as_bytes(), WalSegmentSize::DEFAULT), file, "{name}");
            if let Some(file) = file {
                assert_eq!(file.file_name(WalSegmentSize::DEFAULT), name);
            }
        }
    }

    proptest! {
        #[test]
        fn positions_and_names_agree(timeline in 1u32.., lsn in any::<u64>(), shift in 20u32..=30) {
            let size = WalSegmentSize::new(1 << shift).unwrap();
            let segment = WalSegment::containing(TimelineId(timeline), Lsn(lsn), size);
            prop_assert_eq!(segment.start(size), Some(Lsn(lsn).segment_start(size.bytes())));
            prop_assert_eq!(WalSegment::parse(segment.file_name(size).as_bytes(), size), Some(segment));
        }

        #[test]
        fn accepted_names_are_written_alike(name in "[0-9A-F]{8}([0-9A-F]{16})?(\\.gz|\\.lz4|\\.zst)?(\\.[0-9A-F]{8})?(\\.partial|\\.history|\\.backup)?") {
            if let Some(file) = WalFile::parse(name.as_bytes(), WalSegmentSize::DEFAULT) {
                prop_assert_eq!(file.file_name(WalSegmentSize::DEFAULT), name);
            }
        }
    }
}
