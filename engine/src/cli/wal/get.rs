//! `pgstrata wal get`: a WAL file out of a repository, for restore_command.
//!
//! Exit status 0 where it is there, 1 where the archive has none, and [`STOPS_RECOVERY`] for everything else: the server
//! (`RestoreArchivedFile`, `xlogarchive.c`; `wait_result_is_any_signal`, `wait_error.c`) takes up to 125 for "there is
//! none", ends recovery there and opens the database; above that, it stops.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::cli::repository::{RepositoryArgs, cores};
use crate::failure::Failure;
use crate::repository::ClusterName;
use crate::walarchive::{GetConfig, Got, get};

/// Above 125, and no shell's word for a signal (128 and its number).
pub(super) const STOPS_RECOVERY: u8 = 200;

/// Give a WAL file back: restore_command = 'pgstrata wal get --repo REPO --cluster NAME %f %p'
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The cluster's name in the repository
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// The file's name (%f)
    #[arg(value_name = "NAME")]
    name: String,
    /// Where it goes (%p)
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Keep segments that are fetched ahead in this folder (pgstrata-prefetch beside PATH unless said)
    #[arg(long, value_name = "DIRECTORY")]
    spool: Option<PathBuf>,
    /// Segments to fetch ahead
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(0..=1024))]
    ahead: u16,
    /// Segments at a time
    #[arg(short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Seconds for which trouble with the repository is borne before recovery is stopped
    #[arg(long, value_name = "SECS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=86_400))]
    wait: u64,
}

#[derive(Serialize)]
struct GetReport {
    name: String,
    got: Got,
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &GetArgs) -> ExitCode {
    stop_recovery_on_panic();
    let outcome = attempt(args).map(|got| GetReport { name: args.name.clone(), got });
    let got = outcome.as_ref().ok().map(|report| report.got);
    // What cannot be told changes nothing.
    let _ = args.repository.tell(outcome, |_| Ok(()));
    match got {
        Some(Got::Absent) => ExitCode::FAILURE,
        Some(Got::Spooled | Got::Fetched | Got::Remnant) => ExitCode::SUCCESS,
        None => ExitCode::from(STOPS_RECOVERY),
    }
}

/// A panic's own status, 101, would end recovery.
fn stop_recovery_on_panic() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        std::process::exit(STOPS_RECOVERY.into());
    }));
}

fn attempt(args: &GetArgs) -> anyhow::Result<Got> {
    let cluster = args.repository.cluster(args.cluster.as_ref())?;
    let store = args.repository.store_of(Some(&cluster))?;
    let config = GetConfig {
        open: &|| {
            args.repository.open_of(Some(&cluster)).map_err(|error| match error.downcast::<Failure>() {
                Ok(failure) => failure,
                Err(error) => Failure::Target(format!("{error:#}")),
            })
        },
        address: store.address(),
        cluster: cluster.clone(),
        name: args.name.clone(),
        target: args.path.clone(),
        spool: args.spool.clone(),
        ahead: args.ahead.into(),
        jobs: args.jobs.map_or(cores().clamp(2, 8), usize::from),
        patience: Duration::from_secs(args.wait),
    };
    Ok(get(&config)?)
}
