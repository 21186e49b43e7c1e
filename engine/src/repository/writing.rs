//! A backup on its way into a repository, from its first pack to the manifest that makes it one.
//!
//! Order: packs are written and synced by the pipeline; then the WAL and the server's manifest, the same way; then the
//! folder of packs is synced, and the manifest published. Before that, nothing refers to what is there; dropped
//! before, it removes its packs.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Sender, bounded, unbounded};
use pgstrata_protocol::manifest::ChecksumAlgorithm;
use pgstrata_protocol::replication::BackupPosition;
use serde::Serialize;

use super::catalogue::{Catalogued, Placed, catalogue};
use super::codec::FrameCompression;
use super::error::RepositoryError;
use super::manifest::ManifestWriter;
use super::names::{BackupId, ClusterName};
use super::pack_ledger::PackLedger;
use super::place::{Repository, now};
use super::records::FolderRecord;
use super::store::{PackPlace, Requests, Uploads};
use super::summary::{BackupSummary, TablespaceSummary};
use crate::buffer::BufferPool;
use crate::failure::Failure;
use crate::pipeline::{Checks, Feeder, Folder, Layout, Member, Packing, Pipeline};
use crate::sink::{Archive, RepositorySink};
use crate::stop::Stop;
use crate::verify::ContentChecks;

/// Records on their way to the catalogue.
const QUEUE: usize = 1024;
/// Bytes of a file that are read at a time.
const PIECE: usize = 256 << 10;
/// The server's manifest, as it is called in a data directory.
const SERVER_MANIFEST: &[u8] = b"backup_manifest";

/// Where in which repository a backup goes.
#[derive(Clone, Debug)]
pub struct RepositoryDestination {
    /// The repository.
    pub repository: Repository,
    /// Whose backup it is.
    pub cluster: ClusterName,
    /// What frames are compressed with.
    pub compression: FrameCompression,
}

impl RepositoryDestination {
    /// The folder for what is kept only until it is packed.
    pub(crate) fn staging_folder(&self) -> Result<PathBuf, Failure> {
        self.repository.store().staging()
    }

    /// How the cluster's packs are written.
    pub(crate) fn packs(&self) -> Result<PackPlace, Failure> {
        self.repository.store().packs(&self.cluster.packs())
    }
}

/// A committed backup.
#[derive(Clone, Debug, Serialize)]
pub struct StoredBackup {
    /// The repository's address.
    pub repository: String,
    /// The cluster's name.
    pub cluster: String,
    /// The backup's id.
    pub backup: String,
    /// Packs that were written.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was asked of the object store, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
}

/// What only the run knows of its backup.
pub(crate) struct BackupFacts<'a> {
    pub(crate) server_version: &'a str,
    pub(crate) system_identifier: u64,
    pub(crate) wal_segment_size: u64,
    pub(crate) folder_mode: u32,
    pub(crate) file_mode: u32,
    pub(crate) range: [BackupPosition; 2],
    pub(crate) label: &'a str,
}

/// A backup under way.
pub(crate) struct RepositoryWriting {
    destination: RepositoryDestination,
    backup: BackupId,
    started: u64,
    staging: PathBuf,
    packs_folder: Arc<Folder>,
    uploads: Option<Arc<dyn Uploads>>,
    packs: Arc<PackLedger>,
    placed: Option<Sender<Placed>>,
    catalogue: Option<JoinHandle<Option<Catalogued>>>,
    tablespaces: Vec<TablespaceSummary>,
    pub(crate) sink: RepositorySink,
    committed: bool,
}

impl RepositoryWriting {
    /// Begins a backup. Its staging folder is for the caller to make and to remove.
    pub(crate) fn begin(
        destination: &RepositoryDestination,
        system_identifier: u64,
        archives: &[Archive],
        stop: &Stop<Failure>,
    ) -> Result<Self, Failure> {
        let RepositoryDestination { repository, cluster, .. } = destination;
        repository.claim_identity(cluster, system_identifier)?;
        let backup = repository.next_backup(cluster)?;
        let staging = destination.staging_folder()?;
        let (packs_folder, uploads) = match destination.packs()? {
            PackPlace::Folder(path) => (Folder::open(&path)?, None),
            // No file is made; the path is for messages.
            PackPlace::Uploads(uploads) => {
                let path = format!("{}/{}", repository.store().address(), cluster.packs());
                (Folder::named(&staging, path)?, Some(uploads))
            }
        };
        let staging = staging.join(format!("pgstrata-{backup}"));
        let manifest = ManifestWriter::begin(repository, &cluster.manifest(backup))?;
        let (placed, records) = bounded(QUEUE);
        let switch = stop.clone();
        let run = move || {
            let _told = switch.tell_of_panics("the catalogue");
            match catalogue(&records, manifest) {
                Ok(catalogued) => Some(catalogued),
                Err(Failure::Stopped) => None,
                Err(failure) => {
                    switch.throw(failure);
                    None
                }
            }
        };
        let catalogue = thread::Builder::new().name("catalogue".into()).spawn(run);
        let catalogue = catalogue.map_err(|error| Failure::disk("start thread", "catalogue", error))?;
        let tablespace = |archive: &Archive| {
            Some(TablespaceSummary { oid: archive.tablespace?, location: archive.location.clone() })
        };
        Ok(Self {
            destination: destination.clone(),
            backup,
            started: now(),
            staging,
            sink: RepositorySink::new(Arc::clone(&packs_folder)),
            packs_folder,
            uploads,
            packs: Arc::new(PackLedger::new(backup)),
            placed: Some(placed),
            catalogue: Some(catalogue),
            tablespaces: archives.iter().filter_map(tablespace).collect(),
            committed: false,
        })
    }

    /// A folder of this backup's own, for what is kept only until it is packed.
    pub(crate) fn staging(&self) -> &Path {
        &self.staging
    }

    /// The folder that streamed WAL is written to.
    pub(crate) fn make_wal_folder(&self) -> Result<Arc<Folder>, Failure> {
        let folder = self.staging.join("pg_wal");
        for path in [folder.clone(), folder.join("archive_status")] {
            fs::create_dir(&path).map_err(|error| Failure::disk("create folder", path, error))?;
        }
        Folder::open(&folder)
    }

    /// How a pipeline is to pack, with so many buffers for what is packed.
    pub(crate) fn packing(&self, buffers: usize) -> Packing {
        Packing {
            compression: self.destination.compression,
            sealing: self.destination.repository.sealing().clone(),
            cluster: self.destination.cluster.clone(),
            folder: Arc::clone(&self.packs_folder),
            uploads: self.uploads.clone(),
            packs: Arc::clone(&self.packs),
            placed: self.placed.clone().expect("the backup is under way"),
            buffers,
        }
    }

    /// Packs WAL and the server's manifest behind the `files` that came, and makes it all a backup.
    pub(crate) fn commit(
        mut self,
        facts: &BackupFacts<'_>,
        mut layout: Layout,
        (buffers, buffer_size): (usize, usize),
        files: u64,
        manifest: File,
        stop: &Stop<Failure>,
    ) -> Result<StoredBackup, Failure> {
        layout.packing = Some(self.packing(buffers));
        let pool =
            BufferPool::new(buffers, buffer_size).map_err(|error| Failure::Target(error.to_string()))?;
        let wake = pool.clone();
        stop.on_thrown(move || wake.close());
        let checks = Checks { algorithm: ChecksumAlgorithm::None, content: ContentChecks::default() };
        // Nobody compares these; their number is that of the WAL segments.
        let (ledger, _kept) = unbounded();
        let (mut pipeline, feeder) = Pipeline::start(&layout, &pool, &checks, &ledger, stop)?;
        layout.packing = None;
        drop(ledger);
        let fed = self.feed_rest(feeder, facts, files, manifest);
        if let Err(failure) = &fed
            && !matches!(failure, Failure::Stopped)
        {
            stop.throw_quietly();
        }
        pipeline.finish();
        drop(pipeline);
        let wal_bytes = fed?;
        self.placed = None;
        let catalogued = self.catalogue.take().and_then(|thread| thread.join().ok()).flatten();
        if stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        let Catalogued { manifest, files, bytes } = catalogued.ok_or(Failure::Stopped)?;
        let packs = self.packs.table().ok_or(Failure::Stopped)?;
        let stored_bytes = packs.iter().map(|pack| pack.length).sum();
        let RepositoryDestination { repository, cluster, compression } = &self.destination;
        let [start, end] = facts.range;
        let summary = BackupSummary {
            cluster: cluster.to_string(),
            backup: self.backup.to_string(),
            parent: None,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            source: "stream".into(),
            server_version: facts.server_version.to_owned(),
            system_identifier: facts.system_identifier,
            wal_segment_size: facts.wal_segment_size,
            start_lsn: start.lsn.to_string(),
            start_timeline: start.timeline.0,
            end_lsn: end.lsn.to_string(),
            end_timeline: end.timeline.0,
            label: facts.label.to_owned(),
            started: self.started,
            ended: now(),
            compression: compression.to_string(),
            folder_mode: facts.folder_mode,
            files,
            bytes,
            wal_bytes,
            stored_bytes,
            tablespaces: self.tablespaces.clone(),
            requires: Vec::new(),
        };
        let store = repository.store();
        store.sync_folder(&cluster.packs())?;
        let sink = std::mem::replace(&mut self.sink, RepositorySink::new(Arc::clone(&self.packs_folder)));
        let name = cluster.manifest(self.backup);
        let folders = all_folders(sink.into_folders(), &self.tablespaces, facts.folder_mode);
        let published = manifest.commit(&folders, &packs, &summary);
        // Where the outcome is not known, it may be there: its packs stay.
        self.committed = match &published {
            // Of another backup of this name the packs have these names.
            Ok(_) => true,
            Err(_) => !matches!(store.open(&name), Ok(None)),
        };
        if published?.is_none() {
            let hint = "take the backup again.";
            return Err(RepositoryError::new(name, "a backup of this name is there already", hint).into());
        }
        Ok(StoredBackup {
            repository: store.address(),
            cluster: summary.cluster,
            backup: summary.backup,
            packs: packs.len() as u64,
            bytes: stored_bytes,
            requests: store.requests(),
        })
    }

    /// Feeds the files that did not come with the server's. Returns the bytes of WAL.
    fn feed_rest(
        &mut self,
        mut feeder: Feeder,
        facts: &BackupFacts<'_>,
        files: u64,
        mut manifest: File,
    ) -> Result<u64, Failure> {
        let (mut sequence, mut wal_bytes) = (files, 0);
        let wal = self.staging.join("pg_wal");
        for (folder, prefix) in
            [(wal.clone(), "pg_wal"), (wal.join("archive_status"), "pg_wal/archive_status")]
        {
            for name in regular_files(&folder)? {
                let path = folder.join(&name);
                let failed = |error| Failure::disk("read", &path, error);
                let file = File::open(&path).map_err(failed)?;
                let size = file.metadata().map_err(failed)?.len();
                wal_bytes += size;
                let path = format!("{prefix}/{name}").into_bytes();
                let member = Member { sequence, path, size, mode: facts.file_mode, modified: now() };
                self.feed(&mut feeder, member, file)?;
                sequence += 1;
            }
        }
        let failed = |error| Failure::disk("read", "backup_manifest", error);
        let size = manifest.seek(SeekFrom::End(0)).map_err(failed)?;
        manifest.seek(SeekFrom::Start(0)).map_err(failed)?;
        let (path, mode) = (SERVER_MANIFEST.to_vec(), facts.file_mode);
        self.feed(&mut feeder, Member { sequence, path, size, mode, modified: now() }, manifest)?;
        self.sink.end_group(&mut feeder)?;
        Ok(wal_bytes)
    }

    fn feed(&mut self, feeder: &mut Feeder, member: Member, mut file: File) -> Result<(), Failure> {
        let path = member.display_path().to_owned();
        let failed = |error| Failure::disk("read", &path, error);
        let (mut left, mut piece) = (member.size, vec![0; PIECE]);
        self.sink.begin_file(feeder, member)?;
        while left > 0 {
            let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            file.read_exact(&mut piece[..most]).map_err(failed)?;
            feeder.append(&piece[..most])?;
            left -= most as u64;
        }
        self.sink.end_file(feeder)
    }
}

impl Drop for RepositoryWriting {
    fn drop(&mut self) {
        self.placed = None;
        // Its senders are gone with the pipelines; the manifest that it was writing goes with it.
        drop(self.catalogue.take().map(JoinHandle::join));
        if !self.committed {
            let packs = self.packs.begun().into_iter().map(|pack| self.destination.cluster.pack(pack));
            // What stays is garbage that nothing refers to.
            let _ = self.destination.repository.store().remove(&packs.collect::<Vec<_>>());
        }
    }
}

/// Folders once each, every one behind the one that holds it. A tablespace that lies in the data directory has a
/// folder there, which comes in no archive of its own.
fn all_folders(
    mut folders: Vec<FolderRecord>,
    tablespaces: &[TablespaceSummary],
    mode: u32,
) -> Vec<FolderRecord> {
    let in_place = tablespaces.iter().filter(|tablespace| !tablespace.is_linked());
    folders.extend(in_place.map(|tablespace| FolderRecord { path: tablespace.location.clone(), mode }));
    // By bytes, a folder's path is before all that begins with it. The sort is stable: what came is before what is added.
    folders.sort_by(|one, other| one.path.cmp(&other.path));
    folders.dedup_by(|later, first| later.path == first.path);
    folders
}

/// The regular files of a folder, by name. None where there is no such folder.
fn regular_files(folder: &Path) -> Result<Vec<String>, Failure> {
    let failed = |error| Failure::disk("list folder", folder, error);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort_unstable();
    Ok(names)
}
