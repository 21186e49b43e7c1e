//! The one folder in which everything lies.
//!
//! It must be reachable for the server's account, which is not ours when we are root. `/var/tmp` goes before
//! `/tmp`, which often lies in memory.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::DemoError;
use crate::failure::Failure;
use crate::postmaster::{PostmasterError, Unprivileged};

/// The folder. Removed when dropped, unless it is to be kept.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: TempDir,
    kept: bool,
}

impl Scratch {
    /// Makes it in `TMPDIR`, if that is set and not closed to the server's account, else in `/var/tmp` or `/tmp`.
    pub(super) fn new(run_as: &Unprivileged, kept: bool) -> Result<Self, DemoError> {
        if let Some(named) = std::env::var_os("TMPDIR").filter(|value| !value.is_empty()) {
            match Self::make_in(Path::new(&named), run_as, kept) {
                // Root's own may well be closed to everyone else.
                Err(DemoError::Postmaster(PostmasterError::Unreachable { .. })) => {}
                outcome => return outcome,
            }
        }
        Self::make_in(Path::new("/var/tmp"), run_as, kept)
            .or_else(|_| Self::make_in(Path::new("/tmp"), run_as, kept))
    }

    fn make_in(place: &Path, run_as: &Unprivileged, kept: bool) -> Result<Self, DemoError> {
        let place = std::path::absolute(place)
            .map_err(|error| Failure::disk("make an absolute path of", place, error))?;
        run_as.reach(&place.join("x"))?;
        let dir = tempfile::Builder::new()
            .prefix("pgstrata-demo-")
            .disable_cleanup(kept)
            .tempdir_in(&place)
            .map_err(|error| Failure::disk("create a folder in", &place, error))?;
        // What lies inside is closed to others; the way to it must be open to the server's account.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711))
            .map_err(|error| Failure::disk("set the mode of", dir.path(), error))?;
        Ok(Self { dir, kept })
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Refuses where less than `needed` bytes are free.
    pub(super) fn require_space(&self, needed: u64) -> Result<(), DemoError> {
        let path = self.path();
        let stat = rustix::fs::statvfs(path)
            .map_err(|error| Failure::disk("look at the file system of", path, error))?;
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        if available >= needed {
            return Ok(());
        }
        let mb = |bytes: u64| bytes / 1_000_000;
        Err(DemoError::Space { path: path.to_owned(), available: mb(available), needed: mb(needed) })
    }

    /// Removes it with all that is in it, unless it is to be kept; where it stays then.
    pub(super) fn close(self) -> Result<Option<PathBuf>, DemoError> {
        let path = self.path().to_owned();
        if self.kept {
            return Ok(Some(path));
        }
        self.dir.close().map_err(|error| Failure::disk("remove", path, error))?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_or_kept_and_never_filled_beyond_the_disk() {
        let run_as = Unprivileged::resolve().unwrap();
        let scratch = Scratch::new(&run_as, false).unwrap();
        let path = scratch.path().to_owned();
        fs::write(scratch.join("file"), "x").unwrap();
        scratch.require_space(1).unwrap();
        let refused = scratch.require_space(u64::MAX).unwrap_err();
        assert!(matches!(refused, DemoError::Space { .. }), "{refused}");
        assert_eq!(scratch.close().unwrap(), None);
        assert!(!path.exists());

        let kept = Scratch::new(&run_as, true).unwrap().close().unwrap().unwrap();
        fs::remove_dir(&kept).unwrap();
    }
}
