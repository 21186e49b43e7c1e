//! Reads a manifest in bounded memory.
//!
//! The JSON is visited as it is parsed, nothing is kept but the entry at hand. What the visitor sees is provisional:
//! only an `Ok` from [`read_manifest`] says that the manifest is complete and carries its own checksum.
//!
//! Stricter than PostgreSQL's parser: no key may come twice, none may be unknown, all that servers write must be there.

use std::fmt;
use std::io::{self, BufReader, Read};

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::entry::{Entry, FileEntry, Key, Object, Text, WalRangeEntry, set};
use super::intake::{Intake, LineTooLong, MAX_LINE};
use super::{ChecksumValue, ManifestFile};
use crate::{Lsn, TimelineId};

/// A piece of a manifest, in the manifest's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestEvent {
    /// The format's version, 1 or 2; always first.
    Version(u32),
    /// The cluster's system identifier, only in version 2.
    SystemIdentifier(u64),
    /// A file.
    File(ManifestFile),
    /// WAL that the backup needs to become consistent.
    WalRange {
        /// The timeline it lies on.
        timeline: TimelineId,
        /// Its first byte.
        start: Lsn,
        /// The byte behind its last.
        end: Lsn,
    },
}

/// What a verified manifest amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestSummary {
    /// The format's version, 1 or 2.
    pub version: u32,
    /// The cluster's system identifier, in version 2.
    pub system_identifier: Option<u64>,
    /// How many files there are.
    pub files: u64,
    /// The sum of their sizes.
    pub bytes: u64,
    /// How many WAL ranges there are.
    pub wal_ranges: u64,
    /// The manifest's own SHA-256.
    pub checksum: ChecksumValue,
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError<E> {
    /// It could not be read.
    #[error("could not read the backup manifest: {0}")]
    Io(#[source] io::Error),
    /// The visitor stopped.
    #[error(transparent)]
    Visit(E),
    /// A line longer than any that PostgreSQL writes.
    #[error(
        "backup manifest has a line of more than {MAX_LINE} bytes\n\
             HINT: The file is damaged or not a backup manifest."
    )]
    LineTooLong,
    /// A version that this program does not know.
    #[error(
        "backup manifest has version {found}, expected 1 or 2\n\
             HINT: It comes from a newer PostgreSQL; look for an update of this program."
    )]
    UnsupportedVersion {
        /// The version.
        found: u64,
    },
    /// Not JSON.
    #[error("backup manifest is malformed: {reason}")]
    Syntax {
        /// What and where, by line and column.
        reason: String,
    },
    /// JSON, but no manifest.
    #[error("backup manifest is invalid: {reason}")]
    Content {
        /// What and where, by line and column.
        reason: String,
    },
    /// It stops before its end.
    #[error(
        "backup manifest is cut short: {reason}\n\
             HINT: The backup was not completed, or the file was damaged later."
    )]
    Truncated {
        /// What and where, by line and column.
        reason: String,
    },
    /// Something follows it.
    #[error("backup manifest is followed by other data: {reason}")]
    TrailingData {
        /// Where, by line and column.
        reason: String,
    },
    /// Its own checksum does not match.
    #[error(
        "backup manifest checksum mismatch: the file says {found}, its content is {expected}\n\
             HINT: The manifest was changed after the backup; do not rely on this backup."
    )]
    Checksum {
        /// What the last line says.
        found: Box<ChecksumValue>,
        /// The SHA-256 of the lines before it.
        expected: Box<ChecksumValue>,
    },
}

/// Reads a manifest to its end and calls `visit` for each piece. The reader need not be buffered.
pub fn read_manifest<R: Read, E>(
    reader: R,
    visit: &mut dyn FnMut(ManifestEvent) -> Result<(), E>,
) -> Result<ManifestSummary, ManifestError<E>> {
    let mut intake = Intake::new(reader);
    let mut progress = Progress { visit, stopped: None, files: 0, bytes: 0, wal_ranges: 0 };
    // The parser takes single bytes, which is fast from a BufReader itself and slow from a reference to one.
    let mut json = serde_json::Deserializer::from_reader(BufReader::with_capacity(MAX_LINE, &mut intake));
    let outcome = TopLevel(&mut progress).deserialize(&mut json);
    if let Some(stopped) = progress.stopped.take() {
        return Err(stopped);
    }
    let top = outcome.map_err(|error| refusal(error, false))?;
    json.end().map_err(|error| refusal(error, true))?;
    drop(json);
    let (hash, last_line_complete) = intake.finish();
    if !last_line_complete {
        return Err(ManifestError::Truncated { reason: "its last line does not end in a line break".into() });
    }
    let expected = ChecksumValue::new(&hash).unwrap_or(top.checksum);
    if top.checksum != expected {
        return Err(ManifestError::Checksum { found: Box::new(top.checksum), expected: Box::new(expected) });
    }
    Ok(ManifestSummary {
        version: top.version,
        system_identifier: top.system_identifier,
        files: progress.files,
        bytes: progress.bytes,
        wal_ranges: progress.wal_ranges,
        checksum: top.checksum,
    })
}

/// Sorts the parser's errors; `at_end` where the manifest was complete.
fn refusal<E>(error: serde_json::Error, at_end: bool) -> ManifestError<E> {
    match error.classify() {
        serde_json::error::Category::Io => {
            let error = io::Error::from(error);
            if error.get_ref().is_some_and(|source| source.is::<LineTooLong>()) {
                ManifestError::LineTooLong
            } else {
                ManifestError::Io(error)
            }
        }
        serde_json::error::Category::Eof => ManifestError::Truncated { reason: error.to_string() },
        _ if at_end => ManifestError::TrailingData { reason: error.to_string() },
        serde_json::error::Category::Syntax => ManifestError::Syntax { reason: error.to_string() },
        serde_json::error::Category::Data => ManifestError::Content { reason: error.to_string() },
    }
}

/// The visitor and what it has been shown.
struct Progress<'v, E> {
    visit: &'v mut dyn FnMut(ManifestEvent) -> Result<(), E>,
    /// An error that the parser's own type cannot carry.
    stopped: Option<ManifestError<E>>,
    files: u64,
    bytes: u64,
    wal_ranges: u64,
}

impl<E> Progress<'_, E> {
    fn show<D: serde::de::Error>(&mut self, event: ManifestEvent) -> Result<(), D> {
        (self.visit)(event).map_err(|error| self.stop(ManifestError::Visit(error)))
    }

    fn stop<D: serde::de::Error>(&mut self, error: ManifestError<E>) -> D {
        self.stopped = Some(error);
        D::custom("stopped")
    }
}

struct TopLevel<'p, 'v, E>(&'p mut Progress<'v, E>);

struct TopLevelValues {
    version: u32,
    system_identifier: Option<u64>,
    checksum: ChecksumValue,
}

const VERSION: &str = "PostgreSQL-Backup-Manifest-Version";
const SYSTEM_IDENTIFIER: &str = "System-Identifier";
const FILES: &str = "Files";
const WAL_RANGES: &str = "WAL-Ranges";
const CHECKSUM: &str = "Manifest-Checksum";

impl<'de, E> DeserializeSeed<'de> for TopLevel<'_, '_, E> {
    type Value = TopLevelValues;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, E> Visitor<'de> for TopLevel<'_, '_, E> {
    type Value = TopLevelValues;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        const KEYS: &[&str] = &[VERSION, SYSTEM_IDENTIFIER, FILES, WAL_RANGES, CHECKSUM];
        let version = match map.next_key_seed(Key(KEYS))? {
            Some(VERSION) => map.next_value::<u64>()?,
            _ => return Err(A::Error::custom(format_args!("the first key must be {VERSION:?}"))),
        };
        let version = match version {
            1 => 1,
            2 => 2,
            found => return Err(self.0.stop(ManifestError::UnsupportedVersion { found })),
        };
        self.0.show(ManifestEvent::Version(version))?;
        let (mut system_identifier, mut files, mut wal_ranges) = (None, None, None);
        let checksum = loop {
            match map.next_key_seed(Key(KEYS))? {
                Some(SYSTEM_IDENTIFIER) if version >= 2 => {
                    let identifier = map.next_value::<u64>()?;
                    set(&mut system_identifier, identifier, SYSTEM_IDENTIFIER)?;
                    self.0.show(ManifestEvent::SystemIdentifier(identifier))?;
                }
                Some(FILES) => {
                    set(&mut files, (), FILES)?;
                    map.next_value_seed(List { progress: &mut *self.0, entry: FileEntry })?;
                }
                Some(WAL_RANGES) => {
                    set(&mut wal_ranges, (), WAL_RANGES)?;
                    map.next_value_seed(List { progress: &mut *self.0, entry: WalRangeEntry })?;
                }
                Some(CHECKSUM) => {
                    break map.next_value_seed(Text {
                        expected: "64 hexadecimal digits",
                        read: |text: &str| {
                            ChecksumValue::from_hex(text.as_bytes())
                                .filter(|value| value.as_bytes().len() == 32)
                        },
                    })?;
                }
                Some(VERSION) => return Err(A::Error::duplicate_field(VERSION)),
                Some(key) => {
                    return Err(A::Error::custom(format_args!("{key:?} has no place in version {version}")));
                }
                None => return Err(A::Error::missing_field(CHECKSUM)),
            }
        };
        if map.next_key::<IgnoredAny>()?.is_some() {
            return Err(A::Error::custom(format_args!("{CHECKSUM:?} must be the last key")));
        }
        if version >= 2 && system_identifier.is_none() {
            return Err(A::Error::missing_field(SYSTEM_IDENTIFIER));
        }
        files.ok_or_else(|| A::Error::missing_field(FILES))?;
        wal_ranges.ok_or_else(|| A::Error::missing_field(WAL_RANGES))?;
        Ok(TopLevelValues { version, system_identifier, checksum })
    }
}

/// An array of entries, each shown as it comes.
struct List<'p, 'v, E, T> {
    progress: &'p mut Progress<'v, E>,
    entry: T,
}

impl<'de, E, T: Entry> DeserializeSeed<'de> for List<'_, '_, E, T> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, E, T: Entry> Visitor<'de> for List<'_, '_, E, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(event) = list.next_element_seed(Object(self.entry))? {
            match &event {
                ManifestEvent::File(file) => {
                    self.progress.files += 1;
                    let sum = self.progress.bytes.checked_add(file.size);
                    self.progress.bytes =
                        sum.ok_or_else(|| A::Error::custom("the files' sizes exceed 64 bits"))?;
                }
                _ => self.progress.wal_ranges += 1,
            }
            self.progress.show(event)?;
        }
        Ok(())
    }
}
