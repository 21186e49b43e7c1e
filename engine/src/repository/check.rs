//! Verification of a repository: every frame of every manifest and pack read, unpacked, and compared with its hash.
//!
//! Goes on after what it finds, so that all of it is named. Memory grows by 16 bytes for each pack, and holds
//! the folders of one backup at a time, and hashes of a bounded share of its paths.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded};
use serde::Serialize;

use super::error::RepositoryError;
use super::frame_reader::{FrameAccess, FrameReader};
use super::manifest::Manifest;
use super::names::{BackupId, ClusterName, PackId};
use super::open_packs::OpenPacks;
use super::paths::PathShare;
use super::place::{BackupChoice, Repository};
use super::records::{Extent, FileRecord};
use super::retention::{Lease, Marks, Purpose, leases};
use super::store::Requests;
use super::tree::Tree;
use super::wal_check::{WalFound, check_wal};
use crate::failure::Failure;
use crate::stop::Stop;

/// Frames of one pack that one worker reads at a time.
const JOB: u32 = 64;
/// Bytes that a worker reads ahead.
const AHEAD: usize = 5 << 20;
/// Of more problems than this only the number is kept.
const KEPT: usize = 100;

/// What to verify.
#[derive(Clone, Debug)]
pub struct CheckConfig {
    /// The repository.
    pub repository: Repository,
    /// One cluster; all of them unless said.
    pub cluster: Option<ClusterName>,
    /// Threads that read.
    pub workers: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CheckReport {
    /// Backups whose manifests are whole.
    pub backups: u64,
    /// Packs that they refer to.
    pub packs: u64,
    /// Frames read in them.
    pub frames: u64,
    /// Their bytes as stored.
    pub stored_bytes: u64,
    /// Their bytes unpacked.
    pub bytes: u64,
    /// Objects of WAL that are whole.
    pub wal_files: u64,
    /// Their bytes unpacked.
    pub wal_bytes: u64,
    /// How much is wrong.
    pub problem_count: u64,
    /// The first of it, in words.
    pub problems: Vec<String>,
    /// What to know about the run itself.
    pub warnings: Vec<String>,
    /// Seconds.
    pub seconds: f64,
    /// What was asked of the object store, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
}

/// A backup whose packs are read, and how.
struct Backup {
    manifest: Arc<Manifest>,
    access: FrameAccess,
}

struct Job {
    of: Arc<Backup>,
    pack: u32,
    frames: std::ops::Range<u32>,
}

#[derive(Default)]
struct Found {
    frames: AtomicU64,
    stored: AtomicU64,
    bytes: AtomicU64,
    problems: Mutex<(u64, Vec<String>)>,
}

impl Found {
    /// Notes a problem. A run that is stopped is none.
    fn problem(&self, failure: &Failure) {
        if matches!(failure, Failure::Stopped) {
            return;
        }
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.0 += 1;
        let text = failure.to_string();
        let text = text.split("\nHINT:").next().unwrap_or_default().to_owned();
        if problems.1.len() < KEPT {
            problems.1.push(text);
        }
    }
}

/// Verifies. What is wrong with the repository is in the report.
///
/// # Errors
/// Where the repository cannot be listed, or the run was stopped.
pub fn check(config: &CheckConfig, stop: &Stop<Failure>) -> Result<CheckReport, Failure> {
    let began = Instant::now();
    let store = Arc::clone(config.repository.store());
    stop.on_thrown(move || store.give_up());
    let (found, wal) = (Found::default(), WalFound::default());
    let mut report = CheckReport::default();
    let clusters = match &config.cluster {
        Some(cluster) => vec![cluster.clone()],
        None => config.repository.clusters()?,
    };
    let (jobs, waiting) = bounded(config.workers * 2);
    // Until everything is read.
    let mut held = Vec::new();
    thread::scope(|scope| {
        for _ in 0..config.workers {
            let (waiting, found, stop) = (waiting.clone(), &found, stop.clone());
            scope.spawn(move || {
                let _told = stop.tell_of_panics("a verifying thread");
                work(&waiting, found, &stop);
            });
        }
        drop(waiting);
        let jobs = jobs;
        for cluster in &clusters {
            let backups = hold_all(&config.repository, cluster, &mut held, &mut report.warnings)?;
            for problem in look_around(&config.repository, cluster, &backups)? {
                found.problem(&problem);
            }
            if backups.is_empty() && config.cluster.is_some() {
                let what = format!("cluster \"{cluster}\" has no backup");
                let hint = "see `pgstrata list` for the clusters and backups that there are.";
                let address = config.repository.store().address();
                return Err(RepositoryError::new(address, what, hint).into());
            }
            let mut seen = HashSet::new();
            for backup in backups {
                if stop.is_thrown() {
                    return Err(Failure::Stopped);
                }
                match check_backup(config, cluster, backup, &mut seen, &jobs, &found, stop) {
                    Ok(()) => report.backups += 1,
                    Err(failure) => found.problem(&failure),
                }
            }
            report.packs += seen.len() as u64;
            let problem = |failure: &Failure| found.problem(failure);
            check_wal(&config.repository, cluster, config.workers, &wal, &problem, stop)?;
        }
        Ok(())
    })
    .map_err(|failure: Failure| stop.take_reason().unwrap_or(failure))?;
    if stop.is_thrown() {
        return Err(stop.take_reason().unwrap_or(Failure::Stopped));
    }
    report.frames = found.frames.into_inner();
    report.stored_bytes = found.stored.into_inner();
    report.bytes = found.bytes.into_inner();
    (report.wal_files, report.wal_bytes) = (wal.files.into_inner(), wal.bytes.into_inner());
    (report.problem_count, report.problems) =
        found.problems.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.requests = config.repository.store().requests();
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

/// Takes a lease on all backups of a cluster. Those that are being removed already are left out.
fn hold_all(
    repository: &Repository,
    cluster: &ClusterName,
    held: &mut Vec<Lease>,
    warnings: &mut Vec<String>,
) -> Result<Vec<BackupId>, Failure> {
    let backups = repository.backups(cluster)?;
    let told = RefCell::new(Vec::new());
    let warn = |text: &str| told.borrow_mut().push(text.to_owned());
    held.extend(Lease::try_take(repository, cluster, Purpose::Verify, &backups, &warn)?);
    warnings.append(&mut told.into_inner());
    let marks = Marks::list(repository, cluster)?;
    let there = repository.backups(cluster)?;
    for backup in there.iter().filter(|backup| marks.contains(**backup)) {
        warnings.push(format!(
            "backup {backup} was not verified: it is marked for removal\n\
             HINT: `pgstrata expire` removes it, or the mark, with its next run."
        ));
    }
    let stays = |backup: &BackupId| !marks.contains(*backup) && there.binary_search(backup).is_ok();
    Ok(backups.into_iter().filter(stays).collect())
}

/// Packs of which nobody knows why they are there: neither backups, nor runs under way or known to be dead.
fn unexplained_packs(repository: &Repository, cluster: &ClusterName) -> Result<usize, Failure> {
    // Listed before leases and marks: a run begins with the one and ends with the other.
    let packs = repository.store().list(&cluster.packs())?;
    let leases = leases(repository, cluster)?;
    let marks = Marks::list(repository, cluster)?;
    if !repository.backups(cluster)?.is_empty() {
        return Ok(0);
    }
    let explained = |name: &str| {
        name.parse::<PackId>().is_ok_and(|pack| {
            marks.contains(pack.backup) || leases.iter().any(|lease| lease.protects(pack.backup))
        })
    };
    let mut unexplained: Vec<_> = packs.iter().filter(|pack| !explained(&pack.name)).collect();
    if !unexplained.is_empty() {
        // A run that failed meanwhile took them away, and its lease after them.
        let there = repository.store().list(&cluster.packs())?;
        unexplained.retain(|pack| there.iter().any(|other| other.name == pack.name));
    }
    Ok(unexplained.len())
}

/// What lies about in a cluster and should not, or is missing.
fn look_around(
    repository: &Repository,
    cluster: &ClusterName,
    backups: &[BackupId],
) -> Result<Vec<Failure>, Failure> {
    let strays = repository.strays(cluster)?.into_iter().map(|name| {
        let object = format!("{}/{name}", cluster.backups());
        RepositoryError::damaged(object, "it is no name of a backup").into()
    });
    let mut problems: Vec<Failure> = strays.collect();
    let packs = if backups.is_empty() { unexplained_packs(repository, cluster)? } else { 0 };
    if packs > 0 {
        let what = format!("{packs} packs and no backup: the first backup has failed, or manifests are lost");
        problems.push(RepositoryError::damaged(cluster.packs(), what).into());
    }
    problems.extend(repository.identity(cluster).err());
    Ok(problems)
}

/// Reads a manifest whole, follows every map, and deals out the packs that nobody has read yet.
fn check_backup(
    config: &CheckConfig,
    cluster: &ClusterName,
    backup: BackupId,
    seen: &mut HashSet<PackId>,
    jobs: &Sender<Job>,
    found: &Found,
    stop: &Stop<Failure>,
) -> Result<(), Failure> {
    let manifest = Arc::new(config.repository.backup(cluster, BackupChoice::Id(backup))?);
    let (name, system) = (manifest.object().name(), manifest.summary.system_identifier);
    // Where it cannot be read, that was said already.
    if let Some(owner) = config.repository.identity(cluster).ok().flatten().filter(|owner| *owner != system) {
        let what = format!("it is of system {system}, expected {owner} as the others of this cluster");
        found.problem(&RepositoryError::damaged(name, what).into());
    }
    let access = FrameAccess::choose(&manifest, None, AHEAD * config.workers, config.workers);
    let backup = Arc::new(Backup { manifest: Arc::clone(&manifest), access });
    let mut packs = OpenPacks::of(&manifest);
    let mut bad = HashSet::new();
    for index in (0u32..).take(manifest.packs.len()) {
        let record = &manifest.packs[index as usize];
        if !record.needed {
            continue;
        }
        if let Err(failure) = packs.get(index) {
            bad.insert(index);
            found.problem(&failure);
            continue;
        }
        if !seen.insert(record.id) {
            continue;
        }
        for first in (0..record.frames).step_by(JOB as usize) {
            let frames = first..record.frames.min(first + JOB);
            let job = Job { of: Arc::clone(&backup), pack: index, frames };
            if stop.is_thrown() || jobs.send(job).is_err() {
                return Err(Failure::Stopped);
            }
        }
    }
    let mut tree = Tree::of(&manifest)?;
    let mut paths = PathShare::begin(&manifest, 0);
    manifest.each_file(|file| {
        paths.add(&file.path);
        tree.file(&file.path)?;
        for extent in file.map.iter().filter(|extent| !bad.contains(&extent.pack)) {
            check_extent(&manifest, &mut packs, &file, extent)?;
        }
        Ok(())
    })?;
    tree.finish()?;
    paths.finish(&manifest)?;
    PathShare::check_others(&manifest)
}

/// The frames that an extent names are there and hold as much as it says.
fn check_extent(
    manifest: &Manifest,
    packs: &mut OpenPacks,
    file: &FileRecord,
    extent: &Extent,
) -> Result<(), Failure> {
    let pack = packs.get(extent.pack)?;
    let frames = pack.frames().get(extent.frame as usize..).unwrap_or_default();
    if frames.first().is_some_and(|first| first.plain <= extent.offset) {
        let what = format!(
            "\"{}\" is mapped to byte {} of frame {} of {}, which has fewer",
            file.path.escape_ascii(),
            extent.offset,
            extent.frame,
            pack.name()
        );
        return Err(RepositoryError::damaged(manifest.object().name(), what).into());
    }
    let needed = u64::from(extent.offset) + extent.length(file.size);
    let mut there = 0;
    for frame in frames {
        there += u64::from(frame.plain);
        if there >= needed {
            return Ok(());
        }
    }
    let what = format!(
        "\"{}\" is mapped to {needed} bytes from frame {} of {} on, which has {there}",
        file.path.escape_ascii(),
        extent.frame,
        pack.name()
    );
    Err(RepositoryError::damaged(manifest.object().name(), what).into())
}

/// A worker's jobs, all of one backup: those behind the first are being read.
struct Work {
    of: Arc<Backup>,
    frames: FrameReader,
    jobs: VecDeque<Job>,
}

impl Work {
    fn of(backup: &Arc<Backup>) -> Result<Self, Failure> {
        let frames = FrameReader::of(&backup.manifest, &backup.access)?;
        Ok(Self { of: Arc::clone(backup), frames, jobs: VecDeque::new() })
    }

    fn plan(&mut self, job: Job) {
        for frame in job.frames.clone() {
            self.frames.expect(job.pack, frame);
        }
        self.jobs.push_back(job);
    }
}

fn work(jobs: &Receiver<Job>, found: &Found, stop: &Stop<Failure>) {
    let (mut open, mut other) = (None::<Work>, None);
    let mut plain = Vec::new();
    loop {
        let planned = open.as_ref().map_or(0, |work| work.jobs.len());
        let next = match other.take() {
            Some(job) => Some(job),
            None if planned == 0 => match jobs.recv() {
                Ok(job) => Some(job),
                Err(_) => return,
            },
            // Reads go on into the next job while this one is at work.
            None if planned == 1 => jobs.try_recv().ok(),
            None => None,
        };
        if stop.is_thrown() {
            open = None;
            continue;
        }
        if let Some(job) = next {
            match &mut open {
                Some(work) if Arc::ptr_eq(&work.of, &job.of) => {
                    work.plan(job);
                    continue;
                }
                // First what is there.
                Some(work) if !work.jobs.is_empty() => other = Some(job),
                _ => match Work::of(&job.of) {
                    Ok(work) => {
                        open.insert(work).plan(job);
                        continue;
                    }
                    Err(failure) => {
                        stop.throw(failure);
                        continue;
                    }
                },
            }
        }
        let Some(Work { frames, jobs, .. }) = &mut open else { continue };
        let Some(job) = jobs.pop_front() else { continue };
        check_frames(&job, frames, &mut plain, found);
    }
}

fn check_frames(job: &Job, frames: &mut FrameReader, plain: &mut Vec<u8>, found: &Found) {
    for number in job.frames.clone() {
        let entry = match frames.packs().get(job.pack).and_then(|pack| pack.entry(number).copied()) {
            Ok(entry) => entry,
            Err(failure) => {
                // The others of it have nothing else.
                found.problem(&failure);
                return;
            }
        };
        plain.resize(entry.plain as usize, 0);
        match frames.frame_into(job.pack, number, plain) {
            Ok(()) => {
                found.frames.fetch_add(1, Ordering::Relaxed);
                found.bytes.fetch_add(entry.plain.into(), Ordering::Relaxed);
                found.stored.fetch_add(entry.stored.into(), Ordering::Relaxed);
            }
            Err(failure) => found.problem(&failure),
        }
    }
}

#[cfg(test)]
mod tests;
