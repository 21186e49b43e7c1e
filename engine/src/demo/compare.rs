//! Compares a booted copy with its source, and with what a consistent copy must be.
//!
//! Tables that nobody changed must be equal. The ledger must be a prefix, the same rows as in the source as far as
//! it goes, and explain every balance. Unlogged tables must be empty. All tables are read in full, so that the
//! server checks every page's checksum; each index must have as many entries as its table has rows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::dataset::{ACCOUNTS, ACCOUNTS_STATIC, LEDGER};
use super::digest::{Digest, quoted_name};
use super::ledger::{Found, judge};
use super::report::{Comparison, LedgerReport};
use super::sql::Sql;
use super::{DemoError, Side};
use crate::connect::ConnectionSettings;

/// A table of the schema `public`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    name: String,
    unlogged: bool,
}

/// Count and digest of a table's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TableDigest {
    table: String,
    rows: u64,
    digest: String,
}

/// Compares. `expected` is what the writer knows; its `in_copy` is found out.
///
/// # Errors
/// [`DemoError::Mismatch`] with everything that differs, and the others where a server refused.
pub(super) fn compare(
    source: &ConnectionSettings,
    copy: &ConnectionSettings,
    expected: LedgerReport,
    advances: &(dyn Fn(&str) + Sync),
) -> Result<Comparison, DemoError> {
    let mut findings = Vec::new();
    let mut in_source = Sql::connect(source, Side::Source)?;
    let mut in_copy = Sql::connect(copy, Side::Copy)?;
    let [recovering]: [String; 1] = in_copy.row("ask for recovery", "SELECT pg_is_in_recovery()")?;
    if recovering != "f" {
        findings.push("the copy is still in recovery".to_owned());
    }
    let tables = tables(&mut in_source)?;
    if tables != self::tables(&mut in_copy)? {
        findings.push("the copy has other tables than the source".to_owned());
        return Err(DemoError::Mismatch { findings });
    }

    let mut comparison = Comparison::default();
    let unchanged = compare_unchanged(source, copy, &tables, advances, &mut findings)?;
    comparison.static_tables = unchanged.len() as u64;
    comparison.static_rows = unchanged.iter().map(|table| table.rows).sum();

    advances("ledger and balances");
    match judge(expected, found_ledger(&mut in_copy)?) {
        Ok(ledger) => comparison.ledger = ledger,
        Err(complaints) => findings.extend(complaints),
    }
    compare_ledger_rows(&mut in_source, &mut in_copy, &mut findings)?;
    comparison.accounts = compare_balances(&mut in_copy, &mut findings)?;
    comparison.unlogged_tables = compare_unlogged(&mut in_source, &mut in_copy, &tables, &mut findings)?;

    advances("every page");
    (comparison.relations_read, comparison.rows_read) = read_everything(&mut in_copy)?;
    comparison.indexes = compare_indexes(&mut in_copy, &mut findings)?;
    if findings.is_empty() { Ok(comparison) } else { Err(DemoError::Mismatch { findings }) }
}

fn tables(sql: &mut Sql) -> Result<Vec<Table>, DemoError> {
    let rows = sql.rows(
        "list the tables",
        "SELECT relname, relpersistence = 'u' FROM pg_class \
         WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY relname",
    )?;
    let table = |[name, unlogged]: [Option<String>; 2]| Table {
        name: name.unwrap_or_default(),
        unlogged: unlogged.as_deref() == Some("t"),
    };
    Ok(rows.into_iter().map(table).collect())
}

/// Digests what nobody changed on both sides at once.
fn compare_unchanged(
    source: &ConnectionSettings,
    copy: &ConnectionSettings,
    tables: &[Table],
    advances: &(dyn Fn(&str) + Sync),
    findings: &mut Vec<String>,
) -> Result<Vec<TableDigest>, DemoError> {
    let digests: Vec<Digest<'_>> = tables
        .iter()
        .filter(|table| !table.unlogged && table.name != LEDGER)
        .map(|table| match table.name.as_str() {
            ACCOUNTS => Digest { columns: &ACCOUNTS_STATIC, ..Digest::of(ACCOUNTS) },
            name => Digest::of(name),
        })
        .collect();
    // Where one side fails, the other one's answer is of no use.
    let failed = AtomicBool::new(false);
    let all = |settings: &ConnectionSettings, side: Side| -> Result<Vec<TableDigest>, DemoError> {
        let outcome = Sql::connect(settings, side).and_then(|mut sql| {
            let wanted = digests.iter().take_while(|_| !failed.load(Ordering::Relaxed));
            wanted
                .map(|wanted| {
                    if side == Side::Copy {
                        advances(wanted.table);
                    }
                    digest(&mut sql, wanted)
                })
                .collect()
        });
        failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
        outcome
    };
    let (in_source, in_copy) = thread::scope(|scope| {
        let there = scope.spawn(|| all(source, Side::Source));
        let here = all(copy, Side::Copy);
        (there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), here)
    });
    let (in_source, in_copy) = (in_source?, in_copy?);
    findings.extend(differences(&in_source, &in_copy));
    Ok(in_copy)
}

fn digest(sql: &mut Sql, wanted: &Digest<'_>) -> Result<TableDigest, DemoError> {
    let what = format!("read the table {}", wanted.table);
    let [rows, digest]: [String; 2] = sql.row(&what, &wanted.sql())?;
    let rows = rows.parse().map_err(|_| DemoError::Answer {
        what,
        side: Side::Copy,
        found: rows,
        expected: "a count".into(),
    })?;
    Ok(TableDigest { table: wanted.table.to_owned(), rows, digest })
}

/// What differs, in words. Both lists name the same tables.
fn differences(source: &[TableDigest], copy: &[TableDigest]) -> Vec<String> {
    let pairs = source.iter().zip(copy).filter(|(source, copy)| source != copy);
    pairs
        .map(|(source, copy)| {
            let table = &source.table;
            if source.rows == copy.rows {
                format!("table {table}: {} rows on both sides, but not the same", source.rows)
            } else {
                format!("table {table}: {} rows in the copy, expected {}", copy.rows, source.rows)
            }
        })
        .collect()
}

fn found_ledger(copy: &mut Sql) -> Result<Found, DemoError> {
    let [rows, distinct, first, last] = copy.row(
        "read the ledger",
        "SELECT count(*), count(DISTINCT id), coalesce(min(id), 0), coalesce(max(id), 0) FROM ledger",
    )?;
    Ok(Found { rows, distinct, first, last })
}

/// As far as the copy's ledger goes, it must have the source's lines.
fn compare_ledger_rows(
    source: &mut Sql,
    copy: &mut Sql,
    findings: &mut Vec<String>,
) -> Result<(), DemoError> {
    let last = found_ledger(copy)?.last;
    let prefix = Digest { up_to: Some(("id", last)), ..Digest::of(LEDGER) };
    let (in_source, in_copy) = (digest(source, &prefix)?, digest(copy, &prefix)?);
    findings.extend(differences(&[in_source], &[in_copy]));
    Ok(())
}

/// Returns how many accounts there are.
fn compare_balances(copy: &mut Sql, findings: &mut Vec<String>) -> Result<u64, DemoError> {
    let [accounts, wrong]: [u64; 2] = copy.row(
        "compare balances with the ledger",
        "SELECT count(*), count(*) FILTER (WHERE a.balance <> coalesce(l.sum, 0)) FROM accounts a \
         FULL JOIN (SELECT account, sum(amount) FROM ledger GROUP BY account) l ON l.account = a.id",
    )?;
    if wrong > 0 {
        findings.push(format!("{wrong} of {accounts} balances are not the sum of their ledger entries"));
    }
    Ok(accounts)
}

fn compare_unlogged(
    source: &mut Sql,
    copy: &mut Sql,
    tables: &[Table],
    findings: &mut Vec<String>,
) -> Result<u64, DemoError> {
    let mut checked = 0;
    for table in tables.iter().filter(|table| table.unlogged) {
        let query = format!("SELECT count(*) FROM {}", quoted_name(&table.name));
        let what = format!("count the rows of {}", table.name);
        let ([there], [here]): ([u64; 1], [u64; 1]) = (source.row(&what, &query)?, copy.row(&what, &query)?);
        if there == 0 || here > 0 {
            findings.push(format!(
                "unlogged table {}: {here} rows in the copy and {there} in the source, expected none and some",
                table.name
            ));
        }
        checked += 1;
    }
    Ok(checked)
}

/// Reads every page of every table, whatever its schema. Returns the number of relations and of their rows.
fn read_everything(copy: &mut Sql) -> Result<(u64, u64), DemoError> {
    // An index might answer for its table.
    copy.run("set the planner", "SET enable_indexscan = off; SET enable_indexonlyscan = off")?;
    let relations = copy.rows(
        "list the relations",
        "SELECT c.oid::regclass::text FROM pg_class c \
         WHERE relkind IN ('r', 'm', 't') AND relpersistence <> 't' ORDER BY c.oid",
    )?;
    let (mut read, mut rows) = (0, 0);
    for [name] in relations {
        // The server has quoted it.
        let name = name.unwrap_or_default();
        let [count]: [u64; 1] =
            copy.row(&format!("read {name} in full"), &format!("SELECT count(*) FROM {name}"))?;
        read += 1;
        rows += count;
    }
    Ok((read, rows))
}

/// Compares the entries of each index with the rows of its table. Returns how many indexes were used for that.
fn compare_indexes(copy: &mut Sql, findings: &mut Vec<String>) -> Result<u64, DemoError> {
    let indexes = copy.rows(
        "list the indexes",
        "SELECT i.relname, t.relname, a.attname FROM pg_index x \
         JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid \
         JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = x.indkey[0] \
         WHERE t.relnamespace = 'public'::regnamespace AND t.relpersistence = 'p' AND a.attnotnull \
         ORDER BY i.relname",
    )?;
    let by_index = "SET enable_seqscan = off; SET enable_sort = off; \
                    SET enable_indexscan = on; SET enable_indexonlyscan = on";
    let by_table = "SET enable_seqscan = on; SET enable_sort = on; \
                    SET enable_indexscan = off; SET enable_indexonlyscan = off";
    let mut compared = 0;
    for [index, table, column] in indexes {
        let (index, table) = (index.unwrap_or_default(), table.unwrap_or_default());
        let table_name = quoted_name(&table);
        // A wish for order that may not be sorted for leads through this very index.
        let through_index = format!(
            "SELECT count(*) FROM (SELECT 1 FROM {table_name} ORDER BY {} OFFSET 0) AS entries",
            quoted_name(&column.unwrap_or_default())
        );
        let what = format!("count the entries of {index}");
        copy.run("set the planner", by_index)?;
        let plan = copy.rows::<1>(&what, &format!("EXPLAIN (COSTS OFF) {through_index}"))?;
        let names_index = |line: &[Option<String>; 1]| {
            line[0]
                .as_deref()
                .is_some_and(|line| line.contains(&format!("using {} on", quoted_in_plan(&index))))
        };
        // The planner may find no way through this index; then nothing is learnt about it.
        if !plan.iter().any(names_index) {
            continue;
        }
        let [entries]: [u64; 1] = copy.row(&what, &through_index)?;
        copy.run("set the planner", by_table)?;
        let [rows]: [u64; 1] = copy.row(&what, &format!("SELECT count(*) FROM {table_name}"))?;
        if entries != rows {
            findings.push(format!("index {index}: {entries} entries for the {rows} rows of {table}"));
        }
        compared += 1;
    }
    Ok(compared)
}

/// EXPLAIN quotes a name only where it must.
fn quoted_in_plan(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.bytes().all(plain) { name.to_owned() } else { quoted_name(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_by_table() {
        let table = |name: &str, rows, digest: &str| TableDigest {
            table: name.to_owned(),
            rows,
            digest: digest.to_owned(),
        };
        let source = [table("a", 1, "x"), table("b", 2, "y"), table("c", 3, "z")];
        let copy = [table("a", 1, "x"), table("b", 2, "other"), table("c", 1, "z")];
        assert_eq!(
            differences(&source, &copy),
            ["table b: 2 rows on both sides, but not the same", "table c: 1 rows in the copy, expected 3"]
        );
        assert!(differences(&source, &source).is_empty());
    }
}
