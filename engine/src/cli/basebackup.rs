//! `pgstrata basebackup`: pg_basebackup's options, resolved into a checked configuration.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::{Args, ValueEnum};
use pgstrata_protocol::basebackup::{
    CompressionError, CompressionMethod, CompressionRequest, CompressionSide, ManifestOptions,
    ServerCompression,
};
use pgstrata_protocol::manifest::ChecksumAlgorithm;

use super::connection::ConnectionArgs;
use super::int_option::parse_int;
use super::message;
use super::stock::Tool;
use crate::basebackup::{
    BackupCompression, BaseBackupConfig, Destination, Resources, SlotChoice, SyncMethod, WalMethod,
};
use crate::ring::IoMode;

/// Take a base backup of a running PostgreSQL server
#[derive(Debug, Args)]
#[command(disable_help_flag = true, args_override_self = true)]
pub(super) struct BaseBackupArgs {
    /// Receive base backup into directory
    #[arg(short = 'D', long, value_name = "DIRECTORY", help_heading = "Options controlling the output")]
    pgdata: Option<PathBuf>,
    /// Output format (plain (default), tar)
    #[arg(short = 'F', long, value_name = "p|t", help_heading = "Options controlling the output")]
    format: Option<String>,
    /// Take incremental backup
    #[arg(short = 'i', long, value_name = "OLDMANIFEST", help_heading = "Options controlling the output")]
    incremental: Option<PathBuf>,
    /// Maximum transfer rate to transfer data directory (in kB/s, or use suffix "k" or "M")
    #[arg(
        short = 'r',
        long,
        value_name = "RATE",
        allow_hyphen_values = true,
        help_heading = "Options controlling the output"
    )]
    max_rate: Option<String>,
    /// Write configuration for replication
    #[arg(short = 'R', long, help_heading = "Options controlling the output")]
    write_recovery_conf: bool,
    /// Backup target (if other than client)
    #[arg(
        short = 't',
        long,
        value_name = "TARGET[:DETAIL]",
        help_heading = "Options controlling the output"
    )]
    target: Option<String>,
    /// Relocate tablespace in OLDDIR to NEWDIR
    #[arg(short = 'T', long, value_name = "OLDDIR=NEWDIR", help_heading = "Options controlling the output")]
    tablespace_mapping: Vec<OsString>,
    /// Location for the write-ahead log directory
    #[arg(long, value_name = "WALDIR", help_heading = "Options controlling the output")]
    waldir: Option<PathBuf>,
    /// Include required WAL files with specified method (default: stream)
    #[arg(
        short = 'X',
        long,
        value_name = "none|fetch|stream",
        help_heading = "Options controlling the output"
    )]
    wal_method: Option<String>,
    /// Compress tar output
    #[arg(short = 'z', long, overrides_with = "compress", help_heading = "Options controlling the output")]
    gzip: bool,
    /// Compress on client or server as specified
    #[arg(
        short = 'Z',
        long,
        value_name = "[{client|server}-]METHOD[:DETAIL]",
        allow_hyphen_values = true,
        overrides_with = "gzip",
        help_heading = "Options controlling the output"
    )]
    compress: Option<String>,
    /// Receive and verify everything, and keep nothing: what the server and the network can do
    #[arg(long, conflicts_with_all = ["pgdata", "write_recovery_conf", "waldir", "target"], help_heading = "Options controlling the output")]
    discard: bool,

    /// Set fast or spread (default) checkpointing
    #[arg(
        short = 'c',
        long,
        value_name = "fast|spread",
        default_value = "spread",
        help_heading = "General options"
    )]
    checkpoint: String,
    /// Create replication slot
    #[arg(short = 'C', long, help_heading = "General options")]
    create_slot: bool,
    /// Set backup label
    #[arg(
        short = 'l',
        long,
        value_name = "LABEL",
        default_value = "pg_basebackup base backup",
        help_heading = "General options"
    )]
    label: String,
    /// Do not clean up after errors
    #[arg(short = 'n', long, help_heading = "General options")]
    no_clean: bool,
    /// Do not wait for changes to be written safely to disk
    #[arg(short = 'N', long, help_heading = "General options")]
    no_sync: bool,
    /// Show progress information
    #[arg(short = 'P', long, help_heading = "General options")]
    progress: bool,
    /// Replication slot to use
    #[arg(short = 'S', long, value_name = "SLOTNAME", help_heading = "General options")]
    slot: Option<String>,
    /// Prevent creation of temporary replication slot
    #[arg(long, help_heading = "General options")]
    no_slot: bool,
    /// Output verbose messages
    #[arg(short = 'v', long, help_heading = "General options")]
    verbose: bool,
    /// Use algorithm for manifest checksums
    #[arg(long, value_name = "SHA{224,256,384,512}|CRC32C|NONE", help_heading = "General options")]
    manifest_checksums: Option<String>,
    /// Hex encode all file names in manifest
    #[arg(long, help_heading = "General options")]
    manifest_force_encode: bool,
    /// Do not estimate backup size in server
    #[arg(long, help_heading = "General options")]
    no_estimate_size: bool,
    /// Suppress generation of backup manifest
    #[arg(long, help_heading = "General options")]
    no_manifest: bool,
    /// Set method for syncing files to disk (fsync (default), syncfs)
    #[arg(long, value_name = "METHOD", help_heading = "General options")]
    sync_method: Option<String>,
    /// Do not verify checksums
    #[arg(long, help_heading = "General options")]
    no_verify_checksums: bool,
    /// Verify page checksums as they arrive
    #[arg(long, help_heading = "General options")]
    check_pages: bool,

    /// Disk back end
    #[arg(long, value_enum, default_value = "auto", help_heading = "Engine options")]
    io: IoArg,
    /// Memory for buffers, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u16).range(4..=16384), help_heading = "Engine options")]
    buffers: u16,
    /// Threads that verify checksums
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Engine options")]
    workers: Option<u16>,
    /// Seconds of silence, but for the wait for its checkpoint, after which the server counts as lost (0 for never)
    #[arg(long, value_name = "SECS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(..=31_536_000), help_heading = "Engine options")]
    stall_timeout: u64,
    /// Write progress and summary to stdout as JSON, an object a line
    #[arg(long, help_heading = "Engine options")]
    pub(super) json: bool,

    /// Time between status packets sent to server (in seconds)
    #[arg(
        short = 's',
        long,
        value_name = "INTERVAL",
        default_value = "10",
        allow_hyphen_values = true,
        help_heading = "Connection options"
    )]
    status_interval: String,
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,

    /// Show this help, then exit
    #[arg(short = '?', long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// `--io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum IoArg {
    /// The best that works on the target, by a probe.
    Auto,
    /// `io_uring` past the page cache.
    Direct,
    /// `io_uring` through the page cache, dropped behind.
    Uncached,
    /// Plain threads and system calls.
    Threads,
}

impl IoArg {
    /// The mode, unless the probe is to choose.
    pub(super) fn mode(self) -> Option<IoMode> {
        match self {
            IoArg::Auto => None,
            IoArg::Direct => Some(IoMode::Direct),
            IoArg::Uncached => Some(IoMode::Uncached),
            IoArg::Threads => Some(IoMode::Threads),
        }
    }
}

impl BaseBackupArgs {
    /// Whether progress is to be shown even where stderr is no terminal.
    pub(super) fn shows_progress(&self) -> bool {
        self.progress
    }

    /// Whether to tell more.
    pub(super) fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// Checks the values, then the options against each other, in the order in which pg_basebackup complains.
    pub(super) fn resolve(&self) -> anyhow::Result<BaseBackupConfig> {
        let tar = match self.format.as_deref() {
            None | Some("p" | "plain") => false,
            Some("t" | "tar") => true,
            Some(other) => bail!("invalid output format \"{other}\", must be \"plain\" or \"tar\""),
        };
        let fast_checkpoint = match self.checkpoint.to_ascii_lowercase().as_str() {
            "fast" => true,
            "spread" => false,
            _ => {
                let found = &self.checkpoint;
                bail!("invalid checkpoint argument \"{found}\", must be \"fast\" or \"spread\"")
            }
        };
        let max_rate_kb = self.max_rate.as_deref().map(parse_max_rate).transpose()?;
        let status_interval = parse_int(&self.status_interval, "-s/--status-interval", 0..=i32::MAX / 1000)?;
        let tablespace_mapping =
            self.tablespace_mapping.iter().map(parse_mapping).collect::<anyhow::Result<Vec<_>>>()?;
        let asked_wal = self.asked_wal()?;
        let sync_method = match self.sync_method.as_deref() {
            None | Some("fsync") => SyncMethod::Fsync,
            Some("syncfs") => SyncMethod::Syncfs,
            Some(other) => bail!("unrecognized sync method: {other}"),
        };
        // `client` is the target of a backup that has none.
        let target = self.target.as_deref().filter(|target| *target != "client");
        self.check_place(target)?;
        let request = self.compression_request();
        let compression = self.compression(&request, tar, target)?;
        let wal = self.wal_method(asked_wal, tar, target)?;
        self.check_waldir(tar, target)?;
        if self.progress && self.no_estimate_size {
            return Err(misuse("--progress and --no-estimate-size are incompatible options"));
        }
        let manifest = self.manifest()?;
        let destination = match target {
            Some(target) => self.target(target, request)?,
            None if self.discard => self.discarded(compression.as_ref())?,
            None => self.local(tar, compression.as_ref(), tablespace_mapping)?,
        };
        let mut resources = Resources::for_cores(std::thread::available_parallelism().map_or(1, usize::from));
        resources.io = self.io.mode();
        resources.buffers = ((usize::from(self.buffers) << 20) / resources.buffer_size).max(8);
        if let Some(workers) = self.workers {
            resources.workers = usize::from(workers);
        }
        Ok(BaseBackupConfig {
            connection: self.connection.resolve(message::program_name())?,
            destination,
            incremental: self.incremental.clone(),
            compression,
            wal,
            label: self.label.clone(),
            fast_checkpoint,
            max_rate_kb,
            manifest,
            server_verifies_pages: !self.no_verify_checksums,
            check_pages: self.check_pages,
            estimate_size: !self.no_estimate_size,
            write_recovery_settings: self.write_recovery_conf,
            sync: !self.no_sync,
            sync_method,
            clean: !self.no_clean,
            status_interval: Duration::from_secs(status_interval.unsigned_abs().into()),
            stall_timeout: Duration::from_secs(self.stall_timeout),
            resources,
        })
    }

    /// Either a directory or a target.
    fn check_place(&self, target: Option<&str>) -> anyhow::Result<()> {
        if target.is_some() && self.format.is_some() {
            return Err(misuse("cannot specify both format and backup target"));
        }
        match (&self.pgdata, target) {
            (None, None) if !self.discard => Err(misuse("must specify output directory or backup target")),
            (Some(_), Some(_)) => Err(misuse("cannot specify both output directory and backup target")),
            _ => Ok(()),
        }
    }

    fn compression_request(&self) -> CompressionRequest {
        match (self.gzip, &self.compress) {
            (true, _) => CompressionRequest::parse("gzip"),
            (false, argument) => CompressionRequest::parse(argument.as_deref().unwrap_or("none")),
        }
    }

    /// Who compresses what comes here. What a target gets is the server's alone.
    fn compression(
        &self,
        request: &CompressionRequest,
        tar: bool,
        target: Option<&str>,
    ) -> anyhow::Result<Option<BackupCompression>> {
        let client = |request: &CompressionRequest| -> anyhow::Result<_> {
            Ok(request.specification()?.map(BackupCompression::Client))
        };
        let compression = match (request.side, target) {
            (Some(CompressionSide::Client), Some(_)) => {
                client(request)?;
                let complaint = "client-side compression is not possible when a backup target is specified";
                return Err(misuse(complaint));
            }
            (_, Some(_)) => return Ok(None),
            (Some(CompressionSide::Server), None) => server_compression(request)?,
            (_, None) => client(request)?,
        };
        if !tar && matches!(compression, Some(BackupCompression::Client(_))) {
            return Err(misuse("only tar mode backups can be compressed"));
        }
        Ok(compression)
    }

    fn check_waldir(&self, tar: bool, target: Option<&str>) -> anyhow::Result<()> {
        let Some(path) = &self.waldir else { return Ok(()) };
        if target.is_some() {
            return Err(misuse("WAL directory location cannot be specified along with a backup target"));
        }
        if tar {
            return Err(misuse("WAL directory location can only be specified in plain mode"));
        }
        if path.is_relative() {
            return Err(misuse("WAL directory location must be an absolute path"));
        }
        Ok(())
    }

    /// A backup that the server keeps.
    fn target(&self, target: &str, request: CompressionRequest) -> anyhow::Result<Destination> {
        let CompressionRequest { method, detail, .. } = request;
        if self.write_recovery_conf {
            bail!("recovery configuration cannot be written when a backup target is used");
        }
        if self.check_pages {
            bail!("options --check-pages and --target cannot be used together: no page comes here");
        }
        let asked = self.gzip || self.compress.is_some();
        let (name, at) = match target.split_once(':') {
            Some((name, detail)) => (name, Some(detail)),
            None => (target, None),
        };
        Ok(Destination::Target {
            name: name.to_owned(),
            detail: at.map(str::to_owned),
            compression: asked.then_some(ServerCompression { method, detail }),
        })
    }

    /// A backup that nobody keeps.
    fn discarded(&self, compression: Option<&BackupCompression>) -> anyhow::Result<Destination> {
        if matches!(compression, Some(BackupCompression::Client(_))) {
            bail!("options --discard and --compress cannot be used together: nothing is kept");
        }
        if self.no_manifest {
            bail!("options --discard and --no-manifest cannot be used together: nothing would be left to do");
        }
        Ok(Destination::Discard)
    }

    /// The one archive on standard output.
    fn stdout(&self, compressed_by_server: bool) -> anyhow::Result<Destination> {
        if self.json {
            bail!("options --json and --pgdata=- cannot be used together: both write to standard output");
        }
        if compressed_by_server && !self.no_manifest {
            bail!(
                "cannot inject manifest into a compressed tar file\n\
                 HINT: Use client-side compression, send the output to a directory rather than standard output, \
                 or use --no-manifest."
            );
        }
        Ok(Destination::Stdout)
    }

    /// A backup that is kept here.
    fn local(
        &self,
        tar: bool,
        compression: Option<&BackupCompression>,
        tablespace_mapping: Vec<(PathBuf, PathBuf)>,
    ) -> anyhow::Result<Destination> {
        let path = self.pgdata.as_ref().expect("the caller made sure of it");
        let compressed_by_server = matches!(compression, Some(BackupCompression::Server { .. }));
        if tar && self.write_recovery_conf && compressed_by_server {
            bail!(
                "option --write-recovery-conf cannot add to an archive that the server compresses\n\
                 HINT: let the client compress, or use plain format."
            );
        }
        if tar && path == Path::new("-") {
            return self.stdout(compressed_by_server);
        }
        let path = absolute(path)?;
        Ok(match tar {
            true => Destination::Tar { path },
            false => Destination::Directory { path, wal_directory: self.waldir.clone(), tablespace_mapping },
        })
    }

    /// What `--wal-method` asks for, before anything is said of slots.
    fn asked_wal(&self) -> anyhow::Result<WalMethod> {
        match self.wal_method.as_deref().unwrap_or("stream") {
            "n" | "none" => Ok(WalMethod::None),
            "f" | "fetch" => Ok(WalMethod::Fetch),
            "s" | "stream" => Ok(WalMethod::Stream(SlotChoice::Temporary)),
            other => {
                bail!("invalid wal-method option \"{other}\", must be \"fetch\", \"stream\", or \"none\"")
            }
        }
    }

    fn wal_method(&self, asked: WalMethod, tar: bool, target: Option<&str>) -> anyhow::Result<WalMethod> {
        let streams = matches!(asked, WalMethod::Stream(_));
        if target.is_some() && streams {
            return Err(misuse("WAL cannot be streamed when a backup target is specified"));
        }
        if tar && streams && self.pgdata.as_deref() == Some(Path::new("-")) {
            return Err(misuse("cannot stream write-ahead logs in tar mode to stdout"));
        }
        if self.discard && self.wal_method.is_some() && asked != WalMethod::None {
            bail!("options --discard and --wal-method cannot be used together: no WAL is kept either");
        }
        if self.discard && (self.slot.is_some() || self.create_slot || self.no_slot) {
            bail!(
                "options --discard and --slot, --create-slot or --no-slot cannot be used together: no WAL is kept"
            );
        }
        match (&self.slot, self.no_slot, self.create_slot) {
            (Some(_), _, _) if !streams => {
                Err(misuse("replication slots can only be used with WAL streaming"))
            }
            (Some(_), true, _) => Err(misuse("--no-slot cannot be used with slot name")),
            (None, _, true) => Err(misuse("--create-slot needs a slot to be specified using --slot")),
            (Some(name), false, create) => {
                Ok(WalMethod::Stream(SlotChoice::Named { name: name.clone(), create }))
            }
            (None, true, false) if streams => Ok(WalMethod::Stream(SlotChoice::None)),
            (None, _, false) if self.discard => Ok(WalMethod::None),
            (None, _, false) => Ok(asked),
        }
    }

    fn manifest(&self) -> anyhow::Result<Option<ManifestOptions>> {
        if self.no_manifest {
            if self.manifest_checksums.is_some() {
                return Err(misuse("--no-manifest and --manifest-checksums are incompatible options"));
            }
            if self.manifest_force_encode {
                return Err(misuse("--no-manifest and --manifest-force-encode are incompatible options"));
            }
            return Ok(None);
        }
        let checksums = match &self.manifest_checksums {
            None => ChecksumAlgorithm::Crc32c,
            Some(name) => name.parse().map_err(|_| anyhow!("unrecognized checksum algorithm: \"{name}\""))?,
        };
        Ok(Some(ManifestOptions { checksums: Some(checksums), force_encode: self.manifest_force_encode }))
    }
}

fn misuse(text: &str) -> anyhow::Error {
    Tool::BaseBackup.misuse(text)
}

/// Compression by the server of what comes here. The method has to be known, to unpack what comes; its options are
/// the server's to judge.
fn server_compression(request: &CompressionRequest) -> anyhow::Result<Option<BackupCompression>> {
    let CompressionRequest { method, detail, .. } = request;
    match CompressionMethod::ALL.into_iter().find(|known| known.name() == method) {
        Some(method) => Ok(Some(BackupCompression::Server { method, detail: detail.clone() })),
        None if method == "none" => {
            request.specification()?;
            Ok(None)
        }
        None => Err(CompressionError::UnknownMethod { found: method.clone() }.into()),
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| anyhow!("could not make \"{}\" an absolute path: {error}", path.display()))
}

/// `32`, `32k` or `32M`, in kB/s (`parse_max_rate`, `pg_basebackup.c`). Fractions are taken, as there.
pub(super) fn parse_max_rate(text: &str) -> anyhow::Result<u32> {
    let numeric = |character: char| character.is_ascii_digit() || "+-.eE".contains(character);
    let trimmed = text.trim();
    let (number, unit) = trimmed.split_at(trimmed.find(|found| !numeric(found)).unwrap_or(trimmed.len()));
    let number: f64 = number.parse().map_err(|_| anyhow!("transfer rate \"{text}\" is not a valid value"))?;
    if number <= 0.0 {
        bail!("transfer rate must be greater than zero");
    }
    let rate = match unit.trim_start() {
        "" | "k" => number,
        "M" => number * 1024.0,
        other => bail!("invalid --max-rate unit: \"{other}\""),
    };
    let bounds = "HINT: name a rate from 32k to 1024M.";
    if rate > f64::from(u32::MAX) {
        bail!("transfer rate \"{text}\" exceeds integer range\n{bounds}");
    }
    if !(32.0..=1_048_576.0).contains(&rate) {
        bail!("transfer rate \"{text}\" is out of range\n{bounds}");
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is in range, as just checked"
    )]
    Ok(rate as u32)
}

/// `OLD=NEW`, where `\=` stands for an equals sign within a path (`tablespace_list_append`, `pg_basebackup.c`).
pub(super) fn parse_mapping(argument: &OsString) -> anyhow::Result<(PathBuf, PathBuf)> {
    let shown = argument.display();
    let (mut parts, mut bytes) = (vec![Vec::new()], argument.as_bytes().iter().peekable());
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' if bytes.peek() == Some(&&b'=') => {
                bytes.next();
                parts.last_mut().expect("never empty").push(b'=');
            }
            b'=' => parts.push(Vec::new()),
            _ => parts.last_mut().expect("never empty").push(byte),
        }
    }
    let count = parts.len();
    let [old, new] = <[Vec<u8>; 2]>::try_from(parts).map_err(|_| match count {
        1 => anyhow!("invalid tablespace mapping format \"{shown}\", must be \"OLDDIR=NEWDIR\""),
        _ => anyhow!("multiple \"=\" signs in tablespace mapping"),
    })?;
    if old.is_empty() || new.is_empty() {
        bail!("invalid tablespace mapping format \"{shown}\", must be \"OLDDIR=NEWDIR\"");
    }
    let path = |bytes: Vec<u8>, which| {
        let path = PathBuf::from(OsString::from_vec(bytes));
        match path.is_absolute() {
            true => Ok(path),
            false => Err(anyhow!(
                "{which} directory is not an absolute path in tablespace mapping: {}",
                path.display()
            )),
        }
    };
    Ok((path(old, "old")?, path(new, "new")?))
}

#[cfg(test)]
mod tests;
