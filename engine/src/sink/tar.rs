//! Tar format: each archive as the server sent it, one file each, made visible at the end by renames. Where the
//! pipeline compresses them, their names say so.
//!
//! With recovery settings (`-R`) they are added to `postgresql.auto.conf` inside the base archive, and
//! `standby.signal` behind its last member.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use pgstrata_protocol::basebackup::CompressionMethod;
use pgstrata_protocol::tar::{
    END_OF_ARCHIVE, MemberHeader, MemberKind, MemberPath, TarMember, padding_for, with_size,
};

use super::{Archive, Sink, archive_name};
use crate::failure::Failure;
use crate::pipeline::{Feeder, Folder, Member, Output};

/// What an archive's name ends with until the backup is complete.
pub const PARTIAL: &str = ".partial";
const AUTO_CONF: &[u8] = b"postgresql.auto.conf";
const STANDBY_SIGNAL: &[u8] = b"standby.signal";

/// Writes the archives of a tar backup.
#[derive(Debug)]
pub struct TarSink {
    folder: Arc<Folder>,
    mode: u32,
    compression: Option<CompressionMethod>,
    /// Settings for `postgresql.auto.conf`, and the time for members that they need.
    recovery: Option<(Vec<u8>, u64)>,
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
            is_base: false,
            seen_auto_conf: false,
            seen_standby_signal: false,
            member: None,
            names: Vec::new(),
        }
    }

    /// The final names of the archives, in the order of the stream: the base archive last.
    #[must_use]
    pub fn into_names(self) -> Vec<PathBuf> {
        self.names.iter().map(|name| self.folder.path.join(name)).collect()
    }

    fn add_file(&self, feeder: &mut Feeder, name: &[u8], content: &[u8], time: u64) -> Result<(), Failure> {
        let size = content.len() as u64;
        let refuse = |error: &dyn std::fmt::Display| Failure::stream("a member of ours", error);
        let path = MemberPath::parse(name).map_err(|error| refuse(&error))?;
        let header = MemberHeader::file(&path, size, self.mode, time).map_err(|error| refuse(&error))?;
        feeder.append(header.as_bytes())?;
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
        feeder.append(&END_OF_ARCHIVE)?;
        feeder.end_output()
    }
}

/// The zeros behind content of `size` bytes.
fn padding(size: u64) -> &'static [u8] {
    &[0; 512][..padding_for(size)]
}
