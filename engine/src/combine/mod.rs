//! Puts a chain of a full backup and incremental ones together: the last backup, as a full one.
//!
//! ```text
//! labels, control files, manifests ─► a chain?
//! last backup ─► walk ─► hands of files ─► workers: whose blocks? read, check, sum up ─► writers (rings) ─► files
//!                folders made      parts of large files ┘         or link, reflink, copy_file_range
//!                                                                 └─► backup_manifest ─► names, pg_control last
//! ```
//! What `pg_combinebackup` 18 does (`src/bin/pg_combinebackup`), on all cores. `plan` decides where each block comes from and
//! `label` reads what makes the chain; both do no I/O.
//!
//! Invariants: no source is written to; a file's blocks come from the newest backup that has them; what is read is compared
//! with the manifest where it is read whole, and page by page where it is not; until the last rename there is no
//! `global/pg_control` under its name, and what a failed run made is removed. Memory is the pool, a manifest's entries at
//! some 50 bytes a file, and the plans of as many files as there are workers.

mod assembly;
mod chain;
mod config;
mod dry;
mod jobs;
mod known_files;
mod label;
mod new_manifest;
mod observer;
mod plan;
mod report;
mod run;
mod source_file;
mod tablespaces;
mod task;
mod transfer;
mod walk;
mod within_kernel;
mod worker;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use config::{CombineConfig, CombineResources, CopyMethod, SyncMethod};
pub use observer::{CombineObserver, CombineProgress};
pub use report::{CombineLimit, CombineReport, CombineSeconds, CombineWorkerSeconds};
pub use run::combine;

/// A path of a manifest.
fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}
