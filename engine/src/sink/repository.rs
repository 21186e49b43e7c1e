//! A repository: files become frames.
//!
//! A file from [`LARGE`] bytes on has frames of its own, cut at multiples of the buffer's size. Smaller ones share
//! frames, and none goes over the end of one, so that every small file is read with one frame.
//!
//! Where a shared frame ends says the name of its last file, together with its size: so the same files in the same order
//! become the same frames, a file that was added, or has grown, changes its own frame and perhaps the next, and the files
//! that all databases have from their template are cut alike in each.

use std::sync::Arc;

use pgstrata_protocol::tar::{MemberKind, TarMember};

use super::{Archive, Sink};
use crate::failure::Failure;
use crate::pipeline::{Feeder, Folder, Member, Output};
use crate::repository::{FolderRecord, OwnerTable};

/// Bytes from which on a file has frames of its own.
pub(crate) const LARGE: u64 = 128 << 10;
/// Bytes of shared frames, about. A frame that is full before that ends as well.
const GROUP_BYTES: u64 = 160 << 10;
/// The most files that share a frame: what waits for the frame's end is bounded by it.
pub(crate) const GROUP: usize = 1024;

/// The file whose owner is the data directory's: the server starts with it or not at all.
const CONTROL_FILE: &[u8] = b"global/pg_control";

/// Cuts files into frames.
#[derive(Debug)]
pub struct RepositorySink {
    /// For messages.
    packs: Arc<Folder>,
    /// What the open archive's members are called, ahead of their own path.
    prefix: Vec<u8>,
    /// Folders as they came.
    folders: Vec<FolderRecord>,
    owners: OwnerTable,
    /// Whose the data directory is.
    folder_owner: u16,
    /// Files in the frame that is being filled by small ones.
    group: Option<usize>,
    /// The folder of the last small file.
    folder: Vec<u8>,
    /// Whether the open file is the last of its frame.
    ends_group: bool,
    /// Whether the open file has frames of its own.
    large: bool,
}

impl RepositorySink {
    /// A sink whose packs lie in `packs`.
    #[must_use]
    pub fn new(packs: Arc<Folder>) -> Self {
        Self {
            packs,
            prefix: Vec::new(),
            folders: Vec::new(),
            owners: OwnerTable::default(),
            folder_owner: 0,
            group: None,
            folder: Vec::new(),
            ends_group: false,
            large: false,
        }
    }

    /// The folders that have come, and the owners that they and the files were of.
    #[must_use]
    pub fn into_folders(self) -> (Vec<FolderRecord>, OwnerTable) {
        (self.folders, self.owners)
    }

    /// Whose the data directory is: 0 until that is known.
    #[must_use]
    pub fn folder_owner(&self) -> u16 {
        self.folder_owner
    }

    /// Notes folders that come from elsewhere than a stream, the owners of these and of files that came beside them,
    /// and whose the data directory is.
    pub(crate) fn add_folders(&mut self, folders: Vec<FolderRecord>, owners: OwnerTable, folder_owner: u16) {
        debug_assert!(self.folders.is_empty(), "nothing came before");
        self.folders.extend(folders);
        self.owners = owners;
        self.folder_owner = folder_owner;
    }

    /// Begins a file.
    pub fn begin_file(&mut self, feeder: &mut Feeder, member: Member) -> Result<(), Failure> {
        self.large = member.size >= LARGE;
        let (folder, name) = split(&member.path);
        let stays = folder == self.folder;
        let has_room = |group: &usize| *group < GROUP && stays && member.size <= feeder.room() as u64;
        if self.large || !self.group.as_ref().is_some_and(has_room) {
            self.end_group(feeder)?;
            let packs = Arc::clone(&self.packs);
            feeder.begin_output(|number, _| Output::checked_only(number, packs));
        }
        if !self.large {
            self.group = Some(self.group.unwrap_or(0) + 1);
            self.ends_group = ends_group(name, member.size);
            if !stays {
                self.folder = folder.to_vec();
            }
        }
        feeder.begin_member(member);
        Ok(())
    }

    /// The begun file has had its last byte.
    pub fn end_file(&mut self, feeder: &mut Feeder) -> Result<(), Failure> {
        feeder.end_member();
        if self.large {
            feeder.end_output()
        } else if self.ends_group {
            self.end_group(feeder)
        } else {
            Ok(())
        }
    }

    /// Ends the frame that small files share.
    pub fn end_group(&mut self, feeder: &mut Feeder) -> Result<(), Failure> {
        if self.group.take().is_some() { feeder.end_output() } else { Ok(()) }
    }
}

/// A path's folder and name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Whether a file ends its frame: the larger, the likelier, so that frames have [`GROUP_BYTES`] on average.
pub(crate) fn ends_group(name: &[u8], size: u64) -> bool {
    let [first, second, ..] = *blake3::hash(name).as_bytes();
    let chance = u64::from(u16::from_le_bytes([first, second]));
    chance * GROUP_BYTES < size << 16
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
        let owner = self.owners.number(header.uid, header.gid);
        match (&header.kind, file) {
            (MemberKind::File { .. }, Some(member)) => {
                // The data directory itself does not come, and what is in it has one owner.
                if self.prefix.is_empty() && member.path == CONTROL_FILE {
                    self.folder_owner = owner;
                }
                self.begin_file(feeder, Member { owner, ..member })
            }
            (MemberKind::File { .. }, None) => unreachable!("the source names every file"),
            (MemberKind::Directory, _) if !header.path.is_root() => {
                let path = [&self.prefix, header.path.as_bytes()].concat();
                self.folders.push(FolderRecord { path, mode: header.mode, owner });
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
