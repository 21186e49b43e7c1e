//! Places that do not take what is written: full, or read-only.

use std::fs;
use std::process::Command;

use pgstrata::repository::Repository;
use pgstrata_tests::{FsKind, Scratch, SmallFs, pgstrata};

use super::sample::{age, backup, backups, expect_clean, expire_by, local, server, verify};

#[test]
fn full_and_read_only() {
    let scratch = Scratch::new();
    let mounted = match SmallFs::mount(FsKind::Tmpfs, 8, &scratch) {
        Ok(mounted) => mounted,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let repo = mounted.path().join("repo");
    let server = server();
    Repository::init(local(&repo)).expect("made");
    for _ in 0..2 {
        backup(&server, local(&repo)).expect("taken");
    }
    let there = backups(&repo);

    // Full: nothing is lost, and nothing is half done.
    let filler = mounted.path().join("filler");
    let mut size = mounted.free_bytes();
    while fs::write(&filler, vec![0; usize::try_from(size).unwrap()]).is_err() {
        size -= 4096;
    }
    let refused = backup(&server, local(&repo)).expect_err("full").to_string();
    assert!(refused.contains("No space left") && refused.contains("HINT:"), "{refused}");
    let refused = expire_by(local(&repo), 1).expect_err("full").to_string();
    assert!(refused.contains("No space left") && refused.contains("HINT:"), "{refused}");
    // Reading goes on, without a lease.
    let report = verify(&repo);
    assert_eq!((report.backups, report.problems), (2, Vec::new()));
    assert!(report.warnings[0].contains("reading without a lease"), "{:?}", report.warnings);
    fs::remove_file(&filler).expect("removed");
    assert_eq!(backups(&repo), there);
    expect_clean(&repo);

    let remount = |how: &str| {
        let done = Command::new("mount").args(["-o", how]).arg(mounted.path()).status().expect("it is there");
        assert!(done.success(), "{how}");
    };
    remount("remount,ro");
    let copy = scratch.join("copy");
    let command = |name: &str| pgstrata([name, "--repo"]).arg(&repo);
    command("list").run().expect_success();
    command("verify").run().expect_success().expect_stderr("reading without a lease");
    let restored = command("restore").args(["--cluster", "main", "--into"]).arg(&copy).run();
    restored.expect_success().expect_stderr("reading without a lease").expect_stderr("HINT:");
    assert!(copy.join("global/pg_control").exists());
    for run in [
        command("expire").args(["--keep", "1"]),
        command("pin").args(["--cluster", "main", "--backup", "latest"]),
        command("check").args(["--cluster", "main", "-d", "host=127.0.0.1 port=1"]),
    ] {
        run.run().expect_failure().expect_stderr("HINT:");
    }
    remount("remount,rw");
    assert_eq!(backups(&repo), there);
    age(&repo);
    expire_by(local(&repo), 1).expect("writable");
    assert_eq!(backups(&repo), there[1..]);
    expect_clean(&repo);
}
