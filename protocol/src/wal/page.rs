//! The header that begins each page of WAL (`XLogPageHeaderData` and `XLogLongPageHeaderData`).

use crate::names::WalSegmentSize;
use crate::{Lsn, TimelineId};

/// The bytes of a header, and of the one that begins a segment (`SizeOfXLogShortPHD`, `SizeOfXLogLongPHD`).
pub(super) const SHORT_HEADER: usize = 24;
pub(super) const LONG_HEADER: usize = 40;

/// The page begins with the rest of a record (`XLP_FIRST_IS_CONTRECORD`).
pub(super) const CONTINUES: u16 = 0x1;
/// The header is a long one (`XLP_LONG_HEADER`).
pub(super) const LONG: u16 = 0x2;
/// A crash cut off the record that ran into this page; another begins here (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
pub(super) const OVERWRITES: u16 = 0x8;
/// All flags that there are (`XLP_ALL_FLAGS`).
pub(super) const ALL_FLAGS: u16 = 0xF;

/// The order of the bytes in numbers: WAL is in that of the machine that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    /// Every version's page magic is 0xD1 and a number (`XLOG_PAGE_MAGIC`), which gives the order away.
    pub(super) fn of_magic(bytes: [u8; 2]) -> Option<Self> {
        match bytes {
            [_, 0xD1] => Some(Self::Little),
            [0xD1, _] => Some(Self::Big),
            _ => None,
        }
    }

    fn array<const N: usize>(self, bytes: &[u8], at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&bytes[at..at + N]);
        if self == Self::Big {
            array.reverse();
        }
        array
    }

    pub(super) fn u16(self, bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(self.array(bytes, at))
    }

    pub(super) fn u32(self, bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(self.array(bytes, at))
    }

    pub(super) fn u64(self, bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(self.array(bytes, at))
    }
}

/// What every header holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageHeader {
    pub(super) magic: u16,
    pub(super) flags: u16,
    pub(super) timeline: TimelineId,
    /// Where the page stands in the log.
    pub(super) address: Lsn,
    /// How many bytes of the record that [`CONTINUES`] here are still to come.
    pub(super) remaining: u32,
}

impl PageHeader {
    /// Reads the first [`SHORT_HEADER`] bytes of a page.
    pub(super) fn parse(bytes: &[u8], order: ByteOrder) -> Self {
        Self {
            magic: order.u16(bytes, 0),
            flags: order.u16(bytes, 2),
            timeline: TimelineId(order.u32(bytes, 4)),
            address: Lsn(order.u64(bytes, 8)),
            remaining: order.u32(bytes, 16),
        }
    }
}

/// What a long header holds beside.
#[derive(Clone, Copy, Debug)]
pub(super) struct SegmentFacts {
    pub(super) system_identifier: u64,
    pub(super) segment_size: u32,
    pub(super) page_size: u32,
}

impl SegmentFacts {
    /// Reads the [`LONG_HEADER`] bytes that begin a segment.
    pub(super) fn parse(bytes: &[u8], order: ByteOrder) -> Self {
        Self {
            system_identifier: order.u64(bytes, 24),
            segment_size: order.u32(bytes, 32),
            page_size: order.u32(bytes, 36),
        }
    }
}

/// What the first page of a segment file says of it, not yet compared with anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentStart {
    /// The cluster (`xlp_sysid`).
    pub system_identifier: u64,
    /// The size of the cluster's segments (`xlp_seg_size`).
    pub segment_size: WalSegmentSize,
    /// The segment's first position (`xlp_pageaddr`).
    pub address: Lsn,
    /// The timeline on which the page was written: the segment's own, or an older one it was copied from.
    pub timeline: TimelineId,
}

impl SegmentStart {
    /// How many bytes [`SegmentStart::parse`] takes.
    pub const LENGTH: usize = LONG_HEADER;

    /// Reads the first bytes of a segment file; `None` where they are not the header of a segment's first page.
    #[must_use]
    pub fn parse(bytes: &[u8; SegmentStart::LENGTH]) -> Option<Self> {
        let order = ByteOrder::of_magic([bytes[0], bytes[1]])?;
        let (page, facts) = (PageHeader::parse(bytes, order), SegmentFacts::parse(bytes, order));
        if page.flags & LONG == 0 {
            return None;
        }
        Some(Self {
            system_identifier: facts.system_identifier,
            segment_size: WalSegmentSize::new(facts.segment_size.into()).ok()?,
            address: page.address,
            timeline: page.timeline,
        })
    }
}
