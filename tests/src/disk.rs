//! The file system that the scratch directories of a test process lie on: XFS in a file of its own, where it can be
//! had.
//!
//! The tests make and remove millions of small files. On some systems removing a synced file costs milliseconds (ext4
//! mounted with `discard` and without a journal), which made that most of what the tests did. The image is sparse, is
//! mounted by the first scratch directory, and goes with the process; after a kill the next run's sweep removes it.

use std::path::Path;
use std::sync::Mutex;

use crate::{FsKind, Scratch, SmallFs};

/// The most that the image may hold. The largest user is the matrix: two versions at a time with 5 GiB each.
const MOST_MIB: u64 = 24 << 10;
/// With less than this, tests would fail that fit on the disk below.
const LEAST_MIB: u64 = 16 << 10;

struct Disk {
    // Unmounted before the directory that holds the image goes.
    mounted: SmallFs,
    _home: Scratch,
}

static DISK: Mutex<Option<Disk>> = Mutex::new(None);

/// Mounts it with its image in a scratch directory `home`, and gives the path that it is mounted on.
///
/// # Errors
/// Why scratch directories stay on the disk below, to be printed.
pub(crate) fn mount(home: Scratch) -> Result<std::path::PathBuf, String> {
    let free = free_mib(home.path())?;
    // The rest is for what is built, and for the tests that bring small disks of their own.
    let mib = MOST_MIB.min(free / 4 * 3);
    if mib < LEAST_MIB {
        return Err(format!("{free} MiB are free, expected {} or more", LEAST_MIB / 3 * 4));
    }
    let mounted = SmallFs::mount(FsKind::Xfs, mib, &home)?;
    let path = mounted.path().to_owned();
    *DISK.lock().expect("nobody panics with the lock") = Some(Disk { mounted, _home: home });
    // SAFETY: the function is safe to call at any time, once or often, and does not unwind into the C library.
    if unsafe { libc::atexit(unmount) } != 0 {
        eprintln!("{}: nobody will unmount it but the next run", path.display());
    }
    Ok(path)
}

extern "C" fn unmount() {
    let gone = std::panic::catch_unwind(|| DISK.lock().ok().and_then(|mut disk| disk.take()));
    if let Ok(Some(Disk { mounted, _home })) = gone {
        drop(mounted);
    }
}

fn free_mib(path: &Path) -> Result<u64, String> {
    let stat = rustix::fs::statvfs(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((stat.f_bavail * stat.f_frsize) >> 20)
}
