//! All paths of a manifest, a share at a time: for whoever must know whether a path is among them.
//!
//! Invariant: a share holds about [`SHARE`] hashes of 16 bytes, however many files there are; for more files the manifest
//! is read once for each share.

use super::error::RepositoryError;
use super::manifest::Manifest;
use crate::failure::Failure;

/// Files of a share, about.
const SHARE: u64 = 2 << 20;

/// The paths of a manifest whose hashes fall into one share.
#[derive(Debug)]
pub(crate) struct PathShare {
    share: u128,
    shares: u128,
    /// Sorted.
    hashes: Vec<u128>,
}

/// In how many shares the files of a manifest are looked at.
pub(crate) fn shares(files: u64) -> u64 {
    files.div_ceil(SHARE).max(1)
}

fn hash(path: &[u8]) -> u128 {
    u128::from_le_bytes(super::container::field(&blake3::hash(path).as_bytes()[..16]))
}

impl PathShare {
    /// Reads a share, counted from 0.
    ///
    /// # Errors
    /// Where the manifest is damaged, or lists a path twice.
    pub(crate) fn of(manifest: &Manifest, share: u64) -> Result<Self, Failure> {
        let shares = shares(manifest.summary.files);
        let mut read = Self { share: share.into(), shares: shares.into(), hashes: Vec::new() };
        manifest.each_file(|file| {
            let hash = hash(&file.path);
            if hash % read.shares == read.share {
                read.hashes.push(hash);
            }
            Ok(())
        })?;
        read.hashes.sort_unstable();
        let Some(twice) = read.hashes.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]) else {
            return Ok(read);
        };
        let mut shown = String::new();
        manifest.each_file(|file| {
            if hash(&file.path) == twice {
                shown = file.path.escape_ascii().to_string();
            }
            Ok(())
        })?;
        let what = format!("file \"{shown}\" comes twice");
        Err(RepositoryError::damaged(manifest.object().name(), what).into())
    }

    /// Whether the manifest lists a path; `None` where another share knows.
    pub(crate) fn has(&self, path: &[u8]) -> Option<bool> {
        let hash = hash(path);
        (hash % self.shares == self.share).then(|| self.hashes.binary_search(&hash).is_ok())
    }

    /// Reads all shares, to find out whether a path comes twice.
    pub(crate) fn check(manifest: &Manifest) -> Result<(), Failure> {
        (0..shares(manifest.summary.files)).try_for_each(|share| Self::of(manifest, share).map(drop))
    }
}
