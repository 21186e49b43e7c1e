//! The `BASE_BACKUP` command and the archive stream that answers it.
//!
//! From 15 on all archives and the manifest come in one copy stream of typed messages, which [`ArchiveDecoder`] takes
//! apart (`src/backend/backup/basebackup_copy.c`). Up to 14 each archive is a copy stream of its own, without types and
//! without end-of-archive blocks, followed by one with the manifest: those bytes go to a
//! [`TarDecoder`](crate::tar::TarDecoder) directly.

mod archive;
mod command;
mod compression;

pub use archive::{ArchiveDecoder, ArchiveError, ArchiveEvent, ArchiveName};
pub use command::{BackupTarget, BaseBackupOptions, CommandError, ManifestOptions, ServerCompression};
pub use compression::{
    CompressionError, CompressionMethod, CompressionRequest, CompressionSide, CompressionSpec,
};
