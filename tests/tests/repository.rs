//! The repository: a backup goes in, a cluster comes out, and damage is named on the way.

use std::fs;
use std::path::{Path, PathBuf};

use pgstrata_tests as harness;
use pgstrata_tests::{Finished, Invocation, Source, Workload, pgstrata};
use serde_json::Value;

/// A command on a repository.
fn command(name: &str, repo: &Path) -> Invocation {
    pgstrata([name, "--repo"]).arg(repo)
}

fn backup(source: &Source, repo: &Path) -> Invocation {
    command("backup", repo).args(["--cluster", "main", "-c", "fast", "--json", "-d", &source.conninfo()])
}

fn restore(repo: &Path, into: &Path) -> Invocation {
    command("restore", repo).args(["--cluster", "main", "--into"]).arg(into)
}

fn init(source: &Source) -> PathBuf {
    let repo = source.dir("repo");
    command("init", &repo).run().expect_success();
    repo
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Everything below a folder with its content.
fn content(folder: &Path, into: &mut Vec<(PathBuf, Vec<u8>)>) {
    for path in files(folder) {
        if path.is_dir() {
            content(&path, into);
        } else {
            into.push((path.clone(), fs::read(path).unwrap()));
        }
    }
}

fn expect_refused(finished: &Finished, words: &[&str]) {
    finished.expect_failure().expect_stderr("HINT").expect_stderr("error: ");
    for word in words {
        finished.expect_stderr(word);
    }
}

/// Our own and the stock judgement of a restored directory.
fn expect_verified(dir: &Path, major: u32) {
    pgstrata(["verifybackup"]).arg(dir).run().expect_success();
    harness::verify_backup(dir, major).expect_good();
}

#[test]
fn what_goes_in_comes_out() {
    for major in harness::majors().into_iter().filter(|major| [15, 17].contains(major)) {
        eprintln!("PostgreSQL {major}");
        let source = harness::cluster(major).with(Workload::small()).start();
        let repo = init(&source);
        let writer = source.writer(1);
        writer.wait_for(5);
        let before = writer.acknowledged();
        let first = backup(&source, &repo).run().expect_success().json_summary();
        let ledger = writer.stop();
        assert!(first["files_verified"].as_u64().unwrap() > 900, "{first}");
        assert_eq!(first["durable"], true);
        let second = backup(&source, &repo).args(["--compress", "lz4"]).run().expect_success().json_summary();
        let third = backup(&source, &repo).args(["-Z", "none", "--check-pages"]).run();
        let third = third.expect_success().json_summary();
        let stored = |summary: &Value| summary["stored"]["bytes"].as_u64().unwrap();
        assert!(stored(&first) < stored(&third) && stored(&second) < stored(&third));
        // The databases' common files are stored once.
        assert!(
            stored(&third)
                < third["bytes"].as_u64().unwrap() + third["wal_bytes"].as_u64().unwrap() + (32 << 20)
        );
        assert_eq!(files(&repo.join("staging")), Vec::<PathBuf>::new(), "nothing is left in staging");

        let listed = command("list", &repo).arg("--json").run().expect_success().json_summary();
        let ids = |listed: &Value| -> Vec<String> {
            let backups = listed["backups"].as_array().unwrap();
            backups.iter().map(|one| one["backup"].as_str().unwrap().to_owned()).collect()
        };
        let expected =
            [&first, &second, &third].map(|one| one["stored"]["backup"].as_str().unwrap().to_owned());
        assert_eq!(ids(&listed), expected);
        let words = command("list", &repo).run();
        assert!(words.expect_success().stdout_text().lines().count() == 3, "{words}");
        let shown =
            command("show", &repo).args(["--cluster", "main", "--backup", &expected[0], "--json"]).run();
        let shown = shown.expect_success().json_summary();
        assert_eq!(
            (&shown["backup"], &shown["start_lsn"]),
            (&first["stored"]["backup"], &first["start_lsn"])
        );
        let verified = command("verify", &repo).arg("--json").run().expect_success().json_summary();
        assert_eq!((&verified["backups"], &verified["problem_count"]), (&3.into(), &0.into()));

        // Under a writer: what it had committed before the backup ended is there.
        let copy = source.dir("first");
        restore(&repo, &copy).args(["--backup", &expected[0]]).run().expect_success();
        expect_verified(&copy, major);
        let server = source.boot(&copy);
        ledger.check(&harness::sql(&server), before);
        drop(server);
        for (name, io) in [("latest", "auto"), ("threads", "threads")] {
            let copy = source.dir(name);
            restore(&repo, &copy).args(["--io", io]).run().expect_success();
            expect_verified(&copy, major);
            harness::compare(&source, &source.boot(&copy));
        }
        let copy = source.dir("lz4");
        restore(&repo, &copy).args(["--backup", &expected[1], "--workers", "3"]).run().expect_success();
        expect_verified(&copy, major);
        // What is restored is what the server has, with its modes.
        let mode =
            |path: &Path| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
        for path in ["", "base", "PG_VERSION", "global/pg_control", "pg_wal", "backup_manifest"] {
            assert_eq!(mode(&copy.join(path)) & 0o077, 0, "{path}");
        }
    }
}
