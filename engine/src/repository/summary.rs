//! What an object says of itself: a JSON object in a frame of its own.
//!
//! Fields that a reader does not know are passed over. What must not be passed over has a word in `requires`.

use serde::{Deserialize, Serialize};

use super::error::RepositoryError;
use super::hex;
use crate::tracking::ChangesSummary;

/// The words of `requires` that this version knows: none so far.
const KNOWN: [&str; 0] = [];

/// A repository's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadSummary {
    /// Seconds since 1970.
    pub created: u64,
    /// The program's version that made it.
    pub program: String,
    /// Wrapped keys, one slot for each recipient that may open the repository. Empty where nothing is encrypted.
    pub key_slots: Vec<KeySlot>,
    /// The highest number that a slot has had.
    #[serde(default)]
    pub last_slot: u32,
    /// What a reader must know; see [`KNOWN`].
    pub requires: Vec<String>,
}

/// Whose backups lie under a cluster's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentitySummary {
    /// The cluster's name.
    pub cluster: String,
    /// Its system identifier; in decimal digits, because JSON's numbers are no more than 53 bits to many.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// Seconds since 1970.
    pub created: u64,
    /// The program's version that wrote it.
    pub program: String,
    /// What a reader must know; see [`KNOWN`].
    pub requires: Vec<String>,
}

/// What one recipient can open: the repository key, and every data key. docs/repository-format.md, *Key slots*.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySlot {
    /// From 1; no number is given twice.
    pub number: u32,
    /// `key-file` or `passphrase`. A slot of a method that a reader does not know is nothing that it can open.
    pub method: String,
    /// The operator's name of it.
    pub label: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Random, of this slot alone.
    #[serde(with = "hex")]
    pub salt: [u8; 32],
    /// What deriving a key from the passphrase costs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argon2id: Option<Argon2Cost>,
    /// The recipient's X25519 key, for which data keys are wrapped.
    #[serde(with = "hex")]
    pub public: [u8; 32],
    /// The repository key, wrapped.
    #[serde(with = "hex")]
    pub wrapped: [u8; 48],
    /// The data keys.
    pub data_keys: Vec<WrappedKey>,
}

/// What Argon2id is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argon2Cost {
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// How often it is gone over.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

/// A data key that one recipient can unwrap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// The data key's number, from 1.
    pub number: u32,
    /// The X25519 key that was used for this once.
    #[serde(with = "hex")]
    pub ephemeral: [u8; 32],
    /// The data key, wrapped.
    #[serde(with = "hex")]
    pub wrapped: [u8; 48],
}

/// A backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSummary {
    /// The cluster's name.
    pub cluster: String,
    /// The backup's id.
    pub backup: String,
    /// The backup whose packs this one refers to or was laid over, for the record: a restore does not need it.
    pub parent: Option<String>,
    /// The program's version that made it.
    pub program: String,
    /// `stream`, or `local` for a data directory that was read where it lay.
    pub source: String,
    /// The server's version, in words.
    pub server_version: String,
    /// The cluster's system identifier, in decimal digits.
    #[serde(with = "decimal")]
    pub system_identifier: u64,
    /// Bytes of a WAL segment.
    pub wal_segment_size: u64,
    /// Where recovery must begin: `X/X`.
    pub start_lsn: String,
    /// The timeline there.
    pub start_timeline: u32,
    /// Where the backup is consistent.
    pub end_lsn: String,
    /// The timeline there.
    pub end_timeline: u32,
    /// `backup_label`'s label.
    pub label: String,
    /// Seconds since 1970 when it was begun.
    pub started: u64,
    /// Seconds since 1970 when it was committed.
    pub ended: u64,
    /// What frames are compressed with.
    pub compression: String,
    /// Permission bits of the data directory.
    pub folder_mode: u32,
    /// Whose the data directory is, and the folders that tablespaces lie in; as a file's owner.
    #[serde(default)]
    pub folder_owner: u16,
    /// The owners that records and `folder_owner` count from, from 1.
    #[serde(default)]
    pub owners: Vec<OwnerSummary>,
    /// The databases of the cluster when the backup ended, where somebody could be asked.
    #[serde(default)]
    pub databases: Vec<DatabaseSummary>,
    /// Files, WAL and the server's manifest included.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of WAL among these.
    pub wal_bytes: u64,
    /// Bytes of packs that this backup wrote.
    pub stored_bytes: u64,
    /// Bytes of files that older packs held already.
    #[serde(default)]
    pub reused_bytes: u64,
    /// What a backup went by that could be laid over an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<ChangesSummary>,
    /// Tablespaces.
    pub tablespaces: Vec<TablespaceSummary>,
    /// What a reader must know; see [`KNOWN`].
    pub requires: Vec<String>,
}

/// An owner: numbers as the host of the server has them, and their names where those were known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerSummary {
    /// The user's number.
    pub uid: u32,
    /// The group's.
    pub gid: u32,
    /// The user's name. A restore prefers names to numbers.
    #[serde(default)]
    pub user: Option<String>,
    /// The group's.
    #[serde(default)]
    pub group: Option<String>,
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSummary {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// A tablespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceSummary {
    /// Its OID.
    pub oid: u32,
    /// Where it lay on the server; relative where it lies in the data directory.
    #[serde(with = "location")]
    pub location: Vec<u8>,
}

impl TablespaceSummary {
    /// Whether it lies outside of the data directory, which has a link to it.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.location.starts_with(b"/")
    }
}

/// Reads a summary.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse<'b, T: Deserialize<'b>>(bytes: &'b [u8], object: &str) -> Result<T, RepositoryError> {
    /// Read first: what is unknown may have changed everything else.
    #[derive(Deserialize)]
    struct Required {
        requires: Vec<String>,
    }
    let unreadable = |error: serde_json::Error| {
        RepositoryError::damaged(object, format!("its summary cannot be read: {error}"))
    };
    let Required { requires } = serde_json::from_slice(bytes).map_err(unreadable)?;
    if let Some(word) = requires.iter().find(|word| !KNOWN.contains(&word.as_str())) {
        let what = format!("it requires \"{}\", which this version does not know", word.escape_default());
        return Err(RepositoryError::unknown(object, what));
    }
    serde_json::from_slice(bytes).map_err(unreadable)
}

/// A number of 64 bits as a string.
pub(super) mod decimal {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(in super::super) fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A path that need not be UTF-8: bytes outside of printable ASCII, and `\`, as `\xHH`.
mod location {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(path: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        use std::fmt::Write;
        let mut text = String::with_capacity(path.len());
        for byte in path {
            match byte {
                b'\\' => text.push_str("\\x5c"),
                0x20..=0x7e => text.push(char::from(*byte)),
                // Writing to a String cannot fail.
                _ => drop(write!(text, "\\x{byte:02x}")),
            }
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (mut path, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
        while let Some((first, behind)) = rest.split_first() {
            rest = behind;
            if *first != b'\\' {
                path.push(*first);
                continue;
            }
            let hex = rest.strip_prefix(b"x").and_then(|hex| hex.split_at_checked(2));
            let byte = hex.and_then(|(hex, _)| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
            path.push(byte.ok_or_else(|| D::Error::custom("a path with a broken escape"))?);
            rest = &rest[3..];
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_location_comes_back() {
        for location in [&b"/srv/ts"[..], b"/a\\b\n\xff\x00=\"", b"pg_tblspc/16384", b""] {
            let tablespace = TablespaceSummary { oid: 1, location: location.to_vec() };
            let text = serde_json::to_vec(&tablespace).expect("serialized");
            let read: TablespaceSummary = serde_json::from_slice(&text).expect("read");
            assert_eq!(read, tablespace);
        }
        for broken in [
            r#"{"oid":1,"location":"\\"}"#,
            r#"{"oid":1,"location":"\\x5"}"#,
            r#"{"oid":1,"location":"\\y00"}"#,
        ] {
            assert!(serde_json::from_str::<TablespaceSummary>(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn later_versions_are_read_unless_they_say_otherwise() {
        let text = |more: &str| {
            format!(
                r#"{{"cluster":"c","system_identifier":"18446744073709551615","created":1,"program":"x",{more}}}"#
            )
        };
        let read = |more: &str| parse::<IdentitySummary>(text(more).as_bytes(), "x");
        let known = read(r#""requires":[]"#).expect("known");
        assert_eq!(known.system_identifier, u64::MAX);
        assert!(serde_json::to_string(&known).expect("JSON").contains(r#""18446744073709551615""#));
        assert_eq!(read(r#""requires":[],"later":{"a":[1]}"#), Ok(known));
        let refused = read(r#""requires":["later"],"later":1"#).expect_err("unknown").to_string();
        assert!(refused.contains("requires \"later\"") && refused.contains("newer pgstrata"), "{refused}");
        assert!(read(r#""later":1"#).expect_err("none").to_string().contains("damaged"));
    }
}
