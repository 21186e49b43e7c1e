//! What an incremental file may not be.

/// A file that no server writes, or that cannot be combined with an earlier backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncrementalError {
    /// It begins otherwise.
    #[error(
        "magic number {found:#010x}, expected {:#010x}{}", super::MAGIC,
        if *found == super::MAGIC.swap_bytes() { "; those of big-endian servers cannot be checked here" } else { "" }
    )]
    Magic {
        /// The first four bytes.
        found: u32,
    },
    /// More blocks than a segment has.
    #[error("{found} blocks, expected at most {most}")]
    BlockCount {
        /// The count in the header.
        found: u32,
        /// Blocks of a segment.
        most: u32,
    },
    /// The file that it becomes would be longer than a segment. Servers before 17.8 and 18.2 may write that of a relation
    /// of several segments; no tool combines it.
    #[error("a truncation block length of {found}, expected at most {most}")]
    TruncationLength {
        /// The length in blocks in the header.
        found: u32,
        /// Blocks of a segment.
        most: u32,
    },
    /// Its length is not that of so many blocks.
    #[error("{found} bytes, expected {expected} for {blocks} blocks")]
    Length {
        /// The file's length.
        found: u64,
        /// What the header comes to.
        expected: u64,
        /// Blocks by the header.
        blocks: u32,
    },
    /// A block that a segment does not have.
    #[error("entry {entry} of the list of blocks: block {found}, expected one below {limit}")]
    BlockNumber {
        /// Its place in the list, from 0.
        entry: u32,
        /// The number.
        found: u32,
        /// Blocks of a segment.
        limit: u32,
    },
    /// A number that is not above the one before.
    #[error("entry {entry} of the list of blocks: block {found}, expected one above {previous}")]
    Order {
        /// Its place in the list, from 0.
        entry: u32,
        /// The number.
        found: u32,
        /// The one before.
        previous: u32,
    },
    /// Something between the list and the first block.
    #[error("byte {offset} is {found:#04x}, expected padding of zeros up to the first block")]
    Padding {
        /// Where.
        offset: u64,
        /// What.
        found: u8,
    },
    /// It ends too early.
    #[error("it ends after {found} bytes, expected {expected}")]
    Cut {
        /// Bytes that came.
        found: u64,
        /// The file's length.
        expected: u64,
    },
    /// Bytes behind its length.
    #[error("more than the {expected} bytes that it has")]
    TooLong {
        /// The file's length.
        expected: u64,
    },
    /// An error was reported before.
    #[error("the file was refused before")]
    Failed,
}
