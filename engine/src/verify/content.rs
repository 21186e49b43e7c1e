//! What a lane looks for within the files that pass it, beside their checksums: damaged pages, incremental files that are
//! none, WAL that recovery would not read.
//!
//! A lane sees one file at a time, whole and in order; WAL segments all pass one lane.

use pgstrata_protocol::incremental::{Geometry, IncrementalError};

use super::fetched_wal::{FetchedWal, WalStart};
use super::incremental::IncrementalChecker;
use super::pages::{BadPage, PageChecker, PageChecks};

/// What is to be looked for in a run.
#[derive(Clone, Debug, Default)]
pub struct ContentChecks {
    /// Page checksums, where they are wanted.
    pub pages: Option<PageChecks>,
    /// The structure of incremental files, where the backup is one.
    pub incremental: Option<Geometry>,
    /// WAL, where it comes with the files.
    pub wal: Option<WalStart>,
}

/// Looks at the files of one lane.
#[derive(Debug)]
pub struct ContentChecker {
    checks: ContentChecks,
    file: File,
    wal: Option<FetchedWal>,
}

#[derive(Debug)]
enum File {
    Other,
    Relation(PageChecker),
    Incremental(IncrementalChecker),
    Segment,
}

impl ContentChecker {
    /// A checker for one lane.
    #[must_use]
    pub fn new(checks: ContentChecks) -> Self {
        Self { checks, file: File::Other, wal: None }
    }

    /// The file of `length` bytes at `path`, as the manifest names it, begins.
    pub fn begin(&mut self, path: &[u8], length: u64) {
        let ContentChecks { pages, incremental, wal } = &self.checks;
        let segment = wal.and_then(|wal| {
            let segment = FetchedWal::segment(path, wal.origin.segment_size)?;
            Some((wal, segment))
        });
        self.file = if let Some((start, segment)) = segment {
            self.wal.get_or_insert_with(|| FetchedWal::new(start)).begin(segment, length);
            File::Segment
        } else if let Some(checker) = pages.as_ref().and_then(|pages| pages.checker(path)) {
            File::Relation(checker)
        } else {
            let checker =
                incremental.and_then(|geometry| IncrementalChecker::new(path, length, geometry, *pages));
            checker.map_or(File::Other, File::Incremental)
        };
    }

    /// The file's next bytes.
    ///
    /// # Errors
    /// An incremental file that is none. Bad pages are told to `bad`, and what is wrong with WAL is kept for its end.
    pub fn update(&mut self, bytes: &[u8], bad: impl FnMut(BadPage)) -> Result<(), IncrementalError> {
        match &mut self.file {
            File::Other => Ok(()),
            File::Relation(checker) => {
                checker.update(bytes, bad);
                Ok(())
            }
            File::Incremental(checker) => checker.update(bytes, bad),
            File::Segment => {
                if let Some(wal) = &mut self.wal {
                    wal.update(bytes);
                }
                Ok(())
            }
        }
    }

    /// The file has had its last byte.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn end(&mut self) -> Result<(), IncrementalError> {
        match std::mem::replace(&mut self.file, File::Other) {
            File::Incremental(checker) => checker.finish(),
            _ => Ok(()),
        }
    }

    /// The WAL that this lane has seen, if it has seen any.
    #[must_use]
    pub fn into_wal(self) -> Option<FetchedWal> {
        self.wal
    }
}
