//! Directories as wholes: their size, reading them all, removing them. No link is followed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Threads that remove files.
const REMOVERS: usize = 16;

/// What a directory holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Regular files.
    pub(crate) files: u64,
    /// The sum of their lengths.
    pub(crate) bytes: u64,
}

/// Counts the regular files below a directory.
pub(crate) fn contents(root: &Path) -> anyhow::Result<Contents> {
    let mut contents = Contents::default();
    for_each_file(root, &mut |path| {
        contents.files += 1;
        contents.bytes += fs::symlink_metadata(path)?.len();
        Ok(())
    })?;
    Ok(contents)
}

impl std::ops::Sub for Contents {
    type Output = Self;

    /// What remains without a part of it.
    fn sub(self, part: Self) -> Self {
        Self { files: self.files - part.files, bytes: self.bytes - part.bytes }
    }
}

/// Reads every regular file below a directory, so that it is in the page cache afterwards.
pub(crate) fn read_all(root: &Path) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for_each_file(root, &mut |path| read_with(path, &mut buffer))
}

/// Reads a file, so that it is in the page cache afterwards.
pub(crate) fn read(path: &Path) -> anyhow::Result<()> {
    read_with(path, &mut vec![0; 1 << 20]).with_context(|| format!("cannot read {}", path.display()))
}

fn read_with(path: &Path, buffer: &mut [u8]) -> io::Result<()> {
    let mut file = File::open(path)?;
    while file.read(buffer)? > 0 {}
    Ok(())
}

/// The regular files below a directory, with their lengths.
pub(crate) fn files(root: &Path) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    for_each_file(root, &mut |path| {
        files.push((path.to_owned(), fs::symlink_metadata(path)?.len()));
        Ok(())
    })?;
    Ok(files)
}

/// Removes a directory and all below it, if it is there.
///
/// Files go by many threads at once: where deleting a file waits for the device, as on a file system that is mounted
/// with `discard`, they wait together.
pub(crate) fn remove(root: &Path) -> anyhow::Result<()> {
    if !root.exists() {
        return Ok(());
    }
    let files = files(root)?;
    let share = files.len().div_ceil(REMOVERS).max(1);
    std::thread::scope(|scope| {
        for files in files.chunks(share) {
            // What cannot be removed here cannot be removed below either, and is told there.
            scope.spawn(|| files.iter().for_each(|(path, _)| drop(fs::remove_file(path))));
        }
    });
    fs::remove_dir_all(root).with_context(|| format!("cannot remove {}", root.display()))
}

fn for_each_file(root: &Path, visit: &mut impl FnMut(&Path) -> io::Result<()>) -> anyhow::Result<()> {
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
            let (path, kind) = (entry.path(), entry.file_type());
            let kind = kind.with_context(|| format!("cannot look at {}", path.display()))?;
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                visit(&path).with_context(|| format!("cannot read {}", path.display()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_and_links_are_not() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/one"), [0; 10]).unwrap();
        fs::write(root.path().join("two"), [0; 5]).unwrap();
        std::os::unix::fs::symlink("/", root.path().join("a/link")).unwrap();
        assert_eq!(contents(root.path()).unwrap(), Contents { files: 2, bytes: 15 });
        read_all(root.path()).unwrap();
        let a = root.path().join("a");
        for number in 0..100 {
            fs::write(a.join(number.to_string()), []).unwrap();
        }
        remove(&a).unwrap();
        assert!(!a.exists());
        remove(&a).unwrap();
        assert_eq!(contents(root.path()).unwrap(), Contents { files: 1, bytes: 5 });
    }
}
