//! The answer to BASE_BACKUP, from frames to file events: wire → archive → tar → sink.
//!
//! What the server compressed is unpacked on this thread, between archive and tar: unpacking costs a fraction of what
//! compressing costs the server's one process.
//!
//! Sans-IO but for the manifest, which goes to its file as it comes. Bytes are handed on as slices of the
//! receive buffer; the sink's copy into an aligned buffer is the only one.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::sync::atomic::Ordering;

use pgstrata_protocol::basebackup::{ArchiveDecoder, ArchiveEvent, ArchiveName, CompressionMethod};
use pgstrata_protocol::replication::{BackupPosition, CompletedReply};
use pgstrata_protocol::tar::{MemberKind, TarDecoder, TarEvent, TarMember};

use super::decompress::Decompressor;
use crate::basebackup::{Observer, Progress};
use crate::connect::{BulkStream, CopyDirection, CopyEvent, Reply, SessionError};
use crate::failure::Failure;
use crate::pipeline::{Feeder, Member, Spent};
use crate::sink::{Archive, Sink};

/// SQLSTATE `data_corrupted`: the server found wrong page checksums, and says so at the very end.
const DATA_CORRUPTED: &str = "XX001";

/// Takes the stream apart and feeds a sink.
pub struct StreamSource<'a> {
    sink: &'a mut dyn Sink,
    feeder: Feeder,
    /// The server's tablespaces as it lists them, the base directory last.
    tablespaces: Vec<Archive>,
    manifest: Option<BufWriter<File>>,
    progress: &'a Progress,
    observer: &'a dyn Observer,
    layout: Layout,
    /// What the server compresses archives with, if it does.
    compression: Option<CompressionMethod>,
    /// The open archive's, then.
    decompressor: Option<Decompressor>,
    tar: TarDecoder,
    /// What the open archive's members are called in the manifest, ahead of their own path.
    prefix: Option<Vec<u8>>,
    members: u64,
    /// Whether a file's content is under way; folders and links have none.
    in_file: bool,
    /// Whether the file is the last that a backup without WAL has before the server waits for its archive.
    in_last_file: bool,
    /// Whether the server may fall silent after that file.
    may_wait: bool,
    /// Whether the base archive has brought its control file, without which there is no cluster.
    has_control_file: bool,
}

/// How archives follow each other in the stream.
enum Layout {
    /// 15 and newer: typed messages in one copy.
    Typed(ArchiveDecoder),
    /// 14 and older: a copy for each tablespace, then one for the manifest.
    Untyped {
        /// Copies that have ended.
        ended: usize,
    },
}

/// What a stream is going to bring.
#[derive(Debug)]
pub struct ExpectedStream {
    /// All archives in one copy of typed messages, as servers from 15 on send them.
    pub typed: bool,
    /// What the server was asked to compress archives with; only in typed messages.
    pub compression: Option<CompressionMethod>,
    /// The server was asked to wait for its WAL archive before it ends.
    pub may_wait: bool,
    /// The server's tablespaces as it lists them, the base directory last.
    pub tablespaces: Vec<Archive>,
    /// Where the manifest goes, if one was asked for.
    pub manifest: Option<File>,
}

/// What the server said at the end.
#[derive(Clone, Copy, Debug)]
pub struct StreamEnd {
    /// Where the backup is consistent.
    pub end: BackupPosition,
}

impl<'a> StreamSource<'a> {
    /// A source for a stream that stands where its first copy begins.
    pub fn new(
        expected: ExpectedStream,
        sink: &'a mut dyn Sink,
        feeder: Feeder,
        progress: &'a Progress,
        observer: &'a dyn Observer,
    ) -> Self {
        let ExpectedStream { typed, compression, may_wait, tablespaces, manifest } = expected;
        let layout = match (typed, compression) {
            (false, _) => Layout::Untyped { ended: 0 },
            (true, None) => Layout::Typed(ArchiveDecoder::new()),
            (true, Some(method)) => Layout::Typed(ArchiveDecoder::compressed(method)),
        };
        Self {
            sink,
            feeder,
            tablespaces,
            manifest: manifest.map(BufWriter::new),
            progress,
            observer,
            layout,
            compression: compression.filter(|_| typed),
            decompressor: None,
            tar: TarDecoder::new(),
            prefix: None,
            members: 0,
            in_file: false,
            may_wait,
            in_last_file: false,
            has_control_file: false,
        }
    }

    /// Receives it all, to the end of the command. After a failure the source must live until that is told: what its
    /// end lets others run into is consequence, not cause.
    pub fn drive(&mut self, stream: &mut BulkStream) -> Result<StreamEnd, Failure> {
        if matches!(self.layout, Layout::Untyped { .. }) {
            self.begin_untyped_copy(0)?;
        }
        self.feeder.clock().book(Spent::Busy);
        loop {
            match stream.next_event() {
                Ok(Some(CopyEvent::Data { chunk, first, last })) => self.on_copy_data(chunk, first, last)?,
                Ok(Some(CopyEvent::End)) => {
                    self.end_copy()?;
                    match stream.resume().map_err(|error| self.lost(error))? {
                        Reply::Done(reply) => return self.end(&reply),
                        Reply::Copy { direction: CopyDirection::Out, .. } => self.begin_next_copy()?,
                        Reply::Copy { .. } => {
                            return Err(broken(&"the server asked for data, expected it to send a backup"));
                        }
                    }
                }
                Ok(None) => {
                    if self.in_last_file && !self.in_file && std::mem::take(&mut self.may_wait) {
                        // From here on silence is the server's archiver at work, however long that takes.
                        stream.set_stall_limit(None).map_err(|error| self.lost(error))?;
                    }
                    self.feeder.clock().book(Spent::Busy);
                    let received = stream.receive();
                    self.feeder.clock().book(Spent::Starved);
                    received.map_err(|error| self.lost(error))?;
                }
                Err(error) => return Err(self.lost(error)),
            }
        }
    }

    /// Why the stream ended early. One refusal comes after all the data: the server's own checksum failures.
    fn lost(&self, error: SessionError) -> Failure {
        match error.server_error() {
            Some(refusal) if refusal.sqlstate() == DATA_CORRUPTED && self.check_complete().is_ok() => {
                self.observer.warning(&refusal.to_string());
                Failure::ServerChecksum
            }
            _ => Failure::session("the backup stream broke off", error),
        }
    }

    fn begin_next_copy(&mut self) -> Result<(), Failure> {
        match self.layout {
            Layout::Typed(_) => Err(broken(&"a second copy began, expected one for all archives")),
            Layout::Untyped { ended } => self.begin_untyped_copy(ended),
        }
    }

    fn on_copy_data(&mut self, chunk: &[u8], first: bool, last: bool) -> Result<(), Failure> {
        match &mut self.layout {
            Layout::Typed(archives) => {
                match archives.push(chunk, first, last).map_err(|error| broken(&error))? {
                    None => Ok(()),
                    Some(ArchiveEvent::Data(bytes)) => self.on_archive_bytes(bytes),
                    Some(ArchiveEvent::ArchiveStart { name, location }) => {
                        self.end_archive()?;
                        self.begin_named_archive(name, &location)
                    }
                    // Our own count is as true, and no older than the last message.
                    Some(ArchiveEvent::Progress(_)) => Ok(()),
                    Some(ArchiveEvent::ManifestStart) => self.end_archive(),
                    Some(ArchiveEvent::ManifestData(bytes)) => self.on_manifest_bytes(bytes),
                }
            }
            Layout::Untyped { ended } if *ended < self.tablespaces.len() => self.on_archive_bytes(chunk),
            Layout::Untyped { .. } => self.on_manifest_bytes(chunk),
        }
    }

    fn begin_named_archive(&mut self, name: ArchiveName, location: &[u8]) -> Result<(), Failure> {
        let tablespace = match name {
            ArchiveName::Base => None,
            ArchiveName::Tablespace(oid) => Some(oid),
        };
        let listed = self.tablespaces.iter().find(|archive| archive.tablespace == tablespace);
        let archive = listed
            .filter(|archive| tablespace.is_none() || archive.location == location)
            .cloned()
            .ok_or_else(|| broken(&format!("archive {name} is not in the server's list of tablespaces")))?;
        self.begin_archive(&archive)
    }

    fn begin_untyped_copy(&mut self, number: usize) -> Result<(), Failure> {
        match self.tablespaces.get(number).cloned() {
            Some(archive) => self.begin_archive(&archive),
            None if number == self.tablespaces.len() && self.manifest.is_some() => Ok(()),
            None => Err(broken(&"another copy began after the last archive")),
        }
    }

    fn begin_archive(&mut self, archive: &Archive) -> Result<(), Failure> {
        self.tar = TarDecoder::new();
        if let Some(method) = self.compression {
            let failed = |error| Failure::disk("prepare to unpack", "archives", error);
            self.decompressor = Some(Decompressor::new(method).map_err(failed)?);
        }
        self.prefix =
            Some(archive.tablespace.map_or_else(Vec::new, |oid| format!("pg_tblspc/{oid}/").into()));
        self.sink.begin_archive(&mut self.feeder, archive)
    }

    fn end_archive(&mut self) -> Result<(), Failure> {
        if self.prefix.take().is_none() {
            return Ok(());
        }
        if let Some(decompressor) = self.decompressor.take() {
            decompressor.finish().map_err(|error| broken(&error))?;
        }
        self.tar.finish().map_err(|error| broken(&error))?;
        self.progress.tablespaces_done.fetch_add(1, Ordering::Relaxed);
        self.sink.end_archive(&mut self.feeder)
    }

    fn end_copy(&mut self) -> Result<(), Failure> {
        match &mut self.layout {
            Layout::Typed(archives) => archives.finish().map_err(|error| broken(&error))?,
            Layout::Untyped { ended } => *ended += 1,
        }
        self.end_archive()
    }

    fn on_archive_bytes(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        if self.prefix.is_none() {
            return Err(broken(&"archive data before any archive began"));
        }
        let Some(mut decompressor) = self.decompressor.take() else { return self.on_tar_bytes(bytes) };
        self.sink.compressed(&mut self.feeder, bytes)?;
        while let Some(plain) = decompressor.next(&mut bytes).map_err(|error| broken(&error))? {
            self.on_tar_bytes(plain)?;
        }
        self.decompressor = Some(decompressor);
        Ok(())
    }

    fn on_tar_bytes(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        self.progress.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        while let Some(event) = self.tar.next(&mut bytes).map_err(|error| broken(&error))? {
            match event {
                TarEvent::Data(bytes) => self.sink.data(&mut self.feeder, bytes)?,
                TarEvent::Member(member) => self.begin_member(&member)?,
                TarEvent::MemberEnd if std::mem::take(&mut self.in_file) => {
                    self.sink.end_member(&mut self.feeder)?;
                }
                TarEvent::MemberEnd => {}
            }
        }
        Ok(())
    }

    fn begin_member(&mut self, header: &TarMember) -> Result<(), Failure> {
        if !self.has_place(header)? {
            return Ok(());
        }
        let MemberKind::File { size } = header.kind else {
            return self.sink.begin_member(&mut self.feeder, header, None);
        };
        let mut path = self.prefix.clone().unwrap_or_default();
        path.extend_from_slice(header.path.as_bytes());
        self.progress.begin_file(&path);
        let (mode, modified) = (header.mode, header.mtime);
        let member = Member { sequence: self.members, path, size, mode, modified, owner: 0, overlay: None };
        self.members += 1;
        self.in_file = true;
        self.in_last_file = header.path.as_bytes() == b"global/pg_control" && self.in_base();
        self.has_control_file |= self.in_last_file;
        self.sink.begin_member(&mut self.feeder, header, Some(member))
    }

    /// Whether the open archive is the data directory.
    fn in_base(&self) -> bool {
        self.prefix.as_ref().is_some_and(Vec::is_empty)
    }

    /// Refuses what a server has no reason to send: links that are no tablespaces or contradict its own list of
    /// them, and members of a tablespace that lie beside its version's folder. Says whether the member is to be kept.
    fn has_place(&self, header: &TarMember) -> Result<bool, Failure> {
        let path = header.path.as_bytes();
        if let MemberKind::Symlink { target } = &header.kind {
            return self.is_listed(path, target);
        }
        let top = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        if self.in_base() || is_version_folder(top) {
            return Ok(true);
        }
        let found = path.escape_ascii();
        Err(broken(&format!(
            "a tablespace holds \"{found}\", expected only a folder such as PG_15_202209061"
        )))
    }

    /// A tablespace that was made after the server listed them has its link in the stream, but no archive.
    /// Replay makes it anew, link included; what the link leads to here is the live server's, so it is left out.
    fn is_listed(&self, path: &[u8], target: &[u8]) -> Result<bool, Failure> {
        let refuse = |why: &str| {
            let (path, target) = (path.escape_ascii(), target.escape_ascii());
            Err(Failure::stream(format!("link \"{path}\" to \"{target}\""), &why))
        };
        let oid = path.strip_prefix(b"pg_tblspc/").filter(|_| self.in_base());
        // One spelling for each OID: a sign or a leading zero is not how a server names a link.
        let number = |oid: &[u8]| {
            let number: u32 = std::str::from_utf8(oid).ok()?.parse().ok()?;
            (number.to_string().as_bytes() == oid).then_some(number)
        };
        let Some(oid) = oid.and_then(number) else {
            return refuse("only pg_tblspc/OID may be a link");
        };
        let named = |archive: &&Archive| archive.tablespace == Some(oid);
        match self.tablespaces.iter().find(named) {
            None => {
                self.observer.warning(&format!(
                    "tablespace {oid} was created while the backup ran; its link is left to WAL replay"
                ));
                Ok(false)
            }
            Some(archive) if archive.location == target => Ok(true),
            Some(archive) => {
                let listed = archive.location.escape_ascii();
                refuse(&format!("the server's list of tablespaces says \"{listed}\""))
            }
        }
    }

    fn on_manifest_bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let manifest = self.manifest.as_mut().ok_or_else(|| broken(&"a manifest that was not asked for"))?;
        manifest.write_all(bytes).map_err(|error| Failure::disk("write to", "backup_manifest.tmp", error))
    }

    fn end(&mut self, reply: &CompletedReply) -> Result<StreamEnd, Failure> {
        self.check_complete()?;
        let writing = |error| Failure::disk("write to", "backup_manifest.tmp", error);
        if let Some(manifest) = &mut self.manifest {
            manifest.flush().map_err(writing)?;
            manifest.get_mut().seek(SeekFrom::Start(0)).map_err(writing)?;
        }
        let result = reply.results.last().ok_or_else(|| broken(&"the end position is missing"))?;
        let end = BackupPosition::from_result(result).map_err(|error| broken(&error))?;
        self.sink.end_stream(&mut self.feeder, self.manifest.as_mut().map(BufWriter::get_mut))?;
        Ok(StreamEnd { end })
    }

    /// All archives of the list have come, each whole.
    fn check_complete(&self) -> Result<(), Failure> {
        let done = self.progress.tablespaces_done.load(Ordering::Relaxed) as usize;
        let expected = self.tablespaces.len();
        if done != expected {
            return Err(broken(&format!("{done} archives arrived, expected {expected}")));
        }
        if !self.has_control_file {
            return Err(broken(&"the data directory came without global/pg_control"));
        }
        Ok(())
    }
}

/// `TABLESPACE_VERSION_DIRECTORY` (`common/relpath.h`): `PG_`, the major version, `_`, the catalogue's version.
pub(crate) fn is_version_folder(name: &[u8]) -> bool {
    let mut parts = name.split(|byte| *byte == b'_');
    let is_number = |part: Option<&[u8]>| {
        part.is_some_and(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit))
    };
    parts.next() == Some(b"PG")
        && is_number(parts.next())
        && is_number(parts.next())
        && parts.next().is_none()
}

fn broken(error: &dyn std::fmt::Display) -> Failure {
    Failure::stream("backup stream", error)
}
