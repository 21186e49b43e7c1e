//! Segments that were fetched before recovery asked for them.
//!
//! Invariants: a spooled file is `NAME.HASH`, the BLAKE3 of its content in hex, and is handed out only where its content
//! has that hash: nothing here is synced, and a crash of the machine may leave anything under any name. What cannot be
//! used is removed and fetched again. A spool is one repository's and one cluster's, by the repository's identity: two that
//! come to one address, one after the other or each on its own host, share nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::caller::Caller;
use super::temporary::{beside, is_alive};
use crate::failure::Failure;
use crate::repository::{RepositoryId, SegmentName, WalObject};

/// What the name of a file ends with that is being fetched.
const UNFINISHED: &str = ".tmp";

/// A folder of fetched segments.
#[derive(Clone, Debug)]
pub(super) struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// The spool of a cluster in a folder that several may share.
    pub(super) fn of(folder: &Path, repository: &RepositoryId, cluster: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(repository).update(&[0]).update(cluster.as_bytes());
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
    pub(super) fn hand_out(
        &self,
        segment: SegmentName,
        target: &Path,
        caller: &Caller,
    ) -> Result<bool, Failure> {
        for (_, path) in self.entries().into_iter().filter(|(name, _)| *name == segment) {
            let whole = hash_of(&path);
            let expected = path.extension().and_then(|hash| hash.to_str());
            let good = whole.is_ok_and(|hash| Some(hash.to_hex().as_str()) == expected);
            caller.expect_alive()?;
            let given = good && (fs::rename(&path, target).is_ok() || copy(&path, target, caller).is_ok());
            let _ = fs::remove_file(&path);
            if given {
                return Ok(true);
            }
        }
        Ok(false)
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
            let name = entry.file_name().to_string_lossy().into_owned();
            let process =
                name.strip_suffix(UNFINISHED).and_then(|name| name.rsplit_once('.')?.1.parse().ok());
            if name.ends_with(UNFINISHED) && process.is_none_or(|process| !is_alive(process)) {
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
fn copy(from: &Path, to: &Path, caller: &Caller) -> Result<(), Failure> {
    let temporary = beside(to);
    let outcome = fs::copy(from, &temporary).map_err(|error| Failure::disk("write to", &temporary, error));
    let outcome = outcome.and_then(|_| caller.expect_alive()).and_then(|()| {
        fs::rename(&temporary, to).map_err(|error| Failure::disk("rename", &temporary, error))
    });
    if outcome.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    outcome
}

/// Which repository an address led to, as this run of the server knows: so what is spooled is found without asking it.
#[derive(Debug)]
pub(super) struct Known {
    path: PathBuf,
    /// What tells the address and the server's run apart from others; none where no server runs here.
    of: Option<blake3::Hash>,
}

impl Known {
    /// A note in `notes`, a folder of the server whose folder of WAL is `wal`.
    pub(super) fn at(notes: &Path, wal: &Path, address: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(address.as_bytes());
        // Process, folder and time of start (`miscadmin.h`, `LOCK_FILE_LINE_…`). The command runs in the data directory.
        let places = [PathBuf::from("postmaster.pid"), wal.join("../postmaster.pid")];
        let lock = places.iter().find_map(|path| fs::read_to_string(path).ok());
        let of = lock.map(|lock| {
            for line in lock.lines().take(3) {
                hasher.update(&[0]).update(line.as_bytes());
            }
            hasher.finalize()
        });
        Self { path: notes.join("repository"), of }
    }

    /// The repository that was noted.
    pub(super) fn read(&self) -> Option<RepositoryId> {
        let own = self.of?;
        let note = fs::read(&self.path).ok()?;
        let (of, id) = note.split_at_checked(blake3::OUT_LEN)?;
        if of == own.as_bytes() { id.try_into().ok() } else { None }
    }

    /// Notes a repository. What cannot be noted is asked for again.
    pub(super) fn note(&self, id: RepositoryId) {
        let Some(of) = self.of.filter(|_| self.read() != Some(id)) else { return };
        let temporary = beside(&self.path);
        let _ = self.path.parent().map(fs::create_dir_all);
        let written = fs::write(&temporary, [of.as_bytes(), &id[..]].concat());
        if written.and_then(|()| fs::rename(&temporary, &self.path)).is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }

    /// Forgets it.
    pub(super) fn clear(&self) {
        let _ = fs::remove_file(&self.path);
        let _ = self.path.parent().map(fs::remove_dir);
    }
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
        let (spool, caller) = (Spool::of(scratch.path(), &[7; 16], "main"), Caller::now());
        let target = scratch.path().join("target");
        let segment: SegmentName = "000000010000000000000002".parse().expect("valid");
        fs::create_dir_all(&spool.folder).expect("made");
        let put = |content: &[u8], real: &[u8]| {
            let hash = blake3::hash(content).to_hex();
            fs::write(spool.folder.join(format!("{segment}.{hash}")), real).expect("written");
        };
        put(b"content", b"content");
        assert!(spool.has(segment) && spool.hand_out(segment, &target, &caller).expect("alive"));
        assert_eq!(fs::read(&target).expect("handed out"), b"content");
        for wrong in [&b"conten"[..], b"", &[0; 7]] {
            put(b"content", wrong);
            assert!(!spool.hand_out(segment, &target, &caller).expect("alive"), "{wrong:?}");
            assert!(!spool.has(segment), "it is removed");
        }
        put(b"x", b"x");
        let own = spool.folder.join(format!("000000010000000000000002.{}.tmp", std::process::id()));
        for path in [&own, &spool.folder.join("000000010000000000000002.4194305.tmp")] {
            fs::write(path, b"").expect("written");
        }
        spool.trim("000000010000000000000003".parse().expect("valid"));
        assert!(own.exists(), "whoever writes it lives");
        assert_eq!(fs::read_dir(&spool.folder).expect("there").count(), 1);
        put(b"x", b"x");
        assert!(!Spool::of(scratch.path(), &[7; 16], "other").has(segment));
        assert!(!Spool::of(scratch.path(), &[8; 16], "main").has(segment), "another repository");
        spool.clear();
        assert!(!spool.folder.exists());
    }

    #[test]
    fn a_repository_is_known_to_one_run_of_a_server() {
        let scratch = tempfile::tempdir().expect("a folder");
        let wal = scratch.path().join("pg_wal");
        fs::create_dir(&wal).expect("made");
        let lock = |text: &str| fs::write(scratch.path().join("postmaster.pid"), text).expect("written");
        let known = |address| Known::at(&wal.join("notes"), &wal, address);
        known("/r").note([7; 16]);
        assert_eq!(known("/r").read(), None, "there is no server");
        lock("12\n/data\n1700000000\n5432\n\nstarting\n");
        assert_eq!(known("/r").read(), None);
        known("/r").note([7; 16]);
        lock("12\n/data\n1700000000\n5432\n\nstandby\n");
        assert_eq!((known("/r").read(), known("/s").read()), (Some([7; 16]), None));
        lock("12\n/data\n1700000001\n5432\n\nstandby\n");
        assert_eq!(known("/r").read(), None, "another run");
        known("/r").note([8; 16]);
        assert_eq!(known("/r").read(), Some([8; 16]));
        known("/r").clear();
        assert!(!wal.join("notes").exists());
    }
}
