//! Where a backup's WAL segments lie: files of a folder, or members of archives.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgstrata_protocol::manifest::WalRange;
use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::wal::SegmentStart;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// The folder of WAL in a data directory (`XLOGDIR`).
const WAL_FOLDER: &str = "pg_wal";

/// Where segments are looked for.
pub(super) enum WalStore {
    /// A folder. That and its files may be links: `pg_wal` often is one.
    Folder { folder: OwnedFd, path: PathBuf },
    /// Members of archives that are not compressed, by their names.
    Members(HashMap<Vec<u8>, SegmentPlace>),
}

/// A segment that lies in an archive.
#[derive(Clone)]
pub(super) struct SegmentPlace {
    pub(super) file: Arc<OwnedFd>,
    pub(super) archive: Arc<str>,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// A segment that can be read.
pub(super) struct SegmentFile {
    pub(super) file: Arc<OwnedFd>,
    /// Where in the file the segment begins.
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl WalStore {
    /// The segments in a folder, or in its `pg_wal` where it holds none itself, as pg_waldump looks for them.
    pub(super) fn folder(path: &Path) -> io::Result<Self> {
        let open = |path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, path, flags, Mode::empty())
        };
        let folder = open(path)?;
        let below = path.join(WAL_FOLDER);
        if !names(&folder)?.any(|name| is_segment_name(&name))
            && let Ok(folder) = open(&below)
        {
            return Ok(Self::Folder { folder, path: below });
        }
        Ok(Self::Folder { folder, path: path.to_owned() })
    }

    /// The name of a segment for messages.
    pub(super) fn shown(&self, name: &str) -> String {
        match self {
            Self::Folder { path, .. } => path.join(name).display().to_string(),
            Self::Members(members) => match members.get(name.as_bytes()) {
                Some(place) => format!("{}:{name}", place.archive),
                None => name.to_owned(),
            },
        }
    }

    /// Opens a segment; `None` where there is none.
    pub(super) fn open(&self, name: &str) -> io::Result<Option<SegmentFile>> {
        match self {
            Self::Folder { folder, .. } => match open_segment(folder, name.as_bytes()) {
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(None),
                opened => opened.map(Some),
            },
            Self::Members(members) => Ok(members.get(name.as_bytes()).map(|place| SegmentFile {
                file: Arc::clone(&place.file),
                offset: place.offset,
                length: place.length,
            })),
        }
    }

    /// The size of segments, on which their names depend. The first segment of `range` tells, in the header of its first
    /// page; where that is damaged, its length, any other segment, or at last its name.
    pub(super) fn segment_size(&self, range: &WalRange) -> io::Result<WalSegmentSize> {
        let mut candidates = Vec::new();
        for shift in 20..=30 {
            let Ok(size) = WalSegmentSize::new(1 << shift) else { continue };
            let name = WalSegment::containing(range.timeline, range.start, size).file_name(size);
            // What cannot be opened now is told when the segment itself is read.
            if let Ok(Some(file)) = self.open(&name) {
                let stated = file.start().map(|start| start.segment_size);
                candidates.push((size, stated, file.length));
            }
        }
        let by_header = candidates.iter().find(|(size, stated, _)| *stated == Some(*size));
        let by_length = || candidates.iter().find(|(size, _, length)| *length == size.bytes());
        if let Some((size, ..)) = by_header.or_else(by_length) {
            return Ok(*size);
        }
        let by_another = self.any_stated_size()?;
        Ok(by_another.or(candidates.first().map(|(size, ..)| *size)).unwrap_or(WalSegmentSize::DEFAULT))
    }

    /// What any segment states.
    fn any_stated_size(&self) -> io::Result<Option<WalSegmentSize>> {
        let stated = |name: &[u8]| {
            let file = self.open(std::str::from_utf8(name).ok()?).ok()??;
            Some(file.start()?.segment_size)
        };
        Ok(match self {
            Self::Folder { folder, .. } => {
                names(folder)?.filter(|name| is_segment_name(name)).find_map(|name| stated(&name))
            }
            Self::Members(members) => members.keys().find_map(|name| stated(name)),
        })
    }
}

impl SegmentFile {
    /// What the segment's first page says.
    fn start(&self) -> Option<SegmentStart> {
        let mut bytes = [0; SegmentStart::LENGTH];
        let read = rustix::io::pread(&*self.file, &mut bytes, self.offset).ok()?;
        if read == bytes.len() { SegmentStart::parse(&bytes) } else { None }
    }
}

/// Whether a file is a segment by its name (`IsXLogFileName`).
pub(super) fn is_segment_name(name: &[u8]) -> bool {
    name.len() == 24 && name.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'))
}

/// The names in a folder; what cannot be read ends them.
fn names(folder: &OwnedFd) -> io::Result<impl Iterator<Item = Vec<u8>> + use<>> {
    let entries = Dir::read_from(folder)?;
    Ok(entries.map_while(Result::ok).map(|entry| entry.file_name().to_bytes().to_vec()))
}

/// Never waits, even where a FIFO lies in the segment's place.
fn open_segment(folder: &OwnedFd, name: &[u8]) -> io::Result<SegmentFile> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::openat(folder, OsStr::from_bytes(name), flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(SegmentFile { file: Arc::new(file), offset: 0, length: u64::try_from(stat.st_size).unwrap_or(0) })
}
