//! Unpacks what the server compressed, in pieces, into a buffer of fixed size.
//!
//! A stream is one gzip member, or one LZ4 or Zstandard frame, as servers send them: damage, an early end and anything
//! behind the end are errors. However far a stream unpacks, memory does not grow with it; what a Zstandard frame may
//! ask to look back is bounded by libzstd's own limit (`ZSTD_WINDOWLOG_LIMIT_DEFAULT`, 128 MiB).

use std::cell::RefCell;
use std::io::{self, Read};
use std::rc::Rc;

use flate2::{Decompress, FlushDecompress, Status};
use pgstrata_protocol::basebackup::CompressionMethod;
use zstd::stream::raw::{Decoder, Operation};

/// Bytes that are unpacked at a time.
const PIECE: usize = 128 << 10;
/// gzip's largest window, and a gzip header before the stream (`inflateInit2`, `zlib.h`).
const GZIP_WINDOW_BITS: u8 = 15;

/// Unpacks one archive.
pub(super) struct Decompressor {
    method: CompressionMethod,
    coder: Coder,
    ended: bool,
    piece: Box<[u8]>,
}

enum Coder {
    Gzip(Decompress),
    Lz4(Box<lz4::Decoder<Feed>>, Feed),
    Zstd(Decoder<'static>),
}

/// Why a stream cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecompressError {
    #[error("the archive's {method} stream is damaged: {reason}")]
    Damaged { method: CompressionMethod, reason: String },
    #[error("the archive's {method} stream ends before its end, expected more")]
    Cut { method: CompressionMethod },
    #[error("{count} bytes or more behind the end of the archive's {method} stream, expected none")]
    Trailing { method: CompressionMethod, count: usize },
}

impl Decompressor {
    pub(super) fn new(method: CompressionMethod) -> io::Result<Self> {
        let coder = match method {
            CompressionMethod::Gzip => Coder::Gzip(Decompress::new_gzip(GZIP_WINDOW_BITS)),
            CompressionMethod::Lz4 => {
                let feed = Feed::default();
                Coder::Lz4(Box::new(lz4::Decoder::new(feed.clone())?), feed)
            }
            CompressionMethod::Zstd => Coder::Zstd(Decoder::new()?),
        };
        Ok(Self { method, coder, ended: false, piece: vec![0; PIECE].into_boxed_slice() })
    }

    /// Takes from the front of `input` and returns the next bytes; `None` where all of it is used up and unpacked.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Result<Option<&[u8]>, DecompressError> {
        let method = self.method;
        while !self.ended {
            let had = self.coder.unread(input);
            let (made, ended) = self
                .coder
                .step(input, &mut self.piece)
                .map_err(|reason| DecompressError::Damaged { method, reason })?;
            self.ended = ended;
            if made > 0 {
                return Ok(Some(&self.piece[..made]));
            }
            let left = self.coder.unread(input);
            if left == 0 {
                return Ok(None);
            }
            if left == had && !ended {
                let reason = "it makes no progress".to_owned();
                return Err(DecompressError::Damaged { method, reason });
            }
        }
        match self.coder.unread(input) {
            0 => Ok(None),
            count => Err(DecompressError::Trailing { method, count }),
        }
    }

    /// Says whether the archive may end here.
    pub(super) fn finish(&self) -> Result<(), DecompressError> {
        if self.ended { Ok(()) } else { Err(DecompressError::Cut { method: self.method }) }
    }
}

impl Coder {
    /// Bytes that were not looked at yet.
    fn unread(&self, input: &[u8]) -> usize {
        match self {
            Coder::Lz4(_, feed) => input.len() + feed.left(),
            Coder::Gzip(_) | Coder::Zstd(_) => input.len(),
        }
    }

    /// One step: how many bytes it made, and whether the stream has ended with them.
    fn step(&mut self, input: &mut &[u8], output: &mut [u8]) -> Result<(usize, bool), String> {
        match self {
            Coder::Gzip(inflate) => {
                let (taken, made) = (inflate.total_in(), inflate.total_out());
                let status = inflate
                    .decompress(input, output, FlushDecompress::None)
                    .map_err(|error| error.to_string())?;
                let count = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
                *input = &input[count(inflate.total_in(), taken)..];
                Ok((count(inflate.total_out(), made), status == Status::StreamEnd))
            }
            Coder::Zstd(decoder) => {
                let status = decoder.run_on_buffers(input, output).map_err(|error| error.to_string())?;
                *input = &input[status.bytes_read..];
                Ok((status.bytes_written, status.remaining == 0))
            }
            Coder::Lz4(decoder, feed) => {
                feed.refill(input);
                match decoder.read(output) {
                    // The feed never says that it has ended; the decoder does so at the end of its frame.
                    Ok(0) => Ok((0, true)),
                    Ok(made) => Ok((made, false)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok((0, false)),
                    Err(error) => Err(error.to_string()),
                }
            }
        }
    }
}

/// What the LZ4 decoder reads from: the bytes that have come, and then a wait for more.
#[derive(Clone, Default)]
struct Feed(Rc<RefCell<Pending>>);

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    read: usize,
}

impl Feed {
    /// Takes all of `input`, once what came before is used up.
    fn refill(&self, input: &mut &[u8]) {
        let mut pending = self.0.borrow_mut();
        if pending.read == pending.bytes.len() {
            pending.bytes.clear();
            pending.bytes.extend_from_slice(input);
            pending.read = 0;
            *input = &[];
        }
    }

    fn left(&self) -> usize {
        let pending = self.0.borrow();
        pending.bytes.len() - pending.read
    }
}

impl Read for Feed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut pending = self.0.borrow_mut();
        let rest = &pending.bytes[pending.read..];
        if rest.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        pending.read += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Half noise, half not, and more than one piece.
    fn plain() -> Vec<u8> {
        let mut state = 1_u32;
        let mut noise = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        (0..3 * PIECE + 77).map(|n| if n % 2 == 0 { noise() } else { 7 }).collect()
    }

    fn packed(method: CompressionMethod, plain: &[u8]) -> Vec<u8> {
        match method {
            CompressionMethod::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(plain).expect("memory");
                encoder.finish().expect("memory")
            }
            CompressionMethod::Lz4 => {
                let mut encoder = lz4::EncoderBuilder::new().build(Vec::new()).expect("memory");
                encoder.write_all(plain).expect("memory");
                let (packed, finished) = encoder.finish();
                finished.expect("memory");
                packed
            }
            CompressionMethod::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("memory");
                encoder.include_checksum(true).expect("known");
                encoder.write_all(plain).expect("memory");
                encoder.finish().expect("memory")
            }
        }
    }

    fn unpack(method: CompressionMethod, packed: &[u8], piece: usize) -> Result<Vec<u8>, DecompressError> {
        let mut decompressor = Decompressor::new(method).expect("memory");
        let mut plain = Vec::new();
        for mut piece in packed.chunks(piece) {
            while let Some(bytes) = decompressor.next(&mut piece)? {
                plain.extend_from_slice(bytes);
            }
        }
        decompressor.finish().map(|()| plain)
    }

    #[test]
    fn unpacks_in_any_pieces() {
        for method in CompressionMethod::ALL {
            for plain in [plain(), Vec::new(), vec![0; 5 << 20]] {
                let packed = packed(method, &plain);
                for piece in [1, 7, 4096, 32 << 10, usize::MAX] {
                    if piece == 1 && plain.len() > PIECE && packed.len() > 2 * PIECE {
                        continue;
                    }
                    let found = unpack(method, &packed, piece).unwrap_or_else(|error| panic!("{error}"));
                    assert!(found == plain, "{method} in pieces of {piece}");
                }
            }
        }
    }

    #[test]
    fn refuses_what_is_cut_damaged_or_followed_by_more() {
        for method in CompressionMethod::ALL {
            let packed = packed(method, &plain());
            for cut in [0, 1, 5, packed.len() / 2, packed.len() - 1] {
                let refused = unpack(method, &packed[..cut], 999).expect_err("cut");
                assert!(matches!(refused, DecompressError::Cut { .. }), "{method} at {cut}: {refused}");
            }
            for more in [&b"\0"[..], &packed] {
                let longer = [&packed, more].concat();
                let refused = unpack(method, &longer, 999).expect_err("longer");
                assert!(matches!(refused, DecompressError::Trailing { .. }), "{method}: {refused}");
            }
            for at in [0, 3, packed.len() / 2, packed.len() - 2] {
                let mut damaged = packed.clone();
                damaged[at] ^= 0x55;
                let refused = unpack(method, &damaged, 999).expect_err("damaged");
                assert!(!refused.to_string().is_empty(), "{method} at {at}");
            }
        }
    }
}
