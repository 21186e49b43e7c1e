//! How the targets cut their input: a decoder must find the same in a stream however it arrives.

/// A fuzzer's input as a stream and as the places where it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Stream<'a> {
    cuts: &'a [u8],
    /// The stream's bytes.
    pub bytes: &'a [u8],
}

impl<'a> Stream<'a> {
    /// The first byte says how many of those behind it are lengths of pieces; the rest is the stream.
    pub fn of(input: &'a [u8]) -> Self {
        let Some((count, rest)) = input.split_first() else { return Self { cuts: &[], bytes: &[] } };
        let (cuts, bytes) = rest.split_at(usize::from(*count).min(rest.len()));
        Self { cuts, bytes }
    }

    /// `bytes` in pieces: the lengths over and over, from the first on; empty pieces too. Whole without lengths.
    pub fn pieces<'b>(&self, bytes: &'b [u8]) -> Vec<&'b [u8]> {
        if self.cuts.iter().all(|length| *length == 0) {
            return vec![bytes];
        }
        let mut pieces = Vec::new();
        let (mut left, mut lengths) = (bytes, self.cuts.iter().cycle());
        while !left.is_empty() {
            let length = lengths.next().map_or(left.len(), |length| usize::from(*length));
            let (piece, rest) = left.split_at(length.min(left.len()));
            pieces.push(piece);
            left = rest;
        }
        pieces
    }

    /// The stream as messages: two bytes of length, then so many bytes, or what is left.
    pub fn messages(&self) -> Vec<&'a [u8]> {
        let (mut messages, mut left) = (Vec::new(), self.bytes);
        while let Some(([low, high], rest)) = left.split_first_chunk::<2>() {
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            let (message, rest) = rest.split_at(length.min(rest.len()));
            messages.push(message);
            left = rest;
        }
        messages
    }
}

/// What each piece of a message is: its bytes, and whether it is the first and the last of its message.
pub fn flagged<'a>(pieces: &[&'a [u8]]) -> Vec<(&'a [u8], bool, bool)> {
    match pieces {
        [] => vec![(&[], true, true)],
        pieces => {
            let last = pieces.len() - 1;
            pieces.iter().enumerate().map(|(at, piece)| (*piece, at == 0, at == last)).collect()
        }
    }
}
