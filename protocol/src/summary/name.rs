//! Names of summary files: `TTTTTTTTSSSSSSSSSSSSSSSSEEEEEEEEEEEEEEEE.summary` (`IsWalSummaryFilename`, `OpenWalSummaryFile` in
//! `backup/walsummary.c`).

use std::fmt;

use crate::{Lsn, TimelineId};

/// Which WAL a summary is of, as its name says. Ordered by timeline, then by where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SummaryName {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first byte.
    pub start: Lsn,
    /// The byte behind the last.
    pub end: Lsn,
}

impl SummaryName {
    /// Reads a file's name; `None` if it is not one of a summary.
    #[must_use]
    pub fn parse(name: &[u8]) -> Option<Self> {
        let digits = name.strip_suffix(b".summary").filter(|digits| digits.len() == 40)?;
        let number = |digits: &[u8]| {
            digits.iter().try_fold(0, |number: u64, digit| match digit {
                b'0'..=b'9' => Some(number << 4 | u64::from(digit - b'0')),
                b'A'..=b'F' => Some(number << 4 | u64::from(digit - b'A' + 10)),
                _ => None,
            })
        };
        Some(Self {
            timeline: TimelineId(u32::try_from(number(&digits[..8])?).ok()?),
            start: Lsn(number(&digits[8..24])?),
            end: Lsn(number(&digits[24..])?),
        })
    }
}

impl fmt::Display for SummaryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:016X}{:016X}.summary", self.timeline.0, self.start.0, self.end.0)
    }
}
