//! A file that is to be made, as the walk found it.

use std::ffi::OsString;
use std::sync::Arc;

use pgstrata_protocol::incremental::NAME_PREFIX;

use crate::pipeline::Folder;

/// One file of the output.
#[derive(Debug)]
pub(super) struct Task {
    /// Its path as manifests name it.
    pub(super) path: Vec<u8>,
    /// Whether the last backup has it as an incremental file.
    pub(super) incremental: bool,
    /// Whether manifests have checksums of it: not of WAL.
    pub(super) summed: bool,
    /// The folder to make it in; none in a dry run.
    pub(super) folder: Option<Arc<Folder>>,
    /// Its name there, until all is complete.
    pub(super) name: OsString,
}

/// The path of the incremental file that a file has in a backup.
pub(super) fn incremental_path(path: &[u8]) -> Vec<u8> {
    let name = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    [&path[..name], NAME_PREFIX, &path[name..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_goes_before_the_name() {
        assert_eq!(incremental_path(b"base/5/1259.1"), b"base/5/INCREMENTAL.1259.1");
        assert_eq!(incremental_path(b"x"), b"INCREMENTAL.x");
    }
}
