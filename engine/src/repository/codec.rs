//! Frames packed and unpacked. A frame that does not shrink is stored as it is.

use std::io;

use pgstrata_protocol::basebackup::{CompressionMethod, CompressionSpec};

use super::cipher::{ObjectCipher, TAG};
use super::container::{Codec, Frame, Hash, PLAIN_MAX};
use super::error::RepositoryError;

/// What frames are compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameCompression {
    /// Nothing.
    None,
    /// Zstandard at a level.
    Zstd(i32),
    /// LZ4 at its fastest.
    Lz4,
}

impl FrameCompression {
    /// What a specification asks for, where frames can have it.
    ///
    /// # Errors
    /// In words, what they cannot have.
    pub fn from_spec(spec: Option<&CompressionSpec>) -> Result<Self, String> {
        let Some(spec) = spec else { return Ok(Self::None) };
        if spec.workers.is_some() || spec.long.is_some() {
            return Err("a repository compresses by frames, which takes a level and nothing else".into());
        }
        match spec.method {
            CompressionMethod::Zstd => Ok(Self::Zstd(spec.level)),
            CompressionMethod::Lz4 if spec.level <= 1 => Ok(Self::Lz4),
            CompressionMethod::Lz4 => Err("a repository compresses by lz4 without a level".into()),
            CompressionMethod::Gzip => Err("a repository compresses by zstd, lz4 or none".into()),
        }
    }
}

impl std::fmt::Display for FrameCompression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
            Self::Lz4 => f.write_str("lz4"),
        }
    }
}

/// Packs frames; one thread's.
pub struct FrameEncoder {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    compression: FrameCompression,
    scratch: Vec<u8>,
}

impl FrameEncoder {
    /// An encoder.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub fn new(compression: FrameCompression) -> io::Result<Self> {
        let zstd = match compression {
            FrameCompression::Zstd(level) => Some(zstd::bulk::Compressor::new(level)?),
            FrameCompression::None | FrameCompression::Lz4 => None,
        };
        Ok(Self { zstd, compression, scratch: Vec::new() })
    }

    /// Packs at most [`PLAIN_MAX`] bytes, and seals them as the frame of this number. What is returned may be the
    /// plain bytes where there is nothing to seal with.
    ///
    /// # Errors
    /// Where the compressor fails, which it does only for want of memory.
    pub(super) fn encode<'a>(
        &'a mut self,
        plain: &'a [u8],
        cipher: Option<(&ObjectCipher, u32)>,
    ) -> io::Result<(Codec, &'a [u8])> {
        let packed = match (self.compression, &mut self.zstd) {
            (FrameCompression::Zstd(_), Some(zstd)) => {
                self.scratch.resize(zstd::zstd_safe::compress_bound(plain.len()) + TAG, 0);
                Some((Codec::Zstd, zstd.compress_to_buffer(plain, &mut self.scratch[..])?))
            }
            (FrameCompression::Lz4, _) => {
                self.scratch.resize(lz4::block::compress_bound(plain.len())? + TAG, 0);
                Some((Codec::Lz4, lz4::block::compress_to_buffer(plain, None, false, &mut self.scratch)?))
            }
            _ => None,
        };
        let packed = packed.filter(|(_, length)| *length < plain.len());
        Ok(match (packed, cipher) {
            (Some((codec, length)), None) => (codec, &self.scratch[..length]),
            (Some((codec, length)), Some((cipher, number))) => {
                let sealed = &mut self.scratch[..length + TAG];
                cipher.seal_in_place(number, sealed);
                (codec, sealed)
            }
            (None, None) => (Codec::None, plain),
            (None, Some((cipher, number))) => {
                let length = plain.len() + TAG;
                self.scratch.resize(self.scratch.len().max(length), 0);
                cipher.seal(number, &[], plain, &mut self.scratch[..length]);
                (Codec::None, &self.scratch[..length])
            }
        })
    }
}

/// Unpacks frames; one thread's.
pub struct FrameDecoder {
    zstd: zstd::bulk::Decompressor<'static>,
    plain: Vec<u8>,
}

impl FrameDecoder {
    /// A decoder.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub fn new() -> io::Result<Self> {
        Ok(Self { zstd: zstd::bulk::Decompressor::new()?, plain: Vec::new() })
    }

    /// Unpacks a frame and compares it with its hash.
    ///
    /// # Errors
    /// Where the bytes are not those that were stored.
    pub fn decode(
        &mut self,
        frame: &Frame,
        stored: &[u8],
        object: &str,
        number: u32,
    ) -> Result<&[u8], RepositoryError> {
        let mut plain = std::mem::take(&mut self.plain);
        plain.resize(frame.plain as usize, 0);
        let decoded = self.decode_into(frame, stored, &mut plain, object, number);
        self.plain = plain;
        decoded?;
        Ok(&self.plain)
    }

    /// As [`Self::decode`], into bytes that are as many as the frame has. What they hold after a failure is nothing.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub(super) fn decode_into(
        &mut self,
        frame: &Frame,
        stored: &[u8],
        plain: &mut [u8],
        object: &str,
        number: u32,
    ) -> Result<(), RepositoryError> {
        let length = frame.plain as usize;
        debug_assert!(length <= PLAIN_MAX, "footers are checked when they are read");
        assert_eq!(plain.len(), length, "the caller has room for the frame");
        let damaged = |what: String| {
            let what = format!("frame {number} at byte {}: {what}", frame.offset);
            RepositoryError::damaged(object, what)
        };
        let found = match frame.codec {
            Codec::None if stored.len() == length => {
                plain.copy_from_slice(stored);
                length
            }
            Codec::None => stored.len(),
            Codec::Zstd => {
                let unpacked = self.zstd.decompress_to_buffer(stored, plain);
                unpacked.map_err(|error| damaged(format!("zstd: {error}")))?
            }
            Codec::Lz4 => lz4_flex::block::decompress_into(stored, plain)
                .map_err(|error| damaged(format!("lz4: {error}")))?,
        };
        if found != length {
            return Err(damaged(format!("found {found} bytes, expected {length}")));
        }
        let found: Hash = *blake3::hash(plain).as_bytes();
        if found != frame.hash {
            let short = |hash: &Hash| blake3::Hash::from(*hash).to_hex()[..16].to_owned();
            return Err(damaged(format!(
                "found BLAKE3 {}…, expected {}…",
                short(&found),
                short(&frame.hash)
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::cipher::{KEY, Key};
    use super::super::container::FrameKind;
    use super::*;

    const ALL: [FrameCompression; 3] =
        [FrameCompression::None, FrameCompression::Zstd(1), FrameCompression::Lz4];

    fn frame(codec: Codec, plain: &[u8], stored: &[u8]) -> Frame {
        Frame {
            offset: 32,
            stored: u32::try_from(stored.len()).expect("small"),
            plain: u32::try_from(plain.len()).expect("small"),
            kind: FrameKind::Data,
            codec,
            crc: crc32c::crc32c(stored),
            hash: *blake3::hash(plain).as_bytes(),
        }
    }

    #[test]
    fn sealed_frames_come_back_from_their_own_place_alone() {
        let cipher = ObjectCipher::new(&Key::new([1; KEY]), &[7; 64], "x");
        let mut decoder = FrameDecoder::new().expect("memory");
        for plain in [vec![9; 100_000], vec![1, 2, 3], b"no two alike".to_vec()] {
            for compression in ALL {
                let mut encoder = FrameEncoder::new(compression).expect("memory");
                let (codec, stored) = encoder.encode(&plain, Some((&cipher, 5))).expect("packed");
                assert!(stored.len() <= plain.len() + TAG);
                let frame = frame(codec, &plain, stored);
                let stored = stored.to_vec();
                assert!(cipher.open(6, &[], &mut stored.clone()).is_err(), "another number");
                assert!(cipher.open(5, &[0], &mut stored.clone()).is_err(), "with more beside it");
                let mut opened = stored.clone();
                let packed = cipher.open(5, &[], &mut opened).expect("authentic");
                assert_eq!(decoder.decode(&frame, packed, "x", 5).expect("whole"), &plain[..]);
                let others = [
                    ObjectCipher::new(&Key::new([2; KEY]), &[7; 64], "x"),
                    ObjectCipher::new(&Key::new([1; KEY]), &[8; 64], "x"),
                    ObjectCipher::new(&Key::new([1; KEY]), &[7; 64], "y"),
                ];
                for other in others {
                    assert!(other.open(5, &[], &mut stored.clone()).is_err(), "another object");
                }
                for place in 0..stored.len().min(200) {
                    let mut spoiled = stored.clone();
                    spoiled[place] ^= 1;
                    assert!(cipher.open(5, &[], &mut spoiled).is_err(), "byte {place}");
                }
                assert!(cipher.open(5, &[], &mut stored[..TAG - 1].to_vec()).is_err(), "less than a tag");
            }
        }
    }

    fn plain() -> impl Strategy<Value = Vec<u8>> {
        let noise = prop::collection::vec(any::<u8>(), 1..2000);
        let smooth = (any::<u8>(), 1usize..40_000).prop_map(|(byte, count)| vec![byte; count]);
        prop_oneof![noise, smooth]
    }

    proptest! {
        #[test]
        fn frames_come_back(plain in plain()) {
            let mut decoder = FrameDecoder::new().expect("memory");
            for compression in ALL {
                let mut encoder = FrameEncoder::new(compression).expect("memory");
                let (codec, stored) = encoder.encode(&plain, None).expect("packed");
                prop_assert!(stored.len() <= plain.len());
                let frame = frame(codec, &plain, stored);
                prop_assert_eq!(decoder.decode(&frame, stored, "x", 0).expect("whole"), &plain[..]);
            }
        }

        #[test]
        fn damage_is_an_error_and_nothing_worse(plain in plain(), place in any::<prop::sample::Index>(), bit in 0u8..8,
                                                cut in any::<prop::sample::Index>()) {
            let mut decoder = FrameDecoder::new().expect("memory");
            for compression in ALL {
                let mut encoder = FrameEncoder::new(compression).expect("memory");
                let (codec, stored) = encoder.encode(&plain, None).expect("packed");
                let frame = frame(codec, &plain, stored);
                let mut spoiled = stored.to_vec();
                spoiled[place.index(stored.len())] ^= 1u8 << bit;
                // Some bits of a compressed frame carry nothing, and the reader's CRC-32C is what finds them changed.
                // What is returned is never wrong.
                if let Ok(found) = decoder.decode(&frame, &spoiled, "x", 0) {
                    prop_assert_eq!(found, &plain[..]);
                }
                prop_assert!(decoder.decode(&frame, &stored[..cut.index(stored.len())], "x", 0).is_err());
            }
        }

        #[test]
        fn hostile_bytes_are_refused(stored in prop::collection::vec(any::<u8>(), 0..500), length in 1u32..100_000) {
            let mut decoder = FrameDecoder::new().expect("memory");
            for codec in [Codec::None, Codec::Zstd, Codec::Lz4] {
                let frame = Frame { plain: length, ..frame(codec, b"other", &stored) };
                prop_assert!(decoder.decode(&frame, &stored, "x", 0).is_err());
            }
        }
    }
}
