//! Objects of a repository as nobody should have written them, without a server: what the fuzz target
//! `repository_object` does with them, for a while. The process is this test's alone, so its peak tells what was held.

use pgstrata::basebackup::process_usage;

#[path = "../../engine/fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is a library of its own as well")]
mod objects;

use objects::{CHANGED, FRAMES, RAW, REPAIRED, Sample};

/// What reading may take, whatever is read.
const MEMORY: u64 = 128 << 20;

/// SplitMix64 (Steele, Lea, Flood), from a fixed seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("less than a size")
    }
}

fn change(place: usize, flipped: u8, how: u8) -> [u8; 4] {
    let [low, high] = u16::try_from(place).expect("samples are small").to_le_bytes();
    [low, high, flipped, how]
}

#[test]
fn objects_that_nobody_should_have_written_are_refused_in_bounded_memory() {
    let sample = Sample::new();
    let mut chance = Chance(1);
    for object in 0..sample.count() {
        let which = u8::try_from(object).expect("few objects");
        let length = sample.bytes(object).len();
        // Every byte, and many ends.
        for place in 0..length {
            let flipped = 1 << (place % 8);
            sample.examine(&[&[which, CHANGED], &change(place, flipped, 2)[..]].concat());
            if place % 3 == 0 {
                sample.examine(&[&[which, REPAIRED], &change(place, flipped, 2)[..]].concat());
            }
            if place % 16 == 0 {
                sample.examine(&[&[which, CHANGED], &change(place, 0, 0)[..]].concat());
                sample.examine(&[&[which, RAW], &sample.bytes(object)[..place]].concat());
            }
        }
        // Several at once, among them lengths and counts as large as can be.
        for _ in 0..100 {
            let mut input = vec![which, if chance.byte().is_multiple_of(4) { CHANGED } else { REPAIRED }];
            for _ in 0..1 + chance.below(4) {
                let near_the_end = length - 1 - chance.below(length.min(300));
                let place = if chance.byte().is_multiple_of(2) { near_the_end } else { chance.below(length) };
                let flipped = if chance.byte().is_multiple_of(2) { 0xff } else { chance.byte() };
                input.extend(change(place, flipped, chance.byte()));
            }
            sample.examine(&input);
        }
        // Frames of any kind, of bytes that are none of that kind's, and of zeros, which pack best.
        for _ in 0..100 {
            let mut input = vec![which, FRAMES];
            for _ in 0..1 + chance.below(4) {
                let most = if chance.byte().is_multiple_of(8) { 65_536 } else { 200 };
                let plain = chance.below(most);
                let [low, high] = u16::try_from(plain).expect("bounded").to_le_bytes();
                input.extend([chance.byte(), chance.byte(), low, high]);
                let zeros = chance.byte().is_multiple_of(2);
                input.extend((0..plain).map(|_| if zeros { 0 } else { chance.byte() }));
            }
            sample.examine(&input);
        }
    }
    let (_, peak) = process_usage();
    eprintln!("peak {} MiB", peak >> 20);
    assert!(peak < MEMORY, "{peak} bytes");
}
