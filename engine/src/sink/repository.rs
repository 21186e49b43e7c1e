//! A repository: files become frames.
//!
//! A file from [`LARGE`] bytes on has frames of its own, cut at multiples of the buffer's size. Smaller ones share
//! frames, and none goes over the end of one, so that every small file is read with one frame.

use std::sync::Arc;

use pgstrata_protocol::tar::{MemberKind, TarMember};

use super::{Archive, Sink};
use crate::failure::Failure;
use crate::pipeline::{Feeder, Folder, Member, Output};
use crate::repository::FolderRecord;

/// Bytes from which on a file has frames of its own.
pub(crate) const LARGE: u64 = 128 << 10;
/// The most files that share a frame: what waits for the frame's end is bounded by it.
pub(crate) const GROUP: usize = 1024;

/// Cuts files into frames.
#[derive(Debug)]
pub struct RepositorySink {
    /// For messages.
    packs: Arc<Folder>,
    /// What the open archive's members are called, ahead of their own path.
    prefix: Vec<u8>,
    /// Folders as they came.
    folders: Vec<FolderRecord>,
    /// Files in the frame that is being filled by small ones.
    group: Option<usize>,
    /// Whether the open file has frames of its own.
    large: bool,
}

impl RepositorySink {
    /// A sink whose packs lie in `packs`.
    #[must_use]
    pub fn new(packs: Arc<Folder>) -> Self {
        Self { packs, prefix: Vec::new(), folders: Vec::new(), group: None, large: false }
    }

    /// The folders that have come.
    #[must_use]
    pub fn into_folders(self) -> Vec<FolderRecord> {
        self.folders
    }

    /// Notes folders that come from elsewhere than a stream.
    pub(crate) fn add_folders(&mut self, folders: Vec<FolderRecord>) {
        self.folders.extend(folders);
    }

    /// Begins a file.
    pub fn begin_file(&mut self, feeder: &mut Feeder, member: Member) -> Result<(), Failure> {
        self.large = member.size >= LARGE;
        let has_room = |group: &usize| *group < GROUP && member.size <= feeder.room() as u64;
        if self.large || !self.group.as_ref().is_some_and(has_room) {
            self.end_group(feeder)?;
            let packs = Arc::clone(&self.packs);
            feeder.begin_output(|number, _| Output::checked_only(number, packs));
        }
        if !self.large {
            self.group = Some(self.group.unwrap_or(0) + 1);
        }
        feeder.begin_member(member);
        Ok(())
    }

    /// The begun file has had its last byte.
    pub fn end_file(&mut self, feeder: &mut Feeder) -> Result<(), Failure> {
        feeder.end_member();
        if self.large { feeder.end_output() } else { Ok(()) }
    }

    /// Ends the frame that small files share.
    pub fn end_group(&mut self, feeder: &mut Feeder) -> Result<(), Failure> {
        if self.group.take().is_some() { feeder.end_output() } else { Ok(()) }
    }
}

impl Sink for RepositorySink {
    fn begin_archive(&mut self, _: &mut Feeder, archive: &Archive) -> Result<(), Failure> {
        self.prefix = archive.tablespace.map_or_else(Vec::new, |oid| format!("pg_tblspc/{oid}/").into());
        Ok(())
    }

    fn begin_member(
        &mut self,
        feeder: &mut Feeder,
        header: &TarMember,
        file: Option<Member>,
    ) -> Result<(), Failure> {
        match (&header.kind, file) {
            (MemberKind::File { .. }, Some(member)) => self.begin_file(feeder, member),
            (MemberKind::File { .. }, None) => unreachable!("the source names every file"),
            (MemberKind::Directory, _) if !header.path.is_root() => {
                let path = [&self.prefix, header.path.as_bytes()].concat();
                self.folders.push(FolderRecord { path, mode: header.mode });
                Ok(())
            }
            // A link is a tablespace's, which the server's list names as well.
            (MemberKind::Directory | MemberKind::Symlink { .. }, _) => Ok(()),
        }
    }

    fn end_member(&mut self, feeder: &mut Feeder) -> Result<(), Failure> {
        self.end_file(feeder)
    }

    fn end_archive(&mut self, feeder: &mut Feeder) -> Result<(), Failure> {
        self.end_group(feeder)
    }
}
