//! Runs `pgstrata basebackup`: asks for a password where one is needed, shows progress, tells the end.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::basebackup::BaseBackupArgs;
use super::connection::{ConnectionArgs, ask};
use super::message;
use super::plain::plain;
use super::progress::{Display, Show, Voice, bar, print_json};
use super::signals::{cause_of, throw_on_signal};
use super::summary::summary;
use crate::basebackup::{
    BaseBackupConfig, LocalBackupConfig, Observer, Progress, Report, run as back_up, run_local,
};
use crate::connect::ConnectError;
use crate::failure::Failure;
use crate::stop::Stop;

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &BaseBackupArgs) -> anyhow::Result<()> {
    // Every file and folder is made with the mode that the server's has; nothing is to be taken from that.
    rustix::process::umask(rustix::fs::Mode::empty());
    let shown = Shown { json: args.json, progress: args.shows_progress(), verbose: args.is_verbose() };
    let outcome = args.resolve().and_then(|config| with_password(&args.connection, shown, config, None));
    match &outcome {
        Ok(report) if args.json => {
            let mut event = serde_json::to_value(report)?;
            event["event"] = "summary".into();
            print_json(&event);
        }
        // The stock tool ends without a word.
        Ok(_) if message::is_stock() && !args.is_verbose() => {}
        Ok(report) => {
            message::note("base backup completed");
            message::print(plain(&summary(report)).trim_end());
        }
        Err(error) => {
            if args.json {
                print_json(&json!({ "event": "error", "message": error.to_string() }));
            }
            message::error(&told(error));
        }
    }
    outcome.map(drop)
}

/// A failure tells its causes itself; other errors have theirs in a chain.
pub(super) fn told(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Failure>() {
        Some(failure) => failure.to_string(),
        None => format!("{error:#}"),
    }
}

/// What of a run is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    pub(super) json: bool,
    pub(super) progress: bool,
    pub(super) verbose: bool,
}

/// Runs, and asks for a password where the server wants one.
pub(super) fn with_password(
    connection: &ConnectionArgs,
    shown: Shown,
    mut config: BaseBackupConfig,
    data_directory: Option<&Path>,
) -> anyhow::Result<Report> {
    let stop = Stop::new();
    throw_on_signal(&stop)?;
    match attempt(shown, &config, data_directory, &stop) {
        Err(Failure::Connect(ConnectError::PasswordRequired { .. })) if connection.may_ask() => {
            config.connection = ask(config.connection).map_err(|error| cause_of(error, &stop))?;
            Ok(attempt(shown, &config, data_directory, &stop)?)
        }
        outcome => Ok(outcome?),
    }
}

/// Runs once. The data comes from a data directory on this machine, where one is given.
fn attempt(
    shown: Shown,
    config: &BaseBackupConfig,
    data_directory: Option<&Path>,
    stop: &Stop<Failure>,
) -> Result<Report, Failure> {
    let Shown { json, progress, verbose } = shown;
    let show = Show::choose(json, progress, message::is_stock());
    let progress = Arc::new(Progress::default());
    let bar = bar(show);
    let observer: Arc<dyn Observer> = Arc::new(Voice { bar: bar.clone(), show, verbose });
    let display = Display::start(show, verbose, Arc::clone(&progress), bar);
    let outcome = match data_directory {
        None => back_up(config, &progress, &observer, stop),
        Some(data_directory) => {
            let (backup, data_directory) = (config.clone(), data_directory.to_owned());
            run_local(&LocalBackupConfig { backup, data_directory }, &progress, &observer, stop)
        }
    };
    drop(display);
    outcome
}
