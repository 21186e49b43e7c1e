//! The order of files that come from several readers: each gets the next number when it begins.
//!
//! Behind the lanes, catalogue and manifest put files in the order of their numbers, and what overtook an earlier file
//! waits there. While one reader is busy with a large file, the others may therefore run ahead by only so many.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::failure::Failure;
use crate::stop::Stop;

/// How many files may overtake one that is being read.
const WINDOW: u64 = 1 << 15;
/// How often a reader looks whether it may go on.
const PAUSE: Duration = Duration::from_millis(1);

/// The numbers of one backup.
#[derive(Debug)]
pub(crate) struct Numbers {
    next: AtomicU64,
    /// For each reader, the number of the file that it has begun and not ended.
    begun: Vec<AtomicU64>,
}

impl Numbers {
    /// Numbers from 0 for so many readers.
    pub(crate) fn new(readers: usize) -> Self {
        Self { next: AtomicU64::new(0), begun: (0..readers).map(|_| AtomicU64::new(u64::MAX)).collect() }
    }

    /// The number behind the last: how many files there are, once all readers are done.
    pub(crate) fn count(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Whether a reader may begin more.
    fn is_open(&self) -> bool {
        let oldest = self.begun.iter().map(|begun| begun.load(Ordering::Acquire)).min().unwrap_or(u64::MAX);
        self.count().saturating_sub(oldest) < WINDOW
    }

    /// The first of `count` numbers that follow each other, for files that are handed on at once.
    pub(super) fn take(&self, count: u64, stop: &Stop<Failure>) -> Result<u64, Failure> {
        while !self.is_open() {
            if stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            thread::sleep(PAUSE);
        }
        Ok(self.next.fetch_add(count, Ordering::AcqRel))
    }

    /// The number of a file that `reader` hands on piece by piece, up to [`end`](Self::end).
    pub(super) fn begin(&self, reader: usize, stop: &Stop<Failure>) -> Result<u64, Failure> {
        let number = self.take(1, stop)?;
        self.begun[reader].store(number, Ordering::Release);
        Ok(number)
    }

    /// That file is handed on.
    pub(super) fn end(&self, reader: usize) {
        self.begun[reader].store(u64::MAX, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_runs_further_ahead_than_the_window() {
        let (numbers, stop) = (Numbers::new(2), Stop::new());
        assert_eq!(numbers.begin(0, &stop).expect("open"), 0);
        assert_eq!(numbers.take(WINDOW - 1, &stop).expect("open"), 1);
        assert!(!numbers.is_open());
        numbers.end(0);
        assert_eq!(numbers.take(5, &stop).expect("open"), WINDOW);
        numbers.begin(1, &stop).expect("open");
        numbers.take(WINDOW, &stop).expect("still open");
        stop.throw_quietly();
        assert!(matches!(numbers.take(1, &stop), Err(Failure::Stopped)));
        assert_eq!(numbers.count(), 2 * WINDOW + 6);
    }
}
