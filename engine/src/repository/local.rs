//! A repository on a local file system: objects are files.
//!
//! Invariants: a published object was synced before it had its name, and its folder after; a name is given by
//! `renameat2(RENAME_NOREPLACE)`, or by a hard link where the file system has no such rename, so it is never given twice.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::store::{Entry, NewObject, Object, PackPlace, Requests, Store};
use crate::failure::Failure;

/// Where objects lie until they are published.
const STAGING: &str = "staging";
/// Modes of what is made: the data in it is the cluster's.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// A folder of objects.
#[derive(Clone, Debug)]
pub struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    /// A store in a folder, which need not be there yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// Makes a folder and what is missing above it, each durably.
fn make_folders(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_folders(parent)?;
    }
    match fs::DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made.map_err(|error| Failure::disk("create folder", path, error))?,
    }
    sync(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

fn sync(folder: &Path) -> Result<(), Failure> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| Failure::disk("sync folder", folder, error))
}

impl Store for LocalStore {
    fn address(&self) -> String {
        self.root.display().to_string()
    }

    fn create(&self, name: &str) -> Result<Box<dyn NewObject>, Failure> {
        let folder = self.root.join(STAGING);
        make_folders(&folder)?;
        let path = folder.join(format!("{:032x}.object", u128::from_le_bytes(super::random()?)));
        let file = File::options().write(true).create_new(true).mode(FILE_MODE).open(&path);
        let file = file.map_err(|error| Failure::disk("create file", &path, error))?;
        let file = io::BufWriter::with_capacity(1 << 20, file);
        Ok(Box::new(LocalNewObject { target: self.root.join(name), file, path, published: false }))
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Object>>, Failure> {
        let path = self.root.join(name);
        let file = match File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| Failure::disk("open", &path, error))?,
        };
        let length = file.metadata().map_err(|error| Failure::disk("examine", &path, error))?.len();
        Ok(Some(Box::new(LocalObject { file, path, length })))
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, Failure> {
        let path = self.root.join(folder);
        let failed = |error| Failure::disk("list folder", &path, error);
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            // What is no text is no name of ours.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let metadata = match entry.metadata() {
                // Somebody has removed it just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata.map_err(failed)?,
            };
            let is_folder = metadata.is_dir();
            let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let (length, modified) = match is_folder {
                true => (0, 0),
                false => (metadata.len(), modified.map_or(0, |time| time.as_secs())),
            };
            found.push(Entry { name, is_folder, length, modified });
        }
        found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    fn remove(&self, names: &[String]) -> Result<(), Failure> {
        for name in names {
            let path = self.root.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(|error| Failure::disk("remove", &path, error))?,
            }
        }
        Ok(())
    }

    fn packs(&self, folder: &str) -> Result<PackPlace, Failure> {
        let path = self.root.join(folder);
        make_folders(&path)?;
        Ok(PackPlace::Folder(path))
    }

    fn sync_folder(&self, folder: &str) -> Result<(), Failure> {
        sync(&self.root.join(folder))
    }

    fn staging(&self) -> Result<PathBuf, Failure> {
        let path = self.root.join(STAGING);
        make_folders(&path)?;
        Ok(path)
    }

    fn give_up(&self) {
        // A file system is not waited for longer than it takes.
    }

    fn requests(&self) -> Option<Requests> {
        None
    }
}

struct LocalNewObject {
    target: PathBuf,
    file: io::BufWriter<File>,
    path: PathBuf,
    published: bool,
}

impl NewObject for LocalNewObject {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| Failure::disk("write to", &self.path, error))
    }

    fn publish(mut self: Box<Self>) -> Result<bool, Failure> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(|error| Failure::disk("sync", &self.path, error))?;
        let target = self.target.clone();
        let folder = target.parent().expect("a name lies below the root");
        make_folders(folder)?;
        let failed = |error: Errno| Failure::disk("publish", &target, error);
        match renameat_with(CWD, &self.path, CWD, &target, RenameFlags::NOREPLACE) {
            Ok(()) => self.published = true,
            Err(Errno::EXIST) => return Ok(false),
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match rustix::fs::link(&self.path, &target) {
                Ok(()) => {}
                Err(Errno::EXIST) => return Ok(false),
                Err(error) => return Err(failed(error)),
            },
            Err(error) => return Err(failed(error)),
        }
        sync(folder).map(|()| true)
    }
}

impl Drop for LocalNewObject {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed lies in staging, where nothing refers to it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

struct LocalObject {
    file: File,
    path: PathBuf,
    length: u64,
}

impl Object for LocalObject {
    fn length(&self) -> u64 {
        self.length
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        self.file.read_exact_at(buffer, offset).map_err(|error| Failure::disk("read", &self.path, error))
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

impl Drop for LocalObject {
    fn drop(&mut self) {
        // What was read once is not read again; the database's pages are worth more than ours.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_published_once_and_whole() {
        let scratch = tempfile::tempdir().expect("a folder");
        let store = LocalStore::new(scratch.path().join("r"));
        let write = |content: &[u8]| {
            let mut object = store.create("a/b").expect("created");
            object.write(content).expect("written");
            object.publish().expect("published")
        };
        assert!(store.open("a/b").expect("asked").is_none());
        assert!(write(b"first"));
        assert!(!write(b"second"));
        let object = store.open("a/b").expect("asked").expect("there");
        let mut content = vec![0; usize::try_from(object.length()).expect("small")];
        object.read(0, &mut content).expect("read");
        assert_eq!(content, b"first");
        assert!(object.read(3, &mut [0; 4]).is_err(), "past its end");
        drop(store.create("a/c").expect("created"));
        assert_eq!(store.list(STAGING).expect("listed"), []);
        let listed = store.list("a").expect("listed");
        assert_eq!((listed.len(), &*listed[0].name, listed[0].length), (1, "b", 5));
        assert!(!listed[0].is_folder && listed[0].modified > 1_700_000_000);
        assert!(store.list("").expect("listed").iter().all(|entry| entry.is_folder));
        assert_eq!(store.list("nowhere").expect("listed"), []);
        store.remove(&["a/b".into(), "a/c".into()]).expect("removed");
        assert!(store.open("a/b").expect("asked").is_none());
    }
}
