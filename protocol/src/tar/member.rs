//! A member of an archive, read from its header block.
//!
//! Lenient in nothing: a header that is not exactly of the kind that PostgreSQL writes is refused.

use ::tar::{EntryType, Header, UstarHeader};

use super::header::checksum;
use super::{BLOCK_SIZE, MemberPath, TarError, number};

/// The largest member that is believed. PostgreSQL's files end at 1 GiB by default; this bound only keeps sums exact.
const MAX_SIZE: u64 = 1 << 53;

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

impl TarMember {
    /// Checks a header block that starts at `offset`.
    pub(super) fn parse(block: &[u8; BLOCK_SIZE], offset: u64) -> Result<Self, TarError> {
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
        Ok(Self {
            path,
            kind,
            mode,
            mtime: read("modification time", &fields.mtime)?,
            uid: read("user id", &fields.uid)?,
            gid: read("group id", &fields.gid)?,
            header: Box::new(*block),
        })
    }
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
