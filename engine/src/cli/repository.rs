//! What all commands on a repository share: the option that names it, and how their end is told.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::configuration::Configuration;
use super::message;
use super::plain::plain;
use super::progress::print_json;
use super::run_basebackup::told;
use crate::repository::{ClusterName, Repository, Store, parse_address};

/// Where the repository is, and how a command's end is told.
#[derive(Debug, Clone, Args)]
pub(super) struct RepositoryArgs {
    /// The repository: a folder, file: and a folder, or a name in the configuration file
    #[arg(long, value_name = "REPO")]
    repo: Option<String>,
    /// The configuration file, /etc/pgstrata/pgstrata.toml or what PGSTRATA_CONFIG says unless given
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the outcome to stdout as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl RepositoryArgs {
    /// What the configuration file says.
    pub(super) fn configuration(&self) -> anyhow::Result<Configuration> {
        Configuration::load(self.config.as_deref())
    }

    /// The place.
    pub(super) fn store(&self) -> anyhow::Result<Arc<dyn Store>> {
        self.store_of(None)
    }

    /// The place of a cluster's backups.
    pub(super) fn store_of(&self, cluster: Option<&ClusterName>) -> anyhow::Result<Arc<dyn Store>> {
        let configuration = self.configuration()?;
        let address = configuration.address(self.repo.as_deref(), cluster)?;
        let store = parse_address(address).map_err(|error| anyhow!(error))?;
        Ok(Arc::new(store))
    }

    /// Opens the repository of a cluster's backups.
    pub(super) fn open_of(&self, cluster: Option<&ClusterName>) -> anyhow::Result<Repository> {
        Ok(Repository::open(self.store_of(cluster)?)?)
    }

    /// The cluster that is meant: the given one, or the only configured one.
    pub(super) fn cluster(&self, given: Option<&ClusterName>) -> anyhow::Result<ClusterName> {
        if let Some(given) = given {
            return Ok(given.clone());
        }
        let configuration = self.configuration()?;
        configuration.only_cluster().cloned().ok_or_else(|| {
            let count = match configuration.cluster.len() {
                0 => "none is configured".to_owned(),
                count => format!("{count} are configured"),
            };
            anyhow!("no cluster is named, and {count}\nHINT: say which with --cluster NAME.")
        })
    }

    /// Tells the end of a command, once: as JSON, or in `words`.
    pub(super) fn tell<T: Serialize>(
        &self,
        outcome: anyhow::Result<T>,
        words: impl FnOnce(&T) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let told = outcome.and_then(|report| {
            if self.json {
                let mut event = serde_json::to_value(&report)?;
                event["event"] = "summary".into();
                print_json(&event);
                Ok(())
            } else {
                words(&report)
            }
        });
        told.inspect_err(|error| self.tell_error(error))
    }

    /// Tells a failure.
    pub(super) fn tell_error(&self, error: &anyhow::Error) {
        let text = told(error);
        if self.json {
            print_json(&json!({ "event": "error", "message": text }));
        }
        message::error(&text);
    }
}

/// How many cores there are.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Writes lines to stdout, for people.
pub(super) fn print_lines(text: &str) {
    use std::io::Write;
    // A reader that has gone away is no failure.
    let _ = std::io::stdout().write_all(plain(text).as_bytes());
}

/// A time for people.
pub(super) fn shown_time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "unknown".into(), |time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}
