//! What all threads of a verification share.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use pgstrata_protocol::manifest::{
    ManifestError, ManifestEvent, ManifestFile, ManifestSummary, read_manifest,
};

use super::ManifestFacts;
use super::config::VerifyConfig;
use super::ignore::covers;
use super::problem::{Problem, Problems};
use super::progress::VerifyProgress;
use super::tally::Keys;
use crate::failure::Failure;
use crate::stop::Stop;

/// Of more paths than this whose content is unknown, the rest is reported file by file.
const MOST_SUPPRESSED: usize = 10_000;

/// What all threads of a verification share.
pub(super) struct Run<'a> {
    pub(super) config: &'a VerifyConfig,
    pub(super) base: &'a OwnedFd,
    pub(super) progress: &'a VerifyProgress,
    pub(super) stop: &'a Stop<Failure>,
    pub(super) problems: Problems<'a>,
    pub(super) keys: Keys,
    /// Paths of which one problem was told that explains all others at and below them.
    suppressed: Mutex<Vec<Vec<u8>>>,
    /// Whether the comparison of paths and sizes found something.
    presence_differs: AtomicBool,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        config: &'a VerifyConfig,
        base: &'a OwnedFd,
        progress: &'a VerifyProgress,
        stop: &'a Stop<Failure>,
    ) -> Self {
        Self {
            config,
            base,
            progress,
            stop,
            problems: Problems::new(progress.teller(), config.exit_on_error),
            keys: Keys::default(),
            suppressed: Mutex::default(),
            presence_differs: AtomicBool::new(false),
        }
    }

    /// Tells a problem; an error where the run is to end with the first one.
    pub(super) fn report(&self, problem: Problem) -> Result<(), Failure> {
        if self.problems.add(problem) {
            return Ok(());
        }
        self.stop.throw_quietly();
        Err(Failure::Stopped)
    }

    /// Says that paths and sizes have been compared.
    pub(super) fn presence_is_known(&self) {
        self.presence_differs.store(self.problems.count() > 0, Ordering::Relaxed);
    }

    /// Tells what the comparison of paths and sizes must have found already, if the file was so then. Where that
    /// comparison found nothing, the file has changed since. Where it found something, the backup is not verified
    /// in either case.
    pub(super) fn report_unless_known(&self, problem: Problem) -> Result<(), Failure> {
        if self.presence_differs.load(Ordering::Relaxed) { Ok(()) } else { self.report(problem) }
    }

    /// Keeps what lies at and below `path` from being reported again.
    pub(super) fn suppress(&self, path: &[u8]) {
        let mut suppressed = self.suppressed.lock().unwrap_or_else(PoisonError::into_inner);
        if suppressed.len() < MOST_SUPPRESSED {
            suppressed.push(path.to_vec());
        }
    }

    /// Whether `path` is ignored, or a problem that was told explains what is wrong with it.
    pub(super) fn is_suppressed(&self, path: &[u8]) -> bool {
        let suppressed = self.suppressed.lock().unwrap_or_else(PoisonError::into_inner);
        covers(&suppressed, path)
    }

    /// Whether nothing had to be suppressed.
    pub(super) fn nothing_suppressed(&self) -> bool {
        self.suppressed.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Shows every event of the manifest, and says what it amounts to.
    pub(super) fn read_manifest(
        &self,
        visit: &mut dyn FnMut(ManifestEvent) -> Result<(), Failure>,
    ) -> Result<ManifestSummary, Failure> {
        let path = &self.config.manifest;
        let file = File::open(path).map_err(|error| Failure::disk("open", path, error))?;
        let read = read_manifest(file, &mut |event| {
            if self.stop.is_thrown() { Err(Failure::Stopped) } else { visit(event) }
        });
        read.map_err(|error| match error {
            ManifestError::Visit(failure) => failure,
            ManifestError::Io(error) => Failure::disk("read", path, error),
            error => Failure::Verification(format!("\"{}\": {error}", path.display())),
        })
    }

    /// Shows every file of the manifest that is not ignored once more.
    pub(super) fn read_manifest_again(
        &self,
        facts: &ManifestFacts,
        visit: &mut dyn FnMut(ManifestFile) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let summary = self.read_manifest(&mut |event| match event {
            ManifestEvent::File(file) if !self.config.ignore.covers(&file.path) => visit(file),
            _ => Ok(()),
        })?;
        if summary == facts.summary {
            return Ok(());
        }
        Err(Failure::Verification(format!(
            "\"{}\" was replaced while the backup was being verified\nHINT: verify again.",
            self.config.manifest.display()
        )))
    }
}
