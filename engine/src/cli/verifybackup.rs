//! `pgstrata verifybackup`: pg_verifybackup's options, resolved into a checked configuration, run and reported.
//!
//! stdout carries what pg_verifybackup prints, or one JSON object with `--json`; everything else goes to stderr.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::basebackup::IoArg;
use super::message;
use super::progress::{human_bytes, human_seconds, print_json};
use super::signals::throw_on_signal;
use super::stock::Tool;
use crate::failure::Failure;
use crate::stop::Stop;
use crate::verify::{
    BackupFormat, VerifyConfig, VerifyPhase, VerifyProgress, VerifyReport, verify_directory,
};

/// Verify a backup against its manifest
#[derive(Debug, Args)]
// As getopt has it, the last one of an option counts.
#[command(disable_help_flag = true, args_override_self = true)]
pub(super) struct VerifyBackupArgs {
    /// The backup's directory
    #[arg(value_name = "BACKUPDIR")]
    backup: Option<PathBuf>,

    /// Exit immediately on error
    #[arg(short = 'e', long, help_heading = "Options")]
    exit_on_error: bool,
    /// Backup format (plain, tar)
    #[arg(short = 'F', long, value_name = "p|t", help_heading = "Options")]
    format: Option<String>,
    /// Ignore indicated path
    #[arg(short = 'i', long, value_name = "RELATIVE_PATH", help_heading = "Options")]
    ignore: Vec<OsString>,
    /// Use specified path for manifest
    #[arg(short = 'm', long, value_name = "PATH", help_heading = "Options")]
    manifest_path: Option<PathBuf>,
    /// Do not try to parse WAL files
    #[arg(short = 'n', long, help_heading = "Options")]
    no_parse_wal: bool,
    /// Show progress information
    #[arg(short = 'P', long, help_heading = "Options")]
    progress: bool,
    /// Do not print any output, except for errors and warnings
    #[arg(short = 'q', long, help_heading = "Options")]
    quiet: bool,
    /// Skip checksum verification
    #[arg(short = 's', long, help_heading = "Options")]
    skip_checksums: bool,
    /// Use specified path for WAL files
    #[arg(short = 'w', long, value_name = "PATH", help_heading = "Options")]
    wal_directory: Option<PathBuf>,

    /// Disk back end
    #[arg(long, value_enum, default_value = "auto", help_heading = "Engine options")]
    io: IoArg,
    /// Memory for buffers, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=16384), help_heading = "Engine options")]
    buffers: u16,
    /// Threads that read and verify
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Engine options")]
    workers: Option<u16>,
    /// Write the outcome to stdout as one JSON object
    #[arg(long, help_heading = "Engine options")]
    json: bool,

    /// Show this help, then exit
    #[arg(short = '?', long, action = clap::ArgAction::Help, help_heading = "Options")]
    help: Option<bool>,
}

impl VerifyBackupArgs {
    /// Checks the options against each other.
    pub(super) fn resolve(&self) -> anyhow::Result<VerifyConfig> {
        let format = match self.format.as_deref() {
            None => None,
            Some("p" | "plain") => Some(BackupFormat::Plain),
            Some("t" | "tar") => Some(BackupFormat::Tar),
            Some(other) => bail!("invalid backup format \"{other}\", must be \"plain\" or \"tar\""),
        };
        let Some(backup) = &self.backup else {
            return Err(Tool::VerifyBackup.misuse("no backup directory specified"));
        };
        if self.progress && self.quiet {
            bail!("cannot specify both -P/--progress and -q/--quiet");
        }
        let mut config = VerifyConfig::of(backup);
        config.format = format;
        if let Some(path) = &self.manifest_path {
            config.manifest.clone_from(path);
        }
        for path in &self.ignore {
            config.ignore.add(path.as_bytes());
        }
        config.exit_on_error = self.exit_on_error;
        config.skip_checksums = self.skip_checksums;
        config.parse_wal = !self.no_parse_wal;
        config.wal_directory.clone_from(&self.wal_directory);
        config.resources.io = self.io.mode();
        config.resources.buffer_bytes = usize::from(self.buffers) << 20;
        if let Some(workers) = self.workers {
            config.resources.workers = usize::from(workers);
        }
        Ok(config)
    }
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &VerifyBackupArgs) -> anyhow::Result<()> {
    let outcome = attempt(args);
    let verified = match &outcome {
        Ok(report) => {
            if args.json {
                print_json(&serde_json::to_value(report)?);
            } else if report.verified && !args.quiet {
                // A reader that has gone away changes nothing about the backup.
                let _ = writeln!(std::io::stdout(), "backup successfully verified");
            }
            if !args.json && !args.quiet && !message::is_stock() {
                say(summary(report).trim_end());
            }
            report.verified
        }
        Err(error) => {
            let told = match error.downcast_ref::<Failure>() {
                Some(failure) => failure.to_string(),
                None => format!("{error:#}"),
            };
            if args.json {
                print_json(&json!({ "verified": false, "error": told }));
            }
            message::error(&told);
            false
        }
    };
    outcome?;
    // Every problem has been told; the status is all that is left to say.
    if verified { Ok(()) } else { bail!("the backup is not verified") }
}

fn attempt(args: &VerifyBackupArgs) -> anyhow::Result<VerifyReport> {
    let config = args.resolve()?;
    let stop = Stop::new();
    throw_on_signal(&stop)?;
    let (bar, lines) = match (args.progress, std::io::stderr().is_terminal()) {
        (true, true) => (ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()), false),
        (shows, _) => (ProgressBar::hidden(), shows),
    };
    let around = bar.clone();
    let progress = Arc::new(VerifyProgress::new(move |problem| {
        around.suspend(|| message::error(&problem.to_string()));
    }));
    let display = Display::start(&progress, bar, lines);
    let outcome = verify_directory(&config, &progress, &stop);
    drop(display);
    Ok(outcome?)
}

fn say(text: &str) {
    // A closed stderr must not end a verification.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn summary(report: &VerifyReport) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| text.push_str(&format!("  {name:<12} {value}\n"));
    row("backup", report.path.display().to_string());
    row("files", format!("{}, contents of {} verified", report.files, report.files_summed));
    let cached = match report.bytes_from_cache {
        0 => String::new(),
        bytes => format!(", {} of them from the page cache", human_bytes(bytes)),
    };
    row("data", format!("{}{cached}", human_bytes(report.bytes)));
    let wal = match (report.wal_parsed, report.wal_ranges.as_slice()) {
        (false, _) => "not parsed, as asked for".to_owned(),
        (true, [only]) => {
            let (from, to) = (&only.start, &only.end);
            format!("{}, timeline {} from {from} to {to}", human_bytes(report.wal_bytes), only.timeline)
        }
        (true, ranges) => format!("{} in {} ranges", human_bytes(report.wal_bytes), ranges.len()),
    };
    row("WAL", wal);
    let seconds = &report.seconds;
    row(
        "time",
        format!(
            "{} (manifest {:.1}, presence {:.1}, checksums {:.1}, WAL {:.1}), {:.0} MB/s",
            human_seconds(seconds.total),
            seconds.manifest,
            seconds.presence,
            seconds.checksums,
            seconds.wal,
            report.bytes_per_second / 1e6
        ),
    );
    row("cost", format!("{:.2} CPU seconds, {} memory", report.cpu_seconds, human_bytes(report.peak_memory)));
    row("I/O", format!("{} ({}), {} workers", report.io, report.io_reason, report.workers));
    row("limited by", report.limited_by.to_string());
    if report.problem_count > 0 {
        row("problems", report.problem_count.to_string());
    }
    text
}

/// Draws until it is dropped.
struct Display {
    thread: Option<JoinHandle<()>>,
    quit: Option<Sender<()>>,
}

impl Display {
    fn start(progress: &Arc<VerifyProgress>, bar: ProgressBar, lines: bool) -> Self {
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

fn draw(progress: &VerifyProgress, bar: &ProgressBar, lines: bool, ended: &Receiver<()>) {
    let style = ProgressStyle::with_template(
        "{bar:28} {percent:>3}%  {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left  {msg}",
    );
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let pause = Duration::from_millis(if lines { 1000 } else { 100 });
    let mut told = String::new();
    loop {
        let over = ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (bytes, total) = (count(&progress.bytes), count(&progress.total_bytes));
        let (files, total_files) = (count(&progress.files), count(&progress.total_files));
        if lines {
            let line = match progress.phase() {
                VerifyPhase::Manifest => "reading the manifest".to_owned(),
                VerifyPhase::Presence => format!("{}/{total_files} files found", count(&progress.files_seen)),
                VerifyPhase::Checksums | VerifyPhase::Wal | VerifyPhase::Finished => as_stock(bytes, total),
            };
            // Nothing new is no news.
            if line != told {
                say(&line);
                told = line;
            }
        } else {
            bar.set_length(total.max(bytes));
            bar.set_position(bytes);
            bar.set_message(match progress.phase() {
                VerifyPhase::Manifest => "reading the manifest".to_owned(),
                VerifyPhase::Presence => format!("{}/{total_files} files found", count(&progress.files_seen)),
                VerifyPhase::Checksums | VerifyPhase::Finished => format!("{files}/{total_files} files"),
                VerifyPhase::Wal => format!("{} of WAL", human_bytes(count(&progress.wal_bytes))),
            });
            bar.tick();
        }
        if over {
            bar.finish_and_clear();
            return;
        }
    }
}

/// The line of pg_verifybackup's own progress.
fn as_stock(bytes: u64, total: u64) -> String {
    let (done, total) = (bytes / 1024, total / 1024);
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
    let width = total.to_string().len();
    format!("{done:>width$}/{total} kB ({percent}%) verified")
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
        args: VerifyBackupArgs,
    }

    fn resolve(line: &str) -> anyhow::Result<VerifyConfig> {
        Program::try_parse_from(std::iter::once("x").chain(line.split_whitespace()))?.args.resolve()
    }

    #[test]
    fn resolves_what_operators_write() {
        let config =
            resolve("-e -n -s -i base/1/ --ignore=./x -m /m --io threads --workers 3 --buffers 8 /b")
                .expect("valid");
        assert!(config.exit_on_error && config.skip_checksums);
        assert_eq!((config.backup.as_path(), config.manifest.as_path()), (Path::new("/b"), Path::new("/m")));
        assert!(config.ignore.covers(b"base/1/1259") && config.ignore.covers(b"x"));
        assert!(config.ignore.covers(b"pg_wal/0"));
        assert_eq!(config.resources.io, Some(IoMode::Threads));
        assert_eq!((config.resources.workers, config.resources.buffer_bytes), (3, 8 << 20));
        assert_eq!((config.parse_wal, config.wal_directory), (false, None));
        let config = resolve("/b -q -q -w /x -Fp --wal-directory=/wal").expect("valid");
        assert_eq!((config.parse_wal, config.wal_directory), (true, Some("/wal".into())));
        for (line, format) in [
            ("/b", None),
            ("/b -Fp", Some(BackupFormat::Plain)),
            ("/b --format=tar -F plain", Some(BackupFormat::Plain)),
            ("-F t /b", Some(BackupFormat::Tar)),
        ] {
            assert_eq!(resolve(line).expect("valid").format, format, "{line}");
        }
        assert_eq!(config.manifest, Path::new("/b/backup_manifest"));
        assert_eq!(config.resources.io, None);
    }

    #[test]
    fn refuses_by_name() {
        for (line, expected) in [
            ("", "no backup directory specified"),
            ("/b -F x", "invalid backup format \"x\""),
            ("/b -P -q", "cannot specify both -P/--progress and -q/--quiet"),
            ("/b /c", "unexpected argument"),
            ("/b --workers 0", "0 is not in 1..=256"),
        ] {
            let refused = resolve(line).expect_err(line).to_string();
            assert!(refused.contains(expected), "{line}: {refused}");
        }
    }

    #[test]
    fn progress_as_the_stock_tool_words_it() {
        assert_eq!(as_stock(512 << 10, 10 << 20), "  512/10240 kB (5%) verified");
        assert_eq!(as_stock(0, 0), "0/0 kB (100%) verified");
    }
}
