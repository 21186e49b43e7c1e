//! Reads an archive as it arrives, in pieces of any size.
//!
//! Content is handed through as slices of the input; the only bytes ever kept are those of a header that straddles two
//! pieces. The decoder is lenient in nothing: an archive that is not exactly what PostgreSQL writes is refused with the
//! position at which it went wrong.

use std::num::NonZeroU64;

use ::tar::{EntryType, Header, UstarHeader};

use super::header::{checksum, padding_for};
use super::{BLOCK_SIZE, MemberPath, PathError, number};

/// The largest member that is believed. PostgreSQL's files end at 1 GiB by default; this bound only keeps sums exact.
const MAX_SIZE: u64 = 1 << 53;

/// Splits an archive into members.
#[derive(Debug)]
pub struct TarDecoder {
    state: State,
    /// Bytes consumed so far, for messages.
    offset: u64,
    /// The head of a header that straddles pieces of input.
    partial: [u8; BLOCK_SIZE],
}

#[derive(Debug)]
enum State {
    /// `have` bytes of the next header have been seen.
    Header {
        have: usize,
    },
    Body {
        left: NonZeroU64,
        padding: usize,
    },
    Padding {
        left: usize,
    },
    MemberEnd,
    /// Only zeros from here on.
    Trailer,
    /// An error was reported; there is no way to go on.
    Failed,
}

/// What [`TarDecoder::next`] found.
#[derive(Debug)]
pub enum TarEvent<'a> {
    /// A member begins.
    Member(TarMember),
    /// The next bytes of the member's content, never empty.
    Data(&'a [u8]),
    /// The member is complete, its padding consumed. Follows every member, also those without content.
    MemberEnd,
}

/// A member's header, checked.
#[derive(Clone, Debug)]
pub struct TarMember {
    /// Where it belongs.
    pub path: MemberPath,
    /// What it is.
    pub kind: MemberKind,
    /// The nine permission bits. Set-user, set-group and sticky bits have no place in a data directory and are dropped.
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// The owner on the server.
    pub uid: u64,
    /// The group on the server.
    pub gid: u64,
    /// The block as received, for archives that are passed on.
    pub header: Box<[u8; BLOCK_SIZE]>,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    File {
        /// Its length in bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link. Where it may lead is for the receiver to judge.
    Symlink {
        /// Where it leads: not empty, without NUL, otherwise as received.
        target: Vec<u8>,
    },
}

/// Why an archive is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// The sum over a header does not match.
    #[error(
        "tar header at byte {offset}: checksum {found}, expected {expected}\n\
             HINT: The archive is damaged or not a tar archive; take the backup again."
    )]
    Checksum {
        /// Where the header starts.
        offset: u64,
        /// What the header says, 0 where it says nothing readable.
        found: u64,
        /// What its bytes sum up to.
        expected: u64,
    },
    /// No ustar header.
    #[error("tar header at byte {offset}: magic \"{}\", expected \"ustar\"", found.escape_ascii())]
    Magic {
        /// Where the header starts.
        offset: u64,
        /// What stands in its place.
        found: Vec<u8>,
    },
    /// A number that cannot be read or believed.
    #[error("tar header at byte {offset}: invalid {field} \"{}\"", found.escape_ascii())]
    Number {
        /// Where the header starts.
        offset: u64,
        /// Which number.
        field: &'static str,
        /// The bytes of the field.
        found: Vec<u8>,
    },
    /// A name that is no safe path.
    #[error("tar header at byte {offset}: member \"{}\" refused: {reason}\n\
             HINT: PostgreSQL writes no such names; do not trust this server or archive.", name.escape_ascii())]
    Path {
        /// Where the header starts.
        offset: u64,
        /// The name as received.
        name: Vec<u8>,
        /// What is wrong with it.
        reason: PathError,
    },
    /// A link target that cannot be one.
    #[error("tar header at byte {offset}: symbolic link \"{path}\" has no target")]
    LinkTarget {
        /// Where the header starts.
        offset: u64,
        /// The link.
        path: MemberPath,
    },
    /// A kind of member that PostgreSQL never writes.
    #[error("tar header at byte {offset}: member \"{}\" is {kind}, expected a file, directory or symbolic link\n\
             HINT: PostgreSQL writes no such members; do not trust this server or archive.", name.escape_ascii())]
    Kind {
        /// Where the header starts.
        offset: u64,
        /// The member's name as received.
        name: Vec<u8>,
        /// What it is.
        kind: String,
    },
    /// A directory or link that claims content.
    #[error(
        "tar header at byte {offset}: member \"{path}\" is no file but has a size of {size} bytes, expected 0"
    )]
    UnexpectedContent {
        /// Where the header starts.
        offset: u64,
        /// The member.
        path: MemberPath,
        /// What it claims.
        size: u64,
    },
    /// Bytes other than zero where only zeros may be.
    #[error(
        "tar archive at byte {offset}: {place} holds {found:#04x}, expected zeros\n\
             HINT: The archive is damaged or out of step; take the backup again."
    )]
    NotZero {
        /// Where the first such byte lies.
        offset: u64,
        /// Which part of the archive.
        place: &'static str,
        /// The byte.
        found: u8,
    },
    /// The archive ends inside of something.
    #[error(
        "tar archive ends at byte {offset} inside of {place}\n\
             HINT: The archive is cut short; take the backup again."
    )]
    Cut {
        /// How long the archive is.
        offset: u64,
        /// What it ends in.
        place: &'static str,
    },
    /// The decoder was used after it had reported an error.
    #[error("the archive was refused before")]
    Failed,
}

impl Default for TarDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl TarDecoder {
    /// A decoder at an archive's first byte.
    #[must_use]
    pub fn new() -> Self {
        Self { state: State::Header { have: 0 }, offset: 0, partial: [0; BLOCK_SIZE] }
    }

    /// How many bytes of the archive have been consumed.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next event from the front of `input`. `Ok(None)` means that the input is used up; events that need no
    /// input come before that. After an error every call fails.
    #[inline]
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TarEvent<'a>>, TarError> {
        if let State::Body { left, padding } = self.state {
            if input.is_empty() {
                return Ok(None);
            }
            let length = usize::try_from(left.get()).map_or(input.len(), |left| left.min(input.len()));
            let data = self.take(input, length);
            self.state = match NonZeroU64::new(left.get() - length as u64) {
                Some(left) => State::Body { left, padding },
                None => State::Padding { left: padding },
            };
            return Ok(Some(TarEvent::Data(data)));
        }
        let event = self.between_bodies(input);
        if event.is_err() {
            self.state = State::Failed;
        }
        event
    }

    /// Says whether the archive may end here. Servers up to 14 send no end-of-archive blocks, so their absence is no
    /// error; a cut header, content, padding or final block is.
    pub fn finish(&self) -> Result<(), TarError> {
        let place = match self.state {
            State::Header { have: 0 } => return Ok(()),
            State::Header { .. } => "a header",
            State::Body { .. } => "a member's content",
            State::Padding { left: 0 } | State::MemberEnd => "an unfinished member",
            State::Padding { .. } => "a member's padding",
            State::Trailer if self.offset.is_multiple_of(BLOCK_SIZE as u64) => return Ok(()),
            State::Trailer => "the final blocks",
            State::Failed => return Err(TarError::Failed),
        };
        Err(TarError::Cut { offset: self.offset, place })
    }

    /// Consumes `length` bytes, which the input has.
    fn take<'a>(&mut self, input: &mut &'a [u8], length: usize) -> &'a [u8] {
        let (taken, rest) = input.split_at(length);
        *input = rest;
        self.offset += length as u64;
        taken
    }

    fn take_zeros(&mut self, input: &mut &[u8], length: usize, place: &'static str) -> Result<(), TarError> {
        let start = self.offset;
        let taken = self.take(input, length);
        match taken.iter().position(|byte| *byte != 0) {
            Some(at) => Err(TarError::NotZero { offset: start + at as u64, place, found: taken[at] }),
            None => Ok(()),
        }
    }

    fn between_bodies<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TarEvent<'a>>, TarError> {
        loop {
            match self.state {
                State::Header { have } => {
                    let length = input.len().min(BLOCK_SIZE - have);
                    if length == 0 {
                        return Ok(None);
                    }
                    let taken = self.take(input, length);
                    self.partial[have..have + length].copy_from_slice(taken);
                    if have + length < BLOCK_SIZE {
                        self.state = State::Header { have: have + length };
                        return Ok(None);
                    }
                    if self.partial == [0; BLOCK_SIZE] {
                        self.state = State::Trailer;
                        continue;
                    }
                    let member = parse(&self.partial, self.offset - BLOCK_SIZE as u64)?;
                    self.state = match member.kind {
                        MemberKind::File { size } => match NonZeroU64::new(size) {
                            Some(left) => State::Body { left, padding: padding_for(size) },
                            None => State::MemberEnd,
                        },
                        MemberKind::Directory | MemberKind::Symlink { .. } => State::MemberEnd,
                    };
                    return Ok(Some(TarEvent::Member(member)));
                }
                State::Padding { left } => {
                    let length = input.len().min(left);
                    self.take_zeros(input, length, "a member's padding")?;
                    if length < left {
                        self.state = State::Padding { left: left - length };
                        return Ok(None);
                    }
                    self.state = State::MemberEnd;
                }
                State::MemberEnd => {
                    self.state = State::Header { have: 0 };
                    return Ok(Some(TarEvent::MemberEnd));
                }
                State::Trailer => {
                    self.take_zeros(input, input.len(), "the space behind the last member")?;
                    return Ok(None);
                }
                State::Body { .. } => return Ok(None),
                State::Failed => return Err(TarError::Failed),
            }
        }
    }
}

/// Checks a header block that starts at `offset`.
fn parse(block: &[u8; BLOCK_SIZE], offset: u64) -> Result<TarMember, TarError> {
    let header = Header::from_byte_slice(block);
    let expected = u64::from(checksum(block));
    let found = number::read(&header.as_old().cksum).unwrap_or(0);
    if found != expected {
        return Err(TarError::Checksum { offset, found, expected });
    }
    let Some(fields) = header.as_ustar() else {
        return Err(TarError::Magic { offset, found: block[257..265].to_vec() });
    };
    let name = full_name(fields);
    let kind = header.entry_type();
    if !matches!(kind, EntryType::Regular | EntryType::Directory | EntryType::Symlink) {
        return Err(TarError::Kind { offset, name, kind: describe(kind) });
    }
    let path = match MemberPath::parse(&name) {
        Ok(path) => path,
        Err(reason) => return Err(TarError::Path { offset, name, reason }),
    };
    let read = |field: &'static str, bytes: &[u8]| {
        number::read(bytes).ok_or_else(|| TarError::Number { offset, field, found: bytes.to_vec() })
    };
    let size = read("size", &fields.size)?;
    if size > MAX_SIZE {
        return Err(TarError::Number { offset, field: "size", found: fields.size.to_vec() });
    }
    if size != 0 && kind != EntryType::Regular {
        return Err(TarError::UnexpectedContent { offset, path, size });
    }
    let kind = match kind {
        EntryType::Directory => MemberKind::Directory,
        EntryType::Symlink => match until_nul(&fields.linkname) {
            [] => return Err(TarError::LinkTarget { offset, path }),
            target => MemberKind::Symlink { target: target.to_vec() },
        },
        _ => MemberKind::File { size },
    };
    let mode = u32::try_from(read("mode", &fields.mode)? & 0o777).unwrap_or(0);
    Ok(TarMember {
        path,
        kind,
        mode,
        mtime: read("modification time", &fields.mtime)?,
        uid: read("user id", &fields.uid)?,
        gid: read("group id", &fields.gid)?,
        header: Box::new(*block),
    })
}

/// The ustar prefix, which PostgreSQL leaves empty, and the name.
fn full_name(fields: &UstarHeader) -> Vec<u8> {
    let mut name = until_nul(&fields.prefix).to_vec();
    if !name.is_empty() {
        name.push(b'/');
    }
    name.extend_from_slice(until_nul(&fields.name));
    name
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

/// Calls a kind of member by the name an operator knows.
fn describe(kind: EntryType) -> String {
    match kind {
        EntryType::Link => "a hard link".into(),
        EntryType::Char | EntryType::Block => "a device".into(),
        EntryType::Fifo => "a named pipe".into(),
        EntryType::Continuous => "a contiguous file".into(),
        EntryType::GNULongName | EntryType::GNULongLink => "a GNU long name record".into(),
        EntryType::GNUSparse => "a GNU sparse file".into(),
        EntryType::XGlobalHeader | EntryType::XHeader => "a pax record".into(),
        other => format!("of unknown type \"{}\"", [other.as_byte()].escape_ascii()),
    }
}
