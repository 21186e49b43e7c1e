//! A run whose backup goes to a repository: how it begins there, and the commit.

use std::fs::File;
use std::sync::Arc;

use pgstrata_protocol::replication::BackupPosition;

use super::databases::databases;
use super::outputs::Outputs;
use super::prepare::ServerFacts;
use super::run::{Io, Run};
use super::target::Claims;
use crate::failure::Failure;
use crate::pipeline::Layout;
use crate::repository::{BackupFacts, RepositoryDestination, RepositoryWriting, StoredBackup};
use crate::sink::Archive;

/// Permission bits of the staging folder: what lies there is the cluster's.
const STAGING_MODE: u32 = 0o700;

/// The server's manifest once more, for a backup that is to keep it.
pub(super) fn keep_manifest(outputs: &Outputs, manifest: Option<&File>) -> Result<Option<File>, Failure> {
    match (outputs, manifest) {
        (Outputs::Repository(_), Some(manifest)) => {
            let kept = manifest.try_clone();
            kept.map(Some).map_err(|error| Failure::disk("keep", "backup_manifest", error))
        }
        (Outputs::Repository(_), None) => {
            Err(Failure::Target("a backup in a repository needs the server's manifest".into()))
        }
        _ => Ok(None),
    }
}

impl Run<'_> {
    pub(super) fn begin_repository(
        &self,
        claims: &mut Claims,
        destination: &RepositoryDestination,
        facts: &ServerFacts,
        archives: &[Archive],
    ) -> Result<Outputs, Failure> {
        let system = facts.system.system_identifier;
        let observer = Arc::clone(self.observer);
        let tell = Box::new(move |text: &str| observer.warning(text));
        let writing = RepositoryWriting::begin(destination, system, archives, tell, self.stop)?;
        claims.claim(writing.staging(), STAGING_MODE)?;
        Ok(Outputs::Repository(Box::new(writing)))
    }

    /// Packs the rest and publishes the backup.
    pub(super) fn commit(
        &self,
        writing: RepositoryWriting,
        facts: &ServerFacts,
        io: &Io,
        range: [BackupPosition; 2],
        files: u64,
        manifest: File,
    ) -> Result<StoredBackup, Failure> {
        let config = self.config;
        let resources = &config.resources;
        let layout = Layout {
            workers: resources.workers,
            writers: resources.writers,
            stream: None,
            depth: resources.depth,
            mode: io.mode,
            alignment: io.alignment,
            sync: true,
            compression: None,
            packing: None,
            faults: resources.faults.clone(),
        };
        let facts = BackupFacts {
            source: self.source,
            server_version: &facts.version_text,
            system_identifier: facts.system.system_identifier,
            wal_segment_size: facts.segment_size.bytes(),
            folder_mode: facts.folder_mode,
            file_mode: facts.file_mode,
            range,
            label: &config.label,
            databases: databases(&config.connection),
        };
        let staging = writing.staging().to_owned();
        let sizes = (self.buffers_behind(), resources.buffer_size);
        let stored = writing.commit(&facts, layout, sizes, files, manifest, self.stop)?;
        for refused in &stored.refused {
            self.observer.warning(&format!("stored anew what an older pack should have held: {refused}"));
        }
        // The backup is there; what is left of its way to it is no reason to call it failed.
        if let Err(error) = std::fs::remove_dir_all(&staging) {
            let failure = Failure::disk("remove", &staging, error);
            self.observer.warning(&format!("could not clean up: {failure}"));
        }
        Ok(stored)
    }
}
