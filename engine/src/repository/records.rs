//! Records of a manifest: files with their maps, folders, packs. Sans-IO; docs/repository-format.md has the tables.
//!
//! Invariants of what is decoded: paths are safe to be joined to a folder; a map covers its file from its first byte to
//! its last, in order, once; nothing is reserved for a count before its bytes were seen to be there.

use pgstrata_protocol::tar::MemberPath;

use super::container::{FRAME_ENTRY, Hash, PACK_FRAMES_MAX, PROLOGUE, STORED_MAX, TRAILER};
use super::names::{BackupId, PackId};

/// The unit in which maps count: a PostgreSQL page (`BLCKSZ`).
pub const BLOCK: u64 = 8192;
/// Bytes of an extent.
const EXTENT: usize = 20;
/// Bytes of a pack's record.
const PACK: usize = 64;
/// The flag of a pack that this backup does not refer to.
const NOT_NEEDED: u32 = 1;
/// The most packs of a table.
pub(super) const PACKS_MAX: usize = 1 << 22;
/// The most extents of one file's map; a record has to fit into a frame.
pub const EXTENTS_MAX: usize = 40_000;

/// A run of a file's blocks that lie one behind the other in a pack: from `offset` in the plain bytes of `frame` on,
/// over into the frames that follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first block.
    pub block: u32,
    /// How many. The file's last block may be a part of one.
    pub count: u32,
    /// The pack, by its place in the manifest's table.
    pub pack: u32,
    /// The frame in it.
    pub frame: u32,
    /// Where in the frame's plain bytes.
    pub offset: u32,
}

impl Extent {
    /// The bytes of a file of `size` that it covers.
    #[must_use]
    pub fn length(&self, size: u64) -> u64 {
        let begin = u64::from(self.block) * BLOCK;
        (u64::from(self.count) * BLOCK).min(size.saturating_sub(begin))
    }
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRecord {
    /// Its path as PostgreSQL's manifest names it: `pg_tblspc/OID/…` in tablespaces.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Whose it is: 0, whoever restores, or the place in the summary's table of owners, from 1.
    pub owner: u16,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub modified: u64,
    /// Where its bytes are.
    pub map: Vec<Extent>,
}

/// A folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderRecord {
    /// Its path.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Whose it is, as a file's.
    pub owner: u16,
}

/// A pack that a backup refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackRecord {
    /// Which.
    pub id: PackId,
    /// Bytes of the object.
    pub length: u64,
    /// Frames in it.
    pub frames: u32,
    /// The checksum in its trailer.
    pub checksum: Hash,
    /// Whether an extent may name it. One that none does holds a place in the table and need not exist.
    pub needed: bool,
}

/// Records that are not what this program writes, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct BadRecord {
    what: String,
    /// Of a kind that a later version may know, rather than damaged.
    pub(super) unknown: bool,
}

fn bad<T>(what: impl Into<String>) -> Result<T, BadRecord> {
    Err(BadRecord { what: what.into(), unknown: false })
}

fn unknown<T>(what: impl Into<String>) -> Result<T, BadRecord> {
    Err(BadRecord { what: what.into(), unknown: true })
}

/// Bytes that are taken from the front.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BadRecord> {
        let Some((taken, rest)) = self.0.split_at_checked(count) else {
            return bad(format!("a record ends after {} bytes, expected {count} more", self.0.len()));
        };
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadRecord> {
        Ok(super::container::field(self.take(N)?))
    }

    fn u16(&mut self) -> Result<u16, BadRecord> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, BadRecord> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, BadRecord> {
        self.array().map(u64::from_le_bytes)
    }

    fn path(&mut self) -> Result<Vec<u8>, BadRecord> {
        let length = self.u16()?;
        let path = self.take(length.into())?;
        match MemberPath::check(path) {
            Ok(()) => Ok(path.to_vec()),
            Err(error) => bad(format!("path \"{}\": {error}", path.escape_ascii())),
        }
    }

    /// Permission bits, and an owner. Whether the table has that one, the summary says.
    fn mode(&mut self) -> Result<(u32, u16), BadRecord> {
        let (mode, owner) = (u32::from(self.u16()?), self.u16()?);
        if mode & !0o777 == 0 {
            Ok((mode, owner))
        } else {
            unknown(format!("mode {mode:o}, expected nine bits"))
        }
    }
}

fn put_path(path: &[u8], into: &mut Vec<u8>) -> Result<(), BadRecord> {
    if let Err(error) = MemberPath::check(path) {
        return bad(format!("path \"{}\": {error}", path.escape_ascii()));
    }
    let Ok(length) = u16::try_from(path.len()) else { return bad("a path of more than 64 KiB") };
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(path);
    Ok(())
}

/// Permission bits, and an owner.
fn put_mode(mode: u32, owner: u16, into: &mut Vec<u8>) -> Result<(), BadRecord> {
    let Some(mode) = u16::try_from(mode).ok().filter(|mode| mode & !0o777 == 0) else {
        return bad(format!("mode {mode:o}, expected nine bits"));
    };
    into.extend_from_slice(&mode.to_le_bytes());
    into.extend_from_slice(&owner.to_le_bytes());
    Ok(())
}

impl FileRecord {
    /// Appends the record.
    ///
    /// # Errors
    /// What no record can say.
    pub fn encode(&self, into: &mut Vec<u8>) -> Result<(), BadRecord> {
        self.check_map()?;
        put_path(&self.path, into)?;
        put_mode(self.mode, self.owner, into)?;
        into.extend_from_slice(&self.size.to_le_bytes());
        into.extend_from_slice(&self.modified.to_le_bytes());
        into.push(0);
        let count = u32::try_from(self.map.len()).expect("it was just checked");
        into.extend_from_slice(&count.to_le_bytes());
        for extent in &self.map {
            for number in [extent.block, extent.count, extent.pack, extent.frame, extent.offset] {
                into.extend_from_slice(&number.to_le_bytes());
            }
        }
        Ok(())
    }

    /// Takes a record from the front of `bytes`; `None` at their end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &mut &[u8]) -> Result<Option<Self>, BadRecord> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut input = Input(bytes);
        let (path, (mode, owner)) = (input.path()?, input.mode()?);
        let (size, modified) = (input.u64()?, input.u64()?);
        match input.array::<1>()? {
            [0] => {}
            [kind] => return unknown(format!("a map of kind {kind}, which this version does not know")),
        }
        let count = input.u32()? as usize;
        if count > EXTENTS_MAX {
            return bad(format!("a map of {count} extents, expected at most {EXTENTS_MAX}"));
        }
        let mut map = Vec::with_capacity(count);
        for extent in input.take(count * EXTENT)?.chunks_exact(EXTENT) {
            let number = |at: usize| u32::from_le_bytes(super::container::field(&extent[at..at + 4]));
            let [block, count, pack, frame, offset] = [0, 4, 8, 12, 16].map(number);
            map.push(Extent { block, count, pack, frame, offset });
        }
        *bytes = input.0;
        let record = Self { path, mode, owner, size, modified, map };
        record.check_map()?;
        Ok(Some(record))
    }

    /// The map covers the file, in order, without gap or overlap.
    fn check_map(&self) -> Result<(), BadRecord> {
        let shown = self.path.escape_ascii();
        if self.map.len() > EXTENTS_MAX {
            let count = self.map.len();
            return bad(format!("\"{shown}\": a map of {count} extents, expected at most {EXTENTS_MAX}"));
        }
        let mut next = 0;
        for extent in &self.map {
            if extent.count == 0 || u64::from(extent.block) != next {
                return bad(format!("\"{shown}\": block {} is mapped where {next} is due", extent.block));
            }
            next += u64::from(extent.count);
        }
        let blocks = self.size.div_ceil(BLOCK);
        if next != blocks {
            return bad(format!("\"{shown}\": {next} blocks are mapped, expected {blocks}"));
        }
        Ok(())
    }
}

impl FolderRecord {
    /// Appends the record.
    ///
    /// # Errors
    /// What no record can say.
    pub fn encode(&self, into: &mut Vec<u8>) -> Result<(), BadRecord> {
        put_path(&self.path, into)?;
        put_mode(self.mode, self.owner, into)?;
        Ok(())
    }

    /// Takes a record from the front of `bytes`; `None` at their end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &mut &[u8]) -> Result<Option<Self>, BadRecord> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut input = Input(bytes);
        let (path, (mode, owner)) = (input.path()?, input.mode()?);
        let record = Self { path, mode, owner };
        *bytes = input.0;
        Ok(Some(record))
    }
}

impl PackRecord {
    /// Appends the record.
    pub fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.id.backup.seconds.to_le_bytes());
        into.extend_from_slice(&self.id.backup.random.to_le_bytes());
        into.extend_from_slice(&self.id.number.to_le_bytes());
        into.extend_from_slice(&self.length.to_le_bytes());
        into.extend_from_slice(&self.frames.to_le_bytes());
        into.extend_from_slice(&(if self.needed { 0 } else { NOT_NEEDED }).to_le_bytes());
        into.extend_from_slice(&self.checksum);
    }

    /// Takes a record from the front of `bytes`; `None` at their end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &mut &[u8]) -> Result<Option<Self>, BadRecord> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut input = Input(bytes);
        let backup = BackupId { seconds: input.u64()?, random: input.u32()? };
        let id = PackId { backup, number: input.u32()? };
        let (length, frames) = (input.u64()?, input.u32()?);
        let flags = input.u32()?;
        if flags & !NOT_NEEDED != 0 {
            return unknown(format!("pack {id} has flags that this version does not know"));
        }
        let frame = |stored: usize| u64::from(frames) * (stored + FRAME_ENTRY) as u64;
        let ends = (PROLOGUE + TRAILER) as u64;
        if frames == 0 || frames as usize > PACK_FRAMES_MAX {
            return bad(format!("pack {id} of {frames} frames, expected 1 to {PACK_FRAMES_MAX}"));
        }
        if length < ends + frame(0) || length > ends + frame(STORED_MAX) {
            return bad(format!("pack {id} of {length} bytes, which {frames} frames cannot have"));
        }
        let record = Self { id, length, frames, checksum: input.array()?, needed: flags & NOT_NEEDED == 0 };
        debug_assert_eq!(bytes.len() - input.0.len(), PACK);
        *bytes = input.0;
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn files() -> impl Strategy<Value = Vec<FileRecord>> {
        let runs = prop::collection::vec((1u32..5000, any::<[u32; 3]>()), 0..6);
        let one = (
            "[a-z0-9_]{1,8}(/[a-z0-9_]{1,8}[.]?){0,3}x",
            (0u32..0o1000, any::<u16>()),
            any::<u64>(),
            runs,
            0..BLOCK,
        );
        let one = one.prop_map(|(path, (mode, owner), modified, runs, short)| {
            let mut block = 0;
            let map = runs.into_iter().map(|(count, [pack, frame, offset])| {
                let extent = Extent { block, count, pack, frame, offset };
                block += count;
                extent
            });
            let map: Vec<_> = map.collect();
            let size = (u64::from(block) * BLOCK).saturating_sub(short);
            FileRecord { path: path.into_bytes(), mode, owner, size, modified, map }
        });
        prop::collection::vec(one, 0..8)
    }

    fn read_all(mut bytes: &[u8]) -> Result<Vec<FileRecord>, BadRecord> {
        let mut files = Vec::new();
        while let Some(file) = FileRecord::decode(&mut bytes)? {
            files.push(file);
        }
        Ok(files)
    }

    proptest! {
        #[test]
        fn files_come_back(files in files()) {
            let mut bytes = Vec::new();
            for file in &files {
                file.encode(&mut bytes).expect("valid");
            }
            prop_assert_eq!(read_all(&bytes), Ok(files));
        }

        #[test]
        fn a_record_that_is_cut_is_no_record(files in files(), cut in any::<prop::sample::Index>()) {
            for file in files {
                let mut bytes = Vec::new();
                file.encode(&mut bytes).expect("valid");
                let cut = cut.index(bytes.len());
                prop_assert!(cut == 0 || read_all(&bytes[..cut]).is_err());
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_all(&bytes);
            let mut rest = &bytes[..];
            while let Ok(Some(_)) = FolderRecord::decode(&mut rest) {}
            let mut rest = &bytes[..];
            while let Ok(Some(_)) = PackRecord::decode(&mut rest) {}
        }
    }

    #[test]
    fn folders_and_packs_come_back() {
        let folder = FolderRecord { path: b"base/1".to_vec(), mode: 0o700, owner: 3 };
        let mut bytes = Vec::new();
        folder.encode(&mut bytes).expect("valid");
        let mut rest = &bytes[..];
        assert_eq!(FolderRecord::decode(&mut rest), Ok(Some(folder)));
        assert_eq!(FolderRecord::decode(&mut rest), Ok(None));
        let id = PackId { backup: BackupId { seconds: 5, random: 6 }, number: 7 };
        let pack = PackRecord { id, length: 8000, frames: 9, checksum: [10; 32], needed: true };
        let mut bytes = Vec::new();
        pack.encode(&mut bytes);
        assert_eq!(bytes.len(), PACK);
        assert_eq!(PackRecord::decode(&mut &bytes[..]), Ok(Some(pack)));
        bytes[28] = 1;
        let unneeded = PackRecord { needed: false, ..pack };
        assert_eq!(PackRecord::decode(&mut &bytes[..]), Ok(Some(unneeded)));
        bytes[28] = 2;
        assert!(PackRecord::decode(&mut &bytes[..]).expect_err("flags").unknown);
        for (frames, length) in [(0, 96), (4097, 1 << 20), (9, 96), (9, 599), (9, 10 << 20)] {
            let mut bytes = Vec::new();
            PackRecord { frames, length, ..pack }.encode(&mut bytes);
            let refused = PackRecord::decode(&mut &bytes[..]).expect_err("impossible");
            assert!(!refused.unknown, "{frames} frames in {length} bytes: {refused}");
        }
    }

    #[test]
    fn bits_beyond_nine_are_unknown_and_no_damage() {
        let folder = FolderRecord { path: b"a".to_vec(), mode: 0o700, owner: 0 };
        let mut bytes = Vec::new();
        folder.encode(&mut bytes).expect("valid");
        bytes[4] |= 2;
        let refused = FolderRecord::decode(&mut &bytes[..]).expect_err("a tenth bit");
        assert!(refused.unknown && refused.to_string().contains("expected nine bits"), "{refused}");
        assert!(FolderRecord { mode: 0o1777, ..folder }.encode(&mut Vec::new()).is_err());
    }

    #[test]
    fn paths_and_maps_that_lie_are_refused() {
        let good = FileRecord {
            path: b"base/1/2".to_vec(),
            mode: 0o600,
            owner: 1,
            size: 8193,
            modified: 0,
            map: vec![Extent { block: 0, count: 2, pack: 0, frame: 0, offset: 0 }],
        };
        let mut bytes = Vec::new();
        good.encode(&mut bytes).expect("valid");
        let gap = Extent { block: 1, count: 1, pack: 0, frame: 0, offset: 0 };
        for (what, bad) in [
            ("absolute", FileRecord { path: b"/etc/passwd".to_vec(), ..good.clone() }),
            ("dots", FileRecord { path: b"base/../../x".to_vec(), ..good.clone() }),
            ("gap", FileRecord { map: vec![gap], ..good.clone() }),
            ("short", FileRecord { size: 16_385, ..good.clone() }),
            ("long", FileRecord { size: 8192, ..good.clone() }),
            ("none", FileRecord { map: Vec::new(), ..good.clone() }),
        ] {
            assert!(bad.encode(&mut Vec::new()).is_err(), "{what}");
        }
        for (at, byte, what) in [(2, b'/', "absolute"), (7, b'/', "empty component"), (30, 1, "map kind")] {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            assert!(read_all(&bytes).is_err(), "{what}");
        }
    }
}
