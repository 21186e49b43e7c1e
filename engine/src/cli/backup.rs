//! `pgstrata backup`: a backup into a repository. Options that pg_basebackup has keep their letters.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::{Args, ValueEnum};
use pgstrata_protocol::basebackup::{CompressionRequest, ManifestOptions};
use pgstrata_protocol::manifest::ChecksumAlgorithm;
use serde::Deserialize;

use super::basebackup::{IoArg, parse_max_rate};
use super::connection::ConnectionArgs;
use super::message;
use super::plain::plain;
use super::progress::{human_bytes, print_json};
use super::repository::{RepositoryArgs, cores, shown_requests};
use super::run_basebackup::{Shown, with_password};
use super::summary::summary;
use crate::basebackup::{BaseBackupConfig, Destination, Resources, SlotChoice, SyncMethod, WalMethod};
use crate::repository::{
    ClusterName, FrameCompression, RepositoryDestination, ReuseConfig, ReuseFrom, StoredBackup,
};
use crate::tracking::{ChangeSource, ChangesSummary, ChangesWanted, PassedOver};

/// What frames are compressed with unless something else is said.
const COMPRESS: &str = "zstd:1";

/// Where the data comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Source {
    /// The server's stream
    Stream,
    /// The data directory, read where it lies
    Local,
}

/// What says what changed since an older backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ChangesArg {
    /// The cheapest source that covers what lies between
    Auto,
    /// The server's WAL summaries (17 and newer)
    Server,
    /// The WAL in the repository's archive, and in the server's pg_wal
    Archive,
    /// The LSNs of pages, all of which are read
    Pages,
}

impl ChangesArg {
    fn wanted(self) -> ChangesWanted {
        match self {
            Self::Auto => ChangesWanted::Auto,
            Self::Server => ChangesWanted::Only(ChangeSource::Server),
            Self::Archive => ChangesWanted::Only(ChangeSource::Archive),
            Self::Pages => ChangesWanted::Only(ChangeSource::Pages),
        }
    }
}

/// Take a backup of a running PostgreSQL server into a repository
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
    /// The cluster's name in the repository
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// Where the data comes from: the server's stream, or its data directory on this machine (as with -D)
    #[arg(long, value_enum)]
    source: Option<Source>,
    /// The server's data directory on this machine, to be read by several threads past the page cache
    #[arg(short = 'D', long, value_name = "DIRECTORY")]
    pgdata: Option<PathBuf>,
    /// Compress with zstd:LEVEL, lz4 or none; zstd:1 unless the configuration file says otherwise
    #[arg(short = 'Z', long, value_name = "METHOD[:LEVEL]", allow_hyphen_values = true)]
    compress: Option<String>,
    /// Maximum transfer rate to transfer data directory (in kB/s, or use suffix "k" or "M")
    #[arg(short = 'r', long, value_name = "RATE")]
    max_rate: Option<String>,
    /// Set fast or spread (default) checkpointing
    #[arg(short = 'c', long, value_name = "fast|spread", default_value = "spread", ignore_case = true)]
    #[arg(value_parser = ["fast", "spread"])]
    checkpoint: String,
    /// Set backup label
    #[arg(short = 'l', long, value_name = "LABEL", default_value = "pgstrata backup")]
    label: String,
    /// Use algorithm for manifest checksums
    #[arg(long, value_name = "SHA{224,256,384,512}|CRC32C|NONE", default_value = "CRC32C")]
    manifest_checksums: ChecksumAlgorithm,
    /// Show progress information
    #[arg(short = 'P', long)]
    progress: bool,
    /// Output verbose messages
    #[arg(short = 'v', long)]
    verbose: bool,
    /// Verify page checksums of a stream as they arrive, and not on the server alone
    #[arg(long)]
    check_pages: bool,
    /// Do not verify page checksums, and take a backup of damaged pages too
    #[arg(long)]
    no_verify_checksums: bool,

    /// What to refer to instead of storing it again: the newest backup's packs and those that interrupted backups have left (all), the newest backup's, or nothing
    #[arg(long, value_name = "all|backup|none", default_value = "all")]
    #[arg(value_parser = ["all", "backup", "none"])]
    reuse: String,

    /// Take a full backup: read everything, laid over no earlier backup
    #[arg(long, conflicts_with = "changes")]
    full: bool,
    /// What says which pages changed since the backup that this one is laid over; the cheapest source that can, unless said
    #[arg(long, value_enum)]
    changes: Option<ChangesArg>,

    /// Disk back end
    #[arg(long, value_enum, default_value = "auto", help_heading = "Engine options")]
    io: IoArg,
    /// Memory for buffers, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u16).range(8..=16384), help_heading = "Engine options")]
    buffers: u16,
    /// Memory for finding content that is stored already, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=16384), help_heading = "Engine options")]
    dedup_memory: u16,
    /// Size at which a pack is ended, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Engine options")]
    pack_size: u16,
    /// Threads that verify, hash and compress
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Engine options")]
    workers: Option<u16>,
    /// Seconds of silence, but for the wait for its checkpoint, after which the server counts as lost (0 for never)
    #[arg(long, value_name = "SECS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(..=31_536_000), help_heading = "Engine options")]
    stall_timeout: u64,
    /// Time between status packets sent to server (in seconds)
    #[arg(short = 's', long, value_name = "INTERVAL", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=31_536_000), help_heading = "Connection options")]
    status_interval: u64,
    #[command(flatten)]
    connection: ConnectionArgs,

    /// Show this help, then exit
    #[arg(short = '?', long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl BackupArgs {
    /// The data directory that is to be read, if one is; `configured` is what the configuration file says.
    fn data_directory(&self, configured: Option<PathBuf>) -> anyhow::Result<Option<PathBuf>> {
        match (self.source, self.pgdata.clone()) {
            (Some(Source::Stream), Some(_)) => {
                bail!("--source stream reads no data directory\nHINT: leave --pgdata or --source out.")
            }
            (Some(Source::Stream), None) => Ok(None),
            (source, given) => match given.or(configured) {
                None if source == Some(Source::Local) => bail!(
                    "--source local needs --pgdata\nHINT: name the data directory of the server, on this machine."
                ),
                found => Ok(found),
            },
        }
    }

    /// What the backup is to go by; `configured` is what the configuration file says.
    fn changes(&self, configured: Option<ChangesArg>, is_local: bool) -> anyhow::Result<ChangesWanted> {
        let wanted = match (self.full, self.changes) {
            (true, _) => ChangesWanted::Full,
            (false, Some(given)) => given.wanted(),
            // Everything is stored anew.
            (false, None) if self.reuse == "none" => ChangesWanted::Full,
            // Nobody asked for more.
            (false, None) => configured.map_or(ChangesWanted::Full, ChangesArg::wanted),
        };
        match wanted {
            ChangesWanted::Full | ChangesWanted::Auto => Ok(wanted),
            _ if self.reuse == "none" => bail!(
                "--changes lays a backup over an older one, of which --reuse none uses nothing\nHINT: leave one of them out."
            ),
            // What the file says is meant for backups that can.
            _ if !is_local && self.changes.is_none() => Ok(ChangesWanted::Auto),
            _ if !is_local => bail!(
                "--changes needs a data directory that is read\nHINT: name the server's data directory with --pgdata."
            ),
            _ => Ok(wanted),
        }
    }

    fn resolve(&self) -> anyhow::Result<(BaseBackupConfig, Option<PathBuf>)> {
        let cluster = self.repository.cluster(self.cluster.as_ref())?;
        let configuration = self.repository.configuration()?;
        let section = configuration.cluster(&cluster);
        let data_directory = self.data_directory(section.and_then(|section| section.pgdata.clone()))?;
        let configured = section.and_then(|section| section.compress.as_deref());
        let compression = parse_compression(self.compress.as_deref().or(configured).unwrap_or(COMPRESS))?;
        let conninfo =
            section.and_then(|section| section.conninfo.as_ref()).map(|text| text.get_ref().as_str());
        let mut resources = Resources::for_cores(cores());
        resources.io = self.io.mode();
        resources.buffers = ((usize::from(self.buffers) << 20) / resources.buffer_size).max(16);
        // A lane hashes and compresses here.
        resources.workers = self.workers.map_or(cores().clamp(1, 16), usize::from);
        let destination = RepositoryDestination {
            repository: self.repository.open_of(Some(&cluster))?,
            cluster,
            compression,
            pack_size: u64::from(self.pack_size) << 20,
            reuse: ReuseConfig {
                from: match self.reuse.as_str() {
                    "none" => ReuseFrom::Nothing,
                    "backup" => ReuseFrom::Backup,
                    _ => ReuseFrom::All,
                },
                memory: usize::from(self.dedup_memory) << 20,
            },
            changes: self.changes(section.and_then(|section| section.changes), data_directory.is_some())?,
        };
        let config = BaseBackupConfig {
            connection: self.connection.resolve_with(conninfo, message::program_name())?,
            destination: Destination::Repository(destination),
            incremental: None,
            compression: None,
            wal: WalMethod::Stream(SlotChoice::Temporary),
            label: self.label.clone(),
            fast_checkpoint: self.checkpoint.eq_ignore_ascii_case("fast"),
            max_rate_kb: self.max_rate.as_deref().map(parse_max_rate).transpose()?,
            manifest: Some(ManifestOptions { checksums: Some(self.manifest_checksums), force_encode: false }),
            server_verifies_pages: !self.no_verify_checksums,
            check_pages: self.check_pages,
            estimate_size: true,
            write_recovery_settings: false,
            sync: true,
            sync_method: SyncMethod::Fsync,
            clean: true,
            status_interval: Duration::from_secs(self.status_interval),
            stall_timeout: Duration::from_secs(self.stall_timeout),
            resources,
        };
        Ok((config, data_directory))
    }
}

/// What a backup went by, in words.
fn shown_changes(changes: &ChangesSummary, stored: &StoredBackup) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Some(parent), Some(since)) = (&stored.parent, &changes.since) {
        let bytes = [changes.changed_bytes, changes.kept_bytes, changes.read_bytes].map(human_bytes);
        let [changed, kept, read] = bytes;
        lines.push(format!(
            "  laid over    {parent}, by {} since {since}: {changed} changed in {} files, {kept} kept, {read} read",
            changes.source, changes.changed_files
        ));
        if changes.renewed_bytes > 0 {
            lines.push(format!("  renewed      {} that had not changed", human_bytes(changes.renewed_bytes)));
        }
    } else {
        lines.push("  laid over    nothing: a full backup".to_owned());
    }
    let why = |passed: &PassedOver| format!("  not used     {}: {}", passed.what, passed.why);
    lines.extend(changes.passed_over.iter().map(why));
    lines
}

/// What frames are compressed with.
pub(super) fn parse_compression(text: &str) -> anyhow::Result<FrameCompression> {
    let request = CompressionRequest::parse(text);
    if request.side.is_some() {
        bail!("invalid compression \"{text}\", expected zstd:LEVEL, lz4 or none");
    }
    FrameCompression::from_spec(request.specification()?.as_ref())
        .map_err(|error| anyhow!("invalid compression \"{text}\": {error}"))
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &BackupArgs) -> anyhow::Result<()> {
    let json = args.repository.json;
    let shown = Shown { json, progress: args.progress, verbose: args.verbose };
    let outcome = args
        .resolve()
        .and_then(|(config, data)| with_password(&args.connection, shown, config, data.as_deref()));
    match &outcome {
        Ok(report) if json => {
            let mut event = serde_json::to_value(report)?;
            event["event"] = "summary".into();
            print_json(&event);
        }
        Ok(report) => {
            let stored = report.stored.as_ref();
            message::note(&format!(
                "backup {} completed",
                stored.map(|stored| &*stored.backup).unwrap_or_default()
            ));
            message::print(plain(&summary(report)).trim_end());
            if let Some(stored) = stored {
                let bytes = human_bytes(stored.bytes);
                message::print(&format!("  stored       {bytes} in {} packs", stored.packs));
                for line in stored.changes.iter().flat_map(|changes| shown_changes(changes, stored)) {
                    message::print(plain(&line).trim_end());
                }
                let reused = [
                    (stored.reused_bytes, "the newest backup"),
                    (stored.resumed_bytes, "interrupted backups"),
                ];
                for (bytes, of) in reused.into_iter().filter(|(bytes, _)| *bytes > 0) {
                    message::print(&format!("  reused       {} of {of}", human_bytes(bytes)));
                }
                if let Some(requests) = &stored.requests {
                    message::print(&shown_requests(requests));
                }
            }
        }
        Err(error) => args.repository.tell_error(error),
    }
    outcome.map(drop)
}
