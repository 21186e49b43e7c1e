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
    /// A share, counted from 0, for whoever reads the manifest anyway: every path is to be handed in.
    pub(crate) fn begin(manifest: &Manifest, share: u64) -> Self {
        let shares = shares(manifest.summary.files);
        Self { share: share.into(), shares: shares.into(), hashes: Vec::new() }
    }

    /// Takes a path that belongs here.
    pub(crate) fn add(&mut self, path: &[u8]) {
        let hash = hash(path);
        if hash % self.shares == self.share {
            self.hashes.push(hash);
        }
    }

    /// Reads a share, counted from 0.
    ///
    /// # Errors
    /// Where the manifest is damaged, or lists a path twice.
    pub(crate) fn of(manifest: &Manifest, share: u64) -> Result<Self, Failure> {
        let mut read = Self::begin(manifest, share);
        manifest.each_file(|file| {
            read.add(&file.path);
            Ok(())
        })?;
        read.finish(manifest)
    }

    /// All paths were handed in.
    ///
    /// # Errors
    /// Where the manifest lists one twice.
    pub(crate) fn finish(mut self, manifest: &Manifest) -> Result<Self, Failure> {
        self.hashes.sort_unstable();
        let Some(twice) = self.hashes.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]) else {
            return Ok(self);
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

    /// Reads the shares behind the first, to find out whether a path comes twice.
    pub(crate) fn check_others(manifest: &Manifest) -> Result<(), Failure> {
        (1..shares(manifest.summary.files)).try_for_each(|share| Self::of(manifest, share).map(drop))
    }
}
