//! What others may see of a running demonstration.

use std::path::Path;
use std::sync::Arc;

use super::report::{BootReport, Comparison, ProgramReport, SourceReport};
use crate::basebackup::{Observer, Progress, Report};
use crate::verify::VerifyReport;

/// A step, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Finding or fetching the server's programs.
    Program,
    /// Making the source and its data.
    Source,
    /// Backing it up while a writer commits transactions.
    Backup,
    /// Reading the copy's files back.
    Verify,
    /// Booting the copy.
    Boot,
    /// Comparing the copy with the source.
    Compare,
}

/// A step that is done, with what it measured.
#[derive(Clone, Copy, Debug)]
pub enum Done<'a> {
    /// The programs.
    Program(&'a ProgramReport),
    /// The source is up.
    Source(&'a SourceReport),
    /// The backup is complete.
    Backup(&'a Report),
    /// What lies on disk is what the server sent.
    Verify(&'a VerifyReport),
    /// The copy is up.
    Boot(&'a BootReport),
    /// Everything matches.
    Compare(&'a Comparison),
}

/// Told of everything while it happens; what the backup itself has to say comes through [`Observer`].
pub trait DemoObserver: Observer {
    /// A step begins.
    fn begins(&self, step: Step);
    /// How far the present step is, in words.
    fn advances(&self, text: &str);
    /// The backup begins; these are its counters.
    fn watch(&self, progress: &Arc<Progress>);
    /// A step is done.
    fn ends(&self, done: Done<'_>);
    /// The scratch folder stays here.
    fn kept(&self, folder: &Path);
}
