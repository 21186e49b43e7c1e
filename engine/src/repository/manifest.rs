//! A backup's manifest: its summary and its packs at once, its files as a stream.

use super::codec::FrameDecoder;
use super::container::{Built, FrameKind, ObjectKind};
use super::error::RepositoryError;
use super::names::{BackupId, ClusterName};
use super::object_reader::ObjectReader;
use super::object_writer::ObjectWriter;
use super::place::{Repository, read_summary};
use super::records::{BadRecord, FileRecord, FolderRecord, PACKS_MAX, PackRecord};
use super::summary::BackupSummary;
use crate::failure::Failure;

/// Plain bytes of a frame of records, about.
const FRAME: usize = 256 << 10;

/// An open manifest.
#[derive(Debug)]
pub struct Manifest {
    object: ObjectReader,
    /// What the backup is.
    pub summary: BackupSummary,
    /// The packs that maps count from.
    pub packs: Vec<PackRecord>,
    repository: Repository,
    cluster: ClusterName,
}

impl Manifest {
    /// Opens a manifest and reads its summary only.
    pub(super) fn open_summary(
        repository: &Repository,
        cluster: &ClusterName,
        id: BackupId,
    ) -> Result<Option<(ObjectReader, BackupSummary)>, Failure> {
        let name = cluster.manifest(id);
        let Some(object) = ObjectReader::open(repository, &name, ObjectKind::Manifest)? else {
            return Ok(None);
        };
        let summary: BackupSummary = read_summary(&object)?;
        if (summary.cluster.as_str(), &summary.backup) != (cluster.as_str(), &id.to_string()) {
            let what = format!("it is backup {} of cluster \"{}\"", summary.backup, summary.cluster);
            return Err(RepositoryError::damaged(&name, what).into());
        }
        Ok(Some((object, summary)))
    }

    pub(super) fn open(
        repository: &Repository,
        cluster: &ClusterName,
        id: BackupId,
    ) -> Result<Option<Self>, Failure> {
        let Some((object, summary)) = Self::open_summary(repository, cluster, id)? else { return Ok(None) };
        let name = cluster.manifest(id);
        let damaged = |what: String| Failure::from(RepositoryError::damaged(&name, what));
        let mut oids: Vec<_> = summary.tablespaces.iter().map(|tablespace| tablespace.oid).collect();
        if let Some(oid) = first_twice(&mut oids) {
            return Err(damaged(format!("tablespace {oid} comes twice")));
        }
        let mut packs = Vec::new();
        each_record(&object, FrameKind::Packs, PackRecord::decode, |pack| {
            if packs.len() >= PACKS_MAX {
                return Err(damaged(format!("its table has more than {PACKS_MAX} packs")));
            }
            packs.push(pack);
            Ok(())
        })?;
        let mut ids: Vec<_> = packs.iter().map(|pack: &PackRecord| pack.id).collect();
        if let Some(pack) = first_twice(&mut ids) {
            return Err(damaged(format!("pack {pack} comes twice in its table")));
        }
        drop(ids);
        if usize::from(summary.folder_owner) > summary.owners.len() {
            let (owner, known) = (summary.folder_owner, summary.owners.len());
            return Err(damaged(format!("the data directory is of owner {owner} of {known}")));
        }
        let (repository, cluster) = (repository.clone(), cluster.clone());
        Ok(Some(Self { object, summary, packs, repository, cluster }))
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> &ObjectReader {
        &self.object
    }

    /// Hands out every folder.
    ///
    /// # Errors
    /// Where the manifest is damaged, or what `visit` failed with.
    pub fn each_folder(
        &self,
        mut visit: impl FnMut(FolderRecord) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        each_record(&self.object, FrameKind::Folders, FolderRecord::decode, |folder| {
            self.check_owner(folder.owner, &folder.path)?;
            visit(folder)
        })
    }

    /// Hands out every file, as they arrived.
    ///
    /// # Errors
    /// As [`Self::each_folder`].
    pub fn each_file(&self, mut visit: impl FnMut(FileRecord) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut files = 0;
        each_record(&self.object, FrameKind::Files, FileRecord::decode, |file| {
            files += 1;
            self.check_owner(file.owner, &file.path)?;
            visit(file)
        })?;
        if files == self.summary.files {
            return Ok(());
        }
        let what = format!("it lists {files} files, expected {} by its summary", self.summary.files);
        Err(RepositoryError::damaged(self.object.name(), what).into())
    }

    fn check_owner(&self, owner: u16, path: &[u8]) -> Result<(), Failure> {
        let known = self.summary.owners.len();
        if usize::from(owner) <= known {
            return Ok(());
        }
        let what = format!("\"{}\" is of owner {owner} of {known}", path.escape_ascii());
        Err(RepositoryError::damaged(self.object.name(), what).into())
    }

    /// A pack's name in the store.
    #[must_use]
    pub fn pack_name(&self, pack: &PackRecord) -> String {
        self.cluster.pack(pack.id)
    }

    /// Opens a pack of the table and compares it with what the table says.
    ///
    /// # Errors
    /// Where it is missing or another.
    pub fn open_pack(&self, index: u32) -> Result<ObjectReader, Failure> {
        let Some(pack) = self.packs.get(index as usize) else {
            let what = format!("a map names pack {index} of {}", self.packs.len());
            return Err(RepositoryError::damaged(self.object.name(), what).into());
        };
        if !pack.needed {
            let what = format!("a map names pack {}, which its table says is not needed", pack.id);
            return Err(RepositoryError::damaged(self.object.name(), what).into());
        }
        let name = self.pack_name(pack);
        let object = ObjectReader::open(&self.repository, &name, ObjectKind::Pack)?;
        let Some(object) = object else {
            return Err(RepositoryError::damaged(name, "it is missing").into());
        };
        let found = (object.length(), object.frames().len(), object.checksum());
        if found != (pack.length, pack.frames as usize, pack.checksum) {
            let what = format!(
                "found {} bytes in {} frames, which are not the {} bytes in {} frames that {} was made with",
                found.0,
                found.1,
                pack.length,
                pack.frames,
                self.object.name()
            );
            return Err(RepositoryError::damaged(name, what).into());
        }
        if let Some(number) = object.frames().iter().position(|frame| frame.kind != FrameKind::Data) {
            return Err(RepositoryError::damaged(name, format!("frame {number} holds no data")).into());
        }
        Ok(object)
    }
}

/// Hands out every record of a manifest's table of packs, without a table of its own.
pub(super) fn each_pack(
    object: &ObjectReader,
    visit: impl FnMut(PackRecord) -> Result<(), Failure>,
) -> Result<(), Failure> {
    each_record(object, FrameKind::Packs, PackRecord::decode, visit)
}

/// The first that comes twice, once they are sorted.
fn first_twice<T: Ord + Copy>(all: &mut [T]) -> Option<T> {
    all.sort_unstable();
    all.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

fn each_record<T>(
    object: &ObjectReader,
    kind: FrameKind,
    decode: impl Fn(&mut &[u8]) -> Result<Option<T>, BadRecord>,
    mut visit: impl FnMut(T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut decoder = FrameDecoder::new().map_err(|error| Failure::Target(error.to_string()))?;
    let mut stored = Vec::new();
    for number in object.of_kind(kind) {
        let mut bytes = object.frame(number, &mut stored, &mut decoder)?;
        let bad = |error: BadRecord| {
            let what = format!("frame {number}: {error}");
            if error.unknown {
                RepositoryError::unknown(object.name(), what)
            } else {
                RepositoryError::damaged(object.name(), what)
            }
        };
        while let Some(record) = decode(&mut bytes).map_err(bad)? {
            visit(record)?;
        }
    }
    Ok(())
}

/// A manifest being written.
pub(super) struct ManifestWriter {
    object: ObjectWriter,
    records: Vec<u8>,
}

impl ManifestWriter {
    /// Begins the manifest of this name.
    pub(super) fn begin(repository: &Repository, name: &str) -> Result<Self, Failure> {
        let object = ObjectWriter::begin(repository, ObjectKind::Manifest, name)?;
        Ok(Self { object, records: Vec::new() })
    }

    /// Appends a file. Records do not go over the end of a frame.
    pub(super) fn file(&mut self, file: &FileRecord) -> Result<(), Failure> {
        let begin = self.records.len();
        file.encode(&mut self.records).map_err(refused)?;
        if self.records.len() < FRAME {
            return Ok(());
        }
        let last = self.records.split_off(begin);
        self.end_frame(FrameKind::Files)?;
        self.records = last;
        Ok(())
    }

    fn end_frame(&mut self, kind: FrameKind) -> Result<(), Failure> {
        self.object.frame(kind, &self.records)?;
        self.records.clear();
        Ok(())
    }

    /// Appends what is known at the end, and publishes it: the backup exists from here on. `None` where the name is
    /// taken.
    pub(super) fn commit(
        mut self,
        folders: &[FolderRecord],
        packs: &[PackRecord],
        summary: &BackupSummary,
    ) -> Result<Option<Built>, Failure> {
        if packs.len() > PACKS_MAX {
            let what = format!("{} packs, expected at most {PACKS_MAX}", packs.len());
            return Err(RepositoryError::new(
                "manifest",
                what,
                "split the cluster; tell the makers of pgstrata.",
            )
            .into());
        }
        self.end_frame(FrameKind::Files)?;
        for folder in folders {
            folder.encode(&mut self.records).map_err(refused)?;
            if self.records.len() >= FRAME {
                self.end_frame(FrameKind::Folders)?;
            }
        }
        self.end_frame(FrameKind::Folders)?;
        for pack in packs {
            pack.encode(&mut self.records);
            if self.records.len() >= FRAME {
                self.end_frame(FrameKind::Packs)?;
            }
        }
        self.end_frame(FrameKind::Packs)?;
        self.object.frame(FrameKind::Summary, &serde_json::to_vec(summary).expect("a summary is JSON"))?;
        self.object.publish()
    }
}

fn refused(error: BadRecord) -> Failure {
    RepositoryError::new(
        "manifest",
        error,
        "this backup cannot be kept in a repository; tell the makers of pgstrata.",
    )
    .into()
}
