//! A page that is damaged in the source: found by the server, found here, or taken as it is, as the operator says.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pgstrata::postmaster::Shutdown;
use pgstrata_tests as harness;
use pgstrata_tests::{Finished, Source};

/// The page that is damaged, of eight kilobytes.
const PAGE: u64 = 3;

/// Starts a source and damages a page of a table. Returns the file's path in the data directory.
fn damaged(major: u32) -> (Source, PathBuf) {
    let mut source = harness::cluster(major).wal_segsize_mb(1).setting("autovacuum", "off").start();
    let sql = source.sql();
    sql.execute("CREATE TABLE damaged AS SELECT i, repeat('x', 100) AS v FROM generate_series(1, 1000) AS i");
    sql.execute("CHECKPOINT");
    let path: String = sql.value("SELECT pg_relation_filepath('damaged')");
    drop(sql);
    let cluster = source.stop(Shutdown::Fast);
    let file =
        fs::File::options().write(true).open(cluster.data_dir().join(&path)).expect("the table's file");
    file.write_all_at(b"damage", PAGE * 8192 + 4000).expect("it is writable");
    source.restart(&cluster);
    (source, PathBuf::from(path))
}

fn run(source: &Source, dir: &Path, arguments: &[&str]) -> Finished {
    let mut run =
        harness::pgstrata(["basebackup", "-N", "-c", "fast", "-d", &source.conninfo(), "-D"]).arg(dir);
    for argument in arguments {
        run = run.arg(argument);
    }
    run.run()
}

#[test]
fn damaged_pages_are_found_or_taken() {
    // Versions of each layout; from 17 on another code sends files.
    for major in [14, 15, 18] {
        let (source, file) = damaged(major);
        let (dir, shown) = (source.dir("copy"), file.to_string_lossy().into_owned());
        let name = file.file_name().expect("it has one").to_string_lossy().into_owned();

        // By the server: the copy is kept for a look at it, and starts no server.
        for format in ["-Fp", "-Ft"] {
            let finished = run(&source, &dir, &[format]);
            finished.expect_failure().expect_stderr("checksum error occurred").expect_stderr(&name);
            harness::expect_unfinished(&dir);
            let kept = if format == "-Fp" { dir.join(&file) } else { dir.join("base.tar.partial") };
            assert!(kept.exists(), "{major}: {} was not kept: {finished}", kept.display());
            if format == "-Fp" {
                assert!(source.try_boot(&dir).is_err(), "{major}: a server starts from it");
            }
            fs::remove_dir_all(&dir).expect("it was kept");
            harness::expect_forgotten(&source);
        }

        // Here: file and block by name, found and expected.
        let finished = run(&source, &dir, &["--no-verify-checksums", "--check-pages"]);
        finished.expect_failure().expect_stderr(&shown).expect_stderr(&format!("block {PAGE}"));
        finished.expect_stderr("found").expect_stderr("expected").expect_stderr("HINT");
        assert!(!dir.exists(), "{major}: {finished}");
        // Both look for it; the server tells first.
        run(&source, &dir, &["--check-pages"]).expect_failure().expect_stderr(&name);
        if dir.exists() {
            harness::expect_unfinished(&dir);
            fs::remove_dir_all(&dir).expect("it was kept");
        }

        // By nobody: then it is copied as it is, and matches the server's manifest.
        let finished = run(&source, &dir, &["--no-verify-checksums"]);
        finished.expect_success();
        harness::check_manifest(&dir).unwrap_or_else(|error| panic!("{major}: {error:#}"));
        let copied = fs::read(dir.join(&file)).expect("the table's file");
        assert_eq!(copied, fs::read(source.data_dir().join(&file)).expect("the table's file"));
        let at = usize::try_from(PAGE * 8192 + 4000).expect("a small offset");
        assert_eq!(&copied[at..at + 6], b"damage");
        harness::expect_forgotten(&source);
    }
}
