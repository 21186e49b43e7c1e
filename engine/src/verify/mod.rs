//! Proof that bytes are what the server says they are: while they arrive, and later where they lie.

mod arrival;
mod directory;
mod pages;

pub use arrival::{ArrivedMember, Comparison, Ledger, Spool, compare_with_manifest};
pub use directory::{
    BackupFormat, IgnoreList, NeededWal, Problem, VerifyConfig, VerifyLimit, VerifyPhase, VerifyProgress,
    VerifyReport, VerifyResources, VerifySeconds, WorkerSeconds, verify_directory,
};
pub use pages::{BadPage, PageChecker, PageChecks};
