//! Chooses the way in which a backup is read, without writing to it: it may lie on a read-only file system.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::failure::Failure;
use crate::ring::{DiskFile, IoMode, open_disk};

/// How files that are not cached are read.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) mode: IoMode,
    /// Bytes to align direct reads to; 1 in other modes.
    pub(super) alignment: usize,
    /// Why this one, for the operator.
    pub(super) reason: String,
}

/// What direct I/O is aligned to at least. Some file systems tell less than their devices need.
const ALIGNMENT: usize = 4096;

/// Chooses `wanted`, or the best that works. `sample` is a file of the backup.
pub(super) fn choose(wanted: Option<IoMode>, sample: OwnedFd) -> Result<Way, Failure> {
    if wanted == Some(IoMode::Threads) {
        return Ok(Way { mode: IoMode::Threads, alignment: 1, reason: "plain threads, as asked for".into() });
    }
    // Only to learn whether there are rings: each worker opens its own.
    if let Err(error) = open_disk(IoMode::Uncached, 1, 1, None) {
        let error = error.to_string();
        return match wanted {
            Some(_) => Err(Failure::Target(error)),
            None => {
                let first = error.lines().next().unwrap_or_default();
                Ok(Way { mode: IoMode::Threads, alignment: 1, reason: format!("plain threads ({first})") })
            }
        };
    }
    let asked = if wanted.is_some() { ", as asked for" } else { "" };
    let uncached = || Way {
        mode: IoMode::Uncached,
        alignment: 1,
        reason: format!("io_uring through the page cache, dropping what was not in it{asked}"),
    };
    if wanted == Some(IoMode::Uncached) {
        return Ok(uncached());
    }
    let sample = open_direct(sample).map_err(|error| Failure::disk("examine", "backup_manifest", error))?;
    match (sample.is_direct(), wanted) {
        (true, _) => Ok(Way {
            mode: IoMode::Direct,
            alignment: sample.alignment().max(ALIGNMENT),
            reason: format!("io_uring past the page cache, and out of it what it holds{asked}"),
        }),
        (false, None) => Ok(Way {
            reason: "io_uring through the page cache: the file system has no O_DIRECT".into(),
            ..uncached()
        }),
        (false, Some(_)) => Err(Failure::Target(
            "--io=direct does not work for this backup: its file system has no O_DIRECT\n\
             HINT: leave --io out to take what works here, or use --io=uncached."
                .into(),
        )),
    }
}

/// Makes an open file direct, where its file system can do that.
pub(super) fn open_direct(file: OwnedFd) -> std::io::Result<DiskFile> {
    match rustix::fs::fcntl_setfl(&file, OFlags::DIRECT) {
        Ok(()) | Err(Errno::INVAL) => DiskFile::from_fd(file, IoMode::Direct),
        Err(error) => Err(error.into()),
    }
}
