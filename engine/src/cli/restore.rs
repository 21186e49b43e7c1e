//! `pgstrata restore`: a backup out of a repository into an empty folder.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;

use super::basebackup::{IoArg, parse_mapping};
use super::message;
use super::plain::plain;
use super::progress::{human_bytes, human_seconds};
use super::repository::{RepositoryArgs, cores, shown_requests};
use super::signals::throw_on_signal;
use crate::repository::{BackupChoice, ClusterName};
use crate::restore::{RestoreConfig, RestoreReport, RestoreResources, run as restore};
use crate::stop::Stop;

/// Restore a backup from a repository
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The cluster's name in the repository
    #[arg(long, value_name = "NAME")]
    cluster: ClusterName,
    /// The backup
    #[arg(long, value_name = "ID|latest", default_value = "latest")]
    backup: BackupChoice,
    /// The data directory to make: an empty folder, or none yet
    #[arg(long, value_name = "DIRECTORY")]
    into: PathBuf,
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
}

impl RestoreArgs {
    fn resolve(&self) -> anyhow::Result<RestoreConfig> {
        let mut resources = RestoreResources::for_cores(cores());
        resources.io = self.io.mode();
        resources.buffers = ((usize::from(self.buffers) << 20) / resources.buffer_size).max(16);
        if let Some(workers) = self.workers {
            resources.workers = usize::from(workers);
        }
        let shown = self.into.display();
        let target = std::path::absolute(&self.into);
        Ok(RestoreConfig {
            target: target
                .map_err(|error| anyhow!("could not make \"{shown}\" an absolute path: {error}"))?,
            tablespace_mapping: self
                .tablespace_mapping
                .iter()
                .map(parse_mapping)
                .collect::<anyhow::Result<_>>()?,
            repository: self.repository.open()?,
            cluster: self.cluster.clone(),
            backup: self.backup,
            resources,
        })
    }
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &RestoreArgs) -> anyhow::Result<()> {
    // Every file and folder is made with the mode that the server's had; nothing is to be taken from that.
    rustix::process::umask(rustix::fs::Mode::empty());
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
        message::print(&plain(&text));
        if let Some(requests) = &report.requests {
            message::print(&shown_requests(requests));
        }
        Ok(())
    })
}
