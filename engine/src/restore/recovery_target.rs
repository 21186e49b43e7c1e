//! Recovery after a restore: to which target, from which backup, and whether the WAL for it is there.
//!
//! All of it is decided and checked before anything is made. [`RecoveryPlan::prepare`] reads the repository and changes
//! nothing; a dry run may call it as well.

use jiff::Timestamp;
use pgstrata_protocol::names::WalSegmentSize;
use pgstrata_protocol::{Lsn, TimelineId};

use super::inherited::RESET;
use crate::basebackup::{
    RECOVERY_SIGNAL, RecoveryFiles, STANDBY_SIGNAL, config_literal, one_line, recovery_settings,
};
use crate::connect::ConnectionSettings;
use crate::failure::Failure;
use crate::repository::{
    BackupChoice, BackupSummary, ClusterName, Repository, RepositoryError, SegmentName, WalName,
};
use crate::walarchive::{ArchiveIndex, Leg, Reached};

/// Where recovery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// At the end of the WAL that there is.
    Latest,
    /// As soon as the copy is consistent.
    Immediate,
    /// At a time.
    Time(Timestamp),
    /// At a transaction.
    Xid(u64),
    /// At a position.
    Lsn(Lsn),
    /// At a point that `pg_create_restore_point` named.
    Name(String),
}

/// Which timeline recovery follows (`recovery_target_timeline`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetTimeline {
    /// The latest that the archive has.
    Latest,
    /// The backup's own.
    Current,
    /// This one.
    Id(TimelineId),
}

/// What the server does once it is there (`recovery_target_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetAction {
    /// It waits, read-only, until it is told.
    Pause,
    /// It opens for writing.
    Promote,
    /// It stops.
    Shutdown,
}

/// What the restored server is to be.
#[derive(Clone, Debug)]
pub enum RecoveryRole {
    /// One that recovers to a target.
    Recovers {
        /// Where it ends.
        target: RecoveryTarget,
        /// What it does then.
        action: TargetAction,
        /// Whether it ends just before the target.
        exclusive: bool,
    },
    /// A standby, which goes on for ever; of this primary, if it is named.
    Standby {
        /// How it reaches the primary.
        primary: Option<Box<ConnectionSettings>>,
        /// The slot there.
        slot: Option<String>,
    },
}

/// A recovery, fully decided.
#[derive(Clone, Debug)]
pub struct RecoveryPlan {
    /// What the server is to be.
    pub role: RecoveryRole,
    /// Along which timeline.
    pub timeline: TargetTimeline,
    /// What the server runs for WAL: a command line of the shell, with `%f` and `%p`.
    pub restore_command: String,
    /// Whether the backup is to be chosen: the last that ends before the target.
    pub chooses_backup: bool,
}

/// What a plan comes to in a repository.
#[derive(Debug)]
pub struct PreparedRecovery {
    /// The backup to restore.
    pub backup: BackupChoice,
    /// What an operator should know beforehand.
    pub warnings: Vec<String>,
    /// How far recovery comes with the WAL that there is.
    pub reached: Reached,
    pub(crate) files: RecoveryFiles,
}

struct Candidate<'a> {
    summary: &'a BackupSummary,
    choice: BackupChoice,
    end: Lsn,
    path: Vec<Leg>,
}

impl RecoveryPlan {
    /// Chooses the backup and checks that the WAL from it to the target is there.
    ///
    /// # Errors
    /// Where no backup leads to the target, or WAL is missing on the way.
    pub fn prepare(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
        given: BackupChoice,
    ) -> Result<PreparedRecovery, Failure> {
        self.check_lines()?;
        // An interrupted restore goes on with the backup that it began with.
        let summaries = if self.chooses_backup && given == BackupChoice::Latest {
            let mut summaries = Vec::new();
            for id in repository.backups(cluster)? {
                let choice = BackupChoice::Id(id);
                summaries.push((choice, repository.backup(cluster, choice)?.summary));
            }
            summaries
        } else {
            vec![(given, repository.backup(cluster, given)?.summary)]
        };
        let known: Vec<BackupSummary> = summaries.iter().map(|(_, summary)| summary.clone()).collect();
        let index = ArchiveIndex::read(repository, cluster, &known)?;
        let mut refusal = None;
        for (choice, summary) in summaries.iter().rev() {
            match self.candidate(&index, *choice, summary) {
                Ok(candidate) => return self.checked(repository, cluster, &index, &candidate),
                // The oldest backup's reason tells most.
                Err(why) => refusal = Some(why),
            }
        }
        let hint = "see `pgstrata wal check` for the restore windows that there are; nothing was made.";
        let what = refusal.unwrap_or_else(|| "it has no backup".into());
        Err(RepositoryError::new(format!("cluster \"{cluster}\""), what, hint).into())
    }

    /// A setting is a line.
    fn check_lines(&self) -> Result<(), Failure> {
        let command =
            "the command line for WAL, made of this program's path, the repository's and its key's,";
        one_line(command, &self.restore_command)?;
        if let RecoveryRole::Recovers { target: RecoveryTarget::Name(name), .. } = &self.role {
            one_line("the restore point's name", name)?;
        }
        self.files().map(drop)
    }

    /// Whether a backup leads to the target at all.
    fn candidate<'a>(
        &self,
        index: &ArchiveIndex,
        choice: BackupChoice,
        summary: &'a BackupSummary,
    ) -> Result<Candidate<'a>, String> {
        let name = &summary.backup;
        let end: Lsn = summary.end_lsn.parse().map_err(|_| format!("backup {name} has no end position"))?;
        let own = TimelineId(summary.end_timeline);
        let timeline = match self.timeline {
            TargetTimeline::Current => own,
            TargetTimeline::Id(timeline) => timeline,
            TargetTimeline::Latest => index.newest_from(own),
        };
        let path = if timeline == own {
            // Its ancestors are behind it.
            vec![Leg { timeline, end: None }]
        } else {
            let path = index.path(timeline);
            path.ok_or_else(|| format!("there is no history of timeline {timeline} in the archive"))?
        };
        let leg = path.iter().find(|leg| leg.timeline == own);
        if leg.is_none_or(|leg| leg.end.is_some_and(|left| end > left)) {
            return Err(format!(
                "timeline {timeline} does not lead over backup {name}, which ended at {end} on timeline {own}"
            ));
        }
        match &self.role {
            RecoveryRole::Recovers { target: RecoveryTarget::Lsn(target), .. } if *target < end => {
                Err(format!("backup {name} ended at {end}, behind the target {target}"))
            }
            // It ended within that second: a target within it may lie before.
            RecoveryRole::Recovers { target: RecoveryTarget::Time(target), .. }
                if target.as_second() <= i64::try_from(summary.ended).unwrap_or(i64::MAX) =>
            {
                let ended =
                    i64::try_from(summary.ended).ok().and_then(|time| Timestamp::from_second(time).ok());
                let ended = ended.map_or_else(|| "an unknown time".to_owned(), |time| time.to_string());
                Err(format!("backup {name} ended at {ended}, which is not before the target {target}"))
            }
            _ => Ok(Candidate { summary, choice, end, path }),
        }
    }

    fn checked(
        &self,
        repository: &Repository,
        cluster: &ClusterName,
        index: &ArchiveIndex,
        candidate: &Candidate<'_>,
    ) -> Result<PreparedRecovery, Failure> {
        let Candidate { summary, choice, end, path } = candidate;
        let own = TimelineId(summary.end_timeline);
        // A backup has the WAL up to its end in itself; without any, recovery begins with the archive's.
        let from = if summary.wal_bytes > 0 { *end } else { summary.start_lsn.parse().unwrap_or(*end) };
        let missing = |what: String| -> Failure {
            let hint = "recovery would end there. `pgstrata wal check` names every gap; find that WAL, or choose another \
                        target or backup. Nothing was made.";
            RepositoryError::new(format!("cluster \"{cluster}\""), what, hint).into()
        };
        let reached = index.follow(path, own, from);
        let reached = reached.ok_or_else(|| missing(format!("no timeline leads from {from} on")))?;
        let name = &summary.backup;
        let shown = reached.gap.map(|gap| {
            let [first, last] = [gap.first, gap.last].map(|number| index.segment_name(gap.timeline, number));
            format!(
                "the WAL from backup {name} ends at {}: segments {first} to {last} are missing",
                reached.lsn
            )
        });
        if reached.lsn < *end {
            let ends = || format!("the WAL for backup {name} ends at {}, expected up to {end}", reached.lsn);
            return Err(missing(shown.unwrap_or_else(ends)));
        }
        let mut warnings = Vec::new();
        match &self.role {
            RecoveryRole::Recovers { target: RecoveryTarget::Lsn(target), .. } if reached.lsn < *target => {
                let ends = || format!("the WAL in the archive ends at {}", reached.lsn);
                let what = format!("{}, and the target is {target}", shown.unwrap_or_else(ends));
                return Err(missing(what));
            }
            RecoveryRole::Recovers { target: RecoveryTarget::Time(target), .. } => {
                let kept = kept_at(repository, cluster, index, reached)?;
                let before =
                    kept.is_none_or(|kept| i64::try_from(kept).is_ok_and(|kept| kept < target.as_second()));
                match shown {
                    Some(shown) if before => {
                        return Err(missing(format!("{shown}, and the target is {target}")));
                    }
                    _ if before => warnings.push(format!(
                        "the WAL in the archive ends at {} and was kept before {target}; where no transaction in it is \
                         later, the server says that it did not reach the target, and stops",
                        reached.lsn
                    )),
                    _ => {}
                }
            }
            RecoveryRole::Recovers {
                target: RecoveryTarget::Latest | RecoveryTarget::Xid(_) | RecoveryTarget::Name(_),
                ..
            } => match shown {
                Some(shown)
                    if matches!(
                        &self.role,
                        RecoveryRole::Recovers { target: RecoveryTarget::Latest, .. }
                    ) =>
                {
                    return Err(missing(shown));
                }
                Some(shown) => warnings.push(format!("{shown}; a target behind that cannot be reached")),
                None => {}
            },
            RecoveryRole::Recovers { .. } => {}
            RecoveryRole::Standby { primary, .. } => {
                if let Some(shown) = shown.filter(|_| primary.is_none()) {
                    return Err(missing(shown));
                }
            }
        }
        Ok(PreparedRecovery { backup: *choice, warnings, reached, files: self.files()? })
    }

    /// The settings. Those of an earlier recovery count no more; a target that the copied settings have would be one too many: each is written, the one that counts
    /// behind the others, as each is checked against those before it.
    fn files(&self) -> Result<RecoveryFiles, Failure> {
        let mut text = String::from("# Recovery, written by pgstrata restore\n");
        let mut line = |name: &str, value: &str| text += &format!("{name} = {}\n", config_literal(value));
        line("restore_command", &self.restore_command);
        for name in [
            "recovery_target",
            "recovery_target_name",
            "recovery_target_time",
            "recovery_target_xid",
            "recovery_target_lsn",
        ] {
            line(name, "");
        }
        for (name, value) in RESET {
            line(name, value);
        }
        match self.timeline {
            TargetTimeline::Latest => line("recovery_target_timeline", "latest"),
            TargetTimeline::Current => line("recovery_target_timeline", "current"),
            TargetTimeline::Id(timeline) => line("recovery_target_timeline", &timeline.to_string()),
        }
        match &self.role {
            RecoveryRole::Standby { primary, slot } => {
                if let Some(primary) = primary {
                    text += &recovery_settings(primary, slot.as_deref())?;
                }
                Ok(RecoveryFiles { settings: text, signal: STANDBY_SIGNAL })
            }
            RecoveryRole::Recovers { target, action, exclusive } => {
                line("recovery_target_inclusive", if *exclusive { "off" } else { "on" });
                let action = match action {
                    TargetAction::Pause => "pause",
                    TargetAction::Promote => "promote",
                    TargetAction::Shutdown => "shutdown",
                };
                line("recovery_target_action", action);
                match target {
                    RecoveryTarget::Latest => {}
                    RecoveryTarget::Immediate => line("recovery_target", "immediate"),
                    RecoveryTarget::Time(time) => {
                        // The server's time zone must not matter.
                        line("recovery_target_time", &time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string());
                    }
                    RecoveryTarget::Xid(xid) => line("recovery_target_xid", &xid.to_string()),
                    RecoveryTarget::Lsn(lsn) => line("recovery_target_lsn", &lsn.to_string()),
                    RecoveryTarget::Name(name) => line("recovery_target_name", name),
                }
                Ok(RecoveryFiles { settings: text, signal: RECOVERY_SIGNAL })
            }
        }
    }
}

/// When the last segment that recovery comes to was kept, in seconds since 1970.
fn kept_at(
    repository: &Repository,
    cluster: &ClusterName,
    index: &ArchiveIndex,
    reached: Reached,
) -> Result<Option<u64>, Failure> {
    let size: WalSegmentSize = index.segment_size;
    let number = reached.lsn.0.saturating_sub(1) / size.bytes();
    let segment: SegmentName = match index.segment_name(reached.timeline, number).parse() {
        Ok(segment) => segment,
        Err(_) => return Ok(None),
    };
    if let Some(object) = repository.wal_object(cluster, WalName::Segment(segment))? {
        return Ok(Some(object.summary.created));
    }
    let mut last = None;
    for name in repository.wal_names(&cluster.wal_folder(segment.timeline, segment.high))? {
        if let Ok(name @ WalName::Part { segment: of, .. }) = name.parse()
            && of == segment
            && let Some(object) = repository.wal_object(cluster, name)?
        {
            last = last.max(Some(object.summary.created));
        }
    }
    Ok(last)
}
