//! Why an archive is refused, with the byte at which it went wrong.

use super::{MemberPath, PathError};

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
