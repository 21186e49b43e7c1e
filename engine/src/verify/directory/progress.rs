//! A running verification as others may watch it: counters that its threads set and anyone may read.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::problem::Problem;

/// What a verification is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyPhase {
    /// The manifest is read and checked against its own checksum.
    Manifest,
    /// The files on disk are compared with the manifest, by path and size.
    Presence,
    /// Contents are read.
    Checksums,
    /// WAL is read.
    Wal,
    /// All is done.
    Finished,
}

impl VerifyPhase {
    const ALL: [VerifyPhase; 5] = [
        VerifyPhase::Manifest,
        VerifyPhase::Presence,
        VerifyPhase::Checksums,
        VerifyPhase::Wal,
        VerifyPhase::Finished,
    ];
}

/// The counters, and where problems are told as they are found.
pub struct VerifyProgress {
    phase: AtomicU8,
    /// Files that the manifest lists; known once the manifest is read.
    pub total_files: AtomicU64,
    /// Bytes whose checksums are to be computed; known once the manifest is read.
    pub total_bytes: AtomicU64,
    /// Files on disk that were looked at.
    pub files_seen: AtomicU64,
    /// Files whose checksums have been compared.
    pub files: AtomicU64,
    /// Bytes read and summed up.
    pub bytes: AtomicU64,
    /// Bytes of WAL read and checked.
    pub wal_bytes: AtomicU64,
    tell: Box<dyn Fn(&Problem) + Send + Sync>,
}

impl VerifyProgress {
    /// Counters at zero. `tell` is called for each problem, from any thread but never from two at a time.
    pub fn new(tell: impl Fn(&Problem) + Send + Sync + 'static) -> Self {
        Self {
            phase: AtomicU8::new(VerifyPhase::Manifest as u8),
            total_files: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            files_seen: AtomicU64::new(0),
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            wal_bytes: AtomicU64::new(0),
            tell: Box::new(tell),
        }
    }

    /// What the verification is doing.
    #[must_use]
    pub fn phase(&self) -> VerifyPhase {
        VerifyPhase::ALL[usize::from(self.phase.load(Ordering::Relaxed)).min(VerifyPhase::ALL.len() - 1)]
    }

    pub(super) fn enter(&self, phase: VerifyPhase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub(super) fn teller(&self) -> &(dyn Fn(&Problem) + Send + Sync) {
        &*self.tell
    }
}

impl fmt::Debug for VerifyProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyProgress")
            .field("phase", &self.phase())
            .field("files", &self.files)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}
