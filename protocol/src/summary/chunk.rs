//! The changed ones of 65,536 blocks: a sorted list of places, or a bitmap once there are 4096 of them.
//!
//! Which of the two it is follows `blkreftable.c` step by step, for a file tells: a list of 4095 becomes a bitmap with the next
//! block, and a bitmap stays one when blocks are cut off it.

use std::slice;

use super::BITMAP_ENTRIES;

/// Words of a bitmap.
pub(super) const WORDS: usize = 1024;

/// Lists shorter than this are put into another one by one.
const FEW: usize = 8;

const _: () = assert!(WORDS * 64 == super::CHUNK_BLOCKS as usize);

#[derive(Clone, Debug)]
pub(super) enum Chunk {
    /// Places in the chunk, ascending, fewer than [`BITMAP_ENTRIES`].
    Places(Vec<u16>),
    /// A bit for each block, the lowest first.
    Bitmap(Box<[u64; WORDS]>),
}

impl Chunk {
    /// A chunk of these places, which ascend; as [`insert`](Self::insert) one by one would make it.
    pub(super) fn of(places: &[u16]) -> Self {
        let mut chunk = Self::Places(Vec::new());
        chunk.unite_places(places);
        chunk
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Places(places) if places.is_empty())
    }

    pub(super) fn count(&self) -> u32 {
        match self {
            // Fewer than 4096.
            Self::Places(places) => u32::try_from(places.len()).unwrap_or(u32::MAX),
            Self::Bitmap(words) => words.iter().map(|word| word.count_ones()).sum(),
        }
    }

    pub(super) fn contains(&self, place: u16) -> bool {
        match self {
            Self::Places(places) => places.binary_search(&place).is_ok(),
            Self::Bitmap(words) => words[usize::from(place / 64)] & bit(place) != 0,
        }
    }

    pub(super) fn insert(&mut self, place: u16) {
        match self {
            Self::Bitmap(words) => words[usize::from(place / 64)] |= bit(place),
            Self::Places(places) => {
                let at = match places.last() {
                    Some(last) if *last >= place => match places.binary_search(&place) {
                        Ok(_) => return,
                        Err(at) => at,
                    },
                    _ => places.len(),
                };
                places.insert(at, place);
                self.widen();
            }
        }
    }

    /// Adds places, which ascend.
    pub(super) fn unite_places(&mut self, added: &[u16]) {
        match self {
            Self::Bitmap(words) => {
                for place in added {
                    words[usize::from(place / 64)] |= bit(*place);
                }
            }
            Self::Places(_) if added.len() < FEW => {
                for place in added {
                    self.insert(*place);
                }
            }
            Self::Places(places) => {
                match (places.last(), added.first()) {
                    (Some(last), Some(first)) if last >= first => *places = united(places, added),
                    _ => places.extend_from_slice(added),
                }
                self.widen();
            }
        }
    }

    /// Adds what a bitmap has.
    pub(super) fn unite_words(&mut self, added: &[u64; WORDS]) {
        if let Self::Places(places) = self {
            let count: u32 = added.iter().map(|word| word.count_ones()).sum();
            if count < u32::from(BITMAP_ENTRIES) {
                let added: Vec<u16> = Places::of_words(added, 0, u16::MAX).collect();
                return self.unite_places(&added);
            }
            *self = Self::Bitmap(words_of(places));
        }
        if let Self::Bitmap(words) = self {
            for (word, added) in words.iter_mut().zip(added) {
                *word |= added;
            }
        }
    }

    /// Adds what another chunk has.
    pub(super) fn unite(&mut self, added: &Self) {
        match added {
            Self::Places(added) => self.unite_places(added),
            Self::Bitmap(added) => self.unite_words(added),
        }
    }

    /// Forgets this place and all behind it.
    pub(super) fn cut(&mut self, from: u16) {
        match self {
            Self::Places(places) => places.truncate(places.partition_point(|place| *place < from)),
            Self::Bitmap(words) => {
                let at = usize::from(from / 64);
                words[at] &= bit(from) - 1;
                words[at + 1..].fill(0);
            }
        }
    }

    /// The places from `first` up to and with `last`, ascending.
    pub(super) fn places(&self, first: u16, last: u16) -> Places<'_> {
        match self {
            Self::Places(places) => {
                let begin = places.partition_point(|place| *place < first);
                let end = places.partition_point(|place| *place <= last).max(begin);
                Places::List(places[begin..end].iter())
            }
            Self::Bitmap(words) => Places::of_words(words, first, last),
        }
    }

    /// Bytes on the heap.
    pub(super) fn memory(&self) -> usize {
        match self {
            Self::Places(places) => places.capacity() * size_of::<u16>(),
            Self::Bitmap(_) => size_of::<[u64; WORDS]>(),
        }
    }

    /// A list that is full becomes a bitmap.
    fn widen(&mut self) {
        if let Self::Places(places) = self
            && places.len() >= usize::from(BITMAP_ENTRIES)
        {
            *self = Self::Bitmap(words_of(places));
        }
    }
}

/// Places of a chunk, ascending.
#[derive(Clone, Debug)]
pub(super) enum Places<'a> {
    List(slice::Iter<'a, u16>),
    Bits {
        words: &'a [u64; WORDS],
        /// The word that `bits` is what is left of.
        at: u16,
        bits: u64,
        last: u16,
    },
}

impl<'a> Places<'a> {
    pub(super) fn of_words(words: &'a [u64; WORDS], first: u16, last: u16) -> Self {
        let at = first / 64;
        Self::Bits { words, at, bits: words[usize::from(at)] & !(bit(first) - 1), last }
    }
}

impl Iterator for Places<'_> {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        match self {
            Self::List(places) => places.next().copied(),
            Self::Bits { words, at, bits, last } => {
                while *bits == 0 {
                    if *at >= *last / 64 {
                        return None;
                    }
                    *at += 1;
                    *bits = words[usize::from(*at)];
                }
                // Below 64.
                let place = *at * 64 + u16::try_from(bits.trailing_zeros()).unwrap_or_default();
                *bits &= *bits - 1;
                (place <= *last).then_some(place)
            }
        }
    }
}

fn bit(place: u16) -> u64 {
    1 << (place % 64)
}

fn words_of(places: &[u16]) -> Box<[u64; WORDS]> {
    let mut words = Box::new([0; WORDS]);
    for place in places {
        words[usize::from(place / 64)] |= bit(*place);
    }
    words
}

/// Both, each ascending, as one.
fn united(left: &[u16], right: &[u16]) -> Vec<u16> {
    let mut all = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.iter().copied().peekable(), right.iter().copied().peekable());
    while let (Some(a), Some(b)) = (left.peek().copied(), right.peek().copied()) {
        all.push(a.min(b));
        if a <= b {
            left.next();
        }
        if b <= a {
            right.next();
        }
    }
    all.extend(left);
    all.extend(right);
    all
}
