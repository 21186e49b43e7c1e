//! Restores a backup from a repository into an empty folder.
//!
//! ```text
//! manifest ─► files ─► jobs ─► workers: read frames, unpack, compare hashes ─► writers (rings): write, sync ─► files
//! ```
//! 1. The manifest is read, every mapping checked, every folder claimed: what can be refused is refused first.
//! 2. Folders are made; files that share a frame are one job, so that each frame is read once by whoever needs it.
//! 3. Workers put files together from frames, each compared with its hash, and writers write and sync them.
//! 4. Folders are synced, and last `global/pg_control` is renamed to its name: until then no server starts from it.
//!
//! Memory is the pool, the queues, one frame a worker, and the footers of some packs. What a failed restore made goes.

mod config;
mod recovery_target;
mod run;
mod target;
mod worker;

pub use config::{RestoreConfig, RestoreReport, RestoreResources};
pub use recovery_target::{
    PreparedRecovery, RecoveryPlan, RecoveryRole, RecoveryTarget, TargetAction, TargetTimeline,
};
pub use run::run;
