//! Asks the kernel how much of a file its page cache holds, so that cached bytes are not fetched from the device.

use std::os::fd::{AsFd, AsRawFd};

/// What the page cache holds of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cached {
    /// All of it.
    Whole,
    /// Some of it.
    Part,
    /// Nothing.
    Nothing,
    /// The kernel (before 6.5), the file's owner or a sandbox does not let us know.
    Unknown,
}

/// The system call's number, the same on all architectures that Rust's Linux targets share with asm-generic/unistd.h.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` (linux/mman.h).
#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// `struct cachestat` (linux/mman.h), in pages.
#[repr(C)]
#[derive(Default)]
struct Stat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// What the page cache holds of `length` bytes from `offset`, which is a multiple of the page size.
pub(super) fn cached(file: impl AsFd, offset: u64, length: u64) -> Cached {
    let range = Range { offset, length };
    let mut stat = Stat::default();
    // SAFETY: the kernel reads `range` and fills `stat`, which have the layout of its own structures and live
    // until the call is over; the descriptor is open as long as `file`.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_fd().as_raw_fd(),
            &raw const range,
            &raw mut stat,
            0 as libc::c_uint,
        )
    };
    let pages = length.div_ceil(rustix::param::page_size() as u64);
    match stat.cached {
        _ if result != 0 => Cached::Unknown,
        0 => Cached::Nothing,
        cached if cached >= pages => Cached::Whole,
        _ => Cached::Part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn sees_what_was_just_written() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&[1; 100_000]).expect("written");
        let whole = cached(&file, 0, 100_000);
        assert!(matches!(whole, Cached::Whole | Cached::Unknown), "{whole:?}");
        if whole == Cached::Whole {
            assert_eq!(cached(&file, 1 << 30, 4096), Cached::Nothing);
            assert_eq!(cached(&file, 65536, 1 << 20), Cached::Part);
        }
    }
}
