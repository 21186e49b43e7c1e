//! A back end that spoils another one's attempts, for tests: failures at a chosen attempt, short results,
//! late and reordered completions. The same seed gives the same short results for the same operations.
//!
//! It sits below the layer that resumes short operations, so what that layer does about real short results
//! is what it does about these.

use super::attempt::{Attempt, Attempted, RawDisk};
use super::doorbell::Doorbell;
use super::mode::IoMode;
use super::operation::OperationKind;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The kinds of attempt that faults tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Writes.
    Write,
    /// Reads.
    Read,
    /// Syncs.
    Sync,
}

#[derive(Debug, Clone)]
struct Failure {
    kind: FaultKind,
    first: u64,
    last: u64,
    errno: i32,
}

/// What is to go wrong. Clones share their counts, so one plan can span several disks.
#[derive(Debug, Clone)]
pub struct FaultPlan {
    seed: u64,
    failures: Vec<Failure>,
    short_writes: bool,
    short_reads: bool,
    reorder: bool,
    seen: Arc<[AtomicU64; 3]>,
}

impl FaultPlan {
    /// A plan in which nothing goes wrong yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            failures: Vec::new(),
            short_writes: false,
            short_reads: false,
            reorder: false,
            seen: Arc::default(),
        }
    }

    /// Fails the attempt number `nth` of `kind`, counted from 0, with `errno`. The resumption of a short
    /// operation is an attempt of its own.
    #[must_use]
    pub fn fail(mut self, kind: FaultKind, nth: u64, errno: i32) -> Self {
        self.failures.push(Failure { kind, first: nth, last: nth, errno });
        self
    }

    /// Fails every attempt of `kind` from number `first` on with `errno`, as a full disk does.
    #[must_use]
    pub fn fail_from(mut self, kind: FaultKind, first: u64, errno: i32) -> Self {
        self.failures.push(Failure { kind, first, last: u64::MAX, errno });
        self
    }

    /// Makes every write move fewer bytes than asked, wherever there is more than one unit to move.
    #[must_use]
    pub fn short_writes(mut self) -> Self {
        self.short_writes = true;
        self
    }

    /// Makes every read move fewer bytes than asked, wherever there is more than one unit to move.
    #[must_use]
    pub fn short_reads(mut self) -> Self {
        self.short_reads = true;
        self
    }

    /// Hands completions out late and in another order.
    #[must_use]
    pub fn reorder(mut self) -> Self {
        self.reorder = true;
        self
    }

    /// Attempts of `kind` so far, over all disks with this plan.
    #[must_use]
    pub fn seen(&self, kind: FaultKind) -> u64 {
        self.seen[kind as usize].load(Ordering::SeqCst)
    }

    /// Counts an attempt, and returns the error it is to fail with.
    fn count(&self, kind: FaultKind) -> Option<i32> {
        let number = self.seen[kind as usize].fetch_add(1, Ordering::SeqCst);
        let hit =
            |failure: &&Failure| failure.kind == kind && (failure.first..=failure.last).contains(&number);
        self.failures.iter().find(hit).map(|failure| failure.errno)
    }

    fn shortens(&self, kind: FaultKind) -> bool {
        match kind {
            FaultKind::Write => self.short_writes,
            FaultKind::Read => self.short_reads,
            FaultKind::Sync => false,
        }
    }
}

/// A back end with faults.
pub(super) struct FaultyDisk {
    inner: Box<dyn RawDisk>,
    plan: FaultPlan,
    /// Chooses the order of completions.
    random: Random,
    fresh: Vec<Attempted>,
    /// Over, but not told yet.
    held: Vec<Attempted>,
}

impl FaultyDisk {
    pub(super) fn new(inner: Box<dyn RawDisk>, plan: &FaultPlan) -> Self {
        let random = Random(plan.seed);
        Self { inner, plan: plan.clone(), random, fresh: Vec::new(), held: Vec::new() }
    }

    /// Direct I/O moves whole units, so the cut falls between them.
    fn shorten(&self, attempt: &mut Attempt) {
        let unit = attempt.operation.file.alignment();
        let units = (attempt.end - attempt.done).div_ceil(unit);
        if units > 1 {
            let kept = 1 + self.fate(attempt).below(units - 1);
            attempt.end = attempt.end.min(attempt.done + kept * unit);
        }
    }

    /// Tells of fewer bytes than were moved, inside a unit, as a torn transfer would.
    fn underreport(&self, attempted: &mut Attempted) {
        let mut fate = self.fate(&attempted.attempt);
        let unit = attempted.attempt.operation.file.alignment();
        if let Ok(moved) = &mut attempted.result
            && *moved > 1
            && fate.below(2) == 0
        {
            *moved -= fate.below(unit.min(*moved));
        }
    }

    /// What happens to an attempt depends on the seed and on where it is in its operation, but not on the
    /// order in which the disk happens to complete others.
    fn fate(&self, attempt: &Attempt) -> Random {
        let mut random = Random(self.plan.seed);
        for part in [attempt.operation.token, attempt.done as u64, u64::from(attempt.stalls)] {
            random.0 = random.next() ^ part;
        }
        random
    }
}

impl RawDisk for FaultyDisk {
    fn push(&mut self, mut attempt: Attempt) {
        let kind = kind_of(&attempt);
        if let Some(errno) = self.plan.count(kind) {
            self.held.push(Attempted { attempt, result: Err(io::Error::from_raw_os_error(errno)) });
            return;
        }
        if self.plan.shortens(kind) {
            self.shorten(&mut attempt);
        }
        self.inner.push(attempt);
    }

    fn collect(&mut self, wait: bool, done: &mut Vec<Attempted>) -> io::Result<bool> {
        let mut fresh = std::mem::take(&mut self.fresh);
        let collected = self.inner.collect(wait && self.held.is_empty(), &mut fresh);
        for mut attempted in fresh.drain(..) {
            if self.plan.shortens(kind_of(&attempted.attempt)) {
                self.underreport(&mut attempted);
            }
            self.held.push(attempted);
        }
        self.fresh = fresh;
        if self.plan.reorder {
            let least = usize::from(wait).min(self.held.len());
            let released = least + self.random.below(self.held.len() - least + 1);
            for _ in 0..released {
                let chosen = self.random.below(self.held.len());
                done.push(self.held.swap_remove(chosen));
            }
        } else {
            done.append(&mut self.held);
        }
        collected
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.held.len()
    }

    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn mode(&self) -> IoMode {
        self.inner.mode()
    }

    fn doorbell(&self) -> Doorbell {
        self.inner.doorbell()
    }
}

fn kind_of(attempt: &Attempt) -> FaultKind {
    match attempt.operation.kind {
        OperationKind::Write { .. } => FaultKind::Write,
        OperationKind::Read { .. } => FaultKind::Read,
        OperationKind::Sync { .. } => FaultKind::Sync,
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): small, seeded, and good enough to vary faults.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 when `bound` is.
    fn below(&mut self, bound: usize) -> usize {
        let number = self.next().checked_rem(bound as u64).unwrap_or(0);
        usize::try_from(number).unwrap_or(0)
    }
}
