//! Gives WAL files back, for restore_command.
//!
//! Recovery takes "there is none" for the end of the log: it opens the database there, and what comes behind is lost
//! without a word. So that answer is given only where the archive was read and has no such file; everything else is an
//! error, which the caller tells by an exit status that stops recovery. Invariants: the target appears whole, by a rename,
//! or not at all; each byte of it was compared with its hash; WAL that is not whole is given only where the server
//! has less of it by itself.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pgstrata_protocol::TimelineId;
use pgstrata_protocol::names::WalSegmentSize;
use serde::Serialize;

use super::caller::Caller;
use super::index::first_size;
use super::parts::{self, Length};
use super::spool::{Known, Spool, write_file};
use super::start::hex;
use super::temporary;
use crate::failure::Failure;
use crate::repository::{
    BackupChoice, ClusterName, Repository, RepositoryError, SegmentName, WalName, WalObject,
};

/// How long to wait before a repository in trouble is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// The folder of fetched segments, beside the target, unless another is named.
const SPOOL: &str = "pgstrata-prefetch";

/// What to give back.
pub struct GetConfig<'a> {
    /// Opens the repository; called again where it is in trouble.
    pub open: &'a (dyn Fn() -> Result<Repository, Failure> + Sync),
    /// The repository's address, which tells spools apart.
    pub address: String,
    /// Whose WAL it is.
    pub cluster: ClusterName,
    /// The file's name, as the server asks for it.
    pub name: String,
    /// Where it goes.
    pub target: PathBuf,
    /// Where segments lie that were fetched before they were asked for.
    pub spool: Option<PathBuf>,
    /// How many segments behind the one that was asked for are fetched with it.
    pub ahead: usize,
    /// Segments at a time.
    pub jobs: usize,
    /// How long trouble with the repository is borne.
    pub patience: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Got {
    /// It had been fetched before.
    Spooled,
    /// It was fetched.
    Fetched,
    /// A segment that is not whole was fetched as far as there is something of it.
    Remnant,
    /// There is none.
    Absent,
}

/// Gives a file back.
///
/// # Errors
/// Where it is not known that there is none, and it could not be given back: recovery must not go on.
pub fn get(config: &GetConfig<'_>) -> Result<Got, Failure> {
    let name: WalName = config.name.parse().map_err(|error| {
        Failure::Target(format!("{error}\nHINT: restore_command passes %f and %p, in this order."))
    })?;
    let caller = Caller::now();
    let folder = folder_of(&config.target);
    temporary::remove_stale(&config.target);
    let spools = config.spool.clone().unwrap_or_else(|| folder.join(SPOOL));
    let known = Known::at(&folder.join(SPOOL), folder, &config.address);
    if let WalName::Segment(segment) = name
        && let Some(id) = known.read()
        && Spool::of(&spools, &id, config.cluster.as_str()).hand_out(segment, &config.target, &caller)?
    {
        return Ok(Got::Spooled);
    }
    let until = Instant::now() + config.patience;
    loop {
        let got = (config.open)().and_then(|repository| {
            let id = repository.id();
            let spool = Spool::of(&spools, &id, config.cluster.as_str());
            // Another repository may have been there when it was noted.
            if let WalName::Segment(segment) = name
                && known.read() != Some(id)
                && spool.hand_out(segment, &config.target, &caller)?
            {
                known.note(id);
                return Ok(Got::Spooled);
            }
            Getting { config, repository, spool: &spool, known: &known, caller: &caller }.get(name)
        });
        match got {
            Err(failure) if Instant::now() >= until || caller.expect_alive().is_err() => return Err(failure),
            Err(_) => thread::sleep(AGAIN.min(until.saturating_duration_since(Instant::now()))),
            got => return got,
        }
    }
}

fn folder_of(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What the server has of a segment by itself.
#[derive(Default)]
struct Here {
    /// Bytes up to the end of the last whole record.
    end: u64,
    /// Whether nothing is missing behind that.
    is_whole: bool,
}

struct Getting<'a> {
    config: &'a GetConfig<'a>,
    repository: Repository,
    spool: &'a Spool,
    known: &'a Known,
    caller: &'a Caller,
}

impl Getting<'_> {
    /// Opens an object, which must be of the cluster's system: the server takes another's pages for the end of its log.
    fn open(&self, name: WalName, system: u64) -> Result<Option<WalObject>, Failure> {
        let found = self.repository.wal_object(&self.config.cluster, name)?;
        match found.as_ref().map(|object| object.summary.system_identifier) {
            Some(other) if other != system => {
                let what = format!("it is WAL of system {other}, expected {system}");
                Err(RepositoryError::damaged(name.object(&self.config.cluster), what).into())
            }
            _ => Ok(found),
        }
    }

    fn get(&self, name: WalName) -> Result<Got, Failure> {
        let cluster = &self.config.cluster;
        // Without it a mistaken name would look like an archive that has nothing more.
        let Some(system) = self.repository.identity(cluster)? else {
            let what = format!("it has no cluster \"{cluster}\"");
            let hint = "check --repo and --cluster in restore_command, and that the repository is mounted.";
            return Err(RepositoryError::new(self.repository.store().address(), what, hint).into());
        };
        match (self.open(name, system)?, name) {
            (Some(object), WalName::Segment(segment)) => {
                self.spool.trim(segment);
                self.fetch_with_others(&object, segment, system)?;
                Ok(Got::Fetched)
            }
            (Some(object), _) => {
                self.deliver(|temporary| write_file(&object, temporary))?;
                Ok(Got::Fetched)
            }
            (None, WalName::Segment(segment)) => self.without(segment, system),
            (None, _) => Ok(Got::Absent),
        }
    }

    /// Has the target written, and shows it whole.
    fn deliver(&self, write: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<(), Failure> {
        let target = &self.config.target;
        let temporary = temporary::beside(target);
        let outcome = write(&temporary).and_then(|()| {
            self.caller.expect_alive()?;
            // The server syncs what it keeps of it (`durable_rename` in `KeepFileRestoredFromArchive`).
            fs::rename(&temporary, target).map_err(|error| Failure::disk("rename", &temporary, error))
        });
        if outcome.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        outcome
    }

    /// Fetches a segment, and those behind it into the spool. What is wrong with these is told when they are asked for.
    fn fetch_with_others(
        &self,
        object: &WalObject,
        segment: SegmentName,
        system: u64,
    ) -> Result<(), Failure> {
        let size = WalSegmentSize::new(object.summary.segment_size);
        let first = size.ok().and_then(|size| Some((size, segment.segment(size)?)));
        let behind = |number: usize| {
            let (size, mut segment) = first?;
            segment.number = segment.number.checked_add(number as u64 + 1)?;
            Some(SegmentName::of(segment, size))
        };
        let (next, end) = (AtomicUsize::new(0), AtomicUsize::new(self.config.ahead));
        let spooled = AtomicBool::new(false);
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end.load(Ordering::Relaxed) {
                    return;
                }
                let Some(segment) = behind(number) else { return };
                if self.spool.has(segment) {
                    continue;
                }
                let object = self.open(WalName::Segment(segment), system);
                let put = object.and_then(|object| {
                    object.map_or(Ok(false), |object| self.spool.put(segment, &object).map(|()| true))
                });
                if matches!(put, Ok(true)) {
                    spooled.store(true, Ordering::Relaxed);
                } else {
                    // Where the archive ends, or is in trouble: nothing behind is of use now.
                    end.fetch_min(number, Ordering::Relaxed);
                }
            }
        };
        let outcome = thread::scope(|scope| {
            for _ in 1..self.config.jobs.min(self.config.ahead + 1) {
                scope.spawn(work);
            }
            let own = self.deliver(|temporary| write_file(object, temporary));
            if own.is_ok() {
                work();
            } else {
                end.store(0, Ordering::Relaxed);
            }
            own
        });
        if spooled.into_inner() {
            self.known.note(self.repository.id());
        }
        outcome
    }

    /// Recovery is at the end of what the archive has.
    fn clear(&self) {
        self.known.clear();
        self.spool.clear();
    }

    /// A segment that the archive has not, or not whole.
    fn without(&self, segment: SegmentName, system: u64) -> Result<Got, Failure> {
        let cluster = &self.config.cluster;
        let names = self.repository.wal_names(&cluster.wal_folder(segment.timeline, segment.high))?;
        let own = folder_of(&self.config.target).join(segment.to_string());
        // The server reads what it has itself where the archive has nothing.
        let here = self.length_here(&own, system, segment)?;
        if !here.is_whole
            && !is_standby(folder_of(&self.config.target))
            && let Some(later) = self.what_is_behind(segment, &names)?
        {
            // It may be under way: files are taken in several at a time.
            let what = format!("segment {segment} is missing, and there is {later} behind it");
            let hint = "recovery would end at that gap and lose what is behind it. `pgstrata wal check` names all gaps; \
                        find the segment, or choose a recovery target before it.";
            return Err(RepositoryError::new(cluster.wal(), what, hint).into());
        }
        let Some((remnant, length)) = parts::longest(&self.repository, cluster, segment, &names)? else {
            self.clear();
            return Ok(Got::Absent);
        };
        // What is whole here is never replaced by less.
        if here.is_whole || length <= here.end {
            self.clear();
            return Ok(Got::Absent);
        }
        self.deliver(|temporary| parts::write(&self.repository, cluster, segment, &remnant, temporary))?;
        Ok(Got::Remnant)
    }

    /// How it is known that there was WAL behind a segment.
    fn what_is_behind(&self, segment: SegmentName, names: &[String]) -> Result<Option<String>, Failure> {
        if let Some(later) = self.first_behind(segment, names)? {
            return Ok(Some(later.to_string()));
        }
        self.left_behind(segment, names)
    }

    /// A history that says that the timeline was left behind a segment: what lies before that was written.
    fn left_behind(&self, segment: SegmentName, names: &[String]) -> Result<Option<String>, Failure> {
        let (repository, cluster) = (&self.repository, &self.config.cluster);
        let mut size = None;
        for name in repository.wal_names(&cluster.wal())? {
            let Ok(WalName::History(timeline)) = name.parse() else { continue };
            if timeline <= segment.timeline {
                continue;
            }
            let history = repository.wal_history(cluster, timeline)?;
            let mut switches = history.iter().flat_map(|history| &history.switches);
            let left = switches.find(|left| left.timeline == segment.timeline);
            let Some(end) = left.map(|left| left.end).filter(|end| end.0 >> 32 >= u64::from(segment.high))
            else {
                continue;
            };
            let size = match size {
                Some(size) => size,
                None => *size.insert(self.segment_size(names)?),
            };
            // The segment in which it was left comes from the newer one.
            if segment.segment(size).is_some_and(|named| named.number < end.0 / size.bytes()) {
                return Ok(Some(format!(
                    "a history ({name}) by which timeline {} went on to {end}",
                    segment.timeline
                )));
            }
        }
        Ok(None)
    }

    /// The size of the cluster's segments: `names` are those of one folder of its archive.
    fn segment_size(&self, names: &[String]) -> Result<WalSegmentSize, Failure> {
        let (repository, cluster) = (&self.repository, &self.config.cluster);
        if let Some(size) = first_size(repository, cluster, names)? {
            return Ok(size);
        }
        for timeline in
            repository.wal_names(&cluster.wal())?.iter().filter_map(|name| hex(name)).map(TimelineId)
        {
            for high in
                repository.wal_names(&cluster.wal_timeline(timeline))?.iter().filter_map(|name| hex(name))
            {
                let names = repository.wal_names(&cluster.wal_folder(timeline, high))?;
                if let Some(size) = first_size(repository, cluster, &names)? {
                    return Ok(size);
                }
            }
        }
        let size = match repository.backups(cluster)?.pop() {
            Some(id) => {
                let summary = repository.backup(cluster, BackupChoice::Id(id))?.summary;
                WalSegmentSize::new(summary.wal_segment_size).ok()
            }
            None => None,
        };
        // Where nothing tells, it is the one that nearly all have.
        Ok(size.unwrap_or(WalSegmentSize::DEFAULT))
    }

    /// The first segment of the timeline behind one of which the archive has anything: there was WAL up to that.
    fn first_behind(&self, segment: SegmentName, names: &[String]) -> Result<Option<SegmentName>, Failure> {
        let first = |names: &[String]| {
            let there = names.iter().filter_map(|name| name.parse::<WalName>().ok()?.segment());
            there.filter(|name| *name > segment).min()
        };
        if let Some(found) = first(names) {
            return Ok(Some(found));
        }
        let (store, cluster) = (&self.repository, &self.config.cluster);
        let mut folders = store.wal_names(&cluster.wal_timeline(segment.timeline))?;
        folders.retain(|folder| u32::from_str_radix(folder, 16).is_ok_and(|high| high > segment.high));
        for folder in folders {
            let high = u32::from_str_radix(&folder, 16).unwrap_or_default();
            if let Some(found) = first(&store.wal_names(&cluster.wal_folder(segment.timeline, high))?) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// How much of a segment the server has in its own folder of WAL. A restored one would take its place, and what a
    /// standby has told its primary to be durable must not be lost by that.
    fn length_here(&self, path: &Path, system: u64, segment: SegmentName) -> Result<Here, Failure> {
        let failed = |error| Failure::disk("read", path, error);
        let mut file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Here::default()),
            opened => opened.map_err(failed)?,
        };
        let Ok(size) = WalSegmentSize::new(file.metadata().map_err(failed)?.len()) else {
            return Ok(Here::default());
        };
        let mut length = Length::of(system, segment, size);
        let mut piece = vec![0; 256 << 10];
        loop {
            match file.read(&mut piece).map_err(failed)? {
                0 => return Ok(Here { end: length.end(), is_whole: length.is_sound() }),
                read => length.push(&piece[..read]),
            }
        }
    }
}

/// Whether the server is a standby: it asks again until it has what it needs, from the archive or from its primary.
fn is_standby(wal: &Path) -> bool {
    // The command runs in the data directory, where the folder of WAL may be a link.
    Path::new("standby.signal").exists() || wal.join("../standby.signal").exists()
}
