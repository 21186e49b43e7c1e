//! What a manifest says of a backup's files, to be looked up by path.
//!
//! A file takes some 50 bytes here, whatever its path: it is known by a hash of 128 bits.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use pgstrata_protocol::manifest::{
    ChecksumAlgorithm, ChecksumValue, ManifestError, ManifestEvent, ManifestFile, WalRange, read_manifest,
};

use super::observer::CombineObserver;
use crate::failure::Failure;

/// More ranges, and so more timelines within one backup, are not believed.
const MOST_RANGES: usize = 4096;

/// A manifest that was read to its end and carries its own checksum.
#[derive(Debug)]
pub(super) struct KnownFiles {
    /// The manifest's path.
    pub(super) path: PathBuf,
    pub(super) system_identifier: u64,
    pub(super) wal_ranges: Vec<WalRange>,
    files: HashMap<[u8; 16], Entry>,
    /// The checksums, one behind the other.
    sums: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    size: u64,
    algorithm: ChecksumAlgorithm,
    sum_at: u64,
}

/// A file as the manifest has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) size: u64,
    pub(super) checksum: Option<(ChecksumAlgorithm, ChecksumValue)>,
}

fn key(path: &[u8]) -> [u8; 16] {
    let hash = blake3::hash(path);
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

impl KnownFiles {
    /// Reads the manifest of a backup. There may be none: whoever watches is told.
    pub(super) fn read(backup: &Path, observer: &dyn CombineObserver) -> Result<Option<Self>, Failure> {
        let path = backup.join("backup_manifest");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                observer.warning(&format!("file \"{}\" does not exist", path.display()));
                return Ok(None);
            }
            Err(error) => return Err(Failure::disk("open file", path, error)),
        };
        let mut known = Self {
            path,
            system_identifier: 0,
            wal_ranges: Vec::new(),
            files: HashMap::new(),
            sums: Vec::new(),
        };
        let read = read_manifest(file, &mut |event| known.note(event));
        match read {
            Ok(_) => Ok(Some(known)),
            Err(ManifestError::Visit(failure)) => Err(failure),
            Err(ManifestError::Io(error)) => Err(Failure::disk("read file", known.path, error)),
            Err(error) => Err(Failure::Verification(format!("\"{}\": {error}", known.path.display()))),
        }
    }

    fn note(&mut self, event: ManifestEvent) -> Result<(), Failure> {
        match event {
            ManifestEvent::Version(1) => Err(Failure::Target(
                "backup manifest version 1 does not support incremental backup\n\
                 HINT: it is of PostgreSQL 16 or older, which takes no incremental backups."
                    .into(),
            )),
            ManifestEvent::Version(_) => Ok(()),
            ManifestEvent::SystemIdentifier(identifier) => {
                self.system_identifier = identifier;
                Ok(())
            }
            ManifestEvent::File(file) => self.add(&file),
            ManifestEvent::WalRange { .. } if self.wal_ranges.len() >= MOST_RANGES => {
                Err(Failure::Verification(format!(
                    "\"{}\" has more than {MOST_RANGES} WAL ranges, expected one for each timeline of the backup",
                    self.path.display()
                )))
            }
            ManifestEvent::WalRange { timeline, start, end } => {
                self.wal_ranges.push(WalRange { timeline, start, end });
                Ok(())
            }
        }
    }

    fn add(&mut self, file: &ManifestFile) -> Result<(), Failure> {
        let sum_at = self.sums.len() as u64;
        let algorithm = match &file.checksum {
            None => ChecksumAlgorithm::None,
            Some((algorithm, value)) => {
                self.sums.extend_from_slice(value.as_bytes());
                *algorithm
            }
        };
        match self.files.insert(key(&file.path), Entry { size: file.size, algorithm, sum_at }) {
            None => Ok(()),
            Some(_) => Err(Failure::Verification(format!(
                "duplicate path name in backup manifest: \"{}\"",
                file.path.escape_ascii()
            ))),
        }
    }

    /// What it says of a file.
    pub(super) fn get(&self, path: &[u8]) -> Option<Known> {
        let Entry { size, algorithm, sum_at } = *self.files.get(&key(path))?;
        let checksum = (algorithm != ChecksumAlgorithm::None).then(|| {
            let at = usize::try_from(sum_at).ok()?;
            let bytes = self.sums.get(at..at + algorithm.digest_len())?;
            Some((algorithm, ChecksumValue::new(bytes)?))
        });
        Some(Known { size, checksum: checksum.flatten() })
    }
}
