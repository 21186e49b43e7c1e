//! Proof that bytes are what the server says they are: while they arrive, and later where they lie.

mod arrival;
mod content;
mod directory;
mod fetched_wal;
mod incremental;
mod pages;

pub use arrival::{ArrivedMember, Comparison, Ledger, Spool, compare_with_manifest};
pub use content::{ContentChecker, ContentChecks};
pub use directory::{
    BackupFormat, IgnoreList, NeededWal, Problem, VerifyConfig, VerifyLimit, VerifyPhase, VerifyProgress,
    VerifyReport, VerifyResources, VerifySeconds, WorkerSeconds, verify_directory,
};
pub(crate) use directory::{Tree, open_base};
pub use fetched_wal::{FetchedWal, FetchedWalError, WalStart};
pub use incremental::IncrementalChecker;
pub use pages::{BadPage, PageChecker, PageChecks};
