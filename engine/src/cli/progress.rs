//! Shows a running backup: a bar on a terminal, plain lines elsewhere, JSON lines for programs.

use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::message;
use super::plain::plain;
use crate::basebackup::{Observer, Phase, Progress};

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    /// Not at all.
    Nothing,
    /// A bar that is drawn over.
    Bar,
    /// A line a second.
    Lines,
    /// A JSON object a second, on stdout.
    Json,
}

impl Show {
    /// What fits: JSON where it was asked for, a bar on a terminal, lines where `asked`. A `stock` tool shows nothing
    /// that was not asked for.
    pub(super) fn choose(json: bool, asked: bool, stock: bool) -> Show {
        match (json, std::io::stderr().is_terminal() && (asked || !stock), asked) {
            (true, _, _) => Show::Json,
            (false, true, _) => Show::Bar,
            (false, false, true) => Show::Lines,
            (false, false, false) => Show::Nothing,
        }
    }
}

/// Draws until it is dropped.
pub(super) struct Display {
    thread: Option<JoinHandle<()>>,
    quit: Option<Sender<()>>,
}

impl Display {
    /// Starts to show `progress`.
    pub(super) fn start(show: Show, verbose: bool, progress: Arc<Progress>, bar: ProgressBar) -> Display {
        let (quit, ended) = bounded(0);
        let thread = (show != Show::Nothing)
            .then(|| thread::spawn(move || draw(show, verbose, &progress, &bar, &ended)));
        Display { thread, quit: Some(quit) }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.quit = None;
        if let Some(thread) = self.thread.take() {
            // A display that panicked has nothing to add to the backup's outcome.
            let _ = thread.join();
        }
    }
}

/// The bar, drawn nowhere unless it is to be shown.
pub(super) fn bar(show: Show) -> ProgressBar {
    let target = if show == Show::Bar { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    ProgressBar::with_draw_target(None, target)
}

fn draw(show: Show, verbose: bool, progress: &Progress, bar: &ProgressBar, ended: &Receiver<()>) {
    let known = ProgressStyle::with_template(
        "{bar:28} {percent:>3}%  {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left  {msg}",
    );
    let unknown = ProgressStyle::with_template("{spinner} {bytes}  {binary_bytes_per_sec}  {elapsed}  {msg}");
    let pause = Duration::from_millis(if show == Show::Bar { 100 } else { 1000 });
    let mut has_length = false;
    bar.set_style(unknown.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let mut known = Some(known.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut last = None;
    loop {
        let over = ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
        let bytes = progress.bytes.load(Ordering::Relaxed);
        // The estimate is from the start; a cluster that grew meanwhile is not more than done.
        let arrived = matches!(progress.phase(), Phase::Settling | Phase::WaitingForWal | Phase::Finishing);
        let estimate = match progress.estimate.load(Ordering::Relaxed) {
            0 => 0,
            // Nor was there more than has come, once all has.
            _ if arrived => bytes,
            estimate => estimate.max(bytes),
        };
        match show {
            Show::Bar => {
                if estimate > 0
                    && let Some(known) = known.take()
                {
                    bar.set_style(known);
                    has_length = true;
                }
                if has_length {
                    bar.set_length(estimate);
                }
                bar.set_position(bytes);
                bar.set_message(message(progress, verbose));
                bar.tick();
            }
            Show::Lines | Show::Json => {
                let now = (bytes, progress.phase());
                // Nothing new is no news, except that it takes long.
                if last != Some(now) || over {
                    line(show, progress, bytes, estimate, verbose);
                }
                last = Some(now);
            }
            Show::Nothing => {}
        }
        if over {
            bar.finish_and_clear();
            return;
        }
    }
}

fn message(progress: &Progress, verbose: bool) -> String {
    let done = progress.tablespaces_done.load(Ordering::Relaxed);
    let tablespaces = progress.tablespaces.load(Ordering::Relaxed);
    match progress.phase() {
        Phase::Starting => "connecting".into(),
        Phase::WaitingForCheckpoint => "waiting for checkpoint".into(),
        Phase::Receiving if verbose => shown(&progress.file()),
        Phase::Receiving => counted(done, tablespaces),
        Phase::Settling => "writing and syncing what has arrived".into(),
        Phase::WaitingForWal => "waiting for the last WAL".into(),
        Phase::Finishing => "comparing with the manifest".into(),
    }
}

/// Tablespaces in pg_basebackup's words (`progress_report`, `pg_basebackup.c`), which scripts read.
fn counted(done: u32, tablespaces: u32) -> String {
    format!("{done}/{tablespaces} {}", if tablespaces == 1 { "tablespace" } else { "tablespaces" })
}

/// A file name of at most 35 columns, its end rather than its beginning.
fn shown(path: &[u8]) -> String {
    let path = Path::new(OsStr::from_bytes(path)).display().to_string();
    let path = plain(&path);
    let length = path.chars().count();
    if length <= 35 {
        path.into_owned()
    } else {
        format!("...{}", path.chars().skip(length - 32).collect::<String>())
    }
}

fn line(show: Show, progress: &Progress, bytes: u64, estimate: u64, verbose: bool) {
    let done = progress.tablespaces_done.load(Ordering::Relaxed);
    let tablespaces = progress.tablespaces.load(Ordering::Relaxed);
    if show == Show::Json {
        let event = json!({
            "event": "progress",
            "phase": format!("{:?}", progress.phase()),
            "bytes": bytes,
            "estimated_bytes": estimate,
            "files": progress.files.load(Ordering::Relaxed),
            "tablespaces_done": done,
            "tablespaces": tablespaces,
            "wal_bytes": progress.wal_bytes.load(Ordering::Relaxed),
        });
        print_json(&event);
        return;
    }
    let kb = bytes.div_ceil(1024);
    let text = match (progress.phase(), estimate.div_ceil(1024)) {
        // The voice says that a checkpoint is waited for.
        (Phase::Starting | Phase::WaitingForCheckpoint, _) => return,
        (_, 0) => format!("{kb} kB, {}", counted(done, tablespaces)),
        (_, total) => {
            let percent = kb.saturating_mul(100) / total;
            let width = total.to_string().len();
            format!("{kb:>width$}/{total} kB ({percent}%), {}", counted(done, tablespaces))
        }
    };
    let text = if verbose { format!("{text} ({})", shown(&progress.file())) } else { text };
    // A closed stderr must not end a backup.
    let _ = writeln!(std::io::stderr(), "{}", plain(&text));
}

/// Writes one JSON object as a line of stdout.
pub(super) fn print_json(value: &serde_json::Value) {
    // A reader that has gone away must not end a backup.
    let _ = writeln!(std::io::stdout(), "{value}");
}

/// Bytes for people.
pub(super) fn human_bytes(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// Time for people.
pub(super) fn human_seconds(seconds: f64) -> String {
    if seconds < 100.0 {
        format!("{seconds:.1} s")
    } else {
        HumanDuration(Duration::from_secs_f64(seconds)).to_string()
    }
}

/// Prints what a run has to say, around the bar.
pub(super) struct Voice {
    pub(super) bar: ProgressBar,
    pub(super) show: Show,
    pub(super) verbose: bool,
}

impl Observer for Voice {
    fn warning(&self, text: &str) {
        // What the server says already carries its severity.
        match text.split_once(':') {
            Some((severity, _)) if severity.bytes().all(|byte| byte.is_ascii_uppercase()) => {
                self.bar.suspend(|| message::print(&plain(text.trim_end())));
            }
            _ => self.bar.suspend(|| message::warning(text)),
        }
    }

    fn note(&self, text: &str) {
        if self.verbose {
            self.bar.suspend(|| message::note(text));
        }
    }

    fn entered(&self, phase: Phase) {
        // With --verbose a note says so; a bar shows it.
        if phase == Phase::WaitingForCheckpoint && self.show == Show::Lines && !self.verbose {
            message::print("waiting for checkpoint");
        }
    }
}
