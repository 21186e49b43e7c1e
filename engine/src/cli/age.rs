//! Ages and times, as options and the configuration file name them.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer};

/// An age: a whole number and `s`, `m`, `h`, `d` or `w`, or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Age(pub(super) u64);

/// What is no age.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid age {0:?}, expected a number with s, m, h, d or w behind it, such as 14d")]
pub(super) struct InvalidAge(String);

impl FromStr for Age {
    type Err = InvalidAge;

    fn from_str(text: &str) -> Result<Self, InvalidAge> {
        let invalid = || InvalidAge(text.to_owned());
        if text == "0" {
            return Ok(Self(0));
        }
        let unit = match text.chars().last() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            Some('w') => 7 * 86_400,
            _ => return Err(invalid()),
        };
        let number = &text[..text.len() - 1];
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let count: u64 = number.parse().map_err(|_| invalid())?;
        count.checked_mul(unit).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(7 * 86_400, 'w'), (86_400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')];
        match units.into_iter().find(|(unit, _)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((unit, letter)) => write!(f, "{}{letter}", self.0 / unit),
            None => f.write_str("0"),
        }
    }
}

impl<'d> Deserialize<'d> for Age {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A time: RFC 3339 with a zone, or a date, or date and time, in UTC. Seconds since 1970.
pub(super) fn parse_time(text: &str) -> Result<u64, String> {
    let invalid =
        || format!("invalid time {text:?}, expected one such as 2026-12-31T18:00:00Z or 2026-12-31 (UTC)");
    let time = text.parse::<Timestamp>().or_else(|_| {
        let civil = text.parse::<DateTime>().map_err(|_| invalid())?;
        civil.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp()).map_err(|_| invalid())
    })?;
    u64::try_from(time.as_second()).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (text, seconds) in
            [("0", 0), ("90s", 90), ("5m", 300), ("24h", 86_400), ("14d", 1_209_600), ("2w", 1_209_600)]
        {
            assert_eq!(text.parse(), Ok(Age(seconds)), "{text}");
        }
        for bad in ["", "d", "14", "-1d", "+1d", "1.5d", "1 d", "1y", "99999999999999999w", "1ä"] {
            assert!(bad.parse::<Age>().is_err(), "{bad}");
        }
        for shown in ["0", "90s", "5m", "1d", "2w"] {
            assert_eq!(shown.parse::<Age>().expect("valid").to_string(), shown);
        }
    }

    #[test]
    fn times() {
        for text in
            ["2026-12-31T18:00:00Z", "2026-12-31 18:00:00Z", "2026-12-31T19:00:00+01:00", "2026-12-31 18:00"]
        {
            assert_eq!(parse_time(text), Ok(1_798_740_000), "{text}");
        }
        assert_eq!(parse_time("2026-12-31"), Ok(1_798_675_200));
        for bad in ["", "tomorrow", "1900-01-01", "2026-13-01"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
