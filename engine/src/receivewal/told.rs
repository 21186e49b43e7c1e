//! Failures in the words of a receiver of WAL, which is not a backup that can be taken again: it goes on.

use std::io;

use crate::failure::Failure;

/// What an operator is told of a failure.
#[must_use]
pub fn told(failure: &Failure) -> String {
    match failure {
        Failure::Wal(text) => text.clone(),
        Failure::Stream { context, error } => format!(
            "{context}: {error}\n\
             HINT: the stream from the server is damaged or hostile; check the network path and the server. What was \
             received before is kept."
        ),
        Failure::Disk { action, path, source } => {
            format!("could not {action} \"{}\": {source}{}", path.display(), disk_hint(source))
        }
        other => other.to_string(),
    }
}

fn disk_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            "\nHINT: free space; with a slot the server keeps the WAL until then."
        }
        Some(libc::EIO) => {
            "\nHINT: the device or the file system reports damage; see the kernel log before you use it again."
        }
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            "\nHINT: check the permissions of the folder and how the file system is mounted."
        }
        _ => "",
    }
}
