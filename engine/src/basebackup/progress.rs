//! A running backup as others may watch it: counters that its threads set and anyone may read.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What a backup is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connecting and preparing.
    Starting,
    /// The server performs the checkpoint that a backup begins with.
    WaitingForCheckpoint,
    /// Files arrive.
    Receiving,
    /// All has arrived; the rest is being written and synced.
    Settling,
    /// Waiting for the last WAL.
    WaitingForWal,
    /// Manifest, folders, renames.
    Finishing,
}

impl Phase {
    const ALL: [Phase; 6] = [
        Phase::Starting,
        Phase::WaitingForCheckpoint,
        Phase::Receiving,
        Phase::Settling,
        Phase::WaitingForWal,
        Phase::Finishing,
    ];
}

/// The counters.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    /// Bytes of archives received.
    pub bytes: AtomicU64,
    /// The server's estimate of the whole in bytes; 0 where it was not asked.
    pub estimate: AtomicU64,
    /// Files received.
    pub files: AtomicU64,
    /// Tablespaces received, the base directory included.
    pub tablespaces_done: AtomicU32,
    /// Tablespaces in all.
    pub tablespaces: AtomicU32,
    /// Bytes of WAL received.
    pub wal_bytes: AtomicU64,
    file: Mutex<Vec<u8>>,
}

impl Progress {
    /// What the backup is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Relaxed)).min(Phase::ALL.len() - 1)]
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// The file that arrives, by its path in the manifest.
    #[must_use]
    pub fn file(&self) -> Vec<u8> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn begin_file(&self, path: &[u8]) {
        self.files.fetch_add(1, Ordering::Relaxed);
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.clear();
        file.extend_from_slice(path);
    }
}

/// Words from a run while it goes on.
pub trait Observer: Send + Sync {
    /// Something is not as it should be, but the run goes on. Server notices come in their own form.
    fn warning(&self, text: &str);
    /// What is being done, for `--verbose`.
    fn note(&self, text: &str);
    /// Another phase has begun.
    fn entered(&self, _phase: Phase) {}
}
