//! The end of a backup: folders synced, names given, and last the one rename that makes it a backup.
//!
//! Until that rename no server starts from a plain backup (`global/pg_control` is not there under its name),
//! and no tool finds `base.tar`. Everything that the rename makes visible is durable before it.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::failure::Failure;
use crate::sink::{HELD_CONTROL_FILE, PARTIAL};

/// The manifest until it is complete.
pub(crate) const MANIFEST_TMP: &str = "backup_manifest.tmp";
const MANIFEST: &str = "backup_manifest";
/// Folders that are synced side by side: their journal commits then join.
const SYNC_THREADS: usize = 8;

/// What the files that complete a plain backup are called until then, by their paths in it.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) manifest: String,
    pub(crate) control: String,
}

impl Default for Held {
    fn default() -> Self {
        Self { manifest: MANIFEST_TMP.into(), control: HELD_CONTROL_FILE.into() }
    }
}

/// What makes a server recover in a way of its own when it is started.
#[derive(Clone, Debug)]
pub(crate) struct RecoveryFiles {
    /// Lines for `postgresql.auto.conf`, where later ones count.
    pub(crate) settings: String,
    /// [`STANDBY_SIGNAL`] or [`RECOVERY_SIGNAL`].
    pub(crate) signal: &'static str,
}

/// A server with this file is a standby, and one with the second recovers from an archive.
pub(crate) const STANDBY_SIGNAL: &str = "standby.signal";
pub(crate) const RECOVERY_SIGNAL: &str = "recovery.signal";

/// What is left to do for a plain backup whose files are written.
pub(crate) struct PlainEnd<'a> {
    pub(crate) base: &'a Path,
    /// Folders made in the target, the roots of tablespaces and WAL, and the folders that hold these.
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) recovery: Option<RecoveryFiles>,
    pub(crate) has_manifest: bool,
    pub(crate) held: Held,
    pub(crate) file_mode: u32,
    pub(crate) sync: bool,
}

impl PlainEnd<'_> {
    /// Does it.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        if let Some(recovery) = &self.recovery {
            self.write_recovery(recovery)?;
        }
        if self.has_manifest {
            rename_durably(&self.base.join(&self.held.manifest), &self.base.join(MANIFEST), self.sync)?;
        }
        if self.sync {
            sync_folders(&self.folders)?;
            sync_folder(self.base)?;
        }
        let held = self.base.join(&self.held.control);
        let control = held.with_file_name("pg_control");
        rename(&held, &control)?;
        if self.sync { sync_parent(&control) } else { Ok(()) }
    }

    fn write_recovery(&self, recovery: &RecoveryFiles) -> Result<(), Failure> {
        if recovery.signal == RECOVERY_SIGNAL {
            // With both the server would be a standby.
            let path = self.base.join(STANDBY_SIGNAL);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(|error| Failure::disk("remove", &path, error))?,
            }
        }
        for (name, content) in [("postgresql.auto.conf", &*recovery.settings), (recovery.signal, "")] {
            let path = self.base.join(name);
            // The folder may be another's by now, who is to lead nobody elsewhere and is to be able to read them.
            let owner =
                fs::metadata(self.base).map_err(|error| Failure::disk("look at", self.base, error))?;
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(self.file_mode)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)
                .and_then(|mut file| {
                    if rustix::process::geteuid().is_root() {
                        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
                    }
                    file.write_all(content.as_bytes())?;
                    if self.sync { file.sync_all() } else { Ok(()) }
                })
                .map_err(|error| Failure::disk("write", &path, error))?;
        }
        Ok(())
    }
}

/// Gives the archives of a tar backup their names. `archives` ends with the base archive.
pub(super) fn finish_tar(
    folder: &Path,
    archives: &[PathBuf],
    wal: Option<&Path>,
    parents: &[PathBuf],
    has_manifest: bool,
    sync: bool,
) -> Result<(), Failure> {
    if has_manifest {
        rename_durably(&folder.join(MANIFEST_TMP), &folder.join(MANIFEST), sync)?;
    }
    let (base, others) = archives.split_last().expect("a backup has a base archive");
    for archive in others.iter().map(PathBuf::as_path).chain(wal) {
        rename(&partial(archive), archive)?;
    }
    if sync {
        sync_folder(folder)?;
        sync_folders(parents)?;
    }
    rename(&partial(base), base)?;
    if sync { sync_folder(folder) } else { Ok(()) }
}

/// Syncs the file systems that hold these folders, each of them once.
pub(crate) fn sync_file_systems<'a>(folders: impl IntoIterator<Item = &'a Path>) -> Result<(), Failure> {
    let mut synced = HashSet::new();
    for path in folders {
        let failed = |error| Failure::disk("sync the file system of", path, error);
        let folder = File::open(path).map_err(failed)?;
        if synced.insert(folder.metadata().map_err(failed)?.dev()) {
            rustix::fs::syncfs(&folder).map_err(|error| failed(error.into()))?;
        }
    }
    Ok(())
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PARTIAL);
    PathBuf::from(name)
}

fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::rename(from, to).map_err(|error| Failure::disk("rename", from, error))
}

/// Syncs the file and gives it its name; the folder is synced by the caller.
fn rename_durably(from: &Path, to: &Path, sync: bool) -> Result<(), Failure> {
    if sync {
        File::open(from)
            .and_then(|file| file.sync_all())
            .map_err(|error| Failure::disk("sync", from, error))?;
    }
    rename(from, to)
}

/// Makes a folder's entries durable. Where nobody could, PostgreSQL does without too (`fsync_fname`,
/// `file_utils.c`): a folder that we may write to but not read, a file system that syncs no folders.
fn sync_folder(path: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::disk("sync folder", path, error);
    let folder = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    match folder.sync_all() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::EINVAL)) => Ok(()),
        synced => synced.map_err(failed),
    }
}

fn sync_parent(path: &Path) -> Result<(), Failure> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => Ok(()),
    }
}

fn sync_folders(folders: &[PathBuf]) -> Result<(), Failure> {
    let next = AtomicUsize::new(0);
    let sync = || -> Result<(), Failure> {
        while let Some(folder) = folders.get(next.fetch_add(1, Ordering::Relaxed)) {
            sync_folder(folder)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..SYNC_THREADS.min(folders.len())).map(|_| scope.spawn(sync)).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })
}
