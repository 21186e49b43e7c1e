//! A data directory as the source: walked once, read by several threads past the page cache, straight into the buffers
//! that the lanes take.
//!
//! ```text
//! walker ─► works (a large file, or small ones that share a frame) ─► reader 0..N, a disk each ─► lane 0..N
//! ```
//! What is copied and what is not, and what becomes of files that grow, shrink or vanish meanwhile, is what
//! `basebackup.c` does. Memory is the pool, the queue of works, one folder's listing, and an entry a folder.

mod access;
mod changed;
mod numbers;
mod open_file;
mod owners;
mod pace;
mod pages;
mod reader;
mod rules;
mod walk;

pub(crate) use access::ReadAccess;
pub(crate) use numbers::Numbers;
pub(crate) use owners::Owners;
pub(crate) use pace::Pace;
pub(crate) use reader::{Reader, Reading};
pub(crate) use rules::Rules;
pub(crate) use walk::{FOUND_QUEUE, Walker, Work, tablespaces};
