//! Folders of the target, made and opened one component at a time without following links.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, mkdirat, openat};

use crate::failure::Failure;
use crate::pipeline::Folder;

impl Folder {
    /// Opens the folder at `path`, links followed: the operator named it.
    pub fn open(path: &Path) -> Result<Arc<Folder>, Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| Failure::disk("open folder", path, error))?;
        Ok(Arc::new(Folder { handle: File::from(handle), path: path.to_owned() }))
    }

    /// Opens the folder at `path` under another name, for messages.
    pub fn named(path: &Path, name: impl Into<PathBuf>) -> Result<Arc<Folder>, Failure> {
        let handle = File::open(path).map_err(|error| Failure::disk("open folder", path, error))?;
        Ok(Arc::new(Folder { handle, path: name.into() }))
    }

    /// Opens a folder below this one. `path` was checked: relative, no `..`.
    pub fn descend(self: &Arc<Self>, path: &[u8]) -> Result<Arc<Folder>, Failure> {
        let mut here = Arc::clone(self);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let name = OsStr::from_bytes(name);
            let path = here.path.join(name);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let handle = openat(&here.handle, name, flags, Mode::empty())
                .map_err(|error| Failure::disk("open folder", &path, error))?;
            here = Arc::new(Folder { handle: File::from(handle), path });
        }
        Ok(here)
    }

    /// Makes a folder in this one with exactly `mode`. Says whether it was not there before.
    pub fn make(&self, name: &OsStr, mode: u32) -> Result<bool, Failure> {
        let failed = |error| Failure::disk("create folder", self.path.join(name), error);
        match mkdirat(&self.handle, name, Mode::from_raw_mode(mode)) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
        // The umask may have taken bits away that the cluster's folders have.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.handle, name, flags, Mode::empty())
            .and_then(|made| rustix::fs::fchmod(made, Mode::from_raw_mode(mode)))
            .map_err(failed)?;
        Ok(true)
    }

    /// Makes the folder's entries durable.
    pub fn sync(&self) -> Result<(), Failure> {
        rustix::fs::fsync(&self.handle).map_err(|error| Failure::disk("sync folder", &self.path, error))
    }
}

/// Splits a checked relative path into its folder and its name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Creates `path` and its missing parents, all with `mode`, or none of them. Returns the topmost folder that it made.
pub fn create_folder(path: &Path, mode: u32) -> io::Result<Option<PathBuf>> {
    use std::os::unix::fs::DirBuilderExt;
    let mut missing = Vec::new();
    for folder in path.ancestors().filter(|folder| !folder.as_os_str().is_empty()) {
        match folder.symlink_metadata() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(folder),
            Err(error) => return Err(error),
        }
    }
    let permissions: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    for (number, folder) in missing.iter().rev().enumerate() {
        let created = std::fs::DirBuilder::new().mode(mode).create(folder);
        if let Err(error) = created.and_then(|()| std::fs::set_permissions(folder, permissions.clone())) {
            for made in missing.iter().rev().take(number).rev() {
                // Empty and ours; where that is not so any more, it stays.
                let _ = std::fs::remove_dir(made);
            }
            return Err(error);
        }
    }
    Ok(missing.last().map(|path| path.to_path_buf()))
}
