//! The archives of a backup in tar format: which there are, and how they are read.

use std::io::{self, Read};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use pgstrata_protocol::tar::{TarDecoder, TarEvent};
use rustix::fs::{Advice, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::BUFFER;
use super::cached::{Cached, cached};
use super::lz4_frames::WholeFrames;
use super::presence::is_leftover;
use super::problem::Problem;
use super::run::Run;
use crate::failure::Failure;

/// Bytes of an archive that the page cache keeps before it is told to drop them.
const DROP_STEP: u64 = 8 << 20;

/// What an archive holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The data directory.
    Base,
    /// A tablespace.
    Tablespace(u32),
    /// Streamed WAL.
    Wal,
}

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Lz4,
    Zstd,
}

/// An archive of the backup.
pub(super) struct Archive {
    pub(super) name: Arc<str>,
    pub(super) content: Content,
    pub(super) compression: Compression,
    pub(super) file: Arc<OwnedFd>,
    /// Bytes of the file.
    pub(super) length: u64,
    /// Whether the page cache is to be left without it, as it was.
    pub(super) clean_up: bool,
}

/// What an archive of this name holds, in the names that pg_basebackup gives and pg_verifybackup knows.
fn parse_name(name: &[u8]) -> Option<(Content, Compression)> {
    let name = std::str::from_utf8(name).ok()?;
    let (stem, suffix) = name.split_once('.')?;
    let compression = match suffix {
        "tar" => Compression::None,
        "tar.gz" | "tgz" => Compression::Gzip,
        "tar.lz4" => Compression::Lz4,
        "tar.zst" => Compression::Zstd,
        _ => return None,
    };
    let content = match stem {
        "base" => Content::Base,
        "pg_wal" => Content::Wal,
        oid if oid.bytes().all(|byte| byte.is_ascii_digit()) && !oid.starts_with('0') => {
            Content::Tablespace(oid.parse().ok()?)
        }
        _ => return None,
    };
    Some((content, compression))
}

/// Whether a folder holds a base archive, under any of its names.
pub(super) fn has_base_archive(folder: &OwnedFd) -> bool {
    let Ok(entries) = Dir::read_from(folder) else { return false };
    entries
        .map_while(Result::ok)
        .any(|entry| matches!(parse_name(entry.file_name().to_bytes()), Some((Content::Base, _))))
}

/// Opens the backup's archives, the data's before the WAL's. What does not belong there is reported.
pub(super) fn discover(run: &Run<'_>) -> Result<Vec<Archive>, Failure> {
    let lost = |error: Errno| Failure::disk("read directory", &run.config.backup, error);
    let mut archives = Vec::new();
    for entry in Dir::read_from(run.base).map_err(lost)? {
        let entry = entry.map_err(lost)?;
        let path = entry.file_name().to_bytes();
        if matches!(path, b"." | b"..") || run.config.ignore.covers(path) {
            continue;
        }
        let path = path.to_vec();
        match parse_name(&path) {
            None if is_leftover(&path) || path.ends_with(b".partial") => {
                run.report(Problem::Unfinished { path })?;
            }
            None => run.report(Problem::Unexpected { path })?,
            Some((content, compression)) => match open(run.base, &path) {
                Ok(Some((file, length))) => archives.push(Archive {
                    name: String::from_utf8_lossy(&path).into(),
                    content,
                    compression,
                    clean_up: length > 0 && cached(&file, 0, length) == Cached::Nothing,
                    file: Arc::new(file),
                    length,
                }),
                Ok(None) => run.report(Problem::NotRegular { path, kind: "folder or special file" })?,
                Err(error) => {
                    let reason = error.to_string();
                    run.report(Problem::Unreadable { path, action: "open file", reason })?;
                }
            },
        }
    }
    // The base archive, the largest of most backups, first; WAL last, as it is small.
    archives.sort_by_key(|archive| match archive.content {
        Content::Base => (0, 0),
        Content::Tablespace(oid) => (1, oid),
        Content::Wal => (2, 0),
    });
    Ok(archives)
}

/// Opens an archive, which may be a link, as pg_verifybackup has it. Never waits for a FIFO.
fn open(folder: &OwnedFd, name: &[u8]) -> io::Result<Option<(OwnedFd, u64)>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    Ok(Some((file, u64::try_from(stat.st_size).unwrap_or(0))))
}

impl Archive {
    /// What members' paths get before them to be those of the manifest.
    pub(super) fn prefix(&self) -> Vec<u8> {
        match self.content {
            Content::Tablespace(oid) => format!("pg_tblspc/{oid}/").into_bytes(),
            Content::Base | Content::Wal => Vec::new(),
        }
    }

    /// Has the page cache drop what was read, where it held nothing before.
    pub(super) fn forget(&self, start: u64, end: u64) {
        if self.clean_up
            && let Some(length) = NonZeroU64::new(end.saturating_sub(start))
        {
            // Advice: if it is not taken, the cache is merely fuller.
            let _ = rustix::fs::fadvise(&*self.file, start, Some(length), Advice::DontNeed);
        }
    }

    pub(super) fn broken(&self, reason: impl std::fmt::Display) -> Problem {
        Problem::Archive { archive: self.name.to_string(), reason: reason.to_string() }
    }

    /// The archive's bytes, decompressed as they are read.
    pub(super) fn reader(&self) -> io::Result<Box<dyn Read + '_>> {
        let file = ArchiveReader { archive: self, at: 0, dropped: 0 };
        Ok(match self.compression {
            Compression::None => Box::new(file),
            Compression::Gzip => {
                Box::new(flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(BUFFER, file)))
            }
            Compression::Lz4 => {
                let frames = WholeFrames::new(io::BufReader::with_capacity(BUFFER, file));
                Box::new(lz4_flex::frame::FrameDecoder::new(frames))
            }
            // Its own bound on windows, 128 MiB, is that of PostgreSQL's long mode.
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(file)?),
        })
    }

    /// Shows every event of the archive to `visit`.
    pub(super) fn stream(
        &self,
        run: &Run<'_>,
        visit: &mut dyn FnMut(TarEvent<'_>) -> Result<(), Failure>,
    ) -> Result<Result<(), String>, Failure> {
        let could_not_read = |error: io::Error| Ok(Err(format!("could not read the archive: {error}")));
        let mut reader = match self.reader() {
            Ok(reader) => reader,
            Err(error) => return could_not_read(error),
        };
        let (mut decoder, mut buffer) = (TarDecoder::new(), vec![0; BUFFER]);
        // A decoder of LZ4 says at the end of each frame that there is no more, and goes on when it is asked again.
        let mut ended = false;
        loop {
            if run.stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            let mut input = match reader.read(&mut buffer) {
                Ok(0) if ended => break,
                Ok(read) => {
                    ended = read == 0;
                    &buffer[..read]
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return could_not_read(error),
            };
            loop {
                match decoder.next(&mut input) {
                    Ok(Some(event)) => visit(event)?,
                    Ok(None) => break,
                    Err(error) => return Ok(Err(error.to_string())),
                }
            }
        }
        Ok(decoder.finish().map_err(|error| error.to_string()))
    }
}

/// Reads the file from its beginning, dropping behind it what the page cache did not hold before.
struct ArchiveReader<'a> {
    archive: &'a Archive,
    at: u64,
    dropped: u64,
}

impl Read for ArchiveReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = rustix::io::pread(self.archive.file.as_fd(), buffer, self.at)?;
        self.at += read as u64;
        if self.at - self.dropped >= DROP_STEP || read == 0 {
            self.archive.forget(self.dropped, self.at);
            self.dropped = self.at;
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_by_their_names() {
        use Compression::{Gzip, Lz4, None as Plain, Zstd};
        for (name, expected) in [
            ("base.tar", Some((Content::Base, Plain))),
            ("base.tar.gz", Some((Content::Base, Gzip))),
            ("base.tgz", Some((Content::Base, Gzip))),
            ("16384.tar.lz4", Some((Content::Tablespace(16_384), Lz4))),
            ("4294967295.tar.zst", Some((Content::Tablespace(u32::MAX), Zstd))),
            ("pg_wal.tar", Some((Content::Wal, Plain))),
            ("4294967296.tar", None),
            ("0.tar", None),
            ("016384.tar", None),
            (".tar", None),
            ("+1.tar", None),
            ("base.tar.bz2", None),
            ("base.tar.partial", None),
            ("base2.tar", None),
            ("backup_manifest", None),
        ] {
            assert_eq!(parse_name(name.as_bytes()), expected, "{name}");
        }
    }
}
