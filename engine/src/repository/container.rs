//! The frame of every object: prologue, frames, footer, trailer. docs/repository-format.md has the tables.
//!
//! Sans-IO. Invariants of what is decoded here: frames lie back to back between prologue and footer, none holds more
//! than [`PLAIN_MAX`] plain bytes, and no length is believed before it was compared with the object's own.

use std::io;

use super::cipher::{FOOTER, ObjectCipher, SALT, TAG};
use super::codec::FrameEncoder;
use super::error::RepositoryError;
use super::sealing::Sealing;
use crate::failure::Failure;

/// The version of the format that is written and read.
pub(super) const VERSION: u16 = 1;
/// Bytes of a prologue; an encrypted object has [`SALT`] more.
pub(super) const PROLOGUE: usize = 32;
/// Bytes of a trailer.
pub(super) const TRAILER: usize = 64;
/// Bytes of a frame's entry in the footer.
pub(super) const FRAME_ENTRY: usize = 56;
/// The most plain bytes of a frame.
pub const PLAIN_MAX: usize = 1 << 20;
/// The most stored bytes of a frame: an encrypted one has a tag beside.
pub(super) const STORED_MAX: usize = PLAIN_MAX + TAG;
/// The most frames of an object.
pub const FRAMES_MAX: usize = 65_536;
/// The most frames of a pack: what a reader holds of each pack that it has open is bounded by it.
pub const PACK_FRAMES_MAX: usize = 4096;

const MAGIC: [u8; 8] = *b"PGSTRATA";
const END_MAGIC: [u8; 8] = *b"ATARTSGP";

/// How an object is encrypted: not.
const CIPHER_NONE: u8 = 0;
/// AES-256-GCM.
const CIPHER_AES_256_GCM: u8 = 1;

/// A BLAKE3 hash.
pub type Hash = [u8; 32];
/// A repository's identity.
pub type RepositoryId = [u8; 16];

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// The repository itself.
    Head = 1,
    /// Data.
    Pack = 2,
    /// A backup.
    Manifest = 3,
    /// Whose backups a cluster's are.
    Identity = 4,
    /// A file of a WAL archive.
    Wal = 5,
    /// That a run is under way, and what it relies on.
    Lease = 6,
    /// That a backup is to be kept.
    Pin = 7,
    /// In a manifest's place: there will never be a backup of this name.
    Fence = 8,
    /// That nobody may begin to rely on a backup.
    Condemned = 9,
    /// What WAL changed.
    WalChanges = 10,
}

impl ObjectKind {
    fn frames_max(self) -> usize {
        if self == Self::Pack { PACK_FRAMES_MAX } else { FRAMES_MAX }
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Bytes of files.
    Data = 0,
    /// Records of files with their maps.
    Files = 1,
    /// Records of folders.
    Folders = 2,
    /// The table of packs.
    Packs = 3,
    /// The JSON object that says what the object is about.
    Summary = 4,
    /// What makes a head authentic.
    Seal = 8,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Data, Self::Files, Self::Folders, Self::Packs, Self::Summary, Self::Seal]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// How a frame is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Not.
    None = 0,
    /// A Zstandard frame.
    Zstd = 1,
    /// An LZ4 block.
    Lz4 = 2,
}

impl Codec {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::None, Self::Zstd, Self::Lz4].into_iter().find(|codec| *codec as u8 == byte)
    }
}

/// A frame, as the footer lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it begins in the object.
    pub offset: u64,
    /// Bytes there.
    pub stored: u32,
    /// Bytes once it is unpacked.
    pub plain: u32,
    /// What it holds.
    pub kind: FrameKind,
    /// How it is compressed.
    pub codec: Codec,
    /// CRC-32C of the bytes as they are stored. Some bits of what compressors write carry nothing; none is to change unseen.
    pub crc: u32,
    /// BLAKE3 of the plain bytes.
    pub hash: Hash,
}

/// The first bytes of an object, as far as they can be judged without a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prologue {
    bytes: [u8; PROLOGUE + SALT],
    length: usize,
}

impl Prologue {
    fn new(kind: ObjectKind, sealing: &Sealing) -> Result<Self, Failure> {
        let mut bytes = [0; PROLOGUE + SALT];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10] = kind as u8;
        bytes[16..PROLOGUE].copy_from_slice(&sealing.repository());
        let Some(keys) = sealing.keys() else { return Ok(Self { bytes, length: PROLOGUE }) };
        bytes[11] = CIPHER_AES_256_GCM;
        bytes[12..16].copy_from_slice(&keys.newest().0.to_le_bytes());
        bytes[PROLOGUE..].copy_from_slice(&super::random::<SALT>()?);
        Ok(Self { bytes, length: PROLOGUE + SALT })
    }

    /// Checks the first [`PROLOGUE`] bytes. `repository` is whose they must be, where that is known.
    ///
    /// # Errors
    /// What makes it no such object, or one of a version that is not known.
    pub(super) fn decode(
        first: &[u8; PROLOGUE],
        kind: ObjectKind,
        repository: Option<&RepositoryId>,
        object: &str,
    ) -> Result<Self, RepositoryError> {
        let damaged = |what: String| RepositoryError::damaged(object, what);
        if first[..8] != MAGIC {
            let found = first[..8].escape_ascii();
            return Err(damaged(format!(
                "it begins with \"{found}\", expected \"{}\"",
                MAGIC.escape_ascii()
            )));
        }
        let version = u16::from_le_bytes(field(&first[8..10]));
        if version != VERSION {
            let what = format!("format version {version} is not known, expected {VERSION}");
            return Err(RepositoryError::unknown(object, what));
        }
        if first[10] != kind as u8 {
            return Err(damaged(format!("it is of kind {}, expected {}", first[10], kind as u8)));
        }
        let key = u32::from_le_bytes(field(&first[12..16]));
        let salt = match (first[11], key) {
            (CIPHER_NONE, 0) => 0,
            (CIPHER_AES_256_GCM, 1..) => SALT,
            (CIPHER_NONE | CIPHER_AES_256_GCM, _) => {
                let what = format!("its prologue names key {key}, which this version does not know");
                return Err(RepositoryError::unknown(object, what));
            }
            (cipher, _) => {
                let what = format!("it is encrypted by cipher {cipher}, which this version does not know");
                return Err(RepositoryError::unknown(object, what));
            }
        };
        if repository.is_some_and(|repository| *repository != first[16..]) {
            return Err(damaged("it belongs to another repository".into()));
        }
        let mut bytes = [0; PROLOGUE + SALT];
        bytes[..PROLOGUE].copy_from_slice(first);
        Ok(Self { bytes, length: PROLOGUE + salt })
    }

    /// The bytes that are still to be read: those of the salt.
    pub(super) fn rest(&mut self) -> &mut [u8] {
        &mut self.bytes[PROLOGUE..self.length]
    }

    /// All of its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The data key that the object is encrypted with, if any.
    pub(super) fn key(&self) -> Option<u32> {
        (self.length > PROLOGUE).then(|| u32::from_le_bytes(field(&self.bytes[12..16])))
    }

    /// Whose it says it is.
    pub(super) fn repository(&self) -> RepositoryId {
        field(&self.bytes[16..PROLOGUE])
    }
}

/// Builds an object, byte for byte in order.
#[derive(Debug)]
pub struct ContainerBuilder {
    prologue: Prologue,
    cipher: Option<ObjectCipher>,
    position: u64,
    frames: Vec<Frame>,
}

/// What has been built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Built {
    /// Bytes of the object.
    pub length: u64,
    /// Frames in it.
    pub frames: u32,
    /// The trailer's checksum, which covers everything through the frames' hashes.
    pub checksum: Hash,
}

impl ContainerBuilder {
    /// Begins an object of this name with its prologue.
    ///
    /// # Errors
    /// Where an encrypted one finds no random numbers.
    pub fn new(kind: ObjectKind, name: &str, sealing: &Sealing) -> Result<Self, Failure> {
        let prologue = Prologue::new(kind, sealing)?;
        let cipher = sealing.cipher(prologue.key(), prologue.bytes(), name)?;
        let position = prologue.length as u64;
        Ok(Self { prologue, cipher, position, frames: Vec::new() })
    }

    /// The first bytes of the object.
    #[must_use]
    pub fn prologue(&self) -> &[u8] {
        self.prologue.bytes()
    }

    /// Bytes so far, without a footer.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many frames there are.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Appends a frame: packs and seals `plain`, whose hash is given. Returns its number and the bytes that follow.
    ///
    /// # Errors
    /// Where the compressor fails, which it does only for want of memory.
    ///
    /// # Panics
    /// Where an object cannot hold it: the caller ends objects before.
    pub fn frame<'e>(
        &mut self,
        encoder: &'e mut FrameEncoder,
        kind: FrameKind,
        plain: &'e [u8],
        hash: Hash,
    ) -> io::Result<(u32, &'e [u8])> {
        assert!(!plain.is_empty() && plain.len() <= PLAIN_MAX, "frames are bounded when they are made");
        assert!(self.frames.len() < FRAMES_MAX, "objects are ended before they are full");
        let number = length(self.frames.len());
        let (codec, bytes) = encoder.encode(plain, self.cipher.as_ref().map(|cipher| (cipher, number)))?;
        let (stored, plain) = (length(bytes.len()), length(plain.len()));
        let crc = crc32c::crc32c(bytes);
        self.frames.push(Frame { offset: self.position, stored, plain, kind, codec, crc, hash });
        self.position += u64::from(stored);
        Ok((number, bytes))
    }

    /// Ends the object: the bytes of footer and trailer, and what has been built.
    #[must_use]
    pub fn finish(self) -> (Vec<u8>, Built) {
        let mut bytes = Vec::with_capacity(self.frames.len() * FRAME_ENTRY + TAG + TRAILER);
        for frame in &self.frames {
            bytes.extend_from_slice(&frame.offset.to_le_bytes());
            bytes.extend_from_slice(&frame.stored.to_le_bytes());
            bytes.extend_from_slice(&frame.plain.to_le_bytes());
            bytes.extend_from_slice(&[frame.kind as u8, frame.codec as u8, 0, 0]);
            bytes.extend_from_slice(&frame.crc.to_le_bytes());
            bytes.extend_from_slice(&frame.hash);
        }
        let frames = length(self.frames.len());
        let mut head = [0; 24];
        head[..8].copy_from_slice(&self.position.to_le_bytes());
        head[8..12].copy_from_slice(&frames.to_le_bytes());
        if let Some(cipher) = &self.cipher {
            let plain = std::mem::take(&mut bytes);
            bytes.resize(plain.len() + TAG, 0);
            cipher.seal(FOOTER, &head, &plain, &mut bytes);
        }
        let checksum = checksum(self.prologue.bytes(), &bytes, &head);
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&checksum);
        bytes.extend_from_slice(&END_MAGIC);
        let built = Built { length: self.position + bytes.len() as u64, frames, checksum };
        (bytes, built)
    }
}

/// A number that is bounded by what objects and frames can hold.
fn length(number: usize) -> u32 {
    u32::try_from(number).expect("it is bounded")
}

fn checksum(prologue: &[u8], footer: &[u8], head: &[u8; 24]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(prologue).update(footer).update(head);
    *hasher.finalize().as_bytes()
}

/// Where an object's footer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    /// Where the footer begins.
    pub(super) footer: u64,
    /// Frames it lists.
    pub frames: u32,
    /// BLAKE3 of prologue, footer and the trailer's first 24 bytes.
    pub checksum: Hash,
    head: [u8; 24],
    sealed: bool,
}

impl Trailer {
    /// Bytes of the footer.
    #[must_use]
    pub(super) fn footer_length(&self) -> usize {
        self.frames as usize * FRAME_ENTRY + if self.sealed { TAG } else { 0 }
    }

    /// Reads the last bytes of an object of `length` bytes that begins with this prologue.
    ///
    /// # Errors
    /// What makes it no object of this program, or one that was cut off.
    pub(super) fn decode(
        bytes: &[u8; TRAILER],
        length: u64,
        kind: ObjectKind,
        prologue: &Prologue,
        object: &str,
    ) -> Result<Self, RepositoryError> {
        let damaged = |what: String| RepositoryError::damaged(object, what);
        if bytes[56..] != END_MAGIC {
            return Err(damaged(format!(
                "its end holds \"{}\", expected \"{}\": it was cut off or overwritten",
                bytes[56..].escape_ascii(),
                END_MAGIC.escape_ascii()
            )));
        }
        let mut head = [0; 24];
        head.copy_from_slice(&bytes[..24]);
        if head[12..] != [0; 12] {
            return Err(RepositoryError::unknown(
                object,
                "its trailer has flags that this version does not know",
            ));
        }
        let footer = u64::from_le_bytes(field(&head[..8]));
        let frames = u32::from_le_bytes(field(&head[8..12]));
        let most = kind.frames_max();
        if frames as usize > most {
            return Err(damaged(format!("found {frames} frames, expected at most {most}")));
        }
        let sealed = prologue.key().is_some();
        let trailer = Self { footer, frames, checksum: field(&bytes[24..56]), head, sealed };
        let ends = footer.checked_add((trailer.footer_length() + TRAILER) as u64);
        if footer < prologue.length as u64 || ends != Some(length) {
            return Err(damaged(format!(
                "found {length} bytes, expected {} by its trailer",
                ends.map_or("more than can be".into(), |ends| ends.to_string())
            )));
        }
        Ok(trailer)
    }
}

/// Checks, opens and reads a footer.
///
/// # Errors
/// What is wrong with it.
pub(super) fn decode_footer(
    prologue: &Prologue,
    cipher: Option<&ObjectCipher>,
    footer: &mut [u8],
    trailer: &Trailer,
    object: &str,
) -> Result<Vec<Frame>, RepositoryError> {
    let damaged = |what: String| RepositoryError::damaged(object, what);
    if checksum(prologue.bytes(), footer, &trailer.head) != trailer.checksum {
        return Err(damaged("its footer does not match its checksum".into()));
    }
    let (footer, tag) = match cipher {
        Some(cipher) => {
            let opened = cipher.open(FOOTER, &trailer.head, footer);
            let what = "its footer is not authentic: the object was changed, or is another in its place";
            (opened.map_err(|_| damaged(what.into()))?, TAG)
        }
        None => (&*footer, 0),
    };
    let mut next = prologue.length as u64;
    let mut frames = Vec::with_capacity(footer.len() / FRAME_ENTRY);
    for (number, entry) in footer.chunks_exact(FRAME_ENTRY).enumerate() {
        let offset = u64::from_le_bytes(field(&entry[..8]));
        let stored = u32::from_le_bytes(field(&entry[8..12]));
        let plain = u32::from_le_bytes(field(&entry[12..16]));
        let bounded = plain as usize <= PLAIN_MAX && (tag..=STORED_MAX).contains(&(stored as usize));
        if offset != next || plain == 0 || !bounded {
            return Err(damaged(format!("frame {number} has impossible bounds in the footer")));
        }
        let reserved = entry[18..20] != [0; 2];
        let (Some(kind), Some(codec), false) =
            (FrameKind::from_byte(entry[16]), Codec::from_byte(entry[17]), reserved)
        else {
            let what = format!("frame {number} is of kind {} and codec {}", entry[16], entry[17]);
            return Err(RepositoryError::unknown(object, what));
        };
        let (crc, hash) = (u32::from_le_bytes(field(&entry[20..24])), field(&entry[24..]));
        frames.push(Frame { offset, stored, plain, kind, codec, crc, hash });
        next += u64::from(stored);
    }
    if next != trailer.footer {
        return Err(damaged(format!("its frames end at {next}, expected {}", trailer.footer)));
    }
    Ok(frames)
}

/// Bytes of a known length.
pub(super) fn field<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller cut it to length")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::cipher::{KEY, Key};
    use super::super::codec::FrameCompression;
    use super::*;

    const NAME: &str = "clusters/main/packs/x";

    fn plain() -> Sealing {
        Sealing::none([7; 16])
    }

    fn sealed() -> Sealing {
        let keys = [1, 2].map(|number: u8| (u32::from(number), Key::new([number; KEY])));
        Sealing::with([7; 16], keys.into())
    }

    fn object(sealing: &Sealing, frames: &[(u8, Vec<u8>)]) -> (Vec<u8>, Built) {
        let mut builder = ContainerBuilder::new(ObjectKind::Pack, NAME, sealing).expect("begun");
        let mut encoder = FrameEncoder::new(FrameCompression::None).expect("memory");
        let mut bytes = builder.prologue().to_vec();
        for (_, plain) in frames {
            let hash = *blake3::hash(plain).as_bytes();
            let (_, stored) = builder.frame(&mut encoder, FrameKind::Data, plain, hash).expect("packed");
            bytes.extend_from_slice(stored);
        }
        let (end, built) = builder.finish();
        bytes.extend_from_slice(&end);
        (bytes, built)
    }

    fn read(sealing: &Sealing, bytes: &[u8]) -> Result<Vec<Frame>, RepositoryError> {
        let short = || RepositoryError::damaged(NAME, "short");
        let first = field(bytes.get(..PROLOGUE).ok_or_else(short)?);
        let mut prologue = Prologue::decode(&first, ObjectKind::Pack, Some(&sealing.repository()), NAME)?;
        let salt = prologue.rest();
        salt.copy_from_slice(bytes.get(PROLOGUE..PROLOGUE + salt.len()).ok_or_else(short)?);
        let cipher = sealing.cipher(prologue.key(), prologue.bytes(), NAME)?;
        let at = bytes.len().checked_sub(TRAILER).ok_or_else(short)?;
        let length = bytes.len() as u64;
        let trailer = Trailer::decode(&field(&bytes[at..]), length, ObjectKind::Pack, &prologue, NAME)?;
        let from = usize::try_from(trailer.footer).expect("checked against the length");
        let mut footer = bytes[from..from + trailer.footer_length()].to_vec();
        decode_footer(&prologue, cipher.as_ref(), &mut footer, &trailer, NAME)
    }

    fn frames() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
        prop::collection::vec((0u8..4, prop::collection::vec(any::<u8>(), 1..200)), 0..20)
    }

    proptest! {
        #[test]
        fn what_was_built_is_read(frames in frames()) {
            for (sealing, beside) in [(plain(), 0), (sealed(), TAG)] {
                let (bytes, built) = object(&sealing, &frames);
                let found = read(&sealing, &bytes).expect("whole");
                prop_assert_eq!(built.length, bytes.len() as u64);
                prop_assert_eq!(found.len(), frames.len());
                for (frame, (_, plain)) in found.iter().zip(&frames) {
                    let from = usize::try_from(frame.offset).expect("small");
                    prop_assert_eq!(frame.stored as usize, plain.len() + beside);
                    prop_assert_eq!(bytes[from..from + plain.len()] == plain[..], beside == 0);
                    prop_assert_eq!(frame.hash, *blake3::hash(plain).as_bytes());
                }
            }
        }

        #[test]
        fn a_changed_byte_of_the_frame_is_found(frames in frames(), place in any::<prop::sample::Index>(), bit in 0u8..8) {
            for (sealing, beside) in [(plain(), 0), (sealed(), TAG)] {
                let (mut bytes, _) = object(&sealing, &frames);
                let data: usize = frames.iter().map(|(_, plain)| plain.len() + beside).sum();
                let head = if beside == 0 { PROLOGUE } else { PROLOGUE + SALT };
                // Frames themselves are checked by their own hashes and tags when they are read.
                let place = match place.index(bytes.len() - data) {
                    place if place < head => place,
                    behind => behind + data,
                };
                bytes[place] ^= 1u8 << bit;
                prop_assert!(read(&sealing, &bytes).is_err(), "byte {}", place);
            }
        }

        #[test]
        fn cut_off_or_random_bytes_are_refused(frames in frames(), cut in any::<prop::sample::Index>(),
                                               noise in prop::collection::vec(any::<u8>(), 0..300)) {
            for sealing in [plain(), sealed()] {
                let (bytes, _) = object(&sealing, &frames);
                prop_assert!(read(&sealing, &bytes[..cut.index(bytes.len())]).is_err());
                prop_assert!(read(&sealing, &noise).is_err());
            }
        }
    }

    #[test]
    fn a_pack_has_only_so_many_frames() {
        let frames = |count: usize| vec![(0, vec![1]); count];
        assert_eq!(
            read(&plain(), &object(&plain(), &frames(PACK_FRAMES_MAX)).0).expect("whole").len(),
            PACK_FRAMES_MAX
        );
        let refused = read(&plain(), &object(&plain(), &frames(PACK_FRAMES_MAX + 1)).0)
            .expect_err("too many")
            .to_string();
        assert!(refused.contains("found 4097 frames, expected at most 4096"), "{refused}");
    }

    #[test]
    fn unknown_versions_are_named() {
        let (good, _) = object(&plain(), &[]);
        for (place, value, words) in [
            (8, 9, "format version 9"),
            (11, 2, "encrypted by cipher 2"),
            (11, 1, "names key 0"),
            (12, 1, "names key 1"),
        ] {
            let mut bytes = good.clone();
            bytes[place] = value;
            let refused = read(&plain(), &bytes).expect_err("unknown").to_string();
            assert!(refused.contains(words) && refused.contains("newer pgstrata"), "{refused}");
        }
    }

    #[test]
    fn plain_and_sealed_objects_do_not_mix() {
        let frames = [(0, vec![1; 100])];
        let refused = |reader: Sealing, writer: Sealing, words: &str| {
            let refused = read(&reader, &object(&writer, &frames).0).expect_err(words).to_string();
            assert!(refused.contains(words), "{words}: {refused}");
        };
        refused(plain(), sealed(), "by its head the repository is not");
        refused(sealed(), plain(), "it is not encrypted, and its repository is");
        let one = |number: u32, byte: u8| Sealing::with([7; 16], [(number, Key::new([byte; KEY]))].into());
        refused(one(1, 1), sealed(), "with data key 2, which the head does not hold");
        refused(one(2, 9), sealed(), "is not authentic");
        // What is written takes the newest key, and what an older one sealed stays readable.
        assert_eq!(object(&sealed(), &frames).0[12], 2);
        read(&sealed(), &object(&one(1, 1), &frames).0).expect("an older key");
    }
}
