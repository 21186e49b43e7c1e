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

#[cfg(test)]
mod tests {
    use super::*;

    fn page(special: u16, flags: u16, lower: u16, upper: u16, version: u16) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        page[..8].copy_from_slice(&[0x16, 0, 0, 0, 0x48, 0xd8, 0x74, 0xb3]);
        page[8..10].copy_from_slice(&0xbeefu16.to_le_bytes());
        for (at, value) in [(10, flags), (12, lower), (14, upper), (16, special), (18, version)] {
            page[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        page[20..24].copy_from_slice(&731u32.to_le_bytes());
        page
    }

    #[test]
    fn reads_every_field() {
        let header = PageHeader::parse(&page(8176, 4, 40, 8000, 0x2004));
        let expected = PageHeader {
            lsn: Lsn(0x16_B374_D848),
            checksum: 0xbeef,
            flags: 4,
            lower: 40,
            upper: 8000,
            special: 8176,
            pagesize_version: 0x2004,
            prune_xid: 731,
        };
        assert_eq!(header, expected);
        assert_eq!(header.check(), Ok(()));
        assert!(!header.is_new());
        assert!(PageHeader::parse(&[0; PAGE_SIZE]).is_new());
    }

    #[test]
    fn refuses_impossible_headers() {
        let offsets = |lower, upper, special| PageHeaderError::Offsets { lower, upper, special };
        for (page, error) in [
            (page(8192, 0, 24, 24, 0x2004), None),
            (
                page(8192, 0, 24, 8192, 0x2003),
                Some(PageHeaderError::SizeAndVersion { found: 0x2003, expected: 0x2004 }),
            ),
            (
                page(8192, 0, 24, 8192, 0x4004),
                Some(PageHeaderError::SizeAndVersion { found: 0x4004, expected: 0x2004 }),
            ),
            (page(8192, 8, 24, 8192, 0x2004), Some(PageHeaderError::Flags { found: 8 })),
            (page(8192, 0, 23, 8192, 0x2004), Some(offsets(23, 8192, 8192))),
            (page(8192, 0, 30, 29, 0x2004), Some(offsets(30, 29, 8192))),
            (page(100, 0, 30, 101, 0x2004), Some(offsets(30, 101, 100))),
            (page(8193, 0, 30, 101, 0x2004), Some(offsets(30, 101, 8193))),
        ] {
            assert_eq!(PageHeader::parse(&page).check().err(), error);
        }
    }
}
