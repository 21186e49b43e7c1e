//! Frames that the backup under way has stored, by their hashes: what every lane asks for every frame.
//!
//! A table of a fixed size without locks. A slot is claimed by one compare-and-swap, filled, and published; after that it
//! never changes, so whoever reads it sees all of it. What finds no slot within a few steps is not remembered: then the
//! same bytes are stored once more, and nothing else is lost.

use std::sync::atomic::{AtomicU64, Ordering};

use super::container::{Hash, PACK_FRAMES_MAX, field};

/// Slots that are looked at for one hash.
const STEPS: usize = 8;
/// A slot without a frame, and one that is being filled.
const EMPTY: u64 = 0;
const CLAIMED: u64 = 1;
/// Bits of a frame's number.
const FRAME_BITS: u32 = PACK_FRAMES_MAX.trailing_zeros();

#[derive(Debug, Default)]
struct Slot {
    /// Where the frame is, above [`CLAIMED`].
    place: AtomicU64,
    hash: [AtomicU64; 4],
}

/// The table.
#[derive(Debug)]
pub(super) struct KnownFrames {
    /// A power of two of them.
    slots: Box<[Slot]>,
}

impl KnownFrames {
    /// A table of at most so many bytes.
    pub(super) fn new(memory: usize) -> Self {
        let most = (memory / size_of::<Slot>()).max(STEPS);
        let count = 1 << most.ilog2();
        Self { slots: (0..count).map(|_| Slot::default()).collect() }
    }

    fn probe(&self, words: &[u64; 4]) -> impl Iterator<Item = &Slot> {
        let mask = self.slots.len() - 1;
        let first = usize::try_from(words[0] & mask as u64).expect("it is masked");
        (0..STEPS).map(move |step| &self.slots[(first + step) & mask])
    }

    /// The pack, by its place in the table, and the frame that hold these bytes, where that is remembered.
    pub(super) fn find(&self, hash: &Hash) -> Option<(u32, u32)> {
        let words = words(hash);
        for slot in self.probe(&words) {
            match slot.place.load(Ordering::Acquire) {
                EMPTY => return None,
                CLAIMED => {}
                place if slot.holds(&words) => return Some(unpack(place)),
                _ => {}
            }
        }
        None
    }

    /// Remembers where these bytes are, where there is room for it.
    pub(super) fn remember(&self, hash: &Hash, pack: u32, frame: u32) {
        let words = words(hash);
        for slot in self.probe(&words) {
            let claimed = slot.place.compare_exchange(EMPTY, CLAIMED, Ordering::Acquire, Ordering::Acquire);
            match claimed {
                Ok(_) => {
                    for (kept, word) in slot.hash.iter().zip(words) {
                        kept.store(word, Ordering::Relaxed);
                    }
                    return slot.place.store(pack_up(pack, frame), Ordering::Release);
                }
                // Another lane has just stored the same: the first counts.
                Err(place) if place != CLAIMED && slot.holds(&words) => return,
                Err(_) => {}
            }
        }
    }
}

impl Slot {
    /// Of a published slot.
    fn holds(&self, words: &[u64; 4]) -> bool {
        self.hash.iter().zip(words).all(|(kept, word)| kept.load(Ordering::Relaxed) == *word)
    }
}

fn words(hash: &Hash) -> [u64; 4] {
    [0, 8, 16, 24].map(|at| u64::from_le_bytes(field(&hash[at..at + 8])))
}

fn pack_up(pack: u32, frame: u32) -> u64 {
    debug_assert!((frame as usize) < PACK_FRAMES_MAX, "packs are ended before");
    ((u64::from(pack) << FRAME_BITS) | u64::from(frame)) + CLAIMED + 1
}

fn unpack(place: u64) -> (u32, u32) {
    let place = place - CLAIMED - 1;
    let number = |number: u64| u32::try_from(number).expect("it was packed from 32 bits");
    (number(place >> FRAME_BITS), number(place & ((1 << FRAME_BITS) - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> Hash {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    #[test]
    fn what_is_remembered_is_found_and_nothing_else() {
        let known = KnownFrames::new(1 << 20);
        assert!(known.slots.len() * size_of::<Slot>() <= 1 << 20);
        let mut found = 0;
        for number in 0..30_000u32 {
            known.remember(&hash(number.into()), number, number % 4096);
            known.remember(&hash(number.into()), 7, 7);
        }
        for number in 0..30_000u32 {
            if let Some(place) = known.find(&hash(number.into())) {
                assert_eq!(place, (number, number % 4096));
                found += 1;
            }
            assert_eq!(known.find(&hash(1_000_000 + u64::from(number))), None);
        }
        assert!(found > 15_000, "{found}");
        let extremes = KnownFrames::new(0);
        extremes.remember(&hash(1), u32::MAX, 4095);
        assert_eq!(extremes.find(&hash(1)), Some((u32::MAX, 4095)));
    }

    #[test]
    fn lanes_that_remember_at_once_agree() {
        let known = KnownFrames::new(64 << 10);
        std::thread::scope(|scope| {
            for lane in 0..4u32 {
                let known = &known;
                scope.spawn(move || {
                    for number in 0..400 {
                        known.remember(&hash(number), lane, u32::try_from(number).expect("small"));
                        if let Some((pack, frame)) = known.find(&hash(number)) {
                            assert!(pack < 4 && u64::from(frame) == number, "{pack} {frame}");
                        }
                    }
                });
            }
        });
    }
}
