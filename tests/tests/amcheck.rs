//! PostgreSQL's own look into restored clusters, page by page: every B-tree with its table, every table by itself. And
//! that a page which is whole, and the wrong one, would be seen.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use pgstrata_tests as harness;
use pgstrata_tests::Workload;
use pgstrata_tests::repositories::{backup, init, restore};

const PAGE: usize = 8192;

/// Puts the page of an older copy in the place of a newer one's.
fn make_stale(copy: &Path, older: &Path, file: &str, block: u64) {
    let (mut stale, mut fresh) = ([0; PAGE], [0; PAGE]);
    let place = block * PAGE as u64;
    let older = fs::File::open(older.join(file)).unwrap();
    older.read_exact_at(&mut stale, place).unwrap();
    let copy = OpenOptions::new().read(true).write(true).open(copy.join(file)).unwrap();
    copy.read_exact_at(&mut fresh, place).unwrap();
    assert!(stale != fresh, "{file}: block {block} has not changed");
    copy.write_all_at(&stale, place).unwrap();
}

#[test]
fn restored_clusters_are_whole_and_a_stale_page_would_show() {
    for major in [15, 18] {
        let mut cluster = harness::cluster(major).with(Workload::small()).setting("autovacuum", "off");
        if major > 15 {
            // The one that has all of contrib for certain.
            let Some(complete) = harness::complete(major) else { continue };
            cluster = cluster.complete(complete);
        }
        let source = cluster.start();
        let sql = source.sql();
        sql.execute(
            "CREATE TABLE accounts AS SELECT id, id % 100 AS balance, repeat('x', 20) AS note
             FROM generate_series(1, 10000) AS id;
             ALTER TABLE accounts ADD PRIMARY KEY (id);
             CREATE INDEX ON accounts (balance)",
        );
        sql.execute("VACUUM accounts");
        let repo = init(&source);
        backup(&source, &repo).run().expect_success();
        let older = source.dir("older");
        restore(&source, &repo, &older).run().expect_success();
        // Each row moves to another page, and each index with it.
        sql.execute("UPDATE accounts SET balance = balance + 1");
        sql.execute("VACUUM accounts");
        let file = |name: &str| sql.value::<String>(&format!("SELECT pg_relation_filepath('{name}')"));
        let (table, index) = (file("accounts"), file("accounts_pkey"));

        let writer = source.writer(1);
        writer.wait_for(5);
        let before = writer.acknowledged();
        let local = backup(&source, &repo).arg("-D").arg(source.data_dir());
        local.run().expect_success();
        let ledger = writer.stop();
        let copy = source.dir("copy");
        restore(&source, &repo, &copy).run().expect_success();
        for (file, block) in [(&table, 3), (&index, 5)] {
            make_stale(&copy, &older, file, block);
            let server = source.boot(&copy);
            let found = harness::amcheck(&server).expect_err("a page is stale");
            assert!(format!("{found:#}").contains("accounts"), "{major}, {file}: {found:#}");
            drop(server);
            // The repository knows what belongs there.
            restore(&source, &repo, &copy).arg("--delta").run().expect_success();
        }
        let server = source.boot(&copy);
        ledger.check(&harness::sql(&server), before);
        let checked = harness::amcheck(&server).unwrap_or_else(|error| panic!("{major}: {error:#}"));
        assert!(checked > 200, "{major}: {checked} relations");
    }
}
