//! Where clusters and copies lie: one directory a cluster, below one base, on one file system.
//!
//! A place is locked as long as it is held, so that two benchmarks never work in the same one. What an interrupted
//! run left behind is removed when the next one takes the place.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use pgstrata::postmaster::Unprivileged;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::tree;

/// The directory of one cluster.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    /// The directory, locked until it is closed.
    _lock: File,
}

/// The directory that all places are in: `named`, or `bench` in cargo's target directory. The server's account can
/// reach it.
pub(crate) fn base(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let wanted = match named {
        Some(dir) => std::path::absolute(dir).with_context(|| format!("cannot resolve {}", dir.display()))?,
        None => target_dir()?.join("bench"),
    };
    let base = Unprivileged::resolve()?.scratch_base(&wanted)?;
    if base != wanted {
        if named.is_some() {
            bail!(
                "{}: the server's account cannot reach it\n\
                 HINT: choose a directory whose parents all can be searched by everyone.",
                wanted.display()
            );
        }
        eprintln!("pgstrata-bench: {} is closed to the server, using {}", wanted.display(), base.display());
    }
    Ok(base)
}

impl Place {
    /// Takes the place of this name.
    pub(crate) fn take(base: &Path, name: &str) -> anyhow::Result<Self> {
        let dir = base.join(name);
        let lock = fs::create_dir_all(&dir)
            .and_then(|()| fs::set_permissions(&dir, Permissions::from_mode(0o755)))
            .and_then(|()| File::open(&dir))
            .with_context(|| format!("cannot create {}", dir.display()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => bail!(
                "{}: another benchmark works there\nHINT: wait for it, or give this one another --dir.",
                dir.display()
            ),
            Err(error) => {
                return Err(io::Error::from(error)).with_context(|| format!("cannot lock {}", dir.display()));
            }
        }
        let place = Self { dir, _lock: lock };
        tree::remove(&place.copy())?;
        Ok(place)
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cluster's data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where clients put their copy.
    pub(crate) fn copy(&self) -> PathBuf {
        self.dir.join("copy")
    }

    /// The file that is there only when the cluster is complete.
    pub(crate) fn marker(&self) -> PathBuf {
        self.dir.join("complete.json")
    }

    /// Refuses to begin what would fill the disk.
    pub(crate) fn require_space(&self, bytes: u64) -> anyhow::Result<()> {
        let disk = rustix::fs::statvfs(&self.dir)
            .with_context(|| format!("cannot ask for the free space of {}", self.dir.display()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < bytes {
            bail!(
                "{}: {:.1} GB are free, {:.1} GB are needed\n\
                 HINT: choose a smaller cluster, or another file system with --dir.",
                self.dir.display(),
                crate::output::giga(free),
                crate::output::giga(bytes)
            );
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Only an empty one goes: nothing was made in it.
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Cargo's target directory, from where this program lies; without one, `target` in the working directory.
fn target_dir() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find this program's own path")?;
    let is_target = |dir: &&Path| dir.join("CACHEDIR.TAG").is_file();
    match exe.ancestors().find(is_target) {
        Some(dir) => Ok(dir.to_owned()),
        None => Ok(std::env::current_dir().context("cannot find the working directory")?.join("target")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_once_and_cleared_of_leftovers() {
        let base = tempfile::tempdir().unwrap();
        let place = Place::take(base.path(), "a").unwrap();
        let error = Place::take(base.path(), "a").unwrap_err();
        assert!(error.to_string().contains("another benchmark"), "{error}");
        drop(Place::take(base.path(), "b").unwrap());
        assert!(!base.path().join("b").exists(), "an empty place is not kept");
        fs::create_dir_all(place.copy().join("base")).unwrap();
        fs::create_dir_all(place.data()).unwrap();
        drop(place);
        let place = Place::take(base.path(), "a").unwrap();
        assert!(!place.copy().exists());
        assert!(place.data().exists());
    }

    #[test]
    fn more_space_than_there_can_be_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let place = Place::take(base.path(), "a").unwrap();
        place.require_space(0).unwrap();
        let error = place.require_space(u64::MAX).unwrap_err();
        assert!(error.to_string().contains("HINT: choose a smaller cluster"), "{error}");
    }
}
