//! Who holds what, and for how long: drops with operations in flight, wake-ups, threads.

use super::*;

#[test]
fn the_doorbell_wakes_a_waiting_reap() {
    for case in cases() {
        for in_flight_file in [false, true] {
            let pool = BufferPool::new(1, BLOCK).expect("pool");
            let mut disk = case.open(2, Some(&pool));
            let bell = disk.doorbell();
            if in_flight_file {
                run(&mut *disk, write(1, &case.create("data"), filled(&pool, &[1; BLOCK]), 0, 1));
            }
            for _ in 0..50 {
                std::thread::scope(|scope| {
                    let ringer = bell.clone();
                    scope.spawn(move || {
                        while !ringer.owner_sleeps() {
                            std::thread::yield_now();
                        }
                        ringer.ring();
                    });
                    let mut done = Vec::new();
                    disk.reap(true, &mut done).expect("reap");
                    assert!(done.is_empty(), "{}", case.name);
                });
            }
        }
    }
}

#[test]
fn a_ring_before_the_wait_is_not_slept_on() {
    for case in cases() {
        let mut disk = case.open(2, None);
        let bell = disk.doorbell();
        let mut done = Vec::new();
        for _ in 0..3 {
            bell.ring();
            disk.reap(false, &mut done).expect("reap");
            disk.reap(true, &mut done).expect("reap");
        }
        assert!(done.is_empty(), "{}", case.name);
        drop(disk);
        bell.ring();
    }
}

#[test]
fn work_handed_over_with_the_doorbell_is_never_lost() {
    const BLOCKS: usize = 300;
    for case in cases() {
        let pool = BufferPool::new(4, BLOCK).expect("pool");
        let bytes = content(21, BLOCKS * BLOCK);
        let (queue, work) = crossbeam::channel::bounded::<(usize, PageBuffer)>(4);
        let mut disk = case.open(3, Some(&pool));
        let bell = disk.doorbell();
        let file = case.create("data");
        std::thread::scope(|scope| {
            let (pool, bytes) = (&pool, &bytes);
            scope.spawn(move || {
                for (number, block) in bytes.chunks(BLOCK).enumerate() {
                    queue.send((number, filled(pool, block))).expect("the writer lives");
                    bell.ring();
                }
                drop(queue);
                bell.ring();
            });
            let mut done = Vec::new();
            let mut open = true;
            while open || disk.in_flight() > 0 {
                while disk.in_flight() < disk.depth() {
                    match work.try_recv() {
                        Ok((number, buffer)) => {
                            let offset = (number * BLOCK) as u64;
                            assert!(disk.submit(write(number as u64, &file, buffer, offset, 1)).is_ok());
                        }
                        Err(crossbeam::channel::TryRecvError::Empty) => break,
                        Err(crossbeam::channel::TryRecvError::Disconnected) => {
                            open = false;
                            break;
                        }
                    }
                }
                if open || disk.in_flight() > 0 {
                    disk.reap(true, &mut done).expect("reap");
                }
                for completion in done.drain(..) {
                    assert_eq!(completion.result.expect("write"), BLOCK);
                }
            }
        });
        assert!(std::fs::read(case.path("data")).expect("read") == bytes, "{}", case.name);
        assert_eq!(pool.free(), pool.count());
    }
}

#[test]
fn dropping_a_busy_disk_gives_every_buffer_back() {
    for case in cases() {
        for (started, waiting) in [(false, false), (true, false), (true, true)] {
            let pool = BufferPool::new(8, BLOCK).expect("pool");
            let mut disk = case.open(8, Some(&pool));
            let file = case.create("data");
            if waiting {
                // Leaves a read of the doorbell in flight.
                disk.doorbell().ring();
                disk.reap(true, &mut Vec::new()).expect("reap");
            }
            for token in 0..7 {
                let operation = write(token, &file, filled(&pool, &[5; BLOCK]), token * BLOCK as u64, 1);
                assert!(disk.submit(operation).is_ok());
            }
            assert!(disk.submit(sync(7, &file, true)).is_ok());
            assert_eq!(pool.free(), 1);
            let mut done = Vec::new();
            if started {
                disk.reap(false, &mut done).expect("reap");
            }
            drop(disk);
            drop(done);
            assert_eq!(pool.free(), 8, "{}", case.name);
            assert_eq!(Arc::strong_count(&file), 1, "{}: the file was given back", case.name);
        }
    }
}

#[test]
fn a_disk_may_be_opened_on_one_thread_and_used_on_another() {
    for case in cases() {
        let pool = BufferPool::new(2, BLOCK).expect("pool");
        let mut disk = case.open(2, Some(&pool));
        let file = case.create("data");
        let operation = write(1, &file, filled(&pool, &[9; BLOCK]), 0, 1);
        assert!(disk.submit(operation).is_ok());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut done = Vec::new();
                finish(&mut *disk, &mut done);
                assert_eq!(done.pop().expect("one").result.expect("write"), BLOCK);
            });
        });
        assert_eq!(pool.free(), 2, "{}", case.name);
    }
}

#[test]
fn a_ring_dropped_on_the_wrong_thread_keeps_what_the_kernel_may_still_use() {
    for case in cases() {
        let pool = BufferPool::new(3, BLOCK).expect("pool");
        let mut disk = case.open(3, Some(&pool));
        let file = case.create("data");
        run(&mut *disk, write(0, &file, filled(&pool, &[9; BLOCK]), 0, 1));
        for token in 1..3 {
            let operation = write(token, &file, filled(&pool, &[9; BLOCK]), token * BLOCK as u64, 1);
            assert!(disk.submit(operation).is_ok());
        }
        std::thread::scope(|scope| {
            scope.spawn(move || drop(disk));
        });
        // Either the ring could be drained there, or its two buffers are out for good; never reused early.
        let bound = case.mode != IoMode::Threads && !case.plain;
        assert_eq!(pool.free(), if bound { 1 } else { 3 }, "{}", case.name);
    }
}
