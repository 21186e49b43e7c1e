//! Work that leaves all kinds of records in the log.

use pgstrata::postmaster::{Server, ServerProgram};
use pgstrata_tests as harness;
use pgstrata_tests::{ClusterBuilder, Source, Sql, Workload};

/// A server with small segments, so that records run over their ends.
pub(crate) fn server(major: u32) -> ClusterBuilder {
    harness::cluster(major)
        .wal_segsize_mb(1)
        .setting("max_prepared_transactions", "5")
        .setting("max_wal_size", "64MB")
        .setting("autovacuum", "off")
        .with(Workload::empty().rows(300).tablespaces(1).unlogged())
}

/// Every way to change files that the log knows. Returns the files of tables that were changed and are still there.
pub(crate) fn work(source: &Source, major: u32, compressions: &[&str]) -> Vec<String> {
    let session = source.sql();
    session.execute(TABLES);
    for compression in compressions {
        session.execute(&format!("SET wal_compression = {compression}; CHECKPOINT"));
        session.execute("UPDATE w.heap SET v = v || '.' WHERE i % 50 = 0");
        session.execute(
            "INSERT INTO w.indexed SELECT i, point(i, i), ARRAY[i], i::text, int4range(i, i + 5)
            FROM generate_series(1, 300) AS i",
        );
    }
    session.execute("RESET wal_compression; CHECKPOINT");
    files(&session);
    prepared(source);
    databases(source, major);
    // A record that runs over several segments, and one over hundreds of pages.
    session.execute("SELECT pg_logical_emit_message(false, 'big', repeat('x', 3500000))");
    session.execute("SELECT pg_logical_emit_message(true, 'large', repeat('y', 900000))");
    session.execute("CHECKPOINT; UPDATE w.heap SET v = 'last' WHERE i < 40");
    let paths =
        "SELECT pg_relation_filepath(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE nspname = 'w' AND relkind IN ('r', 'i', 'm', 'S') AND relpersistence = 'p'
          AND relname NOT LIKE 'untouched%'";
    session.rows(paths).into_iter().map(|row| row[0].clone().unwrap()).collect()
}

const TABLES: &str = "
    CREATE SCHEMA w;
    CREATE TABLE w.heap AS SELECT i, md5(i::text) AS v FROM generate_series(1, 4000) AS i;
    CREATE INDEX ON w.heap (v);
    CREATE TABLE w.indexed (i int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, n int, p point, a int[], h text, r int4range);
    ALTER TABLE w.indexed ALTER i DROP IDENTITY, DROP CONSTRAINT indexed_pkey, DROP COLUMN i;
    CREATE INDEX ON w.indexed USING gist (p);
    CREATE INDEX ON w.indexed USING gin (a);
    CREATE INDEX ON w.indexed USING hash (h);
    CREATE INDEX ON w.indexed USING spgist (r);
    CREATE INDEX ON w.indexed USING brin (n);
    CREATE SEQUENCE w.sequence;
    SELECT nextval('w.sequence') FROM generate_series(1, 100);
    CREATE TABLE w.emptied AS SELECT i FROM generate_series(1, 5000) AS i;
    CREATE TABLE w.cut AS SELECT i, repeat('c', 100) AS v FROM generate_series(1, 20000) AS i;
    CREATE TABLE w.gone AS SELECT i FROM generate_series(1, 500) AS i;
    CREATE TABLE w.moved AS SELECT i FROM generate_series(1, 500) AS i;
    CREATE UNLOGGED TABLE w.unlogged AS SELECT i FROM generate_series(1, 500) AS i";

fn files(session: &Sql) {
    for statement in [
        "VACUUM (FREEZE) w.cut",
        "DELETE FROM w.cut WHERE i > 700",
        "VACUUM (TRUNCATE) w.cut",
        "TRUNCATE w.emptied",
        "INSERT INTO w.emptied SELECT i FROM generate_series(1, 50) AS i",
        "DROP TABLE w.gone",
        "BEGIN; CREATE TABLE w.never AS SELECT i FROM generate_series(1, 500) AS i; ROLLBACK",
        "BEGIN; SAVEPOINT s; CREATE TABLE w.neither (i int); INSERT INTO w.neither VALUES (1); ROLLBACK TO s; \
         CREATE TABLE w.made (i int); INSERT INTO w.made VALUES (1); COMMIT",
        "VACUUM FULL pg_class",
        "VACUUM FULL w.heap",
        "CLUSTER w.heap USING heap_v_idx",
        "REINDEX TABLE w.indexed",
        "ALTER TABLE w.moved SET TABLESPACE space_0",
        "ALTER TABLE w.unlogged SET LOGGED",
        "CREATE MATERIALIZED VIEW w.seen AS SELECT count(*) FROM w.heap; REFRESH MATERIALIZED VIEW w.seen",
        "SELECT i FROM w.heap WHERE i < 10 FOR UPDATE",
        "VACUUM (ANALYZE) w.heap",
        "VACUUM w.indexed",
        "DELETE FROM w.indexed WHERE n % 3 = 0",
        "VACUUM w.indexed",
    ] {
        for statement in statement.split(";") {
            session.execute(statement);
        }
    }
}

fn prepared(source: &Source) {
    let session = source.sql();
    for (name, end) in [("one", "COMMIT"), ("two", "ROLLBACK")] {
        session.execute(&format!("CREATE TABLE w.before_{name} AS SELECT 1 AS i"));
        session.execute("BEGIN");
        session
            .execute(&format!("CREATE TABLE w.within_{name} AS SELECT 1 AS i; DROP TABLE w.before_{name}"));
        session.execute(&format!("PREPARE TRANSACTION '{name}'"));
        session.execute(&format!("{end} PREPARED '{name}'"));
    }
}

fn databases(source: &Source, major: u32) {
    let session = source.sql();
    let strategies: &[&str] = if major >= 15 { &[" STRATEGY wal_log", " STRATEGY file_copy"] } else { &[""] };
    for strategy in strategies {
        session.execute(&format!("CREATE DATABASE d TEMPLATE template0{strategy}"));
        session.execute("ALTER DATABASE d SET TABLESPACE space_0");
        session.execute("DROP DATABASE d");
        session.execute(&format!("CREATE DATABASE kept{} TEMPLATE template0{strategy}", strategy.len()));
    }
    let location = source.dir("made for a test");
    std::fs::create_dir(&location).unwrap();
    own(source, &location);
    session.execute(&format!("CREATE TABLESPACE made LOCATION '{}'", location.display()));
    session.execute("CREATE TABLE w.in_space TABLESPACE made AS SELECT i FROM generate_series(1, 100) AS i");
    session.execute("DROP TABLE w.in_space");
    session.execute("DROP TABLESPACE made");
}

fn own(server: &Server, path: &std::path::Path) {
    let _: &ServerProgram = server.program();
    server.cluster().run_as().own_tree(path).unwrap();
}
