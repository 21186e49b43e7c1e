//! Restores a backup from a repository into an empty folder, or over an old data directory.
//!
//! ```text
//! manifest ─► files ─► jobs ─► workers: read frames, unpack, compare hashes ─► writers (rings): write, sync ─► files
//! ```
//! 1. Everything that can stand in the way is looked at (`examine`), and told at once; nothing is changed until then.
//! 2. Over an old cluster: no server runs there, `global/pg_control` is taken away, what does not belong goes (`sweep`).
//!    A mark says from here on that the folder holds a restore under way.
//! 3. Folders are made; files that share a frame are one job, and large files are several.
//! 4. Workers put files together from frames, each compared with its hash, and writers write and sync them. Files that
//!    are there are compared with the hashes first, and mended where they differ (`reuse`).
//! 5. Owners are given; folders are synced, and last `global/pg_control` is renamed to its name: until then no server
//!    starts from it. Then the mark goes.
//!
//! Memory is the pool, the queues, one frame a worker, a bounded share of the paths, and the footers of some packs. What
//! a failed restore made goes, but for what it made over something that was there.

mod accounts;
mod config;
mod databases;
mod dry_run;
mod examine;
mod inherited;
mod marker;
mod occupied;
mod owners;
mod recovery_target;
mod reuse;
mod run;
mod space;
mod sweep;
mod target;
mod worker;

pub use config::{Onto, RestoreConfig, RestoreOptions, RestoreReport, RestoreResources};
pub use dry_run::{DryRunReport, dry_run};
pub use recovery_target::{
    PreparedRecovery, RecoveryPlan, RecoveryRole, RecoveryTarget, TargetAction, TargetTimeline,
};
pub use run::run;
pub use space::Space;
