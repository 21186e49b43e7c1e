//! The checksums that a manifest can hold (`common/checksum_helper.h`).

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// How a file's content is summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChecksumAlgorithm {
    /// Not at all.
    None,
    /// CRC-32C (Castagnoli), the default of servers.
    Crc32c,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// A name that is no checksum algorithm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unrecognized checksum algorithm {0:?}, expected NONE, CRC32C, SHA224, SHA256, SHA384 or SHA512")]
pub struct UnknownAlgorithm(pub String);

impl ChecksumAlgorithm {
    const ALL: [ChecksumAlgorithm; 6] =
        [Self::None, Self::Crc32c, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The name as manifests and commands have it (`pg_checksum_type_name`).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Crc32c => "CRC32C",
            Self::Sha224 => "SHA224",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
        }
    }

    /// How many bytes a checksum has.
    #[must_use]
    pub fn digest_len(self) -> usize {
        match self {
            Self::None => 0,
            Self::Crc32c => 4,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

impl fmt::Display for ChecksumAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ChecksumAlgorithm {
    type Err = UnknownAlgorithm;

    /// Takes any case, as `pg_checksum_parse_type` does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownAlgorithm(text.to_owned()))
    }
}

/// A checksum under way.
#[derive(Clone, Debug)]
pub enum Checksum {
    /// Nothing is computed.
    None,
    /// The CRC so far.
    Crc32c(u32),
    /// SHA-224 state.
    Sha224(Sha224),
    /// SHA-256 state.
    Sha256(Sha256),
    /// SHA-384 state.
    Sha384(Sha384),
    /// SHA-512 state.
    Sha512(Sha512),
}

impl Checksum {
    /// The state before the first byte.
    #[must_use]
    pub fn new(algorithm: ChecksumAlgorithm) -> Self {
        match algorithm {
            ChecksumAlgorithm::None => Self::None,
            ChecksumAlgorithm::Crc32c => Self::Crc32c(0),
            ChecksumAlgorithm::Sha224 => Self::Sha224(Sha224::new()),
            ChecksumAlgorithm::Sha256 => Self::Sha256(Sha256::new()),
            ChecksumAlgorithm::Sha384 => Self::Sha384(Sha384::new()),
            ChecksumAlgorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Which algorithm this is.
    #[must_use]
    pub fn algorithm(&self) -> ChecksumAlgorithm {
        match self {
            Self::None => ChecksumAlgorithm::None,
            Self::Crc32c(_) => ChecksumAlgorithm::Crc32c,
            Self::Sha224(_) => ChecksumAlgorithm::Sha224,
            Self::Sha256(_) => ChecksumAlgorithm::Sha256,
            Self::Sha384(_) => ChecksumAlgorithm::Sha384,
            Self::Sha512(_) => ChecksumAlgorithm::Sha512,
        }
    }

    /// Adds the next bytes.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            Self::Sha224(state) => state.update(bytes),
            Self::Sha256(state) => state.update(bytes),
            Self::Sha384(state) => state.update(bytes),
            Self::Sha512(state) => state.update(bytes),
        }
    }

    /// The checksum over all bytes; without any bytes for [`ChecksumAlgorithm::None`].
    #[must_use]
    pub fn finish(self) -> ChecksumValue {
        match self {
            Self::None => ChecksumValue::from_slice(&[]),
            // The server writes the integer as it lies in memory, and only little-endian servers are about.
            Self::Crc32c(crc) => ChecksumValue::from_slice(&crc.to_le_bytes()),
            Self::Sha224(state) => ChecksumValue::from_slice(&state.finalize()),
            Self::Sha256(state) => ChecksumValue::from_slice(&state.finalize()),
            Self::Sha384(state) => ChecksumValue::from_slice(&state.finalize()),
            Self::Sha512(state) => ChecksumValue::from_slice(&state.finalize()),
        }
    }
}

/// A finished checksum: up to 64 bytes, kept inline.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChecksumValue {
    len: u8,
    /// Zero beyond `len`, so that equality can be derived.
    bytes: [u8; ChecksumValue::MAX_LEN],
}

impl ChecksumValue {
    /// The longest checksum (`PG_CHECKSUM_MAX_LENGTH`).
    pub const MAX_LEN: usize = 64;

    /// A value of these bytes; `None` where there are more than 64.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= Self::MAX_LEN).then(|| Self::from_slice(bytes))
    }

    /// Reads hexadecimal digits of either case; `None` for anything else and for more than 64 bytes.
    #[must_use]
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let mut value = Self { len: u8::try_from(text.len() / 2).ok()?, bytes: [0; Self::MAX_LEN] };
        let filled = value.bytes.get_mut(..text.len() / 2)?;
        decode_hex(text, filled)?;
        Some(value)
    }

    /// The checksum's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// `bytes` has at most 64 bytes.
    fn from_slice(bytes: &[u8]) -> Self {
        let mut value = Self { len: u8::try_from(bytes.len()).unwrap_or(0), bytes: [0; Self::MAX_LEN] };
        value.bytes[..bytes.len()].copy_from_slice(bytes);
        value
    }
}

impl fmt::Display for ChecksumValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 2 * Self::MAX_LEN];
        f.pad(encode_hex(self.as_bytes(), &mut text))
    }
}

impl fmt::Debug for ChecksumValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChecksumValue({self})")
    }
}

/// Writes `bytes` as lower-case hexadecimal digits into `text`, which has room for them.
pub(super) fn encode_hex<'a>(bytes: &[u8], text: &'a mut [u8]) -> &'a str {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let text = &mut text[..2 * bytes.len()];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    std::str::from_utf8(text).unwrap_or_default()
}

/// Fills `bytes` from twice as many hexadecimal digits of either case.
pub(super) fn decode_hex(text: &[u8], bytes: &mut [u8]) -> Option<()> {
    if text.len() != 2 * bytes.len() {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    for (pair, byte) in text.chunks_exact(2).zip(bytes) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_answers() {
        // The check values of "123456789"; the CRC's bytes run backwards, as on a little-endian server.
        for (algorithm, hex) in [
            ("none", ""),
            ("crc32c", "839206e3"),
            ("SHA224", "9b3e61bf29f17c75572fae2e86e17809a4513d07c8a18152acf34521"),
            ("Sha256", "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
            (
                "sha384",
                "eb455d56d2c1a69de64e832011f3393d45f3fa31d6842f21af92d2fe469c499da5e3179847334a18479c8d1dedea1be3",
            ),
            (
                "sha512",
                "d9e6762dd1c8eaf6d61b3c6192fc408d4d6d5f1176d0c29169bc24e71c3f274a\
                 d27fcd5811b313d681f7e55ec02d73d499c95455b6b5bb503acf574fba8ffe85",
            ),
        ] {
            let algorithm: ChecksumAlgorithm = algorithm.parse().unwrap();
            let mut state = Checksum::new(algorithm);
            assert_eq!(state.algorithm(), algorithm);
            state.update(b"1234");
            state.update(b"");
            state.update(b"56789");
            let value = state.finish();
            assert_eq!(value.to_string(), hex);
            assert_eq!(value.as_bytes().len(), algorithm.digest_len());
            assert_eq!(ChecksumValue::from_hex(hex.to_uppercase().as_bytes()), Some(value));
        }
    }

    #[test]
    fn refuses() {
        for name in ["", "md5", "crc32", "CRC32C ", "sha-256"] {
            assert_eq!(name.parse::<ChecksumAlgorithm>(), Err(UnknownAlgorithm(name.to_owned())));
        }
        for hex in ["0", "0g", "+1", &"00".repeat(65), &"00".repeat(256)] {
            assert_eq!(ChecksumValue::from_hex(hex.as_bytes()), None, "{hex}");
        }
        assert_eq!(ChecksumValue::new(&[0; 65]), None);
    }

    proptest! {
        #[test]
        fn hex_round_trip(bytes in proptest::collection::vec(any::<u8>(), 0..=64)) {
            let value = ChecksumValue::new(&bytes).unwrap();
            prop_assert_eq!(value.as_bytes(), &bytes[..]);
            prop_assert_eq!(ChecksumValue::from_hex(value.to_string().as_bytes()), Some(value));
        }
    }
}
