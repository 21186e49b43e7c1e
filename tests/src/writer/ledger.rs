//! Checks a copy against what a writer did.

use std::ops::RangeInclusive;

use anyhow::{Context, bail, ensure};

use super::model::Model;
use crate::Sql;

/// What a writer did, once it has ended.
#[derive(Clone, Debug)]
pub struct Ledger {
    schema: String,
    seed: u64,
    acknowledged: u64,
    sent: u64,
}

impl Ledger {
    pub(super) fn new(schema: String, seed: u64, acknowledged: u64, sent: u64) -> Self {
        Self { schema, seed, acknowledged, sent }
    }

    /// How many transactions were acknowledged in all.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Checks that a copy holds the state after some transaction, no earlier than `at_least` (what was
    /// [acknowledged](super::Writer::acknowledged) when the backup started). Returns which transaction.
    ///
    /// # Errors
    /// The first thing that is missing, too much or different.
    pub fn try_check(&self, copy: &Sql, at_least: u64) -> anyhow::Result<u64> {
        self.check_range(copy, at_least..=self.sent).with_context(|| format!("ledger {}", self.schema))
    }

    /// As [`try_check`](Self::try_check).
    ///
    /// # Panics
    /// With the first thing that is missing, too much or different.
    #[track_caller]
    pub fn check(&self, copy: &Sql, at_least: u64) -> u64 {
        self.try_check(copy, at_least).unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn check_range(&self, copy: &Sql, allowed: RangeInclusive<u64>) -> anyhow::Result<u64> {
        let schema = &self.schema;
        // Without indexes first, for they come from other files.
        copy.try_execute(
            "SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off",
        )?;
        let rows = copy.try_rows(&format!(
            "SELECT count(*), coalesce(max(n), 0), coalesce(min(n), 1) FROM {schema}.ledger"
        ))?;
        let [count, last, first] = numbers(&rows[0])?;
        ensure!(first == 1 && count == last, "holes: {count} entries from {first} to {last}");
        ensure!(allowed.contains(&last), "ends with transaction {last}, expected one of {allowed:?}");

        let mut model = Model::new(schema, self.seed);
        for number in 1..=last {
            model.transaction(number);
        }
        self.check_rows(copy, &model)?;
        self.check_tables(copy, &model)?;
        copy.try_execute("RESET ALL; SET enable_seqscan = off; SET enable_bitmapscan = off")?;
        let by_index =
            copy.try_rows(&format!("SELECT count(*) FROM {schema}.ledger WHERE n BETWEEN 1 AND {last}"))?;
        let [by_index] = numbers(&by_index[0])?;
        ensure!(by_index == last, "the index of the ledger finds {by_index} of {last} entries");
        copy.try_execute("RESET ALL")?;
        Ok(last)
    }

    fn check_rows(&self, copy: &Sql, model: &Model) -> anyhow::Result<()> {
        let found = copy.try_rows(&format!("SELECT k, tx, v FROM {}.rows ORDER BY k", self.schema))?;
        let mut found = found.iter();
        for (key, (value, number)) in &model.rows {
            let expected = [key.to_string(), number.to_string(), value.text()];
            let Some(row) = found.next() else { bail!("rows: key {key} is missing, with all that follow") };
            let same = row.iter().zip(&expected).all(|(found, expected)| found.as_ref() == Some(expected));
            ensure!(same, "rows: found {}, expected {}", shortened(row), shortened(&expected.map(Some)));
        }
        let more = found.count();
        ensure!(more == 0, "rows: {more} more than expected");
        Ok(())
    }

    fn check_tables(&self, copy: &Sql, model: &Model) -> anyhow::Result<()> {
        let schema = &self.schema;
        let found = copy.try_rows(&format!(
            "SELECT substr(relname, 2)::bigint AS n FROM pg_class
             WHERE relnamespace = '{schema}'::regnamespace AND relkind = 'r' AND relname ~ '^t[0-9]+$' ORDER BY n"
        ))?;
        let found = found
            .iter()
            .map(|row| numbers(row).map(|[number]| number))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let expected: Vec<u64> = model.tables.keys().copied().collect();
        ensure!(found == expected, "tables: found {found:?}, expected {expected:?}");
        for (number, rows) in &model.tables {
            let sums = copy.try_rows(&format!(
                "SELECT count(*), coalesce(sum(i), 0), coalesce(sum(v), 0) FROM {schema}.t{number}"
            ))?;
            let sum = rows * (rows + 1) / 2;
            let (found, expected) = (numbers(&sums[0])?, [*rows, sum, sum * number]);
            ensure!(found == expected, "table t{number}: found {found:?}, expected {expected:?}");
        }
        Ok(())
    }
}

fn numbers<const N: usize>(row: &[Option<String>]) -> anyhow::Result<[u64; N]> {
    let read = |text: &Option<String>| text.as_deref().unwrap_or_default().parse::<u64>().ok();
    let numbers: Option<Vec<u64>> = row.iter().map(read).collect();
    let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
    numbers.with_context(|| format!("expected {N} numbers, found {row:?}"))
}

fn shortened(row: &[Option<String>]) -> String {
    let text = format!("{row:?}");
    text.chars().take(200).collect()
}
