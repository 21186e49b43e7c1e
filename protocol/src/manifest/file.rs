//! One file of a manifest.

use std::fmt;

use super::{ChecksumAlgorithm, ChecksumValue};

/// A file as the manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative to the data directory, `pg_tblspc/OID/…` in a tablespace; plain components only, at most 1023 bytes.
    pub path: Vec<u8>,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last changed.
    pub modified: ModifiedTime,
    /// Its checksum, if it has one. The algorithm is never [`ChecksumAlgorithm::None`].
    pub checksum: Option<(ChecksumAlgorithm, ChecksumValue)>,
}

/// A moment in seconds since 1970, written as `2024-02-29 23:59:59 GMT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModifiedTime(pub i64);

const DAY: i64 = 86_400;
/// Days in 400 years of the Gregorian calendar, after which it repeats.
const DAYS_400_YEARS: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;

impl ModifiedTime {
    /// Reads the manifest's form. pg_combinebackup takes the zone's name from the C library: `GMT` or `UTC`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (date, rest) = text.split_once(' ')?;
        let (time, zone) = rest.split_once(' ')?;
        if !matches!(zone, "GMT" | "UTC") {
            return None;
        }
        let (year, month_day) = date.split_once('-')?;
        let (month, day) = month_day.split_once('-')?;
        let (hour, minute_second) = time.split_once(':')?;
        let (minute, second) = minute_second.split_once(':')?;
        let number =
            |text: &str, digits: std::ops::RangeInclusive<usize>, range: std::ops::RangeInclusive<i64>| {
                if !digits.contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                    return None;
                }
                text.parse::<i64>().ok().filter(|number| range.contains(number))
            };
        let year = number(year, 4..=6, 0..=999_999)?;
        let month = number(month, 2..=2, 1..=12)?;
        let day = number(day, 2..=2, 1..=31)?;
        let seconds = number(hour, 2..=2, 0..=23)? * 3600
            + number(minute, 2..=2, 0..=59)? * 60
            + number(second, 2..=2, 0..=60)?;
        Some(Self(days_since_1970(year, month, day) * DAY + seconds))
    }

    /// Year, month and day.
    fn date(self) -> (i64, i64, i64) {
        // Years that begin in March put the leap day at the end of the year.
        let days = self.0.div_euclid(DAY) + DAYS_TO_1970;
        let (cycle, day) = (days.div_euclid(DAYS_400_YEARS), days.rem_euclid(DAYS_400_YEARS));
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
        let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        (cycle * 400 + year + next_year, month, day_of_month)
    }
}

/// Days from 1970-01-01 to a date.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (cycle, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    cycle * DAYS_400_YEARS + year * 365 + year / 4 - year / 100 + day_of_year - DAYS_TO_1970
}

impl fmt::Display for ModifiedTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.date();
        let second = self.0.rem_euclid(DAY);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} GMT")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_and_back() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 GMT"),
            (-1, "1969-12-31 23:59:59 GMT"),
            (951_782_400, "2000-02-29 00:00:00 GMT"),
            (1_709_251_199, "2024-02-29 23:59:59 GMT"),
            (4_107_542_400, "2100-03-01 00:00:00 GMT"),
            (253_402_300_800, "10000-01-01 00:00:00 GMT"),
        ] {
            assert_eq!(ModifiedTime(seconds).to_string(), text);
            assert_eq!(ModifiedTime::parse(text), Some(ModifiedTime(seconds)));
        }
        assert_eq!(ModifiedTime::parse("1970-01-01 00:00:00 UTC"), Some(ModifiedTime(0)));
    }

    #[test]
    fn refuses() {
        for text in [
            "",
            "1970-01-01 00:00:00",
            "1970-01-01 00:00:00 CET",
            "1970-13-01 00:00:00 GMT",
            "1970-00-01 00:00:00 GMT",
            "1970-01-32 00:00:00 GMT",
            "1970-01-01 24:00:00 GMT",
            "1970-1-1 00:00:00 GMT",
            "+970-01-01 00:00:00 GMT",
            "9999999999999999999-01-01 00:00:00 GMT",
        ] {
            assert_eq!(ModifiedTime::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(seconds in -62_000_000_000i64..31_000_000_000_000) {
            let time = ModifiedTime(seconds);
            prop_assert_eq!(ModifiedTime::parse(&time.to_string()), Some(time));
        }
    }
}
