//! A file of a backup that another file is made of.
//!
//! Invariant: what an incremental file's header claims was compared with its length, and its list of blocks is ascending and
//! within a segment, before anything depends on it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use pgstrata_protocol::incremental::{IncrementalDecoder, IncrementalError, IncrementalEvent, MAGIC};
use rustix::fs::FileType;

use super::chain::Chain;
use crate::failure::Failure;
use crate::verify::Tree;

/// The three numbers that an incremental file begins with.
const FIXED: usize = 12;

/// An open file of a backup.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) file: OwnedFd,
    /// For messages, and for links to it.
    pub(super) path: PathBuf,
    /// Whose it is.
    pub(super) backup: usize,
    /// Where its first block lies; 0 of a full file.
    pub(super) header: u64,
    /// Its length in bytes.
    pub(super) length: u64,
    /// Its ranges cannot be shared with the output.
    pub(super) unshareable: AtomicBool,
}

/// An incremental file with the list of its blocks.
#[derive(Debug)]
pub(super) struct Incremental {
    pub(super) source: SourceFile,
    pub(super) numbers: Vec<u32>,
    pub(super) truncation_length: u32,
}

impl SourceFile {
    /// Opens a file of a backup; `None` where there is none.
    pub(super) fn open_if_there(
        chain: &Chain,
        trees: &mut [Tree<'_>],
        backup: usize,
        path: &[u8],
    ) -> Result<Option<Self>, Failure> {
        let shown = chain.backups[backup].path.join(super::as_path(path));
        let file = match trees[backup].open_file(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::disk("open file", shown, error)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|error| Failure::disk("stat file", &shown, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Failure::Verification(format!("\"{}\" is no regular file", shown.display())));
        }
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        let unshareable = AtomicBool::new(false);
        Ok(Some(Self { file, path: shown, backup, header: 0, length, unshareable }))
    }

    /// Opens a file of a backup that has to be there.
    pub(super) fn open(
        chain: &Chain,
        trees: &mut [Tree<'_>],
        backup: usize,
        path: &[u8],
    ) -> Result<Self, Failure> {
        Self::open_if_there(chain, trees, backup, path)?.ok_or_else(|| {
            let shown = chain.backups[backup].path.join(super::as_path(path));
            Failure::disk("open file", shown, io::Error::from_raw_os_error(libc::ENOENT))
        })
    }

    /// Fills `bytes` from the file.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        let mut filled = 0;
        while filled < bytes.len() {
            let at = offset + filled as u64;
            let read = rustix::io::retry_on_intr(|| rustix::io::pread(&self.file, &mut bytes[filled..], at))
                .map_err(|error| Failure::disk("read from file", &self.path, error))?;
            if read == 0 {
                return Err(Failure::Verification(format!(
                    "could not read from file \"{}\", offset {offset}: read {filled} of {}\n\
                     HINT: the backup was changed, or is damaged; verify it with pgstrata verifybackup.",
                    self.path.display(),
                    bytes.len()
                )));
            }
            filled += read;
        }
        Ok(())
    }

    pub(super) fn shares(&self) -> bool {
        !self.unshareable.load(Ordering::Relaxed)
    }

    pub(super) fn does_not_share(&self) {
        self.unshareable.store(true, Ordering::Relaxed);
    }
}

impl Incremental {
    /// Reads the header of an open file.
    pub(super) fn read(mut source: SourceFile, chain: &Chain) -> Result<Self, Failure> {
        let geometry = chain.geometry;
        let mut decoder = IncrementalDecoder::new(geometry, source.length);
        let mut fixed = [0; FIXED];
        if source.length < FIXED as u64 {
            return Err(damaged(
                &source,
                &IncrementalError::Cut { found: source.length, expected: FIXED as u64 },
            ));
        }
        source.read(0, &mut fixed)?;
        let header = match decoder.next(&mut fixed.as_slice()) {
            Ok(Some(IncrementalEvent::Header(header))) => header,
            Ok(_) => return Err(damaged(&source, &IncrementalError::Failed)),
            Err(error) => return Err(damaged(&source, &error)),
        };
        source.header = geometry.header_length(header.blocks);
        // At most 32 MiB, for the largest segments there can be.
        let rest = usize::try_from(source.header).unwrap_or(usize::MAX) - FIXED;
        let mut list = vec![0; rest];
        source.read(FIXED as u64, &mut list)?;
        let mut left = list.as_slice();
        while !left.is_empty() {
            decoder.next(&mut left).map_err(|error| damaged(&source, &error))?;
        }
        let numbers = decoder.numbers().to_vec();
        Ok(Self { source, numbers, truncation_length: header.truncation_length })
    }
}

/// In the stock tool's words where it has some.
fn damaged(source: &SourceFile, error: &IncrementalError) -> Failure {
    let path = source.path.display();
    Failure::Verification(match error {
        IncrementalError::Magic { found } => {
            format!("file \"{path}\" has bad incremental magic number (0x{found:x}, expected 0x{MAGIC:x})")
        }
        IncrementalError::BlockCount { found, most } => {
            format!("file \"{path}\" has block count {found} in excess of segment size {most}")
        }
        IncrementalError::TruncationLength { found, most } => format!(
            "file \"{path}\" has truncation block length {found} in excess of segment size {most}\n\
             HINT: servers before 17.8 and 18.2 wrote that of relations of several segments; take the backup again."
        ),
        error => format!(
            "file \"{path}\" is no incremental file that can be combined: {error}\n\
             HINT: the backup is damaged; verify it with pgstrata verifybackup."
        ),
    })
}
