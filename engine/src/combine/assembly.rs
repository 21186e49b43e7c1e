//! A file that is being made: of what, to where, and what is known of its parts.
//!
//! Parts are independent of each other, so that any worker can take one: blocks of the file never overlap, and CRCs of
//! parts are joined by arithmetic. A SHA runs over a file from its first byte to its last, so that file is one part.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pgstrata_protocol::BlockNumber;
use pgstrata_protocol::manifest::{Checksum, ChecksumAlgorithm, ChecksumValue};

use super::plan::{Place, Plan, Stretch};
use super::source_file::SourceFile;
use crate::pipeline::Output;

/// Bytes of a part. A multiple of the buffers' size.
const PART: u64 = 32 << 20;

/// What a file is made of.
#[derive(Debug)]
pub(super) enum Content {
    /// One file as it stands.
    Whole(SourceFile),
    /// Blocks of several.
    Blocks {
        plan: Plan,
        /// Newest first.
        sources: Vec<SourceFile>,
        block_size: u32,
        /// Its first block's number within the relation, where pages are checked.
        first_block: Option<BlockNumber>,
    },
}

/// Where it goes.
#[derive(Debug)]
pub(super) enum Destination {
    /// To a writer.
    Writer(Arc<Output>),
    /// Into a file that ranges are moved into.
    File(File),
    /// It is in place: a link or a clone. Its data is read only for its checksum.
    InPlace(File),
}

/// A range of the file that lies in one source.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    pub(super) source: &'a SourceFile,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) length: u64,
}

/// One file under way.
#[derive(Debug)]
pub(super) struct Assembly {
    /// Its path as manifests name it.
    pub(super) path: Vec<u8>,
    pub(super) content: Content,
    /// Its length in bytes.
    pub(super) length: u64,
    pub(super) destination: Destination,
    pub(super) sums: Sums,
    next: AtomicUsize,
    left: AtomicUsize,
    parts: usize,
    part_size: u64,
    part_sums: Mutex<Vec<Vec<ChecksumValue>>>,
}

/// What a file's bytes are summed up for.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    /// What the source's manifest says, to be compared.
    pub(super) expected: Option<(ChecksumAlgorithm, ChecksumValue)>,
    /// What goes into the new manifest without being computed.
    pub(super) reused: Option<(ChecksumAlgorithm, ChecksumValue)>,
    /// What is to be computed for the new manifest.
    pub(super) wanted: Option<ChecksumAlgorithm>,
}

impl Sums {
    /// The different algorithms to compute.
    fn algorithms(&self) -> impl Iterator<Item = ChecksumAlgorithm> + '_ {
        let expected = self.expected.map(|(algorithm, _)| algorithm);
        expected.into_iter().chain(self.wanted.filter(|wanted| Some(*wanted) != expected))
    }

    /// States before the first byte.
    pub(super) fn begin(&self) -> Vec<Checksum> {
        self.algorithms().map(Checksum::new).collect()
    }

    fn find(&self, computed: &[ChecksumValue], algorithm: ChecksumAlgorithm) -> Option<ChecksumValue> {
        self.algorithms().zip(computed).find(|(of, _)| *of == algorithm).map(|(_, value)| *value)
    }
}

/// What a finished file sums up to.
#[derive(Debug)]
pub(super) struct SummedUp {
    /// What the bytes that were read sum up to, where something else was expected.
    pub(super) differs: Option<(ChecksumAlgorithm, ChecksumValue, ChecksumValue)>,
    /// For the new manifest.
    pub(super) checksum: Option<(ChecksumAlgorithm, ChecksumValue)>,
}

impl Assembly {
    pub(super) fn new(
        path: Vec<u8>,
        content: Content,
        length: u64,
        destination: Destination,
        sums: Sums,
    ) -> Self {
        let is_cut = sums.algorithms().all(|algorithm| algorithm == ChecksumAlgorithm::Crc32c);
        let part_size = if is_cut { PART } else { u64::MAX };
        let parts = usize::try_from(length.div_ceil(part_size)).unwrap_or(usize::MAX).max(1);
        Self {
            path,
            content,
            length,
            destination,
            sums,
            next: AtomicUsize::new(0),
            left: AtomicUsize::new(parts),
            parts,
            part_size,
            part_sums: Mutex::new(vec![Vec::new(); parts]),
        }
    }

    /// Whether it has several parts.
    pub(super) fn is_cut(&self) -> bool {
        self.parts > 1
    }

    /// A part that nobody has taken yet.
    pub(super) fn claim_part(&self) -> Option<usize> {
        let part = self.next.fetch_add(1, Ordering::Relaxed);
        (part < self.parts).then_some(part)
    }

    /// Where a part begins and ends, in bytes.
    pub(super) fn range(&self, part: usize) -> (u64, u64) {
        let begin = (part as u64).saturating_mul(self.part_size);
        (begin, self.length.min(begin.saturating_add(self.part_size)))
    }

    /// Takes the sums of a part. With the last one, says what the file sums up to.
    pub(super) fn complete(&self, part: usize, sums: Vec<ChecksumValue>) -> Option<SummedUp> {
        let mut part_sums = self.part_sums.lock().unwrap_or_else(PoisonError::into_inner);
        part_sums[part] = sums;
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return None;
        }
        let joined = self.join(&part_sums);
        let differs = self.sums.expected.and_then(|(algorithm, expected)| {
            let found = self.sums.find(&joined, algorithm)?;
            (found != expected).then_some((algorithm, found, expected))
        });
        let computed = || {
            let wanted = self.sums.wanted?;
            Some((wanted, self.sums.find(&joined, wanted)?))
        };
        Some(SummedUp { differs, checksum: self.sums.reused.or_else(computed) })
    }

    fn join(&self, parts: &[Vec<ChecksumValue>]) -> Vec<ChecksumValue> {
        let crc = |value: &ChecksumValue| value.as_bytes().try_into().map_or(0, u32::from_le_bytes);
        let Some((first, others)) = parts.split_first() else { return Vec::new() };
        if others.is_empty() {
            return first.clone();
        }
        // Only CRCs come in parts.
        let join = |(place, first): (usize, &ChecksumValue)| {
            let joined = others.iter().enumerate().fold(crc(first), |joined, (number, sums)| {
                let (begin, end) = self.range(number + 1);
                let length = usize::try_from(end - begin).unwrap_or(usize::MAX);
                crc32c::crc32c_combine(joined, sums.get(place).map_or(0, crc), length)
            });
            ChecksumValue::new(&joined.to_le_bytes())
        };
        first.iter().enumerate().filter_map(join).collect()
    }

    /// The sources that give something.
    pub(super) fn sources(&self) -> &[SourceFile] {
        match &self.content {
            Content::Whole(source) => std::slice::from_ref(source),
            Content::Blocks { sources, .. } => sources,
        }
    }

    /// What lies between two offsets, zeros left out.
    pub(super) fn pieces(&self, begin: u64, end: u64) -> Vec<Piece<'_>> {
        match &self.content {
            Content::Whole(source) => {
                vec![Piece { source, from: begin, to: begin, length: end - begin }]
            }
            Content::Blocks { plan, sources, block_size, .. } => {
                let size = u64::from(*block_size);
                let piece = |Stretch { block, count, from }: Stretch| {
                    let Place { source, at } = from?;
                    let source = sources.get(usize::from(source))?;
                    Some(Piece {
                        source,
                        from: source.header + u64::from(at) * size,
                        to: u64::from(block) * size,
                        length: u64::from(count) * size,
                    })
                };
                plan.within(number(begin / size), number((end - begin) / size)).filter_map(piece).collect()
            }
        }
    }
}

/// A number of blocks, of which a file has at most `u32::MAX`.
fn number(blocks: u64) -> u32 {
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn assembly(length: u64, sums: Sums) -> Assembly {
        let file = || tempfile::tempfile().expect("a temporary file");
        let source = SourceFile {
            file: file().into(),
            path: "x".into(),
            backup: 0,
            header: 0,
            length,
            unshareable: AtomicBool::new(false),
        };
        Assembly::new(b"x".to_vec(), Content::Whole(source), length, Destination::InPlace(file()), sums)
    }

    #[test]
    fn parts_cover_a_file_and_their_sums_join() {
        let length = usize::try_from(PART * 2 + 12345).expect("small");
        let content: Vec<u8> = (0..=250u8).cycle().take(length).collect();
        let whole = |algorithm| {
            let mut sum = Checksum::new(algorithm);
            sum.update(&content);
            (algorithm, sum.finish())
        };
        let crc = whole(ChecksumAlgorithm::Crc32c);
        let wrong = (ChecksumAlgorithm::Crc32c, Checksum::new(ChecksumAlgorithm::Crc32c).finish());
        for (sums, parts, differs, checksum) in [
            (Sums { expected: Some(crc), reused: Some(crc), wanted: None }, 3, false, Some(crc)),
            (Sums { wanted: Some(crc.0), ..Sums::default() }, 3, false, Some(crc)),
            (Sums { expected: Some(wrong), reused: Some(wrong), wanted: None }, 3, true, Some(wrong)),
            (Sums::default(), 3, false, None),
            (
                Sums { expected: Some(crc), reused: None, wanted: Some(ChecksumAlgorithm::Sha256) },
                1,
                false,
                Some(whole(ChecksumAlgorithm::Sha256)),
            ),
        ] {
            let assembly = assembly(length as u64, sums);
            let claimed: Vec<_> = std::iter::from_fn(|| assembly.claim_part()).collect();
            assert_eq!(claimed, (0..parts).collect::<Vec<_>>());
            let mut end = None;
            for part in claimed.into_iter().rev() {
                assert!(end.is_none());
                let (begin, ends) = assembly.range(part);
                let at = |offset: u64| usize::try_from(offset).expect("small");
                let mut sums = assembly.sums.begin();
                sums.iter_mut().for_each(|sum| sum.update(&content[at(begin)..at(ends)]));
                end = assembly.complete(part, sums.into_iter().map(Checksum::finish).collect());
            }
            let end = end.expect("the last part ends it");
            assert_eq!(end.differs.is_some(), differs);
            assert_eq!(end.checksum, checksum);
        }
    }

    #[test]
    fn an_empty_file_has_one_part() {
        let assembly = assembly(0, Sums { wanted: Some(ChecksumAlgorithm::Crc32c), ..Sums::default() });
        assert_eq!((assembly.claim_part(), assembly.claim_part()), (Some(0), None));
        assert_eq!(assembly.range(0), (0, 0));
    }
}
