//! Whether a page that a backup reads is intact, by the rules of `sendFile` in `src/backend/backup/basebackup.c`.

use super::{PAGE_SIZE, PageHeader, page_checksum};
use crate::{BlockNumber, Lsn};

/// Why a page passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Allocated but never filled: there is no checksum to check.
    New,
    /// Changed since the backup began: it may be torn, and recovery will rewrite it from WAL.
    TooRecent,
    /// The checksum matches.
    Valid,
}

/// A checksum that does not match.
///
/// On a live cluster this may be a page that was read while it was written: read it again before it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block {block}: page checksum {found:#06x}, expected {expected:#06x}")]
pub struct PageMismatch {
    /// The page's number in its relation.
    pub block: BlockNumber,
    /// What the page says.
    pub found: u16,
    /// What its content sums up to.
    pub expected: u16,
}

/// Checks a page of a cluster with checksums. `backup_start` is the backup's start position.
#[inline]
pub fn check_page(
    page: &[u8; PAGE_SIZE],
    block: BlockNumber,
    backup_start: Lsn,
) -> Result<PageState, PageMismatch> {
    let header = PageHeader::parse(page);
    if header.is_new() {
        return Ok(PageState::New);
    }
    if header.lsn >= backup_start {
        return Ok(PageState::TooRecent);
    }
    let expected = page_checksum(page, block);
    if header.checksum == expected {
        Ok(PageState::Valid)
    } else {
        Err(PageMismatch { block, found: header.checksum, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &[u8; PAGE_SIZE] = include_bytes!("../../testdata/segment_1_block_0.page");
    const BLOCK: BlockNumber = BlockNumber(131_072);

    #[test]
    fn judges_as_the_server_does() {
        let lsn = PageHeader::parse(PAGE).lsn;
        let later = Lsn(lsn.0 + 1);
        let found = PageHeader::parse(PAGE).checksum;
        assert_eq!(check_page(PAGE, BLOCK, later), Ok(PageState::Valid));
        assert_eq!(check_page(PAGE, BLOCK, lsn), Ok(PageState::TooRecent));
        assert_eq!(check_page(&[0; PAGE_SIZE], BLOCK, later), Ok(PageState::New));
        let mut torn = *PAGE;
        torn[4096..].fill(0xff);
        let expected = page_checksum(&torn, BLOCK);
        assert_eq!(check_page(&torn, BLOCK, later), Err(PageMismatch { block: BLOCK, found, expected }));
        assert_eq!(check_page(&torn, BLOCK, lsn), Ok(PageState::TooRecent));
        assert!(check_page(PAGE, BlockNumber(0), later).is_err());
        // New pages are told by pd_upper alone.
        torn[14..16].fill(0);
        assert_eq!(check_page(&torn, BLOCK, later), Ok(PageState::New));
    }
}
