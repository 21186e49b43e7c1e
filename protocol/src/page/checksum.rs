//! The page checksum (`storage/checksum_impl.h`): 32 interleaved FNV-1a hashes with a shifted mix-in, folded to 16 bits.
//!
//! Written over whole rows of 32 lanes, which is what the algorithm was designed for: the compiler makes vector
//! instructions of it.

use super::PAGE_SIZE;
use super::header::CHECKSUM_OFFSET;
use crate::BlockNumber;

const LANES: usize = 32;
const ROW_BYTES: usize = 4 * LANES;
const PRIME: u32 = 16_777_619;

/// Different starting points for the lanes (`checksumBaseOffsets`).
const BASE_OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

const _: () = assert!(PAGE_SIZE.is_multiple_of(ROW_BYTES));

/// The checksum that a page with this number in its relation should have. Never 0. The stored checksum has no part in it.
#[must_use]
pub fn page_checksum(page: &[u8; PAGE_SIZE], block: BlockNumber) -> u16 {
    let mut sums = BASE_OFFSETS;
    let (rows, _) = page.as_chunks::<ROW_BYTES>();
    // The stored checksum counts as zero; it lies in the first row.
    let mut first = rows[0];
    first[CHECKSUM_OFFSET] = 0;
    first[CHECKSUM_OFFSET + 1] = 0;
    add_row(&mut sums, &first);
    for row in &rows[1..] {
        add_row(&mut sums, row);
    }
    for _ in 0..2 {
        add_row(&mut sums, &[0; ROW_BYTES]);
    }
    let folded = sums.iter().fold(0, |folded, sum| folded ^ sum) ^ block.0;
    // At most 65535: a remainder below 65535, plus 1.
    u16::try_from(folded % 65_535 + 1).unwrap_or(u16::MAX)
}

#[inline(always)]
fn add_row(sums: &mut [u32; LANES], row: &[u8; ROW_BYTES]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PageHeader, SEGMENT_BLOCKS};
    use super::*;

    /// The first page of a relation's second segment file, from a 15 server with checksums.
    const SECOND_SEGMENT: &[u8; PAGE_SIZE] = include_bytes!("../../testdata/segment_1_block_0.page");

    /// One lane after the other, as the definition reads.
    fn by_definition(page: &[u8; PAGE_SIZE], block: u32) -> u16 {
        let mut page = *page;
        page[8..10].fill(0);
        let mut folded = block;
        for (lane, offset) in BASE_OFFSETS.into_iter().enumerate() {
            let mut sum = offset;
            let words = (0..PAGE_SIZE / 128).map(|row| 128 * row + 4 * lane);
            let values = words.map(|at| u32::from_le_bytes(page[at..at + 4].try_into().unwrap()));
            for value in values.chain([0, 0]) {
                let mixed = sum ^ value;
                sum = mixed.wrapping_mul(PRIME) ^ mixed >> 17;
            }
            folded ^= sum;
        }
        u16::try_from(folded % 65535 + 1).unwrap()
    }

    #[test]
    fn numbers_run_through_all_segments_of_a_relation() {
        let stored = PageHeader::parse(SECOND_SEGMENT).checksum;
        assert_eq!(page_checksum(SECOND_SEGMENT, BlockNumber(SEGMENT_BLOCKS)), stored);
        assert_ne!(page_checksum(SECOND_SEGMENT, BlockNumber(0)), stored);
    }

    #[test]
    fn follows_the_definition() {
        let mut page = [0; PAGE_SIZE];
        let mut state = 1u32;
        for block in [0, 1, 77, u32::MAX] {
            for byte in &mut page {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = state.to_be_bytes()[0];
            }
            assert_eq!(page_checksum(&page, BlockNumber(block)), by_definition(&page, block));
        }
    }

    #[test]
    fn every_byte_counts_but_the_checksum_itself() {
        let whole = page_checksum(SECOND_SEGMENT, BlockNumber(SEGMENT_BLOCKS));
        for at in (0..PAGE_SIZE).filter(|at| *at < 160 || at % 61 == 0) {
            let mut page = *SECOND_SEGMENT;
            page[at] ^= 0x10;
            let counts = page_checksum(&page, BlockNumber(SEGMENT_BLOCKS)) != whole;
            assert_eq!(counts, !(8..10).contains(&at), "byte {at}");
        }
    }
}
