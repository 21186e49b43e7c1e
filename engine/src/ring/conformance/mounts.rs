//! File systems that only root can set up: a disk that is really full, one without direct I/O, ext4 with
//! small blocks on a loop device. Each is mounted in a mount namespace of its own thread, which takes it
//! away with the thread. Skipped, with the reason, without the privilege or the tools.

use super::*;
use std::process::Command;

/// Runs `test` in a directory that `mount` has mounted, on a thread of its own.
fn mounted(mount: &[&str], test: impl FnOnce(&Path) + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: unsharing the mount namespace touches no descriptor table, which is what can break
            // the assumptions of other threads.
            let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
            if let Err(error) = unshared {
                println!("skipped: no mount namespace: {error}");
                return;
            }
            let folder = TempDir::new().expect("folder");
            if let Err(reason) = command("mount", &["--make-rprivate", "/"])
                .and_then(|()| command("mount", &[mount, &[&*folder.path().to_string_lossy()]].concat()))
            {
                println!("skipped: {reason}");
                return;
            }
            test(folder.path());
            command("umount", &["--lazy", &*folder.path().to_string_lossy()]).expect("unmount");
        });
    });
}

fn command(program: &str, arguments: &[&str]) -> Result<(), String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => Err(format!("{program}: {error}")),
    }
}

fn full_disk(place: &Path, bytes: usize) {
    let mut cases = Vec::new();
    cases_in(place, &mut cases);
    for case in cases {
        let pool = BufferPool::new(5, BLOCK).expect("pool");
        let mut disk = case.open(4, Some(&pool));
        let file = case.create("data");
        let error = file.preallocate(bytes as u64).expect_err("more than the disk holds");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{}: {error}", case.name);
        file.truncate(0).expect("truncate");
        let mut failures = write_all(&mut *disk, &pool, &file, &content(31, bytes));
        if failures.is_empty() {
            // Delayed allocation: the cache took it all, and the sync has to tell.
            let synced = run(&mut *disk, sync(0, &file, false));
            failures.extend(synced.result.err().map(|error| (0, error)));
        }
        assert!(!failures.is_empty(), "{}: nothing failed", case.name);
        assert!(
            failures.iter().all(|(_, error)| error.kind() == io::ErrorKind::StorageFull),
            "{}: {failures:?}",
            case.name
        );
        assert!(run(&mut *disk, sync(0, &file, false)).result.is_err(), "{}", case.name);
        assert_eq!(pool.free(), pool.count(), "{}", case.name);
        drop(disk);
        drop(file);
        std::fs::remove_file(case.path("data")).expect("remove");
    }
}

#[test]
fn a_full_memory_disk_is_told() {
    mounted(&["-t", "tmpfs", "-o", "size=2M", "none"], |place| full_disk(place, 4 << 20));
}

#[test]
fn ext4_with_small_blocks_works_and_is_told_full() {
    let folder = TempDir::new().expect("folder");
    let image = folder.path().join("image");
    std::fs::File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("image");
    let image = image.to_string_lossy();
    let made = ["mkfs.ext4", "/sbin/mkfs.ext4", "/usr/sbin/mkfs.ext4"]
        .into_iter()
        .map(|program| command(program, &["-q", "-b", "1024", &*image]))
        .find(Result::is_ok);
    if made.is_none() {
        println!("skipped: no mkfs.ext4");
        return;
    }
    mounted(&["-t", "ext4", "-o", "loop", &*image], |place| {
        let mut cases = Vec::new();
        cases_in(place, &mut cases);
        for case in &cases {
            let pool = BufferPool::new(5, BLOCK).expect("pool");
            let mut disk = case.open(4, Some(&pool));
            let bytes = content(32, 20 * BLOCK + 77);
            let file = case.create("data");
            assert!(file.preallocate(bytes.len() as u64).expect("preallocate"), "{}", case.name);
            assert!(write_all(&mut *disk, &pool, &file, &bytes).is_empty());
            file.truncate(bytes.len() as u64).expect("truncate");
            assert!(run(&mut *disk, sync(0, &file, true)).result.is_ok());
            assert!(std::fs::read(case.path("data")).expect("read") == bytes, "{}", case.name);
            std::fs::remove_file(case.path("data")).expect("remove");
        }
        drop(cases);
        full_disk(place, 17 << 20);
    });
}

#[test]
fn a_file_system_without_direct_io_gets_the_next_best() {
    mounted(&["-t", "ramfs", "none"], |place| {
        let report = probe(place, None).expect("something works");
        assert_eq!(report.mode, IoMode::Threads);
        let refused: Vec<_> = report.refusals.iter().map(|refusal| refusal.mode).collect();
        assert_eq!(refused, [IoMode::Direct, IoMode::Uncached]);
        assert!(report.reason.contains("direct: O_DIRECT refused"), "{}", report.reason);
        assert!(report.reason.contains("uncached: RWF_DONTCACHE refused"), "{}", report.reason);

        let error = probe(place, Some(IoMode::Direct)).expect_err("refused").to_string();
        assert!(error.contains("--io=direct") && error.contains("HINT: "), "{error}");

        // A file made in direct mode nevertheless is a plain one, and the same ring takes it.
        let folder = std::fs::File::open(place).expect("folder");
        let file = Arc::new(DiskFile::create_new(&folder, "data", 0o600, IoMode::Direct).expect("create"));
        assert!(!file.is_direct() && file.alignment() == 1);
        let pool = BufferPool::new(1, BLOCK).expect("pool");
        let (mut disk, _) = open_disk(IoMode::Direct, 1, 4096, Some(&pool)).expect("open");
        let count = run(&mut *disk, write(1, &file, filled(&pool, &[1; 100]), 3, 1)).result.expect("write");
        assert_eq!(count, 100);
    });
}
