//! Disk I/O behind one seam, [`Disk`]: a ring over direct files, a ring over uncached files, plain threads,
//! and a faulty disk for tests.
//!
//! Invariants: an operation owns its file and its buffer and gives both back on every path; a write that
//! reports success wrote all its bytes; a file whose write or sync failed never syncs with success again;
//! memory given to the kernel is never reused before the kernel is done with it.
//!
//! From the caller down: `whole` turns attempts into whole operations, `faulty` may spoil attempts, `uring`
//! and `threads` carry them out.

mod attempt;
#[cfg(test)]
mod conformance;
mod doorbell;
mod error;
mod faulty;
mod file;
mod mode;
mod open;
mod operation;
mod probe;
mod registration;
mod threads;
mod uring;
mod whole;

pub use doorbell::Doorbell;
pub use error::RingError;
pub use faulty::{FaultKind, FaultPlan};
pub use file::DiskFile;
pub use mode::{IoMode, UnknownIoMode};
pub use open::{open_disk, open_faulty_disk};
pub use operation::{Completion, Disk, Operation, OperationKind};
pub use probe::{KernelFacts, ProbeReport, Refusal, probe};
pub use registration::Registered;
