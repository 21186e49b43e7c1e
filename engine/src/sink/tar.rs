//! Tar format: each archive as the server sent it, one file each, made visible at the end by renames. Where the
//! pipeline compresses them, their names say so.
//!
//! The one archive on standard output has the manifest as its last member: it ends only when all else has come.
//!
//! With recovery settings (`-R`) they are added to `postgresql.auto.conf` inside the base archive, and
//! `standby.signal` behind its last member.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pgstrata_protocol::basebackup::CompressionMethod;
use pgstrata_protocol::tar::{
    BLOCK_SIZE, END_OF_ARCHIVE, MemberHeader, MemberKind, MemberPath, TarMember, padding_for, with_size,
};

use super::{Archive, Sink, archive_name};
use crate::failure::Failure;
use crate::pipeline::{Feeder, Folder, Member, Output};

/// What an archive's name ends with until the backup is complete.
pub const PARTIAL: &str = ".partial";
const AUTO_CONF: &[u8] = b"postgresql.auto.conf";
const STANDBY_SIGNAL: &[u8] = b"standby.signal";
const MANIFEST: &[u8] = b"backup_manifest";
/// Bytes of the manifest that are read at a time.
const MANIFEST_PIECE: usize = 64 << 10;

/// Writes the archives of a tar backup.
#[derive(Debug)]
pub struct TarSink {
    folder: Arc<Folder>,
    mode: u32,
    compression: Option<CompressionMethod>,
    /// Settings for `postgresql.auto.conf`, and the time for members that they need.
    recovery: Option<(Vec<u8>, u64)>,
    /// Whether archives end with the stream, and with the manifest in them.
    takes_manifest: bool,
    is_base: bool,
    seen_auto_conf: bool,
    seen_standby_signal: bool,
    /// The begun member: its length in the archive, and what is added behind the server's bytes.
    member: Option<(u64, Vec<u8>)>,
    names: Vec<OsString>,
}

impl TarSink {
    /// A sink for archives in `folder`, which the pipeline compresses as said. `recovery` is the text that `-R` adds,
    /// and seconds since 1970.
    #[must_use]
    pub fn new(
        folder: Arc<Folder>,
        mode: u32,
        compression: Option<CompressionMethod>,
        recovery: Option<(Vec<u8>, u64)>,
    ) -> Self {
        Self {
            folder,
            mode,
            compression,
            recovery,
            takes_manifest: false,
            is_base: false,
            seen_auto_conf: false,
            seen_standby_signal: false,
            member: None,
            names: Vec::new(),
        }
    }

    /// The same for the only archive of a stream, which is to hold the manifest if there is one.
    #[must_use]
    pub fn with_manifest(mut self) -> Self {
        self.takes_manifest = true;
        self
    }

    /// The final names of the archives, in the order of the stream: the base archive last.
    #[must_use]
    pub fn into_names(self) -> Vec<PathBuf> {
        self.names.iter().map(|name| self.folder.path.join(name)).collect()
    }

    fn add_manifest(&self, feeder: &mut Feeder, manifest: &mut File) -> Result<(), Failure> {
        let reading = |error| Failure::disk("read", "backup_manifest", error);
        let size = manifest.metadata().map_err(reading)?.len();
        feeder.append(&self.header(MANIFEST, size, now())?)?;
        let (mut left, mut piece) = (size, vec![0; MANIFEST_PIECE]);
        while left > 0 {
            let most = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
            manifest.read_exact(&mut piece[..most]).map_err(reading)?;
            feeder.append(&piece[..most])?;
            left -= most as u64;
        }
        feeder.append(padding(size))
    }

    fn header(&self, name: &[u8], size: u64, time: u64) -> Result<[u8; BLOCK_SIZE], Failure> {
        let refuse = |error: &dyn std::fmt::Display| Failure::stream("a member of ours", error);
        let path = MemberPath::parse(name).map_err(|error| refuse(&error))?;
        let header = MemberHeader::file(&path, size, self.mode, time).map_err(|error| refuse(&error))?;
        Ok(*header.as_bytes())
    }

    fn add_file(&self, feeder: &mut Feeder, name: &[u8], content: &[u8], time: u64) -> Result<(), Failure> {
        let size = content.len() as u64;
        feeder.append(&self.header(name, size, time)?)?;
        feeder.append(content)?;
        feeder.append(padding(size))
    }
}

impl Sink for TarSink {
    fn begin_archive(&mut self, feeder: &mut Feeder, archive: &Archive) -> Result<(), Failure> {
        self.is_base = archive.tablespace.is_none();
        let name = archive_name(archive, self.compression);
        self.names.push(OsString::from(&name));
        let (folder, name) = (Arc::clone(&self.folder), OsString::from(name + PARTIAL));
        let mode = self.mode;
        feeder.begin_output(|number, writer| Output { number, folder, name, mode, size: None, writer });
        Ok(())
    }

    fn begin_member(
        &mut self,
        feeder: &mut Feeder,
        header: &TarMember,
        file: Option<Member>,
    ) -> Result<(), Failure> {
        let (MemberKind::File { size }, Some(member)) = (&header.kind, file) else {
            return feeder.append(&header.header[..]);
        };
        let mut added = Vec::new();
        if self.is_base && header.path.as_bytes() == STANDBY_SIGNAL {
            self.seen_standby_signal = true;
        }
        if self.is_base
            && header.path.as_bytes() == AUTO_CONF
            && let Some((settings, _)) = &self.recovery
        {
            self.seen_auto_conf = true;
            added.clone_from(settings);
        }
        let total = size + added.len() as u64;
        if added.is_empty() {
            feeder.append(&header.header[..])?;
        } else {
            feeder.append(&with_size(&header.header, total))?;
        }
        self.member = Some((total, added));
        feeder.begin_member(member);
        Ok(())
    }

    fn end_member(&mut self, feeder: &mut Feeder) -> Result<(), Failure> {
        feeder.end_member();
        let (total, added) = self.member.take().expect("a file was begun");
        feeder.append(&added)?;
        feeder.append(padding(total))
    }

    fn end_archive(&mut self, feeder: &mut Feeder) -> Result<(), Failure> {
        if let Some((settings, time)) = self.recovery.as_ref().filter(|_| self.is_base) {
            if !self.seen_auto_conf {
                self.add_file(feeder, AUTO_CONF, settings, *time)?;
            }
            if !self.seen_standby_signal {
                self.add_file(feeder, STANDBY_SIGNAL, b"", *time)?;
            }
        }
        if self.takes_manifest {
            return Ok(());
        }
        feeder.append(&END_OF_ARCHIVE)?;
        feeder.end_output()
    }

    fn end_stream(&mut self, feeder: &mut Feeder, manifest: Option<&mut File>) -> Result<(), Failure> {
        if !self.takes_manifest {
            return Ok(());
        }
        if let Some(manifest) = manifest {
            self.add_manifest(feeder, manifest)?;
        }
        feeder.append(&END_OF_ARCHIVE)?;
        feeder.end_output()
    }
}

/// The zeros behind content of `size` bytes.
fn padding(size: u64) -> &'static [u8] {
    &[0; 512][..padding_for(size)]
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
