//! Finds out which way of disk I/O works in a directory, by trying it on a scratch file there.
//!
//! Leaves no file behind: the scratch file has no name, or loses it before anything is written. Keeps the
//! reason of every refusal, for the report.

use super::error::RingError;
use super::file::{ASSUMED_ALIGNMENT, DiskFile};
use super::mode::IoMode;
use super::open::open_disk;
use super::operation::{Disk, Operation, OperationKind};
use super::registration::memlock_limit;
use crate::buffer::{BufferPool, PageBuffer};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes that the trial writes and reads back.
const TRIAL: usize = 64 << 10;

/// A mode that a probe passed over, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The mode.
    pub mode: IoMode,
    /// What went wrong.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.mode, self.reason)
    }
}

/// What the kernel said about itself and about the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFacts {
    /// The release, as `uname -r` prints it.
    pub release: String,
    /// The name of the directory's file system, or its magic number.
    pub file_system: String,
    /// The value of `kernel.io_uring_disabled`, where the kernel has that setting (6.6).
    pub io_uring_disabled: Option<u32>,
    /// The soft limit on locked memory in bytes; none when unlimited.
    pub memlock: Option<u64>,
}

/// The outcome of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// The mode to use.
    pub mode: IoMode,
    /// Why that one, in a sentence for the operator.
    pub reason: String,
    /// Bytes to align direct I/O to in this directory; 1 in the other modes.
    pub alignment: usize,
    /// The modes that were tried before it.
    pub refusals: Vec<Refusal>,
    /// The circumstances.
    pub kernel: KernelFacts,
}

/// Tries `wanted`, or each mode in the order of [`IoMode::ALL`], in `directory` and reports the first that
/// writes and reads back correctly.
///
/// # Errors
/// When the directory takes no files, when `wanted` does not work, or when nothing does.
pub fn probe(directory: &Path, wanted: Option<IoMode>) -> Result<ProbeReport, RingError> {
    let no_scratch =
        |error: Errno| RingError::Scratch { directory: directory.to_owned(), source: error.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, directory, flags, Mode::empty()).map_err(no_scratch)?;
    let kernel = facts(&folder);
    let candidates = wanted.as_ref().map_or(&IoMode::ALL[..], std::slice::from_ref);
    let mut refusals: Vec<Refusal> = Vec::new();
    for &mode in candidates {
        let file = scratch(&folder).map_err(no_scratch)?;
        match try_mode(mode, file) {
            Ok(alignment) => {
                let reason = reason(mode, wanted.is_some(), alignment, &refusals);
                return Ok(ProbeReport { mode, reason, alignment, refusals, kernel });
            }
            Err(reason) => refusals.push(Refusal { mode, reason }),
        }
    }
    let mode = wanted.unwrap_or(IoMode::Threads);
    let reasons: Vec<String> = match wanted {
        Some(_) => refusals.into_iter().map(|refusal| refusal.reason).collect(),
        None => refusals.iter().map(Refusal::to_string).collect(),
    };
    let hint = match wanted {
        Some(IoMode::Direct | IoMode::Uncached) => {
            "leave --io out to take what works here, or use --io=threads."
        }
        Some(IoMode::Threads) | None => "check the disk and its free space.",
    };
    Err(RingError::Refused { mode, directory: directory.to_owned(), reason: reasons.join("; "), hint })
}

fn reason(mode: IoMode, wanted: bool, alignment: usize, refusals: &[Refusal]) -> String {
    let worked = match mode {
        IoMode::Direct => format!("direct I/O through io_uring works here, aligned to {alignment} bytes"),
        IoMode::Uncached => "uncached I/O (RWF_DONTCACHE) through io_uring works here".to_owned(),
        IoMode::Threads => "plain threads".to_owned(),
    };
    if wanted {
        return format!("{worked}, as asked for");
    }
    let refused: Vec<String> = refusals.iter().map(Refusal::to_string).collect();
    if refused.is_empty() { worked } else { format!("{worked} ({})", refused.join("; ")) }
}

/// Writes and reads back through a real disk. Returns the alignment, or why the mode will not do.
fn try_mode(mode: IoMode, scratch: OwnedFd) -> Result<usize, String> {
    let file =
        DiskFile::adopt(scratch, mode).map_err(|error| format!("opening the scratch file: {error}"))?;
    let alignment = match mode {
        IoMode::Direct if !file.is_direct() => return Err("O_DIRECT refused by the file system".to_owned()),
        IoMode::Direct => file.alignment().max(ASSUMED_ALIGNMENT),
        IoMode::Uncached | IoMode::Threads => 1,
    };
    let (mut disk, _) = open_disk(mode, 2, alignment, None).map_err(|error| first_line(&error))?;
    let size = TRIAL.next_multiple_of(alignment);
    let pool = BufferPool::new(2, size).map_err(|error| format!("allocating buffers: {error}"))?;
    let (Some(mut written), Some(read)) = (pool.take(), pool.take()) else {
        return Err("allocating buffers".to_owned());
    };
    for (position, byte) in written.as_mut_slice().iter_mut().enumerate() {
        *byte = pattern(position);
    }
    written.set_len(size);
    let file = Arc::new(file);
    let write = OperationKind::Write { buffer: written, offset: 0, length: size };
    run(&mut *disk, &file, write).map_err(|error| format!("writing {size} bytes: {error}"))?;
    if mode == IoMode::Uncached && !file.is_uncached() {
        return Err("RWF_DONTCACHE refused by the kernel (before 6.14) or the file system".to_owned());
    }
    let read = OperationKind::Read { buffer: read, offset: 0, length: size };
    let read = run(&mut *disk, &file, read).map_err(|error| format!("reading {size} bytes back: {error}"))?;
    let wrong = (0..size).find(|&position| read.get(position) != Some(&pattern(position)));
    match wrong {
        Some(position) => Err(format!("what was read back differs from what was written at byte {position}")),
        None => Ok(alignment),
    }
}

/// The byte that the trial puts at a position; no two blocks of 4096 bytes look alike.
fn pattern(position: usize) -> u8 {
    let mixed = (position as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
    u8::try_from(mixed).unwrap_or(0)
}

fn run(disk: &mut dyn Disk, file: &Arc<DiskFile>, kind: OperationKind) -> io::Result<PageBuffer> {
    let operation = Operation { token: 0, file: Arc::clone(file), kind };
    disk.submit(operation).map_err(|_| io::Error::other("the queue is full"))?;
    let mut done = Vec::new();
    while done.is_empty() {
        disk.reap(true, &mut done)?;
    }
    let completion = done.pop();
    let completion = completion.ok_or_else(|| io::Error::other("no completion"))?;
    completion.result?;
    completion.buffer.ok_or_else(|| io::Error::other("no buffer came back"))
}

fn first_line(error: &RingError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// A file in `folder` that has no name.
fn scratch(folder: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let permissions = Mode::RUSR | Mode::WUSR;
    match rustix::fs::openat(folder, c".", flags | OFlags::TMPFILE, permissions) {
        // The file system (or an old kernel, which then sees a directory) does not know nameless files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
        opened => return opened,
    }
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!(".pgstrata-probe-{}-{number}", std::process::id());
        match rustix::fs::openat(folder, name.as_str(), flags | OFlags::CREATE | OFlags::EXCL, permissions) {
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
            Ok(file) => {
                rustix::fs::unlinkat(folder, name.as_str(), AtFlags::empty())?;
                return Ok(file);
            }
        }
    }
}

fn facts(folder: &OwnedFd) -> KernelFacts {
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    KernelFacts {
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        file_system: rustix::fs::fstatfs(folder.as_fd()).map_or_else(
            |error| format!("unknown ({error})"),
            |facts| file_system_name(i128::from(facts.f_type)),
        ),
        io_uring_disabled: setting.and_then(|text| text.trim().parse().ok()),
        memlock: memlock_limit(),
    }
}

/// Names a magic number (linux/magic.h, and the headers of file systems kept elsewhere).
fn file_system_name(magic: i128) -> String {
    let name = match magic & 0xFFFF_FFFF {
        0xEF53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794C_7630 => "overlayfs",
        0x2FC1_2FC1 => "zfs",
        0xCA45_1A4E => "bcachefs",
        0xF2F5_2010 => "f2fs",
        0x6969 => "nfs",
        0xFE53_4D42 | 0xFF53_4D42 => "cifs",
        0x6573_5546 => "fuse",
        0x00C3_6400 => "ceph",
        other => return format!("{other:#x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn leaves_nothing_behind_and_says_why() {
        let folder = TempDir::new().expect("folder");
        let report = probe(folder.path(), None).expect("something works");
        assert!(report.reason.contains("works here") || report.mode == IoMode::Threads, "{}", report.reason);
        assert!(report.alignment.is_power_of_two());
        assert!(!report.kernel.release.is_empty() && !report.kernel.file_system.is_empty());
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 0);
    }

    #[test]
    fn each_mode_asked_for_is_used_or_refused() {
        let folder = TempDir::new().expect("folder");
        for mode in IoMode::ALL {
            match probe(folder.path(), Some(mode)) {
                Ok(report) => {
                    assert_eq!(report.mode, mode);
                    assert!(report.reason.ends_with("as asked for"), "{}", report.reason);
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains(&format!("--io={mode}")) && text.contains("HINT: "), "{text}");
                }
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 0);
    }

    #[test]
    fn a_directory_that_takes_no_files_is_an_error() {
        let folder = TempDir::new().expect("folder");
        let file = folder.path().join("file");
        std::fs::write(&file, b"x").expect("write");
        for place in [folder.path().join("missing"), file, "/proc/self".into()] {
            let error = probe(&place, None).expect_err("refused");
            assert!(matches!(error, RingError::Scratch { .. }), "{}: {error}", place.display());
            assert!(error.to_string().contains("HINT: "));
        }
    }
}
