//! `--incremental` against real servers: chains of backups that are put together again and started, and what is refused.
//!
//! While a writer commits: a full backup, changes, an incremental one, more changes, and another on top of that, in plain
//! and in tar format. What they are put together to has to hold the source's rows, to the last one. `pg_combinebackup`
//! does the same where it is installed.

use std::path::{Path, PathBuf};

use pgstrata::postmaster::Server;
use pgstrata_tests as harness;
use pgstrata_tests::{Combined, Relocation, Source, Workload};

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
            None => eprintln!("PostgreSQL {major}: no pg_combinebackup of this version is installed"),
            Some(finished) => {
                finished.expect_success();
                bench.compare(&source.boot(&stock), &ledger, before);
            }
        }
    }
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

    fn compare(&self, copy: &Server, ledger: &harness::Ledger, before: u64) {
        harness::compare(self.source, copy);
        ledger.check(&harness::sql(copy), before);
    }
}
