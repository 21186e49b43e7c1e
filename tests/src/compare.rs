//! Compares the contents of two servers, row by row.
//!
//! Every table of every database has to yield the same digest: the count of its rows, and the sum of 64 bits of
//! the SHA-256 of each row, so that neither order nor place matters. What cannot be equal has rules of
//! its own: unlogged tables are empty in a copy; a sequence may be ahead by what it had logged; schemas `churn…` belong
//! to a writer that may still run, and are left to its [`Ledger`](crate::Ledger). Writes to neither server.

use std::collections::BTreeMap;
use std::fmt;
use std::thread;

use anyhow::Context;
use pgstrata::postmaster::Server;

use crate::sql::Row;
use crate::{Source, Sql};

/// How many tables one statement digests.
const A_STATEMENT: usize = 32;
/// `SEQ_LOG_VALS` of src/backend/commands/sequence.c: how many values a sequence logs ahead.
const LOGGED_AHEAD: i128 = 32;
/// How many differences are told.
const TOLD: usize = 20;

/// What was compared, and what differs.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Databases of the source.
    pub databases: usize,
    /// Tables that were digested.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
    /// What is not as it should be.
    pub differences: Vec<String>,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} databases, {} tables, {} rows", self.databases, self.tables, self.rows)?;
        if self.differences.is_empty() {
            return f.write_str(": the same");
        }
        write!(f, ": {} differences", self.differences.len())?;
        self.differences.iter().take(TOLD).try_for_each(|difference| write!(f, "\n  {difference}"))
    }
}

/// Compares a source with a copy of it: all databases, and the files that the workload put beside them.
///
/// # Panics
/// Where anything differs, with what differs.
#[track_caller]
pub fn compare(source: &Source, copy: &Server) -> Comparison {
    let mut comparison =
        differences(source, copy).unwrap_or_else(|error| panic!("cannot compare: {error:#}"));
    comparison.differences.extend(source.check_files(copy.data_dir()));
    assert!(comparison.differences.is_empty(), "{comparison}");
    comparison
}

/// Compares the databases of two servers.
///
/// # Errors
/// Where a query fails; damage to a copy may show that way too.
pub fn differences(source: &Server, copy: &Server) -> anyhow::Result<Comparison> {
    let (ours, theirs) = both(source, copy, Contents::read)?;
    Ok(compared(&ours, &theirs))
}

/// The contents of a source that no longer changes but for its writers, read once for many copies.
#[derive(Debug)]
pub struct Baseline(Contents);

impl Baseline {
    /// Reads a source.
    ///
    /// # Panics
    /// Where a query fails.
    #[track_caller]
    #[must_use]
    pub fn of(source: &Source) -> Self {
        Self(Contents::read(source).unwrap_or_else(|error| panic!("cannot read the source: {error:#}")))
    }

    /// As [`compare`], with what the source held when it was read.
    ///
    /// # Panics
    /// Where anything differs, with what differs.
    #[track_caller]
    pub fn compare(&self, source: &Source, copy: &Server) -> Comparison {
        let theirs = Contents::read(copy).unwrap_or_else(|error| panic!("cannot read the copy: {error:#}"));
        let mut comparison = compared(&self.0, &theirs);
        comparison.differences.extend(source.check_files(copy.data_dir()));
        assert!(comparison.differences.is_empty(), "{comparison}");
        comparison
    }
}

fn compared(ours: &Contents, theirs: &Contents) -> Comparison {
    let mut comparison = Comparison {
        databases: ours.databases.len(),
        tables: ours.tables(),
        rows: ours.rows(),
        differences: Vec::new(),
    };
    let mut tell = |difference: String| comparison.differences.push(difference);
    diff("cluster", &ours.cluster, &theirs.cluster, &mut tell, |ours, theirs| ours == theirs);
    let databases = |contents: &Contents| contents.databases.keys().map(|name| (name.clone(), ())).collect();
    diff("database", &databases(ours), &databases(theirs), &mut tell, |(), ()| true);
    for (name, ours) in &ours.databases {
        let Some(theirs) = theirs.databases.get(name) else { continue };
        let what = |kind: &str| format!("database {name}: {kind}");
        diff(&what("relation"), &ours.relations, &theirs.relations, &mut tell, |ours, theirs| ours == theirs);
        diff(&what("table"), &ours.tables, &theirs.tables, &mut tell, |ours, theirs| ours == theirs);
        diff(&what("sequence"), &ours.sequences, &theirs.sequences, &mut tell, Sequence::allows);
        for (table, rows) in &theirs.unlogged {
            if *rows != 0 {
                tell(format!(
                    "database {name}: unlogged table {table}: {rows} rows in the copy, expected none"
                ));
            }
        }
    }
    comparison
}

/// Reads both servers side by side.
fn both<T: Send>(
    source: &Server,
    copy: &Server,
    read: impl Fn(&Server) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<(T, T)> {
    thread::scope(|scope| {
        let theirs = scope.spawn(|| read(copy).context("the copy"));
        let ours = read(source).context("the source")?;
        Ok((ours, theirs.join().expect("no panic while reading")?))
    })
}

fn diff<V: fmt::Debug>(
    what: &str,
    ours: &BTreeMap<String, V>,
    theirs: &BTreeMap<String, V>,
    tell: &mut impl FnMut(String),
    same: impl Fn(&V, &V) -> bool,
) {
    for (name, value) in ours {
        match theirs.get(name) {
            None => tell(format!("{what} {name}: missing in the copy")),
            Some(copied) if !same(value, copied) => {
                tell(format!("{what} {name}: {value:?}, in the copy {copied:?}"));
            }
            Some(_) => {}
        }
    }
    for name in theirs.keys().filter(|name| !ours.contains_key(*name)) {
        tell(format!("{what} {name}: only in the copy"));
    }
}

/// All that is compared of one server.
#[derive(Debug)]
struct Contents {
    /// Roles, tablespaces and settings.
    cluster: BTreeMap<String, String>,
    databases: BTreeMap<String, Database>,
}

#[derive(Debug, Default)]
struct Database {
    /// Kind and persistence of every relation of the user.
    relations: BTreeMap<String, String>,
    tables: BTreeMap<String, Digest>,
    sequences: BTreeMap<String, Sequence>,
    /// Rows in unlogged tables.
    unlogged: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Digest {
    rows: u64,
    /// Sum of the first 64 bits of each row's SHA-256.
    sum: String,
}

#[derive(Clone, Debug)]
struct Sequence {
    last: i128,
    increment: i128,
    is_called: bool,
}

impl Sequence {
    /// Recovery sets a sequence to the value it had logged, up to 32 calls ahead.
    fn allows(&self, copied: &Self) -> bool {
        let ahead = (copied.last - self.last) * self.increment.signum();
        (ahead == 0 && self.is_called == copied.is_called)
            || (copied.is_called && 0 <= ahead && ahead <= LOGGED_AHEAD * self.increment.abs())
    }
}

impl Contents {
    fn read(server: &Server) -> anyhow::Result<Self> {
        let sql = connect(server, "postgres")?;
        let cluster = sql.try_rows(
            "SELECT 'role ' || rolname, concat_ws(' ', rolcanlogin, rolsuper, rolpassword) FROM pg_authid
             UNION ALL SELECT 'tablespace ' || spcname, oid::text FROM pg_tablespace
             UNION ALL SELECT 'setting ' || setdatabase || ' ' || setrole, setconfig::text FROM pg_db_role_setting",
        )?;
        let cluster = cluster.into_iter().map(|row| (text(&row, 0), text(&row, 1))).collect();
        let names = sql.try_rows("SELECT datname FROM pg_database WHERE datallowconn")?;
        let read = |row: Row| {
            let name = text(&row, 0);
            let database = Database::read(server, &name).with_context(|| format!("database {name}"))?;
            Ok((name, database))
        };
        Ok(Self { cluster, databases: names.into_iter().map(read).collect::<anyhow::Result<_>>()? })
    }

    fn tables(&self) -> usize {
        self.databases.values().map(|database| database.tables.len()).sum()
    }

    fn rows(&self) -> u64 {
        self.databases.values().flat_map(|database| database.tables.values()).map(|digest| digest.rows).sum()
    }
}

impl Database {
    fn read(server: &Server, name: &str) -> anyhow::Result<Self> {
        let sql = connect(server, name)?;
        // 16384 is FirstNormalObjectId of access/transam.h. Temporary relations are their session's.
        let relations = sql.try_rows(
            "SELECT c.oid::regclass::text, c.relkind, c.relpersistence FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
             WHERE c.oid >= 16384 AND relpersistence <> 't' AND nspname !~ '^(churn|pg_)'
               AND nspname <> 'information_schema'",
        )?;
        let mut database = Self::default();
        let mut tables = vec!["pg_catalog.pg_largeobject".to_owned()];
        let mut unlogged = Vec::new();
        for row in relations {
            let (name, kind, persistence) = (text(&row, 0), text(&row, 1), text(&row, 2));
            match (kind.as_str(), persistence.as_str()) {
                ("r" | "m", "u") => unlogged.push(name.clone()),
                ("r" | "m", _) => tables.push(name.clone()),
                ("S", "p") => {
                    database.sequences.insert(name.clone(), Sequence::read(&sql, &name)?);
                }
                _ => {}
            }
            database.relations.insert(name, kind + &persistence);
        }
        for tables in tables.chunks(A_STATEMENT) {
            database.digest(&sql, tables)?;
        }
        for table in unlogged {
            let rows = sql.try_rows(&format!("SELECT count(*) FROM {table}"))?;
            database.unlogged.insert(table, text(&rows[0], 0).parse()?);
        }
        Ok(database)
    }

    fn digest(&mut self, sql: &Sql, tables: &[String]) -> anyhow::Result<()> {
        let queries: Vec<String> = tables
            .iter()
            .map(|table| {
                // The binary form of a row is exact, and takes no quoting.
                format!(
                    "SELECT {}, count(*), \
                     sum(('x' || encode(substr(sha256(record_send(t.*)), 1, 8), 'hex'))::bit(64)::bigint) FROM {table} t",
                    literal(table)
                )
            })
            .collect();
        for row in sql.try_rows(&queries.join(" UNION ALL "))? {
            let digest = Digest { rows: text(&row, 1).parse()?, sum: text(&row, 2) };
            self.tables.insert(text(&row, 0), digest);
        }
        Ok(())
    }
}

impl Sequence {
    fn read(sql: &Sql, name: &str) -> anyhow::Result<Self> {
        let rows = sql.try_rows(&format!(
            "SELECT last_value, seqincrement, is_called FROM {name}, pg_sequence WHERE seqrelid = {}::regclass",
            literal(name)
        ))?;
        let row = rows.first().with_context(|| format!("sequence {name} is not in pg_sequence"))?;
        Ok(Self {
            last: text(row, 0).parse()?,
            increment: text(row, 1).parse()?,
            is_called: text(row, 2) == "t",
        })
    }
}

/// A session that reads the whole of every table from its own file, and prints everything one way.
fn connect(server: &Server, database: &str) -> anyhow::Result<Sql> {
    let sql = Sql::connect(&server.database_conninfo(database))?;
    sql.try_execute(
        "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET extra_float_digits = 1; SET bytea_output = 'hex';
         SET search_path = ''; SET synchronize_seqscans = off; SET enable_indexonlyscan = off; SET statement_timeout = 0; SET jit = off",
    )?;
    Ok(sql)
}

fn text(row: &[Option<String>], column: usize) -> String {
    row.get(column).cloned().flatten().unwrap_or_else(|| "NULL".to_owned())
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_may_be_ahead_by_what_it_logged_and_never_behind() {
        let sequence = |last, increment, is_called| Sequence { last, increment, is_called };
        for (source, copy, allowed) in [
            (sequence(100, 1, true), sequence(100, 1, true), true),
            (sequence(100, 1, true), sequence(132, 1, true), true),
            (sequence(100, 1, true), sequence(133, 1, true), false),
            (sequence(100, 1, true), sequence(99, 1, true), false),
            (sequence(-20, -5, true), sequence(-180, -5, true), true),
            (sequence(-20, -5, true), sequence(-15, -5, true), false),
            (sequence(1, 1, false), sequence(1, 1, false), true),
            (sequence(5, 1, true), sequence(5, 1, false), false),
        ] {
            assert_eq!(source.allows(&copy), allowed, "{source:?} {copy:?}");
        }
    }
}
