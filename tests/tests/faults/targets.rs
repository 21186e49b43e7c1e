//! Targets that cannot be used: refused before the server does any work, and left as they were.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgstrata_tests as harness;
use pgstrata_tests::{FsKind, Invocation, SmallFs, Snapshot, Source};

/// A place with a reason why it is none for a backup.
struct Bad {
    name: &'static str,
    make: fn(&Path),
    target: &'static str,
    words: &'static [&'static str],
}

const BAD: [Bad; 8] = [
    Bad {
        name: "a folder with a file",
        make: |dir| {
            fs::create_dir(dir.join("full")).expect("a new folder");
            fs::write(dir.join("full/file"), "somebody's").expect("a new file");
        },
        target: "full",
        words: &["full", "not empty", "HINT"],
    },
    Bad {
        name: "a folder with a hidden file",
        make: |dir| {
            fs::create_dir(dir.join("full")).expect("a new folder");
            fs::write(dir.join("full/.hidden"), "").expect("a new file");
        },
        target: "full",
        words: &["full", "not empty"],
    },
    Bad {
        name: "a folder with lost+found",
        make: |dir| fs::create_dir_all(dir.join("full/lost+found")).expect("a new folder"),
        target: "full",
        words: &["full", "not empty"],
    },
    Bad {
        name: "a file",
        make: |dir| fs::write(dir.join("file"), "somebody's").expect("a new file"),
        target: "file",
        words: &["file", "not a directory"],
    },
    Bad {
        name: "below a file",
        make: |dir| fs::write(dir.join("file"), "somebody's").expect("a new file"),
        target: "file/deeper/copy",
        words: &["file/deeper/copy", "ot a directory"],
    },
    Bad {
        name: "a link to nowhere",
        make: |dir| std::os::unix::fs::symlink("nowhere", dir.join("link")).expect("a new link"),
        target: "link",
        words: &["link", "leads nowhere", "HINT"],
    },
    Bad {
        name: "a link to a full folder",
        make: |dir| {
            fs::create_dir_all(dir.join("full/inner")).expect("a new folder");
            std::os::unix::fs::symlink("full", dir.join("link")).expect("a new link");
        },
        target: "link",
        words: &["link", "not empty"],
    },
    Bad {
        name: "a socket's path",
        make: |dir| {
            std::os::unix::net::UnixListener::bind(dir.join("socket")).expect("a new socket");
        },
        target: "socket",
        words: &["socket", "ot a directory"],
    },
];

fn arguments(source: &Source) -> Vec<String> {
    ["basebackup", "-N", "-c", "fast", "-d", &source.conninfo()].map(str::to_owned).to_vec()
}

/// Runs it, expects these words, and that nothing below `dir` has changed.
#[track_caller]
fn expect_untouched(name: &str, run: Invocation, dir: &Path, words: &[&str]) {
    let before = Snapshot::of(dir);
    let finished = run.run();
    finished.expect_failure();
    for word in words {
        finished.expect_stderr(word);
    }
    let changes = before.changes(&Snapshot::of(dir));
    assert!(changes.is_empty(), "{name}: {changes:?}: {finished}");
}

#[test]
fn targets_in_use_are_left_alone() {
    let source = harness::cluster(18).wal_segsize_mb(1).start();
    let space = source.dir("space");
    source.cluster().run_as().create_dir(&space).expect("a new directory");
    source.sql().execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    source.sql().execute("CREATE TABLE here TABLESPACE space AS SELECT 1");
    for (number, bad) in BAD.iter().enumerate() {
        let dir = source.dir(&format!("bad {number}"));
        fs::create_dir(&dir).expect("a new folder");
        (bad.make)(&dir);
        let target = dir.join(bad.target);
        let good = dir.join("good");
        let shown = |path: &PathBuf| path.to_string_lossy().into_owned();
        let map = |to: &PathBuf| format!("{}={}", space.display(), to.display());
        // As the target in both formats, as the place of a tablespace, and as that of the WAL.
        for (role, more) in [
            ("plain", vec!["-D".into(), shown(&target), "-T".into(), map(&good)]),
            ("tar", vec!["-Ft".into(), "-D".into(), shown(&target)]),
            ("tablespace", vec!["-D".into(), shown(&good), "-T".into(), map(&target)]),
            (
                "WAL",
                vec![
                    "-D".into(),
                    shown(&good),
                    "-T".into(),
                    map(&dir.join("space")),
                    "--waldir".into(),
                    shown(&target),
                ],
            ),
            ("kept", vec!["-n".into(), "-D".into(), shown(&target), "-T".into(), map(&good)]),
        ] {
            let name = format!("{} as {role}", bad.name);
            let run = harness::pgstrata(arguments(&source).into_iter().chain(more));
            expect_untouched(&name, run, &dir, bad.words);
        }
    }
    // A tablespace that nobody has mapped lies where the server has its own.
    let dir = source.dir("copy");
    let run = harness::pgstrata(arguments(&source)).arg("-D").arg(&dir);
    expect_untouched("unmapped", run, &space, &["space", "not empty"]);
    assert!(!dir.exists());
    // What was made for the first of two is gone when the second fails.
    let deep = source.dir("new/and/deep");
    let run = harness::pgstrata(arguments(&source)).arg("-D").arg(&deep);
    expect_untouched("unmapped and deep", run, &space, &["space", "not empty"]);
    assert!(!source.dir("new").exists());
    harness::expect_forgotten(&source);
}

#[test]
fn targets_that_may_not_be_written_are_refused() {
    let source = harness::cluster(18).wal_segsize_mb(1).start();
    let dir = source.dir("closed");
    fs::create_dir(&dir).expect("a new folder");
    fs::create_dir(dir.join("empty")).expect("a new folder");
    for path in [dir.join("empty"), dir.clone()] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).expect("it is ours");
    }
    for target in ["empty", "new", "new/deeper"] {
        for format in ["-Fp", "-Ft"] {
            let run = harness::unprivileged_pgstrata(source.scratch(), arguments(&source));
            let run = run.arg(format).arg("-D").arg(dir.join(target));
            expect_untouched(
                target,
                run,
                &dir,
                &[target.split('/').next_back().expect("a name"), "ermission denied", "HINT"],
            );
        }
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o000)).expect("it is ours");
    let run = harness::unprivileged_pgstrata(source.scratch(), arguments(&source));
    let finished = run.arg("-D").arg(dir.join("empty")).run();
    finished.expect_failure().expect_stderr("ermission denied");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("it is ours");
    harness::expect_forgotten(&source);
}

#[test]
fn file_systems_that_are_read_only_are_refused() {
    let source = harness::cluster(18).wal_segsize_mb(1).start();
    let mounted = match SmallFs::mount(FsKind::Tmpfs, 100, source.scratch()) {
        Ok(mounted) => mounted,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    fs::create_dir(mounted.path().join("empty")).expect("a new folder");
    let remount = |how: &str| {
        let status =
            Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(mounted.path()).status();
        assert!(status.expect("mount runs").success());
    };
    remount("ro");
    for target in ["empty", "new", "new/deeper"] {
        for format in ["-Fp", "-Ft"] {
            let run =
                harness::pgstrata(arguments(&source)).arg(format).arg("-D").arg(mounted.path().join(target));
            expect_untouched(target, run, mounted.path(), &["Read-only file system", "HINT"]);
        }
    }
    remount("rw");
    harness::expect_forgotten(&source);
}
