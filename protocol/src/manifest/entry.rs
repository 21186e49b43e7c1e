//! The objects in a manifest's lists: files and WAL ranges.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};

use super::checksum::decode_hex;
use super::{ChecksumAlgorithm, ChecksumValue, ManifestEvent, ManifestFile, ModifiedTime};
use crate::tar::MemberPath;
use crate::{Lsn, TimelineId};

/// A kind of entry: its keys in, an event out.
pub(super) trait Entry: Copy {
    fn read<'de, A: MapAccess<'de>>(self, map: A) -> Result<ManifestEvent, A::Error>;
}

/// `{ "Path": …, "Size": …, "Last-Modified": …, "Checksum-Algorithm": …, "Checksum": … }`
#[derive(Clone, Copy)]
pub(super) struct FileEntry;

/// `{ "Timeline": …, "Start-LSN": …, "End-LSN": … }`
#[derive(Clone, Copy)]
pub(super) struct WalRangeEntry;

const PATH: &str = "Path";
const ENCODED_PATH: &str = "Encoded-Path";
const SIZE: &str = "Size";
const LAST_MODIFIED: &str = "Last-Modified";
const ALGORITHM: &str = "Checksum-Algorithm";
const CHECKSUM: &str = "Checksum";
const TIMELINE: &str = "Timeline";
const START_LSN: &str = "Start-LSN";
const END_LSN: &str = "End-LSN";

impl Entry for FileEntry {
    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<ManifestEvent, A::Error> {
        const KEYS: &[&str] = &[PATH, ENCODED_PATH, SIZE, LAST_MODIFIED, ALGORITHM, CHECKSUM];
        let (mut path, mut size, mut modified, mut algorithm, mut checksum) = (None, None, None, None, None);
        while let Some(key) = map.next_key_seed(Key(KEYS))? {
            match key {
                PATH => {
                    let read = |text: &str| Some(text.as_bytes().to_vec());
                    set(&mut path, map.next_value_seed(Text { expected: "a path", read })?, PATH)?;
                }
                ENCODED_PATH => {
                    let read = |text: &str| {
                        let mut bytes = vec![0; text.len() / 2];
                        decode_hex(text.as_bytes(), &mut bytes).map(|()| bytes)
                    };
                    set(
                        &mut path,
                        map.next_value_seed(Text { expected: "a path in hexadecimal", read })?,
                        PATH,
                    )?;
                }
                SIZE => set(&mut size, map.next_value::<u64>()?, SIZE)?,
                LAST_MODIFIED => {
                    let text = Text {
                        expected: "a time such as 2024-02-29 23:59:59 GMT",
                        read: ModifiedTime::parse,
                    };
                    set(&mut modified, map.next_value_seed(text)?, LAST_MODIFIED)?;
                }
                ALGORITHM => {
                    let read = |text: &str| text.parse::<ChecksumAlgorithm>().ok();
                    let text = Text { expected: "NONE, CRC32C, SHA224, SHA256, SHA384 or SHA512", read };
                    set(&mut algorithm, map.next_value_seed(text)?, ALGORITHM)?;
                }
                _ => {
                    let read = |text: &str| ChecksumValue::from_hex(text.as_bytes());
                    let text = Text { expected: "up to 128 hexadecimal digits", read };
                    set(&mut checksum, map.next_value_seed(text)?, CHECKSUM)?;
                }
            }
        }
        let path = path.ok_or_else(|| A::Error::missing_field(PATH))?;
        MemberPath::check(&path).map_err(|reason| {
            let start = path[..path.len().min(256)].escape_ascii();
            A::Error::custom(format_args!("path \"{start}\" refused: {reason}"))
        })?;
        let checksum = match (algorithm, checksum) {
            (None | Some(ChecksumAlgorithm::None), None) => None,
            (Some(algorithm), Some(value)) if value.as_bytes().len() == algorithm.digest_len() => {
                (algorithm != ChecksumAlgorithm::None).then_some((algorithm, value))
            }
            (Some(algorithm), Some(value)) => {
                let expected = algorithm.digest_len();
                return Err(A::Error::custom(format_args!(
                    "checksum {value} is no {algorithm}, expected {expected} bytes"
                )));
            }
            (Some(_), None) => return Err(A::Error::missing_field(CHECKSUM)),
            (None, Some(_)) => return Err(A::Error::missing_field(ALGORITHM)),
        };
        Ok(ManifestEvent::File(ManifestFile {
            path,
            size: size.ok_or_else(|| A::Error::missing_field(SIZE))?,
            modified: modified.ok_or_else(|| A::Error::missing_field(LAST_MODIFIED))?,
            checksum,
        }))
    }
}

impl Entry for WalRangeEntry {
    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<ManifestEvent, A::Error> {
        const KEYS: &[&str] = &[TIMELINE, START_LSN, END_LSN];
        let (mut timeline, mut start, mut end) = (None, None, None);
        let lsn = |text: &str| text.parse::<Lsn>().ok();
        while let Some(key) = map.next_key_seed(Key(KEYS))? {
            let position = Text { expected: "a log position such as 0/2000028", read: lsn };
            match key {
                TIMELINE => set(&mut timeline, map.next_value::<u32>()?, TIMELINE)?,
                START_LSN => set(&mut start, map.next_value_seed(position)?, START_LSN)?,
                _ => set(&mut end, map.next_value_seed(position)?, END_LSN)?,
            }
        }
        let timeline = timeline.ok_or_else(|| A::Error::missing_field(TIMELINE))?;
        let start = start.ok_or_else(|| A::Error::missing_field(START_LSN))?;
        let end = end.ok_or_else(|| A::Error::missing_field(END_LSN))?;
        if timeline == 0 || start > end {
            return Err(A::Error::custom(format_args!(
                "impossible WAL range {start} to {end} on timeline {timeline}"
            )));
        }
        Ok(ManifestEvent::WalRange { timeline: TimelineId(timeline), start, end })
    }
}

/// An [`Entry`] as a seed and as the visitor of its object.
#[derive(Clone, Copy)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Entry> DeserializeSeed<'de> for Object<T> {
    type Value = ManifestEvent;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<ManifestEvent, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: Entry> Visitor<'de> for Object<T> {
    type Value = ManifestEvent;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ManifestEvent, A::Error> {
        self.0.read(map)
    }
}

/// Sets a value that must not be there yet.
pub(super) fn set<T, D: serde::de::Error>(
    slot: &mut Option<T>,
    value: T,
    key: &'static str,
) -> Result<(), D> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(D::duplicate_field(key)),
    }
}

/// One of a few known keys.
pub(super) struct Key(pub(super) &'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = &'static str;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Key {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<D: serde::de::Error>(self, key: &str) -> Result<Self::Value, D> {
        match self.0.iter().find(|known| **known == key) {
            Some(known) => Ok(known),
            None => {
                Err(D::custom(format_args!("unknown key {:?}", key.chars().take(64).collect::<String>())))
            }
        }
    }
}

/// A string that `read` makes a value of.
pub(super) struct Text<F> {
    pub(super) expected: &'static str,
    pub(super) read: F,
}

impl<'de, T, F: FnOnce(&str) -> Option<T>> DeserializeSeed<'de> for Text<F> {
    type Value = T;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T, F: FnOnce(&str) -> Option<T>> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<D: serde::de::Error>(self, text: &str) -> Result<T, D> {
        (self.read)(text).ok_or_else(|| {
            let start: String = text.chars().take(64).collect();
            D::custom(format_args!("found {start:?}, expected {}", self.expected))
        })
    }
}
