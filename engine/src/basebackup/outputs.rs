//! What a run writes besides the pipeline's data: the sink's folders, the manifest, the WAL, the final names.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pgstrata_protocol::basebackup::{CompressionMethod, CompressionSpec};
use pgstrata_protocol::replication::BackupPosition;

use super::config::{Destination, SyncMethod};
use super::finish::{
    Held, MANIFEST_TMP, PlainEnd, RecoveryFiles, STANDBY_SIGNAL, finish_tar, sync_file_systems,
};
use super::prepare::{PlainFolders, ServerFacts};
use super::run::Run;
use super::target::Claims;
use crate::failure::Failure;
use crate::pipeline::{Folder, gzip_level};
use crate::repository::RepositoryWriting;
use crate::sink::{Archive, CompressedTarSink, DirectorySink, DiscardSink, PARTIAL, Sink, TarSink};
use crate::wal::{SegmentWriter, WalDestination};

/// Name of the WAL archive of a tar backup.
const WAL_ARCHIVE: &str = "pg_wal.tar";

/// The sink, and what it takes to end what it began.
pub(super) enum Outputs {
    Plain { sink: DirectorySink, base: Arc<Folder>, made: Vec<PathBuf> },
    Tar { sink: TarSink, folder: Arc<Folder> },
    CompressedTar { sink: CompressedTarSink, folder: Arc<Folder> },
    Stdout { sink: Box<dyn Sink> },
    Repository(Box<RepositoryWriting>),
    Discard { sink: DiscardSink },
}

impl Outputs {
    pub(super) fn sink(&mut self) -> &mut dyn Sink {
        match self {
            Outputs::Plain { sink, .. } => sink,
            Outputs::Tar { sink, .. } => sink,
            Outputs::CompressedTar { sink, .. } => sink,
            Outputs::Stdout { sink } => &mut **sink,
            Outputs::Repository(writing) => &mut writing.sink,
            Outputs::Discard { sink } => sink,
        }
    }
}

impl Run<'_> {
    pub(super) fn make_outputs(
        &self,
        claims: &mut Claims,
        facts: &ServerFacts,
        archives: &[Archive],
        recovery: Option<&str>,
        streams_wal: bool,
    ) -> Result<Outputs, Failure> {
        match &self.config.destination {
            Destination::Directory { .. } => {
                let folders = PlainFolders::make(claims, self.config, facts, archives, streams_wal)?;
                let PlainFolders { base, tablespaces, wal, expected, made } = folders;
                let sink = DirectorySink::new(Arc::clone(&base), tablespaces, wal, expected);
                Ok(Outputs::Plain { sink, base, made })
            }
            Destination::Tar { path } => {
                let folder = Folder::open(path)?;
                if let Some(method) = self.config.arrives_compressed() {
                    let sink = CompressedTarSink::new(Arc::clone(&folder), facts.file_mode, method);
                    return Ok(Outputs::CompressedTar { sink, folder });
                }
                let sink = self.tar_sink(&folder, facts, recovery);
                Ok(Outputs::Tar { sink, folder })
            }
            Destination::Stdout => {
                if archives.len() > 1 {
                    return Err(Failure::Target(format!(
                        "can only write single tablespace to stdout, database has {}\n\
                         HINT: name a folder with -D.",
                        archives.len()
                    )));
                }
                // For messages; no file is made.
                let folder = Folder::open(&std::env::temp_dir())?;
                let sink: Box<dyn Sink> = match self.config.arrives_compressed() {
                    Some(method) => Box::new(CompressedTarSink::new(folder, facts.file_mode, method)),
                    None => Box::new(self.tar_sink(&folder, facts, recovery).with_manifest()),
                };
                Ok(Outputs::Stdout { sink })
            }
            Destination::Repository(destination) => {
                self.begin_repository(claims, destination, facts, archives)
            }
            Destination::Discard => {
                Ok(Outputs::Discard { sink: DiscardSink::new(Folder::open(&std::env::temp_dir())?) })
            }
            Destination::Target { .. } => unreachable!("a target's backup does not come here"),
        }
    }

    fn tar_sink(&self, folder: &Arc<Folder>, facts: &ServerFacts, recovery: Option<&str>) -> TarSink {
        let recovery = recovery.map(|settings| (settings.as_bytes().to_vec(), now()));
        let method = self.config.client_compression().map(|spec| spec.method);
        TarSink::new(Arc::clone(folder), facts.file_mode, method, recovery)
    }

    pub(super) fn wal_writer(
        &self,
        outputs: &Outputs,
        facts: &ServerFacts,
        start: BackupPosition,
    ) -> Result<SegmentWriter, Failure> {
        let destination = match outputs {
            Outputs::Plain { base, .. } => WalDestination::Folder(match &self.config.destination {
                Destination::Directory { wal_directory: Some(path), .. } => Folder::open(path)?,
                _ => base.descend(b"pg_wal")?,
            }),
            Outputs::Tar { folder, .. } | Outputs::CompressedTar { folder, .. } => {
                let name = format!("{}{PARTIAL}", self.wal_archive());
                let gzip = self.gzip().map(|spec| gzip_level(&spec));
                WalDestination::Tar { folder: Arc::clone(folder), name, gzip }
            }
            Outputs::Repository(writing) => WalDestination::Folder(writing.make_wal_folder()?),
            Outputs::Stdout { .. } | Outputs::Discard { .. } => {
                unreachable!("the command line refuses WAL that has no place")
            }
        };
        let first = start.lsn.segment_start(facts.segment_size.bytes());
        let (size, mode) = (facts.segment_size, facts.file_mode);
        SegmentWriter::new(destination, size, start.timeline, first, mode, self.config.sync, now())
    }

    /// The specification, where this side compresses with gzip: the one method that pg_basebackup takes for WAL too.
    fn gzip(&self) -> Option<CompressionSpec> {
        self.config.client_compression().filter(|spec| spec.method == CompressionMethod::Gzip)
    }

    /// The name of the WAL archive of a tar backup.
    fn wal_archive(&self) -> String {
        let extension = self.gzip().map_or("", |spec| spec.method.extension());
        format!("{WAL_ARCHIVE}{extension}")
    }

    pub(super) fn create_manifest(&self, mode: u32) -> Result<Option<File>, Failure> {
        if self.config.manifest.is_none() {
            return Ok(None);
        }
        let Some(folder) = self.config.destination.path() else {
            let scratch = match &self.config.destination {
                Destination::Repository(destination) => destination.staging_folder()?,
                _ => std::env::temp_dir(),
            };
            let file = tempfile::tempfile_in(&scratch);
            return file
                .map(Some)
                .map_err(|error| Failure::disk("create a temporary file in", &scratch, error));
        };
        let path = folder.join(MANIFEST_TMP);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&path);
        file.map(Some).map_err(|error| Failure::disk("create file", &path, error))
    }

    pub(super) fn finish(
        &self,
        outputs: Outputs,
        claims: &Claims,
        recovery: Option<String>,
        facts: &ServerFacts,
        has_wal_archive: bool,
    ) -> Result<(), Failure> {
        let has_manifest = self.config.manifest.is_some();
        let sync = self.config.sync;
        let syncs_whole = sync && self.config.sync_method == SyncMethod::Syncfs;
        if self.config.destination.path().is_some() {
            if sync {
                self.note(format_args!("syncing data to disk ..."));
            }
            if has_manifest {
                self.note(format_args!("renaming backup_manifest.tmp to backup_manifest"));
            }
        }
        let (folder, archives) = match outputs {
            Outputs::Plain { sink, base, made } => {
                if syncs_whole {
                    sync_file_systems([&*base.path].into_iter().chain(made.iter().map(PathBuf::as_path)))?;
                }
                let mut folders = sink.into_made_folders();
                folders.extend(made);
                folders.extend(claims.parents());
                let file_mode = facts.file_mode;
                let held = Held::default();
                let recovery = recovery.map(|settings| RecoveryFiles { settings, signal: STANDBY_SIGNAL });
                return PlainEnd { base: &base.path, folders, recovery, has_manifest, held, file_mode, sync }
                    .finish();
            }
            Outputs::Tar { sink, folder } => (folder, sink.into_names()),
            Outputs::CompressedTar { sink, folder } => (folder, sink.into_names()),
            Outputs::Stdout { .. } | Outputs::Repository(_) | Outputs::Discard { .. } => return Ok(()),
        };
        if syncs_whole {
            sync_file_systems([Path::new(&folder.path)])?;
        }
        let wal = has_wal_archive.then(|| folder.path.join(self.wal_archive()));
        finish_tar(&folder.path, &archives, wal.as_deref(), &claims.parents(), has_manifest, sync)
    }
}

/// Seconds since 1970, for tar members of our own.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
