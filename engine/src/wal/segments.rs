//! Cuts a WAL stream into segment files, or into members of one tar archive.
//!
//! Invariants: bytes come without a gap; a segment has its full length from the start (zeros where nothing
//! came yet); `flushed` never passes what a sync has confirmed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::tar::{END_OF_ARCHIVE, MemberHeader, MemberPath, padding_for};
use pgstrata_protocol::{Lsn, TimelineId};
use rustix::fs::{FallocateFlags, Mode, OFlags, openat};

use super::stream::WalSink;
use crate::failure::Failure;
use crate::pipeline::Folder;

/// Where segments go.
#[derive(Debug)]
pub enum WalDestination {
    /// Files in the folder `pg_wal`, each marked as archived in `archive_status`.
    Folder(Arc<Folder>),
    /// Members of the archive in this folder with this name.
    Tar {
        /// The folder.
        folder: Arc<Folder>,
        /// The archive's name in it.
        name: String,
        /// The level at which it is compressed by gzip, if it is.
        gzip: Option<u32>,
    },
}

/// Writes one timeline's stream.
#[derive(Debug)]
pub struct SegmentWriter {
    store: Store,
    size: WalSegmentSize,
    timeline: TimelineId,
    mode: u32,
    sync: bool,
    /// Seconds since 1970, for tar members.
    time: u64,
    open: Option<OpenSegment>,
    written: Lsn,
    flushed: Lsn,
    /// The end of the last record that was whole and right.
    verified: Lsn,
}

#[derive(Debug)]
enum Store {
    Folder(Arc<Folder>),
    Tar { archive: WalArchive, path: PathBuf },
}

/// The one file of a tar archive.
#[derive(Debug)]
enum WalArchive {
    Plain(File),
    Gzip(Box<GzEncoder<File>>),
}

impl WalArchive {
    /// Makes what was written so far durable, and readable.
    fn sync(&mut self) -> io::Result<()> {
        match self {
            WalArchive::Plain(file) => file.sync_all(),
            WalArchive::Gzip(encoder) => {
                encoder.flush()?;
                encoder.get_ref().sync_all()
            }
        }
    }

    /// Ends the compressed stream, if it is one.
    fn end(&mut self) -> io::Result<()> {
        match self {
            WalArchive::Plain(_) => Ok(()),
            WalArchive::Gzip(encoder) => encoder.try_finish(),
        }
    }

    fn sync_ended(&self) -> io::Result<()> {
        match self {
            WalArchive::Plain(file) => file.sync_all(),
            WalArchive::Gzip(encoder) => encoder.get_ref().sync_all(),
        }
    }
}

impl Write for WalArchive {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            WalArchive::Plain(file) => file.write(bytes),
            WalArchive::Gzip(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            WalArchive::Plain(file) => file.flush(),
            WalArchive::Gzip(encoder) => encoder.flush(),
        }
    }
}

#[derive(Debug)]
struct OpenSegment {
    segment: WalSegment,
    /// None within a tar archive.
    file: Option<(File, PathBuf)>,
    filled: u64,
}

impl SegmentWriter {
    /// A writer for the WAL from `start`, the first byte of a segment.
    pub fn new(
        destination: WalDestination,
        size: WalSegmentSize,
        timeline: TimelineId,
        start: Lsn,
        mode: u32,
        sync: bool,
        time: u64,
    ) -> Result<Self, Failure> {
        let store = match destination {
            WalDestination::Folder(folder) => Store::Folder(folder),
            WalDestination::Tar { folder, name, gzip } => {
                let (file, path) = create(&folder, &name, mode)?;
                let archive = match gzip {
                    None => WalArchive::Plain(file),
                    Some(level) => WalArchive::Gzip(Box::new(GzEncoder::new(file, Compression::new(level)))),
                };
                Store::Tar { archive, path }
            }
        };
        Ok(Self { store, size, timeline, mode, sync, time, open: None, written: start, flushed: start, verified: start })
    }

    /// The timeline that the stream is on.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The end of what is written.
    #[must_use]
    pub fn written(&self) -> Lsn {
        self.written
    }

    /// Adds a timeline history file. Before any WAL.
    pub fn add_history(&mut self, name: &str, content: &[u8]) -> Result<(), Failure> {
        self.add_file(name, content)?;
        self.mark_archived(name)
    }

    /// Ends the stream: the last segment is filled up with zeros, and everything made durable.
    pub fn finish(mut self) -> Result<(), Failure> {
        if let Some(open) = self.open.take() {
            if let Store::Tar { archive, path } = &mut self.store {
                let rest = self.size.bytes() - open.filled;
                io::copy(&mut io::Read::take(io::repeat(0), rest), archive)
                    .map_err(|error| Failure::disk("write to", path, error))?;
            }
            self.end_segment(&open)?;
        }
        match &mut self.store {
            Store::Tar { archive, path } => archive
                .write_all(&END_OF_ARCHIVE)
                .and_then(|()| archive.end())
                .and_then(|()| if self.sync { archive.sync_ended() } else { Ok(()) })
                .map_err(|error| Failure::disk("write to", path, error)),
            Store::Folder(folder) if self.sync => {
                folder.sync()?;
                folder.descend(b"archive_status")?.sync()
            }
            Store::Folder(_) => Ok(()),
        }
    }

    fn begin_segment(&mut self) -> Result<OpenSegment, Failure> {
        let segment = WalSegment::containing(self.timeline, self.written, self.size);
        let name = segment.file_name(self.size);
        let file = match &mut self.store {
            Store::Folder(folder) => {
                let (file, path) = create(folder, &name, self.mode)?;
                match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.size.bytes()) {
                    // File systems that cannot reserve give the file its length all the same.
                    Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(self.size.bytes()),
                    other => other.map_err(Into::into),
                }
                .map_err(|error| Failure::disk("reserve space for", &path, error))?;
                Some((file, path))
            }
            Store::Tar { .. } => {
                self.write_header(&name, self.size.bytes())?;
                None
            }
        };
        Ok(OpenSegment { segment, file, filled: 0 })
    }

    fn end_segment(&mut self, open: &OpenSegment) -> Result<(), Failure> {
        let name = open.segment.file_name(self.size);
        if self.sync {
            let (synced, path) = match (&mut self.store, &open.file) {
                (_, Some((file, path))) => (file.sync_all(), path),
                (Store::Tar { archive, path }, None) => (archive.sync(), &*path),
                (Store::Folder(_), None) => unreachable!("segments in folders have files"),
            };
            synced.map_err(|error| Failure::disk("sync", path, error))?;
        }
        // A server that goes on from the backup writes the rest of a begun segment, and archives it then.
        if open.filled == self.size.bytes() {
            self.mark_archived(&name)?;
        }
        self.flushed = self.written;
        Ok(())
    }

    /// A server that starts from the backup must not archive again what its origin archives.
    fn mark_archived(&mut self, name: &str) -> Result<(), Failure> {
        self.add_file(&format!("archive_status/{name}.done"), b"")
    }

    fn add_file(&mut self, name: &str, content: &[u8]) -> Result<(), Failure> {
        match &mut self.store {
            Store::Folder(folder) => {
                let (parent, name) = name.rsplit_once('/').unwrap_or(("", name));
                let folder = folder.descend(parent.as_bytes())?;
                let (mut file, path) = create(&folder, name, self.mode)?;
                file.write_all(content)
                    .and_then(|()| if self.sync { file.sync_all() } else { Ok(()) })
                    .map_err(|error| Failure::disk("write to", path, error))
            }
            Store::Tar { .. } => {
                let size = content.len() as u64;
                self.write_header(name, size)?;
                let Store::Tar { archive, path } = &mut self.store else {
                    unreachable!("it was just matched")
                };
                archive
                    .write_all(content)
                    .and_then(|()| archive.write_all(&[0; 512][..padding_for(size)]))
                    .map_err(|error| Failure::disk("write to", path, error))
            }
        }
    }

    fn write_header(&mut self, name: &str, size: u64) -> Result<(), Failure> {
        let refuse =
            |error: &dyn std::fmt::Display| Failure::Wal(format!("cannot store \"{name}\": {error}"));
        let path = MemberPath::parse(name.as_bytes()).map_err(|error| refuse(&error))?;
        let header = MemberHeader::file(&path, size, self.mode, self.time).map_err(|error| refuse(&error))?;
        match &mut self.store {
            Store::Tar { archive, path } => {
                archive.write_all(header.as_bytes()).map_err(|error| Failure::disk("write to", path, error))
            }
            Store::Folder(_) => unreachable!("only archives have headers"),
        }
    }
}

impl WalSink for SegmentWriter {
    fn write(&mut self, at: Lsn, mut bytes: &[u8]) -> Result<(), Failure> {
        if at != self.written {
            return Err(Failure::Wal(format!("WAL from {at} came, expected it from {}", self.written)));
        }
        while !bytes.is_empty() {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => self.begin_segment()?,
            };
            let room = usize::try_from(self.size.bytes() - open.filled).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            match (&mut self.store, &open.file) {
                (Store::Folder(_), Some((file, path))) => file
                    .write_all_at(now, open.filled)
                    .map_err(|error| Failure::disk("write to", path, error))?,
                (Store::Tar { archive, path }, _) => {
                    archive.write_all(now).map_err(|error| Failure::disk("write to", path, error))?;
                }
                (Store::Folder(_), None) => unreachable!("segments in folders have files"),
            }
            open.filled += now.len() as u64;
            self.written = Lsn(self.written.0 + now.len() as u64);
            bytes = later;
            if open.filled == self.size.bytes() {
                self.end_segment(&open)?;
            } else {
                self.open = Some(open);
            }
        }
        Ok(())
    }

    fn written(&self) -> Lsn {
        self.written
    }

    fn flushed(&self) -> Lsn {
        self.flushed.min(self.verified)
    }

    fn settle(&mut self, verified: Lsn, _asked: bool) -> Result<(), Failure> {
        self.verified = verified;
        Ok(())
    }
}

fn create(folder: &Folder, name: &str, mode: u32) -> Result<(File, PathBuf), Failure> {
    let path = folder.path.join(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&folder.handle, OsStr::new(name), flags, Mode::from_raw_mode(mode))
        .map_err(|error| Failure::disk("create file", &path, error))?;
    Ok((File::from(file), path))
}
