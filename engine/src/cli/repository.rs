//! What all commands on a repository share: the options that name it and its key, and how their end is told.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::configuration::Configuration;
use super::key_options::{KeyOptions, ask, may_ask};
use super::message;
use super::plain::plain;
use super::progress::print_json;
use super::run_basebackup::told;
use crate::repository::{ClusterName, KeySource, Repository, Secret, Store, parse_address};

/// Where the repository is, and how a command's end is told.
#[derive(Debug, Clone, Args)]
pub(super) struct RepositoryArgs {
    /// The repository: a folder, file: and a folder, or a name in the configuration file
    #[arg(long, value_name = "REPO")]
    repo: Option<String>,
    /// The configuration file, /etc/pgstrata/pgstrata.toml or what PGSTRATA_CONFIG says unless given
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    key: KeyOptions,
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

    /// The key that is given, if any.
    pub(super) fn secret(&self) -> anyhow::Result<Option<Secret>> {
        self.key.secret()
    }

    /// The key that is given; else, where there is somebody to ask, a passphrase.
    pub(super) fn secret_or_ask(&self) -> anyhow::Result<Option<Secret>> {
        match self.secret()? {
            None if may_ask() => Ok(Some(ask()?)),
            secret => Ok(secret),
        }
    }

    /// The options with which another run comes to the same repository at `address`. No secret is among them: of keys
    /// only files are named.
    pub(super) fn words(&self, address: &str) -> anyhow::Result<Vec<String>> {
        let mut words = vec!["--repo".into(), address.to_owned()];
        words.extend(self.key.words()?);
        Ok(words)
    }

    /// Opens the repository of a cluster's backups. Asks for a passphrase where one is needed and can be asked for.
    pub(super) fn open_of(&self, cluster: Option<&ClusterName>) -> anyhow::Result<Repository> {
        let secret = self.secret()?;
        let key = match &secret {
            Some(secret) => KeySource::Given(secret),
            None if may_ask() => KeySource::Ask(&ask),
            None => KeySource::None,
        };
        Ok(Repository::open_with(self.store_of(cluster)?, key)?)
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
