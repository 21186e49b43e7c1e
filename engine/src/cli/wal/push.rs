//! `pgstrata wal push`: a WAL file into a repository, for archive_command.
//!
//! Exit status 0 where it is durable, 1 otherwise: the server tries again. It is never above 125, which to the server
//! (`pgarch_archiveXlog`, `pgarch.c`) means that the command could not be run at all.

use std::path::PathBuf;

use clap::Args;

use crate::cli::backup::parse_compression;
use crate::cli::message;
use crate::cli::repository::{RepositoryArgs, cores};
use crate::repository::ClusterName;
use crate::walarchive::{PushConfig, PushReport, push};

/// Files that are taken along for each that is pushed at a time.
const AHEAD: usize = 16;

/// Take a WAL file into a repository: archive_command = 'pgstrata wal push --repo REPO --cluster NAME %p'
#[derive(Debug, Args)]
pub(super) struct PushArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The cluster's name in the repository
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// The file (%p)
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// The data directory, where neither the current folder nor the one above the file is it
    #[arg(short = 'D', long, value_name = "DIRECTORY")]
    pgdata: Option<PathBuf>,
    /// Compress with zstd:LEVEL, lz4 or none
    #[arg(
        short = 'Z',
        long,
        value_name = "METHOD[:LEVEL]",
        default_value = "zstd:1",
        allow_hyphen_values = true
    )]
    compress: String,
    /// Take segments as they are, without reading their records
    #[arg(long)]
    no_check_wal: bool,
    /// Files at a time: others that are ready are taken along
    #[arg(short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &PushArgs) -> anyhow::Result<()> {
    let outcome = attempt(args);
    args.repository.tell(outcome, |_: &PushReport| Ok(()))
}

fn attempt(args: &PushArgs) -> anyhow::Result<PushReport> {
    let jobs = args.jobs.map_or(cores().clamp(1, 8), usize::from);
    let cluster = args.repository.cluster(args.cluster.as_ref())?;
    let config = PushConfig {
        repository: args.repository.open_of(Some(&cluster))?,
        cluster,
        path: args.path.clone(),
        data_directory: args.pgdata.clone(),
        compression: parse_compression(&args.compress)?,
        check: !args.no_check_wal,
        jobs,
        ahead: jobs * AHEAD,
    };
    Ok(push(&config, &|text| message::warning(text))?)
}
