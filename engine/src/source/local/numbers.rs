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
/// How many extents of maps that were taken over may wait there with them: 20 bytes each.
const EXTENTS: u64 = 1 << 20;
/// How often a reader looks whether it may go on.
const PAUSE: Duration = Duration::from_millis(1);

/// The numbers of one backup.
#[derive(Debug)]
pub(crate) struct Numbers {
    next: AtomicU64,
    /// Extents of the maps of files that have a number.
    extents: AtomicU64,
    /// For each reader, the number of the file that it has begun and not ended, and the extents before it.
    begun: Vec<(AtomicU64, AtomicU64)>,
}

impl Numbers {
    /// Numbers from 0 for so many readers.
    pub(crate) fn new(readers: usize) -> Self {
        let begun = |_| (AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX));
        let (next, extents) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { next, extents, begun: (0..readers).map(begun).collect() }
    }

    /// The number behind the last: how many files there are, once all readers are done.
    pub(crate) fn count(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Whether a reader may begin more.
    fn is_open(&self) -> bool {
        let least = |of: fn(&(AtomicU64, AtomicU64)) -> &AtomicU64| {
            self.begun.iter().map(|begun| of(begun).load(Ordering::Acquire)).min().unwrap_or(u64::MAX)
        };
        self.count().saturating_sub(least(|begun| &begun.0)) < WINDOW
            && self.extents.load(Ordering::Acquire).saturating_sub(least(|begun| &begun.1)) < EXTENTS
    }

    /// The first of `count` numbers that follow each other, for files that are handed on at once, with so many extents of
    /// maps that they have already.
    pub(super) fn take(&self, count: u64, extents: u64, stop: &Stop<Failure>) -> Result<u64, Failure> {
        while !self.is_open() {
            if stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            thread::sleep(PAUSE);
        }
        self.extents.fetch_add(extents, Ordering::AcqRel);
        Ok(self.next.fetch_add(count, Ordering::AcqRel))
    }

    /// The number of a file that `reader` hands on piece by piece, up to [`end`](Self::end).
    pub(super) fn begin(&self, reader: usize, stop: &Stop<Failure>) -> Result<u64, Failure> {
        let number = self.take(1, 0, stop)?;
        self.begun[reader].1.store(self.extents.load(Ordering::Acquire), Ordering::Release);
        self.begun[reader].0.store(number, Ordering::Release);
        Ok(number)
    }

    /// That file is handed on.
    pub(super) fn end(&self, reader: usize) {
        self.begun[reader].0.store(u64::MAX, Ordering::Release);
        self.begun[reader].1.store(u64::MAX, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_runs_further_ahead_than_the_window() {
        let (numbers, stop) = (Numbers::new(2), Stop::new());
        assert_eq!(numbers.begin(0, &stop).expect("open"), 0);
        assert_eq!(numbers.take(WINDOW - 1, 0, &stop).expect("open"), 1);
        assert!(!numbers.is_open());
        numbers.end(0);
        assert_eq!(numbers.take(5, 0, &stop).expect("open"), WINDOW);
        numbers.begin(1, &stop).expect("open");
        numbers.take(1, EXTENTS - 1, &stop).expect("still open");
        assert!(numbers.is_open());
        numbers.take(1, 1, &stop).expect("still open");
        assert!(!numbers.is_open(), "as many extents as may wait");
        numbers.end(1);
        numbers.begin(1, &stop).expect("open");
        numbers.take(WINDOW - 3, 0, &stop).expect("still open");
        assert!(numbers.is_open());
        numbers.take(2, 0, &stop).expect("still open");
        stop.throw_quietly();
        assert!(matches!(numbers.take(1, 0, &stop), Err(Failure::Stopped)));
        assert_eq!(numbers.count(), 2 * WINDOW + 8);
    }
}
