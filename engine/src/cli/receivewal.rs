//! `pgstrata receivewal`: pg_receivewal's options, resolved into a checked configuration, run and reported.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use pgstrata_protocol::Lsn;
use pgstrata_protocol::basebackup::{CompressionError, CompressionRequest, CompressionSpec};

use super::connection::{ConnectionArgs, ask};
use super::message;
use super::signals::{cause_of, throw_on_signal};
use crate::connect::ConnectError;
use crate::failure::Failure;
use crate::receivewal::{Action, ReceiveObserver, ReceiveWalConfig, WalArchive, run as receive, told};
use crate::stop::Stop;

/// The longest interval in seconds, as the stock tool has it: `INT_MAX / 1000`.
const LONGEST_INTERVAL: u64 = 2_147_483;

/// Receive the write-ahead log of a running PostgreSQL server
#[derive(Debug, Args)]
#[command(disable_help_flag = true, args_override_self = true)]
// The options are the stock tool's.
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub(super) struct ReceiveWalArgs {
    /// Receive write-ahead log files into this directory
    #[arg(short = 'D', long, value_name = "DIR", help_heading = "Options")]
    directory: Option<PathBuf>,
    /// Exit after receiving the specified LSN
    #[arg(short = 'E', long, value_name = "LSN", help_heading = "Options")]
    endpos: Option<String>,
    /// Do not error if slot already exists when creating a slot
    #[arg(long, help_heading = "Options")]
    if_not_exists: bool,
    /// Do not loop on connection lost
    #[arg(short = 'n', long, help_heading = "Options")]
    no_loop: bool,
    /// Do not wait for changes to be written safely to disk
    #[arg(long, help_heading = "Options")]
    no_sync: bool,
    /// Time between status packets sent to server (in seconds)
    #[arg(short = 's', long, value_name = "SECS", default_value = "10", help_heading = "Options")]
    status_interval: String,
    /// Replication slot to use
    #[arg(short = 'S', long, value_name = "SLOTNAME", help_heading = "Options")]
    slot: Option<String>,
    /// Flush write-ahead log immediately after writing
    #[arg(long, help_heading = "Options")]
    synchronous: bool,
    /// Output verbose messages
    #[arg(short = 'v', long, help_heading = "Options")]
    verbose: bool,
    /// Compress as specified (gzip, lz4, zstd)
    #[arg(
        short = 'Z',
        long,
        value_name = "METHOD[:DETAIL]",
        allow_hyphen_values = true,
        help_heading = "Options"
    )]
    compress: Option<String>,

    #[command(flatten)]
    connection: ConnectionArgs,

    /// Create a new replication slot (for the slot's name see --slot)
    #[arg(long, help_heading = "Optional actions")]
    create_slot: bool,
    /// Drop the replication slot (for the slot's name see --slot)
    #[arg(long, help_heading = "Optional actions")]
    drop_slot: bool,

    /// Seconds of silence after which the server counts as lost (0 for never)
    #[arg(long, value_name = "SECS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(..=31_536_000), help_heading = "Engine options")]
    stall_timeout: u64,
    /// Write what comes without reading it as recovery does
    #[arg(long, help_heading = "Engine options")]
    no_check_wal: bool,

    /// Show this help, then exit
    #[arg(short = '?', long, action = clap::ArgAction::Help, help_heading = "Options")]
    help: Option<bool>,
}

impl ReceiveWalArgs {
    /// Checks the options against each other, in the order in which pg_receivewal complains.
    fn resolve(&self) -> anyhow::Result<ReceiveWalConfig> {
        // These two it reads while it reads the command line.
        let end = self.endpos.as_deref().map(parse_end).transpose()?;
        let status_interval = Duration::from_secs(parse_interval(&self.status_interval)?);
        if self.drop_slot && self.create_slot {
            bail!("cannot use --create-slot together with --drop-slot{TRY_HELP}");
        }
        let action = match (&self.slot, self.create_slot, self.drop_slot) {
            (None, _, true) => bail!("--drop-slot needs a slot to be specified using --slot{TRY_HELP}"),
            (None, true, _) => bail!("--create-slot needs a slot to be specified using --slot{TRY_HELP}"),
            (Some(name), true, _) => {
                Some(Action::CreateSlot { name: name.clone(), if_not_exists: self.if_not_exists })
            }
            (Some(name), _, true) => Some(Action::DropSlot { name: name.clone() }),
            (_, false, false) => None,
        };
        if self.synchronous && self.no_sync {
            bail!("cannot use --synchronous together with --no-sync{TRY_HELP}");
        }
        if self.directory.is_none() && action.is_none() {
            bail!("no target directory specified{TRY_HELP}");
        }
        let compression = self.compression()?;
        let action = match (action, &self.directory) {
            (Some(action), _) => action,
            (None, directory) => Action::Receive(WalArchive {
                directory: directory.clone().unwrap_or_default(),
                slot: self.slot.clone(),
                compression,
                end,
                reconnect: !self.no_loop,
                sync: !self.no_sync,
                synchronous: self.synchronous,
                check: !self.no_check_wal,
            }),
        };
        Ok(ReceiveWalConfig {
            connection: self.connection.resolve(message::program_name())?,
            action,
            status_interval,
            stall_timeout: Duration::from_secs(self.stall_timeout),
        })
    }

    /// Nobody but the client compresses, so there is no side to name.
    fn compression(&self) -> anyhow::Result<Option<CompressionSpec>> {
        let Some(argument) = self.compress.as_deref() else { return Ok(None) };
        let request = CompressionRequest::parse(argument);
        if request.side.is_some() {
            let found = argument.split(':').next().unwrap_or_default().to_owned();
            return Err(CompressionError::UnknownMethod { found }.into());
        }
        Ok(request.specification()?)
    }
}

/// What pg_receivewal adds where it says so little that only its help can.
const TRY_HELP: &str = "\nHINT: Try \"pg_receivewal --help\" for more information.";

fn parse_end(text: &str) -> anyhow::Result<Lsn> {
    text.parse().map_err(|_| anyhow!("could not parse end position \"{text}\""))
}

/// As `option_parse_int` (`fe_utils/option_utils.c`) reads it.
fn parse_interval(text: &str) -> anyhow::Result<u64> {
    let option = "-s/--status-interval";
    let trimmed = text.trim();
    let digits = trimmed.strip_prefix(['-', '+']).unwrap_or(trimmed);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        bail!("invalid value \"{text}\" for option {option}");
    }
    trimmed
        .trim_start_matches('+')
        .parse()
        .ok()
        .filter(|interval| *interval <= LONGEST_INTERVAL)
        .ok_or_else(|| anyhow!("{option} must be in range 0..{LONGEST_INTERVAL}"))
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &ReceiveWalArgs) -> anyhow::Result<()> {
    // Files are made with the mode that the server's have; nothing is to be taken from that.
    rustix::process::umask(rustix::fs::Mode::empty());
    let outcome = args.resolve().and_then(|config| with_password(args, config));
    if let Err(error) = &outcome {
        match error.downcast_ref::<Failure>() {
            // The process ends as the signal would have ended it.
            Some(Failure::Signal(_)) => {}
            Some(failure) => message::error(&told(failure)),
            None => message::error(&format!("{error:#}")),
        }
    }
    outcome
}

fn with_password(args: &ReceiveWalArgs, mut config: ReceiveWalConfig) -> anyhow::Result<()> {
    let stop = Stop::new();
    throw_on_signal(&stop)?;
    let observer: Arc<dyn ReceiveObserver> = Arc::new(Voice { verbose: args.verbose });
    match receive(&config, &observer, &stop) {
        Err(Failure::Connect(ConnectError::PasswordRequired { .. })) if args.connection.may_ask() => {
            config.connection = ask(config.connection).map_err(|error| cause_of(error, &stop))?;
            Ok(receive(&config, &observer, &stop)?)
        }
        outcome => Ok(outcome?),
    }
}

/// Says on stderr what a run has to say.
pub(super) struct Voice {
    pub(super) verbose: bool,
}

impl ReceiveObserver for Voice {
    fn error(&self, text: &str) {
        message::error(text);
    }

    fn warning(&self, text: &str) {
        message::warning(text);
    }

    fn info(&self, text: &str) {
        message::note(text);
    }

    fn note(&self, text: &str) {
        if self.verbose {
            message::note(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    #[command(disable_help_flag = true, disable_version_flag = true)]
    struct Program {
        #[command(flatten)]
        args: ReceiveWalArgs,
    }

    fn resolve(line: &str) -> anyhow::Result<ReceiveWalConfig> {
        Program::try_parse_from(std::iter::once("x").chain(line.split_whitespace()))?.args.resolve()
    }

    fn archive(line: &str) -> WalArchive {
        match resolve(line).expect(line).action {
            Action::Receive(archive) => archive,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn resolves_what_operators_write() {
        let all = archive("-D /w -E 1/2A -n -s 0 -S slot --synchronous -v -v -Z zstd:4 -h db");
        assert_eq!(all.end, Some(Lsn(0x1_0000_002A)));
        assert!(!all.reconnect && all.sync && all.synchronous && all.check);
        assert_eq!(all.slot.as_deref(), Some("slot"));
        assert_eq!(all.compression.map(|spec| spec.level), Some(4));
        let plain = archive("-D /w --no-sync --no-check-wal -Z none");
        assert!(plain.reconnect && !plain.sync && !plain.check && plain.compression.is_none());
        assert_eq!(archive("-D /w -Z 0").compression, None);
        assert_eq!(archive("-D /w -Z 3").compression.map(|spec| spec.level), Some(3));
        let made = resolve("--create-slot -S s --if-not-exists").expect("valid").action;
        assert!(matches!(made, Action::CreateSlot { if_not_exists: true, .. }), "{made:?}");
        assert!(matches!(resolve("--drop-slot -S s").expect("valid").action, Action::DropSlot { .. }));
        assert_eq!(resolve("-D /w -s 0").expect("valid").status_interval, Duration::ZERO);
    }

    #[test]
    fn refuses_by_name() {
        for (line, expected) in [
            ("", "no target directory specified"),
            ("-D /w --create-slot --drop-slot", "cannot use --create-slot together with --drop-slot"),
            ("--create-slot", "--create-slot needs a slot to be specified using --slot"),
            ("-D /w --drop-slot", "--drop-slot needs a slot to be specified using --slot"),
            ("-D /w --synchronous --no-sync", "cannot use --synchronous together with --no-sync"),
            ("-D /w -E x", "could not parse end position \"x\""),
            ("-D /w -s x", "invalid value \"x\" for option -s/--status-interval"),
            ("-D /w --status-interval=-1", "-s/--status-interval must be in range 0..2147483"),
            ("-D /w -s 2147484", "-s/--status-interval must be in range 0..2147483"),
            ("-D /w -Z brotli", "unrecognized compression algorithm: \"brotli\""),
            ("-D /w -Z client-gzip", "unrecognized compression algorithm: \"client-gzip\""),
            ("-D /w -Z gzip:10", "expects a compression level between 1 and 9"),
            ("-D /w -Z none:1", "does not accept a compression level"),
            ("-D /w -Z lz4:workers=2", "does not accept a worker count"),
        ] {
            let refused = resolve(line).expect_err(line).to_string();
            assert!(refused.contains(expected), "{line}: {refused}");
        }
    }
}
