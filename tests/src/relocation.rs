//! Where the tablespaces of a copy lie: beside it, for on one machine they cannot lie where the source has them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::Source;

/// The places of one copy's tablespaces.
#[derive(Clone, Debug)]
pub struct Relocation {
    places: Vec<Place>,
}

#[derive(Clone, Debug)]
struct Place {
    oid: u32,
    /// Where the source has it; `None` for a folder in `pg_tblspc` itself, which does not move.
    from: Option<PathBuf>,
    to: PathBuf,
}

impl Relocation {
    /// Places for the tablespaces of a copy of `source` that is to lie in `copy`. Nothing is made.
    #[must_use]
    pub fn new(source: &Source, copy: &Path) -> Self {
        let place = |oid: u32, from: &Option<PathBuf>| {
            let beside = || {
                let mut name = copy.as_os_str().to_owned();
                name.push(format!(" space {oid}"));
                PathBuf::from(name)
            };
            let to = if from.is_some() { beside() } else { copy.join(format!("pg_tblspc/{oid}")) };
            Place { oid, from: from.clone(), to }
        };
        let places = source.tablespaces().iter().map(|space| place(space.oid, &space.location)).collect();
        Self { places }
    }

    /// The options `-T` for them.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let moved = self.moved();
        moved.flat_map(|(_, from, to)| [OsString::from("-T"), mapping(from, to)]).collect()
    }

    /// Number, old and new place of those that move.
    pub fn moved(&self) -> impl Iterator<Item = (u32, &Path, &Path)> {
        self.places.iter().filter_map(|place| Some((place.oid, place.from.as_deref()?, place.to.as_path())))
    }

    /// Unpacks a backup in tar format into `copy`, with each tablespace at its new place and a link to it, and the WAL in
    /// `pg_wal`. Every file is as the archives have it, so that the copy can be checked.
    ///
    /// # Panics
    /// Where an archive is missing, or `tar` does not like it.
    #[track_caller]
    pub fn unpack(&self, archives: &Path, copy: &Path) {
        self.try_unpack(archives, copy).unwrap_or_else(|error| panic!("{}: {error:#}", archives.display()));
    }

    fn try_unpack(&self, archives: &Path, copy: &Path) -> anyhow::Result<()> {
        extract(&archives.join("base.tar"), copy)?;
        let wal = archives.join("pg_wal.tar");
        if wal.exists() {
            extract(&wal, &copy.join("pg_wal"))?;
        }
        for place in &self.places {
            extract(&archives.join(format!("{}.tar", place.oid)), &place.to)?;
        }
        let manifest = archives.join("backup_manifest");
        if manifest.exists() {
            fs::copy(manifest, copy.join("backup_manifest")).context("backup_manifest")?;
        }
        for (link, to) in self.links(copy) {
            symlink(to, &link).with_context(|| format!("{link:?}"))?;
        }
        Ok(())
    }

    /// Makes an unpacked copy ready to start, as its operator would: `tablespace_map` names the new places, and the
    /// links are left for the server to make.
    ///
    /// # Panics
    /// Where the map does not name the tablespaces of the source.
    #[track_caller]
    pub fn rewrite_map(&self, copy: &Path) {
        self.try_rewrite_map(copy).unwrap_or_else(|error| panic!("{}: {error:#}", copy.display()));
    }

    fn try_rewrite_map(&self, copy: &Path) -> anyhow::Result<()> {
        for (link, _) in self.links(copy) {
            fs::remove_file(&link).with_context(|| format!("{link:?}"))?;
        }
        let path = copy.join("tablespace_map");
        if self.moved().next().is_none() {
            ensure!(!path.exists(), "a tablespace_map without tablespaces");
            return Ok(());
        }
        let mut map = fs::read(&path).context("tablespace_map")?;
        for (oid, from, to) in self.moved() {
            let line = |place: &Path| [format!("{oid} ").as_bytes(), &escaped(place), b"\n"].concat();
            let (old, new) = (line(from), line(to));
            let at = map.windows(old.len()).position(|window| window == old);
            let at = at.with_context(|| format!("no {old:?} in {:?}", String::from_utf8_lossy(&map)))?;
            map.splice(at..at + old.len(), new);
        }
        fs::write(&path, map).context("tablespace_map")
    }

    fn links(&self, copy: &Path) -> impl Iterator<Item = (PathBuf, &Path)> {
        self.moved().map(move |(oid, _, to)| (copy.join(format!("pg_tblspc/{oid}")), to))
    }

    /// Removes a copy with its tablespaces.
    ///
    /// # Panics
    /// Where the file system refuses.
    pub fn remove(&self, copy: &Path) {
        for dir in self.moved().map(|(_, _, to)| to).chain([copy]) {
            fs::remove_dir_all(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        }
    }
}

/// `OLD=NEW` as `-T` takes it, where `\=` stands for an equals sign of a path.
fn mapping(from: &Path, to: &Path) -> OsString {
    let mut text = Vec::new();
    for (at, path) in [from, to].into_iter().enumerate() {
        if at > 0 {
            text.push(b'=');
        }
        for byte in path.as_os_str().as_bytes() {
            if *byte == b'=' {
                text.push(b'\\');
            }
            text.push(*byte);
        }
    }
    OsString::from_vec(text)
}

/// A path as `tablespace_map` writes it (`do_pg_backup_start` in src/backend/access/transam/xlog.c).
fn escaped(path: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\n' | b'\r' | b'\\') {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text
}

/// Has the system's `tar` unpack an archive into a folder, which is made where absent, and closed to others as a server
/// wants it.
fn extract(archive: &Path, to: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to).with_context(|| format!("{to:?}"))?;
    let output = Command::new("tar")
        .args([OsStr::new("--numeric-owner"), OsStr::new("-xpf"), archive.as_os_str(), OsStr::new("-C")])
        .arg(to)
        .stdin(Stdio::null())
        .output()
        .context("cannot run tar")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "tar {archive:?}: {}: {said}", output.status);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_and_maps_are_escaped() {
        assert_eq!(mapping(Path::new("/a=b"), Path::new("/c\\d")), "/a\\=b=/c\\d");
        assert_eq!(escaped(Path::new("/a\\b\nc")), b"/a\\\\b\\\nc");
    }
}
