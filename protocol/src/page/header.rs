//! The header that every page starts with (`PageHeaderData`, `storage/bufpage.h`).

use super::PAGE_SIZE;
use crate::Lsn;

/// The header's length without line pointers (`SizeOfPageHeaderData`).
pub(super) const HEADER_SIZE: usize = 24;

/// Where the checksum lies (`pd_checksum`).
pub(super) const CHECKSUM_OFFSET: usize = 8;

/// The layout version of pages since 8.3 (`PG_PAGE_LAYOUT_VERSION`).
const LAYOUT_VERSION: u16 = 4;

/// The flags that are defined (`PD_VALID_FLAG_BITS`).
const VALID_FLAGS: u16 = 0x0007;

/// A page's header as it stands; see [`PageHeader::check`] for whether it makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// The position behind the WAL record that last changed the page.
    pub lsn: Lsn,
    /// The stored checksum, of meaning only where the cluster has checksums.
    pub checksum: u16,
    /// `pd_flags`.
    pub flags: u16,
    /// Offset to the start of free space.
    pub lower: u16,
    /// Offset to the end of free space; 0 on a page that was never filled.
    pub upper: u16,
    /// Offset to the start of special space.
    pub special: u16,
    /// The page size, a multiple of 256, combined with the layout version.
    pub pagesize_version: u16,
    /// The oldest transaction that left something to prune, or 0.
    pub prune_xid: u32,
}

/// A header that no page of this layout can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageHeaderError {
    /// Another page size or layout version.
    #[error("page size and layout version {found:#06x}, expected {expected:#06x}")]
    SizeAndVersion {
        /// What the page says.
        found: u16,
        /// 8192 bytes and version 4.
        expected: u16,
    },
    /// Flags that are not defined.
    #[error("page flags {found:#06x}, expected only bits of {VALID_FLAGS:#06x}")]
    Flags {
        /// What the page says.
        found: u16,
    },
    /// Offsets out of order or out of the page.
    #[error(
        "page offsets lower {lower}, upper {upper}, special {special}, expected 24 <= lower <= upper <= special <= 8192"
    )]
    Offsets {
        /// `pd_lower`.
        lower: u16,
        /// `pd_upper`.
        upper: u16,
        /// `pd_special`.
        special: u16,
    },
}

impl PageHeader {
    /// Reads the header as a little-endian server writes it.
    #[inline]
    #[must_use]
    pub fn parse(page: &[u8; PAGE_SIZE]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        Self {
            // Two halves, high first: PageXLogRecPtr.
            lsn: Lsn(u64::from(u32_at(0)) << 32 | u64::from(u32_at(4))),
            checksum: u16_at(CHECKSUM_OFFSET),
            flags: u16_at(10),
            lower: u16_at(12),
            upper: u16_at(14),
            special: u16_at(16),
            pagesize_version: u16_at(18),
            prune_xid: u32_at(20),
        }
    }

    /// Whether the page was allocated but never filled (`PageIsNew`).
    #[inline]
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.upper == 0
    }

    /// Whether a page that is not new has a possible header (`PageIsVerifiedExtended`, `bufpage.c`).
    pub fn check(&self) -> Result<(), PageHeaderError> {
        let expected = u16::try_from(PAGE_SIZE).unwrap_or(0) | LAYOUT_VERSION;
        if self.pagesize_version != expected {
            return Err(PageHeaderError::SizeAndVersion { found: self.pagesize_version, expected });
        }
        if self.flags & !VALID_FLAGS != 0 {
            return Err(PageHeaderError::Flags { found: self.flags });
        }
        let ends = [HEADER_SIZE, self.lower.into(), self.upper.into(), self.special.into(), PAGE_SIZE];
        if !ends.is_sorted() {
            return Err(PageHeaderError::Offsets {
                lower: self.lower,
                upper: self.upper,
                special: self.special,
            });
        }
        Ok(())
    }
}
