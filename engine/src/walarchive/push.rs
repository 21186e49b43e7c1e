//! Takes WAL files into a repository, for archive_command.
//!
//! Invariants: success is told only when the file that was asked for is durable in the repository; a name that is taken is
//! success only where the same content has it; nothing of the server's is changed. Files that are ready beside it are
//! taken along in parallel: what is wrong with these is told when the server asks for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use serde::Serialize;

use super::changes::Noting;
use super::file::LocalWal;
use crate::failure::Failure;
use crate::repository::{
    ClusterName, FrameCompression, Repository, WalName, WalObjectWriter, WalOwner, WalPublished,
};

/// Bytes of a file that are read at a time.
const PIECE: usize = 1 << 20;

/// What to take.
#[derive(Clone, Debug)]
pub struct PushConfig {
    /// The repository.
    pub repository: Repository,
    /// Whose WAL it is.
    pub cluster: ClusterName,
    /// The file.
    pub path: PathBuf,
    /// The data directory, where the current folder and the file's own do not tell.
    pub data_directory: Option<PathBuf>,
    /// What frames are compressed with.
    pub compression: FrameCompression,
    /// Whether segments are read as recovery reads them first.
    pub check: bool,
    /// Files at a time.
    pub jobs: usize,
    /// How many other files are taken along at most.
    pub ahead: usize,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct PushReport {
    /// The file's name.
    pub name: String,
    /// Whether the same was there already.
    pub was_there: bool,
    /// Bytes of the file.
    pub bytes: u64,
    /// Files that were taken along.
    pub along: Vec<String>,
    /// Seconds.
    pub seconds: f64,
}

/// Takes a file, and others with it. `warn` hears of others that could not be taken.
///
/// # Errors
/// Where the file that was asked for is not durable in the repository.
pub fn push(config: &PushConfig, warn: &dyn Fn(&str)) -> Result<PushReport, Failure> {
    let began = Instant::now();
    let wal = LocalWal::open(&config.path, config.data_directory.as_deref())?;
    let (name, bytes) = (wal.name, wal.size);
    if is_there(config, &wal)? {
        let seconds = began.elapsed().as_secs_f64();
        return Ok(PushReport { name: name.to_string(), was_there: true, bytes, along: Vec::new(), seconds });
    }
    config.repository.claim_identity(&config.cluster, wal.system_identifier)?;
    let others = ready(&config.path, name, config.ahead);
    let (next, along, problems) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let notes = Mutex::new(Vec::new());
    let others = &others;
    let work = || {
        while let Some(path) = others.get(next.fetch_add(1, Ordering::Relaxed)) {
            let unnoted = |text: &str| lock(&notes).push(text.to_owned());
            match take_along(config, path, wal.system_identifier, &unnoted) {
                Ok(None) => {}
                Ok(Some(name)) => along.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_string()),
                Err(failure) => problems.lock().unwrap_or_else(PoisonError::into_inner).push(failure),
            }
        }
    };
    let own = thread::scope(|scope| {
        for _ in 1..config.jobs.min(others.len() + 1) {
            scope.spawn(work);
        }
        let own = take(config, &wal, warn);
        if own.is_ok() {
            work();
        } else {
            next.store(others.len(), Ordering::Relaxed);
        }
        own
    });
    for failure in problems.into_inner().unwrap_or_else(PoisonError::into_inner) {
        warn(&format!("not taken along: {failure}"));
    }
    for text in notes.into_inner().unwrap_or_else(PoisonError::into_inner) {
        warn(&text);
    }
    let was_there = own? == WalPublished::Same;
    // A first backup of another system may have taken the name before the first of our WAL was there.
    config.repository.claim_identity(&config.cluster, wal.system_identifier)?;
    let mut along = along.into_inner().unwrap_or_else(PoisonError::into_inner);
    along.sort_unstable();
    let seconds = began.elapsed().as_secs_f64();
    Ok(PushReport { name: name.to_string(), was_there, bytes, along, seconds })
}

/// Whether the same file is in the repository. A name is no proof: the content is read and compared.
fn is_there(config: &PushConfig, wal: &LocalWal) -> Result<bool, Failure> {
    let Some(there) = config.repository.wal_object(&config.cluster, wal.name)? else { return Ok(false) };
    let mut hasher = blake3::Hasher::new();
    read(wal, |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    let hash = hasher.finalize().to_hex();
    there.expect_same(wal.system_identifier, wal.size, &hash)?;
    // Whoever wrote it may have died before its name was durable.
    config.repository.sync_wal_name(&config.cluster, wal.name)?;
    Ok(true)
}

fn read(wal: &LocalWal, mut to: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    use std::os::unix::fs::FileExt;
    let (mut piece, mut at) = (vec![0; PIECE], 0);
    while at < wal.size {
        let most = usize::try_from(wal.size - at).map_or(PIECE, |left| left.min(PIECE));
        let filled = wal.file.read_exact_at(&mut piece[..most], at);
        filled.map_err(|error| Failure::disk("read", &wal.path, error))?;
        to(&piece[..most])?;
        at += most as u64;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Publishes a file whose cluster's identity is known to be right, and what it changed. `unnoted` hears where the latter could
/// not be done: the file is archived all the same.
fn take(config: &PushConfig, wal: &LocalWal, unnoted: &dyn Fn(&str)) -> Result<WalPublished, Failure> {
    let owner =
        WalOwner { system_identifier: wal.system_identifier, segment_size: wal.segment_size, source: "push" };
    let PushConfig { repository, cluster, compression, .. } = config;
    let mut object = WalObjectWriter::begin(repository, cluster, wal.name, owner, *compression)?;
    let mut noting = match wal.name {
        WalName::Segment(segment) => Noting::begin(segment, owner),
        _ => None,
    };
    read(wal, |piece| {
        if let Some(Err(error)) = noting.as_mut().map(|noting| noting.push(piece)) {
            // Nobody can say what WAL changed that cannot be read.
            noting = None;
            if config.check {
                return Err(Failure::Target(format!(
                    "\"{}\": {error}\n\
                     HINT: recovery would end at that place, so this is not archived and will be asked for again. Read \
                     the file with pg_waldump and check the server's disk. Once a new base backup is there, \
                     --no-check-wal archives the WAL as it is.",
                    wal.path.display()
                )));
            }
        }
        object.write(piece)
    })?;
    let published = object.publish()?;
    if let Some(Err(failure)) = noting.map(|noting| noting.publish(repository, cluster)) {
        unnoted(&format!("\"{}\" is archived, but not what it changed: {failure}", wal.path.display()));
    }
    Ok(published)
}

/// Takes another file, unless one of its name is there: what it holds is compared when the server asks for it.
fn take_along(
    config: &PushConfig,
    path: &Path,
    system: u64,
    unnoted: &dyn Fn(&str),
) -> Result<Option<WalName>, Failure> {
    let wal = LocalWal::open(path, config.data_directory.as_deref())?;
    if wal.system_identifier != system || config.repository.wal_object(&config.cluster, wal.name)?.is_some() {
        return Ok(None);
    }
    take(config, &wal, unnoted).map(|_| Some(wal.name))
}

/// Files beside `path` that the server has marked as ready, in the order in which it asks for them: histories first
/// (`pgarch_readyXlog`, `pgarch.c`).
fn ready(path: &Path, own: WalName, most: usize) -> Vec<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new(""));
    // Nobody promised that there is such a folder, nor that we may read it.
    let Ok(entries) = fs::read_dir(folder.join("archive_status")) else { return Vec::new() };
    let name = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".ready")?.parse().ok();
    let mut names: Vec<WalName> = entries.filter_map(Result::ok).filter_map(name).collect();
    names.retain(|name| *name != own && !matches!(name, WalName::Part { .. }));
    names.sort_unstable_by_key(|name| (name.segment().is_some(), name.to_string()));
    names.truncate(most);
    names.into_iter().map(|name| folder.join(name.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ready_is_taken_in_the_servers_order() {
        let scratch = tempfile::tempdir().expect("a folder");
        let status = scratch.path().join("archive_status");
        fs::create_dir(&status).expect("made");
        for name in [
            "000000010000000000000003.ready",
            "000000010000000000000002.ready",
            "000000010000000000000001.done",
            "00000002.history.ready",
            "000000010000000000000004.partial.ready",
            "something.ready",
        ] {
            fs::write(status.join(name), b"").expect("written");
        }
        let own = "000000010000000000000002".parse().expect("valid");
        let found = |most| -> Vec<String> {
            let paths = ready(&scratch.path().join("000000010000000000000002"), own, most);
            paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        };
        let expected = ["00000002.history", "000000010000000000000003", "000000010000000000000004.partial"];
        assert_eq!(found(9), expected);
        assert_eq!(found(2), expected[..2]);
        assert!(ready(Path::new("/nowhere/x"), own, 9).is_empty());
    }
}
