//! The places of a recorded connection: where its messages begin, what they are, which bytes of them to strike.

/// A message of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Where its tag is.
    pub(crate) at: u64,
    pub(crate) tag: u8,
    /// Its bytes, tag and length included.
    pub(crate) length: u64,
    /// The first byte of its body, which is the type of a message within a copy.
    pub(crate) kind: Option<u8>,
}

/// A place to strike.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) at: u64,
}

/// What a connection has sent, message by message.
pub(crate) struct Map {
    pub(crate) frames: Vec<Frame>,
    pub(crate) total: u64,
}

impl Map {
    /// Reads a connection; its last message may be cut.
    pub(crate) fn of(record: &[u8]) -> Self {
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some(header) = record.get(at..at + 5) {
            let length = 1 + u32::from_be_bytes(header[1..].try_into().expect("four bytes")) as usize;
            let kind = record.get(at + 5).copied().filter(|_| length > 5);
            frames.push(Frame { at: at as u64, tag: header[0], length: length as u64, kind });
            at += length;
        }
        Self { frames, total: record.len() as u64 }
    }

    /// A message's name: its tag, and its type within a copy.
    pub(crate) fn name(&self, frame: &Frame) -> String {
        let kind = frame.kind.filter(|kind| frame.tag == b'd' && kind.is_ascii_lowercase());
        let kind = kind.map(|kind| format!(" {}", char::from(kind))).unwrap_or_default();
        format!("{}{kind} at {}", char::from(frame.tag), frame.at)
    }

    /// The messages to strike: all but those of the bulk; of these a few, and every one that differs in kind from the
    /// one before it.
    pub(crate) fn chosen(&self, of_bulk: usize) -> Vec<Frame> {
        let bulk: Vec<usize> = (0..self.frames.len()).filter(|n| self.frames[*n].tag == b'd').collect();
        let step = (bulk.len() / of_bulk.max(1)).max(1);
        let sampled: Vec<usize> = bulk.iter().copied().step_by(step).collect();
        let differs = |n: usize| n == 0 || self.kind_of(n - 1) != self.kind_of(n);
        let chosen = |n: &usize| self.frames[*n].tag != b'd' || sampled.contains(n) || differs(*n);
        (0..self.frames.len()).filter(chosen).map(|n| self.frames[n]).collect()
    }

    fn kind_of(&self, n: usize) -> (u8, Option<u8>) {
        let frame = &self.frames[n];
        let typed = frame.kind.filter(|kind| b"npmwk".contains(kind));
        (frame.tag, typed)
    }

    /// Within a message: before it, in its length, at its type, in its body, before its last byte.
    pub(crate) fn within(&self, frame: &Frame) -> Vec<Place> {
        let place = |name: &str, offset: u64| Place {
            name: format!("{name} of {}", self.name(frame)),
            at: frame.at + offset,
        };
        let mut places = vec![place("front", 0), place("length", 3)];
        if frame.length > 5 {
            places.push(place("type", 5));
        }
        if frame.length > 8 {
            places.extend([place("body", 6 + (frame.length - 7) / 2), place("last byte", frame.length - 1)]);
        }
        places
    }

    /// The front of the last message with this tag.
    pub(crate) fn last(&self, tag: u8) -> Frame {
        *self.frames.iter().rev().find(|frame| frame.tag == tag).expect("the connection has one")
    }

    /// The front of the `nth` message with this tag, from 0.
    pub(crate) fn nth(&self, tag: u8, nth: usize) -> Frame {
        *self.frames.iter().filter(|frame| frame.tag == tag).nth(nth).expect("the connection has so many")
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}
