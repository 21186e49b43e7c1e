//! What lies where a cluster is to go: nothing, a data directory, what an interrupted restore has left, or somebody's files.
//!
//! Invariant: nothing is changed in a data directory that a server may be running in, nor can one start there once its
//! `pg_control` was taken away.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, test_kill_process};

use super::marker::Marker;
use crate::failure::Failure;

/// The control file, and its name while a restore is under way over it.
const CONTROL: &str = "global/pg_control";
/// See [`take_control_away`].
const CONTROL_AWAY: &str = "global/pg_control.pgstrata.old";
/// Lines of `postmaster.pid` are short (`LOCK_FILE_LINE_*`, `miscadmin.h`).
const PID_FILE_MAX: u64 = 64 << 10;

/// What a folder holds.
#[derive(Debug)]
pub(super) enum Found {
    /// There is no such folder.
    Nothing,
    /// It is empty.
    Empty,
    /// A restore that did not end; or, with a control file, one that did but for its mark.
    Restore(Marker, bool),
    /// A data directory, of this system where that can be read.
    Cluster(Option<u64>),
    /// Something else.
    Other,
}

impl Found {
    /// Looks into a folder.
    pub(super) fn at(path: &Path) -> Result<Self, Failure> {
        let mut entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return if path.symlink_metadata().is_ok() {
                    Err(Failure::Target(format!(
                        "\"{}\" is a symbolic link that leads nowhere\n\
                         HINT: mount or make the folder that it leads to, or name another one; nothing was changed.",
                        path.display()
                    )))
                } else {
                    Ok(Self::Nothing)
                };
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(Failure::Target(format!(
                    "\"{}\" exists but is not a directory\nHINT: name a folder that is empty or does not exist.",
                    path.display()
                )));
            }
            Err(error) => return Err(Failure::disk("access directory", path, error)),
        };
        if entries.next().is_none() {
            return Ok(Self::Empty);
        }
        if let Some(marker) = Marker::read(path)? {
            let has_control = path.join(CONTROL).symlink_metadata().is_ok();
            return Ok(Self::Restore(marker, has_control));
        }
        if path.join("PG_VERSION").symlink_metadata().is_ok_and(|found| found.is_file()) {
            return Ok(Self::Cluster(system_of(path)));
        }
        Ok(Self::Other)
    }

    /// Whether the restore begins with nothing.
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing | Self::Empty)
    }
}

/// The system identifier in a control file, where there is one: its first field (`ControlFileData`, `pg_control.h`).
fn system_of(folder: &Path) -> Option<u64> {
    if is_link(&folder.join("global")) {
        return None;
    }
    let read = |name: &str| {
        let mut bytes = [0; 8];
        File::open(folder.join(name)).and_then(|mut file| file.read_exact(&mut bytes)).ok()?;
        Some(u64::from_ne_bytes(bytes))
    };
    read(CONTROL).or_else(|| read(CONTROL_AWAY))
}

fn is_link(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_symlink())
}

/// Whether processes are attached to the shared memory that line 7 of a lock file names (`LOCK_FILE_LINE_SHMEM_KEY`,
/// `pidfile.h`): backends of a server whose first process died may go on writing.
fn is_attached(lock_file: &str) -> bool {
    let Some(id) = lock_file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) else {
        return false;
    };
    let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    // key shmid perms size cpid lpid nattch …, as proc_sysvipc(5) has it.
    segments.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace();
        fields.nth(1) == Some(id) && fields.nth(4).is_some_and(|attached| attached != "0")
    })
}

/// Refuses a folder that a server runs in.
pub(super) fn check_no_server(folder: &Path) -> Result<(), Failure> {
    let path = folder.join("postmaster.pid");
    let mut text = String::new();
    let opened = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened,
    };
    opened
        .and_then(|file| file.take(PID_FILE_MAX).read_to_string(&mut text))
        .map_err(|error| Failure::disk("read", &path, error))?;
    // A server that runs alone (single-user mode) has a negative number there.
    let number = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()).map(i32::unsigned_abs);
    let pid = number.and_then(|number| Pid::from_raw(i32::try_from(number).ok()?));
    let refused = |what: String| {
        Err(Failure::Target(format!(
            "\"{}\" is there: {what}\n\
             HINT: stop the server; where none runs, on no other host or container either, remove that file. \
             Nothing was changed.",
            path.display()
        )))
    };
    match pid {
        None => refused("it names no process".into()),
        Some(pid) => match test_kill_process(pid) {
            Err(rustix::io::Errno::SRCH) if is_attached(&text) => {
                refused(format!("process {} has died, and others of its server live", pid.as_raw_nonzero()))
            }
            // Left behind by a server that died.
            Err(rustix::io::Errno::SRCH) => Ok(()),
            // Another's process is a process.
            Ok(()) | Err(_) => {
                refused(format!("a server runs in this data directory (process {})", pid.as_raw_nonzero()))
            }
        },
    }
}

/// Holds a folder for this restore alone, as long as the file is open.
pub(super) fn lock(path: &Path) -> Result<File, Failure> {
    let folder = File::open(path).map_err(|error| Failure::disk("open folder", path, error))?;
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::Target(format!(
            "another restore into \"{}\" is under way\nHINT: wait for its end.",
            path.display()
        ))),
        // A file system without locks has none to give.
        Ok(()) | Err(_) => Ok(folder),
    }
}

/// Takes the control file away, durably: no server starts here from now on. One that was faster has its lock file
/// already (`PostmasterMain`, `postmaster.c`), and gets its control file back.
pub(super) fn take_control_away(folder: &Path) -> Result<(), Failure> {
    let (control, away) = (folder.join(CONTROL), folder.join(CONTROL_AWAY));
    if is_link(&folder.join("global")) {
        let what = format!("\"{}\" is a link, expected a folder", folder.join("global").display());
        return Err(Failure::Target(format!("{what}\nHINT: remove the link; nothing was changed.")));
    }
    let failed = |error| Failure::disk("take away", &control, error);
    match fs::rename(&control, &away) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(());
        }
        renamed => renamed.map_err(failed)?,
    }
    File::open(folder.join("global")).and_then(|global| global.sync_all()).map_err(failed)?;
    check_no_server(folder).inspect_err(|_| {
        // It is told that a server runs; what cannot be put back is told by the server.
        let _ = fs::rename(&away, &control);
    })
}

/// Gives the control file back, where nothing else was changed yet.
pub(super) fn put_control_back(folder: &Path) {
    // What cannot be put back is told by the server.
    let _ = fs::rename(folder.join(CONTROL_AWAY), folder.join(CONTROL));
}

/// A folder below one on another file system, if there is one. No link is followed.
pub(super) fn mounted_below(folder: &Path) -> io::Result<Option<PathBuf>> {
    let device = fs::metadata(folder)?.dev();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                if entry.metadata()?.dev() != device {
                    return Ok(Some(entry.path()));
                }
                folders.push(entry.path());
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_runs_is_seen() {
        let scratch = tempfile::tempdir().expect("a folder");
        let write = |text: &str| fs::write(scratch.path().join("postmaster.pid"), text).expect("written");
        check_no_server(scratch.path()).expect("no file");
        write(&format!("{}\n/x\n", std::process::id()));
        assert!(check_no_server(scratch.path()).expect_err("ours").to_string().contains("a server runs"));
        write(&format!("-{}\n", std::process::id()));
        check_no_server(scratch.path()).expect_err("alone");
        write("?");
        assert!(check_no_server(scratch.path()).expect_err("none").to_string().contains("names no process"));
        // Above every pid_max.
        write("2147483000\n");
        check_no_server(scratch.path()).expect("a dead one");
        write("2147483000\n/x\n1\n5432\n/tmp\nlocalhost\n  1 2147483000\nready\n");
        check_no_server(scratch.path()).expect("nobody is attached");
    }

    #[test]
    fn folders_are_told_apart() {
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = scratch.path().join("x");
        assert!(matches!(Found::at(&folder), Ok(Found::Nothing)));
        fs::create_dir(&folder).expect("made");
        assert!(matches!(Found::at(&folder), Ok(Found::Empty)));
        fs::create_dir(folder.join("global")).expect("made");
        assert!(matches!(Found::at(&folder), Ok(Found::Other)));
        fs::write(folder.join("PG_VERSION"), "15\n").expect("written");
        assert!(matches!(Found::at(&folder), Ok(Found::Cluster(None))));
        fs::write(folder.join(CONTROL), [7, 0, 0, 0, 0, 0, 0, 0, 9]).expect("written");
        let seven = u64::from_ne_bytes([7, 0, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(Found::at(&folder), Ok(Found::Cluster(Some(system))) if system == seven));
        take_control_away(&folder).expect("away");
        assert!(!folder.join(CONTROL).exists());
        assert!(matches!(Found::at(&folder), Ok(Found::Cluster(Some(system))) if system == seven));
        let marker = Marker {
            cluster: "c".into(),
            backup: "b".into(),
            system_identifier: "7".into(),
            folders: Vec::new(),
        };
        marker.write(&folder, &File::open(&folder).expect("open")).expect("written");
        assert!(matches!(Found::at(&folder), Ok(Found::Restore(found, false)) if found == marker));
        let held = lock(&folder).expect("free");
        assert!(lock(&folder).expect_err("held").to_string().contains("under way"));
        drop(held);
        lock(&folder).expect("free again");
    }
}
