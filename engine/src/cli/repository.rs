//! What all commands on a repository share: the option that names it, and how their end is told.

use std::num::NonZero;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::message;
use super::plain::plain;
use super::progress::{human_bytes, print_json};
use super::run_basebackup::told;
use crate::repository::{Repository, Requests, Store, open_store};

/// Where the repository is, and how a command's end is told.
#[derive(Debug, Clone, Args)]
pub(super) struct RepositoryArgs {
    /// The repository: a folder, file: and a folder, s3://bucket/prefix, az://container/prefix or gs://bucket/prefix
    #[arg(long, value_name = "REPO")]
    repo: String,
    /// A setting of the object store, such as endpoint, region or timeout; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_option)]
    store_option: Vec<StoreOption>,
    /// Write the outcome to stdout as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl RepositoryArgs {
    /// The place.
    pub(super) fn store(&self) -> anyhow::Result<Arc<dyn Store>> {
        let options: Vec<_> =
            self.store_option.iter().map(|StoreOption { key, value }| (key.clone(), value.clone())).collect();
        Ok(open_store(&self.repo, &options)?)
    }

    /// Opens the repository.
    pub(super) fn open(&self) -> anyhow::Result<Repository> {
        Ok(Repository::open(self.store()?)?)
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
