//! Leases: a run under way says that it is, and which backups it relies on.
//!
//! A lease is a row of immutable objects, `HOLDER.NNNNNNNN.lease`: renewing publishes the next number. A former one stays
//! for longer than a listing may take, so that nobody who lists meanwhile misses all of them. It lives as long as its newest object is younger than the
//! time to live, by the store's own clock. Ended runs remove theirs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use serde::{Deserialize, Serialize};

use super::super::container::ObjectKind;
use super::super::error::RepositoryError;
use super::super::names::{BackupId, ClusterName, numbered};
use super::super::place::{Repository, now};
use super::condemn::Marks;
use super::note;
use crate::failure::Failure;

/// What the name of a lease's object ends with.
const SUFFIX: &str = ".lease";
/// How long a lease lives that nobody renews.
const TIME_TO_LIVE: Duration = Duration::from_secs(15 * 60);
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(3 * 60);
/// How soon a renewal that failed is tried again.
const RETRY: Duration = Duration::from_secs(20);
/// No object says of itself that it lives longer.
const TIME_TO_LIVE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a former object stays behind the next one.
const OVERLAP: Duration = Duration::from_secs(2 * 60);
/// A listing that takes longer is not believed.
const LISTING_MAX: Duration = Duration::from_secs(60);
/// How often leases are listed again that changed while they were read.
const LISTINGS: usize = 32;

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Takes the backup whose id is the holder's.
    Backup,
    /// Reads backups.
    Restore,
    /// Reads everything.
    Verify,
    /// Removes what is not to be kept.
    Expire,
}

/// What a lease's object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseSummary {
    /// The cluster's name.
    pub cluster: String,
    /// Whose it is: the id of the backup that is taken, or one of the same form.
    pub holder: String,
    /// What the run does.
    pub purpose: Purpose,
    /// Backups that must stay, with every pack that they need or wrote.
    pub holds: Vec<String>,
    /// The system whose backup is taken, in decimal digits.
    pub system_identifier: Option<String>,
    /// Seconds that it lives, at most a day.
    pub time_to_live: u64,
    /// The machine, for the operator.
    pub host: String,
    /// The process there.
    pub pid: u32,
    /// Seconds since 1970 when this object was made.
    pub created: u64,
    /// The program's version that wrote it.
    pub program: String,
    /// What a reader must know.
    pub requires: Vec<String>,
}

/// A lease of this process. Dropped, it is given back.
#[derive(Debug)]
pub struct Lease {
    row: Arc<Row>,
    renewer: Option<(Sender<()>, JoinHandle<()>)>,
}

#[derive(Debug)]
struct Row {
    repository: Repository,
    cluster: ClusterName,
    holder: BackupId,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    summary: LeaseSummary,
    next: u32,
    /// Numbers that are there, or may be, and since when.
    there: Vec<(u32, Duration)>,
}

impl Row {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, number: u32) -> String {
        format!("{}/{}.{number:08x}{SUFFIX}", self.cluster.leases(), self.holder)
    }

    fn publish(&self, state: &mut State) -> Result<(), Failure> {
        let number = state.next;
        // A failed attempt may have left its object.
        state.next += 1;
        state.summary.created = now();
        if !note::publish(&self.repository, ObjectKind::Lease, &self.name(number), &state.summary)? {
            let what = "another run has a lease of this name";
            return Err(RepositoryError::new(self.name(number), what, "try again.").into());
        }
        let since = boot_time();
        state.there.push((number, since));
        // The last of those whose successor has been there for long enough.
        let old = state.there.iter().skip(1).take_while(|(_, at)| *at + OVERLAP < since).count();
        let names: Vec<_> = state.there[..old].iter().map(|(number, _)| self.name(*number)).collect();
        if names.is_empty() {
            return Ok(());
        }
        match self.repository.store().remove(&names) {
            Ok(()) => drop(state.there.drain(..old)),
            Err(failure) => tracing::warn!("could not remove a former lease: {failure}"),
        }
        Ok(())
    }
}

impl Lease {
    /// Takes a lease and keeps it alive. `system` is whose backup is taken.
    ///
    /// # Errors
    /// Where it cannot be published.
    pub fn take(
        repository: &Repository,
        cluster: &ClusterName,
        purpose: Purpose,
        holder: BackupId,
        holds: &[BackupId],
        system: Option<u64>,
    ) -> Result<Self, Failure> {
        let mut lease = Self::take_unrenewed(repository, cluster, purpose, holder, holds, system)?;
        let (end, ended) = bounded(1);
        let row = Arc::clone(&lease.row);
        let run = move || {
            let mut wait = RENEWAL;
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                wait = match row.publish(&mut row.lock()) {
                    Ok(()) => RENEWAL,
                    Err(failure) => {
                        tracing::warn!("could not renew the lease on the repository: {failure}");
                        RETRY
                    }
                };
            }
        };
        let thread = thread::Builder::new().name("lease".into()).spawn(run);
        let thread = thread.map_err(|error| Failure::disk("start thread", "lease", error))?;
        lease.renewer = Some((end, thread));
        Ok(lease)
    }

    /// Takes a lease that lives only as long as its first object.
    pub(super) fn take_unrenewed(
        repository: &Repository,
        cluster: &ClusterName,
        purpose: Purpose,
        holder: BackupId,
        holds: &[BackupId],
        system: Option<u64>,
    ) -> Result<Self, Failure> {
        let summary = LeaseSummary {
            cluster: cluster.to_string(),
            holder: holder.to_string(),
            purpose,
            holds: holds.iter().map(ToString::to_string).collect(),
            system_identifier: system.map(|system| system.to_string()),
            time_to_live: TIME_TO_LIVE.as_secs(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            created: 0,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            requires: Vec::new(),
        };
        let state = Mutex::new(State { summary, next: 0, there: Vec::new() });
        let (repository, cluster) = (repository.clone(), cluster.clone());
        let lease = Self { row: Arc::new(Row { repository, cluster, holder, state }), renewer: None };
        lease.renew()?;
        Ok(lease)
    }

    /// A lease to read backups by. A place that cannot be written to gives none: that is told, and no reason not to read.
    ///
    /// # Errors
    /// Where chance fails.
    pub fn try_take(
        repository: &Repository,
        cluster: &ClusterName,
        purpose: Purpose,
        holds: &[BackupId],
        warn: &dyn Fn(&str),
    ) -> Result<Option<Self>, Failure> {
        match Self::take(repository, cluster, purpose, holder()?, holds, None) {
            Ok(lease) => Ok(Some(lease)),
            Err(failure) => {
                let text = failure.to_string();
                let text = text.split("\nHINT:").next().unwrap_or_default();
                warn(&format!(
                    "reading without a lease: {text}\n\
                     HINT: let no `pgstrata expire` run on this repository until this has ended."
                ));
                Ok(None)
            }
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn holder(&self) -> BackupId {
        self.row.holder
    }

    /// Renews it now.
    ///
    /// # Errors
    /// Where it cannot be published.
    pub fn renew(&self) -> Result<(), Failure> {
        self.row.publish(&mut self.row.lock())
    }

    /// Relies on another backup from now on: its manifest stays, and the packs that it needs or wrote. False where that
    /// is too late, because it is being removed; nothing of it may be used then. What is used of it must be looked for
    /// only after this said yes.
    ///
    /// # Errors
    /// Where the lease cannot be published, or marks cannot be listed.
    pub fn hold(&self, backup: BackupId) -> Result<bool, Failure> {
        self.hold_unless(backup, |marks| marks.contains(backup))
    }

    /// Relies on the packs that a run without a manifest wrote from now on, dead or alive. As [`Self::hold`].
    ///
    /// # Errors
    /// As [`Self::hold`].
    pub fn hold_packs(&self, writer: BackupId) -> Result<bool, Failure> {
        self.hold_unless(writer, |marks| marks.sweeps(writer))
    }

    fn hold_unless(&self, backup: BackupId, too_late: impl Fn(&Marks) -> bool) -> Result<bool, Failure> {
        let Row { repository, cluster, .. } = &*self.row;
        let mut state = self.row.lock();
        state.summary.holds.push(backup.to_string());
        self.row.publish(&mut state)?;
        if !too_late(&Marks::list(repository, cluster)?) {
            return Ok(true);
        }
        state.summary.holds.pop();
        // The one published last still names it, until the next renewal: that keeps too much, never too little.
        Ok(false)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.renewer.take() {
            drop(end);
            // It panics nowhere, and a lease that stays expires.
            let _ = thread.join();
        }
        // Those of attempts that failed may be there as well.
        let names: Vec<_> = {
            let state = self.row.lock();
            let first = state.there.first().map_or(0, |(number, _)| *number);
            (first..state.next).map(|number| self.row.name(number)).collect()
        };
        if let Err(failure) = self.row.repository.store().remove(&names) {
            tracing::warn!("could not remove the lease on the repository: {failure}");
        }
    }
}

/// Time that passes while the machine sleeps, too, and never jumps.
fn boot_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// A name for a run that is no backup.
pub(super) fn holder() -> Result<BackupId, Failure> {
    Ok(BackupId { seconds: now(), random: u32::from_le_bytes(super::super::random()?) })
}

/// A lease that is there, alive or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseHolder {
    /// Whose it is.
    pub holder: BackupId,
    /// When it was renewed last, by the store's clock: seconds since 1970.
    pub renewed: u64,
    /// What it says.
    pub summary: LeaseSummary,
    numbers: Vec<u32>,
}

impl LeaseHolder {
    /// Whether it lives at a time of the store's clock.
    #[must_use]
    pub fn is_alive(&self, now: u64) -> bool {
        // Renewed in the future, by a clock that was set back since: alive.
        now.saturating_sub(self.renewed) < self.summary.time_to_live.min(TIME_TO_LIVE_MAX.as_secs()).max(1)
    }

    /// Whether a backup must stay for it.
    #[must_use]
    pub fn protects(&self, backup: BackupId) -> bool {
        let own = self.summary.purpose == Purpose::Backup && self.holder == backup;
        own || self.summary.holds.contains(&backup.to_string())
    }

    /// The run, in words.
    #[must_use]
    pub fn run(&self) -> String {
        let purpose = match self.summary.purpose {
            Purpose::Backup => "backup",
            Purpose::Restore => "restore",
            Purpose::Verify => "verify",
            Purpose::Expire => "expire",
        };
        let LeaseSummary { host, pid, .. } = &self.summary;
        format!("{purpose} {} (process {pid} on {})", self.holder, host.escape_default())
    }

    /// The names of its objects.
    pub(super) fn names(&self, cluster: &ClusterName) -> Vec<String> {
        let name = |number| format!("{}/{}.{number:08x}{SUFFIX}", cluster.leases(), self.holder);
        self.numbers.iter().map(name).collect()
    }
}

/// Every lease of a cluster, by holder.
pub(in super::super) fn leases(
    repository: &Repository,
    cluster: &ClusterName,
) -> Result<Vec<LeaseHolder>, Failure> {
    for _ in 0..LISTINGS {
        if let Some(found) = leases_once(repository, cluster)? {
            return Ok(found);
        }
    }
    let what = format!("its leases changed {LISTINGS} times while they were read");
    Err(RepositoryError::new(cluster.leases(), what, "try again.").into())
}

/// `None` where one went while it was read: it was renewed, or has ended.
fn leases_once(repository: &Repository, cluster: &ClusterName) -> Result<Option<Vec<LeaseHolder>>, Failure> {
    let mut found: Vec<LeaseHolder> = Vec::new();
    let began = boot_time();
    let listed = repository.store().list(&cluster.leases())?;
    if boot_time() > began + LISTING_MAX {
        return Ok(None);
    }
    // Sorted by name, a holder's highest number comes last; backwards, first.
    for object in listed.iter().rev() {
        let Some((holder, number)) = numbered(&object.name, SUFFIX) else { continue };
        match found.last_mut() {
            Some(last) if last.holder == holder => last.numbers.push(number),
            _ => {
                let name = format!("{}/{}", cluster.leases(), object.name);
                let read = note::read::<LeaseSummary>(repository, ObjectKind::Lease, &name)?;
                let Some(summary) = read else { return Ok(None) };
                let renewed = object.modified;
                found.push(LeaseHolder { holder, renewed, summary, numbers: vec![number] });
            }
        }
    }
    Ok(Some(found))
}
