//! Which file system a directory is on, and which device that is on.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FileSystem {
    /// Such as `ext4`.
    pub(crate) kind: String,
    /// Mount options and those of the file system itself.
    pub(crate) options: String,
    /// The device and what is known of it.
    pub(crate) device: String,
}

impl FileSystem {
    /// The one that `path` is on.
    pub(crate) fn of(path: &Path) -> anyhow::Result<Self> {
        let path = fs::canonicalize(path).with_context(|| format!("cannot resolve {}", path.display()))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the list of mounts")?;
        let mount = Mount::holding(&path, &mounts)
            .with_context(|| format!("no mounted file system holds {}", path.display()))?;
        Ok(Self { kind: mount.kind, options: mount.options, device: device(&mount.source) })
    }
}

/// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    kind: String,
    source: String,
    options: String,
}

impl Mount {
    /// The mount whose point is the longest one above `path`; of several at one point, the last hides the others.
    fn holding(path: &Path, mounts: &str) -> Option<Mount> {
        let above = mounts.lines().filter_map(Mount::parse).filter(|mount| path.starts_with(&mount.point));
        above.max_by_key(|mount| mount.point.components().count())
    }

    fn parse(line: &str) -> Option<Mount> {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (point, own_options) = (left.get(4)?, left.get(5)?);
        let (kind, source, super_options) = (right.first()?, right.get(1)?, right.get(2)?);
        let mut options: Vec<&str> = own_options.split(',').collect();
        for option in super_options.split(',') {
            if !options.contains(&option) {
                options.push(option);
            }
        }
        Some(Mount {
            point: PathBuf::from(unescaped(point)),
            kind: (*kind).to_owned(),
            source: unescaped(source),
            options: options.join(","),
        })
    }
}

/// Blanks and backslashes are written as `\` and three octal digits.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_owned(), |text, (written, meant)| text.replace(written, meant))
}

/// A device by name, model, driver and whether it rotates, as far as `/sys` tells.
fn device(source: &str) -> String {
    let known = || {
        let meta = fs::metadata(source).ok().filter(|meta| meta.file_type().is_block_device())?;
        let number = format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let mut dir = fs::canonicalize(Path::new("/sys/dev/block").join(number)).ok()?;
        if dir.join("partition").exists() {
            dir.pop();
        }
        let text = |name: &str| {
            let text = fs::read_to_string(dir.join(name)).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let driver = fs::canonicalize(dir.join("device/driver")).ok();
        let driver = driver.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        // Virtual disks say that they rotate, whatever they are.
        let is_virtual = driver.as_deref() == Some("virtio_blk");
        let rotates = text("queue/rotational").filter(|answer| answer == "1" && !is_virtual);
        let rotates = rotates.map(|_| "rotating".to_owned());
        let facts: Vec<String> =
            [text("device/model"), text("dm/name"), driver, rotates].into_iter().flatten().collect();
        (!facts.is_empty()).then(|| format!("{source} ({})", facts.join(", ")))
    };
    known().unwrap_or_else(|| source.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 27 259:1 / /srv rw,noatime - xfs /dev/nvme0n1 rw,attr2
41 40 259:2 / /srv/a\\040b rw - btrfs /dev/nvme1n1 rw
42 40 259:3 / /srv rw - ext4 /dev/sdb rw
";

    #[test]
    fn the_longest_and_last_mount_holds_a_path() {
        for (path, source, options) in [
            ("/home/x", "/dev/vda", "rw,relatime,discard"),
            ("/srv", "/dev/sdb", "rw"),
            ("/srv/ab", "/dev/sdb", "rw"),
            ("/srv/a b/c", "/dev/nvme1n1", "rw"),
            ("/srvx", "/dev/vda", "rw,relatime,discard"),
        ] {
            let mount = Mount::holding(Path::new(path), MOUNTS).unwrap();
            assert_eq!((mount.source.as_str(), mount.options.as_str()), (source, options), "{path}");
        }
        assert_eq!(Mount::holding(Path::new("/x"), "nonsense\n"), None);
    }

    #[test]
    fn this_machine_has_a_file_system() {
        let found = FileSystem::of(Path::new("/proc")).unwrap();
        assert_eq!(found.kind, "proc");
    }
}
