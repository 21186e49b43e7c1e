//! Counters of each stage: how long it worked, how long it waited for input, how long for those behind it.
//!
//! Each thread owns one set and is its only writer; readers see values that may be a moment old.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Where a stage's thread spends its time, and how much passed through it. Times in nanoseconds.
#[derive(Debug, Default)]
pub struct StageCounters {
    busy: AtomicU64,
    starved: AtomicU64,
    blocked: AtomicU64,
    bytes: AtomicU64,
}

/// What a moment of a stage's time was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// Doing the stage's own work.
    Busy,
    /// Waiting for something to work on.
    Starved,
    /// Holding finished work that the next stage, or the buffer pool, had no room for.
    Blocked,
}

impl StageCounters {
    /// Adds `bytes` to what has passed through.
    pub fn passed(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes passed so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn add(&self, spent: Spent, time: Duration) {
        let counter = match spent {
            Spent::Busy => &self.busy,
            Spent::Starved => &self.starved,
            Spent::Blocked => &self.blocked,
        };
        counter.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The counters as they stand.
    #[must_use]
    pub fn snapshot(&self) -> StageTimes {
        let seconds =
            |counter: &AtomicU64| Duration::from_nanos(counter.load(Ordering::Relaxed)).as_secs_f64();
        StageTimes {
            busy: seconds(&self.busy),
            starved: seconds(&self.starved),
            blocked: seconds(&self.blocked),
            bytes: self.bytes(),
        }
    }
}

/// One thread's clock over its counters: every moment between two calls is booked on exactly one kind.
#[derive(Debug)]
pub struct StageClock {
    counters: Arc<StageCounters>,
    since: Instant,
}

impl StageClock {
    /// Starts the clock now.
    #[must_use]
    pub fn start(counters: Arc<StageCounters>) -> Self {
        Self { counters, since: Instant::now() }
    }

    /// The counters that this clock fills.
    #[must_use]
    pub fn counters(&self) -> &StageCounters {
        &self.counters
    }

    /// Books the time since the last call as `spent`.
    pub fn book(&mut self, spent: Spent) {
        let now = Instant::now();
        self.counters.add(spent, now - self.since);
        self.since = now;
    }
}

/// Seconds a stage's threads spent, added over the threads, and the bytes that passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StageTimes {
    /// Working.
    pub busy: f64,
    /// Waiting for input.
    pub starved: f64,
    /// Waiting for the stage behind.
    pub blocked: f64,
    /// Bytes passed.
    pub bytes: u64,
}

impl StageTimes {
    /// The sum over several threads of one stage.
    #[must_use]
    pub fn sum(of: impl IntoIterator<Item = StageTimes>) -> StageTimes {
        of.into_iter().fold(StageTimes::default(), |sum, one| StageTimes {
            busy: sum.busy + one.busy,
            starved: sum.starved + one.starved,
            blocked: sum.blocked + one.blocked,
            bytes: sum.bytes + one.bytes,
        })
    }

    /// The share of its time that the stage worked, from 0 to 1.
    #[must_use]
    pub fn busy_share(&self) -> f64 {
        let all = self.busy + self.starved + self.blocked;
        if all > 0.0 { self.busy / all } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_is_booked_once() {
        let counters = Arc::new(StageCounters::default());
        let begin = Instant::now();
        let mut clock = StageClock::start(Arc::clone(&counters));
        for spent in [Spent::Busy, Spent::Starved, Spent::Blocked, Spent::Busy] {
            clock.book(spent);
        }
        counters.passed(3);
        let times = counters.snapshot();
        assert!(times.busy + times.starved + times.blocked <= begin.elapsed().as_secs_f64());
        assert_eq!(times.bytes, 3);
        assert_eq!(StageTimes::sum([times, times]).bytes, 6);
    }
}
