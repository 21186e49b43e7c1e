//! The source's data: a bit of everything that a backup has to carry.
//!
//! Big tables share the bytes asked for: `accounts` changes during the backup, `events` has a second index,
//! `documents` lies in TOAST, `measurements` in a tablespace. Beside them an unlogged table, an empty one and many
//! that are smaller than a page's worth. The same size always makes the same rows.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::digest::quoted_text;
use super::sql::Sql;
use super::{DemoError, Side};
use crate::connect::ConnectionSettings;
use crate::failure::Failure;
use crate::stop::Stop;

/// The table that the writer changes, and the columns of it that stay as they are.
pub(super) const ACCOUNTS: &str = "accounts";
pub(super) const ACCOUNTS_STATIC: [&str; 2] = ["id", "owner"];
/// The table that the writer adds to; its column `id` numbers the transactions.
pub(super) const LEDGER: &str = "ledger";

/// Tables of a few rows; the first has none.
const SMALL_TABLES: u64 = 48;
/// Each has this many rows more than the one before.
const SMALL_STEP: u64 = 5;
const UNLOGGED_ROWS: u64 = 5000;
/// Bytes of table that one statement makes: small enough that progress shows.
const BYTES_AT_ONCE: u64 = 8 << 20;

/// A table that is filled to a size.
struct Big {
    name: &'static str,
    /// Bytes of one row with its index entries and TOAST, measured with PostgreSQL 15.
    row_bytes: u64,
    /// The rows numbered `i`.
    rows: &'static str,
    /// What makes its indexes, once it is filled.
    indexes: &'static str,
}

const BIG: [Big; 4] = [
    Big {
        name: ACCOUNTS,
        row_bytes: 117,
        rows: "i, 0, md5(i::text)",
        indexes: "ALTER TABLE accounts ADD PRIMARY KEY (id)",
    },
    Big {
        name: "events",
        row_bytes: 171,
        rows: "i, timestamptz '2025-01-01 UTC' + i * interval '1 second', i * 7919 % 100, md5(i::text) || md5((-i)::text)",
        indexes: "ALTER TABLE events ADD PRIMARY KEY (id); CREATE INDEX events_by_kind ON events (kind, at)",
    },
    Big {
        name: "documents",
        row_bytes: 10_045,
        rows: "i, (SELECT string_agg(md5(i::text || '/' || n), '') FROM generate_series(1, 64 + i % 448) n)",
        indexes: "ALTER TABLE documents ADD PRIMARY KEY (id)",
    },
    Big {
        name: "measurements",
        row_bytes: 83,
        rows: "i, i % 1000, timestamptz '2025-01-01 UTC' + i * interval '1 second', sin(i::float8)",
        indexes: "ALTER TABLE measurements ADD PRIMARY KEY (id) USING INDEX TABLESPACE demo_space",
    },
];

/// How many rows the big tables get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    rows: [u64; BIG.len()],
}

/// What was loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    pub(super) tables: u64,
    pub(super) rows: u64,
    /// Bytes of all tablespaces but the shared one, system catalogues included.
    pub(super) bytes: u64,
}

impl Plan {
    /// About so many bytes, in equal parts.
    pub(super) fn for_bytes(bytes: u64) -> Self {
        let share = bytes / BIG.len() as u64;
        Self { rows: BIG.each_ref().map(|big| (share / big.row_bytes).max(1)) }
    }

    /// Rows of the table that the writer changes.
    pub(super) fn accounts(&self) -> u64 {
        self.rows[0]
    }

    fn total_rows(&self) -> u64 {
        let small: u64 = (0..SMALL_TABLES).map(|n| n * SMALL_STEP).sum();
        self.rows.iter().sum::<u64>() + small + UNLOGGED_ROWS
    }

    fn total_bytes(&self) -> u64 {
        self.rows.iter().zip(&BIG).map(|(rows, big)| rows * big.row_bytes).sum()
    }
}

/// Makes the tables and fills them, the big ones side by side. `tablespace` is an empty folder of the server's
/// account; `advances` is told of bytes made and bytes to make.
pub(super) fn load(
    settings: &ConnectionSettings,
    plan: &Plan,
    tablespace: &Path,
    stop: &Stop<Failure>,
    advances: &(dyn Fn(u64, u64) + Sync),
) -> Result<Loaded, DemoError> {
    let location = tablespace.to_str().ok_or_else(|| {
        Failure::Target(format!("\"{}\" is not valid UTF-8\nHINT: set TMPDIR.", tablespace.display()))
    })?;
    let mut sql = Sql::connect(settings, Side::Source)?;
    sql.run(
        "create the tablespace",
        &format!("CREATE TABLESPACE demo_space LOCATION {}", quoted_text(location)),
    )?;
    sql.run("create the tables", TABLES)?;
    sql.run("create the small tables", &small_tables())?;
    let filling = Filling {
        settings,
        stop,
        done: AtomicU64::new(0),
        failure: Mutex::new(None),
        total: plan.total_bytes(),
        advances,
    };
    thread::scope(|scope| {
        for (big, rows) in BIG.iter().zip(plan.rows) {
            let filling = &filling;
            scope.spawn(move || filling.fill(big, rows));
        }
    });
    if let Some(error) = filling.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    // Visibility maps and statistics belong to a real cluster, and make the comparison quicker.
    sql.run("vacuum", "VACUUM ANALYZE")?;
    sql.run("write a checkpoint", "CHECKPOINT")?;
    let [bytes] = sql.row(
        "measure the data",
        "SELECT pg_tablespace_size('pg_default') + pg_tablespace_size('demo_space')",
    )?;
    let tables = BIG.len() as u64 + SMALL_TABLES + 2;
    Ok(Loaded { tables, rows: plan.total_rows(), bytes })
}

/// The filling of the big tables, a session each.
struct Filling<'a> {
    settings: &'a ConnectionSettings,
    stop: &'a Stop<Failure>,
    /// Bytes made.
    done: AtomicU64,
    /// The first failure; the others need not go on then.
    failure: Mutex<Option<DemoError>>,
    total: u64,
    advances: &'a (dyn Fn(u64, u64) + Sync),
}

impl Filling<'_> {
    fn fill(&self, big: &Big, rows: u64) {
        if let Err(error) = self.try_fill(big, rows) {
            self.failure().get_or_insert(error);
        }
    }

    fn failure(&self) -> MutexGuard<'_, Option<DemoError>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_fill(&self, big: &Big, rows: u64) -> Result<(), DemoError> {
        let mut sql = Sql::connect(self.settings, Side::Source)?;
        let step = (BYTES_AT_ONCE / big.row_bytes).max(1);
        let mut first = 1;
        while first <= rows {
            if self.stop.is_thrown() || self.failure().is_some() {
                return Err(Failure::Stopped.into());
            }
            let last = rows.min(first + step - 1);
            sql.run(&format!("fill the table {}", big.name), &insert(big, first, last))?;
            let made = (last - first + 1) * big.row_bytes;
            (self.advances)(self.done.fetch_add(made, Ordering::Relaxed) + made, self.total);
            first = last + 1;
        }
        sql.run(&format!("index the table {}", big.name), big.indexes)?;
        Ok(())
    }
}

const TABLES: &str = "\
    CREATE TABLE accounts (id bigint NOT NULL, balance bigint NOT NULL, owner text NOT NULL) \
        WITH (fillfactor = 90); \
    CREATE TABLE ledger (id bigint PRIMARY KEY, account bigint NOT NULL, amount bigint NOT NULL, \
        written timestamptz NOT NULL DEFAULT clock_timestamp()); \
    CREATE TABLE events (id bigint NOT NULL, at timestamptz NOT NULL, kind integer NOT NULL, payload text); \
    CREATE TABLE documents (id bigint NOT NULL, body text NOT NULL); \
    ALTER TABLE documents ALTER body SET STORAGE EXTERNAL; \
    CREATE TABLE measurements (id bigint NOT NULL, sensor integer NOT NULL, at timestamptz NOT NULL, \
        value float8 NOT NULL) TABLESPACE demo_space; \
    CREATE UNLOGGED TABLE visitors (id bigint PRIMARY KEY, note text)";

fn insert(big: &Big, first: u64, last: u64) -> String {
    format!("INSERT INTO {} SELECT {} FROM generate_series({first}::bigint, {last}) i", big.name, big.rows)
}

fn small_tables() -> String {
    format!(
        "DO $$ BEGIN \
           FOR n IN 1..{SMALL_TABLES} LOOP \
             EXECUTE format('CREATE TABLE small_%s (id integer PRIMARY KEY, note text)', n); \
             EXECUTE format('INSERT INTO small_%s SELECT i, md5(i::text) FROM generate_series(1, %s) i', \
                            n, (n - 1) * {SMALL_STEP}); \
           END LOOP; \
           INSERT INTO visitors SELECT i, md5(i::text) FROM generate_series(1, {UNLOGGED_ROWS}) i; \
         END $$"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_come_close_to_what_was_asked_for() {
        for bytes in [16_000_000, 300_000_000, 1_000_000_000_000] {
            let planned = Plan::for_bytes(bytes).total_bytes();
            assert!(planned <= bytes && planned > bytes - 50_000, "{bytes}: {planned}");
        }
        assert_eq!(Plan::for_bytes(0).rows, [1; BIG.len()]);
        assert_eq!(Plan::for_bytes(0).total_rows(), 4 + 5 * (47 * 48 / 2) + UNLOGGED_ROWS);
    }

    #[test]
    fn inserts_name_their_rows() {
        let sql = insert(&BIG[3], 5, 9);
        assert!(sql.starts_with("INSERT INTO measurements SELECT i, "), "{sql}");
        assert!(sql.ends_with("FROM generate_series(5::bigint, 9) i"), "{sql}");
    }
}
