//! What of a cluster changed since an older backup.

mod archive;

pub use archive::{ArchiveChanges, ArchiveRange, Missing, archive_changes};
