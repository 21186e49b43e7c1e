//! Objects of a repository as nobody should have written them. What is none is refused, what was changed is found or
//! says the same, and what is read comes back when it is written; nothing panics.
//!
//! The fuzz target `repository_object` feeds it, and the test `hostile_objects`, which includes this file, with
//! changes of its own: so it is run by whoever runs the tests.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use pgstrata::failure::Failure;
use pgstrata::repository::{
    BackupChoice, BackupId, Built, CheckConfig, ClusterName, ContainerBuilder, Extent, FileRecord,
    FolderRecord, FrameCompression, FrameDecoder, FrameEncoder, FrameKind, LocalStore, Manifest, ObjectKind,
    PackId, PackRecord, Repository, Sealing, Tree, WalName, check,
};
use pgstrata::stop::Stop;
use tempfile::TempDir;

const ID: [u8; 16] = [7; 16];
const BACKUP: BackupId = BackupId { seconds: 1_700_000_000, random: 1 };
const CODECS: [FrameCompression; 3] =
    [FrameCompression::None, FrameCompression::Zstd(1), FrameCompression::Lz4];
const KINDS: [FrameKind; 6] = [
    FrameKind::Data,
    FrameKind::Files,
    FrameKind::Folders,
    FrameKind::Packs,
    FrameKind::Summary,
    FrameKind::Seal,
];
/// Bytes of prologue and trailer, and of a frame's entry in the footer: docs/repository-format.md.
const PROLOGUE: usize = 32;
const TRAILER: usize = 64;
const ENTRY: usize = 56;

/// What stands first in an input that is the object itself, byte for byte.
pub const RAW: u8 = 0;
/// Changes of the good object: two bytes of place, what is changed there, and how.
pub const CHANGED: u8 = 1;
/// As [`CHANGED`], by somebody who makes all checksums right.
pub const REPAIRED: u8 = 2;
/// Frames of an object that is right in itself: kind, compression, two bytes of length, and so many bytes.
pub const FRAMES: u8 = 3;

struct Object {
    name: String,
    kind: ObjectKind,
    bytes: Vec<u8>,
}

/// A repository of one small backup and a file of WAL.
pub struct Sample {
    folder: TempDir,
    cluster: ClusterName,
    objects: Vec<Object>,
    content: blake3::Hash,
}

/// A frame as an object's builder takes it.
type Plain<'p> = (FrameKind, FrameCompression, &'p [u8]);

fn says(text: &str) -> Plain<'_> {
    (FrameKind::Summary, FrameCompression::None, text.as_bytes())
}

fn object(kind: ObjectKind, name: &str, frames: &[Plain<'_>]) -> (Object, Built) {
    let mut builder =
        ContainerBuilder::new(kind, name, &Sealing::none(ID)).expect("it takes no random numbers");
    let mut bytes = builder.prologue().to_vec();
    for (frame, compression, plain) in frames {
        let mut encoder = FrameEncoder::new(*compression).expect("memory");
        let hash = *blake3::hash(plain).as_bytes();
        let (_, stored) = builder.frame(&mut encoder, *frame, plain, hash).expect("memory");
        bytes.extend_from_slice(stored);
    }
    let (end, built) = builder.finish();
    bytes.extend_from_slice(&end);
    (Object { name: name.to_owned(), kind, bytes }, built)
}

impl Sample {
    /// Makes it, in a folder that goes with it.
    ///
    /// # Panics
    /// Where it is not good itself.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let cluster: ClusterName = "main".parse().expect("valid");
        let summary = |text: &str| format!("{{{text},\"created\":1,\"program\":\"x\",\"requires\":[]}}");
        let head = summary("\"key_slots\":[]");
        let identity = summary("\"cluster\":\"main\",\"system_identifier\":\"5\"");
        let history = b"1\t0/3000000\tno reason\n";
        let name: WalName = "00000002.history".parse().expect("valid");
        let wal = summary(&format!(
            "\"cluster\":\"main\",\"name\":\"{name}\",\"system_identifier\":\"5\",\"segment_size\":0,\"size\":{},\
             \"blake3\":\"{}\",\"source\":\"push\"",
            history.len(),
            blake3::hash(history).to_hex()
        ));

        let table: Vec<u8> = (0..20_000u32).map(|number| (number / 64).to_le_bytes()[0]).collect();
        let behind = [&table[16_384..], b"15\n"].concat();
        let id = PackId { backup: BACKUP, number: 0 };
        let data = [
            (FrameKind::Data, FrameCompression::Zstd(1), &table[..16_384]),
            (FrameKind::Data, FrameCompression::Lz4, &behind[..]),
        ];
        let (pack, built) = object(ObjectKind::Pack, &cluster.pack(id), &data);

        let extent = |count, frame, offset| Extent { block: 0, count, pack: 0, frame, offset };
        let file = |path: &[u8], size, extent| FileRecord {
            path: path.to_vec(),
            mode: 0o600,
            owner: 0,
            size,
            modified: 1,
            map: vec![extent],
        };
        let (mut files, mut folders, mut packs) = (Vec::new(), Vec::new(), Vec::new());
        for file in [
            file(b"base/1/1259", table.len() as u64, extent(3, 0, 0)),
            file(b"backup_manifest", 3, extent(1, 1, 0)),
            file(b"global/pg_control", 3, extent(1, 1, u32::try_from(behind.len() - 3).expect("small"))),
        ] {
            file.encode(&mut files).expect("valid");
        }
        for path in [&b"base"[..], b"base/1", b"global"] {
            FolderRecord { path: path.to_vec(), mode: 0o700, owner: 0 }.encode(&mut folders).expect("valid");
        }
        PackRecord { id, length: built.length, frames: built.frames, checksum: built.checksum, needed: true }
            .encode(&mut packs);
        let backup = format!(
            "{{\"cluster\":\"main\",\"backup\":\"{BACKUP}\",\"parent\":null,\"program\":\"x\",\"source\":\"stream\",\
             \"server_version\":\"15\",\"system_identifier\":\"5\",\"wal_segment_size\":16777216,\"start_lsn\":\"0/2000028\",\
             \"start_timeline\":1,\"end_lsn\":\"0/2000100\",\"end_timeline\":1,\"label\":\"x\",\"started\":1700000000,\
             \"ended\":1700000001,\"compression\":\"zstd:1\",\"folder_mode\":448,\"files\":3,\"bytes\":20006,\"wal_bytes\":0,\
             \"stored_bytes\":{},\"tablespaces\":[],\"requires\":[]}}",
            built.length
        );
        let none = FrameCompression::None;
        let records = [
            (FrameKind::Files, FrameCompression::Zstd(1), &files[..]),
            (FrameKind::Folders, none, &folders),
            (FrameKind::Packs, none, &packs),
            (FrameKind::Summary, FrameCompression::Lz4, backup.as_bytes()),
        ];
        let objects = vec![
            object(ObjectKind::Manifest, &cluster.manifest(BACKUP), &records).0,
            pack,
            object(ObjectKind::Wal, &name.object(&cluster), &[(FrameKind::Data, none, history), says(&wal)])
                .0,
            object(ObjectKind::Head, "pgstrata-repository.00000000", &[says(&head)]).0,
            object(ObjectKind::Identity, &cluster.identity(), &[says(&identity)]).0,
        ];
        let mut sample = Self { folder, cluster, objects, content: blake3::hash(b"") };
        for object in &sample.objects {
            let path = sample.folder.path().join(&object.name);
            fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
            fs::write(path, &object.bytes).expect("written");
        }
        sample.content = sample.read_all().expect("the sample is whole");
        let problems = sample.problems().expect("it can be verified");
        assert!(problems.is_empty(), "{problems:?}");
        sample
    }

    /// How many objects there are: an input's first byte chooses one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.objects.len()
    }

    /// Bytes of an object.
    #[must_use]
    pub fn bytes(&self, object: usize) -> &[u8] {
        &self.objects[object].bytes
    }

    /// Reads the repository with one object in another form, which the input says: the object, how, and what.
    ///
    /// # Panics
    /// Where something is taken for what it is not.
    pub fn examine(&self, input: &[u8]) {
        let [which, how, rest @ ..] = input else { return };
        let object = &self.objects[usize::from(*which) % self.objects.len()];
        let path = self.folder.path().join(&object.name);
        match how % 4 {
            RAW => {
                self.put(&path, rest);
                let _ = (self.read_all(), self.problems());
            }
            CHANGED => {
                self.put(&path, &changed(&object.bytes, rest));
                let (found, problems) = (self.read_all(), self.problems());
                match found {
                    Ok(content) => {
                        assert!(content == self.content, "{}: it says something else", object.name);
                    }
                    Err(failure) => assert!(
                        !matches!(problems, Ok(problems) if problems.is_empty()),
                        "{}: verification did not find: {failure}",
                        object.name
                    ),
                }
            }
            REPAIRED => {
                let mut bytes = changed(&object.bytes, rest);
                repair(&mut bytes);
                self.put(&path, &bytes);
                let _ = (self.read_all(), self.problems());
            }
            _ => {
                let made = made_of(object, rest);
                self.put(&path, &made);
                let _ = (self.read_all(), self.problems());
            }
        }
        self.put(&path, &object.bytes);
    }

    fn put(&self, path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).expect("the sample's folder can be written to");
    }

    fn open(&self) -> Result<Repository, Failure> {
        Repository::open(Arc::new(LocalStore::new(self.folder.path())))
    }

    fn problems(&self) -> Result<Vec<String>, Failure> {
        let config = CheckConfig { repository: self.open()?, cluster: None, workers: 1 };
        check(&config, &Stop::new()).map(|report| report.problems)
    }

    /// Everything that a reader gets out of it.
    fn read_all(&self) -> Result<blake3::Hash, Failure> {
        let repository = self.open()?;
        let mut content = blake3::Hasher::new();
        content.update(format!("{:?}", repository.identity(&self.cluster)?).as_bytes());
        let manifest = repository.backup(&self.cluster, BackupChoice::Id(BACKUP))?;
        content.update(format!("{:?}{:?}", manifest.summary, manifest.packs).as_bytes());
        read_records(&manifest, &mut content)?;
        let mut decoder = FrameDecoder::new().expect("memory");
        let mut stored = Vec::new();
        for index in 0..u32::try_from(manifest.packs.len()).expect("bounded") {
            let pack = manifest.open_pack(index)?;
            for number in pack.of_kind(FrameKind::Data) {
                content.update(pack.frame(number, &mut stored, &mut decoder)?);
            }
        }
        let name = "00000002.history".parse().expect("valid");
        if let Some(wal) = repository.wal_object(&self.cluster, name)? {
            content.update(format!("{:?}", wal.summary).as_bytes());
            wal.read(|bytes| {
                content.update(bytes);
                Ok(())
            })?;
        }
        Ok(content.finalize())
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads a manifest's records, as a restore does. Each has one spelling: what was read is what is written.
fn read_records(manifest: &Manifest, content: &mut blake3::Hasher) -> Result<(), Failure> {
    let mut folders = Vec::new();
    manifest.each_folder(|folder| {
        folder.encode(&mut folders).expect("what was read can be written");
        Ok(())
    })?;
    let mut files = Vec::new();
    manifest.each_file(|file| {
        file.encode(&mut files).expect("what was read can be written");
        Ok(())
    })?;
    let mut packs = Vec::new();
    manifest.packs.iter().for_each(|pack| pack.encode(&mut packs));
    let mut decoder = FrameDecoder::new().expect("memory");
    for (kind, written) in
        [(FrameKind::Folders, &folders), (FrameKind::Files, &files), (FrameKind::Packs, &packs)]
    {
        let (mut stored, mut read) = (Vec::new(), Vec::new());
        for number in manifest.object().of_kind(kind) {
            read.extend_from_slice(manifest.object().frame(number, &mut stored, &mut decoder)?);
        }
        assert!(read == *written, "records of kind {kind:?} have two spellings");
        content.update(written);
    }
    let mut tree = Tree::of(manifest)?;
    manifest.each_file(|file| tree.file(&file.path))?;
    tree.finish().map(drop)
}

/// Each four bytes are a change: where, what is flipped there, and whether all behind it goes instead, or comes twice.
fn changed(good: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for change in changes.chunks_exact(4) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]]));
        if bytes.is_empty() {
            break;
        }
        let place = place % bytes.len();
        match change[3] % 16 {
            0 => bytes.truncate(place),
            1 => bytes.extend_from_within(place..),
            _ => bytes[place] ^= change[2],
        }
    }
    bytes
}

fn number<const N: usize>(bytes: &[u8]) -> usize {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes[..N]);
    usize::try_from(u64::from_le_bytes(wide)).unwrap_or(usize::MAX)
}

/// Makes the checksums right, as far as the object has places for them.
fn repair(bytes: &mut [u8]) {
    let Some(trailer) = bytes.len().checked_sub(TRAILER) else { return };
    let (footer, frames) = (number::<8>(&bytes[trailer..]), number::<4>(&bytes[trailer + 8..]));
    let Some(end) = frames.checked_mul(ENTRY).and_then(|length| footer.checked_add(length)) else { return };
    if footer < PROLOGUE || end > trailer {
        return;
    }
    for entry in (footer..end).step_by(ENTRY) {
        let (offset, stored) = (number::<8>(&bytes[entry..]), number::<4>(&bytes[entry + 8..]));
        let Some(frame) = offset.checked_add(stored).and_then(|end| bytes.get(offset..end)) else { continue };
        let (crc, hash) = (crc32c::crc32c(frame), blake3::hash(frame));
        // A frame that is compressed has the hash of what comes out of it, which stays.
        if bytes[entry + 17] == 0 {
            bytes[entry + 24..entry + ENTRY].copy_from_slice(hash.as_bytes());
        }
        bytes[entry + 20..entry + 24].copy_from_slice(&crc.to_le_bytes());
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..PROLOGUE]).update(&bytes[footer..end]).update(&bytes[trailer..trailer + 24]);
    bytes[trailer + 24..trailer + 56].copy_from_slice(hasher.finalize().as_bytes());
}

/// An object of the same name and kind, of these frames.
fn made_of(like: &Object, mut frames: &[u8]) -> Vec<u8> {
    let mut made = Vec::new();
    while let [kind, codec, low, high, rest @ ..] = frames {
        let (plain, behind) = rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()));
        frames = behind;
        if !plain.is_empty() {
            let kind = KINDS[usize::from(*kind) % KINDS.len()];
            made.push((kind, CODECS[usize::from(*codec) % CODECS.len()], plain));
        }
    }
    object(like.kind, &like.name, &made).0.bytes
}
