//! Compares two sets of files of any size in fixed memory, by sums of keyed hashes.
//!
//! Each side adds up the hashes of its pairs of path and size, in buckets chosen by the path. Sides that agree in
//! all sums have the same files: a disagreement would have to cancel out in two 64-bit sums under keys that are
//! drawn at random for each run, so nobody can choose names that do. Where sides differ, only the buckets that
//! differ need a closer look.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of buckets; a power of two. Ten million files make about 2,400 to a bucket.
const BUCKETS: usize = 4096;

/// The keys of a run. SipHash under a random key, from the standard library.
#[derive(Debug, Default)]
pub(super) struct Keys {
    path: RandomState,
    other_path: RandomState,
    pair: RandomState,
    other_pair: RandomState,
}

/// A path's place and its identity within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// Which bucket.
    pub(super) bucket: usize,
    /// Two paths with the same 128 bits are the same path.
    pub(super) identity: u128,
}

impl Keys {
    /// The fingerprint of a path.
    pub(super) fn fingerprint(&self, path: &[u8]) -> Fingerprint {
        let (one, other) = (self.path.hash_one(path), self.other_path.hash_one(path));
        let bucket = usize::try_from(one % BUCKETS as u64).unwrap_or(0);
        Fingerprint { bucket, identity: u128::from(one) << 64 | u128::from(other) }
    }
}

/// One side.
#[derive(Debug)]
pub(super) struct Tally {
    buckets: Vec<Bucket>,
}

#[derive(Debug, Default)]
struct Bucket {
    count: AtomicU64,
    sum: AtomicU64,
    other_sum: AtomicU64,
}

impl Bucket {
    fn values(&self) -> [u64; 3] {
        [&self.count, &self.sum, &self.other_sum].map(|value| value.load(Ordering::Relaxed))
    }
}

impl Tally {
    /// No files.
    pub(super) fn new() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| Bucket::default()).collect() }
    }

    /// Adds a file. Any number of threads may do so at a time.
    pub(super) fn add(&self, keys: &Keys, path: &[u8], size: u64) {
        self.add_hashes(keys, path, (path, size));
    }

    /// Adds a file with the checksum of its content. A side's files are all added with theirs, or none is.
    pub(super) fn add_content(&self, keys: &Keys, path: &[u8], size: u64, checksum: &[u8]) {
        self.add_hashes(keys, path, (path, size, checksum));
    }

    fn add_hashes(&self, keys: &Keys, path: &[u8], facts: impl Hash + Copy) {
        let bucket = &self.buckets[keys.fingerprint(path).bucket];
        bucket.count.fetch_add(1, Ordering::Relaxed);
        bucket.sum.fetch_add(keys.pair.hash_one(facts), Ordering::Relaxed);
        bucket.other_sum.fetch_add(keys.other_pair.hash_one(facts), Ordering::Relaxed);
    }

    /// The buckets in which this side and `other` differ, in groups; this side has at most `most` files in a
    /// group, unless a single bucket has more.
    pub(super) fn differing(&self, other: &Tally, most: u64) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for (number, (one, other)) in self.buckets.iter().zip(&other.buckets).enumerate() {
            let [count, ..] = one.values();
            if one.values() == other.values() {
                continue;
            }
            match groups.last_mut() {
                Some(group) if count <= room => group.push(number),
                _ => {
                    groups.push(vec![number]);
                    room = most;
                }
            }
            room = room.saturating_sub(count);
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type File<'a> = (&'a str, u64);

    fn tally(keys: &Keys, files: &[File<'_>]) -> Tally {
        let tally = Tally::new();
        for (path, size) in files {
            tally.add(keys, path.as_bytes(), *size);
        }
        tally
    }

    #[test]
    fn a_checksum_counts() {
        let keys = Keys::default();
        let with = |checksum: &[u8]| {
            let tally = Tally::new();
            tally.add_content(&keys, b"a", 1, checksum);
            tally
        };
        assert!(with(b"1234").differing(&with(b"1234"), 10).is_empty());
        assert_eq!(with(b"1234").differing(&with(b"1235"), 10), [[keys.fingerprint(b"a").bucket]]);
        assert!(!with(b"1234").differing(&with(b""), 10).is_empty());
    }

    #[test]
    fn only_equal_sets_are_equal() {
        let keys = Keys::default();
        let rows: [(&[File<'_>], &[File<'_>], bool); 8] = [
            (&[], &[], true),
            (&[("a", 1), ("b", 2)], &[("b", 2), ("a", 1)], true),
            (&[("a", 1)], &[], false),
            (&[("a", 1)], &[("a", 2)], false),
            (&[("a", 1), ("b", 2)], &[("a", 2), ("b", 1)], false),
            (&[("a", 1), ("a", 1)], &[("a", 1), ("b", 1)], false),
            (&[("a", 1), ("a", 1)], &[("a", 1)], false),
            (&[("ab", 1)], &[("a", 1)], false),
        ];
        for (one, other, equal) in rows {
            let differing = tally(&keys, one).differing(&tally(&keys, other), 10);
            assert_eq!(differing.is_empty(), equal, "{one:?} {other:?}");
        }
    }

    #[test]
    fn groups_are_bounded() {
        let keys = Keys::default();
        let names: Vec<String> = (0..5000).map(|number| format!("base/5/{number}")).collect();
        let files: Vec<File<'_>> = names.iter().map(|name| (name.as_str(), 8192)).collect();
        let full = tally(&keys, &files);
        let groups = full.differing(&Tally::new(), 100);
        assert!(groups.len() >= 50, "{}", groups.len());
        let mut seen: Vec<usize> = groups.concat();
        seen.dedup();
        let expected: std::collections::BTreeSet<usize> =
            names.iter().map(|name| keys.fingerprint(name.as_bytes()).bucket).collect();
        assert_eq!(seen, Vec::from_iter(expected));
    }
}
