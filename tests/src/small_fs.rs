//! Small file systems of a test's own, for full disks and for file systems that refuse this or that.
//!
//! An image is mounted by loop device below the test's scratch directory and unmounted with its handle; after a kill,
//! the next run's sweep unmounts it (see [`Scratch`](crate::Scratch)). Needs root and the tools of the file system:
//! where something is missing the answer is a reason to print, not a failure.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Scratch;

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsKind {
    /// In memory, without a device.
    Tmpfs,
    /// ext4.
    Ext4,
    /// XFS; at least 300 MiB.
    Xfs,
    /// btrfs; at least 110 MiB.
    Btrfs,
}

impl FsKind {
    /// Every kind.
    pub const ALL: [FsKind; 4] = [FsKind::Tmpfs, FsKind::Ext4, FsKind::Xfs, FsKind::Btrfs];

    fn name(self) -> &'static str {
        match self {
            FsKind::Tmpfs => "tmpfs",
            FsKind::Ext4 => "ext4",
            FsKind::Xfs => "xfs",
            FsKind::Btrfs => "btrfs",
        }
    }

    /// The smallest size in MiB that mkfs accepts.
    #[must_use]
    pub fn least_mib(self) -> u64 {
        match self {
            FsKind::Tmpfs | FsKind::Ext4 => 1,
            FsKind::Xfs => 300,
            FsKind::Btrfs => 110,
        }
    }
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A mounted file system. Dropping it unmounts it.
#[derive(Debug)]
pub struct SmallFs {
    kind: FsKind,
    mount_point: PathBuf,
    image: Option<PathBuf>,
}

impl SmallFs {
    /// Makes and mounts a file system of `mib` MiB, or as many as the kind needs at least, in the scratch directory.
    ///
    /// # Errors
    /// Why it cannot be had here, to be printed.
    pub fn mount(kind: FsKind, mib: u64, scratch: &Scratch) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err(format!("mounting {kind} needs root"));
        }
        let mib = mib.max(kind.least_mib());
        let name = (0..).map(|n| format!("{kind}-{n}")).find(|name| !scratch.join(name).exists());
        let mount_point = scratch.join(&name.expect("numbers do not run out"));
        fs::create_dir(&mount_point).map_err(|error| format!("{}: {error}", mount_point.display()))?;
        let mut mount = Command::new("mount");
        let image = if kind == FsKind::Tmpfs {
            mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(&mount_point);
            None
        } else {
            let image = mount_point.with_extension("img");
            make_image(kind, mib, &image)?;
            mount.args(["-t", kind.name(), "-o", "loop"]).args([&image, &mount_point]);
            Some(image)
        };
        // From here on, dropping it cleans up.
        let mounted = Self { kind, mount_point, image };
        run(mount)?;
        let open = fs::set_permissions(&mounted.mount_point, fs::Permissions::from_mode(0o777));
        open.map_err(|error| format!("{}: {error}", mounted.mount_point.display()))?;
        Ok(mounted)
    }

    /// The first kind of a list that can be had here, with a note for each that cannot.
    ///
    /// # Panics
    /// Where none can.
    #[must_use]
    pub fn mount_first(kinds: &[FsKind], mib: u64, scratch: &Scratch) -> Self {
        let tried = kinds.iter().find_map(|kind| match Self::mount(*kind, mib, scratch) {
            Ok(mounted) => Some(mounted),
            Err(reason) => {
                eprintln!("skipped: {reason}");
                None
            }
        });
        tried.unwrap_or_else(|| panic!("none of {kinds:?} can be mounted"))
    }

    /// Where it is mounted; everyone may write there.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> FsKind {
        self.kind
    }

    /// How many bytes an ordinary user can still write.
    ///
    /// # Panics
    /// Where the system does not say.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.mount_point).expect("it is mounted");
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        umount.arg(&self.mount_point);
        if run(umount).is_err() {
            // Something still has a file open: detach it now, the kernel cleans up after the last one.
            let mut detach = Command::new("umount");
            detach.arg("--lazy").arg(&self.mount_point);
            let _ = run(detach);
        }
        let _ = fs::remove_dir(&self.mount_point);
        if let Some(image) = &self.image {
            let _ = fs::remove_file(image);
        }
    }
}

fn make_image(kind: FsKind, mib: u64, image: &Path) -> Result<(), String> {
    let sized = File::create(image).and_then(|file| file.set_len(mib << 20));
    sized.map_err(|error| format!("{}: {error}", image.display()))?;
    let mut mkfs = Command::new(format!("mkfs.{kind}"));
    // Administrators' directories are not on everyone's PATH.
    let path = std::env::var("PATH").unwrap_or_default();
    mkfs.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    match kind {
        FsKind::Ext4 => mkfs.args(["-q", "-F", "-m", "0"]),
        FsKind::Xfs | FsKind::Btrfs => mkfs.args(["-q", "-f"]),
        FsKind::Tmpfs => &mut mkfs,
    };
    mkfs.arg(image);
    run(mkfs).inspect_err(|_| {
        let _ = fs::remove_file(image);
    })
}

fn run(mut command: Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("cannot run {program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    output
        .status
        .success()
        .then_some(())
        .ok_or_else(|| format!("{program}: {}: {}", output.status, said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Write};

    #[test]
    fn a_small_file_system_fills_up_and_goes() {
        let scratch = Scratch::new();
        for kind in FsKind::ALL {
            let mounted = match SmallFs::mount(kind, 8, &scratch) {
                Ok(mounted) => mounted,
                Err(reason) => {
                    eprintln!("skipped: {reason}");
                    continue;
                }
            };
            assert!(mounted.free_bytes() <= kind.least_mib().max(8) << 20);
            let mut file = File::create(mounted.path().join("file")).unwrap();
            let full = loop {
                if let Err(error) = file.write_all(&[7; 1 << 20]).and_then(|()| file.sync_data()) {
                    break error;
                }
            };
            assert_eq!(full.kind(), ErrorKind::StorageFull, "{kind}");
            let path = mounted.path().to_owned();
            drop(file);
            drop(mounted);
            assert!(!path.exists() && !path.with_extension("img").exists(), "{kind}");
        }
    }
}
