//! Runs a combination.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel::Sender;
use pgstrata_protocol::manifest::{Checksum, ChecksumAlgorithm, ManifestFile, ModifiedTime};

use super::chain::Chain;
use super::config::{CombineConfig, CopyMethod, SyncMethod};
use super::jobs::Jobs;
use super::label;
use super::new_manifest::NewManifest;
use super::observer::{CombineObserver, CombineProgress};
use super::report::{CombineLimit, CombineReport, CombineSeconds, CombineWorkerSeconds, Tally, Times};
use super::tablespaces::{self, Tablespace};
use super::walk::Walk;
use super::worker::Worker;
use crate::basebackup::{Claims, Held, PlainEnd, process_usage, sync_file_systems};
use crate::buffer::BufferPool;
use crate::failure::Failure;
use crate::pipeline::{FileWriters, Folder, Layout};
use crate::ring::probe;
use crate::stop::Stop;

/// `PG_DIR_MODE_GROUP` (`common/file_perm.h`): a data directory whose group may read it.
const GROUP_MODE: u32 = 0o750;
const LABEL: &str = "backup_label";

/// What all threads of a run share.
pub(super) struct Run<'a> {
    pub(super) config: &'a CombineConfig,
    pub(super) chain: &'a Chain,
    pub(super) tablespaces: &'a [Tablespace],
    pub(super) observer: &'a dyn CombineObserver,
    pub(super) progress: &'a CombineProgress,
    pub(super) stop: &'a Stop<Failure>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) times: Times,
    pub(super) tally: Tally,
    pub(super) folder_mode: u32,
    pub(super) file_mode: u32,
    /// The new manifest, if there is to be one.
    entries: Option<Sender<ManifestFile>>,
    /// None in a dry run.
    pool: Option<BufferPool>,
}

impl Run<'_> {
    /// Where a file of the output lies, for messages.
    pub(super) fn shown(&self, path: &[u8]) -> PathBuf {
        let below = |tablespace: &Tablespace| {
            let root = format!("pg_tblspc/{}/", tablespace.name);
            Some(tablespace.to.join(super::as_path(path.strip_prefix(root.as_bytes())?)))
        };
        let mapped = self.tablespaces.iter().filter(|tablespace| !tablespace.in_place).find_map(below);
        mapped.unwrap_or_else(|| self.config.output.join(super::as_path(path)))
    }

    /// Buffers for data.
    pub(super) fn pool(&self) -> Result<&BufferPool, Failure> {
        self.pool.as_ref().ok_or(Failure::Stopped)
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }

    /// Adds a file to the new manifest.
    pub(super) fn note(&self, file: ManifestFile) -> Result<(), Failure> {
        match &self.entries {
            None => Ok(()),
            Some(entries) => entries.send(file).map_err(|_| Failure::Stopped),
        }
    }

    fn tell(&self, text: impl FnOnce() -> String) {
        if self.observer.wants_details() {
            self.observer.detail(&text());
        }
    }
}

/// Folders that the output goes to.
struct Taken {
    claims: Claims,
    /// Their paths, and whether they were there before.
    places: Vec<(PathBuf, bool)>,
}

/// Puts a chain of backups together.
///
/// # Errors
/// Where the backups make no chain, a file of theirs is not what it should be, the output cannot be made, and when `stop`
/// is thrown. What was made is removed then.
pub fn combine(
    config: &CombineConfig,
    observer: &dyn CombineObserver,
    progress: &CombineProgress,
    stop: &Stop<Failure>,
) -> Result<CombineReport, Failure> {
    let mut taken = Taken { claims: Claims::new(true), places: Vec::new() };
    match attempt(config, &mut taken, observer, progress, stop) {
        Ok(report) => {
            taken.claims.keep();
            if config.method == CopyMethod::Link {
                observer.warning(
                    "--link mode was used; any modifications to the output directory might destructively modify \
                     input directories",
                );
            }
            Ok(report)
        }
        Err(failure) => {
            let failure = match failure {
                Failure::Stopped => stop.take_reason().unwrap_or(Failure::Stopped),
                failure => failure,
            };
            observer.failed(&failure);
            for (place, was_there) in taken.places.iter().rev() {
                let what = if *was_there { "contents of output directory" } else { "output directory" };
                observer.note(&format!("removing {what} \"{}\"", place.display()));
            }
            for failure in taken.claims.remove() {
                observer.warning(&format!("could not clean up: {failure}"));
            }
            Err(failure)
        }
    }
}

fn attempt(
    config: &CombineConfig,
    taken: &mut Taken,
    observer: &dyn CombineObserver,
    progress: &CombineProgress,
    stop: &Stop<Failure>,
) -> Result<CombineReport, Failure> {
    let began = Instant::now();
    let chain = Chain::examine(config, observer)?;
    let last = chain.last();
    let mode =
        std::fs::metadata(&last.path).map_err(|error| Failure::disk("stat file", &last.path, error))?.mode();
    let (folder_mode, file_mode) =
        if mode & GROUP_MODE == GROUP_MODE { (GROUP_MODE, 0o640) } else { (0o700, 0o600) };
    let tablespaces = tablespaces::scan(&last.path, config, observer)?;
    let outside = tablespaces.iter().filter(|tablespace| !tablespace.in_place);
    let places = || std::iter::once(&config.output).chain(outside.clone().map(|tablespace| &tablespace.to));
    let sources =
        tablespaces.iter().filter(|tablespace| !tablespace.in_place).map(|tablespace| &tablespace.from);
    let inputs: Vec<_> = config.backups.iter().chain(sources).collect();
    for place in places() {
        check_apart(place, &inputs)?;
        claim(config, taken, place, folder_mode, observer)?;
    }
    let mut run = Run {
        config,
        chain: &chain,
        tablespaces: &tablespaces,
        observer,
        progress,
        stop,
        jobs: Jobs::new(config.resources.workers.max(1), stop),
        times: Times::default(),
        tally: Tally::default(),
        folder_mode,
        file_mode,
        entries: None,
        pool: None,
    };
    let mut seconds = CombineSeconds { examine: began.elapsed().as_secs_f64(), ..CombineSeconds::default() };
    let (mut io, mut io_reason) = ("none".to_owned(), "nothing is written".to_owned());
    if config.dry_run {
        run.tell(|| format!("would generate \"{}\"", config.output.join(LABEL).display()));
        put_together(&run, None, None)?;
        seconds.files = began.elapsed().as_secs_f64() - seconds.examine;
        if config.sync.is_some() {
            run.tell(|| format!("would recursively fsync \"{}\"", config.output.display()));
        }
    } else {
        let manifest = match (config.manifest, &last.known) {
            (None, _) => None,
            (Some(_), None) => {
                return Err(Failure::Target(
                    "cannot generate a manifest because no manifest is available for the final input backup\n\
                     HINT: --no-manifest does without."
                        .into(),
                ));
            }
            (Some(_), Some(known)) => {
                let ranges = known.wal_ranges.clone();
                let (manifest, entries) =
                    NewManifest::begin(&config.output, file_mode, chain.system_identifier, ranges, stop)?;
                run.entries = Some(entries);
                Some(manifest)
            }
        };
        write_label(&run)?;
        let report = probe(&config.output, config.resources.io);
        let report = report.map_err(|error| Failure::Target(error.to_string()))?;
        (io, io_reason) = (report.mode.to_string(), report.reason);
        let resources = &config.resources;
        let pool = BufferPool::new(resources.buffers, resources.buffer_size).map_err(|error| {
            Failure::Target(format!(
                "could not allocate buffers: {error}\nHINT: ask for less with --buffers."
            ))
        })?;
        let wake = pool.clone();
        stop.on_thrown(move || wake.close());
        let layout = Layout {
            workers: 0,
            writers: resources.writers,
            stream: None,
            depth: resources.depth,
            mode: report.mode,
            alignment: report.alignment,
            sync: config.sync == Some(SyncMethod::Fsync),
            compression: None,
            packing: None,
            faults: resources.faults.clone(),
        };
        let writers = FileWriters::start(&layout, &pool, stop)?;
        run.pool = Some(pool);
        let base = Folder::open(&config.output)?;
        let made = put_together(&run, Some(&writers), Some(&base));
        seconds.files = began.elapsed().as_secs_f64() - seconds.examine;
        writers.finish();
        run.entries = None;
        let noted = manifest.map_or(Ok(()), NewManifest::finish);
        let mut made = made?;
        noted?;
        if stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        if config.sync.is_some() {
            run.tell(|| format!("recursively fsyncing \"{}\"", config.output.display()));
        }
        if config.sync == Some(SyncMethod::Syncfs) {
            sync_file_systems(places().map(PathBuf::as_path))?;
        }
        // That of a relative path may have no name.
        let named = |path: PathBuf| if path.as_os_str().is_empty() { PathBuf::from(".") } else { path };
        made.extend(taken.claims.parents().into_iter().map(named));
        let end = PlainEnd {
            base: &config.output,
            folders: made,
            recovery: None,
            has_manifest: config.manifest.is_some(),
            held: Held::default(),
            file_mode,
            sync: config.sync.is_some(),
        };
        end.finish()?;
    }
    seconds.total = began.elapsed().as_secs_f64();
    seconds.finish = seconds.total - seconds.files - seconds.examine;
    Ok(report(&run, seconds, io, io_reason))
}

fn report(run: &Run<'_>, seconds: CombineSeconds, io: String, io_reason: String) -> CombineReport {
    let (cpu_seconds, peak_memory) = process_usage();
    let worker_seconds: CombineWorkerSeconds = run.times.seconds();
    let mut report = CombineReport {
        path: run.config.output.clone(),
        dry_run: run.config.dry_run,
        backups: run.chain.backups.len(),
        system_identifier: run.chain.system_identifier.to_string(),
        start_lsn: run.chain.last().start.to_string(),
        whole_files: 0,
        reconstructed_files: 0,
        bytes: 0,
        bytes_read: 0,
        bytes_written: 0,
        bytes_within_kernel: 0,
        bytes_linked: 0,
        bytes_per_second: 0.0,
        cpu_seconds,
        peak_memory,
        workers: run.config.resources.workers.max(1),
        io,
        io_reason,
        limited_by: CombineLimit::judge(&seconds, &worker_seconds),
        worker_seconds,
        seconds,
    };
    run.tally.tell(&mut report);
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = report.bytes as f64 / report.seconds.total.max(f64::MIN_POSITIVE);
    report.bytes_per_second = rate;
    report
}

/// Takes a folder for the output, or looks at it in a dry run.
fn claim(
    config: &CombineConfig,
    taken: &mut Taken,
    place: &Path,
    mode: u32,
    observer: &dyn CombineObserver,
) -> Result<(), Failure> {
    let is_there = place.exists();
    if observer.wants_details() {
        let verb = match (is_there, config.dry_run) {
            (true, _) => "using existing",
            (false, true) => "would create",
            (false, false) => "creating",
        };
        observer.detail(&format!("{verb} directory \"{}\"", place.display()));
    }
    if !config.dry_run {
        taken.claims.claim(place, mode)?;
        taken.places.push((place.to_owned(), is_there));
        return Ok(());
    }
    if is_there {
        let mut entries =
            std::fs::read_dir(place).map_err(|error| Failure::disk("access directory", place, error))?;
        if entries.next().is_some() {
            return Err(Failure::Target(format!(
                "directory \"{}\" exists but is not empty",
                place.display()
            )));
        }
    }
    Ok(())
}

/// Refuses an output within a backup: it would be walked while it is written, and the backup be no longer what it was.
fn check_apart(place: &Path, backups: &[&PathBuf]) -> Result<(), Failure> {
    let real = |path: &Path| {
        let path = std::path::absolute(path).ok()?;
        path.ancestors().find_map(|above| {
            let rest = path.strip_prefix(above).ok()?;
            std::fs::canonicalize(above).ok().map(|real| real.join(rest))
        })
    };
    let place_real = real(place);
    for backup in backups {
        if let (Some(place_real), Some(backup_real)) = (&place_real, real(backup))
            && place_real.starts_with(&backup_real)
        {
            return Err(Failure::Target(format!(
                "output directory \"{}\" lies within the backup \"{}\"\n\
                 HINT: name a folder beside the backups; nothing was changed.",
                place.display(),
                backup.display()
            )));
        }
    }
    Ok(())
}

/// Writes the label of the full backup that this becomes.
fn write_label(run: &Run<'_>) -> Result<(), Failure> {
    let path = run.config.output.join(LABEL);
    run.tell(|| format!("generating \"{}\"", path.display()));
    let content = label::of_full_backup(&run.chain.label);
    let written = OpenOptions::new().write(true).create_new(true).mode(run.file_mode).open(&path).and_then(
        |mut file| {
            file.write_all(&content)?;
            if run.config.sync == Some(SyncMethod::Fsync) { file.sync_all() } else { Ok(()) }
        },
    );
    written.map_err(|error| Failure::disk("write", &path, error))?;
    let checksum = run.config.manifest.filter(|algorithm| *algorithm != ChecksumAlgorithm::None);
    let checksum = checksum.map(|algorithm| {
        let mut sum = Checksum::new(algorithm);
        sum.update(&content);
        (algorithm, sum.finish())
    });
    run.note(ManifestFile {
        path: LABEL.as_bytes().to_vec(),
        size: content.len() as u64,
        modified: ModifiedTime(run.now()),
        checksum,
    })
}

/// Walks the last backup and has its files made. Returns the folders that were made.
fn put_together(
    run: &Run<'_>,
    writers: Option<&FileWriters>,
    base: Option<&Arc<Folder>>,
) -> Result<Vec<PathBuf>, Failure> {
    thread::scope(|scope| {
        for number in 0..run.config.resources.workers.max(1) {
            let files = writers.map(FileWriters::sender);
            let name = format!("combine-{number}");
            let spawned = thread::Builder::new().name(name.clone()).spawn_scoped(scope, move || {
                let _told = run.stop.tell_of_panics("a combining thread");
                Worker::new(run, files).run();
            });
            if let Err(error) = spawned {
                run.stop.throw(Failure::disk("start thread", name, error));
                break;
            }
        }
        let mut walk = Walk::new(run);
        let walked = walk.data_directory(base).and_then(|()| {
            run.tablespaces.iter().try_for_each(|tablespace| walk.tablespace(tablespace, base))?;
            walk.finish()
        });
        run.jobs.dealt_out();
        match walked {
            Ok(()) => Ok(walk.made),
            Err(failure) => {
                if !matches!(failure, Failure::Stopped) {
                    run.stop.throw(failure);
                }
                Err(Failure::Stopped)
            }
        }
    })
    .and_then(|made| if run.stop.is_thrown() { Err(Failure::Stopped) } else { Ok(made) })
}
