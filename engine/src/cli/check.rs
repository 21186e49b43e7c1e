//! `pgstrata check`: what is wrong with a set-up, before a backup finds out.

use std::fmt::Write;

use anyhow::anyhow;
use clap::Args;
use serde_json::json;

use super::connection::ConnectionArgs;
use super::message;
use super::plain::plain;
use super::progress::print_json;
use super::repository::RepositoryArgs;
use super::run_basebackup::told;
use crate::readiness::{Finding, Level, ReadinessConfig, check_readiness};
use crate::repository::ClusterName;

/// Say what is wrong with repository, server and settings before a backup does
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The cluster's name in the repository
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    #[command(flatten)]
    connection: ConnectionArgs,

    /// Show this help, then exit
    #[arg(short = '?', long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl CheckArgs {
    fn resolve(&self) -> anyhow::Result<ReadinessConfig> {
        // A file that cannot be read is a mistake of this command line, not a finding.
        let configuration = self.repository.configuration()?;
        let cluster = self.cluster.as_ref().or(configuration.only_cluster());
        let section = cluster.and_then(|cluster| configuration.cluster(cluster));
        let conninfo =
            section.and_then(|section| section.conninfo.as_ref()).map(|text| text.get_ref().as_str());
        let connection = self.connection.resolve_with(conninfo, message::program_name());
        Ok(ReadinessConfig {
            store: self.repository.store_of(cluster).map_err(|error| told(&error)),
            key: self.repository.secret(cluster)?,
            cluster: cluster.cloned(),
            connection: connection.map_err(|error| told(&error)),
        })
    }
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let config = args.resolve().inspect_err(|error| args.repository.tell_error(error))?;
    let findings = check_readiness(&config);
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    if args.repository.json {
        print_json(&json!({
            "event": "summary", "errors": errors, "warnings": warnings, "findings": findings,
        }));
    } else {
        message::print(plain(&words(&findings)).trim_end());
    }
    if errors > 0 {
        let text = format!("{errors} errors and {warnings} warnings: backups of this set-up fail");
        message::error(&format!("{text}\nHINT: mend what is marked with \"error\", and check again."));
        return Err(anyhow!(text));
    }
    if !args.repository.json {
        message::note(&format!("no errors, {warnings} warnings"));
    }
    Ok(())
}

fn words(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { subject, level, text: found, hint } in findings {
        let word = match level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {word:<8} {subject:<22} {}", found.replace('\n', " "));
        if let Some(hint) = hint {
            let _ = writeln!(text, "  {:<8} {:<22} HINT: {hint}", "", "");
        }
    }
    text
}
