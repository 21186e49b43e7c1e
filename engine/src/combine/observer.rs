//! A running combination as others may watch it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::failure::Failure;

/// Hears what a combination has to say, from any thread.
pub trait CombineObserver: Send + Sync {
    /// Something that is not as it should be, and does not end the run.
    fn warning(&self, text: &str);

    /// Why the run fails, before what it made is removed.
    fn failed(&self, failure: &Failure);

    /// What is done about a failure.
    fn note(&self, text: &str);

    /// What is being done, in detail; only called where [`wants_details`](Self::wants_details).
    fn detail(&self, text: &str);

    /// Whether details are wanted: making them takes time.
    fn wants_details(&self) -> bool {
        false
    }
}

/// Counters of a running combination.
#[derive(Default)]
pub struct CombineProgress {
    /// Files found in the last backup so far.
    pub found: AtomicU64,
    /// Files that are put together.
    pub files: AtomicU64,
    /// Bytes of them.
    pub bytes: AtomicU64,
}

impl CombineProgress {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

impl fmt::Debug for CombineProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CombineProgress")
            .field("files", &self.files)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}
