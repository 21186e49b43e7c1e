//! The frame of every object: prologue, frames, footer, trailer. docs/repository-format.md has the tables.
//!
//! Sans-IO. Invariants of what is decoded here: frames lie back to back between prologue and footer, none holds more
//! than [`PLAIN_MAX`] plain bytes, and no length is believed before it was compared with the object's own.

use super::error::RepositoryError;

/// The version of the format that is written and read.
pub(super) const VERSION: u16 = 1;
/// Bytes of a prologue.
pub(super) const PROLOGUE: usize = 32;
/// Bytes of a trailer.
pub(super) const TRAILER: usize = 64;
/// Bytes of a frame's entry in the footer.
pub(super) const FRAME_ENTRY: usize = 56;
/// The most plain bytes of a frame.
pub const PLAIN_MAX: usize = 1 << 20;
/// The most stored bytes of a frame. An encrypted one will have a nonce (12) and a tag (16) beside.
pub(super) const STORED_MAX: usize = PLAIN_MAX + 28;
/// The most frames of an object.
pub const FRAMES_MAX: usize = 65_536;
/// The most frames of a pack: what a reader holds of each pack that it has open is bounded by it.
pub const PACK_FRAMES_MAX: usize = 4096;

const MAGIC: [u8; 8] = *b"PGSTRATA";
const END_MAGIC: [u8; 8] = *b"ATARTSGP";

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
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Data, Self::Files, Self::Folders, Self::Packs, Self::Summary]
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
    /// BLAKE3 of the plain bytes.
    pub hash: Hash,
}

/// Builds an object, byte for byte in order.
#[derive(Debug)]
pub struct ContainerBuilder {
    prologue: [u8; PROLOGUE],
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
    /// Begins an object with its prologue.
    #[must_use]
    pub fn new(kind: ObjectKind, repository: &RepositoryId) -> Self {
        let mut prologue = [0; PROLOGUE];
        prologue[..8].copy_from_slice(&MAGIC);
        prologue[8..10].copy_from_slice(&VERSION.to_le_bytes());
        prologue[10] = kind as u8;
        prologue[16..].copy_from_slice(repository);
        Self { prologue, position: PROLOGUE as u64, frames: Vec::new() }
    }

    /// The first bytes of the object.
    #[must_use]
    pub fn prologue(&self) -> &[u8; PROLOGUE] {
        &self.prologue
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

    /// Notes that a frame follows, and returns its number.
    ///
    /// # Panics
    /// Where an object cannot hold it: the caller ends objects before.
    pub fn push(&mut self, kind: FrameKind, codec: Codec, plain: usize, stored: usize, hash: Hash) -> u32 {
        assert!(
            plain > 0 && plain <= PLAIN_MAX && stored <= STORED_MAX,
            "frames are bounded when they are made"
        );
        assert!(self.frames.len() < FRAMES_MAX, "objects are ended before they are full");
        let [stored, plain, number] =
            [stored, plain, self.frames.len()].map(|length| u32::try_from(length).expect("it is bounded"));
        self.frames.push(Frame { offset: self.position, stored, plain, kind, codec, hash });
        self.position += u64::from(stored);
        number
    }

    /// Ends the object: the bytes of footer and trailer, and what has been built.
    #[must_use]
    pub fn finish(self) -> (Vec<u8>, Built) {
        let mut bytes = Vec::with_capacity(self.frames.len() * FRAME_ENTRY + TRAILER);
        for frame in &self.frames {
            bytes.extend_from_slice(&frame.offset.to_le_bytes());
            bytes.extend_from_slice(&frame.stored.to_le_bytes());
            bytes.extend_from_slice(&frame.plain.to_le_bytes());
            bytes.extend_from_slice(&[frame.kind as u8, frame.codec as u8, 0, 0, 0, 0, 0, 0]);
            bytes.extend_from_slice(&frame.hash);
        }
        let frames = u32::try_from(self.frames.len()).expect("it is bounded");
        let mut head = [0; 24];
        head[..8].copy_from_slice(&self.position.to_le_bytes());
        head[8..12].copy_from_slice(&frames.to_le_bytes());
        let checksum = checksum(&self.prologue, &bytes, &head);
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&checksum);
        bytes.extend_from_slice(&END_MAGIC);
        (bytes.clone(), Built { length: self.position + bytes.len() as u64, frames, checksum })
    }
}

fn checksum(prologue: &[u8; PROLOGUE], footer: &[u8], head: &[u8; 24]) -> Hash {
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
}

impl Trailer {
    /// Bytes of the footer.
    #[must_use]
    pub(super) fn footer_length(&self) -> usize {
        self.frames as usize * FRAME_ENTRY
    }

    /// Reads the last bytes of an object of `length` bytes.
    ///
    /// # Errors
    /// What makes it no object of this program, or one that was cut off.
    pub(super) fn decode(
        bytes: &[u8; TRAILER],
        length: u64,
        kind: ObjectKind,
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
        let ends = footer.checked_add(u64::from(frames) * FRAME_ENTRY as u64 + TRAILER as u64);
        if footer < PROLOGUE as u64 || ends != Some(length) {
            return Err(damaged(format!(
                "found {length} bytes, expected {} by its trailer",
                ends.map_or("more than can be".into(), |ends| ends.to_string())
            )));
        }
        Ok(Self { footer, frames, checksum: field(&bytes[24..56]), head })
    }
}

/// Checks an object's prologue. `repository` is whose it must be, where that is known.
///
/// # Errors
/// What makes it no such object, or one of a version that is not known.
pub(super) fn check_prologue(
    prologue: &[u8; PROLOGUE],
    kind: ObjectKind,
    repository: Option<&RepositoryId>,
    object: &str,
) -> Result<RepositoryId, RepositoryError> {
    let damaged = |what: String| RepositoryError::damaged(object, what);
    if prologue[..8] != MAGIC {
        let found = prologue[..8].escape_ascii();
        return Err(damaged(format!("it begins with \"{found}\", expected \"{}\"", MAGIC.escape_ascii())));
    }
    let version = u16::from_le_bytes(field(&prologue[8..10]));
    if version != VERSION {
        let what = format!("format version {version} is not known, expected {VERSION}");
        return Err(RepositoryError::unknown(object, what));
    }
    if prologue[10] != kind as u8 {
        return Err(damaged(format!("it is of kind {}, expected {}", prologue[10], kind as u8)));
    }
    if prologue[11] != 0 {
        let what =
            format!("it is encrypted by cipher {}, and this version knows no encryption", prologue[11]);
        return Err(RepositoryError::unknown(object, what));
    }
    if prologue[12..16] != [0; 4] {
        return Err(RepositoryError::unknown(
            object,
            "its prologue has flags that this version does not know",
        ));
    }
    let found: RepositoryId = field(&prologue[16..]);
    if repository.is_some_and(|repository| *repository != found) {
        return Err(damaged("it belongs to another repository".into()));
    }
    Ok(found)
}

/// Checks and reads a footer.
///
/// # Errors
/// What is wrong with it.
pub(super) fn decode_footer(
    prologue: &[u8; PROLOGUE],
    footer: &[u8],
    trailer: &Trailer,
    object: &str,
) -> Result<Vec<Frame>, RepositoryError> {
    let damaged = |what: String| RepositoryError::damaged(object, what);
    if checksum(prologue, footer, &trailer.head) != trailer.checksum {
        return Err(damaged("its footer does not match its checksum".into()));
    }
    let mut next = PROLOGUE as u64;
    let mut frames = Vec::with_capacity(footer.len() / FRAME_ENTRY);
    for (number, entry) in footer.chunks_exact(FRAME_ENTRY).enumerate() {
        let offset = u64::from_le_bytes(field(&entry[..8]));
        let stored = u32::from_le_bytes(field(&entry[8..12]));
        let plain = u32::from_le_bytes(field(&entry[12..16]));
        let bounded = plain as usize <= PLAIN_MAX && stored as usize <= STORED_MAX;
        if offset != next || plain == 0 || !bounded {
            return Err(damaged(format!("frame {number} has impossible bounds in the footer")));
        }
        let reserved = entry[18..24] != [0; 6];
        let (Some(kind), Some(codec), false) =
            (FrameKind::from_byte(entry[16]), Codec::from_byte(entry[17]), reserved)
        else {
            let what = format!("frame {number} is of kind {} and codec {}", entry[16], entry[17]);
            return Err(RepositoryError::unknown(object, what));
        };
        frames.push(Frame { offset, stored, plain, kind, codec, hash: field(&entry[24..]) });
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

    use super::*;

    fn object(frames: &[(u8, Vec<u8>)]) -> (Vec<u8>, Built) {
        let mut builder = ContainerBuilder::new(ObjectKind::Pack, &[7; 16]);
        let mut bytes = builder.prologue().to_vec();
        for (_, plain) in frames {
            let hash = *blake3::hash(plain).as_bytes();
            builder.push(FrameKind::Data, Codec::None, plain.len(), plain.len(), hash);
            bytes.extend_from_slice(plain);
        }
        let (end, built) = builder.finish();
        bytes.extend_from_slice(&end);
        (bytes, built)
    }

    fn read(bytes: &[u8]) -> Result<Vec<Frame>, RepositoryError> {
        let short = || RepositoryError::damaged("x", "short");
        let prologue: [u8; PROLOGUE] = bytes.get(..PROLOGUE).ok_or_else(short)?.try_into().expect("cut");
        let at = bytes.len().checked_sub(TRAILER).ok_or_else(short)?;
        let trailer = Trailer::decode(&field(&bytes[at..]), bytes.len() as u64, ObjectKind::Pack, "x")?;
        check_prologue(&prologue, ObjectKind::Pack, Some(&[7; 16]), "x")?;
        let from = usize::try_from(trailer.footer).expect("checked against the length");
        decode_footer(&prologue, &bytes[from..from + trailer.footer_length()], &trailer, "x")
    }

    fn frames() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
        prop::collection::vec((0u8..4, prop::collection::vec(any::<u8>(), 1..200)), 0..20)
    }

    proptest! {
        #[test]
        fn what_was_built_is_read(frames in frames()) {
            let (bytes, built) = object(&frames);
            let found = read(&bytes).expect("whole");
            prop_assert_eq!(built.length, bytes.len() as u64);
            prop_assert_eq!(found.len(), frames.len());
            for (frame, (_, plain)) in found.iter().zip(&frames) {
                let from = usize::try_from(frame.offset).expect("small");
                prop_assert_eq!(&bytes[from..from + plain.len()], &plain[..]);
                prop_assert_eq!(frame.hash, *blake3::hash(plain).as_bytes());
            }
        }

        #[test]
        fn a_changed_byte_of_the_frame_is_found(frames in frames(), place in any::<prop::sample::Index>(), bit in 0u8..8) {
            let (mut bytes, _) = object(&frames);
            let data: usize = frames.iter().map(|(_, plain)| plain.len()).sum();
            // Frames themselves are checked by their own hashes when they are read.
            let place = match place.index(bytes.len() - data) {
                head if head < PROLOGUE => head,
                behind => behind + data,
            };
            bytes[place] ^= 1u8 << bit;
            prop_assert!(read(&bytes).is_err(), "byte {}", place);
        }

        #[test]
        fn cut_off_or_random_bytes_are_refused(frames in frames(), cut in any::<prop::sample::Index>(),
                                               noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let (bytes, _) = object(&frames);
            prop_assert!(read(&bytes[..cut.index(bytes.len())]).is_err());
            prop_assert!(read(&noise).is_err());
        }
    }

    #[test]
    fn a_pack_has_only_so_many_frames() {
        let frames = |count: usize| vec![(0, vec![1]); count];
        assert_eq!(read(&object(&frames(PACK_FRAMES_MAX)).0).expect("whole").len(), PACK_FRAMES_MAX);
        let refused = read(&object(&frames(PACK_FRAMES_MAX + 1)).0).expect_err("too many").to_string();
        assert!(refused.contains("found 4097 frames, expected at most 4096"), "{refused}");
    }

    #[test]
    fn unknown_versions_are_named() {
        let (mut bytes, _) = object(&[]);
        bytes[8] = 9;
        let refused = read(&bytes).expect_err("unknown").to_string();
        assert!(refused.contains("format version 9") && refused.contains("newer pgstrata"), "{refused}");
        let (mut bytes, _) = object(&[]);
        bytes[11] = 1;
        assert!(read(&bytes).expect_err("unknown").to_string().contains("encrypted"));
    }
}
