//! Takes apart the typed messages of servers from 15 on: `n` new archive, `d` data, `p` progress, `m` manifest.
//!
//! Data is handed through as it comes; only the short messages are collected, up to a bound.

use std::fmt;

use super::CompressionMethod;

/// The longest `n` message: two strings of at most `MAXPGPATH` (`pg_config_manual.h`) with their NULs, rounded up.
const MAX_SHORT_MESSAGE: usize = 4096;

/// Takes the bodies of a base backup's CopyData messages.
#[derive(Debug, Default)]
pub struct ArchiveDecoder {
    /// The type of the message under way.
    message: Option<MessageType>,
    /// The short message that is being collected.
    short: Vec<u8>,
    part: Part,
    names: Names,
}

/// How archives are to be called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Names {
    /// As tar, or as tar compressed by a method.
    #[default]
    Tar,
    Compressed(CompressionMethod),
    /// Either way: the server keeps them.
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MessageType {
    NewArchive,
    Data,
    Progress,
    Manifest,
}

/// What data belongs to. Archives of tablespaces come first, the base archive next, the manifest last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Nothing,
    Tablespace,
    Base,
    Manifest,
}

/// Which archive begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArchiveName {
    /// `base.tar`: the data directory.
    Base,
    /// `<oid>.tar`: the tablespace of this OID.
    Tablespace(u32),
}

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArchiveName::Base => f.write_str("base.tar"),
            ArchiveName::Tablespace(oid) => write!(f, "{oid}.tar"),
        }
    }
}

impl ArchiveName {
    /// Reads a name as PostgreSQL writes it.
    fn parse(name: &[u8], expected: Names) -> Result<Self, ArchiveError> {
        let unexpected = || ArchiveError::Name { found: name.to_vec() };
        let method = |method: &CompressionMethod| name.ends_with(method.extension().as_bytes());
        let method = CompressionMethod::ALL.into_iter().find(method);
        let name = match (expected, method) {
            (Names::Tar, Some(_)) => return Err(ArchiveError::Compressed { found: name.to_vec() }),
            (Names::Compressed(expected), method) if method != Some(expected) => {
                return Err(ArchiveError::Compression { found: name.to_vec(), expected });
            }
            (_, Some(method)) => &name[..name.len() - method.extension().len()],
            (_, None) => name,
        };
        if name == b"base.tar" {
            return Ok(ArchiveName::Base);
        }
        let digits = name.strip_suffix(b".tar").ok_or_else(unexpected)?;
        // One spelling for each OID, or two names could mean the same folder.
        if digits.first().is_none_or(|first| !matches!(first, b'1'..=b'9')) {
            return Err(unexpected());
        }
        let oid = digits.iter().try_fold(0u32, |oid, digit| {
            let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
            oid.checked_mul(10)?.checked_add(u32::from(digit))
        });
        oid.map(ArchiveName::Tablespace).ok_or_else(unexpected)
    }
}

/// What a chunk of a CopyData body means.
#[derive(Debug, PartialEq, Eq)]
pub enum ArchiveEvent<'a> {
    /// An archive begins; the one before, if any, is complete.
    ArchiveStart {
        /// Which one.
        name: ArchiveName,
        /// The tablespace's directory on the server, empty for the base archive. Not checked beyond its length.
        location: Vec<u8>,
    },
    /// The next bytes of the archive, never empty.
    Data(&'a [u8]),
    /// How many bytes the server has sent by its own count.
    Progress(u64),
    /// The manifest begins; the base archive is complete.
    ManifestStart,
    /// The next bytes of the manifest, never empty.
    ManifestData(&'a [u8]),
}

/// Why the stream is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// A message without its type.
    #[error("empty CopyData message in a base backup, expected one of the types n, d, p, m")]
    EmptyMessage,
    /// A type that is not known.
    #[error("CopyData message of unknown type \"{}\" in a base backup, expected n, d, p or m\n\
             HINT: The server may be newer than this program; look for an update.", [*found].escape_ascii())]
    UnknownType {
        /// The type.
        found: u8,
    },
    /// A short message that is not short.
    #[error("CopyData message of type \"{message}\" has more than {MAX_SHORT_MESSAGE} bytes")]
    TooLong {
        /// The type.
        message: char,
    },
    /// A message that does not read as its type requires.
    #[error(
        "malformed CopyData message of type \"{message}\": {found} bytes \"{start}\", expected {expected}"
    )]
    Malformed {
        /// The type.
        message: char,
        /// How long it is.
        found: usize,
        /// Its first bytes.
        start: String,
        /// What would be right.
        expected: &'static str,
    },
    /// An archive name that is not PostgreSQL's.
    #[error("unexpected archive name \"{}\", expected base.tar or <oid>.tar", found.escape_ascii())]
    Name {
        /// The name.
        found: Vec<u8>,
    },
    /// A compressed archive, which was not asked for.
    #[error("server sends the compressed archive \"{}\", expected plain tar", found.escape_ascii())]
    Compressed {
        /// The name.
        found: Vec<u8>,
    },
    /// An archive that is not compressed as was asked for.
    #[error(
        "server sends the archive \"{}\", expected one compressed by {expected}",
        found.escape_ascii()
    )]
    Compression {
        /// The name.
        found: Vec<u8>,
        /// What was asked for.
        expected: CompressionMethod,
    },
    /// A location that does not fit the archive.
    #[error("archive {name} has the location \"{}\", expected {expected}", found.escape_ascii())]
    Location {
        /// The archive.
        name: ArchiveName,
        /// The location.
        found: Vec<u8>,
        /// What would be right.
        expected: &'static str,
    },
    /// A message that cannot come at this point.
    #[error("unexpected {found} in a base backup, after {after}")]
    Order {
        /// What came.
        found: &'static str,
        /// What came before.
        after: &'static str,
    },
    /// The stream ended too early.
    #[error(
        "base backup ends {after}, expected {expected}\n\
             HINT: Look for the cause in the server's log and take the backup again."
    )]
    Incomplete {
        /// What came before.
        after: &'static str,
        /// What is missing.
        expected: &'static str,
    },
}

impl Part {
    fn describe(self) -> &'static str {
        match self {
            Part::Nothing => "the start",
            Part::Tablespace => "a tablespace's archive",
            Part::Base => "the base archive",
            Part::Manifest => "the manifest",
        }
    }
}

impl MessageType {
    fn tag(self) -> char {
        match self {
            MessageType::NewArchive => 'n',
            MessageType::Data => 'd',
            MessageType::Progress => 'p',
            MessageType::Manifest => 'm',
        }
    }
}

impl ArchiveDecoder {
    /// A decoder at the start of the copy stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder of archives that the server was asked to compress.
    #[must_use]
    pub fn compressed(method: CompressionMethod) -> Self {
        Self { names: Names::Compressed(method), ..Self::default() }
    }

    /// A decoder of what the server tells of archives that it keeps, compressed or not.
    #[must_use]
    pub fn of_a_target() -> Self {
        Self { names: Names::Any, ..Self::default() }
    }

    /// Takes one chunk of a CopyData body. `first` and `last` say whether the chunk begins and ends its message; a
    /// whole message is both. Chunks may be empty.
    #[inline]
    pub fn push<'a>(
        &mut self,
        chunk: &'a [u8],
        first: bool,
        last: bool,
    ) -> Result<Option<ArchiveEvent<'a>>, ArchiveError> {
        if first {
            self.message = None;
            self.short.clear();
        }
        let (message, body) = match (self.message, chunk) {
            (Some(message), body) => (message, body),
            (None, [tag, body @ ..]) => (self.begin(*tag)?, body),
            (None, []) if last => return Err(ArchiveError::EmptyMessage),
            (None, []) => return Ok(None),
        };
        self.message = if last { None } else { Some(message) };
        if message == MessageType::Data {
            return Ok(match (body, self.part) {
                ([], _) => None,
                (body, Part::Manifest) => Some(ArchiveEvent::ManifestData(body)),
                (body, _) => Some(ArchiveEvent::Data(body)),
            });
        }
        self.collect(message, body, last)
    }

    /// Says whether the stream may end here, at CopyDone. A manifest is no condition: it may not have been asked for.
    pub fn finish(&self) -> Result<(), ArchiveError> {
        if self.message.is_some() {
            return Err(ArchiveError::Incomplete { after: "inside of a message", expected: "its rest" });
        }
        match self.part {
            Part::Base | Part::Manifest => Ok(()),
            part => Err(ArchiveError::Incomplete {
                after: if part == Part::Nothing {
                    "before any archive"
                } else {
                    "after a tablespace's archive"
                },
                expected: "base.tar",
            }),
        }
    }

    /// Whether the manifest has begun.
    #[must_use]
    pub fn manifest_seen(&self) -> bool {
        self.part == Part::Manifest
    }

    fn begin(&self, tag: u8) -> Result<MessageType, ArchiveError> {
        let order = |found| ArchiveError::Order { found, after: self.part.describe() };
        match (tag, self.part) {
            (b'n', Part::Nothing | Part::Tablespace) => Ok(MessageType::NewArchive),
            (b'n', _) => Err(order("new archive")),
            (b'd', Part::Nothing) => Err(order("data")),
            (b'd', _) => Ok(MessageType::Data),
            (b'p', _) => Ok(MessageType::Progress),
            (b'm', Part::Base) => Ok(MessageType::Manifest),
            (b'm', _) => Err(order("manifest")),
            (found, _) => Err(ArchiveError::UnknownType { found }),
        }
    }

    /// Gathers a short message and reads it once it is complete.
    fn collect<'a>(
        &mut self,
        message: MessageType,
        body: &[u8],
        last: bool,
    ) -> Result<Option<ArchiveEvent<'a>>, ArchiveError> {
        if self.short.len() + body.len() > MAX_SHORT_MESSAGE {
            return Err(ArchiveError::TooLong { message: message.tag() });
        }
        self.short.extend_from_slice(body);
        if !last {
            return Ok(None);
        }
        let malformed = |expected| ArchiveError::Malformed {
            message: message.tag(),
            found: self.short.len(),
            start: self.short[..self.short.len().min(64)].escape_ascii().to_string(),
            expected,
        };
        match message {
            MessageType::Progress => {
                let bytes = self.short.as_slice().try_into().map_err(|_| malformed("8 bytes"))?;
                let done = u64::try_from(i64::from_be_bytes(bytes))
                    .map_err(|_| malformed("a count that is not negative"))?;
                Ok(Some(ArchiveEvent::Progress(done)))
            }
            MessageType::Manifest | MessageType::Data => {
                if !self.short.is_empty() {
                    return Err(malformed("nothing behind the type"));
                }
                self.part = Part::Manifest;
                Ok(Some(ArchiveEvent::ManifestStart))
            }
            MessageType::NewArchive => {
                let mut strings = self.short.split(|byte| *byte == 0);
                let (Some(name), Some(location), Some([]), None) =
                    (strings.next(), strings.next(), strings.next(), strings.next())
                else {
                    return Err(malformed("two strings that end in NUL"));
                };
                let (name, location) = (ArchiveName::parse(name, self.names)?, location.to_vec());
                if (name == ArchiveName::Base) != location.is_empty() {
                    let expected = if name == ArchiveName::Base { "none" } else { "a directory" };
                    return Err(ArchiveError::Location { name, found: location, expected });
                }
                self.part = if name == ArchiveName::Base { Part::Base } else { Part::Tablespace };
                Ok(Some(ArchiveEvent::ArchiveStart { name, location }))
            }
        }
    }
}

#[cfg(test)]
mod tests;
