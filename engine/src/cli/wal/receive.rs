//! `pgstrata wal receive`: the log of a running server into a repository, as it is written.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use pgstrata_protocol::Lsn;

use crate::cli::backup::parse_compression;
use crate::cli::connection::{ConnectionArgs, ask};
use crate::cli::message;
use crate::cli::progress::print_json;
use crate::cli::receivewal::Voice;
use crate::cli::repository::RepositoryArgs;
use crate::cli::signals::{cause_of, throw_on_signal};
use crate::connect::{ConnectError, ConnectionSettings};
use crate::failure::Failure;
use crate::receivewal::{Action, ReceiveObserver, ReceiveWalConfig, WalStore, run as run_receiver, told};
use crate::repository::ClusterName;
use crate::stop::Stop;

/// Receive the write-ahead log of a running server into a repository
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct ReceiveArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The cluster's name in the repository
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// Replication slot to use
    #[arg(short = 'S', long, value_name = "SLOTNAME")]
    slot: Option<String>,
    /// Create the replication slot, unless it is there
    #[arg(long, requires = "slot")]
    create_slot: bool,
    /// Exit after receiving the specified LSN
    #[arg(short = 'E', long, value_name = "LSN")]
    endpos: Option<Lsn>,
    /// Do not loop on connection lost
    #[arg(short = 'n', long)]
    no_loop: bool,
    /// Seconds for which the end of the log may be here alone before it is durable in the repository (0 for none)
    #[arg(short = 's', long, value_name = "SECS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=86_400))]
    interval: u64,
    /// Compress with zstd:LEVEL, lz4 or none
    #[arg(
        short = 'Z',
        long,
        value_name = "METHOD[:LEVEL]",
        default_value = "zstd:1",
        allow_hyphen_values = true
    )]
    compress: String,
    /// Output verbose messages
    #[arg(short = 'v', long)]
    verbose: bool,
    /// Seconds of silence after which the server counts as lost (0 for never)
    #[arg(long, value_name = "SECS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(..=31_536_000))]
    stall_timeout: u64,
    /// Take what comes without reading it as recovery does
    #[arg(long)]
    no_check_wal: bool,
    #[command(flatten)]
    connection: ConnectionArgs,

    /// Show this help, then exit
    #[arg(short = '?', long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl ReceiveArgs {
    fn resolve(&self) -> anyhow::Result<WalStore> {
        if self.slot.as_deref() == Some("") {
            bail!("the replication slot has no name");
        }
        let cluster = self.repository.cluster(self.cluster.as_ref())?;
        Ok(WalStore {
            repository: self.repository.open_of(Some(&cluster))?,
            cluster,
            compression: parse_compression(&self.compress)?,
            slot: self.slot.clone(),
            end: self.endpos,
            reconnect: !self.no_loop,
            interval: Duration::from_secs(self.interval),
            check: !self.no_check_wal,
        })
    }
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &ReceiveArgs) -> anyhow::Result<()> {
    let outcome = attempt(args);
    match &outcome {
        Ok(()) if args.repository.json => print_json(&serde_json::json!({ "event": "summary" })),
        Ok(()) => {}
        Err(error) => match error.downcast_ref::<Failure>() {
            // The process ends as the signal would have ended it.
            Some(Failure::Signal(_)) => {}
            Some(failure) => args.repository.tell_error(&anyhow::anyhow!(told(failure))),
            None => args.repository.tell_error(error),
        },
    }
    outcome
}

fn attempt(args: &ReceiveArgs) -> anyhow::Result<()> {
    let store = args.resolve()?;
    let stop = Stop::new();
    throw_on_signal(&stop)?;
    let connection = args.connection.resolve(message::program_name())?;
    match receive(args, store.clone(), connection.clone(), &stop) {
        Err(Failure::Connect(ConnectError::PasswordRequired { .. })) if args.connection.may_ask() => {
            let connection = ask(connection).map_err(|error| cause_of(error, &stop))?;
            Ok(receive(args, store, connection, &stop)?)
        }
        outcome => Ok(outcome?),
    }
}

fn receive(
    args: &ReceiveArgs,
    store: WalStore,
    connection: ConnectionSettings,
    stop: &Stop<Failure>,
) -> Result<(), Failure> {
    let observer: Arc<dyn ReceiveObserver> = Arc::new(Voice { verbose: args.verbose });
    let mut config = ReceiveWalConfig {
        connection,
        action: Action::Store(store),
        // The stream looks at its clock as often as the server is told where it is.
        status_interval: Duration::from_secs(args.interval.clamp(1, 10)),
        stall_timeout: Duration::from_secs(args.stall_timeout),
    };
    if let Some(name) = args.slot.clone().filter(|_| args.create_slot) {
        let action = Action::CreateSlot { name, if_not_exists: true };
        let creating = ReceiveWalConfig { action, ..config.clone() };
        run_receiver(&creating, &observer, stop)?;
        config.connection = creating.connection;
    }
    run_receiver(&config, &observer, stop)
}
