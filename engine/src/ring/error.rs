//! Why a disk could not be opened or an I/O mode not be used.

use super::mode::IoMode;
use std::io;
use std::path::PathBuf;

/// A failure to choose or open a way to the disk. Failures of single operations come with their completion.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The kernel gives no usable ring.
    #[error("io_uring: {reason}\nHINT: use --io=threads, which needs no ring.")]
    NoRing {
        /// What is missing or who forbids it.
        reason: String,
    },
    /// The mode that was asked for does not work in the target directory.
    #[error("--io={mode} does not work in {}: {reason}\nHINT: {hint}", directory.display())]
    Refused {
        /// The mode asked for.
        mode: IoMode,
        /// Where it was tried.
        directory: PathBuf,
        /// What went wrong.
        reason: String,
        /// What to use instead.
        hint: &'static str,
    },
    /// No file can be created in the target directory at all.
    #[error(
        "{}: cannot create a scratch file to probe I/O: {source}\n\
         HINT: check that the directory exists, is writable and has free space.",
        directory.display()
    )]
    Scratch {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk was asked for with sizes that cannot work.
    #[error("cannot open a disk with {what} {found}, expected {expected}")]
    Sizes {
        /// Which size.
        what: &'static str,
        /// Its value.
        found: usize,
        /// What it should have been.
        expected: String,
    },
    /// The threads, queues or wake-up file of a disk could not be made.
    #[error(
        "cannot set up disk I/O: {what}: {source}\nHINT: check the limits on threads and open files (ulimit -u, ulimit -n)."
    )]
    Setup {
        /// What could not be made.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}
