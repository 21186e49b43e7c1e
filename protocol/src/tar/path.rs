//! Names of archive members, checked before anything can open them.
//!
//! Invariant: a [`MemberPath`] is relative and every component is a plain name, so that joining it to a folder
//! cannot leave that folder by text alone. Symbolic links inside the folder are for the writer to judge.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A member's path within its archive: relative, without empty, `.` or `..` components and without NUL.
///
/// One leading `./` and one trailing `/` are gone. The archive's own root (`.` or `./`) is the empty path, for which
/// [`MemberPath::is_root`] holds; joining it to a folder gives that folder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberPath(Vec<u8>);

/// Why a name is no safe path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Nothing is named.
    #[error("the name is empty")]
    Empty,
    /// The name starts at the root of the file system.
    #[error("the name is absolute, expected a path relative to the data directory")]
    Absolute,
    /// A NUL byte cannot be part of a file name.
    #[error("the name holds a NUL byte")]
    Nul,
    /// Two slashes in a row.
    #[error("the name has an empty component")]
    EmptyComponent,
    /// `.` or `..` inside the name.
    #[error("the name has a component \".\" or \"..\", which can lead out of the target folder")]
    Dots,
    /// Longer than PostgreSQL can handle (`MAXPGPATH`, `pg_config_manual.h`).
    #[error("the name is {0} bytes long, expected at most {max}", max = MemberPath::MAX_LEN)]
    TooLong(usize),
}

impl MemberPath {
    /// The longest path in bytes: `MAXPGPATH` less the terminating NUL (`pg_config_manual.h`).
    pub const MAX_LEN: usize = 1023;

    /// Checks a name as it stands in an archive.
    pub fn parse(name: &[u8]) -> Result<Self, PathError> {
        if name.is_empty() {
            return Err(PathError::Empty);
        }
        if name.len() > Self::MAX_LEN {
            return Err(PathError::TooLong(name.len()));
        }
        if name == b"." || name == b"./" {
            return Ok(Self(Vec::new()));
        }
        let name = name.strip_prefix(b"./").unwrap_or(name);
        if name.starts_with(b"/") {
            return Err(PathError::Absolute);
        }
        let name = name.strip_suffix(b"/").unwrap_or(name);
        check_components(name)?;
        Ok(Self(name.to_vec()))
    }

    /// Checks a path that must already have the form of [`MemberPath::as_bytes`] and not be the root.
    pub fn check(path: &[u8]) -> Result<(), PathError> {
        match path {
            [] => Err(PathError::Empty),
            [b'/', ..] => Err(PathError::Absolute),
            path if path.len() > Self::MAX_LEN => Err(PathError::TooLong(path.len())),
            path => check_components(path),
        }
    }

    /// The path's bytes, in no particular encoding; empty for the root.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as the operating system takes it.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Whether this is the archive's own root, which the empty path stands for.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The plain names that the path consists of; none for the root.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
    }

    /// The last component; `None` for the root.
    #[must_use]
    pub fn file_name(&self) -> Option<&[u8]> {
        self.components().next_back()
    }

    /// The path one level up; `None` for the root, the root for a single name.
    #[must_use]
    pub fn parent(&self) -> Option<MemberPath> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Some(Self(self.0[..end].to_vec()))
    }

    /// This path below `folder`.
    #[must_use]
    pub fn below(&self, folder: &Path) -> PathBuf {
        if self.is_root() { folder.to_path_buf() } else { folder.join(self.as_path()) }
    }

    /// This path below another, as a tablespace archive's members are below `pg_tblspc/OID`.
    pub fn with_prefix(&self, prefix: &MemberPath) -> Result<MemberPath, PathError> {
        let mut joined = prefix.0.clone();
        if !prefix.is_root() && !self.is_root() {
            joined.push(b'/');
        }
        joined.extend_from_slice(&self.0);
        if joined.len() > Self::MAX_LEN {
            return Err(PathError::TooLong(joined.len()));
        }
        Ok(Self(joined))
    }
}

/// Refuses anything but plain names between single slashes.
fn check_components(name: &[u8]) -> Result<(), PathError> {
    if name.contains(&0) {
        return Err(PathError::Nul);
    }
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" => return Err(PathError::EmptyComponent),
            b"." | b".." => return Err(PathError::Dots),
            _ => {}
        }
    }
    Ok(())
}

impl fmt::Display for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn strips_what_tar_adds() {
        for (name, path) in [
            ("base/1/2619", "base/1/2619"),
            ("./pg_wal/archive_status/", "pg_wal/archive_status"),
            ("global", "global"),
            (".", ""),
            ("./", ""),
            (".hidden", ".hidden"),
            ("...", "..."),
            ("a/..b", "a/..b"),
        ] {
            assert_eq!(
                MemberPath::parse(name.as_bytes()).map(|p| p.0),
                Ok(path.as_bytes().to_vec()),
                "{name}"
            );
        }
    }

    #[test]
    fn refuses_what_can_lead_elsewhere() {
        for (name, error) in [
            (&b""[..], PathError::Empty),
            (b"/", PathError::Absolute),
            (b"/etc/passwd", PathError::Absolute),
            (b".//etc/passwd", PathError::Absolute),
            (b"..", PathError::Dots),
            (b"../x", PathError::Dots),
            (b"./..", PathError::Dots),
            (b"./../x", PathError::Dots),
            (b"a/../b", PathError::Dots),
            (b"a/./b", PathError::Dots),
            (b"././a", PathError::Dots),
            (b"a/..", PathError::Dots),
            (b"a/../", PathError::Dots),
            (b"a//b", PathError::EmptyComponent),
            (b"a//", PathError::EmptyComponent),
            (b"a\0b", PathError::Nul),
            (&[b'a'; 1024], PathError::TooLong(1024)),
        ] {
            assert_eq!(MemberPath::parse(name), Err(error), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn joins() {
        let path = |name: &str| MemberPath::parse(name.as_bytes()).unwrap();
        assert_eq!(path("a/b").below(Path::new("/t")), Path::new("/t/a/b"));
        assert_eq!(path(".").below(Path::new("/t")), Path::new("/t"));
        assert_eq!(path("a/b").with_prefix(&path("pg_tblspc/1")), Ok(path("pg_tblspc/1/a/b")));
        assert_eq!(path(".").with_prefix(&path("pg_tblspc/1")), Ok(path("pg_tblspc/1")));
        assert_eq!(path("a").with_prefix(&path(".")), Ok(path("a")));
        let long = MemberPath::parse(&[b'a'; 1000]).unwrap();
        assert_eq!(long.with_prefix(&long), Err(PathError::TooLong(2001)));
        assert_eq!(path("a/b/c").parent(), Some(path("a/b")));
        assert_eq!(path("a").parent(), Some(path(".")));
        assert_eq!(path(".").parent(), None);
        assert_eq!(path("a/b/c").file_name(), Some(&b"c"[..]));
        assert_eq!(path("a/b").components().collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(path(".").components().count(), 0);
    }

    proptest! {
        /// What the standard library sees in an accepted name is plain names and nothing else.
        #[test]
        fn accepted_names_stay_inside(name in proptest::collection::vec(prop_oneof![Just(b'.'), Just(b'/'), any::<u8>()], 0..20)) {
            if let Ok(path) = MemberPath::parse(&name) {
                prop_assert!(path.as_path().components().all(|c| matches!(c, std::path::Component::Normal(_))));
                prop_assert_eq!(path.as_path().components().count(), path.components().count());
                if !path.is_root() {
                    prop_assert_eq!(MemberPath::parse(path.as_bytes()), Ok(path));
                }
            }
        }
    }
}
