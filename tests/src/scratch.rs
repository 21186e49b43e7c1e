//! Scratch directories: one a test, on a file system of the process's own where one can be mounted (`disk.rs`), else
//! below cargo's target directory where the server's account can get there, else below `/var/tmp`.
//!
//! Invariants: a scratch directory is locked as long as its test lives, so that a later run knows which ones were left
//! behind by a kill, and removes them with all that is mounted in them. `PGSTRATA_KEEP_SCRATCH=1` keeps them all.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use pgstrata::postmaster::Unprivileged;
use rustix::fs::FlockOperation;

use crate::{artifacts, disk};

const PREFIX: &str = "run-";

/// A directory of one test's own, mode 0755, removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    /// Holds the lock on the directory.
    _lock: File,
}

impl Scratch {
    /// Makes a new, empty directory.
    ///
    /// # Panics
    /// Where the file system refuses.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default value would hide that a directory is made")]
    pub fn new() -> Self {
        Self::on(home())
    }

    fn on(place: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = place.join(format!("{PREFIX}{}-{number}", std::process::id()));
        // Between creation and lock the directory would look left behind.
        let _guard = lock_base(base());
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: cannot create: {error}", dir.display()));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("the directory is ours");
        let lock = File::open(&dir).expect("the directory is ours");
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("nobody else knows it");
        Self { dir, _lock: lock }
    }

    /// Removes what killed tests have left. Each process does so before its first scratch directory.
    pub fn sweep() {
        let base = base();
        let _guard = lock_base(base);
        for entry in fs::read_dir(base).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
                continue;
            }
            let Ok(lock) = File::open(&path) else { continue };
            let abandoned = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
            if abandoned && let Err(error) = remove(&path) {
                eprintln!("{}: left by an earlier run, cannot remove: {error}", path.display());
            }
        }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if keeps() {
            eprintln!("kept {}", self.dir.display());
        } else if let Err(error) = remove(&self.dir) {
            eprintln!("{}: cannot remove: {error}", self.dir.display());
        }
    }
}

/// Where scratch directories are made.
fn home() -> &'static Path {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        Scratch::sweep();
        if keeps() {
            return base().to_owned();
        }
        disk::mount(Scratch::on(base())).unwrap_or_else(|reason| {
            eprintln!("scratch directories have no file system of their own: {reason}");
            base().to_owned()
        })
    })
}

fn keeps() -> bool {
    std::env::var_os("PGSTRATA_KEEP_SCRATCH").is_some()
}

/// The directory that everything of the tests lives in, the same for all runs of one target directory.
pub(crate) fn base() -> &'static Path {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        let account = Unprivileged::resolve().unwrap_or_else(|error| panic!("{error}"));
        let preferred = artifacts::target_dir().join("tmp");
        account.scratch_base(&preferred).unwrap_or_else(|error| panic!("{error}"))
    })
}

/// Where fetched servers are kept.
pub(crate) fn server_cache() -> PathBuf {
    let target = artifacts::target_dir();
    if base().starts_with(&target) { target.join("postgres") } else { base().join("postgres") }
}

fn lock_base(base: &Path) -> File {
    let path = base.join(".lock");
    let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    rustix::fs::flock(&file, FlockOperation::LockExclusive).expect("a lock on a local file");
    file
}

/// Removes a directory and everything in it, after unmounting what is mounted below it.
fn remove(dir: &Path) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in mount_points(&mounts).filter(|point| point.starts_with(dir)) {
        let status = Command::new("umount").arg("--lazy").arg(&point).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("umount {} failed ({status})", point.display())));
        }
    }
    fs::remove_dir_all(dir)
}

/// The mount points in the text of proc_pid_mountinfo(5), innermost first. Spaces are written `\040` there; ours hold
/// none.
fn mount_points(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    let points: Vec<_> =
        mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect();
    points.into_iter().rev()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_come_innermost_first() {
        let text = "22 1 254:0 / / rw - ext4 /dev/vda rw\n40 22 7:0 / /t/run-1/m rw - ext4 /dev/loop0 rw\n";
        let expected = [PathBuf::from("/t/run-1/m"), PathBuf::from("/")];
        assert_eq!(mount_points(text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_scratch_directory_goes_with_its_handle_and_not_before() {
        let scratch = Scratch::new();
        let dir = scratch.path().to_owned();
        fs::write(scratch.join("file"), "x").unwrap();
        Scratch::sweep();
        assert!(dir.join("file").exists(), "swept while in use");
        drop(scratch);
        assert!(!dir.exists());
    }
}
