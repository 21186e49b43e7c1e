//! `pgstrata restore`: a backup out of a repository into an empty folder.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;

use super::basebackup::{IoArg, parse_mapping};
use super::message;
use super::plain::plain;
use super::progress::{human_bytes, human_seconds, print_json};
use super::recovery_target::RecoveryArgs;
use super::repository::{RepositoryArgs, cores, print_lines};
use super::signals::throw_on_signal;
use crate::repository::{BackupChoice, ClusterName};
use crate::restore::{
    DryRunReport, Onto, RestoreConfig, RestoreOptions, RestoreReport, RestoreResources, Space, dry_run,
    run as restore,
};
use crate::stop::Stop;

/// Restore a backup from a repository
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The cluster's name in the repository
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// The backup; unless said the latest, and with a target time or position the last that ends before it
    #[arg(long, value_name = "ID|latest")]
    backup: Option<BackupChoice>,
    /// The data directory to make: an empty folder, or none yet
    #[arg(long, value_name = "DIRECTORY")]
    into: PathBuf,
    /// Restore over an old data directory of the same cluster: what is right there stays, what does not belong goes
    #[arg(long)]
    delta: bool,
    /// Go on with a restore that was interrupted
    #[arg(long, conflicts_with = "delta")]
    resume: bool,
    /// With --delta: also over the data directory of another cluster, which is lost
    #[arg(long, requires = "delta")]
    overwrite_other_cluster: bool,
    /// Look at everything and name all that stands in the way; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Restore only this database and those of initdb; the others are left empty, to be dropped (may be repeated)
    #[arg(long, value_name = "NAME|OID")]
    database: Vec<String>,
    /// Give everything to this user, not to the owners on record
    #[arg(long, value_name = "USER[:GROUP]")]
    owner: Option<String>,
    /// Location for the write-ahead log directory
    #[arg(long, value_name = "WALDIR")]
    waldir: Option<PathBuf>,
    /// Do not clean up after errors
    #[arg(short = 'n', long)]
    no_clean: bool,
    /// Relocate tablespace in OLDDIR to NEWDIR
    #[arg(short = 'T', long, value_name = "OLDDIR=NEWDIR")]
    tablespace_mapping: Vec<OsString>,
    /// Disk back end
    #[arg(long, value_enum, default_value = "auto", help_heading = "Engine options")]
    io: IoArg,
    /// Memory for buffers, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u16).range(4..=16384), help_heading = "Engine options")]
    buffers: u16,
    /// Threads that read and unpack
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Engine options")]
    workers: Option<u16>,
    #[command(flatten)]
    recovery: RecoveryArgs,

    /// Show this help, then exit
    #[arg(short = '?', long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl RestoreArgs {
    fn resolve(&self) -> anyhow::Result<RestoreConfig> {
        let mut resources = RestoreResources::for_cores(cores());
        resources.io = self.io.mode();
        resources.buffers = ((usize::from(self.buffers) << 20) / resources.buffer_size).max(16);
        if let Some(workers) = self.workers {
            resources.workers = usize::from(workers);
        }
        let absolute = |path: &PathBuf| {
            let shown = path.display();
            std::path::absolute(path)
                .map_err(|error| anyhow!("could not make \"{shown}\" an absolute path: {error}"))
        };
        let owner = self.owner.as_deref().map(|owner| match owner.split_once(':') {
            Some((user, group)) => (user.to_owned(), Some(group.to_owned())),
            None => (owner.to_owned(), None),
        });
        let options = RestoreOptions {
            onto: match (self.delta, self.resume) {
                (true, _) => Onto::Old,
                (_, true) => Onto::Interrupted,
                _ => Onto::Empty,
            },
            other_cluster: self.overwrite_other_cluster,
            wal_directory: self.waldir.as_ref().map(absolute).transpose()?,
            databases: self.database.clone(),
            owner,
            clean: !self.no_clean,
        };
        let cluster = self.repository.cluster(self.cluster.as_ref())?;
        let repository = self.repository.open_of(Some(&cluster))?;
        let address = repository.store().address();
        let recovery = self.recovery.resolve(&self.repository, &address, &cluster, self.backup.is_none())?;
        Ok(RestoreConfig {
            target: absolute(&self.into)?,
            options,
            tablespace_mapping: self
                .tablespace_mapping
                .iter()
                .map(parse_mapping)
                .collect::<anyhow::Result<_>>()?,
            repository,
            cluster,
            backup: self.backup.unwrap_or(BackupChoice::Latest),
            recovery,
            resources,
        })
    }
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &RestoreArgs) -> anyhow::Result<()> {
    // Every file and folder is made with the mode that the server's had; nothing is to be taken from that.
    rustix::process::umask(rustix::fs::Mode::empty());
    if args.dry_run {
        return look(args);
    }
    let stop = Stop::new();
    let outcome = throw_on_signal(&stop).and_then(|()| {
        let config = args.resolve()?;
        Ok(restore(&config, &|text| message::warning(text), &stop)?)
    });
    args.repository.tell(outcome, |report: &RestoreReport| {
        let RestoreReport { path, backup, server_version, files, bytes, seconds, .. } = report;
        message::note(&format!("backup {backup} restored"));
        let text = format!(
            "  cluster      {} (PostgreSQL {server_version})\n  data         {} in {files} files\n  \
             recovery     from {} to {} on timeline {}\n  time         {}\n  I/O          {}",
            path.display(),
            human_bytes(*bytes),
            report.start_lsn,
            report.end_lsn,
            report.timeline,
            human_seconds(*seconds),
            report.io
        );
        let text = kept(report).map_or(text.clone(), |kept| format!("{text}\n{kept}"));
        message::print(&plain(&text));
        if let Some(reachable) = &report.reachable_lsn {
            message::print(&format!("  WAL          up to {reachable}"));
        }
        Ok(())
    })
}

/// What a restore over something has used again, removed, and left out.
fn kept(report: &RestoreReport) -> Option<String> {
    let RestoreReport { reused_bytes, removed, omitted_files, .. } = report;
    let mut lines = Vec::new();
    if *reused_bytes > 0 || *removed > 0 {
        lines.push(format!(
            "  kept         {}; {removed} that did not belong removed",
            human_bytes(*reused_bytes)
        ));
    }
    if *omitted_files > 0 {
        lines.push(format!(
            "  left out     {omitted_files} files of other databases, which are to be dropped"
        ));
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Names everything that stands in the way.
fn look(args: &RestoreArgs) -> anyhow::Result<()> {
    let outcome = args.resolve().and_then(|config| Ok(dry_run(&config)?));
    let report = outcome.inspect_err(|error| args.repository.tell_error(error))?;
    if args.repository.json {
        let mut event = serde_json::to_value(&report)?;
        event["event"] = "summary".into();
        event["dry_run"] = true.into();
        print_json(&event);
    } else {
        print_lines(&words(&report));
    }
    for text in &report.warnings {
        message::warning(text);
    }
    if report.problem_count == 0 {
        return Ok(());
    }
    for problem in &report.problems {
        message::error(problem);
    }
    Err(anyhow!("{} things stand in the way of this restore", report.problem_count))
}

fn words(report: &DryRunReport) -> String {
    let DryRunReport { path, backup, server_version, files, bytes, packs, .. } = report;
    let mut text = format!(
        "  cluster      {} (PostgreSQL {server_version})\n  backup       {backup}, {} in {files} files from {packs} packs\n",
        path.display(),
        human_bytes(*bytes)
    );
    for Space { path, needed, used, free } in &report.space {
        text += &format!(
            "  space        {} needed at {}, {} there already, {} free\n",
            human_bytes(*needed),
            path.display(),
            human_bytes(*used),
            human_bytes(*free)
        );
    }
    text
}
