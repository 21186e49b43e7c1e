//! Verification of a WAL archive: every frame of every object read, unpacked, and compared with its hash.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use pgstrata_protocol::TimelineId;

use super::error::RepositoryError;
use super::names::ClusterName;
use super::place::Repository;
use super::wal_changes::ChangesName;
use super::wal_names::{WalName, hex};
use crate::failure::Failure;
use crate::stop::Stop;

/// What was read.
#[derive(Debug, Default)]
pub(super) struct WalFound {
    /// Objects that are whole.
    pub(super) files: AtomicU64,
    /// Their bytes unpacked.
    pub(super) bytes: AtomicU64,
}

/// Verifies a cluster's WAL with so many threads. `problem` hears of each object that is not whole.
pub(super) fn check_wal(
    repository: &Repository,
    cluster: &ClusterName,
    workers: usize,
    found: &WalFound,
    problem: &(dyn Fn(&Failure) + Sync),
    stop: &Stop<Failure>,
) -> Result<(), Failure> {
    let top = repository.wal_names(&cluster.wal())?;
    let (timelines, files): (Vec<String>, Vec<String>) =
        top.into_iter().partition(|name| hex(name).is_some());
    let check = |folder: &str, names: &[String]| {
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(name) =
                names.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| !stop.is_thrown())
            {
                if let Err(failure) = check_object(repository, cluster, folder, name, found) {
                    problem(&failure);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..workers.min(names.len()) {
                scope.spawn(work);
            }
            work();
        });
    };
    check(&cluster.wal(), &files);
    for timeline in timelines.iter().filter_map(|name| hex(name)).map(TimelineId) {
        let folder = cluster.wal_timeline(timeline);
        let (highs, strays): (Vec<String>, Vec<String>) =
            repository.wal_names(&folder)?.into_iter().partition(|name| hex(name).is_some());
        check(&folder, &strays);
        for high in highs.iter().filter_map(|name| hex(name)) {
            let folder = cluster.wal_folder(timeline, high);
            check(&folder, &repository.wal_names(&folder)?);
        }
    }
    if stop.is_thrown() { Err(Failure::Stopped) } else { Ok(()) }
}

fn check_object(
    repository: &Repository,
    cluster: &ClusterName,
    folder: &str,
    file: &str,
    found: &WalFound,
) -> Result<(), Failure> {
    let object = format!("{folder}/{file}");
    if let Ok(name) = file.parse::<ChangesName>()
        && name.object(cluster) == object
    {
        // What WAL changed can be made of the WAL anew, and is of no use where it is wrong.
        return repository.wal_changes(cluster, name, None).map(drop);
    }
    let name = file.parse().ok().filter(|name: &WalName| name.object(cluster) == object);
    let name = name.ok_or_else(|| RepositoryError::damaged(&object, "it is no name of WAL"))?;
    // Parts go when their segment is whole.
    let Some(object) = repository.wal_object(cluster, name)? else { return Ok(()) };
    object.read(|piece| {
        found.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Ok(())
    })?;
    found.files.fetch_add(1, Ordering::Relaxed);
    Ok(())
}
