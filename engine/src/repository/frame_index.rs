//! Which frames there are already: a file of them sorted by hash, mapped, behind a filter in memory.
//!
//! Memory is bounded, and does not grow with frames beyond that: the filter answers nearly all questions for what is
//! not there without a look at the file; a larger index than it was made for only makes it less sharp. What is found is a
//! hint: whoever uses it compares it with the pack's own footer.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::container::{Hash, field};
use super::frame_sort::{ENTRY, FrameSorter, Known, known};
use crate::failure::Failure;

/// Bits of the filter for a frame, and how many of them a frame sets: about one miss in a hundred gets through.
const FILTER_BITS: u64 = 10;
const FILTER_SET: usize = 6;
/// Words of a block of the filter: a cache line.
const BLOCK: usize = 8;
/// Entries of a bucket, about, and the most bits that say which.
const BUCKET: u64 = 32;
const FAN_BITS: u32 = 20;

/// A map of more bytes than this is let go of after so many looks into it: each may map 64 KiB (`fault_around_bytes` of
/// the kernel), which would count as this process's memory.
const MAPPED: usize = 32 << 20;
const LOOKS: u64 = 512;

/// The index.
#[derive(Debug)]
pub(super) struct FrameIndex {
    filter: Filter,
    /// Where each bucket begins, and the end.
    fan: Vec<u32>,
    fan_bits: u32,
    /// None without entries.
    entries: Option<Mmap>,
    /// Looks into them so far.
    looks: AtomicU64,
}

impl FrameIndex {
    /// Builds it from what was sorted, with a filter of at most `memory` bytes.
    pub(super) fn build(sorter: FrameSorter, memory: usize) -> Result<Self, Failure> {
        let most = sorter.count();
        let fan_bits = (most / BUCKET).max(1).ilog2().min(FAN_BITS);
        let mut filter = Filter::new(most, memory);
        let mut counts = vec![0u32; (1 << fan_bits) + 1];
        let mut overfull = false;
        let file = sorter.finish(|entry| {
            let hash: Hash = field(&entry[..32]);
            filter.insert(&hash);
            let count = &mut counts[bucket(&hash, fan_bits) + 1];
            overfull |= count.checked_add(1).is_none();
            *count = count.saturating_add(1);
        })?;
        let mut end = 0u32;
        for count in &mut counts {
            end = end.checked_add(*count).unwrap_or_else(|| {
                overfull = true;
                u32::MAX
            });
            *count = end;
        }
        if overfull {
            return Err(Failure::Target("more than 2^32 frames are stored".into()));
        }
        let entries = if end == 0 { None } else { Some(map(&file)?) };
        Ok(Self { filter, fan: counts, fan_bits, entries, looks: AtomicU64::new(0) })
    }

    /// Where a frame with this hash is said to be.
    pub(super) fn find(&self, hash: &Hash) -> Option<Known> {
        let entries = self.entries.as_ref()?;
        if !self.filter.may_hold(hash) {
            return None;
        }
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        if entries.len() > MAPPED && looks % LOOKS == LOOKS - 1 {
            // SAFETY: a shared map of a file that nobody changes reads the same after its pages were let go of.
            // Where that fails they stay.
            let _ = unsafe { entries.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
        let bucket = bucket(hash, self.fan_bits);
        let [mut low, mut high] = [self.fan[bucket], self.fan[bucket + 1]].map(|place| place as usize);
        while low < high {
            let middle = low.midpoint(high);
            let entry = entries.get(middle * ENTRY..(middle + 1) * ENTRY)?;
            match entry[..32].cmp(hash) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(known(entry)),
            }
        }
        None
    }
}

fn map(file: &File) -> Result<Mmap, Failure> {
    let failed = |error| Failure::disk("map", "index of frames", error);
    // SAFETY: the file has no name and no other descriptor than ours, so nobody changes or truncates it.
    let map = unsafe { Mmap::map(file) }.map_err(failed)?;
    // Only a hint: hashes fall anywhere.
    let _ = map.advise(Advice::Random);
    Ok(map)
}

fn bucket(hash: &Hash, bits: u32) -> usize {
    let first = u32::from_be_bytes(field(&hash[..4]));
    usize::try_from(u64::from(first) >> (32 - bits)).expect("a few bits")
}

/// A Bloom filter whose bits for one hash lie in one cache line.
#[derive(Debug)]
struct Filter {
    blocks: Vec<[u64; BLOCK]>,
}

impl Filter {
    fn new(entries: u64, memory: usize) -> Self {
        let block = u64::from(u8::try_from(BLOCK).expect("small")) * 64;
        let wanted = usize::try_from((entries * FILTER_BITS).div_ceil(block)).unwrap_or(usize::MAX);
        let most = (memory / size_of::<[u64; BLOCK]>()).max(1);
        Self { blocks: vec![[0; BLOCK]; wanted.clamp(1, most)] }
    }

    /// The block, and the bits in it. Other bytes of the hash than the bucket's.
    fn place(&self, hash: &Hash) -> (usize, [usize; FILTER_SET]) {
        let [which, bits] = [8, 16].map(|at| u64::from_le_bytes(field(&hash[at..at + 8])));
        let block = (u128::from(which) * self.blocks.len() as u128) >> 64;
        let bit = |number: usize| usize::try_from((bits >> (number * 9)) & 511).expect("nine bits");
        (usize::try_from(block).expect("below their number"), std::array::from_fn(bit))
    }

    fn insert(&mut self, hash: &Hash) {
        let (block, bits) = self.place(hash);
        for bit in bits {
            self.blocks[block][bit / 64] |= 1 << (bit % 64);
        }
    }

    fn may_hold(&self, hash: &Hash) -> bool {
        let (block, bits) = self.place(hash);
        bits.iter().all(|bit| self.blocks[block][bit / 64] & (1 << (bit % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame_sort::entry;
    use super::*;

    fn hash(number: u32) -> Hash {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    #[test]
    fn a_large_map_is_let_go_of_and_reads_the_same() {
        let scratch = tempfile::tempdir().expect("a folder");
        let mut sorter = FrameSorter::new(scratch.path());
        let count = u32::try_from(MAPPED / ENTRY).expect("small") + 1000;
        for number in 0..count {
            let place = Known { pack: number, frame: 7, plain: 1 };
            sorter.push(entry(&hash(number), place).expect("possible")).expect("taken");
        }
        let index = FrameIndex::build(sorter, 1 << 20).expect("built");
        for number in (0..count).step_by(101) {
            assert_eq!(index.find(&hash(number)).map(|known| known.pack), Some(number));
        }
        assert!(index.looks.load(Ordering::Relaxed) > 2 * LOOKS);
    }

    #[test]
    fn finds_what_is_there_and_nothing_else() {
        let scratch = tempfile::tempdir().expect("a folder");
        for (count, memory) in [(0, 1 << 20), (1, 1 << 20), (1000, 1 << 20), (300_000, 1 << 20), (20_000, 64)]
        {
            let mut sorter = FrameSorter::new(scratch.path());
            for number in 0..count {
                let place = Known { pack: number, frame: number % 4096, plain: 1 + number };
                sorter.push(entry(&hash(number), place).expect("possible")).expect("taken");
            }
            let index = FrameIndex::build(sorter, memory).expect("built");
            for number in 0..count {
                let place = Known { pack: number, frame: number % 4096, plain: 1 + number };
                assert_eq!(index.find(&hash(number)), Some(place));
            }
            let other = |number: &u32| hash(1_000_000 + number);
            assert!((0..10_000).all(|number| index.find(&other(&number)).is_none()));
            let through = (0..10_000).filter(|number| index.filter.may_hold(&other(number))).count();
            assert!(memory == 64 || through < 300, "{through} of {count}");
            assert!(index.filter.blocks.len() * 64 <= memory);
        }
    }
}
