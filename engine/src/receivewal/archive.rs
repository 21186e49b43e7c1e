//! Cuts a timeline's WAL into the segments of an archive.
//!
//! A segment is `NAME.partial` until it is whole and durable, then `NAME`. The one behind it is received meanwhile; it has
//! the name `NAME.pgstrata.tmp` until the one before it has its own. So the highest name always tells where to go on, and
//! nothing is missing below it, whenever the process dies.
//!
//! Invariant: while the stream goes on, a segment gets its name only once the record that runs out of it was whole and
//! right. Else the part that lies in it could never be had again: a stream that begins behind it sees the rest only.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use pgstrata_protocol::basebackup::CompressionSpec;
use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::{Lsn, TimelineId};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, openat, statat, unlinkat};
use rustix::io::Errno;

use super::coder::{Coder, of_method};
use super::config::{ReceiveObserver, WalArchive};
use super::durability::{Durability, Job, Rename};
use super::place::RestingSink;
use super::start::{self, Start};
use super::stored;
use crate::connect::Alarm;
use crate::failure::Failure;
use crate::pipeline::Folder;
use crate::wal::WalSink;

/// What the name of a segment ends with that is not whole yet.
const PARTIAL: &str = ".partial";
/// What the name of a segment ends with that has no name yet.
pub(super) const UNNAMED: &str = ".pgstrata.tmp";

/// Writes one timeline's stream.
pub(super) struct ArchiveWriter {
    folder: Arc<Folder>,
    size: WalSegmentSize,
    timeline: TimelineId,
    compression: Option<CompressionSpec>,
    mode: u32,
    synchronous: bool,
    observer: Arc<dyn ReceiveObserver>,
    durability: Durability,
    open: Option<OpenSegment>,
    written: Lsn,
    /// Up to where the present stream's first segment goes: it may lie here in part.
    first_end: Lsn,
    /// Up to where WAL is to be durable soon.
    wanted: Lsn,
    /// Up to where that was asked for.
    asked: Lsn,
    /// What waits for the end of the record that runs out of a whole segment, in the order of names.
    held: VecDeque<Job>,
    /// Nothing behind the segment with this position is wanted.
    end: Option<Lsn>,
}

struct OpenSegment {
    /// Without what its name ends with.
    name: String,
    file: Arc<File>,
    coder: Coder,
    filled: u64,
    /// How much a partial file holds in whose place this one comes, once it holds as much.
    replaces: Option<u64>,
}

impl ArchiveWriter {
    /// A writer that goes on from `start`. `alarm` rings whenever more is durable.
    pub(super) fn new(
        archive: &WalArchive,
        folder: &Arc<Folder>,
        size: WalSegmentSize,
        mode: u32,
        start: Start,
        observer: &Arc<dyn ReceiveObserver>,
        alarm: &Alarm,
    ) -> Result<Self, Failure> {
        let Start { lsn, timeline } = start;
        // The slot is ours now: nobody else is at work here.
        start::remove_unnamed(&archive.directory, size)?;
        Ok(Self {
            folder: Arc::clone(folder),
            size,
            timeline,
            compression: archive.compression,
            mode,
            synchronous: archive.synchronous,
            observer: Arc::clone(observer),
            durability: Durability::start(Arc::clone(folder), archive.sync, lsn, alarm.clone())?,
            open: None,
            written: lsn,
            first_end: Lsn(lsn.0.saturating_add(size.bytes())),
            wanted: lsn,
            asked: lsn,
            held: VecDeque::new(),
            end: archive.end,
        })
    }

    fn begin_segment(&mut self) -> Result<OpenSegment, Failure> {
        let segment = WalSegment::containing(self.timeline, self.written, self.size);
        let extension = self.compression.map_or("", |spec| of_method(spec.method).extension());
        let name = format!("{}{extension}", segment.file_name(self.size));
        let (partial, unnamed) = (format!("{name}{PARTIAL}"), format!("{name}{UNNAMED}"));
        let mut replaces = None;
        let file = if self.written >= self.first_end {
            // The one before it may still be without its own name.
            let file = self.create(&unnamed)?;
            self.held.push_back(Job::Made(Some(Rename { from: unnamed, to: partial })));
            file
        } else {
            match self.length_of(&partial)? {
                None => {
                    let file = self.create(&partial)?;
                    self.durability.send(Job::Made(None))?;
                    file
                }
                Some(length) => match &self.compression {
                    // It holds what may have been told to be durable: only as much takes its place.
                    Some(spec) => {
                        let path = self.folder.path.join(&partial);
                        let held = stored::readable(&path, of_method(spec.method))
                            .map_err(|error| Failure::disk("read", path, error))?;
                        replaces = Some(held);
                        self.create(&unnamed)?
                    }
                    None => self.open_partial(&partial, length)?,
                },
            }
        };
        let file = Arc::new(file);
        let coder = Coder::new(&file, self.compression.as_ref())
            .map_err(|error| Failure::disk("begin to compress", self.folder.path.join(&name), error))?;
        Ok(OpenSegment { name, file, coder, filled: 0, replaces })
    }

    /// A new file with the space of a segment, where that is known beforehand.
    fn create(&self, name: &str) -> Result<File, Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = self.folder.path.join(name);
        let file = openat(&self.folder.handle, name, flags, Mode::from_raw_mode(self.mode))
            .map_err(|error| Failure::disk("create file", &path, error))?;
        let file = File::from(file);
        if self.compression.is_none()
            && let Err(error) = self.reserve(&file)
        {
            // It would be taken for damage by whoever comes next.
            let _ = self.remove(name);
            return Err(Failure::disk("reserve space for", path, error));
        }
        Ok(file)
    }

    fn reserve(&self, file: &File) -> io::Result<()> {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, self.size.bytes()) {
            // File systems that cannot reserve give the file its length all the same.
            Err(Errno::OPNOTSUPP) => file.set_len(self.size.bytes()),
            other => other.map_err(Into::into),
        }
    }

    /// A file that an earlier run left: its bytes stay until the same bytes are received once more.
    fn open_partial(&self, name: &str, length: u64) -> Result<File, Failure> {
        let path = self.folder.path.join(name);
        if length != 0 && length != self.size.bytes() {
            return Err(Failure::Target(format!(
                "write-ahead log file \"{name}\" has {length} bytes, should be 0 or {}\n\
                 HINT: nothing that this program writes looks so; move it away.",
                self.size.bytes()
            )));
        }
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.folder.handle, name, flags, Mode::empty())
            .map_err(|error| Failure::disk("open", &path, error))?;
        let file = File::from(file);
        if length == 0
            && let Err(error) = self.reserve(&file)
        {
            let _ = file.set_len(0);
            return Err(Failure::disk("reserve space for", path, error));
        }
        self.durability.send(Job::Made(None))?;
        Ok(file)
    }

    fn length_of(&self, name: &str) -> Result<Option<u64>, Failure> {
        match statat(&self.folder.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(u64::try_from(found.st_size).unwrap_or_default())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Failure::disk("look at", self.folder.path.join(name), error)),
        }
    }

    fn remove(&self, name: &str) -> Result<(), Failure> {
        unlinkat(&self.folder.handle, name, AtFlags::empty())
            .map_err(|error| Failure::disk("remove", self.folder.path.join(name), error))
    }

    fn end_segment(&mut self, open: OpenSegment) -> Result<(), Failure> {
        let OpenSegment { name, file, coder, replaces, .. } = open;
        coder.finish().map_err(|error| Failure::disk("write to", self.folder.path.join(&name), error))?;
        let partial = format!("{name}{PARTIAL}");
        let (from, stale) = match replaces {
            Some(_) => (format!("{name}{UNNAMED}"), Some(partial)),
            None => (partial, None),
        };
        let end = self.written;
        self.held.push_back(Job::Finish { file, rename: Rename { from, to: name }, stale, end });
        (self.asked, self.wanted) = (end, end);
        Ok(())
    }

    /// Hands on what no longer has to wait, now that all records up to `verified` were right.
    fn release(&mut self, verified: Lsn) -> Result<(), Failure> {
        while let Some(job) = self.held.pop_front() {
            if let Job::Finish { end, .. } = &job {
                if *end > verified {
                    self.held.push_front(job);
                    break;
                }
                self.observer.note(&format!("finished segment at {end} (timeline {})", self.timeline));
            }
            self.durability.send(job)?;
        }
        Ok(())
    }

    /// Has what was written so far made durable, unless that must wait.
    fn ask(&mut self) -> Result<(), Failure> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.replaces.is_some_and(|held| open.filled < held) {
            return Ok(());
        }
        let partial = format!("{}{PARTIAL}", open.name);
        open.coder
            .flush()
            .map_err(|error| Failure::disk("write to", self.folder.path.join(&partial), error))?;
        let rename = open
            .replaces
            .take()
            .map(|_| Rename { from: format!("{}{UNNAMED}", open.name), to: partial.clone() });
        self.asked = self.written;
        self.durability.send(Job::Sync {
            file: Arc::clone(&open.file),
            name: partial,
            rename,
            upto: self.written,
        })
    }
}

impl WalSink for ArchiveWriter {
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
            open.coder.write(now, open.filled).map_err(|error| {
                let path: PathBuf = self.folder.path.join(format!("{}{PARTIAL}", open.name));
                Failure::disk("write to", path, error)
            })?;
            open.filled += now.len() as u64;
            self.written = Lsn(self.written.0 + now.len() as u64);
            bytes = later;
            if open.filled == self.size.bytes() {
                self.end_segment(open)?;
                if self.end.is_some_and(|end| end < self.written) {
                    // As pg_receivewal leaves the rest of a message.
                    return Ok(());
                }
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
        self.durability.flushed()
    }

    fn settle(&mut self, verified: Lsn, asked: bool) -> Result<(), Failure> {
        self.durability.check()?;
        self.release(verified)?;
        if !self.held.is_empty() {
            // Nothing behind a segment without its name counts as durable.
            return Ok(());
        }
        if self.synchronous || asked {
            self.wanted = self.written;
        }
        // One at a time: what comes meanwhile is made durable together, once that is done.
        if self.wanted > self.asked && self.durability.flushed() >= self.asked { self.ask() } else { Ok(()) }
    }
}

impl RestingSink for ArchiveWriter {
    /// Whole segments get their names where the stream ended in order, and it is worth a word that the last one does not;
    /// else those whose last record nobody has seen whole stay partial, to be received once more.
    fn rest(&mut self, orderly: bool) -> Result<(), Failure> {
        if orderly {
            self.release(Lsn(u64::MAX))?;
        } else if !self.held.is_empty() {
            // What is open has no name to go on with yet.
            self.open = None;
            for job in std::mem::take(&mut self.held) {
                if let Job::Made(Some(Rename { from, .. })) = job {
                    self.remove(&from)?;
                }
            }
        }
        if let Some(open) = self.open.take() {
            let partial = format!("{}{PARTIAL}", open.name);
            if orderly {
                self.observer.info(&format!("not renaming \"{partial}\", segment is not complete"));
            }
            let path = self.folder.path.join(&partial);
            if let Err(error) = open.coder.finish() {
                // A failed sync of what came before weighs more.
                self.durability.drain()?;
                return Err(Failure::disk("write to", path, error));
            }
            let unnamed = format!("{}{UNNAMED}", open.name);
            match open.replaces {
                // What lies here holds more.
                Some(held) if open.filled < held => self.remove(&unnamed)?,
                replaces => {
                    let rename = replaces.map(|_| Rename { from: unnamed, to: partial.clone() });
                    self.durability.send(Job::Sync {
                        file: open.file,
                        name: partial,
                        rename,
                        upto: self.written,
                    })?;
                }
            }
        }
        self.durability.drain()
    }
}

#[cfg(test)]
mod tests;
