//! `backup_manifest`: the list of a backup's files with their checksums, versions 1 (13 to 16) and 2 (17 and newer).
//!
//! Both ways are streamed: a manifest of ten million files takes no more memory than one of ten. The bytes are those of
//! `src/backend/backup/backup_manifest.c`; the last line carries the SHA-256 of all lines before it.

mod checksum;
mod entry;
mod file;
mod intake;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use checksum::{Checksum, ChecksumAlgorithm, ChecksumValue, UnknownAlgorithm};
pub use file::{ManifestFile, ModifiedTime};
pub use reader::{ManifestError, ManifestEvent, ManifestSummary, read_manifest};
pub use writer::{ManifestWriter, WalRange, WrittenManifest};

/// A manifest's version, as far as this program knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ManifestVersion {
    /// PostgreSQL 13 to 16.
    One,
    /// PostgreSQL 17 and newer: with the cluster's system identifier.
    Two {
        /// `pg_control`'s `system_identifier`.
        system_identifier: u64,
    },
}
