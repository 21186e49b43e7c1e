//! Which tablespaces the last backup has, and where they go (`scan_for_existing_tablespaces`, `pg_combinebackup.c`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::config::CombineConfig;
use super::observer::CombineObserver;
use crate::failure::Failure;

const TABLESPACES: &str = "pg_tblspc";

/// A tablespace of the last backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tablespace {
    pub(super) oid: u32,
    /// The name below `pg_tblspc`.
    pub(super) name: String,
    /// Where it lies.
    pub(super) from: PathBuf,
    /// Where it goes.
    pub(super) to: PathBuf,
    /// Whether it is a folder within the data directory.
    pub(super) in_place: bool,
}

/// The OID that a name below `pg_tblspc` is.
pub(super) fn oid(name: &[u8]) -> Option<u32> {
    let digits =
        std::str::from_utf8(name).ok().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|oid| *oid > 0)
}

/// Finds them.
pub(super) fn scan(
    backup: &Path,
    config: &CombineConfig,
    observer: &dyn CombineObserver,
) -> Result<Vec<Tablespace>, Failure> {
    let folder = backup.join(TABLESPACES);
    let tell = |text: String| {
        if observer.wants_details() {
            observer.detail(&text);
        }
    };
    tell(format!("scanning \"{}\"", folder.display()));
    let failed = |error| Failure::disk("open directory", &folder, error);
    let mut found: Vec<Tablespace> = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (name, path) = (entry.file_name(), entry.path());
        let Some(oid) = oid(name.as_bytes()) else {
            tell(format!(
                "skipping \"{}\" because the filename is not a legal tablespace OID",
                path.display()
            ));
            continue;
        };
        let kind = entry.file_type().map_err(|error| Failure::disk("stat file", &path, error))?;
        let name = name.to_string_lossy().into_owned();
        let tablespace = if kind.is_symlink() {
            let target = std::fs::read_link(&path)
                .map_err(|error| Failure::disk("read symbolic link", &path, error))?;
            if target.is_relative() {
                return Err(Failure::Target(format!(
                    "target of symbolic link \"{}\" is relative",
                    path.display()
                )));
            }
            let target = canonical(&target);
            let mut mapping = config.tablespace_mapping.iter();
            let Some((_, to)) = mapping.find(|(old, _)| canonical(old) == target) else {
                return Err(Failure::Target(format!(
                    "tablespace at \"{}\" has no tablespace mapping\n\
                     HINT: say where it is to go: -T {}=NEWDIR.",
                    target.display(),
                    target.display()
                )));
            };
            Tablespace { oid, name, from: target, to: canonical(to), in_place: false }
        } else if kind.is_dir() {
            let to = config.output.join(TABLESPACES).join(&name);
            Tablespace { oid, name, from: path, to, in_place: true }
        } else {
            tell(format!(
                "skipping \"{}\" because it is neither a symbolic link nor a directory",
                path.display()
            ));
            continue;
        };
        if let Some(other) = found.iter().find(|other| other.to == tablespace.to || other.oid == oid) {
            return Err(Failure::Target(format!(
                "tablespaces with OIDs {} and {oid} both point at directory \"{}\"",
                other.oid,
                tablespace.to.display()
            )));
        }
        found.push(tablespace);
    }
    Ok(found)
}

/// A path without `.`, `..` and repeated slashes, by its letters alone (`canonicalize_path`, `src/port/path.c`).
fn canonical(path: &Path) -> PathBuf {
    let mut made = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if made.file_name().is_some_and(|last| last != OsStr::new("..")) => {
                made.pop();
            }
            Component::ParentDir if made.has_root() => {}
            other => made.push(other),
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        for (name, expected) in [
            ("16384", Some(16384)),
            ("0", None),
            ("", None),
            ("4294967296", None),
            ("+1", None),
            ("pg", None),
        ] {
            assert_eq!(oid(name.as_bytes()), expected, "{name}");
        }
        for (path, expected) in
            [("/a//b/./c/", "/a/b/c"), ("/a/../b", "/b"), ("/../b", "/b"), ("a/../../b", "../b")]
        {
            assert_eq!(canonical(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
