//! `backup_manifest`, made here of what the lanes have seen, as a server makes it.
//!
//! Files are written in the order of their numbers; what overtook an earlier one waits, and no more of it than readers
//! may run ahead.

use std::collections::BTreeMap;
use std::fs::File;

use crossbeam::channel::Receiver;
use pgstrata_protocol::manifest::{
    ChecksumAlgorithm, ManifestFile, ManifestVersion, ManifestWriter, ModifiedTime, WalRange,
};
use pgstrata_protocol::replication::BackupPosition;

use crate::failure::Failure;
use crate::verify::ArrivedMember;

/// The first version whose manifests name the system (`backup_manifest.c`).
const FIRST_SECOND: u32 = 17;

/// A manifest under way.
pub(super) struct LocalManifest {
    writer: ManifestWriter<File>,
    algorithm: ChecksumAlgorithm,
    files: u64,
    early: BTreeMap<u64, ArrivedMember>,
}

impl LocalManifest {
    /// Begins a manifest in `file`, for a server of this major version.
    pub(super) fn new(
        file: File,
        major: u32,
        system_identifier: u64,
        (algorithm, force_encode): (ChecksumAlgorithm, bool),
    ) -> Self {
        let version = match major {
            FIRST_SECOND.. => ManifestVersion::Two { system_identifier },
            _ => ManifestVersion::One,
        };
        let writer = ManifestWriter::new(file, version, force_encode);
        Self { writer, algorithm, files: 0, early: BTreeMap::new() }
    }

    /// Takes files until every sender is gone.
    pub(super) fn run(mut self, arrivals: &Receiver<ArrivedMember>) -> Result<Self, Failure> {
        for member in arrivals {
            self.early.insert(member.sequence, member);
            while let Some(member) = self.early.remove(&self.files) {
                self.add(member)?;
                self.files += 1;
            }
        }
        Ok(self)
    }

    fn add(&mut self, member: ArrivedMember) -> Result<(), Failure> {
        // Of a file that was not read whole nobody knows it.
        let is_known = self.algorithm != ChecksumAlgorithm::None && !member.checksum.as_bytes().is_empty();
        let checksum = is_known.then_some((self.algorithm, member.checksum));
        let file = ManifestFile {
            path: member.path,
            size: member.size,
            modified: ModifiedTime(i64::try_from(member.modified).unwrap_or(i64::MAX)),
            checksum,
        };
        self.writer.file(&file).map_err(writing)
    }

    /// Ends it. Every one of the `files` must have come.
    pub(super) fn finish(self, files: u64, [start, end]: [BackupPosition; 2]) -> Result<File, Failure> {
        // A file that got lost on the way has thrown the switch.
        if self.files != files || !self.early.is_empty() {
            return Err(Failure::Stopped);
        }
        let range = WalRange { timeline: start.timeline, start: start.lsn, end: end.lsn };
        Ok(self.writer.finish(&[range]).map_err(writing)?.sink)
    }
}

fn writing(error: std::io::Error) -> Failure {
    Failure::disk("write to", "backup_manifest", error)
}
