//! A backup on its way into a repository, from its first pack to the manifest that makes it one.
//!
//! Order: packs are written and synced by the pipeline; then the WAL and the server's manifest, the same way; then the
//! folder of packs is synced, and the manifest published. Before that, nothing refers to what is there; dropped
//! before, it removes its incomplete packs. Complete ones stay: the next backup goes on from them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Sender, bounded, unbounded};
use pgstrata_protocol::control::ControlFile;
use pgstrata_protocol::manifest::ChecksumAlgorithm;
use pgstrata_protocol::replication::BackupPosition;
use serde::Serialize;

use super::base_backup::{BaseBackup, BaseFiles};
use super::catalogue::{Catalogued, Placed, catalogue};
use super::codec::FrameCompression;
use super::container::ObjectKind;
use super::error::RepositoryError;
use super::manifest::{Manifest, ManifestWriter};
use super::names::{BackupId, ClusterName};
use super::object_reader::ObjectReader;
use super::pack_ledger::PackLedger;
use super::place::{Repository, now};
use super::records::FolderRecord;
use super::retention::{Lease, Marks, Purpose, is_fenced};
use super::reuse::{Reuse, ReuseConfig, ReuseFrom, Reused, Search, ends};
use super::store::{PackPlace, Requests, Uploads};
use super::summary::{BackupSummary, DatabaseSummary, TablespaceSummary};
use crate::buffer::BufferPool;
use crate::failure::Failure;
use crate::pipeline::{Checks, Feeder, Folder, Layout, Member, Packing, Pipeline};
use crate::sink::{Archive, RepositorySink};
use crate::stop::Stop;
use crate::tracking::{ChangesSummary, ChangesWanted, SPARSE_PERCENT, check_control, is_looked_up};
use crate::verify::ContentChecks;

/// The size at which a pack is ended, unless another is asked for.
pub const PACK_SIZE: u64 = 64 << 20;
/// How long data waits for the index of older frames. What comes after that, and before it is there, is stored anew.
const PATIENCE: Duration = Duration::from_secs(30);
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
    /// A pack of so many bytes is ended; [`PACK_SIZE`] unless said otherwise.
    pub pack_size: u64,
    /// What may be taken from older packs.
    pub reuse: ReuseConfig,
    /// What a backup goes by that is laid over an older one.
    pub changes: ChangesWanted,
}

impl RepositoryDestination {
    /// The folder for what is kept only until it is packed. Not in an encrypted repository: WAL lies there as it came.
    pub(crate) fn staging_folder(&self) -> Result<PathBuf, Failure> {
        if self.repository.sealing().is_encrypted() {
            return Ok(std::env::temp_dir());
        }
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
    /// The backup that it refers to, if it does.
    pub parent: Option<String>,
    /// What it went by where it could be laid over an older one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<ChangesSummary>,
    /// Packs that were written.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of files that older backups' packs held already.
    pub reused_bytes: u64,
    /// Bytes of files that complete packs of interrupted backups held already.
    pub resumed_bytes: u64,
    /// What was wrong with older packs, so that it was stored anew.
    pub refused: Vec<String>,
    /// What was asked of the object store, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
}

/// What only the run knows of its backup.
pub(crate) struct BackupFacts<'a> {
    /// Where the data came from.
    pub(crate) source: &'a str,
    pub(crate) server_version: &'a str,
    pub(crate) system_identifier: u64,
    pub(crate) wal_segment_size: u64,
    pub(crate) folder_mode: u32,
    pub(crate) file_mode: u32,
    pub(crate) range: [BackupPosition; 2],
    pub(crate) label: &'a str,
    pub(crate) databases: Vec<DatabaseSummary>,
}

/// Who hears what a failed backup leaves.
pub(crate) type Tell = Box<dyn Fn(&str) + Send>;

/// A backup under way.
pub(crate) struct RepositoryWriting {
    destination: RepositoryDestination,
    backup: BackupId,
    started: u64,
    staging: PathBuf,
    packs_folder: Arc<Folder>,
    uploads: Option<Arc<dyn Uploads>>,
    packs: Arc<PackLedger>,
    reuse: Arc<OnceLock<Reuse>>,
    search: Option<JoinHandle<Option<Failure>>>,
    tell: Tell,
    placed: Option<Sender<Placed>>,
    catalogue: Option<JoinHandle<Option<Catalogued>>>,
    tablespaces: Vec<TablespaceSummary>,
    /// The backup that this one is laid over, if it is.
    base: Option<Arc<BaseBackup>>,
    /// What it goes by, for the record.
    pub(crate) changes: Option<ChangesSummary>,
    pub(crate) sink: RepositorySink,
    committed: bool,
    /// Given back once the backup is there, or its packs are gone.
    lease: Arc<Lease>,
}

impl RepositoryWriting {
    /// Begins a backup. Its staging folder is for the caller to make and to remove.
    pub(crate) fn begin(
        destination: &RepositoryDestination,
        system_identifier: u64,
        archives: &[Archive],
        tell: Tell,
        stop: &Stop<Failure>,
    ) -> Result<Self, Failure> {
        let RepositoryDestination { repository, cluster, reuse: config, .. } = destination;
        let backup = repository.next_backup(cluster)?;
        // Before anything is looked at that others may remove.
        let lease = Lease::take(repository, cluster, Purpose::Backup, backup, &[], Some(system_identifier))?;
        let lease = Arc::new(lease);
        repository.release_identity(cluster, system_identifier, &lease)?;
        repository.claim_identity(cluster, system_identifier)?;
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
        let reuse = Arc::new(OnceLock::new());
        let folder = uploads.is_none().then(|| Arc::clone(&packs_folder));
        let search = search(destination, &lease, folder, &reuse, stop)?;
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
            packs: Arc::new(PackLedger::new(backup, config.memory / 2)),
            reuse,
            search,
            tell,
            uploads,
            placed: Some(placed),
            catalogue: Some(catalogue),
            tablespaces: archives.iter().filter_map(tablespace).collect(),
            base: None,
            changes: None,
            committed: false,
            lease,
        })
    }

    /// The cluster's backups, the oldest first.
    pub(crate) fn older_backups(&self) -> Result<Vec<BackupId>, Failure> {
        self.destination.repository.backups(&self.destination.cluster)
    }

    /// Opens an older backup to rely on it; none where it is too late for that.
    pub(crate) fn open_older(&self, id: BackupId) -> Result<Option<Manifest>, Failure> {
        let RepositoryDestination { repository, cluster, .. } = &self.destination;
        if self.lease.hold(id)? { Manifest::open(repository, cluster, id) } else { Ok(None) }
    }

    /// Lays this backup over an older one that is held, unless their control files do not go together. Says whether
    /// pages of both have checksums.
    pub(crate) fn open_base(
        &mut self,
        manifest: Manifest,
        control: &ControlFile,
        stop: &Stop<Failure>,
    ) -> Result<(Arc<BaseBackup>, bool), Failure> {
        let scratch = self.destination.staging_folder()?;
        let memory = self.destination.reuse.memory / 4;
        let packs = Arc::clone(&self.packs);
        let (base, refused) =
            BaseBackup::open(Arc::new(manifest), packs, (&scratch, memory), stop, is_looked_up)?;
        let base = Arc::new(base);
        let has_checksums = check_control(&mut BaseFiles::of(&base)?, &base, control)?;
        for failure in refused {
            (self.tell)(&format!("stored anew what an older pack should have held: {failure}"));
        }
        self.packs.avoid(base.sparse(SPARSE_PERCENT));
        self.base = Some(Arc::clone(&base));
        Ok((base, has_checksums))
    }

    /// The folder of packs.
    pub(crate) fn packs_folder(&self) -> &Arc<Folder> {
        &self.packs_folder
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
            pack_size: self.destination.pack_size,
            uploads: self.uploads.clone(),
            packs: Arc::clone(&self.packs),
            reuse: Arc::clone(&self.reuse),
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
        let own = packs.iter().filter(|pack| pack.id.backup == self.backup);
        let (own_packs, stored_bytes) =
            own.fold((0, 0), |(packs, bytes), pack| (packs + 1, bytes + pack.length));
        let failed = self.search.take().and_then(|thread| thread.join().ok()).flatten();
        let mut reused = Reused::default();
        if let Some(reuse) = self.reuse.get() {
            // Leases keep them; this is for whoever removes packs by hand.
            reuse.check_adopted()?;
            reused = reuse.outcome();
        }
        reused.refused.extend(failed.map(|failure| failure.to_string()));
        if let Some(base) = &self.base {
            base.check_adopted()?;
            let id = base.manifest().summary.backup.parse();
            reused.parent = Some(id.map_err(|error| Failure::Target(format!("{error}")))?);
        }
        let kept_bytes = self.changes.as_ref().map_or(0, |changes| changes.kept_bytes);
        let sink = std::mem::replace(&mut self.sink, RepositorySink::new(Arc::clone(&self.packs_folder)));
        let folder_owner = sink.folder_owner();
        let (folders, owners) = sink.into_folders();
        let RepositoryDestination { repository, cluster, compression, .. } = &self.destination;
        let [start, end] = facts.range;
        let summary = BackupSummary {
            cluster: cluster.to_string(),
            backup: self.backup.to_string(),
            parent: reused.parent.map(|parent| parent.to_string()),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            source: facts.source.to_owned(),
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
            folder_owner,
            owners: owners.into_summary(),
            databases: facts.databases.clone(),
            files,
            bytes,
            wal_bytes,
            stored_bytes,
            reused_bytes: reused.from_backup + reused.from_interrupted + kept_bytes,
            changes: self.changes.clone(),
            tablespaces: self.tablespaces.clone(),
            requires: Vec::new(),
        };
        let store = repository.store();
        store.sync_folder(&cluster.packs())?;
        let name = cluster.manifest(self.backup);
        let folders = all_folders(folders, &self.tablespaces, (facts.folder_mode, folder_owner));
        let published = manifest.commit(&folders, &packs, &summary);
        // Where the outcome is not known, it may be there: its packs stay.
        self.committed = match &published {
            Ok(Some(_)) => true,
            // Of another backup of this name the packs have these names.
            Ok(None) | Err(_) => {
                !matches!(store.open(&name), Ok(None))
                    && !matches!(is_fenced(repository, cluster, self.backup), Ok(true))
            }
        };
        let published = published?;
        // A store that takes a large object in parts puts it over a fence, which then shows by its mark alone.
        if published.is_some()
            && self.uploads.is_some()
            && Marks::list(repository, cluster)?.dead().any(|dead| dead == self.backup)
        {
            store.remove(std::slice::from_ref(&name))?;
            self.committed = false;
            let what =
                "this backup was taken for dead by another run: its lease had not been renewed in time";
            let hint = "see whether this machine or its clock stood still, and take the backup again.";
            return Err(RepositoryError::new(name, what, hint).into());
        }
        if published.is_none() {
            if is_fenced(repository, cluster, self.backup)? {
                let what =
                    "this backup was taken for dead by another run: its lease had not been renewed in time";
                let hint = "see whether this machine or its clock stood still, and take the backup again.";
                return Err(RepositoryError::new(name, what, hint).into());
            }
            let hint = "take the backup again.";
            return Err(RepositoryError::new(name, "a backup of this name is there already", hint).into());
        }
        Ok(StoredBackup {
            repository: store.address(),
            cluster: summary.cluster,
            backup: summary.backup,
            packs: own_packs,
            bytes: stored_bytes,
            reused_bytes: reused.from_backup + kept_bytes,
            parent: summary.parent,
            changes: summary.changes,
            resumed_bytes: reused.from_interrupted,
            refused: reused.refused,
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
        // What came beside the stream is of whoever runs this; in a data directory all is of one owner.
        let owner = self.sink.folder_owner();
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
                let (mode, modified) = (facts.file_mode, now());
                let member = Member { sequence, path, size, mode, modified, owner, overlay: None };
                self.feed(&mut feeder, member, file)?;
                sequence += 1;
            }
        }
        let failed = |error| Failure::disk("read", "backup_manifest", error);
        let size = manifest.seek(SeekFrom::End(0)).map_err(failed)?;
        manifest.seek(SeekFrom::Start(0)).map_err(failed)?;
        let (path, mode) = (SERVER_MANIFEST.to_vec(), facts.file_mode);
        let member = Member { sequence, path, size, mode, modified: now(), owner, overlay: None };
        self.feed(&mut feeder, member, manifest)?;
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
            self.settle_failed();
        }
        drop(self.search.take().map(JoinHandle::join));
    }
}

impl RepositoryWriting {
    /// What a failed backup leaves: complete packs, for the next one to go on from. Others may refer to them already.
    fn settle_failed(&self) {
        let RepositoryDestination { repository, cluster, .. } = &self.destination;
        let (mut kept, mut bytes, mut gone) = (0u64, 0, Vec::new());
        for pack in self.packs.begun().into_iter().map(|pack| cluster.pack(pack)) {
            match ObjectReader::open(repository, &pack, ObjectKind::Pack) {
                Ok(Some(complete)) => {
                    kept += 1;
                    bytes += complete.length();
                }
                // Nobody else can take it for a pack.
                Ok(None) => {}
                Err(Failure::Repository(error)) if error.is_of_the_object() => gone.push(pack),
                // What cannot be read now may be complete, and another backup may refer to it. A store that does not
                // answer is not asked for each.
                Err(Failure::Repository(_)) => break,
                Err(_) => {}
            }
        }
        // What stays of these is garbage that nothing refers to.
        let _ = repository.store().remove(&gone);
        if kept > 0 {
            (self.tell)(&format!(
                "{kept} packs of {bytes} bytes that this backup has stored are kept: the next backup of cluster \
                 \"{cluster}\" goes on from them"
            ));
        }
    }
}

/// Begins to look for older packs, and gives that a moment before data flows.
fn search(
    destination: &RepositoryDestination,
    lease: &Arc<Lease>,
    folder: Option<Arc<Folder>>,
    found: &Arc<OnceLock<Reuse>>,
    stop: &Stop<Failure>,
) -> Result<Option<JoinHandle<Option<Failure>>>, Failure> {
    let RepositoryDestination { repository, cluster, reuse: config, .. } = destination;
    if config.from == ReuseFrom::Nothing {
        return Ok(None);
    }
    let scratch = destination.staging_folder()?;
    let search = Search {
        own: lease.holder(),
        repository: repository.clone(),
        cluster: cluster.clone(),
        folder,
        config: *config,
        scratch,
    };
    let (ended, wait_ended) = bounded::<()>(1);
    let (found, stop, lease) = (Arc::clone(found), stop.clone(), Arc::clone(lease));
    let run = move || {
        let _told = stop.tell_of_panics("the search for older packs");
        // Gone when this thread is.
        let _ended = ended;
        match search.gather(&lease, &stop) {
            Ok(reuse) => {
                let _ = found.set(reuse);
                None
            }
            Err(Failure::Stopped) => None,
            Err(failure) if ends(&failure) => {
                stop.throw(failure);
                None
            }
            // The backup is as good without it.
            Err(failure) => Some(failure),
        }
    };
    let thread = thread::Builder::new().name("older packs".into()).spawn(run);
    let thread = thread.map_err(|error| Failure::disk("start thread", "older packs", error))?;
    let _ = wait_ended.recv_timeout(PATIENCE);
    Ok(Some(thread))
}

/// Folders once each, every one behind the one that holds it. A tablespace that lies in the data directory has a
/// folder there, which comes in no archive of its own.
fn all_folders(
    mut folders: Vec<FolderRecord>,
    tablespaces: &[TablespaceSummary],
    (mode, owner): (u32, u16),
) -> Vec<FolderRecord> {
    let in_place = tablespaces.iter().filter(|tablespace| !tablespace.is_linked());
    folders.extend(in_place.map(|tablespace| FolderRecord {
        path: tablespace.location.clone(),
        mode,
        owner,
    }));
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
