//! What the table names is what the workload touched.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;

use pgstrata::postmaster::Shutdown;
use pgstrata::tracking::{ChangesAsked, SummaryPlace};
use pgstrata_protocol::replication::BackupPosition;
use pgstrata_protocol::summary::{BlockReferences, ForkReferences, RelationFork};
use pgstrata_tests as harness;
use pgstrata_tests::Sql;

use crate::{Bench, asked, history, position, stock_lines};

const TABLES: &str = "
    CREATE SCHEMA s;
    CREATE TABLE s.touched WITH (fillfactor = 50) AS SELECT i, md5(i::text) AS v FROM generate_series(1, 20000) AS i;
    CREATE TABLE s.untouched AS SELECT * FROM s.touched;
    CREATE TABLE s.truncated AS SELECT * FROM s.touched;
    CREATE TABLE s.shortened AS SELECT * FROM s.touched;
    CREATE TABLE s.dropped AS SELECT * FROM s.touched;
    CREATE TABLE s.grown (v text) WITH (fillfactor = 10);
    CREATE INDEX untouched_index ON s.untouched (i);
";

pub(crate) type Span = (BackupPosition, BackupPosition);

/// Returns from where to where it went.
pub(crate) fn touched_and_nothing_else(bench: &Bench) -> Span {
    let sql = bench.source.sql();
    sql.execute(TABLES);
    sql.execute("VACUUM (FREEZE, ANALYZE)");
    let before = ["touched", "truncated", "shortened", "dropped", "grown", "untouched", "untouched_index"]
        .map(|name| node(&sql, name));
    let [touched, truncated, shortened, dropped, grown, untouched, index] = before;
    let database: u32 = sql.value("SELECT oid FROM pg_database WHERE datname = 'postgres'");
    let from = position(&sql);

    let mut expected = BTreeSet::new();
    for row in [7, 12_345, 12_346, 19_999] {
        let block = |ctid: String| ctid[1..].split(',').next().expect("a block").parse::<u32>().expect("one");
        expected.insert(block(sql.value(&format!("SELECT ctid FROM s.touched WHERE i = {row}"))));
        let update = format!("UPDATE s.touched SET v = 'changed' WHERE i = {row} RETURNING ctid");
        expected.insert(block(sql.value(&update)));
    }
    sql.execute("CHECKPOINT");
    sql.execute("TRUNCATE s.truncated; DROP TABLE s.dropped; DELETE FROM s.shortened WHERE i > 3000");
    sql.execute("VACUUM (TRUNCATE) s.shortened");
    sql.execute("CHECKPOINT");
    // So many pages of one chunk that it becomes a bitmap.
    sql.execute("INSERT INTO s.grown SELECT repeat('x', 500) FROM generate_series(1, 4200)");
    sql.execute("CREATE DATABASE by_wal STRATEGY wal_log");
    sql.execute("CREATE DATABASE by_copy STRATEGY file_copy");
    let to = position(&sql);

    let changes = bench.changes(&asked(from, to, SummaryPlace::Sql));
    let files = bench.needed((from, to));
    assert!(files.len() >= 3, "{files:?}");
    let stock = stock_lines::of_files(&bench.stock.tool("pg_walsummary"), &files);
    assert_eq!(stock_lines::of_table(&changes), stock);

    let of = |relation| main_fork(&changes, database, relation);
    let found = of(touched).expect("it was updated");
    assert_eq!(found.blocks(..).map(|block| block.0).collect::<BTreeSet<_>>(), expected);
    assert_eq!(found.limit(), None);
    for relation in [untouched, index] {
        for fork in 0..=3 {
            let fork = RelationFork { tablespace: 1663, database, relation, fork };
            assert!(changes.get(&fork).is_none(), "{fork}");
        }
    }
    for relation in [truncated, dropped, node(&sql, "truncated")] {
        assert_eq!(of(relation).and_then(ForkReferences::limit).map(|limit| limit.0), Some(0), "{relation}");
    }
    let pages: u32 = sql.value("SELECT pg_relation_size('s.shortened') / 8192");
    assert_eq!(of(shortened).and_then(ForkReferences::limit).map(|limit| limit.0), Some(pages));
    let grown = of(grown).expect("it has grown");
    assert!(grown.count() >= 4200, "{}", grown.count());
    for name in ["by_wal", "by_copy"] {
        let made: u32 = sql.value(&format!("SELECT oid FROM pg_database WHERE datname = '{name}'"));
        let limit = main_fork(&changes, made, 0).and_then(ForkReferences::limit).map(|limit| limit.0);
        assert_eq!(limit, Some(0), "{name}");
    }
    (from, to)
}

/// Ends the server, has it recover as from an archive, which makes a new timeline, and asks across the switch.
pub(crate) fn over_a_switch_of_timelines(bench: &mut Bench, (from, _): Span) {
    let cluster = bench.source.stop(Shutdown::Fast);
    let data_dir = cluster.data_dir().to_owned();
    fs::write(data_dir.join("recovery.signal"), "").expect("a writable directory");
    let settings = OpenOptions::new().append(true).open(data_dir.join("postgresql.auto.conf"));
    writeln!(settings.expect("it is there"), "restore_command = 'false'").expect("a writable file");
    bench.source.restart(&cluster);
    let sql = bench.source.sql();
    harness::wait_until("the server is promoted", || {
        sql.value::<String>("SELECT pg_is_in_recovery()") == "f"
    });

    sql.execute("INSERT INTO s.touched VALUES (0, 'on the second timeline')");
    let to = position(&sql);
    assert_eq!(to.timeline.0, 2);
    let asked = ChangesAsked {
        history: Some(history(&data_dir, 2)),
        ..asked(from, to, SummaryPlace::Folder(bench.folder()))
    };
    let changes = bench.changes(&asked);
    let files = bench.needed((from, to));
    let of_second = |file: &&std::path::PathBuf| {
        file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("00000002"))
    };
    assert!(files.iter().any(|file| of_second(&file)), "{files:?}");
    let stock = stock_lines::of_files(&bench.stock.tool("pg_walsummary"), &files);
    assert_eq!(stock_lines::of_table(&changes), stock);
    let pages: u32 = sql.value("SELECT pg_relation_size('s.untouched') / 8192");
    assert!(pages > 0);
}

fn node(sql: &Sql, name: &str) -> u32 {
    sql.value(&format!("SELECT pg_relation_filenode('s.{name}')"))
}

fn main_fork(changes: &BlockReferences, database: u32, relation: u32) -> Option<&ForkReferences> {
    changes.get(&RelationFork { tablespace: 1663, database, relation, fork: 0 })
}
