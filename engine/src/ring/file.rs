//! A file on the way to or from a disk, with what its operations need to know about it.
//!
//! Invariants: the descriptor stays open as long as the value lives; once a write or sync of the file has
//! failed, no sync of it succeeds any more, because the kernel reports a lost page only once.

use super::mode::IoMode;
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Alignment for direct I/O where the kernel does not tell (before 6.1, or no `STATX_DIOALIGN`).
pub(super) const ASSUMED_ALIGNMENT: usize = 4096;

/// An open file with its way of access.
#[derive(Debug)]
pub struct DiskFile {
    descriptor: OwnedFd,
    /// Bytes for direct I/O; 0 when the file goes through the page cache.
    direct: usize,
    uncached: AtomicBool,
    /// The errno of the first failed write or sync; 0 while there was none.
    failure: AtomicI32,
}

impl DiskFile {
    /// Creates `name` in `directory` for writing, with the permission bits `permissions` (less the umask).
    /// The name must not exist; a symbolic link in its last component is not followed. With
    /// [`IoMode::Direct`] on a file system that refuses `O_DIRECT`, the file goes through the page cache,
    /// as [`alignment`](Self::alignment) then tells.
    ///
    /// # Errors
    /// What opening failed with; `AlreadyExists` when the name is taken.
    pub fn create_new(
        directory: impl AsFd,
        name: impl rustix::path::Arg,
        permissions: u32,
        mode: IoMode,
    ) -> io::Result<Self> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        Self::open(directory.as_fd(), name, flags, Mode::from_bits_truncate(permissions), mode)
    }

    /// Opens the regular file `name` in `directory` for reading; a symbolic link in its last component is refused, and
    /// so is anything else, with kind `InvalidInput`, and without waiting for whoever is at the other end of a pipe.
    ///
    /// # Errors
    /// What opening failed with.
    pub fn open_read(directory: impl AsFd, name: impl rustix::path::Arg, mode: IoMode) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let opened = rustix::fs::openat(directory, name, flags | OFlags::NONBLOCK, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode);
        if kind != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        // A ring would not wait for reads of a file that is open like that.
        rustix::fs::fcntl_setfl(&opened, OFlags::empty())?;
        Self::adopt(opened, mode)
    }

    /// Wraps a file that is already open. With [`IoMode::Direct`] the file is taken as direct only when its
    /// descriptor carries `O_DIRECT`.
    ///
    /// # Errors
    /// When the file cannot be examined.
    pub fn from_fd(descriptor: OwnedFd, mode: IoMode) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&descriptor)?;
        let mut direct = 0;
        if flags.contains(OFlags::DIRECT) {
            match direct_alignment(&descriptor)? {
                0 => rustix::fs::fcntl_setfl(&descriptor, flags - OFlags::DIRECT)?,
                alignment => direct = alignment,
            }
        }
        let uncached = mode == IoMode::Uncached && direct == 0;
        Ok(Self { descriptor, direct, uncached: AtomicBool::new(uncached), failure: AtomicI32::new(0) })
    }

    /// Takes over a file that was opened without `O_DIRECT`, and sets that flag if the mode asks for it and
    /// the file system has it. Asking at the open instead could leave a file behind that was created before
    /// the flag was refused.
    pub(super) fn adopt(descriptor: OwnedFd, mode: IoMode) -> io::Result<Self> {
        if mode == IoMode::Direct {
            match rustix::fs::fcntl_setfl(&descriptor, OFlags::DIRECT) {
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Self::from_fd(descriptor, mode)
    }

    fn open(
        directory: BorrowedFd<'_>,
        name: impl rustix::path::Arg,
        flags: OFlags,
        permissions: Mode,
        mode: IoMode,
    ) -> io::Result<Self> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
        Self::adopt(rustix::fs::openat(directory, name, flags, permissions)?, mode)
    }

    /// Bytes to which offsets and lengths must be aligned; 1 when the file goes through the page cache.
    #[must_use]
    pub fn alignment(&self) -> usize {
        self.direct.max(1)
    }

    /// Whether the file bypasses the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct != 0
    }

    /// Whether operations ask the page cache to drop what they touched.
    #[must_use]
    pub fn is_uncached(&self) -> bool {
        self.uncached.load(Ordering::Relaxed)
    }

    /// The file's file system does not know `RWF_DONTCACHE`: do without from now on.
    pub(super) fn give_up_uncached(&self) {
        self.uncached.store(false, Ordering::Relaxed);
    }

    /// Reserves blocks for `length` bytes, rounded up to the alignment, and makes the file that long, so
    /// that writes need not extend it. False when the file system cannot reserve, which is no error.
    ///
    /// # Errors
    /// `StorageFull`, and whatever else says that the file cannot become that long.
    pub fn preallocate(&self, length: u64) -> io::Result<bool> {
        if length == 0 {
            return Ok(true);
        }
        let length = length.checked_next_multiple_of(self.alignment() as u64).ok_or(Errno::FBIG)?;
        loop {
            match rustix::fs::fallocate(&self.descriptor, FallocateFlags::empty(), 0, length) {
                Ok(()) => return Ok(true),
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How many bytes the file system has left for this process.
    ///
    /// # Errors
    /// What the kernel failed with.
    pub fn free_space(&self) -> io::Result<u64> {
        let facts = rustix::fs::fstatvfs(&self.descriptor)?;
        Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
    }

    /// Makes the file exactly `length` bytes long.
    ///
    /// # Errors
    /// What the kernel failed with.
    pub fn truncate(&self, length: u64) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::ftruncate(&self.descriptor, length))?)
    }

    /// The file's length in bytes.
    ///
    /// # Errors
    /// What the kernel failed with.
    pub fn size(&self) -> io::Result<u64> {
        let size = rustix::fs::fstat(&self.descriptor)?.st_size;
        u64::try_from(size)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("file size {size}")))
    }

    /// The first failure of a write or sync on this file, if there was one.
    #[must_use]
    pub fn failure(&self) -> Option<io::Error> {
        match self.failure.load(Ordering::Acquire) {
            0 => None,
            errno => Some(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Remembers a failed write or sync; the first one stays.
    pub(super) fn record_failure(&self, error: &io::Error) {
        let errno = error.raw_os_error().filter(|&errno| errno != 0).unwrap_or(Errno::IO.raw_os_error());
        // Losing the race means that an earlier failure is already there.
        let _ = self.failure.compare_exchange(0, errno, Ordering::AcqRel, Ordering::Relaxed);
    }
}

impl AsFd for DiskFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The alignment that direct I/O on an open file needs, or 0 when the file system says it cannot do any
/// (`stx_dio_offset_align`, linux/stat.h).
pub(super) fn direct_alignment(descriptor: impl AsFd) -> io::Result<usize> {
    let facts = match rustix::fs::statx(descriptor, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(facts) => facts,
        Err(Errno::NOSYS) => return Ok(ASSUMED_ALIGNMENT),
        Err(error) => return Err(error.into()),
    };
    let told = StatxFlags::from_bits_retain(facts.stx_mask).contains(StatxFlags::DIOALIGN);
    if !told {
        return Ok(ASSUMED_ALIGNMENT);
    }
    // Memory comes from a pool aligned to pages only.
    if facts.stx_dio_mem_align as usize > crate::buffer::PAGE {
        return Ok(0);
    }
    Ok(facts.stx_dio_offset_align as usize)
}
