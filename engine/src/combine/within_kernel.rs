//! Data that gets to its place without passing through this process: links, reflinks, copy_file_range(2).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::source_file::SourceFile;
use crate::failure::Failure;
use crate::pipeline::Folder;

/// Creates a file to move ranges into.
pub(super) fn create(folder: &Folder, name: &std::ffi::OsStr, mode: u32) -> Result<File, Failure> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(&folder.handle, name, flags, Mode::from_raw_mode(mode))
        .map(File::from)
        .map_err(|error| Failure::disk("create file", folder.path.join(name), error))
}

/// Makes a hard link to a source. Returns what to sync.
pub(super) fn link(source: &SourceFile, folder: &Folder, name: &std::ffi::OsStr) -> Result<File, Failure> {
    rustix::fs::linkat(CWD, &source.path, &folder.handle, name, AtFlags::empty()).map_err(|error| {
        let to = folder.path.join(name);
        let hint = match error {
            Errno::XDEV => {
                "\nHINT: links stay within a file system: use --copy, or an output beside the backups."
            }
            Errno::PERM => {
                "\nHINT: the system lets only their owner link these files, or the file system has no links."
            }
            _ => "",
        };
        Failure::Target(format!(
            "could not create link from \"{}\" to \"{}\": {error}{hint}",
            source.path.display(),
            to.display()
        ))
    })?;
    rustix::io::dup(&source.file)
        .map(File::from)
        .map_err(|error| Failure::disk("open file", &source.path, error))
}

/// Makes `to` share all of a source.
pub(super) fn clone_whole(source: &SourceFile, to: &File, shown: &std::path::Path) -> Result<(), Failure> {
    rustix::fs::ioctl_ficlone(to, &source.file).map_err(|error| {
        let hint = match error {
            Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY => {
                "\nHINT: reflinks need a file system that has them (btrfs, XFS), and backups and output on the same one; \
                 --copy-file-range and --copy do without."
            }
            _ => "",
        };
        Failure::Target(format!(
            "error while cloning file \"{}\" to \"{}\": {error}{hint}",
            source.path.display(),
            shown.display()
        ))
    })
}

/// Makes a range of `to` share a source's. False where it cannot be shared, and has to be copied.
pub(super) fn clone_range(
    source: &SourceFile,
    from: u64,
    length: u64,
    file: &File,
    to: u64,
) -> io::Result<bool> {
    let range = libc::file_clone_range {
        src_fd: i64::from(source.file.as_raw_fd()),
        src_offset: from,
        src_length: length,
        dest_offset: to,
    };
    // SAFETY: the kernel reads the structure, which lives until the call is over; both descriptors are open as long.
    let done = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::FICLONERANGE, &raw const range) };
    if done == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EXDEV | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY) => Ok(false),
        _ => Err(error),
    }
}

/// Copies a range within the kernel.
pub(super) fn copy_range(
    source: &SourceFile,
    mut from: u64,
    length: u64,
    file: &File,
    mut to: u64,
    shown: &std::path::Path,
) -> Result<(), Failure> {
    let end = from + length;
    while from < end {
        let wanted = usize::try_from(end - from).unwrap_or(usize::MAX).min(1 << 30);
        let copied = rustix::fs::copy_file_range(&source.file, Some(&mut from), file, Some(&mut to), wanted);
        match copied {
            Ok(0) => {
                return Err(Failure::Verification(format!(
                    "unexpected end of file while copying file range from \"{}\" to \"{}\"",
                    source.path.display(),
                    shown.display()
                )));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return Err(Failure::Target(format!(
                    "error while copying file range from \"{}\" to \"{}\": {error}",
                    source.path.display(),
                    shown.display()
                )));
            }
        }
    }
    Ok(())
}
