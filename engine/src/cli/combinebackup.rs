//! `pgstrata combinebackup`: pg_combinebackup's options, resolved into a checked configuration, run and reported.
//!
//! stdout carries one JSON object with `--json`, and else nothing; everything else goes to stderr.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pgstrata_protocol::manifest::ChecksumAlgorithm;
use serde_json::json;

use super::basebackup::{IoArg, parse_mapping};
use super::message;
use super::progress::{human_bytes, human_seconds, print_json};
use super::signals::throw_on_signal;
use super::stock::Tool;
use crate::combine::{
    CombineConfig, CombineObserver, CombineProgress, CombineReport, CombineResources, CopyMethod, SyncMethod,
    combine,
};
use crate::failure::Failure;
use crate::stop::Stop;

/// Reconstruct a full backup from incremental ones
#[derive(Debug, Args)]
// As getopt has it, the last one of an option counts.
#[command(disable_help_flag = true, args_override_self = true)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub(super) struct CombineBackupArgs {
    /// The backups: the full one first, then the incremental ones in the order in which they were taken
    #[arg(value_name = "DIRECTORY", num_args = 0..)]
    backups: Vec<PathBuf>,

    /// Generate lots of debugging output
    #[arg(short = 'd', long, help_heading = "Options")]
    debug: bool,
    /// Link files instead of copying
    #[arg(
        short = 'k',
        long,
        overrides_with_all = ["clone", "copy", "copy_file_range"],
        help_heading = "Options"
    )]
    link: bool,
    /// Do not actually do anything
    #[arg(short = 'n', long, help_heading = "Options")]
    dry_run: bool,
    /// Do not wait for changes to be written safely to disk
    #[arg(short = 'N', long, help_heading = "Options")]
    no_sync: bool,
    /// Output directory
    #[arg(short = 'o', long, value_name = "DIRECTORY", help_heading = "Options")]
    output: Option<PathBuf>,
    /// Relocate tablespace in OLDDIR to NEWDIR
    #[arg(short = 'T', long, value_name = "OLDDIR=NEWDIR", help_heading = "Options")]
    tablespace_mapping: Vec<OsString>,
    /// Clone (reflink) files instead of copying
    #[arg(long, overrides_with_all = ["link", "copy", "copy_file_range"], help_heading = "Options")]
    clone: bool,
    /// Copy files (default)
    #[arg(long, overrides_with_all = ["link", "clone", "copy_file_range"], help_heading = "Options")]
    copy: bool,
    /// Copy using copy_file_range() system call
    #[arg(long, overrides_with_all = ["link", "clone", "copy"], help_heading = "Options")]
    copy_file_range: bool,
    /// Use algorithm for manifest checksums (SHA224, SHA256, SHA384, SHA512, CRC32C, NONE)
    #[arg(long, value_name = "ALGORITHM", help_heading = "Options")]
    manifest_checksums: Option<String>,
    /// Suppress generation of backup manifest
    #[arg(long, help_heading = "Options")]
    no_manifest: bool,
    /// Set method for syncing files to disk (fsync, syncfs)
    #[arg(long, value_name = "METHOD", help_heading = "Options")]
    sync_method: Option<String>,

    /// Do not compare what is read with checksums of manifests and pages
    #[arg(long, help_heading = "Engine options")]
    no_verify_checksums: bool,
    /// Show progress information
    #[arg(long, help_heading = "Engine options")]
    progress: bool,
    /// Disk back end
    #[arg(long, value_enum, default_value = "auto", help_heading = "Engine options")]
    io: IoArg,
    /// Memory for buffers, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..=16384), help_heading = "Engine options")]
    buffers: u16,
    /// Threads that put files together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Engine options")]
    workers: Option<u16>,
    /// Write the outcome to stdout as one JSON object
    #[arg(long, help_heading = "Engine options")]
    json: bool,

    /// Show this help, then exit
    #[arg(short = '?', long, action = clap::ArgAction::Help, help_heading = "Options")]
    help: Option<bool>,
}

impl CombineBackupArgs {
    /// Checks the values, then what is missing, in the order in which pg_combinebackup complains.
    pub(super) fn resolve(&self) -> anyhow::Result<CombineConfig> {
        // The last mapping of a folder counts there: it looks from the end.
        let mapping = self.tablespace_mapping.iter().rev();
        // An error of the first is told.
        self.tablespace_mapping.iter().try_for_each(|argument| parse_mapping(argument).map(|_| ()))?;
        let tablespace_mapping = mapping.map(parse_mapping).collect::<anyhow::Result<Vec<_>>>()?;
        let algorithm = match self.manifest_checksums.as_deref() {
            None => ChecksumAlgorithm::Crc32c,
            Some(name) => name.parse().map_err(|_| anyhow!("unrecognized checksum algorithm: \"{name}\""))?,
        };
        let sync = match self.sync_method.as_deref() {
            None | Some("fsync") => SyncMethod::Fsync,
            Some("syncfs") => SyncMethod::Syncfs,
            Some(other) => bail!("unrecognized sync method: {other}"),
        };
        if self.backups.is_empty() {
            return Err(Tool::CombineBackup.misuse("no input directories specified"));
        }
        let Some(output) = &self.output else { bail!("no output directory specified") };
        let mut resources =
            CombineResources::for_cores(std::thread::available_parallelism().map_or(1, usize::from));
        resources.io = self.io.mode();
        resources.buffers = (usize::from(self.buffers) << 20) / resources.buffer_size;
        if let Some(workers) = self.workers {
            resources.workers = usize::from(workers);
        }
        let method = match (self.clone, self.copy_file_range, self.link) {
            (true, ..) => CopyMethod::Clone,
            (_, true, _) => CopyMethod::CopyFileRange,
            (_, _, true) => CopyMethod::Link,
            _ => CopyMethod::Copy,
        };
        Ok(CombineConfig {
            backups: self.backups.clone(),
            output: output.clone(),
            tablespace_mapping,
            manifest: (!self.no_manifest).then_some(algorithm),
            method,
            verify: !self.no_verify_checksums,
            sync: (!self.no_sync).then_some(sync),
            dry_run: self.dry_run,
            resources,
        })
    }
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &CombineBackupArgs) -> anyhow::Result<()> {
    let outcome = attempt(args);
    match &outcome {
        Ok(report) => {
            if args.json {
                print_json(&serde_json::to_value(report)?);
            } else if !message::is_stock() {
                message::print(summary(report).trim_end());
            }
        }
        Err(error) => {
            let failure = error.downcast_ref::<Failure>();
            let told = failure.map_or_else(|| format!("{error:#}"), ToString::to_string);
            if args.json {
                print_json(&json!({ "error": told }));
            }
            // A run tells its failure itself, before it cleans up.
            if failure.is_none() {
                message::error(&told);
            }
        }
    }
    outcome.map(|_| ())
}

fn attempt(args: &CombineBackupArgs) -> anyhow::Result<CombineReport> {
    let config = args.resolve()?;
    let stop = Stop::new();
    throw_on_signal(&stop)?;
    let (bar, lines) = match (args.progress, std::io::stderr().is_terminal()) {
        (true, true) => (ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()), false),
        (shows, _) => (ProgressBar::hidden(), shows),
    };
    let voice = Voice { bar: bar.clone(), debug: args.debug };
    if args.debug {
        let using = match config.method {
            CopyMethod::Clone => Some("cloning to copy files"),
            CopyMethod::CopyFileRange => Some("copy_file_range to copy blocks"),
            CopyMethod::Copy | CopyMethod::Link => None,
        };
        if let Some(using) = using {
            voice.detail(&format!("{} use {using}", if config.dry_run { "would" } else { "will" }));
        }
    }
    let progress = Arc::new(CombineProgress::default());
    let display = Display::start(&progress, bar, lines);
    let outcome = combine(&config, &voice, &progress, &stop);
    drop(display);
    Ok(outcome?)
}

/// Says on stderr what a run has to say.
struct Voice {
    bar: ProgressBar,
    debug: bool,
}

impl CombineObserver for Voice {
    fn warning(&self, text: &str) {
        self.bar.suspend(|| message::warning(text));
    }

    fn failed(&self, failure: &Failure) {
        self.bar.suspend(|| message::error(&failure.to_string()));
    }

    fn note(&self, text: &str) {
        // The stock tool's own habit.
        if self.debug || message::is_stock() {
            self.bar.suspend(|| message::note(text));
        }
    }

    fn detail(&self, text: &str) {
        self.bar.suspend(|| message::note(text));
    }

    fn wants_details(&self) -> bool {
        self.debug
    }
}

fn summary(report: &CombineReport) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| text.push_str(&format!("  {name:<12} {value}\n"));
    let nothing = if report.dry_run { ", nothing written, as asked for" } else { "" };
    row("output", format!("{}{nothing}", report.path.display()));
    row("chain", format!("{} backups, recovery from {}", report.backups, report.start_lsn));
    row(
        "files",
        format!(
            "{} taken whole, {} put together, {}",
            report.whole_files,
            report.reconstructed_files,
            human_bytes(report.bytes)
        ),
    );
    let mut moved = vec![
        format!("{} read", human_bytes(report.bytes_read)),
        format!("{} written", human_bytes(report.bytes_written)),
    ];
    for (bytes, how) in
        [(report.bytes_within_kernel, "shared or copied by the kernel"), (report.bytes_linked, "linked")]
    {
        if bytes > 0 {
            moved.push(format!("{} {how}", human_bytes(bytes)));
        }
    }
    row("data", moved.join(", "));
    let seconds = &report.seconds;
    row(
        "time",
        format!(
            "{} (chain {:.1}, files {:.1}, end {:.1}), {:.0} MB/s",
            human_seconds(seconds.total),
            seconds.examine,
            seconds.files,
            seconds.finish,
            report.bytes_per_second / 1e6
        ),
    );
    row("cost", format!("{:.2} CPU seconds, {} memory", report.cpu_seconds, human_bytes(report.peak_memory)));
    row("I/O", format!("{} ({}), {} workers", report.io, report.io_reason, report.workers));
    row("limited by", report.limited_by.to_string());
    text
}

/// Draws until it is dropped.
struct Display {
    thread: Option<JoinHandle<()>>,
    quit: Option<Sender<()>>,
}

impl Display {
    fn start(progress: &Arc<CombineProgress>, bar: ProgressBar, lines: bool) -> Self {
        let (quit, ended) = bounded(0);
        let progress = Arc::clone(progress);
        let thread =
            (lines || !bar.is_hidden()).then(|| thread::spawn(move || draw(&progress, &bar, lines, &ended)));
        Self { thread, quit: Some(quit) }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.quit = None;
        if let Some(thread) = self.thread.take() {
            // A display that panicked has nothing to add to the outcome.
            let _ = thread.join();
        }
    }
}

fn draw(progress: &CombineProgress, bar: &ProgressBar, lines: bool, ended: &Receiver<()>) {
    let style = ProgressStyle::with_template("{spinner} {bytes}  {binary_bytes_per_sec}  {elapsed}  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let pause = Duration::from_millis(if lines { 1000 } else { 100 });
    let mut told = String::new();
    loop {
        let over = ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let bytes = count(&progress.bytes);
        let files = format!("{}/{} files", count(&progress.files), count(&progress.found));
        if lines {
            let line = format!("{}, {files}", human_bytes(bytes));
            // Nothing new is no news.
            if line != told {
                // A closed stderr must not end the run.
                let _ = writeln!(std::io::stderr(), "{line}");
                told = line;
            }
        } else {
            bar.set_position(bytes);
            bar.set_message(files);
            bar.tick();
        }
        if over {
            bar.finish_and_clear();
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::IoMode;
    use clap::Parser;
    use std::path::Path;

    #[derive(Debug, Parser)]
    #[command(disable_help_flag = true, disable_version_flag = true)]
    struct Program {
        #[command(flatten)]
        args: CombineBackupArgs,
    }

    fn resolve(line: &str) -> anyhow::Result<CombineConfig> {
        Program::try_parse_from(std::iter::once("x").chain(line.split_whitespace()))?.args.resolve()
    }

    #[test]
    fn resolves_what_operators_write() {
        let config = resolve("-o /o /full /one /two").expect("valid");
        let paths = ["/full", "/one", "/two"].map(PathBuf::from);
        assert_eq!((config.backups.as_slice(), config.output.as_path()), (&paths[..], Path::new("/o")));
        assert_eq!((config.manifest, config.method), (Some(ChecksumAlgorithm::Crc32c), CopyMethod::Copy));
        assert!(config.verify && !config.dry_run);
        assert_eq!(config.sync, Some(SyncMethod::Fsync));
        let config = resolve(
            "-n -N --no-manifest -T /a=/b -T /a=/c -T /c\\==/d -o /o --output=/p /full --workers 3 --io threads",
        );
        let config = config.expect("valid");
        assert!(config.dry_run && config.sync.is_none() && config.manifest.is_none());
        let mapping: Vec<_> = ["/c=", "/d", "/a", "/c", "/a", "/b"].map(PathBuf::from).into();
        let mapping: Vec<_> = mapping.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        assert_eq!((config.tablespace_mapping, config.output), (mapping, "/p".into()));
        assert_eq!((config.resources.workers, config.resources.io), (3, Some(IoMode::Threads)));
        let config = resolve("/full -o /o --manifest-checksums sha256 --sync-method syncfs").expect("valid");
        assert_eq!(config.manifest, Some(ChecksumAlgorithm::Sha256));
        assert_eq!(config.sync, Some(SyncMethod::Syncfs));
        for (options, method) in [
            ("-k", CopyMethod::Link),
            ("--clone", CopyMethod::Clone),
            ("--copy-file-range", CopyMethod::CopyFileRange),
            ("--clone --copy", CopyMethod::Copy),
            ("--copy --copy-file-range -k", CopyMethod::Link),
            ("-k --clone", CopyMethod::Clone),
            ("--clone -k --copy-file-range", CopyMethod::CopyFileRange),
        ] {
            let config = resolve(&format!("-o /o /full {options}")).expect("valid");
            assert_eq!(config.method, method, "{options}");
        }
    }

    #[test]
    fn refuses_by_name() {
        for (line, expected) in [
            ("", "no input directories specified"),
            ("-o /o", "no input directories specified"),
            ("/full", "no output directory specified"),
            ("/full -o /o --manifest-checksums md5", "unrecognized checksum algorithm: \"md5\""),
            ("/full -o /o --sync-method often", "unrecognized sync method: often"),
            ("/full -o /o -T /a", "invalid tablespace mapping format \"/a\", must be \"OLDDIR=NEWDIR\""),
            ("/full -o /o -T /a=/b -T /a=/b=/c -T x", "multiple \"=\" signs in tablespace mapping"),
            ("/full -o /o -T a=/b", "old directory is not an absolute path in tablespace mapping: a"),
            ("/full -o /o --buffers 1", "1 is not in 2..=16384"),
        ] {
            let refused = resolve(line).expect_err(line).to_string();
            assert!(refused.contains(expected), "{line}: {refused}");
        }
    }
}
