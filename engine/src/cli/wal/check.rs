//! `pgstrata wal check`: gaps in a WAL archive, and to where each backup can be recovered.

use std::fmt::Write;

use anyhow::bail;
use clap::Args;

use crate::cli::message;
use crate::cli::repository::{RepositoryArgs, print_lines};
use crate::repository::ClusterName;
use crate::walarchive::{ArchiveReport, check};

/// Name what is missing in a WAL archive, and to where each backup can be recovered
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The cluster's name in the repository
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
}

/// Does what the arguments ask. Failures are told here, and once; the exit status tells of problems.
pub(super) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let outcome = look(args);
    let problems = outcome.as_ref().map_or(0, |report| report.problems.len());
    args.repository.tell(outcome, |report| {
        print_lines(&words(report));
        for problem in &report.problems {
            message::error(problem);
        }
        Ok(())
    })?;
    if problems > 0 {
        bail!("{problems} problems");
    }
    Ok(())
}

fn look(args: &CheckArgs) -> anyhow::Result<ArchiveReport> {
    let cluster = args.repository.cluster(args.cluster.as_ref())?;
    Ok(check(&args.repository.open_of(Some(&cluster))?, &cluster)?)
}

fn words(report: &ArchiveReport) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for timeline in &report.timelines {
        let range = match (&timeline.first, &timeline.last) {
            (Some(first), Some(last)) => format!("{first} to {last}"),
            _ => "none".to_owned(),
        };
        let _ = write!(text, "timeline {:<4} {} segments, {range}", timeline.timeline, timeline.segments);
        if let Some(received) = &timeline.received {
            let _ = write!(text, ", received up to {received}");
        }
        text.push('\n');
    }
    for gap in &report.gaps {
        let note = if gap.harmless { " (before the oldest backup)" } else { "" };
        let _ =
            writeln!(text, "missing       {} to {} on timeline {}{note}", gap.first, gap.last, gap.timeline);
    }
    for window in &report.windows {
        let _ = writeln!(
            text,
            "window        backup {} from {} to {} on timeline {}",
            window.backup, window.from, window.to, window.to_timeline
        );
    }
    text
}
