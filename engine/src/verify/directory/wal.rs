//! The WAL that a backup needs to become consistent: every record of the manifest's ranges is read and checked.
//!
//! pg_verifybackup has pg_waldump do this, of the server's own version; here one reader knows all versions, for it
//! looks at pages, the chain of records and their checksums, not at what records mean.
//!
//! Invariant: a range takes one buffer, however long it is.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use pgstrata_protocol::Lsn;
use pgstrata_protocol::manifest::WalRange;
use rustix::fs::Advice;
use rustix::io::Errno;

use super::BUFFER;
use super::cached::{Cached, cached};
use super::problem::Problem;
use super::run::Run;
use super::wal_range::RangeCheck;
use super::wal_store::{SegmentFile, WalStore};
use crate::failure::Failure;

/// Checks the WAL in `pg_wal`, or in the folder that was named.
pub(super) fn check_folder(
    run: &Run<'_>,
    ranges: &[WalRange],
    identifier: Option<u64>,
) -> Result<(), Failure> {
    let path: PathBuf = match &run.config.wal_directory {
        Some(path) => path.clone(),
        None => run.config.backup.join("pg_wal"),
    };
    match WalStore::folder(&path) {
        Ok(store) => check(run, ranges, &store, identifier),
        Err(error) => ranges.iter().try_for_each(|range| {
            let reason = format!("could not open directory: {error}{}", hint(run));
            run.report(Problem::wal(range, path.display().to_string(), reason))
        }),
    }
}

/// Checks every range, as many at a time as there are workers.
pub(super) fn check(
    run: &Run<'_>,
    ranges: &[WalRange],
    store: &WalStore,
    identifier: Option<u64>,
) -> Result<(), Failure> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), Failure> {
        let mut buffer = vec![0; BUFFER];
        while let Some(range) = ranges.get(next.fetch_add(1, Ordering::Relaxed)) {
            check_range(run, *range, store, identifier, &mut buffer)?;
        }
        Ok(())
    };
    let others = run.config.resources.workers.min(ranges.len()).saturating_sub(1);
    thread::scope(|scope| {
        let others: Vec<_> = (0..others).map(|_| scope.spawn(work)).collect();
        let mut outcome = work();
        for other in others {
            let worked = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            if let (Err(_), Ok(()) | Err(Failure::Stopped)) = (&worked, &outcome) {
                outcome = worked;
            }
        }
        outcome
    })
}

/// Why a segment that is needed is not there.
pub(super) fn missing(run: &Run<'_>, check: &RangeCheck) -> String {
    let WalRange { start, end, .. } = check.range();
    let needed = check.position().max(start);
    format!(
        "could not find the segment, which is needed from {needed} on for WAL from {start} to {end}{}",
        hint(run)
    )
}

fn hint(run: &Run<'_>) -> &'static str {
    match run.config.wal_directory {
        Some(_) => "\nHINT: without this WAL the backup cannot be restored; look for it in the WAL archive.",
        None => "\nHINT: where the WAL was kept elsewhere, name that folder with --wal-directory.",
    }
}

fn check_range(
    run: &Run<'_>,
    range: WalRange,
    store: &WalStore,
    identifier: Option<u64>,
    buffer: &mut [u8],
) -> Result<(), Failure> {
    // The manifest's reader refuses ranges that end before they begin.
    if range.start >= range.end {
        return Ok(());
    }
    let size =
        store.segment_size(&range).map_err(|error| Failure::disk("search for WAL in", "pg_wal", error))?;
    let mut check = RangeCheck::new(range, size, identifier);
    let mut last = store.shown(&check.segment().file_name(size));
    while !check.is_read() {
        let name = check.segment().file_name(size);
        last = store.shown(&name);
        let outcome = match store.open(&name) {
            Ok(Some(segment)) if segment.length != size.bytes() => {
                Err(format!("the segment has {} bytes, expected {}", segment.length, size.bytes()))
            }
            Ok(Some(segment)) => check_segment(run, &mut check, &segment, buffer)?,
            Ok(None) => Err(missing(run, &check)),
            Err(error) => Err(format!("could not open file: {error}")),
        };
        if let Err(reason) = outcome {
            return run.report(Problem::wal(&range, last, reason));
        }
    }
    match check.finish() {
        Ok(()) => Ok(()),
        Err(error) => run.report(Problem::wal(&range, last, error.to_string())),
    }
}

/// Reads what is needed of one segment. The outer error ends the run, the inner one says what is wrong.
fn check_segment(
    run: &Run<'_>,
    check: &mut RangeCheck,
    segment: &SegmentFile,
    buffer: &mut [u8],
) -> Result<Result<(), String>, Failure> {
    let size = check.segment_size().bytes();
    let start = check.position().segment_start(size);
    let end = Lsn(start.0.saturating_add(size)).min(check.range().end);
    let held = cached(&*segment.file, segment.offset, segment.length);
    while check.position() < end {
        if run.stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        let at = check.position();
        let length = usize::try_from(end.0 - at.0).map_or(buffer.len(), |left| left.min(buffer.len()));
        match rustix::io::pread(&*segment.file, &mut buffer[..length], segment.offset + (at.0 - start.0)) {
            Ok(0) => return Ok(Err(format!("the segment ends before {at}"))),
            Ok(read) => {
                run.progress.wal_bytes.fetch_add(read as u64, Ordering::Relaxed);
                if let Err(error) = check.push(at, &buffer[..read]) {
                    return Ok(Err(error.to_string()));
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Ok(Err(format!("could not read file at {at}: {error}"))),
        }
    }
    if held == Cached::Nothing {
        // Advice: if it is not taken, the cache is merely fuller.
        let _ = rustix::fs::fadvise(
            &*segment.file,
            segment.offset,
            NonZeroU64::new(segment.length),
            Advice::DontNeed,
        );
    }
    Ok(Ok(()))
}
