//! Backups of real servers of three versions, from the messages they sent to files that match their manifest.
//!
//! The streams are cut down to a few members by leaving out whole ones; the manifests to the same files, with their own
//! checksum computed anew. All else is as the servers sent it.

use std::collections::BTreeMap;
use std::convert::Infallible;

use pgstrata_protocol::basebackup::{ArchiveDecoder, ArchiveEvent, ArchiveName};
use pgstrata_protocol::label::{BackupLabel, BackupOrigin, TablespaceMap};
use pgstrata_protocol::manifest::{Checksum, ChecksumAlgorithm, ManifestEvent, ManifestFile, read_manifest};
use pgstrata_protocol::names::RelationFile;
use pgstrata_protocol::page::{PAGE_SIZE, PageState, check_page};
use pgstrata_protocol::tar::{MemberKind, MemberPath, TarDecoder, TarEvent};
use pgstrata_protocol::{BlockNumber, Lsn, ServerVersion};

#[derive(Default)]
struct Backup {
    files: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
    manifest: Vec<u8>,
    locations: Vec<(String, Vec<u8>)>,
}

impl Backup {
    fn unpack(
        &mut self,
        decoder: &mut TarDecoder,
        open: &mut Option<Vec<u8>>,
        folder: &MemberPath,
        mut data: &[u8],
    ) {
        while let Some(event) = decoder.next(&mut data).unwrap() {
            match event {
                TarEvent::Member(member) => {
                    *open = None;
                    if let MemberKind::File { .. } = member.kind {
                        let path = member.path.with_prefix(folder).unwrap().as_bytes().to_vec();
                        assert!(self.files.insert(path.clone(), (member.mtime, Vec::new())).is_none());
                        *open = Some(path);
                    }
                }
                TarEvent::Data(data) => {
                    let path = open.as_ref().unwrap();
                    self.files.get_mut(path).unwrap().1.extend_from_slice(data);
                }
                TarEvent::MemberEnd => {}
            }
        }
    }

    fn unpack_archive(&mut self, folder: &str, archive: &[u8]) {
        let mut decoder = TarDecoder::new();
        let folder = MemberPath::parse(folder.as_bytes()).unwrap();
        self.unpack(&mut decoder, &mut None, &folder, archive);
        decoder.finish().unwrap();
    }

    /// Length-prefixed CopyData bodies, each handed over in pieces of `piece` bytes.
    fn from_copy_stream(mut stream: &[u8], piece: usize) -> Self {
        let mut backup = Self::default();
        let mut archives = ArchiveDecoder::new();
        let (mut tar, mut open) = (TarDecoder::new(), None);
        let mut folder = MemberPath::parse(b".").unwrap();
        while let Some((length, rest)) = stream.split_first_chunk::<4>() {
            let (body, rest) = rest.split_at(usize::try_from(u32::from_be_bytes(*length)).unwrap());
            stream = rest;
            let pieces = body.len().div_ceil(piece);
            for (index, chunk) in body.chunks(piece).enumerate() {
                match archives.push(chunk, index == 0, index + 1 == pieces).unwrap() {
                    None | Some(ArchiveEvent::Progress(_)) => {}
                    Some(ArchiveEvent::ArchiveStart { name, location }) => {
                        tar.finish().unwrap();
                        (tar, open) = (TarDecoder::new(), None);
                        let name_of_folder = match name {
                            ArchiveName::Base => ".".to_owned(),
                            ArchiveName::Tablespace(oid) => format!("pg_tblspc/{oid}"),
                        };
                        folder = MemberPath::parse(name_of_folder.as_bytes()).unwrap();
                        backup.locations.push((name.to_string(), location));
                    }
                    Some(ArchiveEvent::Data(data)) => backup.unpack(&mut tar, &mut open, &folder, data),
                    Some(ArchiveEvent::ManifestStart) => tar.finish().unwrap(),
                    Some(ArchiveEvent::ManifestData(data)) => backup.manifest.extend_from_slice(data),
                }
            }
        }
        archives.finish().unwrap();
        backup
    }

    fn content(&self, path: &str) -> &[u8] {
        &self.files[path.as_bytes()].1
    }

    /// The files that are not as the manifest has them; both must name the same ones.
    fn mismatches(&self, algorithm: ChecksumAlgorithm, version: u32) -> Vec<String> {
        let mut listed: Vec<ManifestFile> = Vec::new();
        let summary = read_manifest(&self.manifest[..], &mut |event| {
            if let ManifestEvent::File(file) = event {
                listed.push(file);
            }
            Ok::<_, Infallible>(())
        })
        .unwrap();
        assert_eq!(summary.version, version);
        assert_eq!(listed.len(), self.files.len());
        listed.retain(|file| {
            let (mtime, content) = &self.files[&file.path];
            let mut checksum = Checksum::new(algorithm);
            checksum.update(content);
            file.size != content.len() as u64
                || i64::try_from(*mtime) != Ok(file.modified.0)
                || file.checksum != Some((algorithm, checksum.finish()))
        });
        listed.iter().map(|file| file.path.escape_ascii().to_string()).collect()
    }

    /// Checks every page of every relation file and says how many were checked.
    fn pages_are_valid(&self, start: Lsn) -> usize {
        let mut valid = 0;
        for (path, (_, content)) in &self.files {
            let Some(relation) = RelationFile::parse(path) else { continue };
            let (pages, []) = content.as_chunks::<PAGE_SIZE>() else {
                panic!("{} has a part of a page", path.escape_ascii())
            };
            for (page, block) in pages.iter().zip(relation.first_block().0..) {
                let state = check_page(page, BlockNumber(block), start);
                // The servers had been idle since a checkpoint.
                assert!(
                    matches!(state, Ok(PageState::Valid | PageState::New)),
                    "{}: {state:?}",
                    path.escape_ascii()
                );
                valid += usize::from(state == Ok(PageState::Valid));
            }
        }
        valid
    }
}

#[test]
fn server_15() {
    let stream = include_bytes!("../testdata/base_backup_15.copy");
    for piece in [usize::MAX, 4093, 7, 1] {
        let backup = Backup::from_copy_stream(stream, piece);
        let tablespace = ("16404.tar".to_owned(), b"/tmp/ta\\ble".to_vec());
        assert_eq!(backup.locations, [tablespace, ("base.tar".to_owned(), Vec::new())]);
        assert_eq!(backup.mismatches(ChecksumAlgorithm::Crc32c, 1), [""; 0]);
        let label = BackupLabel::parse(backup.content("backup_label")).unwrap();
        assert_eq!((label.start, label.label.as_slice()), (Lsn(0x2e00_0028), &b"it's"[..]));
        assert_eq!(
            (label.origin, label.start_segment.as_str()),
            (BackupOrigin::Primary, "00000001000000000000002E")
        );
        let map = TablespaceMap::parse(backup.content("tablespace_map")).unwrap();
        assert_eq!(map.path_of(16404), Some(&b"/tmp/ta\\ble"[..]));
        assert_eq!(map.to_bytes(), backup.content("tablespace_map"));
        assert!(backup.pages_are_valid(label.start) >= 10);
    }
}

#[test]
fn server_17() {
    let backup = Backup::from_copy_stream(include_bytes!("../testdata/base_backup_17.copy"), usize::MAX);
    assert_eq!(backup.locations, [("base.tar".to_owned(), Vec::new())]);
    assert_eq!(backup.mismatches(ChecksumAlgorithm::Sha224, 2), [""; 0]);
    let label = BackupLabel::parse(backup.content("backup_label")).unwrap();
    assert_eq!((label.start, label.incremental_from), (Lsn(0x200_0028), None));
    assert_eq!(TablespaceMap::parse(backup.content("tablespace_map")), Ok(TablespaceMap::default()));
    assert!(backup.pages_are_valid(label.start) > 0);
}

#[test]
fn server_13() {
    let mut backup = Backup {
        manifest: include_bytes!("../testdata/base_backup_13.manifest").to_vec(),
        ..Backup::default()
    };
    backup.unpack_archive("pg_tblspc/16393", include_bytes!("../testdata/base_backup_13_tablespace.tar"));
    backup.unpack_archive(".", include_bytes!("../testdata/base_backup_13_base.tar"));
    assert_eq!(backup.mismatches(ChecksumAlgorithm::Sha256, 1), [""; 0]);
    let label = BackupLabel::parse(backup.content("backup_label")).unwrap();
    assert_eq!(label.start, Lsn(0x400_0028));
    let version = ServerVersion(130_023);
    let map = TablespaceMap::parse_from(backup.content("tablespace_map"), version).unwrap();
    assert_eq!(map.path_of(16393), Some(&b"/tmp/ta\\ble13"[..]));
    assert_eq!(map.to_bytes_for(version), backup.content("tablespace_map"));
    assert!(TablespaceMap::parse(backup.content("tablespace_map")).is_err());
    assert!(backup.pages_are_valid(label.start) > 0);
}

#[test]
fn a_flipped_bit_in_the_stream_does_not_match() {
    let stream = include_bytes!("../testdata/base_backup_17.copy");
    // Inside of the first relation file's content: the archive still reads, the manifest tells.
    let intact = Backup::from_copy_stream(stream, usize::MAX);
    let page = intact.content("base/5/2601");
    let at = stream.windows(64).position(|bytes| bytes == &page[8100..8164]).unwrap();
    let mut bad = stream.to_vec();
    bad[at] ^= 1;
    let backup = Backup::from_copy_stream(&bad, usize::MAX);
    assert_eq!(backup.mismatches(ChecksumAlgorithm::Sha224, 2), ["base/5/2601"]);
}
