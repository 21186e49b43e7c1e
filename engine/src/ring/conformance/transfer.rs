//! What goes in comes out: many blocks, unaligned tails, the end of the file, refused nonsense.

use super::*;
use crate::ring::Registered;

#[test]
fn what_was_written_is_read_back() {
    for case in cases() {
        let pool = BufferPool::new(12, BLOCK).expect("pool");
        let mut disk = case.open(8, Some(&pool));
        assert_eq!(disk.depth(), 8);
        assert_eq!(disk.mode(), case.mode);
        for (seed, length, preallocated) in
            [(1, 1, false), (2, BLOCK, true), (3, 61 * BLOCK + 4097, true), (4, 37 * BLOCK - 1, false)]
        {
            let place = format!("{}, {length} bytes", case.name);
            let bytes = content(seed, length);
            let file = case.create("data");
            if preallocated {
                file.preallocate(length as u64).expect("preallocate");
                assert!(file.size().expect("size") >= length as u64 || case.mode != IoMode::Direct);
            }
            assert!(write_all(&mut *disk, &pool, &file, &bytes).is_empty(), "{place}");
            file.truncate(length as u64).expect("truncate");
            for data_only in [true, false] {
                let synced = run(&mut *disk, sync(7, &file, data_only));
                assert!(
                    matches!(synced.result, Ok(0)) && synced.buffer.is_none(),
                    "{place}: {:?}",
                    synced.result
                );
            }
            assert_eq!(file.size().expect("size"), length as u64);
            assert!(std::fs::read(case.path("data")).expect("read") == bytes, "{place}: wrong bytes on disk");

            let (found, failures) = read_all(&mut *disk, &pool, &case.open_read("data"), length);
            assert!(failures.is_empty(), "{place}: {failures:?}");
            assert!(found == bytes, "{place}: wrong bytes read");
        }
        drop(disk);
        assert_eq!(pool.free(), pool.count(), "{}", case.name);
    }
}

#[test]
fn reads_end_where_the_file_ends() {
    for case in cases() {
        let pool = BufferPool::new(2, BLOCK).expect("pool");
        let mut disk = case.open(2, Some(&pool));
        std::fs::write(case.path("data"), content(5, BLOCK + 100)).expect("write");
        let file = case.open_read("data");
        for (offset, expected) in [(0, BLOCK), (BLOCK, 100), (2 * BLOCK, 0), (4096, BLOCK + 100 - 4096)] {
            let expected = expected.min(BLOCK);
            let buffer = pool.take().expect("open pool");
            let completion = run(&mut *disk, read(1, &file, buffer, offset as u64, BLOCK));
            assert_eq!(completion.result.expect("read"), expected, "{} at {offset}", case.name);
            assert_eq!(completion.buffer.expect("buffer").len(), expected);
        }
    }
}

#[test]
fn padding_is_zeros_not_leftovers() {
    for case in cases().into_iter().filter(|case| case.mode == IoMode::Direct) {
        let pool = BufferPool::new(1, BLOCK).expect("pool");
        let mut disk = case.open(1, Some(&pool));
        drop(filled(&pool, &[0xAA; BLOCK]));
        let file = case.create("data");
        let padded = write(1, &file, filled(&pool, &[1; 100]), 0, case.alignment);
        run(&mut *disk, padded).result.expect("write");
        let found = std::fs::read(case.path("data")).expect("read");
        assert_eq!(found.len(), case.alignment);
        assert!(found[..100].iter().all(|&byte| byte == 1) && found[100..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_full_queue_gives_the_operation_back() {
    for case in cases() {
        let pool = BufferPool::new(3, BLOCK).expect("pool");
        let mut disk = case.open(2, Some(&pool));
        let file = case.create("data");
        for token in 0..2 {
            let operation = write(token, &file, filled(&pool, &[3; BLOCK]), token * BLOCK as u64, 1);
            assert!(disk.submit(operation).is_ok());
        }
        let back = disk.submit(write(2, &file, filled(&pool, &[4; BLOCK]), 0, 1)).expect_err("full");
        assert_eq!((back.token, disk.in_flight()), (2, 2));
        let mut done = Vec::new();
        finish(&mut *disk, &mut done);
        assert_eq!(done.len(), 2, "{}", case.name);
        assert!(disk.submit(back).is_ok());
        finish(&mut *disk, &mut done);
        assert!(done.iter().all(|completion| completion.result.as_ref().is_ok_and(|&count| count == BLOCK)));
    }
}

#[test]
fn nonsense_is_refused_and_buffers_come_back() {
    for case in cases() {
        let pool = BufferPool::new(1, BLOCK).expect("pool");
        let mut disk = case.open(1, Some(&pool));
        let file = case.create("data");
        let aligned = 4096;
        let mut rows = vec![
            ("past the buffer", true, 0, BLOCK + aligned, BLOCK),
            ("past what is filled", true, 0, 2 * aligned, 100),
            ("past the largest file", true, i64::MAX as u64 - 4095, aligned, BLOCK),
            ("past every offset", true, u64::MAX - 4095, aligned, BLOCK),
            ("a read past the buffer", false, 0, BLOCK + aligned, 0),
        ];
        if case.mode == IoMode::Direct {
            rows.push(("an unaligned length", true, 0, 100, 100));
            rows.push(("an unaligned offset", true, 100, aligned, BLOCK));
            rows.push(("an unaligned read", false, 100, aligned, 0));
        }
        for (what, is_write, offset, length, fill) in rows {
            let buffer = filled(&pool, &vec![1; fill]);
            let kind = if is_write {
                OperationKind::Write { buffer, offset, length }
            } else {
                OperationKind::Read { buffer, offset, length }
            };
            let completion = run(&mut *disk, Operation { token: 9, file: Arc::clone(&file), kind });
            let error = completion.result.expect_err(what);
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{}: {what}: {error}", case.name);
            assert!(completion.buffer.is_some(), "{what}");
        }
        assert_eq!(pool.free(), 1);
        // What never reached the file has not harmed it.
        assert!(run(&mut *disk, sync(1, &file, false)).result.is_ok());
    }
}

#[test]
fn nothing_to_move_is_done_at_once() {
    for case in cases() {
        let pool = BufferPool::new(1, BLOCK).expect("pool");
        let mut disk = case.open(1, Some(&pool));
        let file = case.create("data");
        let empty = write(1, &file, pool.take().expect("open pool"), 0, 1);
        assert_eq!(run(&mut *disk, empty).result.expect("write"), 0, "{}", case.name);
        assert_eq!(file.size().expect("size"), 0);
    }
}

#[test]
fn buffers_of_another_pool_work_too() {
    for case in cases() {
        let (registered, other) =
            (BufferPool::new(3, BLOCK).expect("pool"), BufferPool::new(3, BLOCK).expect("pool"));
        let mut disk = case.open(2, Some(&registered));
        let bytes = content(6, 9 * BLOCK);
        let file = case.create("data");
        assert!(write_all(&mut *disk, &other, &file, &bytes).is_empty());
        let (found, failures) = read_all(&mut *disk, &registered, &case.open_read("data"), bytes.len());
        assert!(failures.is_empty() && found == bytes, "{}", case.name);
    }
}

#[test]
fn creating_takes_no_existing_name_and_no_link() {
    let folder = TempDir::new().expect("folder");
    let handle = std::fs::File::open(folder.path()).expect("folder");
    std::fs::write(folder.path().join("taken"), b"x").expect("write");
    std::os::unix::fs::symlink("elsewhere", folder.path().join("link")).expect("link");
    for mode in IoMode::ALL {
        for name in ["taken", "link"] {
            let error = DiskFile::create_new(&handle, name, 0o600, mode).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{mode} {name}");
        }
        assert!(DiskFile::open_read(&handle, "link", mode).is_err());
    }
    assert!(!folder.path().join("elsewhere").exists());
}

#[test]
fn sizes_that_cannot_work_are_refused() {
    let pool = BufferPool::new(1, 4096).expect("pool");
    for (mode, depth, alignment) in [
        (IoMode::Threads, 0, 1),
        (IoMode::Direct, 0, 4096),
        (IoMode::Direct, 1 << 20, 4096),
        (IoMode::Direct, 4, 0),
        (IoMode::Direct, 4, 3000),
        (IoMode::Direct, 4, 8192),
    ] {
        let opened = open_disk(mode, depth, alignment, Some(&pool));
        assert!(matches!(opened, Err(crate::ring::RingError::Sizes { .. })), "{mode} {depth} {alignment}");
    }
}

#[test]
fn a_pool_over_the_locked_memory_limit_is_used_unregistered() {
    let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Memlock).current else {
        println!("skipped: locked memory is not limited");
        return;
    };
    let limit = usize::try_from(limit).expect("a limit that fits");
    let case = cases().into_iter().find(|case| case.mode != IoMode::Threads);
    let (Some(case), true) = (case, limit <= 64 << 20) else {
        println!("skipped: no ring here, or a limit of {limit} bytes");
        return;
    };
    // The limit does not bind the privileged, so this thread gives that up for itself.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut capabilities = rustix::thread::capabilities(None).expect("capabilities");
            capabilities.effective -= rustix::thread::CapabilitySet::IPC_LOCK;
            rustix::thread::set_capabilities(None, capabilities).expect("capabilities");
            let pool = BufferPool::new(limit / BLOCK + 2, BLOCK).expect("pool");
            let opened = open_disk(case.mode, 4, case.alignment, Some(&pool));
            let (mut disk, registered) = opened.expect("a limit on registration is no reason to fail");
            let Registered::No(reason) = registered else { panic!("registered beyond the limit") };
            assert!(reason.contains(&format!("limit of {limit} bytes")), "{reason}");
            let bytes = content(8, 10 * BLOCK);
            assert!(write_all(&mut *disk, &pool, &case.create("data"), &bytes).is_empty());
            assert!(std::fs::read(case.path("data")).expect("read") == bytes);
        });
    });
}

#[test]
fn a_small_pool_is_registered() {
    for case in cases().into_iter().filter(|case| case.mode != IoMode::Threads && !case.plain) {
        let pool = BufferPool::new(4, 4096).expect("pool");
        let (_disk, registered) = open_disk(case.mode, 4, case.alignment, Some(&pool)).expect("open");
        if let Registered::No(reason) = registered {
            println!("skipped: {}: {reason}", case.name);
            assert!(reason.contains("ulimit -l"), "{reason}");
        }
    }
}
