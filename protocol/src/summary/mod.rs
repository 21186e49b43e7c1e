//! Block reference tables: which blocks WAL changed, and PostgreSQL's file of one, a WAL summary
//! (`common/blkreftable.h`, `src/common/blkreftable.c`; servers from 17 on keep such files in `pg_wal/summaries`).
//!
//! A file, all numbers in the server's byte order (little-endian ones are known here, as everywhere):
//!
//! | bytes | content |
//! |---|---|
//! | 4 | magic number, [`MAGIC`] |
//! | 24 each | an entry for each relation fork, ascending: tablespace, database, relation, fork, limit block, count of chunks |
//! | 2 × chunks | behind its entry: what each chunk has |
//! | 2 × what it has | behind those: each chunk |
//! | 24 | zeros: there is no further entry |
//! | 4 | CRC-32C of all before |
//!
//! A chunk stands for [`CHUNK_BLOCKS`] blocks. Up to 4095 of them it is a list of their places in the chunk, in no order that
//! one may rely on; 4096 means that a bitmap follows instead, of as many bytes, the lowest bit first.
//!
//! [`BlockReferences`] is such a table in memory, [`SummaryDecoder`] takes a file apart as it passes, [`SummaryMerger`] lays one
//! over a table, and [`SummaryWriter`] writes one.

mod chunk;
mod coverage;
mod decoder;
mod error;
mod fork;
mod merger;
mod name;
mod references;
#[cfg(test)]
mod tests;
mod writer;

pub use coverage::{LineageError, covering, wal_between};
pub use decoder::{ChunkBlocks, SummaryDecoder, SummaryEvent};
pub use error::SummaryError;
pub use fork::{MAX_FORK, RelationFork};
pub use merger::SummaryMerger;
pub use name::SummaryName;
pub use references::{BlockReferences, ForkReferences};
pub use writer::SummaryWriter;

/// What a summary file begins with (`BLOCKREFTABLE_MAGIC`, `common/blkreftable.h`).
pub const MAGIC: u32 = 0x652b_137b;

/// How many blocks a chunk stands for (`BLOCKS_PER_CHUNK`, `blkreftable.c`).
pub const CHUNK_BLOCKS: u32 = 1 << 16;

/// How many two-byte numbers the bitmap of a chunk takes, and so the count from which on a chunk is one
/// (`MAX_ENTRIES_PER_CHUNK`, `blkreftable.c`).
const BITMAP_ENTRIES: u16 = 4096;

/// The most chunks that a fork can have: block numbers have 32 bits.
const MOST_CHUNKS: u32 = 1 << 16;

const _: () = assert!(BITMAP_ENTRIES as u32 * 16 == CHUNK_BLOCKS);
const _: () = assert!(MOST_CHUNKS as u64 * CHUNK_BLOCKS as u64 == 1 << 32);
