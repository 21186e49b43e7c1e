//! Segments that were fetched before recovery asked for them.
//!
//! Invariants: a spooled file is `NAME.HASH`, the BLAKE3 of its content in hex, and is handed out only where its content
//! has that hash: nothing here is synced, and a crash of the machine may leave anything under any name. What cannot be
//! used is removed and fetched again. A spool is one repository's and one cluster's.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::repository::{SegmentName, WalObject};

/// What the name of a file ends with that is being fetched.
const UNFINISHED: &str = ".tmp";

/// A folder of fetched segments.
#[derive(Clone, Debug)]
pub(super) struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// The spool of a cluster in a folder that several may share.
    pub(super) fn of(folder: &Path, repository: &str, cluster: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(repository.as_bytes()).update(&[0]).update(cluster.as_bytes());
        let whose = &hasher.finalize().to_hex()[..16];
        Self { folder: folder.join(whose) }
    }

    /// What is here: the segments' names, and their files.
    fn entries(&self) -> Vec<(SegmentName, PathBuf)> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let named = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let (segment, rest) = name.split_once('.')?;
            (!rest.ends_with(UNFINISHED)).then_some(())?;
            Some((segment.parse().ok()?, entry.path()))
        };
        entries.filter_map(Result::ok).filter_map(named).collect()
    }

    /// Whether a segment is here, by its name.
    pub(super) fn has(&self, segment: SegmentName) -> bool {
        self.entries().iter().any(|(name, _)| *name == segment)
    }

    /// Gives a segment to `target`, if it is here and whole.
    pub(super) fn hand_out(&self, segment: SegmentName, target: &Path) -> bool {
        for (_, path) in self.entries().into_iter().filter(|(name, _)| *name == segment) {
            let whole = hash_of(&path);
            let expected = path.extension().and_then(|hash| hash.to_str());
            let good = whole.is_ok_and(|hash| Some(hash.to_hex().as_str()) == expected);
            let given = good && (fs::rename(&path, target).is_ok() || copy(&path, target).is_ok());
            let _ = fs::remove_file(&path);
            if given {
                return true;
            }
        }
        false
    }

    /// Fetches a whole segment into the spool.
    pub(super) fn put(&self, segment: SegmentName, object: &WalObject) -> Result<(), Failure> {
        let failed = |error| Failure::disk("create folder", &self.folder, error);
        fs::create_dir_all(&self.folder).map_err(failed)?;
        // What is hex digits and nothing else comes from the object: the name stays in its folder.
        let hash = &object.summary.blake3;
        if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(());
        }
        let target = self.folder.join(format!("{segment}.{hash}"));
        let temporary = self.folder.join(format!("{segment}.{}{UNFINISHED}", std::process::id()));
        write_file(object, &temporary)?;
        fs::rename(&temporary, &target).map_err(|error| Failure::disk("rename", temporary, error))
    }

    /// Removes what is before a segment on its timeline, or of another timeline, and what was left unfinished.
    pub(super) fn trim(&self, to: SegmentName) {
        for (name, path) in self.entries() {
            if name.timeline != to.timeline || name < to {
                // What stays is removed the next time.
                let _ = fs::remove_file(path);
            }
        }
        for entry in fs::read_dir(&self.folder).into_iter().flatten().filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes everything, and the folder: recovery is at the end of what the archive has.
    pub(super) fn clear(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().filter_map(Result::ok) {
            let _ = fs::remove_file(entry.path());
        }
        let _ = fs::remove_dir(&self.folder);
        let _ = self.folder.parent().map(fs::remove_dir);
    }
}

fn hash_of(path: &Path) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    Ok(hasher.update_reader(File::open(path)?)?.finalize())
}

/// From another file system.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut temporary = to.as_os_str().to_owned();
    temporary.push(UNFINISHED);
    fs::copy(from, &temporary)?;
    fs::rename(temporary, to)
}

/// Writes an object's bytes to a new file.
pub(super) fn write_file(object: &WalObject, path: &Path) -> Result<(), Failure> {
    let mut file = create(path)?;
    object.copy_to(&mut file, path)?;
    file.flush().map_err(|error| Failure::disk("write to", path, error))
}

/// A new file in the place of whatever is there.
pub(super) fn create(path: &Path) -> Result<File, Failure> {
    let _ = fs::remove_file(path);
    let opened = File::options().write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(|error| Failure::disk("create file", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_whole_is_handed_out() {
        let scratch = tempfile::tempdir().expect("a folder");
        let spool = Spool::of(scratch.path(), "/r", "main");
        let target = scratch.path().join("target");
        let segment: SegmentName = "000000010000000000000002".parse().expect("valid");
        fs::create_dir_all(&spool.folder).expect("made");
        let put = |content: &[u8], real: &[u8]| {
            let hash = blake3::hash(content).to_hex();
            fs::write(spool.folder.join(format!("{segment}.{hash}")), real).expect("written");
        };
        put(b"content", b"content");
        assert!(spool.has(segment) && spool.hand_out(segment, &target));
        assert_eq!(fs::read(&target).expect("handed out"), b"content");
        for wrong in [&b"conten"[..], b"", &[0; 7]] {
            put(b"content", wrong);
            assert!(!spool.hand_out(segment, &target), "{wrong:?}");
            assert!(!spool.has(segment), "it is removed");
        }
        put(b"x", b"x");
        fs::write(spool.folder.join("000000010000000000000002.1.tmp"), b"").expect("written");
        spool.trim("000000010000000000000003".parse().expect("valid"));
        assert_eq!(fs::read_dir(&spool.folder).expect("there").count(), 0);
        put(b"x", b"x");
        assert!(!Spool::of(scratch.path(), "/r", "other").has(segment));
        spool.clear();
        assert!(!spool.folder.exists());
    }
}
