//! The manifest of the new backup, written as files are completed, in their order.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Receiver, Sender, bounded};
use pgstrata_protocol::manifest::{ManifestFile, ManifestVersion, ManifestWriter, WalRange};

use crate::basebackup::MANIFEST_TMP;
use crate::failure::Failure;
use crate::stop::Stop;

/// Entries that wait to be written.
const QUEUE: usize = 1024;

/// A manifest under way.
#[derive(Debug)]
pub(super) struct NewManifest {
    thread: JoinHandle<Result<(), Failure>>,
}

impl NewManifest {
    /// Begins it under its unfinished name. What the sender gets goes into it.
    pub(super) fn begin(
        output: &Path,
        mode: u32,
        system_identifier: u64,
        ranges: Vec<WalRange>,
        stop: &Stop<Failure>,
    ) -> Result<(Self, Sender<ManifestFile>), Failure> {
        let path = output.join(MANIFEST_TMP);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .map_err(|error| Failure::disk("create file", &path, error))?;
        let (sender, entries) = bounded(QUEUE);
        let stop = stop.clone();
        let spawned = thread::Builder::new().name("manifest".into()).spawn(move || {
            let _told = stop.tell_of_panics("the manifest's writer");
            let written = write(file, system_identifier, &entries, &ranges, &path);
            let Err(failure) = written else { return Ok(()) };
            stop.throw(failure);
            // Nobody is to wait for room.
            while entries.recv().is_ok() {}
            Err(Failure::Stopped)
        });
        let thread = spawned.map_err(|error| Failure::disk("start thread", "manifest", error))?;
        Ok((Self { thread }, sender))
    }

    /// Completes it, under its unfinished name still. All senders must be gone.
    pub(super) fn finish(self) -> Result<(), Failure> {
        // A thread that panicked has thrown the switch.
        self.thread.join().unwrap_or(Err(Failure::Stopped))
    }
}

fn write(
    file: File,
    system_identifier: u64,
    entries: &Receiver<ManifestFile>,
    ranges: &[WalRange],
    path: &PathBuf,
) -> Result<(), Failure> {
    let failed = |error| Failure::disk("write", path, error);
    let mut writer = ManifestWriter::new(file, ManifestVersion::Two { system_identifier }, false);
    while let Ok(entry) = entries.recv() {
        writer.file(&entry).map_err(failed)?;
    }
    writer.finish(ranges).map_err(failed)?;
    Ok(())
}
