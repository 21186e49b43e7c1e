//! Cuts the manifest's files into pieces of work.
//!
//! A file with a CRC is cut into parts that any worker can take, so that a large one does not keep a single thread
//! busy at the end: the parts' sums are joined by arithmetic. A SHA runs over a file from its first byte to its last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crossbeam::channel::Sender;
use pgstrata_protocol::manifest::{ChecksumAlgorithm, ChecksumValue, ManifestFile};

use super::ManifestFacts;
use super::run::Run;
use crate::failure::Failure;

/// Bytes of a part, unless a file would have more than [`MOST_PARTS`]. A multiple of the buffers' size.
const PART: u64 = 64 << 20;
/// Bounds what is remembered of a file, however large it claims to be.
const MOST_PARTS: u64 = 4096;

/// Pieces that are handed over together. One by one, waking a worker would cost more than a small file.
pub(super) type Hand = Vec<Piece>;
/// The most pieces of a hand.
const HAND: usize = 64;
/// The bytes that make a hand full: workers are to end at about the same time.
const HAND_BYTES: u64 = 4 << 20;

/// A file, or a part of one, whose checksum is to be computed.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) file: Arc<Subject>,
    pub(super) start: u64,
    pub(super) end: u64,
    /// Which part of the file this is.
    pub(super) part: usize,
}

/// A file whose checksum is to be compared.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) path: Vec<u8>,
    pub(super) size: u64,
    pub(super) algorithm: ChecksumAlgorithm,
    pub(super) expected: ChecksumValue,
    /// Bytes in each part but the last.
    part_size: u64,
    /// The sums of the parts that are done; empty where the file is one piece.
    sums: Vec<AtomicU32>,
    left: AtomicUsize,
    failed: AtomicBool,
}

/// Reads the manifest and hands out what is to be read, until all is dealt or the workers are gone.
pub(super) fn deal(run: &Run<'_>, facts: &ManifestFacts, workers: &Sender<Hand>) -> Result<(), Failure> {
    let (mut hand, mut bytes) = (Hand::new(), 0);
    run.read_manifest_again(facts, &mut |file: ManifestFile| {
        let Some(subject) = Subject::of(file) else { return Ok(()) };
        if run.is_suppressed(&subject.path) {
            return Ok(());
        }
        for piece in subject.pieces() {
            bytes += piece.end - piece.start;
            hand.push(piece);
            if hand.len() >= HAND || bytes >= HAND_BYTES {
                workers.send(std::mem::take(&mut hand)).map_err(|_| Failure::Stopped)?;
                bytes = 0;
            }
        }
        Ok(())
    })?;
    workers.send(hand).map_err(|_| Failure::Stopped)
}

impl Subject {
    /// None where the manifest has no checksum for the file.
    fn of(file: ManifestFile) -> Option<Arc<Self>> {
        let (algorithm, expected) = file.checksum?;
        let part_size = match algorithm {
            ChecksumAlgorithm::Crc32c => PART.max(file.size.div_ceil(MOST_PARTS).next_multiple_of(PART)),
            _ => u64::MAX,
        };
        let parts = usize::try_from(file.size.div_ceil(part_size).max(1)).ok()?;
        Some(Arc::new(Self {
            path: file.path,
            size: file.size,
            algorithm,
            expected,
            part_size,
            sums: (0..parts).filter(|_| parts > 1).map(|_| AtomicU32::new(0)).collect(),
            left: AtomicUsize::new(parts),
            failed: AtomicBool::new(false),
        }))
    }

    fn pieces(self: Arc<Self>) -> impl Iterator<Item = Piece> {
        (0..self.sums.len().max(1)).map(move |part| {
            let start = part as u64 * self.part_size;
            let end = self.size.min(start.saturating_add(self.part_size));
            Piece { file: Arc::clone(&self), start, end, part }
        })
    }

    /// Notes that a part could not be read; true for the first one.
    pub(super) fn fail(&self) -> bool {
        !self.failed.swap(true, Ordering::Relaxed)
    }

    /// Whether a part could not be read, so that the others need not be.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Takes the checksum of a part. Returns the checksum of the whole file with its last part.
    pub(super) fn complete(&self, part: usize, value: ChecksumValue) -> Option<ChecksumValue> {
        if self.sums.is_empty() {
            return Some(value);
        }
        // Only CRCs come in parts; their bytes are little-endian, as manifests have them.
        let sum = u32::from_le_bytes(value.as_bytes().try_into().ok()?);
        self.sums[part].store(sum, Ordering::Relaxed);
        // The last one to come sees what all others stored.
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 || self.has_failed() {
            return None;
        }
        let joined = self.sums.iter().enumerate().skip(1).fold(
            self.sums[0].load(Ordering::Relaxed),
            |joined, (part, sum)| {
                let length = (self.size - part as u64 * self.part_size).min(self.part_size);
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                crc32c::crc32c_combine(joined, sum.load(Ordering::Relaxed), length)
            },
        );
        ChecksumValue::new(&joined.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstrata_protocol::manifest::{Checksum, ModifiedTime};

    fn subject(size: u64, algorithm: ChecksumAlgorithm) -> Arc<Subject> {
        let expected = Checksum::new(algorithm).finish();
        let checksum = Some((algorithm, expected));
        let file = ManifestFile { path: b"base/5/1".to_vec(), size, modified: ModifiedTime(0), checksum };
        Subject::of(file).expect("it has a checksum")
    }

    #[test]
    fn parts_cover_a_file_exactly() {
        let tib = 1 << 40;
        for (size, parts) in [
            (0, 1),
            (1, 1),
            (PART, 1),
            (PART + 1, 2),
            (1 << 30, 16),
            (256 << 30, 4096),
            ((256 << 30) + 1, 2049),
            (16 * tib, 4096),
            (u64::MAX - 1, 4096),
        ] {
            let pieces: Vec<Piece> = subject(size, ChecksumAlgorithm::Crc32c).pieces().collect();
            assert_eq!(pieces.len(), parts, "{size}");
            assert_eq!(pieces[0].start, 0);
            assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start), "{size}");
            assert_eq!(pieces[pieces.len() - 1].end, size);
            assert_eq!(subject(size, ChecksumAlgorithm::Sha256).pieces().count(), 1);
        }
    }

    #[test]
    fn joined_parts_are_the_whole() {
        let length = usize::try_from(PART * 2 + 12345).expect("small");
        let rows = (0..=250).flat_map(|row: u8| (0..=255).map(move |at| row ^ at));
        let content: Vec<u8> = rows.cycle().take(length).collect();
        let subject = subject(content.len() as u64, ChecksumAlgorithm::Crc32c);
        let mut pieces: Vec<Piece> = Arc::clone(&subject).pieces().collect();
        pieces.reverse();
        let mut joined = None;
        for piece in pieces {
            assert_eq!(joined, None);
            let at = |offset: u64| usize::try_from(offset).expect("small");
            let mut checksum = Checksum::new(ChecksumAlgorithm::Crc32c);
            checksum.update(&content[at(piece.start)..at(piece.end)]);
            joined = subject.complete(piece.part, checksum.finish());
        }
        let mut whole = Checksum::new(ChecksumAlgorithm::Crc32c);
        whole.update(&content);
        assert_eq!(joined, Some(whole.finish()));
    }
}
