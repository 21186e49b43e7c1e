//! Claims the folders a backup is written to, and removes what it made there when the backup fails.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::sink::create_folder;

/// Folders that this run writes to. Unless [`Claims::keep`] is called, dropping it removes what the run made, if
/// that was asked for.
#[derive(Debug)]
pub(crate) struct Claims {
    clean: bool,
    made: Vec<Claim>,
    /// Folders between the claimed ones and those that were there before, these included.
    parents: Vec<PathBuf>,
}

#[derive(Debug)]
enum Claim {
    /// Made by us, and so were these parents, the nearest first. The folder is removed with what is in it, the
    /// parents only as far as nobody else has put anything there meanwhile.
    Made(PathBuf, Vec<PathBuf>),
    /// It was there and empty: emptied again.
    Found(PathBuf),
}

impl Claims {
    /// No claims yet. `clean` says whether failures are cleaned up after.
    pub(crate) fn new(clean: bool) -> Self {
        Self { clean, made: Vec::new(), parents: Vec::new() }
    }

    /// Makes `path`, or takes it if it is an empty folder. Anything inside is somebody's data.
    pub(crate) fn claim(&mut self, path: &Path, mode: u32) -> Result<(), Failure> {
        match fs::read_dir(path) {
            Ok(mut entries) => match entries.next() {
                None => {
                    self.made.push(Claim::Found(path.to_owned()));
                    Ok(())
                }
                Some(_) => Err(Failure::Target(format!(
                    "directory \"{}\" exists but is not empty\n\
                     HINT: remove or empty it, or name another folder; nothing was changed.",
                    path.display()
                ))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = create_folder(path, mode)
                    .map_err(|error| Failure::disk("create directory", path, error))?;
                let Some(topmost) = made else {
                    return Err(Failure::Target(format!(
                        "\"{}\" is a symbolic link that leads nowhere\n\
                         HINT: mount or make the folder that it leads to, or name another one; nothing was changed.",
                        path.display()
                    )));
                };
                let above = || path.ancestors().skip(1).map(Path::to_owned);
                let new: Vec<_> = above().take_while(|folder| folder.starts_with(&topmost)).collect();
                self.parents.extend(above().take(new.len() + 1));
                self.made.push(Claim::Made(path.to_owned(), new));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(Failure::Target(format!(
                "\"{}\" exists but is not a directory\nHINT: name a folder that is empty or does not exist.",
                path.display()
            ))),
            Err(error) => Err(Failure::disk("access directory", path, error)),
        }
    }

    /// Whether this folder was claimed.
    pub(crate) fn has(&self, folder: &Path) -> bool {
        let claimed = |claim: &Claim| match claim {
            Claim::Made(path, _) | Claim::Found(path) => path == folder,
        };
        self.made.iter().any(claimed)
    }

    /// Whether nothing was claimed.
    pub(crate) fn is_empty(&self) -> bool {
        self.made.is_empty()
    }

    /// The folders whose entries were changed by making the claimed folders: they are to be synced.
    pub(crate) fn parents(&self) -> Vec<PathBuf> {
        self.parents.clone()
    }

    /// The backup stays. Also for `--no-clean`.
    pub(crate) fn keep(mut self) {
        self.made.clear();
    }

    /// Removes what was made. Returns what could not be removed.
    pub(crate) fn remove(mut self) -> Vec<Failure> {
        self.remove_all()
    }

    fn remove_all(&mut self) -> Vec<Failure> {
        let mut failures = Vec::new();
        for claim in self.made.drain(..).rev() {
            let removed = match &claim {
                Claim::Made(path, parents) => fs::remove_dir_all(path)
                    .map_err(|error| (path, error))
                    .inspect(|()| remove_while_empty(parents)),
                Claim::Found(path) => remove_content(path).map_err(|error| (path, error)),
            };
            match removed {
                Err((_, error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err((path, error)) => failures.push(Failure::disk("remove", path, error)),
                Ok(()) => {}
            }
        }
        failures
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        // Reached with claims left only when the run unwinds; there is nobody to tell.
        if self.clean {
            self.remove_all();
        }
    }
}

/// The first that is not empty ends it: what others have put there stays, and so does all above.
fn remove_while_empty(parents: &[PathBuf]) {
    for parent in parents {
        if fs::remove_dir(parent).is_err() {
            return;
        }
    }
}

fn remove_content(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_what_it_made_and_only_that() {
        let scratch = tempfile::tempdir().expect("a temporary folder");
        let (new, found) = (scratch.path().join("a/b/c"), scratch.path().join("found"));
        fs::create_dir(&found).expect("made");
        let mut claims = Claims::new(true);
        claims.claim(&new, 0o700).expect("absent is fine");
        claims.claim(&found, 0o700).expect("empty is fine");
        fs::create_dir(new.join("base")).expect("made");
        fs::write(found.join("file"), b"x").expect("written");
        assert!(claims.remove().is_empty());
        assert!(!scratch.path().join("a").exists());
        // A parent that somebody else uses by now is not ours to remove.
        let mut claims = Claims::new(true);
        claims.claim(&scratch.path().join("date/db1"), 0o700).expect("absent is fine");
        fs::create_dir(scratch.path().join("date/db2")).expect("made");
        assert!(claims.remove().is_empty());
        assert!(!scratch.path().join("date/db1").exists() && scratch.path().join("date/db2").exists());
        assert!(found.exists() && fs::read_dir(&found).expect("readable").next().is_none());
    }

    #[test]
    fn refuses_what_is_in_use() {
        let scratch = tempfile::tempdir().expect("a temporary folder");
        fs::write(scratch.path().join(".hidden"), b"x").expect("written");
        let refused = Claims::new(true).claim(scratch.path(), 0o700).expect_err("not empty");
        assert!(refused.to_string().contains("exists but is not empty"), "{refused}");
        let file = scratch.path().join(".hidden");
        let refused = Claims::new(true).claim(&file, 0o700).expect_err("a file");
        assert!(refused.to_string().contains("not a directory"), "{refused}");
        assert!(file.exists());
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink("/nonexistent/place", &link).expect("linked");
        let refused = Claims::new(true).claim(&link, 0o700).expect_err("leads nowhere");
        assert!(refused.to_string().contains("leads nowhere"), "{refused}");
        assert!(link.symlink_metadata().is_ok());
    }

    #[test]
    fn keep_keeps() {
        let scratch = tempfile::tempdir().expect("a temporary folder");
        let path = scratch.path().join("kept");
        let mut claims = Claims::new(true);
        claims.claim(&path, 0o750).expect("absent is fine");
        claims.keep();
        assert!(path.exists());
    }
}
