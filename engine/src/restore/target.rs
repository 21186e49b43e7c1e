//! The folders of a restored cluster: the data directory, mapped tablespaces and WAL, and what lies in them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::databases::Selection;
use super::examine::Plan;
use super::occupied::Found;
use crate::basebackup::{Claims, Held};
use crate::failure::Failure;
use crate::pipeline::Folder;
use crate::repository::{Manifest, RepositoryError, tablespace_of};

const CONTROL_FILE: &[u8] = b"global/pg_control";
const MANIFEST: &[u8] = b"backup_manifest";

/// Where links of the data directory lead.
#[derive(Debug)]
pub(super) struct Places {
    /// Tablespaces by OID; none for those that lie in the data directory.
    pub(super) tablespaces: Vec<(u32, Option<PathBuf>)>,
    /// The folder of WAL, where it is not in the data directory.
    pub(super) wal: Option<PathBuf>,
}

impl Places {
    /// Where the link leads that belongs at a path of the data directory.
    pub(super) fn link(&self, path: &[u8]) -> Option<&Path> {
        if path == b"pg_wal" {
            return self.wal.as_deref();
        }
        let name = path.strip_prefix(b"pg_tblspc/")?;
        let place = self.tablespaces.iter().find(|(oid, _)| oid.to_string().as_bytes() == name)?;
        place.1.as_deref()
    }

    /// All folders that links lead to, and what each is for.
    pub(super) fn outside(&self) -> impl Iterator<Item = (String, &Path)> {
        let tablespaces = self.tablespaces.iter();
        let tablespaces =
            tablespaces.filter_map(|(oid, place)| Some((format!("tablespace {oid}"), place.as_deref()?)));
        tablespaces.chain(self.wal.as_deref().map(|wal| ("the WAL".to_owned(), wal)))
    }
}

/// Where everything goes.
#[derive(Debug)]
pub(super) struct Target {
    base: Arc<Folder>,
    /// Where the files that complete a cluster are written until it is complete.
    pub(super) held: Held,
    /// Tablespaces outside of the data directory, by OID.
    tablespaces: HashMap<u32, Arc<Folder>>,
    /// The folder of WAL outside of it.
    wal: Option<Arc<Folder>>,
    /// Folders that were made or used, for their syncs.
    pub(super) made: Vec<PathBuf>,
    /// Folders that are to be closed to ourselves, once they are filled.
    closed: Vec<(Arc<Folder>, OsString, u32)>,
    /// The databases that are restored.
    pub(super) selection: Selection,
    /// Whether files may be there already.
    pub(super) reuses: bool,
}

impl Target {
    /// Makes all folders and links in the data directory, which is claimed.
    pub(super) fn make(
        claims: &mut Claims,
        manifest: &Manifest,
        path: &Path,
        plan: &mut Plan,
    ) -> Result<Self, Failure> {
        let mode = manifest.summary.folder_mode & 0o777;
        let reuses = !plan.found.is_nothing();
        let mut target = Target {
            base: Folder::open(path)?,
            held: plan.held.clone(),
            tablespaces: HashMap::new(),
            wal: None,
            made: Vec::new(),
            closed: Vec::new(),
            selection: std::mem::take(&mut plan.selection),
            reuses,
        };
        let mut open = |place: &Path| {
            // What an old data directory led to was looked at.
            if !reuses || Found::at(place)?.is_nothing() {
                claims.claim(place, mode)?;
            }
            target.made.push(place.to_owned());
            Folder::open(place)
        };
        for (oid, place) in &plan.places.tablespaces {
            if let Some(place) = place {
                target.tablespaces.insert(*oid, open(place)?);
            }
        }
        if let Some(wal) = &plan.places.wal {
            target.wal = Some(open(wal)?);
        }
        manifest.each_folder(|folder| {
            if target.is_wal_root(&folder.path) {
                return Ok(());
            }
            let (parent, name) = target.place(&folder.path)?;
            let made = parent.make(&name, folder.mode | 0o700)?;
            // A path that a link of ours leads away from cannot come twice as anything else.
            if !made && !reuses {
                let what = format!("folder \"{}\" comes twice", folder.path.escape_ascii());
                return Err(RepositoryError::damaged(manifest.object().name(), what).into());
            }
            if !made {
                let there = parent.descend(name.as_bytes())?;
                rustix::fs::fchmod(&there.handle, Mode::from_raw_mode(folder.mode | 0o700))
                    .map_err(|error| Failure::disk("change the mode of", &there.path, error))?;
            }
            target.made.push(parent.path.join(&name));
            if folder.mode & 0o700 != 0o700 {
                target.closed.push((parent, name, folder.mode));
            }
            Ok(())
        })?;
        target.link(&plan.places)?;
        Ok(target)
    }

    fn link(&self, places: &Places) -> Result<(), Failure> {
        let tablespaces = places.tablespaces.iter();
        let tablespaces =
            tablespaces.filter_map(|(oid, place)| Some((format!("pg_tblspc/{oid}"), place.as_ref()?)));
        for (path, place) in tablespaces.chain(places.wal.iter().map(|wal| ("pg_wal".into(), wal))) {
            let (folder, name) = match path.split_once('/') {
                Some((folder, name)) => (self.base.descend(folder.as_bytes())?, name),
                None => (Arc::clone(&self.base), &*path),
            };
            match rustix::fs::symlinkat(place, &folder.handle, name) {
                Ok(()) => {}
                // A link that leads elsewhere is gone.
                Err(Errno::EXIST) if self.reuses => {}
                Err(error) => return Err(Failure::disk("create link", folder.path.join(name), error)),
            }
        }
        Ok(())
    }

    /// Closes the folders that are closed to their owner. The last of them is the outermost.
    pub(super) fn close_folders(&self) -> Result<(), Failure> {
        for (parent, name, mode) in self.closed.iter().rev() {
            let folder = parent.descend(name.as_bytes())?;
            rustix::fs::fchmod(&folder.handle, Mode::from_raw_mode(*mode))
                .map_err(|error| Failure::disk("change the mode of", &folder.path, error))?;
        }
        Ok(())
    }

    /// Where a file is written until the restore is complete.
    pub(super) fn held<'p>(&'p self, path: &'p [u8]) -> &'p [u8] {
        match path {
            CONTROL_FILE => self.held.control.as_bytes(),
            MANIFEST => self.held.manifest.as_bytes(),
            path => path,
        }
    }

    /// The folder that holds `path`, and the name within.
    pub(super) fn place(&self, path: &[u8]) -> Result<(Arc<Folder>, OsString), Failure> {
        let (root, path) = match (self.tablespace_of(path), &self.wal, path.strip_prefix(b"pg_wal/")) {
            (Some((root, path)), ..) => (root, path),
            (None, Some(wal), Some(below)) => (wal, below),
            _ => (&self.base, path),
        };
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&[][..], path),
        };
        Ok((root.descend(parent)?, OsStr::from_bytes(name).to_owned()))
    }

    fn tablespace_of<'p>(&self, path: &'p [u8]) -> Option<(&Arc<Folder>, &'p [u8])> {
        let (oid, below) = tablespace_of(path)?;
        Some((self.tablespaces.get(&oid)?, below))
    }

    /// Whether this is the folder of WAL, and a link leads to it.
    pub(super) fn is_wal_root(&self, path: &[u8]) -> bool {
        self.wal.is_some() && path == b"pg_wal"
    }

    /// The data directory, and the folders outside of it.
    pub(super) fn roots(&self) -> impl Iterator<Item = &Arc<Folder>> {
        std::iter::once(&self.base).chain(self.tablespaces.values()).chain(&self.wal)
    }

    /// The links of the data directory.
    pub(super) fn links(&self) -> Result<Vec<(Arc<Folder>, OsString)>, Failure> {
        let mut links = Vec::new();
        if !self.tablespaces.is_empty() {
            let folder = self.base.descend(b"pg_tblspc")?;
            links.extend(self.tablespaces.keys().map(|oid| (Arc::clone(&folder), oid.to_string().into())));
        }
        if self.wal.is_some() {
            links.push((Arc::clone(&self.base), "pg_wal".into()));
        }
        Ok(links)
    }
}
