//! Names of the files that backups are made of: WAL files and relation files.

mod relation;
mod wal;

pub use relation::{Fork, RelationFile, TablespaceDir, is_checksum_exempt};
pub use wal::{InvalidSegmentSize, WalCompression, WalFile, WalSegment, WalSegmentSize};
