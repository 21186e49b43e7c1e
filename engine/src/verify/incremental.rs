//! Checks incremental files as their bytes pass: their structure, and with it their pages by the numbers that they have.

use pgstrata_protocol::BlockNumber;
use pgstrata_protocol::incremental::{Geometry, IncrementalDecoder, IncrementalError, IncrementalEvent};
use pgstrata_protocol::names::RelationFile;
use pgstrata_protocol::page::PAGE_SIZE;

use super::pages::{BadPage, PageChecks};

/// Checks one file.
#[derive(Debug)]
pub struct IncrementalChecker {
    decoder: IncrementalDecoder,
    /// The first page of the segment within its relation fork.
    first: u32,
    pages: Option<PageChecks>,
    /// The begun page, where pieces do not end at page boundaries.
    part: Vec<u8>,
}

impl IncrementalChecker {
    /// A checker for the file of `length` bytes at `path` (as the manifest names it), if it is an incremental file.
    #[must_use]
    pub fn new(path: &[u8], length: u64, geometry: Geometry, pages: Option<PageChecks>) -> Option<Self> {
        let file = RelationFile::parse_incremental(path)?;
        let first = file.segment.wrapping_mul(geometry.segment_blocks());
        // Other page sizes have no checksums that can be computed here.
        let pages = pages.filter(|_| geometry.block_size() as usize == PAGE_SIZE);
        Some(Self { decoder: IncrementalDecoder::new(geometry, length), first, pages, part: Vec::new() })
    }

    /// Takes the file's next bytes.
    ///
    /// # Errors
    /// What is wrong with its structure.
    pub fn update(&mut self, mut bytes: &[u8], mut bad: impl FnMut(BadPage)) -> Result<(), IncrementalError> {
        while let Some(event) = self.decoder.next(&mut bytes)? {
            let (Some(pages), IncrementalEvent::Block { number, bytes, first, last }) = (&self.pages, event)
            else {
                continue;
            };
            let block = BlockNumber(self.first.wrapping_add(number));
            if first && last {
                pages.check(block, bytes, &mut bad);
                continue;
            }
            self.part.extend_from_slice(bytes);
            if last {
                pages.check(block, &self.part, &mut bad);
                self.part.clear();
            }
        }
        Ok(())
    }

    /// Takes note that the file has ended.
    ///
    /// # Errors
    /// [`IncrementalError::Cut`] where it may not end yet.
    pub fn finish(&self) -> Result<(), IncrementalError> {
        self.decoder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::PageChecks;
    use pgstrata_protocol::Lsn;
    use pgstrata_protocol::incremental::MAGIC;
    use pgstrata_protocol::page::page_checksum;

    /// An incremental file of these blocks of the second segment, with content and right checksums.
    fn file(blocks: &[u32]) -> Vec<u8> {
        let count = u32::try_from(blocks.len()).expect("few");
        let mut file: Vec<u8> =
            [MAGIC, count, 9].iter().chain(blocks).flat_map(|number| number.to_le_bytes()).collect();
        file.resize(PAGE_SIZE, 0);
        for block in blocks {
            let mut page = [0u8; PAGE_SIZE];
            page[14..16].copy_from_slice(&8000u16.to_le_bytes()); // pd_upper: not a new page
            let checksum = page_checksum(&page, BlockNumber(131_072 + block));
            page[8..10].copy_from_slice(&checksum.to_le_bytes());
            file.extend_from_slice(&page);
        }
        file
    }

    fn check(path: &str, file: &[u8], piece: usize, pages: bool) -> Result<Vec<u32>, IncrementalError> {
        let pages = pages.then_some(PageChecks { backup_start: Lsn(1000) });
        let geometry = Geometry::new(8192, 1 << 30).expect("what everyone builds");
        let checker = IncrementalChecker::new(path.as_bytes(), file.len() as u64, geometry, pages);
        let (mut checker, mut found) = (checker.expect("an incremental file"), Vec::new());
        for piece in file.chunks(piece) {
            checker.update(piece, |page| found.push(page.block.0))?;
        }
        checker.finish()?;
        Ok(found)
    }

    #[test]
    fn pages_are_checked_by_their_own_numbers() {
        let right = file(&[3, 70, 131_071]);
        let mut damaged = right.clone();
        damaged[2 * PAGE_SIZE + 5000] ^= 1;
        for piece in [1, 511, 8191, 8192, 8193, 3 * 8192, 100_000] {
            assert_eq!(check("base/5/INCREMENTAL.16384.1", &right, piece, true), Ok(vec![]));
            assert_eq!(check("base/5/INCREMENTAL.16384.1", &damaged, piece, true), Ok(vec![131_142]));
            assert_eq!(check("base/5/INCREMENTAL.16384.1", &damaged, piece, false), Ok(vec![]));
            // Of another segment every number is wrong.
            assert_eq!(check("base/5/INCREMENTAL.16384", &right, piece, true).map(|bad| bad.len()), Ok(3));
        }
    }

    #[test]
    fn structure_is_checked_without_pages() {
        let mut damaged = file(&[3, 70]);
        damaged[16..20].copy_from_slice(&3u32.to_le_bytes());
        let expected = Err(IncrementalError::Order { entry: 1, found: 3, previous: 3 });
        assert_eq!(check("global/INCREMENTAL.1262", &damaged, 100, false), expected);
    }

    #[test]
    fn only_incremental_files_are_checked() {
        let geometry = Geometry::new(8192, 1 << 30).expect("what everyone builds");
        for path in ["base/5/16384", "base/5/INCREMENTAL.x", "INCREMENTAL.16384", "pg_wal/INCREMENTAL.1"] {
            assert!(IncrementalChecker::new(path.as_bytes(), 12, geometry, None).is_none(), "{path}");
        }
    }
}
