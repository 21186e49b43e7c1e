//! A rate that all readers together keep to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::stop::Stop;

/// How long a reader sleeps before it looks for a stop.
const NAP: Duration = Duration::from_millis(50);

/// So many bytes a second, counted on from when each was due: what was not used up is not caught up with.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    began: Instant,
    /// When the next byte is due, in nanoseconds since the beginning.
    due: AtomicU64,
}

impl Pace {
    /// A pace in kB/s of 1024 bytes, as `--max-rate` says it.
    pub(crate) fn new(kilobytes_per_second: u32) -> Self {
        let bytes_per_second = u64::from(kilobytes_per_second.max(1)) * 1024;
        Self { bytes_per_second, began: Instant::now(), due: AtomicU64::new(0) }
    }

    /// Waits until `bytes` may be read.
    pub(super) fn wait(&self, bytes: usize, stop: &Stop<Failure>) -> Result<(), Failure> {
        let cost = (bytes as u64).saturating_mul(1_000_000_000) / self.bytes_per_second;
        let mut due = self.due.load(Ordering::Relaxed);
        let mine = loop {
            let mine = due.max(self.elapsed());
            match self.due.compare_exchange_weak(due, mine + cost, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break mine,
                Err(now) => due = now,
            }
        };
        loop {
            let left = Duration::from_nanos(mine.saturating_sub(self.elapsed()));
            if left.is_zero() {
                return Ok(());
            }
            if stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            thread::sleep(left.min(NAP));
        }
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_the_rate() {
        let (pace, stop) = (Pace::new(1024), Stop::new());
        let began = Instant::now();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..4 {
                        pace.wait(16 << 10, &stop).expect("not stopped");
                    }
                });
            }
        });
        // Of 8 pieces the last begins when 7 are paid for: 7/64 of a second.
        assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
        stop.throw_quietly();
        assert!(matches!(
            pace.wait(1 << 30, &stop).and_then(|()| pace.wait(1, &stop)),
            Err(Failure::Stopped)
        ));
    }
}
