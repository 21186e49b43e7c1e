//! Names: clusters, backups, packs, and the objects that hold them.
//!
//! Invariant: a checked name is one component of a path, so no object lies outside of its repository.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// What the names of all heads begin with. Each change of keys adds the next number; the highest counts.
pub(super) const HEADS: &str = "pgstrata-repository.";

/// The head of a number.
pub(super) fn head(number: u32) -> String {
    format!("{HEADS}{number:08x}")
}

/// The number in a head's name.
pub(super) fn head_number(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name.strip_prefix(HEADS)?, 16).ok()?;
    // One spelling for each.
    (head(number) == name).then_some(number)
}

/// The folder of all clusters.
pub(super) const CLUSTERS: &str = "clusters";
/// What a manifest's name ends with.
pub(super) const MANIFEST_SUFFIX: &str = ".manifest";

/// The form in which a time stands in a name.
const TIME: &str = "%Y%m%dT%H%M%SZ";

/// The operator's name of a cluster: 1 to 63 letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

/// What is no name of a cluster or backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {found:?}, expected {expected}")]
pub struct InvalidName {
    what: &'static str,
    found: String,
    expected: &'static str,
}

impl ClusterName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folder of its manifests.
    #[must_use]
    pub fn backups(&self) -> String {
        format!("{CLUSTERS}/{self}/backups")
    }

    /// The folder of its packs.
    #[must_use]
    pub fn packs(&self) -> String {
        format!("{CLUSTERS}/{self}/packs")
    }

    /// The object that says which system's they are.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{CLUSTERS}/{self}/identity.00000000")
    }

    /// A backup's manifest.
    #[must_use]
    pub fn manifest(&self, backup: BackupId) -> String {
        format!("{}/{backup}{MANIFEST_SUFFIX}", self.backups())
    }

    /// The folder of the leases of runs under way.
    #[must_use]
    pub fn leases(&self) -> String {
        format!("{CLUSTERS}/{self}/leases")
    }

    /// The folder of its pins.
    #[must_use]
    pub fn pins(&self) -> String {
        format!("{CLUSTERS}/{self}/pins")
    }

    /// The folder of marks of backups that nobody may begin to rely on.
    #[must_use]
    pub fn condemned(&self) -> String {
        format!("{CLUSTERS}/{self}/condemned")
    }

    /// A pack.
    #[must_use]
    pub fn pack(&self, pack: PackId) -> String {
        format!("{}/{pack}", self.packs())
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClusterName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if begins && name.len() <= 63 && name.bytes().all(plain) {
            return Ok(Self(name.to_owned()));
        }
        let expected = "1 to 63 letters, digits, \".\", \"_\" and \"-\", the first a letter or digit";
        Err(InvalidName { what: "cluster name", found: name.to_owned(), expected })
    }
}

/// A backup: when it was begun, and chance, so that two begun at once differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId {
    /// Seconds since 1970. A later backup of one cluster has a higher number, whatever its clock said.
    pub seconds: u64,
    /// Chance.
    pub random: u32,
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = i64::try_from(self.seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        match time {
            Some(time) => write!(f, "{}-{:08x}", time.strftime(TIME), self.random),
            None => write!(f, "{}-{:08x}", self.seconds, self.random),
        }
    }
}

impl FromStr for BackupId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName {
            what: "backup",
            found: text.to_owned(),
            expected: "an id as `pgstrata list` shows it, such as 20261126T070051Z-1a2b3c4d, or \"latest\"",
        };
        let (time, random) = text.split_once('-').ok_or_else(invalid)?;
        let time = DateTime::strptime(TIME, time).map_err(|_| invalid())?;
        let time = time.to_zoned(TimeZone::UTC).map_err(|_| invalid())?.timestamp().as_second();
        let seconds = u64::try_from(time).map_err(|_| invalid())?;
        let random = u32::from_str_radix(random, 16).map_err(|_| invalid())?;
        let id = Self { seconds, random };
        // One spelling for each.
        if id.to_string() == text { Ok(id) } else { Err(invalid()) }
    }
}

/// A pack: the backup that wrote it, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId {
    /// The backup that wrote it; others may share it.
    pub backup: BackupId,
    /// From 0.
    pub number: u32,
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:08x}.pack", self.backup, self.number)
    }
}

impl FromStr for PackId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match numbered(text, ".pack") {
            Some((backup, number)) => Ok(Self { backup, number }),
            None => {
                Err(InvalidName { what: "pack", found: text.to_owned(), expected: "BACKUP.NNNNNNNN.pack" })
            }
        }
    }
}

/// Takes `BACKUP.NNNNNNNN` and a suffix apart; each has one spelling.
pub(super) fn numbered(text: &str, suffix: &str) -> Option<(BackupId, u32)> {
    let (backup, number) = text.strip_suffix(suffix)?.rsplit_once('.')?;
    let value = u32::from_str_radix(number, 16).ok()?;
    (format!("{value:08x}") == number).then_some((backup.parse().ok()?, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_clusters_are_single_components() {
        for good in ["main", "a", "db-1.prod_eu", "9"] {
            assert_eq!(good.parse::<ClusterName>().expect(good).as_str(), good);
        }
        let long = "a".repeat(64);
        for bad in ["", ".", "..", ".x", "-x", "a/b", "a b", "ä", "a\0", &long] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn backups_have_one_spelling() {
        let id = BackupId { seconds: 1_795_676_451, random: 0x1a };
        let text = id.to_string();
        assert_eq!(text, "20261126T070051Z-0000001a");
        assert_eq!(text.parse(), Ok(id));
        for bad in [
            "",
            "latest",
            "20261126T070051Z",
            "20261126T070051Z-1a",
            "20261126T070051Z-0000001A",
            "x-00000000",
        ] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad:?}");
        }
        let (pack, name) = (PackId { backup: id, number: 17 }, "20261126T070051Z-0000001a.00000011.pack");
        assert_eq!((pack.to_string().as_str(), name.parse()), (name, Ok(pack)));
        for bad in ["20261126T070051Z-0000001a.pack", "20261126T070051Z-0000001a.11.pack", ".00000011.pack"] {
            assert!(bad.parse::<PackId>().is_err(), "{bad:?}");
        }
    }
}
