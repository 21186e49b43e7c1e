//! Removes from an old data directory what the backup does not have.
//!
//! Invariants: no link is followed, only links themselves are removed; nothing outside of the data directory, the version's
//! folders of its tablespaces, and its folder of WAL is touched; what is mounted below is refused, not emptied.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode};

use super::marker::MARKER;
use super::target::Places;
use crate::failure::Failure;
use crate::pipeline::Folder;
use crate::repository::{Manifest, PathShare, Tree, shares};
use crate::stop::Stop;

/// Folders within folders, at most; PostgreSQL's are five deep.
const DEPTH: usize = 64;

/// A sweep through one share of the backup's paths.
struct Sweep<'a> {
    tree: &'a Tree,
    share: PathShare,
    places: &'a Places,
    /// Of the root that is swept.
    device: u64,
    stop: &'a Stop<Failure>,
    removed: u64,
}

/// Removes what does not belong from the data directory and the folders that its links lead to. Returns how many files,
/// links and folders that were.
pub(super) fn sweep(
    manifest: &Manifest,
    tree: &Tree,
    base: &Path,
    places: &Places,
    stop: &Stop<Failure>,
) -> Result<u64, Failure> {
    let mut removed = 0;
    for share in 0..shares(manifest.summary.files) {
        let share = PathShare::of(manifest, share)?;
        let mut sweep = Sweep { tree, share, places, device: 0, stop, removed: 0 };
        sweep.root(base, b"")?;
        if let Some(wal) = places.wal.as_deref().filter(|wal| wal.exists()) {
            sweep.root(wal, b"pg_wal")?;
        }
        for (oid, place) in &places.tablespaces {
            if let Some(place) = place.as_deref().filter(|place| place.exists()) {
                sweep.tablespace(place, format!("pg_tblspc/{oid}").as_bytes())?;
            }
        }
        removed += sweep.removed;
    }
    Ok(removed)
}

impl Sweep<'_> {
    fn root(&mut self, path: &Path, prefix: &[u8]) -> Result<(), Failure> {
        let folder = Folder::open(path)?;
        self.device = device(&folder)?;
        self.folder(&folder, prefix, 0)
    }

    /// Only folders of the backup: a tablespace's folder is for the folders of several versions.
    fn tablespace(&mut self, path: &Path, prefix: &[u8]) -> Result<(), Failure> {
        let folder = Folder::open(path)?;
        self.device = device(&folder)?;
        for (name, _) in entries(&folder)? {
            let path = [prefix, b"/", &name].concat();
            if self.tree.has_folder(&path) {
                let name = OsStr::from_bytes(&name);
                let found = rustix::fs::statat(&folder.handle, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| Failure::disk("examine", folder.path.join(name), error))?;
                if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                    self.enter(&folder, name, &path, 0)?;
                } else {
                    self.unlink(&folder, name)?;
                }
            }
        }
        Ok(())
    }

    fn enter(
        &mut self,
        parent: &Arc<Folder>,
        name: &OsStr,
        path: &[u8],
        depth: usize,
    ) -> Result<(), Failure> {
        if self.stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        let shown = || parent.path.join(name);
        if depth >= DEPTH {
            return Err(Failure::Target(format!(
                "\"{}\" lies more than {DEPTH} folders deep\nHINT: look at it, and remove it.",
                shown().display()
            )));
        }
        // What an earlier restore made as the server had it may be closed to us, unless we are root, whom nobody is to
        // lead elsewhere by a link.
        let own = rustix::fs::statat(&parent.handle, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Failure::disk("examine", shown(), error))?;
        let mode = own.st_mode & 0o7777;
        if mode & 0o700 != 0o700 && !rustix::process::geteuid().is_root() {
            let mode = Mode::from_raw_mode(mode | 0o700);
            rustix::fs::chmodat(&parent.handle, name, mode, AtFlags::empty())
                .map_err(|error| Failure::disk("change the mode of", shown(), error))?;
        }
        let folder = parent.descend(name.as_bytes())?;
        if device(&folder)? != self.device {
            return Err(Failure::Target(format!(
                "another file system is mounted at \"{}\"\n\
                 HINT: unmount it, or empty the data directory and restore into it without --delta.",
                shown().display()
            )));
        }
        self.folder(&folder, path, depth + 1)
    }

    fn folder(&mut self, folder: &Arc<Folder>, path: &[u8], depth: usize) -> Result<(), Failure> {
        for (name, kind) in entries(folder)? {
            let path = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            let name = OsStr::from_bytes(&name);
            let kind = match kind {
                FileType::Unknown => {
                    let found = rustix::fs::statat(&folder.handle, name, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(|error| Failure::disk("examine", folder.path.join(name), error))?;
                    FileType::from_raw_mode(found.st_mode)
                }
                known => known,
            };
            match kind {
                FileType::Directory if self.tree.has_folder(&path) && self.places.link(&path).is_none() => {
                    self.enter(folder, name, &path, depth)?;
                }
                // Not ours, and back after each check of the file system.
                FileType::Directory if path == b"lost+found" => {}
                FileType::Directory => {
                    self.enter_foreign(folder, name, depth)?;
                }
                FileType::Symlink => {
                    let leads = rustix::fs::readlinkat(&folder.handle, name, Vec::new());
                    let right = self.places.link(&path).is_some_and(|place| {
                        leads.is_ok_and(|leads| leads.as_bytes() == place.as_os_str().as_bytes())
                    });
                    if !right {
                        self.unlink(folder, name)?;
                    }
                }
                FileType::RegularFile if path == MARKER.as_bytes() => {}
                FileType::RegularFile if self.share.has(&path) != Some(false) => {}
                // Of what is no file each share may be the first to know.
                _ => self.unlink(folder, name)?,
            }
        }
        Ok(())
    }

    /// Removes a folder that does not belong, with all that is in it.
    fn enter_foreign(&mut self, parent: &Arc<Folder>, name: &OsStr, depth: usize) -> Result<(), Failure> {
        // Nothing in there is of the backup: its paths are in no share, and its folders are not listed.
        let path = [b"/".as_slice(), name.as_bytes()].concat();
        self.enter(parent, name, &path, depth)?;
        let shown = || parent.path.join(name);
        match rustix::fs::unlinkat(&parent.handle, name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.removed += 1;
                Ok(())
            }
            // What falls to another share is still there.
            Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(Failure::disk("remove", shown(), error)),
        }
    }

    fn unlink(&mut self, folder: &Folder, name: &OsStr) -> Result<(), Failure> {
        rustix::fs::unlinkat(&folder.handle, name, AtFlags::empty())
            .map_err(|error| Failure::disk("remove", folder.path.join(name), error))?;
        self.removed += 1;
        Ok(())
    }
}

fn device(folder: &Folder) -> Result<u64, Failure> {
    let found = rustix::fs::fstat(&folder.handle);
    Ok(found.map_err(|error| Failure::disk("examine", &folder.path, error))?.st_dev)
}

/// The entries of a folder. Read whole before any is removed: one folder's names are in memory at a time.
fn entries(folder: &Folder) -> Result<Vec<(Vec<u8>, FileType)>, Failure> {
    let failed = |error| Failure::disk("list folder", &folder.path, error);
    let mut entries = Vec::new();
    for entry in Dir::read_from(&folder.handle).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            entries.push((name.to_vec(), entry.file_type()));
        }
    }
    Ok(entries)
}
