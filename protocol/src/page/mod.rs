//! Pages of relation files: their header and their checksum.

mod checksum;
mod header;
mod verdict;

pub use checksum::page_checksum;
pub use header::{PageHeader, PageHeaderError};
pub use verdict::{PageMismatch, PageState, check_page};

/// The size of a page in bytes (`BLCKSZ`); clusters built with another are refused by what reads `pg_control`.
pub const PAGE_SIZE: usize = 8192;

/// How many pages a segment file of a relation holds (`RELSEG_SIZE`): 1 GiB of pages.
pub const SEGMENT_BLOCKS: u32 = 131_072;

const _: () = assert!(PAGE_SIZE as u64 * SEGMENT_BLOCKS as u64 == 1 << 30);
