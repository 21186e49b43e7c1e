//! What a summary file may not be.

use super::{MOST_CHUNKS, RelationFork};

/// A file that no server writes, or that was damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SummaryError {
    /// It begins otherwise.
    #[error(
        "magic number {found:#010x}, expected {:#010x}{}", super::MAGIC,
        if *found == super::MAGIC.swap_bytes() { "; those of big-endian servers cannot be read here" } else { "" }
    )]
    Magic {
        /// The first four bytes.
        found: u32,
    },
    /// A fork that no relation has.
    #[error("byte {offset}: fork number {found}, expected at most {}", super::MAX_FORK)]
    ForkNumber {
        /// Where its entry begins.
        offset: u64,
        /// The number.
        found: u32,
    },
    /// An entry that is not above the one before.
    #[error("byte {offset}: an entry for {found}, expected one above {previous}")]
    Order {
        /// Where its entry begins.
        offset: u64,
        /// Its fork.
        found: RelationFork,
        /// The fork before.
        previous: RelationFork,
    },
    /// More chunks than block numbers are for.
    #[error("byte {offset}: {found} chunks for {fork}, expected at most {MOST_CHUNKS}")]
    ChunkCount {
        /// Where its entry begins.
        offset: u64,
        /// Its fork.
        fork: RelationFork,
        /// The count.
        found: u32,
    },
    /// A chunk that is larger than a bitmap.
    #[error(
        "byte {offset}: chunk {chunk} of {fork} has a size of {found}, expected at most {}",
        super::BITMAP_ENTRIES
    )]
    ChunkSize {
        /// Where the size stands.
        offset: u64,
        /// Its fork.
        fork: RelationFork,
        /// The chunk's number, from 0.
        chunk: u32,
        /// The size.
        found: u16,
    },
    /// The checksum at its end is not that of its bytes.
    #[error("checksum {found:08X}, expected {expected:08X} for the {bytes} bytes before it")]
    Checksum {
        /// What the file says.
        found: u32,
        /// What its bytes come to.
        expected: u32,
        /// How many they are.
        bytes: u64,
    },
    /// It ends too early.
    #[error("it ends after {found} bytes, expected {expected}")]
    Cut {
        /// Bytes that came.
        found: u64,
        /// What should have come next.
        expected: &'static str,
    },
    /// Bytes behind its end.
    #[error("it goes on behind its end at byte {end}")]
    TooLong {
        /// Where it ends.
        end: u64,
    },
    /// An error was reported before.
    #[error("the summary was refused before")]
    Failed,
}
