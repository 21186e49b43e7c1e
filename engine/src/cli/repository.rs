//! What all commands on a repository share: the options that name it and its key, and how their end is told.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::configuration::{Configuration, is_secret};
use super::key_options::{KeyOptions, ask, from_files, may_ask};
use super::message;
use super::plain::plain;
use super::progress::{human_bytes, print_json};
use super::run_basebackup::told;
use crate::repository::{ClusterName, KeySource, Repository, Requests, Secret, Store, open_store};

/// Where the repository is, and how a command's end is told.
#[derive(Debug, Clone, Args)]
pub(super) struct RepositoryArgs {
    /// The repository: a folder, file: and a folder, s3://bucket/prefix, az://container/prefix, gs://bucket/prefix, or a
    /// name in the configuration file
    #[arg(long, value_name = "REPO")]
    repo: Option<String>,
    /// A setting of the object store, such as endpoint, region or timeout; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_option)]
    store_option: Vec<StoreOption>,
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
        let section = configuration.repository(self.repo.as_deref(), cluster);
        let configured = section.into_iter().flat_map(|section| &section.options);
        // The last of a name counts.
        let options: Vec<_> = configured
            .map(|(key, value)| (key.clone(), value.get_ref().clone()))
            .chain(self.store_option.iter().map(|StoreOption { key, value }| (key.clone(), value.clone())))
            .collect();
        Ok(open_store(address, &options)?)
    }

    /// The key that is given: by options, else by the environment, else by the configuration file.
    pub(super) fn secret(&self, cluster: Option<&ClusterName>) -> anyhow::Result<Option<Secret>> {
        if let Some(secret) = self.key.secret()? {
            return Ok(Some(secret));
        }
        let configuration = self.configuration()?;
        match configuration.repository(self.repo.as_deref(), cluster) {
            Some(section) => from_files(section.key_file.as_deref(), section.passphrase_file.as_deref()),
            None => Ok(None),
        }
    }

    /// The key that is given; else, where there is somebody to ask, a passphrase.
    pub(super) fn secret_or_ask(&self) -> anyhow::Result<Option<Secret>> {
        match self.secret(None)? {
            None if may_ask() => Ok(Some(ask()?)),
            secret => Ok(secret),
        }
    }

    /// The options with which another run comes to the same repository at `address`. No secret is among them: of keys
    /// only files are named, and of an object store's settings those that nobody needs to hide.
    pub(super) fn words(&self, address: &str, cluster: &ClusterName) -> anyhow::Result<Vec<String>> {
        let configuration = self.configuration()?;
        let section = configuration.repository(self.repo.as_deref(), Some(cluster));
        let mut words = vec!["--repo".into(), address.to_owned()];
        let files = section.map_or([None, None], |section| {
            [section.key_file.as_deref(), section.passphrase_file.as_deref()]
        });
        words.extend(self.key.words(files)?);
        let configured = section.into_iter().flat_map(|section| &section.options);
        let options = configured
            .map(|(key, value)| (key.as_str(), value.get_ref().as_str()))
            .chain(self.store_option.iter().map(|StoreOption { key, value }| (key.as_str(), value.as_str())));
        for (key, value) in options.filter(|(key, _)| !is_secret(key)) {
            words.extend(["--store-option".into(), format!("{key}={value}")]);
        }
        Ok(words)
    }

    /// Opens the repository of a cluster's backups. Asks for a passphrase where one is needed and can be asked for.
    pub(super) fn open_of(&self, cluster: Option<&ClusterName>) -> anyhow::Result<Repository> {
        let secret = self.secret(cluster)?;
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

/// A setting of an object store. Its value may be a secret.
#[derive(Clone)]
pub(super) struct StoreOption {
    key: String,
    value: String,
}

impl std::fmt::Debug for StoreOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=…", self.key)
    }
}

// What clap says of a value that is refused repeats it, so that none is: one without a key has an empty one.
#[expect(clippy::unnecessary_wraps, reason = "clap's signature")]
fn parse_option(text: &str) -> Result<StoreOption, std::convert::Infallible> {
    let (key, value) = text.split_once('=').unwrap_or(("", text));
    Ok(StoreOption { key: key.to_owned(), value: value.to_owned() })
}

/// What was asked of an object store, for people.
pub(super) fn shown_requests(requests: &Requests) -> String {
    let Requests { puts, parts, multipart, gets, lists, deletes, others, failed, bytes_up, bytes_down } =
        requests;
    let mut text = format!(
        "  requests     {puts} puts, {parts} parts in {multipart} multipart requests, {gets} gets, {lists} lists, \
         {deletes} deletes; {} up, {} down",
        human_bytes(*bytes_up),
        human_bytes(*bytes_down)
    );
    if *others > 0 {
        text += &format!("; {others} for credentials");
    }
    if *failed > 0 {
        text += &format!("; {failed} failed and were made again");
    }
    text
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
