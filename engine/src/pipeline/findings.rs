//! What the workers found wrong with the data itself. The run goes on, so that all of it is named, and then fails.

use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::verify::{BadPage, FetchedWal};

/// Of more findings than this only the number is kept.
const KEPT: usize = 100;

/// Pages whose checksums are wrong, and the WAL that passed.
#[derive(Debug, Default)]
pub struct Findings {
    count: AtomicU64,
    kept: Mutex<Vec<String>>,
    wal: Mutex<Vec<FetchedWal>>,
}

impl Findings {
    /// Notes one bad page of the file at `path`.
    pub(crate) fn page(&self, path: &Path, page: BadPage) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(format!("{}: {page}", path.display()));
        }
    }

    /// How many bad pages there are so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Keeps the WAL that a lane has read.
    pub(super) fn wal(&self, wal: FetchedWal) {
        self.wal.lock().unwrap_or_else(PoisonError::into_inner).push(wal);
    }

    /// The WAL that came with the files, by the lanes that it passed; the feeder sends all of it past one.
    #[must_use]
    pub fn take_wal(&self) -> Vec<FetchedWal> {
        std::mem::take(&mut *self.wal.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many bad pages there are, and the first of them in words.
    #[must_use]
    pub fn take(&self) -> (u64, Vec<String>) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        (self.count.load(Ordering::Relaxed), kept)
    }
}
