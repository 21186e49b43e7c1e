//! `pgstrata verify`: everything in a repository read and compared with its hashes.

use anyhow::anyhow;
use clap::Args;
use serde_json::json;

use super::message;
use super::plain::plain;
use super::progress::{human_bytes, human_seconds, print_json};
use super::repository::{RepositoryArgs, cores};
use super::signals::throw_on_signal;
use crate::repository::{CheckConfig, CheckReport, ClusterName, check};
use crate::stop::Stop;

/// Verify everything in a repository: manifests, packs, every frame
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// Only this cluster's backups
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// Threads that read and unpack
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let stop = Stop::new();
    let outcome = throw_on_signal(&stop).and_then(|()| {
        let config = CheckConfig {
            repository: args.repository.open_of(args.cluster.as_ref())?,
            cluster: args.cluster.clone(),
            workers: args.workers.map_or(cores(), usize::from),
        };
        Ok(check(&config, &stop)?)
    });
    let report = outcome.inspect_err(|error| args.repository.tell_error(error))?;
    tell(args, &report)
}

fn tell(args: &VerifyArgs, report: &CheckReport) -> anyhow::Result<()> {
    if args.repository.json {
        let mut event = serde_json::to_value(report)?;
        event["event"] = "summary".into();
        print_json(&event);
    }
    let CheckReport {
        backups, packs, frames, stored_bytes, bytes, problem_count, problems, warnings, ..
    } = report;
    for warning in warnings {
        message::warning(warning);
    }
    for problem in problems {
        message::error(problem);
    }
    let more = problem_count.saturating_sub(problems.len() as u64);
    if more > 0 {
        message::error(&format!("and {more} more"));
    }
    if *problem_count > 0 {
        let text = format!(
            "the repository has {problem_count} problems\n\
             HINT: backups that need what is named cannot be restored whole; check the storage and take new backups."
        );
        message::error(&text);
        if args.repository.json {
            print_json(&json!({ "event": "error", "message": text }));
        }
        return Err(anyhow!(text));
    }
    if !args.repository.json {
        message::note("repository verified");
        let text = format!(
            "  backups      {backups}\n  packs        {packs}, {} in {frames} frames, {} unpacked\n  WAL          {} in {} files\n  \
             time         {}",
            human_bytes(*stored_bytes),
            human_bytes(*bytes),
            human_bytes(report.wal_bytes),
            report.wal_files,
            human_seconds(report.seconds)
        );
        message::print(&plain(&text));
    }
    Ok(())
}
