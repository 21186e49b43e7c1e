//! What can be wrong with a backup, in the words that pg_verifybackup's users know, with found and expected.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use pgstrata_protocol::manifest::{ChecksumAlgorithm, ChecksumValue, WalRange};
use serde::{Serialize, Serializer};

/// Of more problems than this a report keeps only the number; all of them are told as they are found.
pub(super) const KEPT: usize = 1000;

/// One thing that is wrong with a backup. Paths are relative to its folder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A file that the manifest does not list.
    #[error("\"{}\" is present on disk but not in the manifest", shown(.path))]
    Extra {
        /// The file.
        path: Vec<u8>,
    },
    /// A file that only the manifest lists.
    #[error("\"{}\" is present in the manifest but not on disk", shown(.path))]
    Missing {
        /// The file.
        path: Vec<u8>,
    },
    /// A file of another length.
    #[error("\"{}\" has size {found} on disk but size {expected} in the manifest", shown(.path))]
    Size {
        /// The file.
        path: Vec<u8>,
        /// Its length in bytes.
        found: u64,
        /// What the manifest says.
        expected: u64,
    },
    /// Something else than a file where only files and folders belong.
    #[error("\"{}\" is not a regular file or directory, but a {kind}", shown(.path))]
    NotRegular {
        /// Its path.
        path: Vec<u8>,
        /// What it is.
        kind: &'static str,
    },
    /// The manifest lists a path twice.
    #[error("duplicate path name in backup manifest: \"{}\"", shown(.path))]
    Duplicate {
        /// The path.
        path: Vec<u8>,
    },
    /// The content is not what was backed up.
    #[error(
        "checksum mismatch for file \"{}\": {algorithm} found {found}, expected {expected} by the manifest",
        shown(.path)
    )]
    Checksum {
        /// The file.
        path: Vec<u8>,
        /// The manifest's algorithm for it.
        algorithm: ChecksumAlgorithm,
        /// What its content has.
        found: ChecksumValue,
        /// What the manifest says.
        expected: ChecksumValue,
    },
    /// Reading met the end of the file early, or none where it should be.
    #[error("file \"{}\" should contain {expected} bytes, but read {found} bytes", shown(.path))]
    Length {
        /// The file.
        path: Vec<u8>,
        /// Where reading ended.
        found: u64,
        /// What the manifest says.
        expected: u64,
    },
    /// A file or folder that could not be examined.
    #[error("could not {action} \"{}\": {reason}", shown(.path))]
    Unreadable {
        /// Its path.
        path: Vec<u8>,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        reason: String,
    },
    /// What only a backup that was never completed contains.
    #[error(
        "\"{}\" is left over from a backup that was not completed\n\
         HINT: do not use this backup; take it again.",
        shown(.path)
    )]
    Unfinished {
        /// The leftover.
        path: Vec<u8>,
    },
    /// The control file belongs to another cluster than the manifest.
    #[error(
        "\"global/pg_control\": manifest system identifier is {expected}, but control file has {found}\n\
         HINT: the manifest belongs to another cluster's backup."
    )]
    SystemIdentifier {
        /// What the control file says.
        found: u64,
        /// What the manifest says.
        expected: u64,
    },
    /// A member of an archive that the manifest does not list.
    #[error("file \"{}\" is present in archive \"{archive}\" but not in the manifest", shown(.path))]
    ExtraMember {
        /// The file.
        path: Vec<u8>,
        /// The archive's name.
        archive: String,
    },
    /// A member of an archive that was there before, in this one or another.
    #[error("file \"{}\" is present more than once, again in archive \"{archive}\"", shown(.path))]
    MemberTwice {
        /// The file.
        path: Vec<u8>,
        /// The archive's name.
        archive: String,
    },
    /// A member of another length.
    #[error(
        "file \"{}\" has size {found} in archive \"{archive}\" but size {expected} in the manifest",
        shown(.path)
    )]
    MemberSize {
        /// The file.
        path: Vec<u8>,
        /// The archive's name.
        archive: String,
        /// Its length in bytes.
        found: u64,
        /// What the manifest says.
        expected: u64,
    },
    /// The content of a member is not what was backed up.
    #[error(
        "checksum mismatch for file \"{}\" in archive \"{archive}\": {algorithm} found {found}, expected {expected} by \
         the manifest",
        shown(.path)
    )]
    MemberChecksum {
        /// The file.
        path: Vec<u8>,
        /// The archive's name.
        archive: String,
        /// The manifest's algorithm for it.
        algorithm: ChecksumAlgorithm,
        /// What its content has.
        found: ChecksumValue,
        /// What the manifest says.
        expected: ChecksumValue,
    },
    /// An archive that cannot be read to its end. What follows the place is not verified.
    #[error("archive \"{archive}\": {reason}")]
    Archive {
        /// The archive's name.
        archive: String,
        /// What is wrong: where, found and expected.
        reason: String,
    },
    /// A file beside the archives that is none.
    #[error("file \"{}\" is not expected in a tar format backup", shown(.path))]
    Unexpected {
        /// The file.
        path: Vec<u8>,
    },
    /// WAL that the backup needs is missing or damaged.
    #[error("WAL parsing failed for timeline {timeline}: \"{segment}\": {reason}")]
    Wal {
        /// The timeline of the range that needs it.
        timeline: u32,
        /// The segment, as it was looked for.
        segment: String,
        /// What is wrong with it: where, found and expected.
        reason: String,
    },
    /// Two looks at the folders saw different files.
    #[error("files were added, removed or resized while they were being verified\nHINT: verify again.")]
    Changing,
}

impl Problem {
    pub(super) fn wal(range: &WalRange, segment: String, reason: String) -> Self {
        Self::Wal { timeline: range.timeline.0, segment, reason }
    }

    /// What is wrong, as a word for programs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Extra { .. } | Self::ExtraMember { .. } => "extra",
            Self::Missing { .. } => "missing",
            Self::Size { .. } | Self::MemberSize { .. } => "size",
            Self::NotRegular { .. } => "not_regular",
            Self::Duplicate { .. } | Self::MemberTwice { .. } => "duplicate",
            Self::Checksum { .. } | Self::MemberChecksum { .. } => "checksum",
            Self::Length { .. } => "length",
            Self::Unreadable { .. } => "unreadable",
            Self::Unfinished { .. } => "unfinished",
            Self::SystemIdentifier { .. } => "system_identifier",
            Self::Archive { .. } => "archive",
            Self::Unexpected { .. } => "unexpected",
            Self::Wal { .. } => "wal",
            Self::Changing => "changing",
        }
    }

    /// The path in question, relative to the backup's folder; of WAL as it was looked for.
    #[must_use]
    pub fn path(&self) -> Option<&[u8]> {
        match self {
            Self::Extra { path }
            | Self::Missing { path }
            | Self::Size { path, .. }
            | Self::NotRegular { path, .. }
            | Self::Duplicate { path }
            | Self::Checksum { path, .. }
            | Self::Length { path, .. }
            | Self::Unreadable { path, .. }
            | Self::ExtraMember { path, .. }
            | Self::MemberTwice { path, .. }
            | Self::MemberSize { path, .. }
            | Self::MemberChecksum { path, .. }
            | Self::Unexpected { path }
            | Self::Unfinished { path } => Some(path),
            Self::Archive { archive, .. } => Some(archive.as_bytes()),
            Self::SystemIdentifier { .. } => Some(super::CONTROL_FILE),
            Self::Wal { segment, .. } => Some(segment.as_bytes()),
            Self::Changing => None,
        }
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut object = serializer.serialize_struct("Problem", 3)?;
        object.serialize_field("kind", self.kind())?;
        object.serialize_field("path", &self.path().map(|path| String::from_utf8_lossy(path)))?;
        object.serialize_field("message", &self.to_string())?;
        object.end()
    }
}

fn shown(path: &[u8]) -> std::path::Display<'_> {
    Path::new(OsStr::from_bytes(path)).display()
}

/// Collects problems from all threads and passes each on at once.
pub(super) struct Problems<'a> {
    tell: &'a (dyn Fn(&Problem) + Send + Sync),
    only_first: bool,
    found: Mutex<Found>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// How many problems there are.
    pub(super) count: u64,
    /// The first of them.
    pub(super) kept: Vec<Problem>,
}

impl<'a> Problems<'a> {
    /// `only_first` takes one problem and ignores what follows.
    pub(super) fn new(tell: &'a (dyn Fn(&Problem) + Send + Sync), only_first: bool) -> Self {
        Self { tell, only_first, found: Mutex::default() }
    }

    /// Adds one. False where the run is to end because of it.
    pub(super) fn add(&self, problem: Problem) -> bool {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.only_first || found.count == 0 {
            found.count += 1;
            // Under the lock, so that they are told one by one.
            (self.tell)(&problem);
            if found.kept.len() < KEPT {
                found.kept.push(problem);
            }
        }
        !self.only_first
    }

    /// How many there are so far.
    pub(super) fn count(&self) -> u64 {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    /// Everything found.
    pub(super) fn into_found(self) -> Found {
        self.found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
