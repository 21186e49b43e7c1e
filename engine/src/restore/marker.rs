//! The mark of a restore under way: a file in the data directory, from before anything else is changed there until the
//! cluster is complete.
//!
//! Invariant: with the mark, `global/pg_control` is there only where the restore was complete and the mark alone stayed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The file.
pub(super) const MARKER: &str = "pgstrata_restore.json";
const MARKER_TMP: &str = "pgstrata_restore.json.tmp";
/// More than any mark has.
const LENGTH_MAX: u64 = 1 << 20;

/// What a restore under way notes down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    pub(super) cluster: String,
    pub(super) backup: String,
    /// In decimal digits.
    pub(super) system_identifier: String,
    /// Folders beside the data directory that this restore fills.
    pub(super) folders: Vec<PathBuf>,
}

impl Marker {
    /// The mark in a folder, if there is one.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, Failure> {
        let path = folder.join(MARKER);
        let failed = |error| Failure::disk("read", &path, error);
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            opened => opened.map_err(failed)?,
        };
        if file.metadata().map_err(failed)?.len() > LENGTH_MAX {
            return Err(unreadable(&path, &"it is too long"));
        }
        let read: Result<Self, _> = serde_json::from_reader(io::BufReader::new(file));
        read.map(Some).map_err(|error| unreadable(&path, &error))
    }

    /// Writes the mark durably, in place of one that is there.
    pub(super) fn write(&self, folder: &Path, sync_folder: &File) -> Result<(), Failure> {
        let (path, new) = (folder.join(MARKER), folder.join(MARKER_TMP));
        let failed = |error: io::Error| Failure::disk("write", &path, error);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(failed)?;
        let text = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&new, &path).map_err(failed)?;
        sync_folder.sync_all().map_err(failed)
    }

    /// The restore is complete.
    pub(super) fn remove(folder: &Path) -> Result<(), Failure> {
        let path = folder.join(MARKER);
        fs::remove_file(&path)
            .and_then(|()| File::open(folder)?.sync_all())
            .map_err(|error| Failure::disk("remove", &path, error))
    }
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Target(format!(
        "the mark of an interrupted restore, \"{}\", cannot be read: {error}\n\
         HINT: empty the folder and restore into it once more.",
        path.display()
    ))
}
