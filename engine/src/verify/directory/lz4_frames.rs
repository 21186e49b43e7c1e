//! Notices where an LZ4 file ends inside of a frame, or goes on behind its last: the decoder takes both for an end.
//!
//! Follows the frame format (`doc/lz4_Frame_format.md` of the LZ4 project) from length to length and looks at nothing
//! else: a file that does not begin with such a frame is for the decoder to refuse.

use std::io::{self, Read};

/// What begins a frame.
const MAGIC: u32 = 0x184D_2204;
/// Bits of the frame's flags: a content size, a dictionary's number, checksums of the blocks and of the content follow.
const BLOCK_CHECKSUM: u8 = 1 << 4;
const CONTENT_SIZE: u8 = 1 << 3;
const CONTENT_CHECKSUM: u8 = 1 << 2;
const DICTIONARY: u8 = 1;
/// The bit of a block's length that says that the block is stored as it is.
const STORED: u32 = 1 << 31;

/// A reader that fails at its end where a frame has not ended, and where something else follows a frame.
pub(super) struct WholeFrames<R> {
    source: R,
    place: Place,
    flags: u8,
    seen_frame: bool,
    /// The number, or the flags, of which a part is here.
    gathered: [u8; 4],
    have: usize,
}

#[derive(Clone, Copy)]
enum Place {
    Magic,
    /// The flags are the first of the descriptor's bytes.
    Flags,
    BlockLength,
    /// So many bytes, after which a block's length comes.
    Block(u64),
    /// So many bytes, after which another frame may come.
    Trailer(u64),
    /// No LZ4 frame from the beginning.
    Unknown,
    /// No LZ4 frame behind one.
    Garbage,
}

impl<R: Read> WholeFrames<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, place: Place::Magic, flags: 0, seen_frame: false, gathered: [0; 4], have: 0 }
    }

    fn may_end(&self) -> bool {
        matches!((self.place, self.have), (Place::Magic, 0) | (Place::Unknown, _))
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = match self.place {
                Place::Unknown | Place::Garbage => return,
                Place::Block(left) | Place::Trailer(left) => {
                    let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    let left = left - taken as u64;
                    self.place = match self.place {
                        Place::Block(_) if left == 0 => Place::BlockLength,
                        Place::Block(_) => Place::Block(left),
                        _ if left == 0 => Place::Magic,
                        _ => Place::Trailer(left),
                    };
                    taken
                }
                Place::Flags => {
                    (self.flags, self.seen_frame) = (bytes[0], true);
                    // The block size, the content's size, the dictionary, and a checksum of the descriptor.
                    let extra = |flag, length| if self.flags & flag == 0 { 0 } else { length };
                    self.place = Place::Block(2 + extra(CONTENT_SIZE, 8) + extra(DICTIONARY, 4));
                    1
                }
                Place::Magic | Place::BlockLength => {
                    let taken = bytes.len().min(4 - self.have);
                    self.gathered[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
                    self.have += taken;
                    if self.have == 4 {
                        self.have = 0;
                        self.place = self.follow(u32::from_le_bytes(self.gathered));
                    }
                    taken
                }
            };
            bytes = &bytes[taken..];
        }
    }

    /// What a number that stands where this one does is followed by.
    fn follow(&self, number: u32) -> Place {
        match self.place {
            Place::Magic if number == MAGIC => Place::Flags,
            Place::Magic if self.seen_frame => Place::Garbage,
            Place::Magic => Place::Unknown,
            _ if number != 0 => {
                let checksum = if self.flags & BLOCK_CHECKSUM == 0 { 0 } else { 4 };
                Place::Block(u64::from(number & !STORED) + checksum)
            }
            _ if self.flags & CONTENT_CHECKSUM == 0 => Place::Magic,
            _ => Place::Trailer(4),
        }
    }
}

impl<R: Read> Read for WholeFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        if read == 0 && !buffer.is_empty() && !self.may_end() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it ends inside of an LZ4 frame"));
        }
        self.pass(&buffer[..read]);
        if matches!(self.place, Place::Garbage) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "something else follows an LZ4 frame"));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    use std::io::Write;

    fn frame(info: FrameInfo, content: &[u8]) -> Vec<u8> {
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(content).expect("compressed");
        encoder.finish().expect("compressed")
    }

    #[test]
    fn only_whole_frames_may_end() {
        let content: Vec<u8> =
            (0..200_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 & 7).collect();
        let small = |info: FrameInfo| info.block_size(BlockSize::Max64KB);
        let infos = [
            FrameInfo::new(),
            FrameInfo::new().block_checksums(true).content_checksum(true),
            FrameInfo::new().content_size(Some(content.len() as u64)).block_mode(BlockMode::Linked),
        ];
        let mut both = Vec::new();
        for info in infos {
            let frame = frame(small(info), &content);
            both.extend_from_slice(&frame);
            for length in (0..frame.len()).step_by(1009).chain(frame.len() - 20..=frame.len()) {
                let mut out = Vec::new();
                let outcome = WholeFrames::new(&frame[..length]).read_to_end(&mut out);
                assert_eq!(outcome.is_ok(), length == 0 || length == frame.len(), "{length}");
                assert_eq!(out, frame[..length]);
            }
        }
        // Frame after frame, in pieces.
        let mut watched = WholeFrames::new(&both[..]);
        let mut piece = [0; 17];
        while watched.read(&mut piece).expect("whole") > 0 {}
        assert!(watched.may_end());
        let followed = [&both[..], b"more"].concat();
        assert!(WholeFrames::new(&followed[..]).read_to_end(&mut Vec::new()).is_err());
    }

    #[test]
    fn what_is_no_frame_is_left_to_the_decoder() {
        let mut out = Vec::new();
        WholeFrames::new(&b"something else"[..]).read_to_end(&mut out).expect("passed on");
        assert_eq!(out, b"something else");
        assert!(WholeFrames::new(&b"so"[..]).read_to_end(&mut out).is_err());
    }
}
