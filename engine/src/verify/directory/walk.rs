//! Goes through a backup's folders and shows every file with its size.
//!
//! One thread reads the folders, several ask for the files' sizes. Holds a bounded number of names, and the paths
//! of the folders that are still to be read.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use crossbeam::channel::{Receiver, Sender, bounded};
use pgstrata_protocol::tar::MemberPath;
use rustix::fs::{AtFlags, Dir, FileType};

use super::problem::Problem;
use super::run::Run;
use super::tree::{Tree, is_tablespace};
use crate::failure::Failure;

/// Bytes of names that are handed over at once.
const BATCH: usize = 8 << 10;

/// Takes a file's path and size.
type Visit<'a> = dyn Fn(&[u8], u64) -> Result<(), Failure> + Sync + 'a;
/// Takes what is wrong.
type Tell<'a> = dyn Fn(Problem) -> Result<(), Failure> + Sync + 'a;

/// A folder whose files are looked at.
struct Folder {
    descriptor: OwnedFd,
    /// Its path with a slash behind it, or empty for the backup itself.
    prefix: Vec<u8>,
}

/// Some of a folder's files, by NUL-terminated names.
struct Batch {
    folder: Arc<Folder>,
    names: Vec<u8>,
}

/// Shows each file that is not ignored to `visit`, in no particular order and from several threads. What is no
/// file, and what cannot be examined, goes to `problem`.
pub(super) fn walk(run: &Run<'_>, visit: &Visit<'_>, problem: &Tell<'_>) -> Result<(), Failure> {
    let threads = run.config.resources.workers;
    let (sender, receiver) = bounded(2 * threads);
    thread::scope(|scope| {
        let sizers: Vec<_> = (0..threads)
            .map(|_| {
                let receiver = receiver.clone();
                scope.spawn(move || size_files(run, &receiver, visit, problem))
            })
            .collect();
        drop(receiver);
        let mut outcome = read_folders(run, &sender, problem);
        drop(sender);
        for sizer in sizers {
            let sized = sizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // A sizer that fails makes the reader find its queue closed: the sizer's reason is the one to tell.
            if let (Err(_), Ok(()) | Err(Failure::Stopped)) = (&sized, &outcome) {
                outcome = sized;
            }
        }
        outcome
    })
}

fn read_folders(run: &Run<'_>, sizers: &Sender<Batch>, problem: &Tell<'_>) -> Result<(), Failure> {
    let mut tree = Tree::new(run.base.as_fd());
    let mut pending: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let read = read_folder(run, &mut tree, &path, sizers, &mut pending, problem)?;
        if let Err(error) = read {
            if path.is_empty() {
                return Err(Failure::disk("read directory", &run.config.backup, error));
            }
            let reason = error.to_string();
            run.suppress(&path);
            problem(Problem::Unreadable { path, action: "open directory", reason })?;
        }
    }
    Ok(())
}

/// The outer error ends the walk, the inner one only this folder.
fn read_folder(
    run: &Run<'_>,
    tree: &mut Tree<'_>,
    path: &[u8],
    sizers: &Sender<Batch>,
    pending: &mut Vec<Vec<u8>>,
    problem: &Tell<'_>,
) -> Result<Result<(), rustix::io::Errno>, Failure> {
    let opened = match tree.open_folder(path) {
        Ok(opened) => opened,
        Err(error) => return Ok(Err(errno(&error))),
    };
    let entries = match Dir::read_from(&opened) {
        Ok(entries) => entries,
        Err(error) => return Ok(Err(error)),
    };
    let mut prefix = path.to_vec();
    if !prefix.is_empty() {
        prefix.push(b'/');
    }
    let folder = Arc::new(Folder { descriptor: opened, prefix });
    let mut names = Vec::new();
    for entry in entries {
        if run.stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => return Ok(Err(error)),
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let path = [&folder.prefix, name.to_bytes()].concat();
        if run.config.ignore.covers(&path) {
            continue;
        }
        let mut kind = entry.file_type();
        if kind == FileType::Unknown {
            kind = match rustix::fs::statat(&folder.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(error) => {
                    run.suppress(&path);
                    let reason = error.to_string();
                    problem(Problem::Unreadable { path, action: "stat file or directory", reason })?;
                    continue;
                }
            };
        }
        match kind {
            FileType::RegularFile => {
                names.extend_from_slice(name.to_bytes_with_nul());
                if names.len() >= BATCH {
                    send(sizers, &folder, std::mem::take(&mut names))?;
                }
            }
            FileType::Symlink if is_tablespace(&path) => pending.push(path),
            FileType::Directory if path.len() <= MemberPath::MAX_LEN => pending.push(path),
            FileType::Directory => problem(Problem::Extra { path })?,
            other => {
                run.suppress(&path);
                problem(Problem::NotRegular { path, kind: kind_name(other) })?;
            }
        }
    }
    if !names.is_empty() {
        send(sizers, &folder, names)?;
    }
    Ok(Ok(()))
}

fn send(sizers: &Sender<Batch>, folder: &Arc<Folder>, names: Vec<u8>) -> Result<(), Failure> {
    sizers.send(Batch { folder: Arc::clone(folder), names }).map_err(|_| Failure::Stopped)
}

fn size_files(
    run: &Run<'_>,
    batches: &Receiver<Batch>,
    visit: &Visit<'_>,
    problem: &Tell<'_>,
) -> Result<(), Failure> {
    let mut path = Vec::new();
    for Batch { folder, names } in batches {
        for name in names.split_inclusive(|byte| *byte == 0) {
            if run.stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            let name = std::ffi::CStr::from_bytes_with_nul(name).unwrap_or_default();
            path.clear();
            path.extend_from_slice(&folder.prefix);
            path.extend_from_slice(name.to_bytes());
            match rustix::fs::statat(&folder.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => visit(&path, u64::try_from(stat.st_size).unwrap_or(0))?,
                Err(error) => {
                    run.suppress(&path);
                    problem(Problem::Unreadable {
                        path: path.clone(),
                        action: "stat file or directory",
                        reason: error.to_string(),
                    })?;
                }
            }
        }
    }
    Ok(())
}

fn errno(error: &std::io::Error) -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO)
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        _ => "special file",
    }
}
