//! Plain format: the files as they lie on the server.
//!
//! `global/pg_control` is written under another name and renamed by the backup's last step: until then no
//! server starts from the directory. Links are made for tablespaces only, and only to where the server's own
//! list and the operator's mapping say.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgstrata_protocol::tar::{MemberKind, TarMember};

use super::folder::split;
use super::{Archive, Sink};
use crate::failure::Failure;
use crate::pipeline::{Feeder, Folder, Member, Output};

/// What `global/pg_control` is called until the backup is complete.
pub const HELD_CONTROL_FILE: &str = "global/pg_control.pgstrata";
const CONTROL_FILE: &[u8] = b"global/pg_control";

/// Writes a plain backup.
#[derive(Debug)]
pub struct DirectorySink {
    base: Arc<Folder>,
    /// The target's folder for each tablespace, by OID, already made.
    tablespaces: HashMap<u32, Arc<Folder>>,
    /// Where `pg_wal/…` goes, if not into the base directory.
    wal: Option<Arc<Folder>>,
    /// Folders that were there before the stream began, and may come in it.
    expected: HashSet<Vec<u8>>,
    archive: Option<ArchiveRoot>,
    /// The folder that the last file went to: files come folder by folder.
    last: Option<(Vec<u8>, Arc<Folder>)>,
    /// Folders made, for their syncs at the end.
    made: Vec<PathBuf>,
}

#[derive(Debug)]
struct ArchiveRoot {
    folder: Arc<Folder>,
    is_base: bool,
}

impl DirectorySink {
    /// A sink for the prepared target.
    #[must_use]
    pub fn new(
        base: Arc<Folder>,
        tablespaces: HashMap<u32, Arc<Folder>>,
        wal: Option<Arc<Folder>>,
        expected: HashSet<Vec<u8>>,
    ) -> Self {
        Self { base, tablespaces, wal, expected, archive: None, last: None, made: Vec::new() }
    }

    /// The folders that were made, for their syncs.
    #[must_use]
    pub fn into_made_folders(self) -> Vec<PathBuf> {
        self.made
    }

    /// The folder that holds `path` of the current archive, and the name within.
    fn place<'p>(&mut self, path: &'p [u8]) -> Result<(Arc<Folder>, &'p OsStr), Failure> {
        let archive = self.archive.as_ref().expect("members come within an archive");
        let (parent, name) = split(path);
        let name = OsStr::from_bytes(name);
        if let Some((last, folder)) = &self.last
            && last == parent
        {
            return Ok((Arc::clone(folder), name));
        }
        let folder = match (&self.wal, parent) {
            (Some(wal), [b'p', b'g', b'_', b'w', b'a', b'l', rest @ ..])
                if archive.is_base && (rest.is_empty() || rest[0] == b'/') =>
            {
                wal.descend(rest)?
            }
            _ => archive.folder.descend(parent)?,
        };
        self.last = Some((parent.to_vec(), Arc::clone(&folder)));
        Ok((folder, name))
    }

    fn make_folder(&mut self, path: &[u8], mode: u32) -> Result<(), Failure> {
        if self.expected.remove(path) {
            return Ok(());
        }
        let (folder, name) = self.place(path)?;
        if !folder.make(name, mode)? {
            return Err(twice(path));
        }
        self.made.push(folder.path.join(name));
        Ok(())
    }

    /// Makes the link of a tablespace. Where it leads is ours to say.
    fn make_link(&mut self, path: &[u8]) -> Result<(), Failure> {
        let shown = Path::new(OsStr::from_bytes(path)).display().to_string();
        let oid = path
            .strip_prefix(b"pg_tblspc/")
            .and_then(|oid| std::str::from_utf8(oid).ok())
            .and_then(|oid| oid.parse::<u32>().ok())
            .filter(|_| self.archive.as_ref().is_some_and(|archive| archive.is_base));
        let mapped = oid.and_then(|oid| self.tablespaces.get(&oid)).map(Arc::clone).ok_or_else(|| {
            Failure::stream(format!("link \"{shown}\""), &"only a tablespace's pg_tblspc/OID may be a link")
        })?;
        let (folder, name) = self.place(path)?;
        rustix::fs::symlinkat(&mapped.path, &folder.handle, name)
            .map_err(|error| Failure::disk("create link", folder.path.join(name), error))
    }
}

impl Sink for DirectorySink {
    fn begin_archive(&mut self, _: &mut Feeder, archive: &Archive) -> Result<(), Failure> {
        let folder = match archive.tablespace {
            None => Arc::clone(&self.base),
            Some(oid) => self.tablespaces.get(&oid).map(Arc::clone).ok_or_else(|| {
                Failure::stream(
                    format!("archive of tablespace {oid}"),
                    &"the server's list has no such tablespace",
                )
            })?,
        };
        self.archive = Some(ArchiveRoot { folder, is_base: archive.tablespace.is_none() });
        self.last = None;
        Ok(())
    }

    fn begin_member(
        &mut self,
        feeder: &mut Feeder,
        header: &TarMember,
        file: Option<Member>,
    ) -> Result<(), Failure> {
        let path = header.path.as_bytes();
        match (&header.kind, file) {
            (MemberKind::Directory, _) => self.make_folder(path, header.mode),
            (MemberKind::Symlink { .. }, _) => self.make_link(path),
            (MemberKind::File { size }, Some(member)) => {
                let is_control = path == CONTROL_FILE && self.archive.as_ref().is_some_and(|a| a.is_base);
                let path = if is_control { HELD_CONTROL_FILE.as_bytes() } else { path };
                let (folder, name) = self.place(path)?;
                let (name, size, mode) = (name.to_owned(), Some(*size), header.mode);
                feeder.begin_output(|number, writer| Output { number, folder, name, mode, size, writer });
                feeder.begin_member(member);
                Ok(())
            }
            (MemberKind::File { .. }, None) => unreachable!("the source names every file"),
        }
    }

    fn end_member(&mut self, feeder: &mut Feeder) -> Result<(), Failure> {
        feeder.end_member();
        feeder.end_output()
    }

    fn end_archive(&mut self, _: &mut Feeder) -> Result<(), Failure> {
        self.archive = None;
        Ok(())
    }
}

fn twice(path: &[u8]) -> Failure {
    let path = Path::new(OsStr::from_bytes(path)).display().to_string();
    Failure::stream(format!("folder \"{path}\""), &"it comes twice")
}
