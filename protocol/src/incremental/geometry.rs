//! How large blocks and segments are on a server.

/// The most blocks a segment may have here: 64 GiB of blocks of 8 KiB. `configure --with-segsize` has no bound of its own.
const MOST_BLOCKS: u64 = 1 << 23;

/// A server's block and segment size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    block_size: u32,
    segment_blocks: u32,
}

/// Sizes that no server is built with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "blocks of {block_size} bytes in segments of {segment_size}, expected blocks of 1024 to 32768 bytes, and at most \
     8388608 of them in a segment"
)]
pub struct GeometryError {
    /// The size of a block in bytes.
    pub block_size: u64,
    /// The size of a segment in bytes.
    pub segment_size: u64,
}

impl Geometry {
    /// Checks sizes in bytes: `BLCKSZ`, and that of a whole segment of a relation (`RELSEG_SIZE` blocks).
    pub fn new(block_size: u64, segment_size: u64) -> Result<Self, GeometryError> {
        let refused = GeometryError { block_size, segment_size };
        // `configure --with-blocksize` takes 1 to 32 kB.
        let right = block_size.is_power_of_two()
            && (1 << 10..=32 << 10).contains(&block_size)
            && segment_size >= block_size
            && segment_size.is_multiple_of(block_size)
            && segment_size / block_size <= MOST_BLOCKS;
        match (u32::try_from(block_size), u32::try_from(segment_size / block_size.max(1))) {
            (Ok(block_size), Ok(segment_blocks)) if right => Ok(Self { block_size, segment_blocks }),
            _ => Err(refused),
        }
    }

    /// The size of a block in bytes.
    #[must_use]
    pub fn block_size(self) -> u32 {
        self.block_size
    }

    /// How many blocks a segment holds.
    #[must_use]
    pub fn segment_blocks(self) -> u32 {
        self.segment_blocks
    }

    /// The bytes of a header with so many block numbers, padding included.
    #[must_use]
    pub fn header_length(self, blocks: u32) -> u64 {
        let numbers = 12 + 4 * u64::from(blocks);
        if blocks == 0 { numbers } else { numbers.next_multiple_of(self.block_size.into()) }
    }

    /// The bytes of a file with so many blocks.
    #[must_use]
    pub fn file_length(self, blocks: u32) -> u64 {
        self.header_length(blocks) + u64::from(blocks) * u64::from(self.block_size)
    }
}
