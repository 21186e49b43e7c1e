//! Room for a restore, by file system.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::target::Places;
use crate::failure::Failure;
use crate::repository::{FileRecord, tablespace_of};

/// What a file takes at least, about: a block, and its inode.
const BLOCK: u64 = 4096;

/// Bytes that go to each place.
#[derive(Debug, Default)]
pub(super) struct Needs {
    base: u64,
    wal: u64,
    tablespaces: HashMap<u32, u64>,
}

/// A file system, and what goes there.
#[derive(Clone, Debug, Serialize)]
pub struct Space {
    /// A folder on it.
    pub path: PathBuf,
    /// Bytes that the backup takes there.
    pub needed: u64,
    /// Bytes that what is there already takes, and that are used again or freed.
    pub used: u64,
    /// Bytes that are free.
    pub free: u64,
}

impl Space {
    /// Whether the backup does not fit.
    pub(super) fn is_short(&self) -> bool {
        self.needed > self.free.saturating_add(self.used)
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the file system of \"{}\" has {} bytes free, and {} are needed",
            self.path.display(),
            self.free,
            self.needed.saturating_sub(self.used)
        )?;
        f.write_str("\nHINT: free space there, or name a folder on another file system.")
    }
}

impl Needs {
    /// Counts a file.
    pub(super) fn add(&mut self, file: &FileRecord) {
        let bytes = file.size.next_multiple_of(BLOCK);
        let place = match tablespace_of(&file.path) {
            Some((oid, _)) => self.tablespaces.entry(oid).or_default(),
            None if file.path.starts_with(b"pg_wal/") => &mut self.wal,
            None => &mut self.base,
        };
        *place = place.saturating_add(bytes);
    }

    /// Sums up what goes to each file system, and asks for its room. `old` counts what is there already.
    pub(super) fn measure(mut self, base: &Path, places: &Places, old: bool) -> Result<Vec<Space>, Failure> {
        let mut parts = Vec::new();
        for (oid, place) in &places.tablespaces {
            let bytes = self.tablespaces.remove(oid).unwrap_or(0);
            match place {
                Some(place) => parts.push((place.as_path(), bytes)),
                None => self.base += bytes,
            }
        }
        match &places.wal {
            Some(wal) => parts.push((wal, self.wal)),
            None => self.base += self.wal,
        }
        // A folder that only looks like a tablespace's lies in the data directory.
        self.base += self.tablespaces.values().sum::<u64>();
        parts.insert(0, (base, self.base));
        let mut spaces: Vec<(u64, Space)> = Vec::new();
        for (path, needed) in parts {
            // What leads nowhere was told already.
            let Some(there) = path.ancestors().find(|folder| folder.is_dir()) else { continue };
            let failed = |error| Failure::disk("examine", there, error);
            let device = fs::metadata(there).map_err(failed)?.dev();
            let used = if old { usage(path) } else { 0 };
            if let Some((_, space)) = spaces.iter_mut().find(|(known, _)| *known == device) {
                space.needed += needed;
                space.used += used;
                continue;
            }
            let found = rustix::fs::statvfs(there).map_err(|error| failed(error.into()))?;
            let blocks = if rustix::process::geteuid().is_root() { found.f_bfree } else { found.f_bavail };
            let free = blocks.saturating_mul(found.f_frsize);
            spaces.push((device, Space { path: path.to_owned(), needed, used, free }));
        }
        Ok(spaces.into_iter().map(|(_, space)| space).collect())
    }
}

/// Bytes that a folder takes on its disk, about: what cannot be looked at counts nothing. No link is followed.
fn usage(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => usage(&entry.path()),
        // A file with other names frees nothing when it goes.
        Ok(found) if found.nlink() == 1 => found.blocks() * 512,
        _ => 0,
    };
    entries.filter_map(Result::ok).map(of).sum()
}
