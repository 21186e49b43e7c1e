//! Short results, errors at every attempt, reordered completions: the data is right or the error is told,
//! and every buffer comes back.

use super::*;
use crate::ring::FaultKind;
use rustix::io::Errno;

const LENGTH: usize = 3 * BLOCK + 1234;

struct Outcome {
    writes: Vec<(u64, io::Error)>,
    sync: io::Result<usize>,
    reads: Vec<(u64, io::Error)>,
    found: Vec<u8>,
}

/// Writes, syncs, truncates and reads back under a plan, and checks that nothing was lost on the way.
fn exercise(case: &Case, plan: &FaultPlan, bytes: &[u8]) -> Outcome {
    let pool = BufferPool::new(5, BLOCK).expect("pool");
    let mut disk = case.open_faulty(4, Some(&pool), plan);
    let file = case.create("data");
    let writes = write_all(&mut *disk, &pool, &file, bytes);
    let synced = run(&mut *disk, sync(99, &file, true)).result;
    file.truncate(bytes.len() as u64).expect("truncate");
    let (found, reads) = read_all(&mut *disk, &pool, &case.open_read("data"), bytes.len());
    assert_eq!(pool.free(), pool.count(), "{}: a buffer is missing before the drop", case.name);
    assert_eq!(disk.in_flight(), 0);
    Outcome { writes, sync: synced, reads, found }
}

#[test]
fn short_and_reordered_transfers_lose_nothing() {
    for case in cases() {
        for seed in 0..6 {
            let plan = FaultPlan::new(seed).short_writes().short_reads().reorder();
            let bytes = content(seed, LENGTH);
            let outcome = exercise(&case, &plan, &bytes);
            let place = format!("{}, seed {seed}", case.name);
            assert!(outcome.writes.is_empty() && outcome.reads.is_empty(), "{place}: {:?}", outcome.writes);
            assert!(outcome.sync.is_ok());
            assert!(outcome.found == bytes, "{place}: wrong bytes read");
            assert!(std::fs::read(case.path("data")).expect("read") == bytes, "{place}: wrong bytes on disk");
            let blocks = LENGTH.div_ceil(BLOCK) as u64;
            assert!(plan.seen(FaultKind::Write) > blocks, "{place}: no write was cut short");
            assert!(plan.seen(FaultKind::Read) > blocks, "{place}: no read was cut short");
        }
    }
}

#[test]
fn an_error_at_any_attempt_is_told_once_and_the_rest_goes_on() {
    for case in cases() {
        let bytes = content(11, LENGTH);
        let count = FaultPlan::new(3).short_writes().short_reads();
        exercise(&case, &count, &bytes);
        for (kind, errno) in [
            (FaultKind::Write, Errno::IO),
            (FaultKind::Write, Errno::NOSPC),
            (FaultKind::Read, Errno::IO),
            (FaultKind::Sync, Errno::IO),
            (FaultKind::Sync, Errno::NOSPC),
            (FaultKind::Sync, Errno::INTR),
        ] {
            assert!(count.seen(kind) > 0);
            for nth in 0..count.seen(kind) {
                let errno = errno.raw_os_error();
                let plan = FaultPlan::new(3).short_writes().short_reads().fail(kind, nth, errno);
                let outcome = exercise(&case, &plan, &bytes);
                let place = format!("{}, {kind:?} attempt {nth} fails with {errno}", case.name);
                let told = |failures: &[(u64, io::Error)]| matches!(failures, [(_, error)] if error.raw_os_error() == Some(errno));
                match kind {
                    FaultKind::Write => {
                        assert!(told(&outcome.writes), "{place}: {:?}", outcome.writes);
                        let failed = outcome.sync.expect_err("no sync succeeds over a failed write");
                        assert_eq!(failed.raw_os_error(), Some(errno), "{place}");
                        assert_eq!(plan.seen(FaultKind::Sync), 0, "{place}: the kernel was not even asked");
                    }
                    FaultKind::Sync => {
                        let failed = outcome.sync.expect_err(&place);
                        assert_eq!(failed.raw_os_error(), Some(errno), "{place}");
                        assert_eq!(plan.seen(FaultKind::Sync), 1, "{place}: not tried again");
                        assert!(outcome.writes.is_empty() && outcome.found == bytes);
                    }
                    FaultKind::Read => {
                        assert!(told(&outcome.reads), "{place}: {:?}", outcome.reads);
                        assert!(outcome.writes.is_empty() && outcome.sync.is_ok(), "{place}");
                    }
                }
            }
        }
    }
}

#[test]
fn interrupted_attempts_are_tried_again() {
    for case in cases() {
        let bytes = content(12, LENGTH);
        for errno in [Errno::INTR, Errno::AGAIN] {
            let mut plan = FaultPlan::new(5).short_writes().short_reads();
            for nth in (0..200).step_by(3) {
                plan = plan.fail(FaultKind::Write, nth, errno.raw_os_error());
                plan = plan.fail(FaultKind::Read, nth, errno.raw_os_error());
            }
            let outcome = exercise(&case, &plan, &bytes);
            assert!(outcome.writes.is_empty() && outcome.reads.is_empty() && outcome.sync.is_ok());
            assert!(outcome.found == bytes, "{}", case.name);
        }
    }
}

#[test]
fn an_interruption_without_end_becomes_an_error() {
    for case in cases() {
        let plan = FaultPlan::new(0).fail_from(FaultKind::Write, 1, Errno::AGAIN.raw_os_error());
        let outcome = exercise(&case, &plan, &content(13, 3 * BLOCK));
        assert_eq!(outcome.writes.len(), 2, "{}", case.name);
        assert!(outcome.writes.iter().all(|(_, error)| error.kind() == io::ErrorKind::WouldBlock));
        assert!(outcome.sync.is_err());
    }
}

#[test]
fn a_full_disk_fails_everything_after_it() {
    for case in cases() {
        let plan = FaultPlan::new(1).reorder().fail_from(FaultKind::Write, 2, Errno::NOSPC.raw_os_error());
        let outcome = exercise(&case, &plan, &content(14, 5 * BLOCK));
        assert_eq!(outcome.writes.len(), 3, "{}", case.name);
        assert!(outcome.writes.iter().all(|(_, error)| error.kind() == io::ErrorKind::StorageFull));
    }
}

#[test]
fn a_failed_sync_stays_failed() {
    for case in cases() {
        let plan = FaultPlan::new(0).fail(FaultKind::Sync, 0, Errno::IO.raw_os_error());
        let pool = BufferPool::new(1, BLOCK).expect("pool");
        let mut disk = case.open_faulty(1, Some(&pool), &plan);
        let file = case.create("data");
        for _ in 0..3 {
            let synced = run(&mut *disk, sync(1, &file, false));
            assert_eq!(synced.result.expect_err("sticky").raw_os_error(), Some(libc::EIO), "{}", case.name);
        }
        assert_eq!(file.failure().and_then(|error| error.raw_os_error()), Some(libc::EIO));
        // Another file is another matter.
        assert!(run(&mut *disk, sync(2, &case.create("other"), false)).result.is_ok());
    }
}

#[test]
fn a_file_that_refuses_uncached_io_is_written_through_the_cache() {
    for case in cases().into_iter().filter(|case| case.mode == IoMode::Uncached) {
        let plan = FaultPlan::new(0).fail(FaultKind::Write, 0, Errno::OPNOTSUPP.raw_os_error());
        let bytes = content(15, LENGTH);
        let outcome = exercise(&case, &plan, &bytes);
        assert!(outcome.writes.is_empty() && outcome.sync.is_ok() && outcome.found == bytes, "{}", case.name);
    }
}
