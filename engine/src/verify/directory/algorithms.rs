//! Which checksum each file of a manifest has, for members that come in another order than the manifest's.
//!
//! Every program gives all files of a manifest the same algorithm. A manifest may mix them, though: files that have
//! another than the first are remembered, up to a bound.

use std::collections::HashMap;

use pgstrata_protocol::manifest::ChecksumAlgorithm;

use super::tally::Keys;

/// The most files with another algorithm than the first file's.
const MOST_OTHERS: usize = 1 << 20;

/// The algorithms of a manifest; `None` for files without a checksum.
#[derive(Debug, Default)]
pub(super) struct Algorithms {
    usual: Option<Option<ChecksumAlgorithm>>,
    others: HashMap<u128, Option<ChecksumAlgorithm>>,
}

/// More files differ from the first than can be remembered.
#[derive(Debug)]
pub(super) struct TooMixed;

impl Algorithms {
    /// Notes a file of the manifest.
    pub(super) fn note(
        &mut self,
        keys: &Keys,
        path: &[u8],
        algorithm: Option<ChecksumAlgorithm>,
    ) -> Result<(), TooMixed> {
        if *self.usual.get_or_insert(algorithm) == algorithm {
            return Ok(());
        }
        if self.others.len() >= MOST_OTHERS {
            return Err(TooMixed);
        }
        self.others.insert(keys.fingerprint(path).identity, algorithm);
        Ok(())
    }

    /// The algorithm for a path. One that the manifest does not list gets the usual one.
    pub(super) fn of(&self, keys: &Keys, path: &[u8]) -> Option<ChecksumAlgorithm> {
        let other = match self.others.is_empty() {
            true => None,
            false => self.others.get(&keys.fingerprint(path).identity).copied(),
        };
        other.or(self.usual).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_algorithms_are_told_apart() {
        let (keys, mut algorithms) = (Keys::default(), Algorithms::default());
        let files = [
            ("a", Some(ChecksumAlgorithm::Crc32c)),
            ("b", None),
            ("c", Some(ChecksumAlgorithm::Sha512)),
            ("d", Some(ChecksumAlgorithm::Crc32c)),
        ];
        for (path, algorithm) in files {
            algorithms.note(&keys, path.as_bytes(), algorithm).expect("few");
        }
        for (path, algorithm) in files {
            assert_eq!(algorithms.of(&keys, path.as_bytes()), algorithm, "{path}");
        }
        assert_eq!(algorithms.of(&keys, b"e"), Some(ChecksumAlgorithm::Crc32c));
    }
}
