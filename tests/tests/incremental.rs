//! `--incremental` against real servers: chains of backups that are put together again and started, and what is refused.
//!
//! While a writer commits: a full backup, changes, an incremental one, more changes, and another on top of that, in plain
//! and in tar format. What they are put together to has to hold the source's rows, to the last one. `pg_combinebackup`
//! does the same where it is installed.

use std::fs;
use std::path::{Path, PathBuf};

use pgstrata::postmaster::Server;
use pgstrata_tests as harness;
use pgstrata_tests::{Combined, Invocation, Relocation, Source, Workload};

/// Tables that the chain changes in every way that a summary has to know of.
const TABLES: &str = "
    CREATE SCHEMA chain;
    CREATE TABLE chain.updated AS SELECT i, repeat(md5(i::text), 10) AS v FROM generate_series(1, 6000) AS i;
    CREATE INDEX ON chain.updated (i);
    CREATE TABLE chain.untouched AS SELECT i, md5(i::text) AS v FROM generate_series(1, 20000) AS i;
    CREATE TABLE chain.truncated AS SELECT i, md5(i::text) AS v FROM generate_series(1, 5000) AS i;
    CREATE TABLE chain.shortened AS SELECT i, md5(i::text) AS v FROM generate_series(1, 20000) AS i;
    CREATE TABLE chain.dropped AS SELECT i FROM generate_series(1, 5000) AS i;
    CREATE TABLE chain.grown AS SELECT i, md5(i::text) AS v FROM generate_series(1, 5000) AS i;
    ALTER TABLE chain.updated SET (autovacuum_enabled = off);
    ALTER TABLE chain.shortened SET (autovacuum_enabled = off);
";

#[test]
fn chains_of_version_17() {
    chains(17);
}

#[test]
fn chains_of_version_18() {
    chains(18);
}

fn summarizing(major: u32) -> harness::ClusterBuilder {
    harness::cluster(major).setting("summarize_wal", "on")
}

fn chains(major: u32) {
    if !harness::majors().contains(&major) {
        eprintln!("skipped: PostgreSQL {major} does not run here, or was not asked for");
        return;
    }
    let source = summarizing(major).with(Workload::small()).start();
    let sql = source.sql();
    sql.execute(TABLES);
    let writer = source.writer(1);
    writer.wait_for(20);
    let bench = Bench { major, source: &source };

    let full = bench.plain("full", None, &[]);
    sql.execute(
        "UPDATE chain.updated SET v = 'first' WHERE i % 1000 = 7; TRUNCATE chain.truncated;
         INSERT INTO chain.truncated VALUES (1, 'anew'); DROP TABLE chain.dropped;
         CREATE TABLE chain.made AS SELECT i, md5(i::text) AS v FROM generate_series(1, 5000) AS i;
         DELETE FROM chain.shortened WHERE i > 2000",
    );
    sql.execute("VACUUM (TRUNCATE) chain.shortened");
    sql.execute("INSERT INTO chain.grown SELECT i, md5(i::text) FROM generate_series(5001, 9000) AS i");
    writer.wait_for_more(20);

    // As an operator has it who wants everything checked; and with the WAL in the archive.
    let first = bench.plain("first", Some(&full), &["--check-pages"]);
    sql.execute(
        "UPDATE chain.updated SET v = 'second' WHERE i % 1500 = 9; DROP TABLE chain.made;
         CREATE TABLE chain.made_later AS SELECT i FROM generate_series(1, 3000) AS i;
         INSERT INTO chain.shortened SELECT i, md5(i::text) FROM generate_series(30000, 31000) AS i",
    );
    writer.wait_for_more(20);

    let before = writer.acknowledged();
    let second = bench.plain("second", Some(&first), &["-X", "fetch", "--check-pages"]);
    let archived = bench.tar("archived", &first, &[]);
    let ledger = writer.stop();
    bench.other_ways(&first);

    for (name, last) in [("plain", &second), ("tar", &archived)] {
        let chain: [&Path; 3] = [&full, &first, last];
        let copy = source.dir(&format!("combined {name}"));
        let combined = harness::combine(&chain, &copy);
        eprintln!("PostgreSQL {major}: {name}: {combined:?}");
        let Combined { whole, incremental, blocks } = combined;
        assert!(whole > 0 && incremental > 100 && blocks > 5, "{name}: {combined:?}");
        bench.compare(&source.boot(&copy), &ledger, before);

        let stock = source.dir(&format!("stock {name}"));
        match harness::stock_combine(major, &chain, &stock) {
            None => eprintln!("PostgreSQL {major}: no pg_combinebackup of this version can be had"),
            Some(finished) => {
                finished.expect_success();
                eprintln!("PostgreSQL {major}: {name}: pg_combinebackup is content too");
                if let Some(complete) = harness::complete(major) {
                    // Without the WAL of archives, which this version's tool does not look into.
                    let verified = Invocation::new(&complete.tool("pg_verifybackup"), ["-n"]).arg(last).run();
                    verified.expect_success();
                }
                bench.compare(&source.boot(&stock), &ledger, before);
            }
        }
    }
}

#[test]
fn one_archive_on_standard_output() {
    let source = summarizing(18).start();
    let full = source.dir("full");
    harness::basebackup(&source).args(["-N", "-D"]).arg(&full).run().expect_success();
    // The manifest may come through a pipe: nobody asks for its length.
    let script = "cat \"$2\" | \"$0\" basebackup -c fast -d \"$1\" -D - -Ft -X fetch -i /dev/stdin";
    let (archive, copy) = (source.dir("archive.tar"), source.dir("copy"));
    let run = Invocation::new(Path::new("/bin/sh"), ["-c", script]).arg(harness::pgstrata_program());
    let run = run.arg(source.conninfo()).arg(full.join("backup_manifest")).stdout_to(&archive);
    run.run().expect_success();
    fs::create_dir(&copy).unwrap();
    let untar = Invocation::new(Path::new("tar"), ["-xf"]).arg(&archive).arg("-C").arg(&copy).run();
    untar.expect_success();
    assert!(
        fs::read_dir(copy.join("global"))
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with("INCREMENTAL.") })
    );
    harness::pgstrata(["verifybackup"]).arg(&copy).run().expect_success();
}

/// What is refused, in the words of pg_basebackup and the server, and that nothing is left of it.
#[test]
fn refused() {
    let source = summarizing(17).start();
    let (scratch, other) = (source.scratch(), harness::cluster(17).own_identity().start());
    let (full, copy) = (scratch.join("full"), scratch.join("copy"));
    for (source, dir) in [(&source, &full), (&other, &scratch.join("of another"))] {
        harness::basebackup(source).args(["-N", "-D"]).arg(dir).run().expect_success();
    }
    let manifest = full.join("backup_manifest");
    let text = fs::read_to_string(&manifest).unwrap();
    let made = |name: &str, content: &str| {
        let path = scratch.join(name);
        fs::write(&path, content).unwrap();
        path
    };
    // More than one piece has to be sent before this one is at its end.
    let long = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n".to_owned() + &"nonsense ".repeat(100_000);
    let unchanged = "must be the unchanged backup_manifest of an earlier backup of this very cluster";
    let upload = "could not upload manifest: ERROR:  ";
    for (path, expected) in [
        (scratch.join("missing"), &["could not open file \"", "No such file or directory"][..]),
        (full, &["could not read file \"", "Is a directory"]),
        (made("empty", ""), &[upload, unchanged]),
        (made("garbage", "no manifest at all\n"), &[upload, unchanged]),
        (made("long", &long), &[upload, unchanged]),
        (made("cut", &text[..text.len() / 2]), &[upload, unchanged]),
        (made("changed", &text.replacen("CRC32C", "CRC32c", 1)), &[upload, unchanged]),
        (
            scratch.join("of another/backup_manifest"),
            &[upload, "system identifier in backup manifest is", unchanged],
        ),
    ] {
        let finished = harness::basebackup(&source).arg("-D").arg(&copy).arg("-i").arg(&path).run();
        finished.expect_failure();
        for words in expected {
            finished.expect_stderr(words);
        }
        assert!(!copy.exists(), "{finished}");
    }

    // Its own manifest, but a server without summaries.
    let own = scratch.join("of another/backup_manifest");
    let finished = harness::basebackup(&other).arg("-D").arg(&copy).arg("-i").arg(own).run();
    finished
        .expect_failure()
        .expect_stderr(
            "could not initiate base backup: ERROR:  incremental backups cannot be taken unless WAL",
        )
        .expect_stderr("HINT: the server must run with summarize_wal = on");
    assert!(!copy.exists(), "{finished}");

    let old = harness::cluster(16).start();
    let finished = harness::basebackup(&old).arg("-D").arg(&copy).arg("-i").arg(&manifest).run();
    finished
        .expect_failure()
        .expect_stderr("server does not support incremental backup")
        .expect_stderr("HINT: ");
    // As the stock tool says it.
    let bin = scratch.join("bin");
    harness::pgstrata(["links"]).arg(&bin).run().expect_success();
    let stock =
        || Invocation::new(&bin.join("pg_basebackup"), ["-D"]).arg(&copy).arg("-d").arg(old.conninfo());
    for options in [&["-i", "m"][..], &["-im"], &["--incremental", "m"], &["--incr=m"]] {
        let finished = stock().args(options).run();
        finished.expect_failure().expect_stderr(
            "pg_basebackup: error: server does not support incremental backup\npg_basebackup: hint: ",
        );
        assert!(!copy.exists(), "{finished}");
    }
    let finished = stock().arg("-i").run();
    finished.expect_failure().expect_stderr("option requires an argument -- 'i'");
}

struct Bench<'a> {
    major: u32,
    source: &'a Source,
}

impl Bench<'_> {
    fn plain(&self, name: &str, since: Option<&PathBuf>, options: &[&str]) -> PathBuf {
        let to = self.source.dir(name);
        let relocation = Relocation::new(self.source, &to);
        let mut run = harness::basebackup(self.source).args(options).args(relocation.arguments());
        if let Some(since) = since {
            run = run.arg("-i").arg(since.join("backup_manifest"));
        }
        run.arg("-D").arg(&to).run().expect_success();
        self.verify(&to);
        to
    }

    /// In tar format, unpacked.
    fn tar(&self, name: &str, since: &Path, options: &[&str]) -> PathBuf {
        let archives = self.source.dir(&format!("{name} archives"));
        let run = harness::basebackup(self.source).args(options).arg("-Ft").arg("-D").arg(&archives);
        run.arg(format!("--incremental={}", since.join("backup_manifest").display())).run().expect_success();
        self.verify(&archives);
        let to = self.source.dir(name);
        Relocation::new(self.source, &to).unpack(&archives, &to);
        self.verify(&to);
        to
    }

    /// By our own verifybackup, WAL included, and by the stock one where it reads these manifests.
    fn verify(&self, backup: &Path) {
        harness::pgstrata(["verifybackup"]).arg(backup).run().expect_success();
        if backup.join("PG_VERSION").exists() {
            harness::verify_backup(backup, self.major).expect_good();
        }
    }

    /// It is only another option: compressed here, with settings for a standby, and at a target of the server's.
    fn other_ways(&self, since: &Path) {
        let since = since.join("backup_manifest");
        let run = || harness::basebackup(self.source).args(["-N", "-i"]).arg(&since);
        let packed = self.source.dir("packed");
        run().args(["-Ft", "-Z", "zstd:1", "-R", "-D"]).arg(&packed).run().expect_success();
        assert!(packed.join("base.tar.zst").exists());
        self.verify(&packed);
        let finished = run().args(["-t", "blackhole", "-X", "none", "--json"]).run();
        let summary = finished.expect_success().json_summary();
        assert_eq!(
            (&summary["format"], &summary["incremental"]),
            (&"target".into(), &true.into()),
            "{summary}"
        );
    }

    fn compare(&self, copy: &Server, ledger: &harness::Ledger, before: u64) {
        harness::compare(self.source, copy);
        ledger.check(&harness::sql(copy), before);
    }
}
