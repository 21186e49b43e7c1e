//! The catalogue of a backup under way: records of files, in the order of their arrival, into the manifest.
//!
//! Memory does not grow with files: what waits here is what overtook a file that is still under way.

use std::collections::BTreeMap;

use crossbeam::channel::Receiver;

use super::manifest::ManifestWriter;
use super::records::FileRecord;
use crate::failure::Failure;

/// A file whose bytes have their places in packs.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Its place in the order of arrival, from 0.
    pub sequence: u64,
    /// Its record.
    pub file: FileRecord,
}

/// What the catalogue holds.
pub(super) struct Catalogued {
    pub(super) manifest: ManifestWriter,
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Takes records until every sender is gone.
pub(super) fn catalogue(
    placed: &Receiver<Placed>,
    mut manifest: ManifestWriter,
) -> Result<Catalogued, Failure> {
    let mut early = BTreeMap::new();
    let (mut files, mut bytes) = (0, 0);
    for Placed { sequence, file } in placed {
        early.insert(sequence, file);
        while let Some(file) = early.remove(&files) {
            manifest.file(&file)?;
            files += 1;
            bytes += file.size;
        }
    }
    // A file that got lost on the way has thrown the switch; what came behind it is no backup.
    if early.is_empty() { Ok(Catalogued { manifest, files, bytes }) } else { Err(Failure::Stopped) }
}
