//! Checks page checksums of relation files as their bytes pass, in pieces of any size.
//!
//! Holds at most one page. Skips what PostgreSQL skips: new pages, pages changed since the backup began
//! (WAL replay writes those anew), and files that have no page checksums.

use std::fmt;

use pgstrata_protocol::names::RelationFile;
use pgstrata_protocol::page::{PAGE_SIZE, check_page};
use pgstrata_protocol::{BlockNumber, Lsn};

/// What is to be checked in a run.
#[derive(Clone, Copy, Debug)]
pub struct PageChecks {
    /// Where the backup began; pages at or past it are left to WAL replay.
    pub backup_start: Lsn,
}

impl PageChecks {
    /// A checker for the file at `path` (as the manifest names it), if its pages carry checksums.
    #[must_use]
    pub fn checker(&self, path: &[u8]) -> Option<PageChecker> {
        let file = RelationFile::parse(path)?;
        Some(PageChecker { next: file.first_block(), checks: *self, part: Vec::new() })
    }

    /// Checks a whole page.
    pub(super) fn check(&self, block: BlockNumber, page: &[u8], bad: &mut impl FnMut(BadPage)) {
        let page: &[u8; PAGE_SIZE] = page.try_into().expect("a whole page");
        if let Err(mismatch) = check_page(page, block, self.backup_start) {
            bad(BadPage { block, found: mismatch.found, expected: mismatch.expected });
        }
    }
}

/// A page that does not match its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPage {
    /// Its number within the relation fork.
    pub block: BlockNumber,
    /// The checksum in its header.
    pub found: u16,
    /// The checksum of its content.
    pub expected: u16,
}

impl fmt::Display for BadPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "block {}: page checksum found {:#06x}, expected {:#06x}",
            self.block, self.found, self.expected
        )
    }
}

/// Checks one file's pages.
#[derive(Debug)]
pub struct PageChecker {
    next: BlockNumber,
    checks: PageChecks,
    /// The begun page, where pieces do not end at page boundaries.
    part: Vec<u8>,
}

impl PageChecker {
    /// Takes the file's next bytes. A partial page at the file's end is not checked, as on the server.
    pub fn update(&mut self, mut bytes: &[u8], mut bad: impl FnMut(BadPage)) {
        if !self.part.is_empty() {
            let missing = (PAGE_SIZE - self.part.len()).min(bytes.len());
            self.part.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.part.len() < PAGE_SIZE {
                return;
            }
            let page = std::mem::take(&mut self.part);
            self.check(&page, &mut bad);
            self.part = page;
            self.part.clear();
        }
        let pages = bytes.chunks_exact(PAGE_SIZE);
        self.part.extend_from_slice(pages.remainder());
        for page in pages {
            self.check(page, &mut bad);
        }
    }

    fn check(&mut self, page: &[u8], bad: &mut impl FnMut(BadPage)) {
        let block = self.next;
        self.next = BlockNumber(block.0.wrapping_add(1));
        self.checks.check(block, page, bad);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstrata_protocol::page::page_checksum;

    /// Pages `first..` with content and right checksums.
    fn relation(first: u32, pages: u32) -> Vec<u8> {
        let mut file = Vec::new();
        for block in first..first + pages {
            let mut page = [0u8; PAGE_SIZE];
            page[14..16].copy_from_slice(&8000u16.to_le_bytes()); // pd_upper: not a new page
            page[100..104].copy_from_slice(&block.to_le_bytes());
            let checksum = page_checksum(&page, BlockNumber(block));
            page[8..10].copy_from_slice(&checksum.to_le_bytes());
            file.extend_from_slice(&page);
        }
        file
    }

    fn bad_blocks(path: &str, file: &[u8], piece: usize) -> Vec<u32> {
        let mut checker =
            PageChecks { backup_start: Lsn(1000) }.checker(path.as_bytes()).expect("a relation");
        let mut found = Vec::new();
        for piece in file.chunks(piece) {
            checker.update(piece, |page| found.push(page.block.0));
        }
        found
    }

    #[test]
    fn finds_bad_pages_however_the_file_is_cut() {
        let mut file = relation(131_072, 5);
        file[3 * PAGE_SIZE + 5000] ^= 1;
        for piece in [1, 511, 8191, 8192, 8193, 3 * 8192, 100_000] {
            assert_eq!(bad_blocks("base/5/16384.1", &file, piece), [131_075], "pieces of {piece}");
            // The same bytes as another segment: every block number is wrong.
            assert_eq!(bad_blocks("base/5/16384", &file, piece).len(), 5);
        }
    }

    #[test]
    fn only_relations_are_checked() {
        let checks = PageChecks { backup_start: Lsn(1) };
        for path in ["base/5/PG_VERSION", "global/pg_control", "base/5/pg_filenode.map", "postgresql.conf"] {
            assert!(checks.checker(path.as_bytes()).is_none(), "{path}");
        }
    }
}
