//! Opens what lies in a backup, one component after the other, so that no link leads out of it.
//!
//! Invariant: the only symbolic links that are followed are those of tablespaces, `pg_tblspc/OID`; the backup's
//! own path may be one as well.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::failure::Failure;

/// A backup's folder, with the folder that was used last kept open.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    base: BorrowedFd<'a>,
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Whether reading may leave access times alone, which only the files' owner may ask for.
    leaves_times: bool,
}

/// Opens the backup's folder itself.
pub(crate) fn open_base(path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|error| Failure::disk("open directory", path, error))
}

/// Whether `path` is where a tablespace lies or is linked: `pg_tblspc/OID`.
pub(super) fn is_tablespace(path: &[u8]) -> bool {
    path.strip_prefix(b"pg_tblspc/").is_some_and(|oid| !oid.is_empty() && oid.iter().all(u8::is_ascii_digit))
}

impl<'a> Tree<'a> {
    pub(crate) fn new(base: BorrowedFd<'a>) -> Self {
        Self { base, last: None, leaves_times: true }
    }

    /// Opens a folder for reading its entries; the empty path is the backup itself.
    pub(crate) fn open_folder(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        let (parent, name) = split(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | follow(path);
        if name.is_empty() {
            return Ok(rustix::fs::openat(self.base, c".", flags, Mode::empty())?);
        }
        Ok(rustix::fs::openat(self.folder(parent)?, name, flags, Mode::empty())?)
    }

    /// Opens a file for reading. Never waits, even where a FIFO lies in its place.
    pub(crate) fn open_file(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        let (parent, name) = split(path);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        if self.leaves_times {
            match rustix::fs::openat(self.folder(parent)?, name, flags | OFlags::NOATIME, Mode::empty()) {
                Err(Errno::PERM) => self.leaves_times = false,
                opened => return Ok(opened?),
            }
        }
        Ok(rustix::fs::openat(self.folder(parent)?, name, flags, Mode::empty())?)
    }

    /// The folder at `path`, for opening what lies in it.
    fn folder(&mut self, path: &[u8]) -> io::Result<BorrowedFd<'_>> {
        if path.is_empty() {
            return Ok(self.base);
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let opened = self.descend(path)?;
            self.last = Some((path.to_vec(), opened));
        }
        let (_, folder) = self.last.as_ref().ok_or(Errno::NOENT)?;
        Ok(folder.as_fd())
    }

    fn descend(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut folder: Option<OwnedFd> = None;
        let mut end = 0;
        for component in path.split(|byte| *byte == b'/') {
            end += component.len();
            let at = folder.as_ref().map_or(self.base, AsFd::as_fd);
            let next = rustix::fs::openat(at, component, flags | follow(&path[..end]), Mode::empty())?;
            folder = Some(next);
            end += 1;
        }
        folder.ok_or_else(|| Errno::NOENT.into())
    }
}

/// The flag that keeps links from being followed, except where they belong.
fn follow(path: &[u8]) -> OFlags {
    if is_tablespace(path) { OFlags::empty() } else { OFlags::NOFOLLOW }
}

/// A path's folder, empty for the backup itself, and its last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_only_for_tablespaces() {
        let scratch = tempfile::tempdir().expect("a temporary folder");
        let (backup, outside) = (scratch.path().join("backup"), scratch.path().join("outside"));
        for folder in [&backup.join("base/1"), &backup.join("pg_tblspc"), &outside.join("deep")] {
            std::fs::create_dir_all(folder).expect("made");
        }
        for file in [backup.join("base/1/file"), outside.join("file"), outside.join("deep/file")] {
            std::fs::write(file, b"x").expect("written");
        }
        symlink(&outside, backup.join("pg_tblspc/16384")).expect("linked");
        symlink(&outside, backup.join("pg_tblspc/name")).expect("linked");
        symlink(&outside, backup.join("base/2")).expect("linked");
        symlink(outside.join("file"), backup.join("link")).expect("linked");
        symlink(outside.join("deep"), outside.join("inner")).expect("linked");
        let base = open_base(&backup).expect("opened");
        let mut tree = Tree::new(base.as_fd());
        for (path, opens) in [
            ("base/1/file", true),
            ("pg_tblspc/16384/file", true),
            ("pg_tblspc/16384/deep/file", true),
            ("base/1/file", true),
            ("pg_tblspc/16384/inner/file", false),
            ("pg_tblspc/name/file", false),
            ("base/2/file", false),
            ("link", false),
            ("base/1/file/below", false),
            ("nothing/file", false),
        ] {
            assert_eq!(tree.open_file(path.as_bytes()).is_ok(), opens, "{path}");
        }
        for (path, opens) in [("", true), ("base", true), ("pg_tblspc/16384", true), ("base/2", false)] {
            assert_eq!(tree.open_folder(path.as_bytes()).is_ok(), opens, "{path}");
        }
    }
}
