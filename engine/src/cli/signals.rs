//! SIGINT and SIGTERM end a run in order; the process then dies of the signal that it got.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::Failure;
use crate::stop::Stop;

/// What signals do now.
pub(super) struct SignalWatch {
    at_once: Arc<AtomicBool>,
}

impl SignalWatch {
    /// Whether a signal ends the process without further ado.
    pub(super) fn end_at_once(&self, at_once: bool) {
        self.at_once.store(at_once, Ordering::Release);
    }
}

/// Throws `stop` at the first signal. A second one ends the process at once.
pub(super) fn throw_on_signal(stop: &Stop<Failure>) -> anyhow::Result<SignalWatch> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("could not listen for signals")?;
    let stop = stop.clone();
    let watch = SignalWatch { at_once: Arc::default() };
    let at_once = Arc::clone(&watch.at_once);
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in &mut signals {
                if stop.is_thrown() || at_once.load(Ordering::Acquire) {
                    die_of(signal);
                }
                stop.throw(Failure::Signal(signal));
            }
        })
        .context("could not start the signal thread")?;
    Ok(watch)
}

/// Ends the process as the signal itself would have.
pub(super) fn die_of(signal: i32) {
    // Only unknown signals are refused, and this one has just arrived.
    let _ = signal_hook::low_level::emulate_default_handler(signal);
}
