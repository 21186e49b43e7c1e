//! `expire`: removes the backups that no rule keeps, and then what nothing refers to.
//!
//! Every step leaves a repository that holds each kept backup whole, and that the next run goes on from.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::time::UNIX_EPOCH;

use pgstrata_protocol::TimelineId;
use serde::Serialize;

use super::super::codec::FrameDecoder;
use super::super::error::RepositoryError;
use super::super::manifest::Manifest;
use super::super::names::{BackupId, ClusterName};
use super::super::place::{Repository, now as local_now};
use super::condemn::{Mark, Marks, Survey, acquit, mark, survey};
use super::lease::{Lease, LeaseHolder, Purpose, holder, leases};
use super::lineage::leads_to_newest;
use super::pin::{Pin, pins};
use super::rules::{Candidate, Reason, RetentionRules, decide};
use super::sweep::{plan, sweep};
use super::wal::{ExpiredWal, expire_wal};
use crate::failure::Failure;
use crate::stop::Stop;

/// Where a place on a file system keeps what is not published yet.
const STAGING: &str = "staging";

/// What to expire.
#[derive(Clone, Debug)]
pub struct ExpireConfig {
    /// The repository.
    pub repository: Repository,
    /// Clusters and what to keep of each.
    pub clusters: Vec<(ClusterName, RetentionRules)>,
    /// Seconds for which nothing is removed that nothing refers to.
    pub grace: u64,
    /// Say what would be done, and change nothing.
    pub dry_run: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct ExpireReport {
    /// The repository's address.
    pub repository: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// By cluster.
    pub clusters: Vec<Expired>,
    /// What dead runs had staged and is removed.
    pub staged: u64,
}

/// What came of it for one cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Expired {
    /// The cluster's name.
    pub cluster: String,
    /// Backups that stay, the oldest first.
    pub kept: Vec<KeptBackup>,
    /// Backups that are gone.
    pub removed: Vec<RemovedBackup>,
    /// Backups that go as soon as nobody uses them.
    pub waiting: Vec<RemovedBackup>,
    /// Packs that are gone, for these or after dead runs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that nothing needs and that are too young to go.
    pub packs_young: u64,
    /// Packs that nothing needs and that are under the lease of a run.
    pub packs_leased: u64,
    /// Backups under way that stopped renewing their leases: they can never commit.
    pub dead: Vec<String>,
    /// WAL that no backup needs any more.
    pub wal: ExpiredWal,
}

/// A backup that stays.
#[derive(Clone, Debug, Serialize)]
pub struct KeptBackup {
    /// Its id.
    pub backup: String,
    /// Why.
    pub reasons: Vec<Reason>,
}

/// A backup that goes.
#[derive(Clone, Debug, Serialize)]
pub struct RemovedBackup {
    /// Its id.
    pub backup: String,
    /// What it waits for, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

/// Expires.
///
/// # Errors
/// Where something cannot be read: nothing is removed on a guess. Where something cannot be removed.
pub fn expire(config: &ExpireConfig, stop: &Stop<Failure>) -> Result<ExpireReport, Failure> {
    let ExpireConfig { repository, grace, dry_run, .. } = config;
    let mut report = ExpireReport {
        repository: repository.store().address(),
        dry_run: *dry_run,
        clusters: Vec::new(),
        staged: 0,
    };
    for (cluster, rules) in &config.clusters {
        let run = Run { repository, cluster, rules: *rules, grace: *grace, stop };
        let expired = if *dry_run { run.plan() } else { run.expire() };
        report.clusters.push(expired.map_err(|failure| stop.take_reason().unwrap_or(failure))?);
    }
    if !dry_run {
        report.staged = clear_staging(repository, *grace)?;
    }
    Ok(report)
}

struct Run<'a> {
    repository: &'a Repository,
    cluster: &'a ClusterName,
    rules: RetentionRules,
    grace: u64,
    stop: &'a Stop<Failure>,
}

/// What the rules say.
struct Decision {
    kept: Vec<KeptBackup>,
    going: Vec<BackupId>,
}

impl Run<'_> {
    fn plan(&self) -> Result<Expired, Failure> {
        let now = local_now();
        let mut alive = leases(self.repository, self.cluster)?;
        alive.retain(|lease| lease.is_alive(now));
        let pins = pins(self.repository, self.cluster)?;
        let decision = self.decide(&pins, now)?;
        let marks = Marks::list(self.repository, self.cluster)?;
        let backups = self.repository.backups(self.cluster)?;
        let mut going: Vec<_> = backups.into_iter().filter(|backup| marks.condemns(*backup)).collect();
        going.extend(decision.going);
        let survey = Survey { now, alive, broken: Vec::new() };
        let (gone, waiting) = part(going, &survey, &pins, now);
        let gone_ids: HashSet<_> = gone.iter().copied().collect();
        let swept = plan(self.repository, self.cluster, &survey.alive, (now, self.grace), &gone_ids)?;
        let wal = expire_wal(self.repository, self.cluster, (now, self.grace), Some(&gone), self.stop)?;
        Ok(self.report(decision.kept, gone, waiting, (swept, wal), &[]))
    }

    fn expire(&self) -> Result<Expired, Failure> {
        let Self { repository, cluster, .. } = self;
        let own = Lease::take(repository, cluster, Purpose::Expire, holder()?, &[], None)?;
        let first = survey(repository, cluster, &own)?;
        let mut broken = first.broken.clone();
        let other =
            |lease: &&LeaseHolder| lease.summary.purpose == Purpose::Expire && lease.holder < own.holder();
        if let Some(other) = first.alive.iter().find(other) {
            let what = format!("{} is under way", other.run());
            let hint = "wait for it. Where that process is gone, its lease ends by itself within 15 minutes.";
            return Err(RepositoryError::new(format!("cluster \"{cluster}\""), what, hint).into());
        }
        let there = repository.backups(cluster)?;
        for dead in Marks::list(repository, cluster)?.dead() {
            if there.binary_search(&dead).is_ok() {
                acquit(repository, cluster, dead)?;
            }
        }
        // The earlier of two clocks: it makes backups younger and lets pins hold longer.
        let now = first.now.min(local_now());
        let decision = self.decide(&pins(repository, cluster)?, now)?;
        let (going, mut waiting) = part(decision.going, &first, &[], now);
        if !going.is_empty() {
            self.check_kept(&decision.kept)?;
        }
        for backup in going {
            mark(repository, cluster, backup, Mark::Condemned)?;
        }
        // Nobody begins to rely on what is marked; who did before is seen now.
        let second = survey(repository, cluster, &own)?;
        broken.extend(second.broken.clone());
        let pins = pins(repository, cluster)?;
        let marks = Marks::list(repository, cluster)?;
        let backups = repository.backups(cluster)?;
        let marked: Vec<_> = backups.into_iter().filter(|backup| marks.condemns(*backup)).collect();
        let (gone, more) = part(marked, &second, &pins, now);
        waiting.extend(more);
        self.go_on()?;
        let names: Vec<_> = gone.iter().map(|backup| cluster.manifest(*backup)).collect();
        repository.store().remove(&names)?;
        if !names.is_empty() {
            // No power cut may bring a manifest back whose packs go now.
            repository.store().sync_folder(&cluster.backups())?;
        }
        let swept = sweep(repository, cluster, &own, self.grace, &mut broken, self.stop)?;
        let wal = expire_wal(repository, cluster, (now, self.grace), None, self.stop)?;
        let there = repository.backups(cluster)?;
        let over = pins.iter().filter(|pin| !pin.holds(now) || there.binary_search(&pin.backup).is_err());
        repository.store().remove(&over.map(|pin| pin.object.clone()).collect::<Vec<_>>())?;
        Ok(self.report(decision.kept, gone, waiting, (swept, wal), &broken))
    }

    /// Reads every frame of the manifests that stay: nothing goes for the sake of one that is damaged.
    fn check_kept(&self, kept: &[KeptBackup]) -> Result<(), Failure> {
        for kept in kept {
            let Ok(backup) = kept.backup.parse() else { continue };
            if let Some((object, _)) = Manifest::open_summary(self.repository, self.cluster, backup)? {
                let mut decoder = FrameDecoder::new().map_err(|error| Failure::Target(error.to_string()))?;
                for (number, _) in (0..).zip(object.frames()) {
                    self.go_on()?;
                    object.frame(number, &mut Vec::new(), &mut decoder)?;
                }
            }
        }
        Ok(())
    }

    fn go_on(&self) -> Result<(), Failure> {
        if self.stop.is_thrown() { Err(Failure::Stopped) } else { Ok(()) }
    }

    /// Reads every manifest's summary, and asks the rules. Backups that are being removed already are not asked about.
    fn decide(&self, pins: &[Pin], now: u64) -> Result<Decision, Failure> {
        let marks = Marks::list(self.repository, self.cluster)?;
        let (mut candidates, mut ends) = (Vec::new(), Vec::new());
        for id in self.repository.backups(self.cluster)? {
            self.go_on()?;
            let Some((_, summary)) = Manifest::open_summary(self.repository, self.cluster, id)? else {
                continue;
            };
            if !marks.condemns(id) {
                let pinned = pins.iter().any(|pin| pin.backup == id && pin.holds(now));
                candidates.push(Candidate { id, ended: summary.ended, pinned, leads: false });
                ends.push(summary.end_lsn.parse().ok().map(|lsn| (TimelineId(summary.end_timeline), lsn)));
            }
        }
        let leading = leads_to_newest(self.repository, self.cluster, &ends)?;
        for (candidate, leads) in candidates.iter_mut().zip(leading) {
            candidate.leads = leads;
        }
        let (mut kept, mut going) = (Vec::new(), Vec::new());
        for (candidate, reasons) in candidates.iter().zip(decide(self.rules, &candidates, now)) {
            if reasons.is_empty() {
                going.push(candidate.id);
            } else {
                kept.push(KeptBackup { backup: candidate.id.to_string(), reasons });
            }
        }
        Ok(Decision { kept, going })
    }

    fn report(
        &self,
        kept: Vec<KeptBackup>,
        gone: Vec<BackupId>,
        waiting: BTreeMap<BackupId, String>,
        (swept, wal): (super::sweep::Swept, ExpiredWal),
        broken: &[LeaseHolder],
    ) -> Expired {
        let gone = gone.into_iter();
        Expired {
            cluster: self.cluster.to_string(),
            kept,
            removed: gone.map(|id| RemovedBackup { backup: id.to_string(), waits_for: None }).collect(),
            waiting: waiting
                .into_iter()
                .map(|(id, why)| RemovedBackup { backup: id.to_string(), waits_for: Some(why) })
                .collect(),
            packs: swept.packs,
            bytes: swept.bytes,
            packs_young: swept.young,
            packs_leased: swept.leased,
            dead: broken.iter().map(LeaseHolder::run).collect(),
            wal,
        }
    }
}

/// Parts backups into those that can go, and those that somebody needs, with whom.
fn part(
    going: Vec<BackupId>,
    survey: &Survey,
    pins: &[Pin],
    now: u64,
) -> (Vec<BackupId>, BTreeMap<BackupId, String>) {
    let (mut gone, mut waiting) = (Vec::new(), BTreeMap::new());
    for backup in going {
        let pinned = pins.iter().any(|pin| pin.backup == backup && pin.holds(now));
        match survey.protector(backup) {
            Some(lease) => drop(waiting.insert(backup, lease.run())),
            None if pinned => drop(waiting.insert(backup, "a pin".into())),
            None => gone.push(backup),
        }
    }
    (gone, waiting)
}

/// Removes what dead runs left in the staging folder, where there is one. While any run is under way nothing is touched:
/// what it stages may be as old as it is.
fn clear_staging(repository: &Repository, grace: u64) -> Result<u64, Failure> {
    let (store, now) = (repository.store(), local_now());
    for cluster in repository.clusters()? {
        // Whose clock is right is not asked: a dead run's lease is removed by the next `expire`.
        if !leases(repository, &cluster)?.is_empty() {
            return Ok(0);
        }
    }
    let staged = store.list(STAGING)?;
    if staged.is_empty() {
        return Ok(0);
    }
    let (folder, mut removed) = (store.staging()?, 0);
    for entry in staged {
        let path = folder.join(&entry.name);
        let gone = match fs::symlink_metadata(&path) {
            Ok(found) => {
                let written = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                if now.saturating_sub(written.map_or(0, |time| time.as_secs())) < grace {
                    continue;
                }
                if found.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
            }
            Err(error) => Err(error),
        };
        match gone {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::disk("remove", path, error)),
        }
    }
    Ok(removed)
}
