//! Numbers that PostgreSQL passes around and that must not be swapped: log positions, timelines, blocks.

use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log (`XLogRecPtr`, `access/xlogdefs.h`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position that PostgreSQL calls `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);

    /// The first byte of the segment of `segment_size` bytes that holds this position.
    ///
    /// `segment_size` is a power of two, as [`crate::names::WalSegmentSize`] guarantees.
    #[must_use]
    pub fn segment_start(self, segment_size: u64) -> Lsn {
        Lsn(self.0 & !(segment_size - 1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// Text that is not a log position such as `16/B374D848`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid log position {0:?}, expected two hexadecimal numbers such as 16/B374D848")]
pub struct ParseLsnError(pub String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseLsnError(text.to_owned());
        let half = |part: &str| {
            // from_str_radix takes a sign, PostgreSQL does not.
            if part.is_empty() || part.len() > 8 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            u64::from_str_radix(part, 16).map_err(|_| bad())
        };
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        Ok(Lsn(half(high)? << 32 | half(low)?))
    }
}

/// A timeline (`TimeLineID`, `access/xlogdefs.h`). Timelines count from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TimelineId(pub u32);

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A page's number within its relation fork, counted over all of the fork's segment files
/// (`BlockNumber`, `storage/block.h`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockNumber(pub u32);

impl fmt::Display for BlockNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for (text, value) in [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(text.parse(), Ok(Lsn(value)));
            assert_eq!(Lsn(value).to_string(), text);
        }
    }

    #[test]
    fn refuses_what_is_no_position() {
        for text in ["", "/", "1", "1/", "/1", "+1/0", "1/-1", "123456789/0", "0/1/2", " 0/1", "g/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn segment_start_rounds_down() {
        assert_eq!(Lsn(0x0300_0028).segment_start(16 << 20), Lsn(0x0300_0000));
        assert_eq!(Lsn(0x0300_0000).segment_start(16 << 20), Lsn(0x0300_0000));
    }
}
