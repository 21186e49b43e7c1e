//! `pgstrata expire`: removes backups that no rule keeps, and what nothing refers to.

use std::fmt::Write;

use clap::Args;
use serde_json::json;

use super::age::Age;
use super::configuration::RetentionSection;
use super::message;
use super::plain::plain;
use super::progress::human_bytes;
use super::repository::RepositoryArgs;
use super::signals::throw_on_signal;
use crate::repository::{ClusterName, ExpireConfig, ExpireReport, Reason, expire};
use crate::stop::Stop;

/// Remove the backups of a repository that are not to be kept any more
///
/// A backup stays where any rule keeps it, and the newest one always does. Without a rule all backups stay, and only what
/// dead runs have left is removed, and WAL from before the oldest backup.
#[derive(Debug, Args)]
pub(super) struct ExpireArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// Only this cluster's backups
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// Keep the newest so many
    #[arg(long, value_name = "N")]
    keep: Option<u32>,
    /// Keep those that ended within this age, such as 14d, and the newest that is older
    #[arg(long, value_name = "AGE")]
    keep_for: Option<Age>,
    /// Leave alone what nothing refers to while it is younger than this, 24h unless given
    #[arg(long, value_name = "AGE")]
    grace: Option<Age>,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

impl ExpireArgs {
    fn resolve(&self) -> anyhow::Result<Vec<ExpireConfig>> {
        let repository = self.repository.open_of(self.cluster.as_ref())?;
        let configuration = self.repository.configuration()?;
        let clusters = match &self.cluster {
            Some(cluster) => vec![cluster.clone()],
            None => repository.clusters()?,
        };
        let options = RetentionSection::new(self.keep, self.keep_for, self.grace);
        let mut configs = Vec::new();
        for cluster in clusters {
            let retention = configuration.retention(&cluster, options);
            configs.push(ExpireConfig {
                repository: repository.clone(),
                clusters: vec![(cluster, retention.rules())],
                grace: retention.grace().0,
                dry_run: self.dry_run,
            });
        }
        Ok(configs)
    }
}

/// Does what the arguments ask. Failures are told here, and once. One cluster's failure does not hold up the others.
pub(super) fn run(args: &ExpireArgs) -> anyhow::Result<()> {
    let stop = Stop::new();
    let configs = throw_on_signal(&stop).and_then(|()| args.resolve());
    let configs = configs.inspect_err(|error| args.repository.tell_error(error))?;
    let (mut reports, mut failed) = (Vec::new(), None);
    for config in &configs {
        match expire(config, &stop) {
            Ok(report) => reports.push(report),
            Err(failure) => {
                let error = failure.into();
                args.repository.tell_error(&error);
                failed = Some(error);
            }
        }
        if stop.is_thrown() {
            break;
        }
    }
    let clusters: Vec<_> = reports.iter().flat_map(|report| &report.clusters).collect();
    let staged: u64 = reports.iter().map(|report| report.staged).sum();
    let summary = json!({ "dry_run": args.dry_run, "clusters": clusters, "staged": staged });
    args.repository.tell(Ok(summary), |_| {
        message::note(if args.dry_run { "nothing was changed" } else { "expired" });
        message::print(plain(&words(&reports, args.dry_run, staged)).trim_end());
        Ok(())
    })?;
    failed.map_or(Ok(()), Err)
}

fn words(reports: &[ExpireReport], dry_run: bool, staged: u64) -> String {
    let mut text = String::new();
    let gone = if dry_run { "would go" } else { "removed" };
    for expired in reports.iter().flat_map(|report| &report.clusters) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "cluster {}", expired.cluster);
        for backup in &expired.removed {
            let _ = writeln!(text, "  {gone:<12} {}", backup.backup);
        }
        for backup in &expired.waiting {
            let waits_for = backup.waits_for.as_deref().unwrap_or_default();
            let _ = writeln!(text, "  {:<12} {} waits for {waits_for}", "goes later", backup.backup);
        }
        for backup in &expired.kept {
            let reasons: Vec<_> = backup.reasons.iter().map(|reason| word(*reason)).collect();
            let _ = writeln!(text, "  {:<12} {}: {}", "kept", backup.backup, reasons.join(", "));
        }
        let _ = write!(text, "  {:<12} {} {gone}, {}", "packs", expired.packs, human_bytes(expired.bytes));
        if expired.packs_young + expired.packs_leased > 0 {
            let (young, leased) = (expired.packs_young, expired.packs_leased);
            let _ = write!(text, "; unneeded and left: {young} too young, {leased} of runs under way");
        }
        text.push('\n');
        if let Some(run) = &expired.wal.waits_for {
            let _ = writeln!(text, "  {:<12} all kept while {run} is under way", "WAL");
        } else if let Some(first) = &expired.wal.kept_from {
            let (files, bytes) = (expired.wal.files, human_bytes(expired.wal.bytes));
            let _ = writeln!(text, "  {:<12} {files} files {gone}, {bytes}; kept from {first} on", "WAL");
        }
        for run in &expired.dead {
            let _ = writeln!(text, "  {:<12} {run} cannot commit any more", "given up");
        }
    }
    if staged > 0 {
        let _ = writeln!(text, "staging        {staged} objects of dead runs removed");
    }
    text
}

fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::Newest => "the newest",
        Reason::Count => "by count",
        Reason::Age => "by age",
        Reason::ReachesBack => "recovery reaches back to the age with it",
        Reason::LeadsToNewestTimeline => "the newest that leads to the newest timeline",
        Reason::Pin => "pinned",
        Reason::NoRule => "no rule says what may go",
    }
}
