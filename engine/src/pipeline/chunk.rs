//! What flows through the pipeline: filled buffers, and what lies in them.

use std::ffi::OsString;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::buffer::PageBuffer;
use crate::tracking::{BlockRun, Overlay};

/// A folder that files are made in, held open so that nobody can swap it underneath.
#[derive(Debug)]
pub struct Folder {
    /// The open folder.
    pub handle: File,
    /// Its path, for messages.
    pub path: PathBuf,
}

/// One file on disk that is being written.
#[derive(Debug)]
pub struct Output {
    /// Its place in the order of creation, from 0.
    pub number: u64,
    /// The folder it is made in.
    pub folder: Arc<Folder>,
    /// Its name there, a single component.
    pub name: OsString,
    /// Permission bits.
    pub mode: u32,
    /// The length it will have, where it is known beforehand; space for it is reserved.
    pub size: Option<u64>,
    /// The writer that owns it from its first byte to its sync; none for bytes that are only checked.
    pub writer: Option<usize>,
}

impl Output {
    /// An output that is made nowhere: its bytes are checked and go. `folder` is for messages.
    #[must_use]
    pub fn checked_only(number: u64, folder: Arc<Folder>) -> Self {
        Self { number, folder, name: OsString::new(), mode: 0, size: None, writer: None }
    }

    /// The whole path, for messages.
    #[must_use]
    pub fn display_path(&self) -> PathBuf {
        self.folder.path.join(&self.name)
    }
}

/// A file of the backed up cluster, as it arrives: the unit of checksums and of the manifest.
#[derive(Debug)]
pub struct Member {
    /// Its place in the order of arrival, from 0.
    pub sequence: u64,
    /// Its path as the manifest names it.
    pub path: Vec<u8>,
    /// Its length in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// When it was last modified, in seconds since 1970.
    pub modified: u64,
    /// Whose it is, in the table of owners of a backup in a repository; 0 elsewhere.
    pub owner: u16,
    /// What is kept of an older backup's map of it, where it is laid over one.
    pub overlay: Option<Arc<Overlay>>,
}

impl Member {
    /// The path for messages.
    #[must_use]
    pub fn display_path(&self) -> &Path {
        use std::os::unix::ffi::OsStrExt;
        Path::new(std::ffi::OsStr::from_bytes(&self.path))
    }
}

/// Bytes of one member within a chunk.
#[derive(Debug)]
pub(super) struct Span {
    /// The member they belong to.
    pub member: Arc<Member>,
    /// Where they lie in the chunk's buffer.
    pub range: Range<usize>,
    /// Which blocks of it these are, one run behind the other, where not all of it passes; whole ones then.
    pub runs: Vec<BlockRun>,
    /// Whether they are the member's last.
    pub ends: bool,
}

/// A filled buffer on its way to its place in an output.
#[derive(Debug)]
pub(super) struct Chunk {
    /// The file it belongs to.
    pub output: Arc<Output>,
    /// Where in the file; a multiple of the buffer's size.
    pub offset: u64,
    /// The bytes; none for the end of an empty file.
    pub data: Option<PageBuffer>,
    /// The members within, in order.
    pub spans: Vec<Span>,
    /// The file's length, if this is its last chunk.
    pub ends_at: Option<u64>,
}
