//! Incremental files, `INCREMENTAL.name`: the blocks of a relation's segment that changed since an earlier backup
//! (`backup/basebackup_incremental.h`, `GetIncrementalHeaderSize` in `basebackup_incremental.c`).
//!
//! | bytes | content |
//! |---|---|
//! | 4 | magic number, [`MAGIC`] |
//! | 4 | count of blocks, at most what a segment has |
//! | 4 | truncation block length: the least length in blocks of the file that this becomes |
//! | 4 × count | the blocks' numbers within the segment, ascending |
//! | to a multiple of the block size | zeros, where count is not 0 |
//! | block size × count | the blocks |
//!
//! All numbers are in the server's byte order; little-endian servers are known here, as everywhere. [`IncrementalDecoder`]
//! takes a file apart as it passes and hands out its blocks as slices of the input.

mod decoder;
mod error;
mod geometry;
#[cfg(test)]
mod tests;

pub use decoder::{IncrementalDecoder, IncrementalEvent, IncrementalHeader};
pub use error::IncrementalError;
pub use geometry::{Geometry, GeometryError};

/// What an incremental file begins with (`INCREMENTAL_MAGIC`, `backup/basebackup_incremental.h`).
pub const MAGIC: u32 = 0xd3ae_1f0d;

/// What the name of an incremental file has before the name of the segment that it is of.
pub const NAME_PREFIX: &[u8] = b"INCREMENTAL.";
