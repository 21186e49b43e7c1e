//! What may happen to a cluster between two backups, by seed.

use std::fs;
use std::path::PathBuf;

use pgstrata::postmaster::Shutdown;
use pgstrata_tests::{Source, Sql};

/// A generator whose numbers are the same everywhere (`SplitMix64`).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, count: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % count
    }

    fn name(&mut self) -> String {
        format!("t{}", self.below(TABLES))
    }
}

/// Tables that operations are about.
const TABLES: u64 = 6;
/// Databases and tablespaces that come and go.
const PLACES: u64 = 2;

/// Makes the tables.
pub(crate) fn prepare(source: &Source) {
    let sql = source.sql();
    for table in 0..TABLES {
        sql.execute(&create(&format!("t{table}"), ""));
        sql.execute(&insert(&format!("t{table}"), 2000));
    }
    sql.execute("CREATE SEQUENCE numbers; CHECKPOINT");
}

fn create(table: &str, kind: &str) -> String {
    format!(
        "CREATE {kind} TABLE {table} (n bigint, tag int[], place point, filler text);
         CREATE INDEX ON {table} (n);
         CREATE INDEX ON {table} USING hash (n);
         CREATE INDEX ON {table} USING gin (tag);
         CREATE INDEX ON {table} USING gist (place);
         CREATE INDEX ON {table} USING brin (n);
         CREATE INDEX ON {table} USING spgist (place)"
    )
}

fn insert(table: &str, rows: u64) -> String {
    format!(
        "INSERT INTO {table} SELECT n, ARRAY[n % 7, n % 31], point(n % 97, n % 89), repeat(chr(65 + (n % 26)::int), (n % 300)::int)
         FROM generate_series(1, {rows}) AS n"
    )
}

/// Does something. Returns what, and whether it was possible.
pub(crate) fn step(source: &mut Source, dice: &mut Dice, major: u32) -> (String, bool) {
    let sql = source.sql();
    let table = dice.name();
    let (part, rows) = (2 + dice.below(400), 1 + dice.below(3000));
    let run = |sql: &Sql, statements: &[String]| {
        let done = statements.iter().all(|statement| sql.try_execute(statement).is_ok());
        (statements.join("; "), done)
    };
    let one = |text: String| run(&sql, &[text]);
    match dice.below(34) {
        0..=3 => one(insert(&table, rows)),
        4..=6 => one(format!("UPDATE {table} SET filler = filler || 'x', n = n + 1 WHERE n % {part} = 1")),
        7 => one(format!("UPDATE {table} SET place = point(n % 13, n % 11) WHERE n % {part} = 0")),
        8 => one(format!("DELETE FROM {table} WHERE n % {part} = 1")),
        // The end of the table goes, and comes again.
        9 => {
            run(&sql, &[format!("DELETE FROM {table} WHERE ctid > '({part},1)'"), format!("VACUUM {table}")])
        }
        10 => run(
            &sql,
            &[
                format!("DELETE FROM {table} WHERE ctid > '({},1)'", part / 8),
                format!("VACUUM {table}"),
                insert(&table, rows),
            ],
        ),
        11 => one(format!("VACUUM (FREEZE) {table}")),
        12 => one(format!("VACUUM {table}")),
        13 => one(format!("TRUNCATE {table}")),
        14 => one(format!("BEGIN; TRUNCATE {table}; {}; COMMIT", insert(&table, rows))),
        15 => one(format!("BEGIN; TRUNCATE {table}; {}; ROLLBACK", insert(&table, rows))),
        16 => run(&sql, &[format!("DROP TABLE {table}"), create(&table, ""), insert(&table, rows)]),
        17 => one(format!("VACUUM FULL {table}")),
        18 => one(format!("CLUSTER {table} USING {table}_n_idx")),
        19 => one(format!("REINDEX TABLE {table}")),
        20 => one(format!(
            "ALTER TABLE {table} ALTER COLUMN filler TYPE varchar(100000), ALTER COLUMN n TYPE bigint USING n + 0"
        )),
        // Too large for a page each.
        21 => one(format!(
            "UPDATE {table} SET filler = (SELECT string_agg(md5(i::text || n), '') FROM generate_series(1, 300) AS i) WHERE n % 900 = 3"
        )),
        22 => run(&sql, &[format!("DROP TABLE {table}"), create(&table, "UNLOGGED"), insert(&table, rows)]),
        23 => one(format!("ALTER TABLE {table} SET LOGGED")),
        24 => one(format!("ALTER TABLE {table} SET UNLOGGED")),
        25 => one(format!("SELECT nextval('numbers') FROM generate_series(1, {part})")),
        26 => {
            let what = format!("SELECT count(*) FROM {table} WHERE filler <> 'x'");
            let done = sql.try_rows(&what).is_ok();
            (what, done)
        }
        27 => one("CHECKPOINT".into()),
        28 => {
            let place = dice.below(PLACES);
            let strategy = match (major, dice.below(2)) {
                (..15, _) => "",
                (_, 0) => "STRATEGY file_copy",
                _ => "STRATEGY wal_log",
            };
            let template =
                if dice.below(2) == 0 { "template1".to_owned() } else { format!("d{}", 1 - place) };
            // The same number, where one may be asked for: other files under the names of those that were there.
            let oid = if major >= 15 { format!("OID = {}", 90_000 + place) } else { String::new() };
            let (what, _) = run(&sql, &[format!("DROP DATABASE IF EXISTS d{place}")]);
            let (more, done) =
                run(&sql, &[format!("CREATE DATABASE d{place} TEMPLATE {template} {strategy} {oid}")]);
            drop(sql);
            if done
                && let Ok(inside) = Sql::connect(
                    &source.socket_conninfo().replace("dbname=postgres", &format!("dbname=d{place}")),
                )
            {
                let _ = inside.try_execute(&format!(
                    "CREATE TABLE IF NOT EXISTS inside AS SELECT n FROM generate_series(1, {rows}) AS n"
                ));
                let _ = inside.try_execute(&format!("UPDATE inside SET n = n + 1 WHERE n % {part} = 0"));
            }
            (format!("{what}; {more}"), done)
        }
        29 => one(format!("DROP DATABASE IF EXISTS d{}", dice.below(PLACES))),
        30 => {
            let place = dice.below(PLACES);
            let folder = space(source, place);
            let _ = fs::create_dir_all(&folder);
            let _ = sql.try_execute(&format!("CREATE TABLESPACE s{place} LOCATION '{}'", folder.display()));
            let to = if dice.below(3) == 0 { "pg_default".into() } else { format!("s{place}") };
            match dice.below(3) {
                0 => one(format!("ALTER DATABASE d{} SET TABLESPACE {to}", dice.below(PLACES))),
                _ => one(format!("ALTER TABLE {table} SET TABLESPACE {to}")),
            }
        }
        31 => {
            let place = dice.below(PLACES);
            let all: Vec<String> =
                (0..TABLES).map(|table| format!("ALTER TABLE t{table} SET TABLESPACE pg_default")).collect();
            let _ = run(&sql, &all);
            one(format!("DROP TABLESPACE s{place}"))
        }
        32 => one(format!(
            "BEGIN; SAVEPOINT a; {}; ROLLBACK TO a; CREATE TABLE gone AS SELECT * FROM {table}; ROLLBACK",
            insert(&table, rows)
        )),
        _ => {
            drop(sql);
            let crash = dice.below(2) == 0;
            let cluster = if crash { source.kill() } else { source.stop(Shutdown::Fast) };
            source.restart(&cluster);
            (if crash { "a crash".into() } else { "a restart".into() }, true)
        }
    }
}

fn space(source: &Source, place: u64) -> PathBuf {
    source.dir(&format!("space {place}"))
}
