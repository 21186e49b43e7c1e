//! SIGINT and SIGTERM end a run in order; the process then dies of the signal that it got.

use std::io;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use crossbeam::channel::bounded;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::Failure;
use crate::stop::Stop;

/// Throws `stop` at the first signal. A second one ends the process at once.
pub(super) fn throw_on_signal(stop: &Stop<Failure>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("could not listen for signals")?;
    let stop = stop.clone();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in &mut signals {
                if stop.is_thrown() {
                    die_of(signal);
                }
                stop.throw(Failure::Signal(signal));
            }
        })
        .context("could not start the signal thread")?;
    Ok(())
}

/// The failure behind an error of the terminal: a read that a signal broke off failed because of that signal.
pub(super) fn cause_of(error: anyhow::Error, stop: &Stop<Failure>) -> anyhow::Error {
    let read = error.root_cause().downcast_ref::<io::Error>();
    if read.is_none_or(|read| read.kind() != io::ErrorKind::Interrupted) {
        return error;
    }
    // The thread that listens for signals may be a moment behind.
    let (told, thrown) = bounded(1);
    stop.on_thrown(move || {
        // Nobody listens any more where it took too long.
        let _ = told.try_send(());
    });
    let _ = thrown.recv_timeout(Duration::from_secs(1));
    stop.take_reason().map_or(error, Into::into)
}

/// Ends the process as the signal itself would have.
pub(super) fn die_of(signal: i32) {
    // Only unknown signals are refused, and this one has just arrived.
    let _ = signal_hook::low_level::emulate_default_handler(signal);
}
