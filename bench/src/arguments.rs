//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Measures pgstrata beside PostgreSQL's own programs, on one server, in one run
#[derive(Debug, Parser)]
#[command(name = "pgstrata-bench", version, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a rival and pgstrata in turn, and print both and their ratios
    #[command(subcommand)]
    Compare(Rivalry),
    /// Measure what backups do to a database under load: latency of its transactions, and its page cache (needs root)
    Impact(ImpactOptions),
    /// Measure pgstrata's peak memory for the same bytes in few files and in many
    Memory(MemoryOptions),
    /// Run one command and print its cost as JSON; the other commands start each client through this
    #[command(hide = true)]
    MeasureOne(MeasureOne),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rivalry {
    /// pg_basebackup and pgstrata basebackup: plain format, WAL streamed, durable
    Basebackup(BasebackupOptions),
    /// The same two in tar format, compressed by the client, WAL streamed, durable
    Tar(TarOptions),
    /// pg_receivewal and pgstrata receivewal: WAL that a slot has held back, durable
    Receivewal(ReceivewalOptions),
    /// pg_verifybackup and pgstrata verifybackup, on one finished backup, without parsing WAL
    Verifybackup(VerifybackupOptions),
    /// pg_combinebackup and pgstrata combinebackup: a full backup and incremental ones (17 or newer), durable
    Combinebackup(CombinebackupOptions),
    /// pgbackrest backup and pgstrata backup: a full backup into an empty repository, durable
    Backup(RepositoryOptions),
    /// pgbackrest --type=incr or pg_basebackup --incremental, and pgstrata backup, after a change of some pages
    Incremental(IncrementalOptions),
    /// pgbackrest restore and pgstrata restore: into an empty folder, durable
    Restore(RepositoryOptions),
    /// pgbackrest verify and pgstrata verify, each of its own repository with one backup
    Verify(RepositoryOptions),
}

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct CommonOptions {
    /// Keep clusters and write copies below this directory, instead of `bench` in cargo's target directory
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Use the PostgreSQL programs in this directory, instead of the newest ones found
    #[arg(long, value_name = "DIR")]
    pub(crate) pg_bin: Option<PathBuf>,
    /// Measure this program, instead of building `pgstrata` in release mode
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) pgstrata: Option<PathBuf>,
    /// Give pgstrata one more option, such as --our-option=--io=direct; may be repeated
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub(crate) our_option: Vec<OsString>,
    /// Make the cluster anew, even where one is kept from an earlier run
    #[arg(long)]
    pub(crate) rebuild: bool,
    /// Write all measurements as JSON to a file, or to stdout for `-` (the tables then go to stderr)
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// What comparisons take.
#[derive(Debug, Args)]
pub(crate) struct CompareOptions {
    /// Size of the cluster, in gigabytes (10^9 bytes)
    #[arg(long, value_name = "GB", default_value = "5", value_parser = gigabytes)]
    pub(crate) size_gb: Bytes,
    /// Number of pairs of runs, for each state of the cache
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) pairs: u32,
    /// State of the page cache before each run
    #[arg(long, value_enum, default_value = "both")]
    pub(crate) cache: CacheChoice,
    #[command(flatten)]
    pub(crate) common: CommonOptions,
}

/// What `compare basebackup` takes.
#[derive(Debug, Args)]
pub(crate) struct BasebackupOptions {
    #[command(flatten)]
    pub(crate) compare: CompareOptions,
    /// How clients reach the server
    #[arg(long, value_enum, default_value = "socket")]
    pub(crate) over: Over,
}

/// What `compare tar` takes.
#[derive(Debug, Args)]
pub(crate) struct TarOptions {
    #[command(flatten)]
    pub(crate) basebackup: BasebackupOptions,
    /// How the clients compress
    #[arg(long, value_enum, default_value = "zstd")]
    pub(crate) method: Method,
}

/// What `compare verifybackup` takes.
#[derive(Debug, Args)]
pub(crate) struct VerifybackupOptions {
    #[command(flatten)]
    pub(crate) compare: CompareOptions,
    /// Format of the backup; where the rival cannot read tar, pgstrata is measured alone
    #[arg(long, value_enum, default_value = "plain")]
    pub(crate) format: Format,
}

/// What `compare combinebackup` takes.
#[derive(Debug, Args)]
pub(crate) struct CombinebackupOptions {
    #[command(flatten)]
    pub(crate) compare: CompareOptions,
    /// Incremental backups in the chain
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub(crate) incrementals: u32,
    /// Percent of the rows' pages that change before each of them, scattered
    #[arg(long, value_name = "PERCENT", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) changed: u32,
    /// Give both one more option, such as --both=--copy-file-range; may be repeated
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub(crate) both: Vec<OsString>,
}

/// What `compare receivewal` takes. The size is that of the WAL.
#[derive(Debug, Args)]
pub(crate) struct ReceivewalOptions {
    #[command(flatten)]
    pub(crate) compare: CompareOptions,
    /// How clients reach the server
    #[arg(long, value_enum, default_value = "socket")]
    pub(crate) over: Over,
    /// Have both flush WAL as soon as it is here
    #[arg(long)]
    pub(crate) synchronous: bool,
    /// Have both compress, as their option of that name says
    #[arg(long, value_name = "METHOD[:DETAIL]")]
    pub(crate) compress: Option<String>,
}

/// What the comparisons of repositories take.
#[derive(Debug, Args)]
pub(crate) struct RepositoryOptions {
    #[command(flatten)]
    pub(crate) compare: CompareOptions,
    /// What both compress with
    #[arg(long, value_enum, default_value = "zstd")]
    pub(crate) method: Packed,
    /// Where pgstrata's backups read the cluster
    #[arg(long, value_enum, default_value = "local")]
    pub(crate) source: Source,
}

/// What `compare incremental` takes.
#[derive(Debug, Args)]
pub(crate) struct IncrementalOptions {
    #[command(flatten)]
    pub(crate) repository: RepositoryOptions,
    /// Share of the pages of all large tables that is changed before each pair, in percent
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) percent: u32,
    /// Which pages these are
    #[arg(long, value_enum, default_value = "scattered")]
    pub(crate) pattern: Pattern,
    /// Whom to compare with; pg_basebackup from version 17 on
    #[arg(long, value_enum, default_value = "pgbackrest")]
    pub(crate) rival: Rival,
    /// What tells pgstrata the changes
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) changes: Tracked,
}

/// What `impact` takes. Its pairs are rounds of all programs; the page cache is always half warm.
#[derive(Debug, Args)]
pub(crate) struct ImpactOptions {
    #[command(flatten)]
    pub(crate) repository: RepositoryOptions,
    /// Transactions a second
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,
    /// How long the load of each run goes on; more than any of the backups takes
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(4..=86_400))]
    pub(crate) seconds: u32,
}

/// What `memory` takes.
#[derive(Debug, Args)]
pub(crate) struct MemoryOptions {
    /// Number of files in the larger cluster
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1000..=10_000_000))]
    pub(crate) files: u32,
    /// Number of runs on each cluster
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,
    #[command(flatten)]
    pub(crate) common: CommonOptions,
}

/// What the hidden helper takes.
#[derive(Debug, Args)]
pub(crate) struct MeasureOne {
    /// Where the command's standard output goes
    #[arg(long)]
    pub(crate) stdout: PathBuf,
    /// Where the command's standard error goes
    #[arg(long)]
    pub(crate) stderr: PathBuf,
    /// The command
    #[arg(required = true, last = true)]
    pub(crate) command: Vec<OsString>,
}

/// `--cache`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheChoice {
    /// Everything to be read is in the page cache.
    Warm,
    /// The page cache is dropped (needs root).
    Cold,
    /// Warm, then cold where that is possible.
    Both,
}

/// `--over`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Over {
    /// The server's Unix socket.
    Socket,
    /// TCP on the loopback address.
    Tcp,
    /// TLS over that TCP, with a certificate made for the purpose.
    Tls,
}

/// `--method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// zstd at level 1 on two worker threads.
    Zstd,
    /// gzip at its usual level.
    Gzip,
}

/// `--method` of repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Packed {
    /// zstd at level 1.
    Zstd,
    /// lz4 at level 1.
    Lz4,
    /// Nothing.
    None,
}

/// `--pattern`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pattern {
    /// Spread evenly.
    Scattered,
    /// Side by side.
    Clustered,
}

/// `--rival`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rival {
    /// pgBackRest's incremental backups.
    #[value(name = "pgbackrest")]
    PgBackRest,
    /// PostgreSQL's own.
    #[value(name = "pg_basebackup")]
    PgBasebackup,
}

/// `--changes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tracked {
    /// What pgstrata chooses.
    Auto,
    /// The server's summaries (17 and newer).
    Server,
    /// The WAL archive, which is set up for it.
    Archive,
    /// The LSNs of pages.
    Pages,
}

impl Tracked {
    /// As pgstrata's option names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Server => "server",
            Self::Archive => "archive",
            Self::Pages => "pages",
        }
    }
}

/// `--source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// The data directory, as pgBackRest does.
    Local,
    /// The replication stream.
    Stream,
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Files as they are.
    Plain,
    /// Tar archives that are not compressed.
    Tar,
}

/// A size that was checked to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

fn gigabytes(text: &str) -> Result<Bytes, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if !(0.05..=10_000.0).contains(&number) {
        return Err("expected 0.05 to 10000".to_owned());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is in range, as just checked"
    )]
    Ok(Bytes((number * 1e9).round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_are_checked() {
        for (text, expected) in [
            ("5", Ok(5_000_000_000)),
            ("0.3", Ok(300_000_000)),
            ("0.01", Err("expected 0.05 to 10000")),
            ("-5", Err("expected 0.05 to 10000")),
            ("NaN", Err("expected 0.05 to 10000")),
            ("five", Err("not a number")),
        ] {
            assert_eq!(gigabytes(text).map(|bytes| bytes.0), expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn options_for_pgstrata_may_look_like_ours() {
        let line = ["pgstrata-bench", "memory", "--our-option=--io=direct", "--our-option", "--json"];
        let Command::Memory(options) = Arguments::try_parse_from(line).unwrap().command else {
            panic!("expected memory")
        };
        assert_eq!(options.common.our_option, ["--io=direct", "--json"]);
        assert_eq!(options.common.json, None);
    }
}
