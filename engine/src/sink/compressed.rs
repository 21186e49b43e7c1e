//! Tar format of archives that the server compressed: stored as they come, while what is in them is checked beside.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use pgstrata_protocol::basebackup::CompressionMethod;
use pgstrata_protocol::tar::TarMember;

use super::tar::PARTIAL;
use super::{Archive, Sink, archive_name};
use crate::failure::Failure;
use crate::pipeline::{Feeder, Folder, Member, Output};

/// Writes compressed archives; their members pass the checks and go.
#[derive(Debug)]
pub struct CompressedTarSink {
    folder: Arc<Folder>,
    mode: u32,
    compression: CompressionMethod,
    names: Vec<OsString>,
}

impl CompressedTarSink {
    /// A sink for archives in `folder`.
    #[must_use]
    pub fn new(folder: Arc<Folder>, mode: u32, compression: CompressionMethod) -> Self {
        Self { folder, mode, compression, names: Vec::new() }
    }

    /// The final names of the archives, in the order of the stream: the base archive last.
    #[must_use]
    pub fn into_names(self) -> Vec<PathBuf> {
        self.names.iter().map(|name| self.folder.path.join(name)).collect()
    }
}

impl Sink for CompressedTarSink {
    fn begin_archive(&mut self, feeder: &mut Feeder, archive: &Archive) -> Result<(), Failure> {
        let name = archive_name(archive, Some(self.compression));
        self.names.push(OsString::from(&name));
        let (folder, name) = (Arc::clone(&self.folder), OsString::from(name + PARTIAL));
        let mode = self.mode;
        feeder.begin_aside(|number, writer| Output { number, folder, name, mode, size: None, writer });
        Ok(())
    }

    fn compressed(&mut self, feeder: &mut Feeder, bytes: &[u8]) -> Result<(), Failure> {
        feeder.append_aside(bytes)
    }

    fn begin_member(
        &mut self,
        feeder: &mut Feeder,
        _: &TarMember,
        file: Option<Member>,
    ) -> Result<(), Failure> {
        if let Some(member) = file {
            let folder = Arc::clone(&self.folder);
            feeder.begin_output(|number, _| Output::checked_only(number, folder));
            feeder.begin_member(member);
        }
        Ok(())
    }

    fn end_member(&mut self, feeder: &mut Feeder) -> Result<(), Failure> {
        feeder.end_member();
        feeder.end_output()
    }

    fn end_archive(&mut self, feeder: &mut Feeder) -> Result<(), Failure> {
        feeder.end_aside()
    }
}
