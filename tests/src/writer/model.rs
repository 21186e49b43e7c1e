//! What the writer's tables hold after each transaction.
//!
//! Pure: the same schema and seed yield the same statements and the same contents, on the writer's side while it
//! writes and on the checker's side when it replays.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How many rows the main table is kept at, about.
const ROWS: usize = 1_000;
/// How many made tables live at most.
const TABLES: usize = 12;

/// The contents of one writer's tables.
#[derive(Clone, Debug)]
pub(super) struct Model {
    schema: String,
    seed: u64,
    /// `rows`: key → (value, transaction that wrote it).
    pub(super) rows: BTreeMap<u64, (Value, u64)>,
    /// Tables made by transactions: number → how many rows.
    pub(super) tables: BTreeMap<u64, u64>,
    next_key: u64,
}

/// A text that is told by its seed and length, so that a model of large values stays small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    seed: u64,
    length: usize,
}

impl Value {
    /// Letters that compress poorly.
    pub(super) fn text(self) -> String {
        let mut random = Random(self.seed);
        let mut text = String::with_capacity(self.length + 16);
        while text.len() < self.length {
            let _ = write!(text, "{:016x}", random.next());
        }
        text.truncate(self.length);
        text
    }
}

/// The statements that make one writer's tables.
pub(super) fn schema(name: &str) -> String {
    format!(
        "CREATE SCHEMA {name};
         CREATE TABLE {name}.ledger (n bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp());
         CREATE TABLE {name}.rows (k bigint PRIMARY KEY, v text NOT NULL, tx bigint NOT NULL);
         ALTER TABLE {name}.rows ALTER v SET STORAGE EXTERNAL;
         CREATE INDEX rows_tx ON {name}.rows (tx)"
    )
}

impl Model {
    /// Before the first transaction.
    pub(super) fn new(schema: &str, seed: u64) -> Self {
        Self { schema: schema.to_owned(), seed, rows: BTreeMap::new(), tables: BTreeMap::new(), next_key: 1 }
    }

    /// Statements to run before a transaction, each on its own; they change files but no contents.
    pub(super) fn upkeep(&self, number: u64) -> Vec<String> {
        let schema = &self.schema;
        let every = |n: u64| number.is_multiple_of(n);
        let mut statements = Vec::new();
        if every(50) {
            statements.push(format!("VACUUM {schema}.rows"));
        }
        if every(170) {
            statements.push(format!("VACUUM (FULL) {schema}.rows"));
        }
        if every(130) {
            statements.push(format!("REINDEX TABLE {schema}.rows"));
        }
        if every(210) {
            statements.push("SELECT pg_switch_wal()".to_owned());
        }
        if every(300) {
            statements.push("CHECKPOINT".to_owned());
        }
        statements
    }

    /// Changes the model as transaction `number` does, and returns its statements: one text, thus one transaction.
    pub(super) fn transaction(&mut self, number: u64) -> String {
        let mut random = Random(self.seed.rotate_left(32) ^ number);
        let mut sql = String::new();
        for _ in 0..=random.below(4) {
            self.change(number, &mut random, &mut sql);
        }
        let _ = write!(sql, "INSERT INTO {}.ledger (n) VALUES ({number})", self.schema);
        sql
    }

    fn change(&mut self, number: u64, random: &mut Random, sql: &mut String) {
        let schema = &self.schema;
        let grow = self.rows.len() < ROWS;
        match random.below(100) {
            0..40 if grow => self.insert(number, 1 + random.below(8), random, sql),
            0..70 => {
                if let Some(key) = self.pick(random) {
                    let value = random.value();
                    self.rows.insert(key, (value, number));
                    let text = value.text();
                    let _ =
                        write!(sql, "UPDATE {schema}.rows SET v = '{text}', tx = {number} WHERE k = {key};");
                }
            }
            70..90 => {
                if let Some(key) = self.pick(random) {
                    self.rows.remove(&key);
                    let _ = write!(sql, "DELETE FROM {schema}.rows WHERE k = {key};");
                }
            }
            90..94 if self.tables.len() < TABLES && !self.tables.contains_key(&number) => {
                let rows = random.below(400);
                self.tables.insert(number, rows);
                let _ = write!(
                    sql,
                    "CREATE TABLE {schema}.t{number} AS SELECT i, i * {number} AS v FROM generate_series(1, {rows}::bigint) AS i;\
                     CREATE INDEX ON {schema}.t{number} (v);"
                );
            }
            94..97 => {
                // Never one that this transaction made: its drop would leave nothing to see.
                if let Some((&oldest, _)) = self.tables.first_key_value().filter(|(made, _)| **made < number)
                {
                    self.tables.remove(&oldest);
                    let _ = write!(sql, "DROP TABLE {schema}.t{oldest};");
                }
            }
            97..98 if self.rows.len() > ROWS / 2 => {
                self.rows.clear();
                let _ = write!(sql, "TRUNCATE {schema}.rows;");
                self.insert(number, 20, random, sql);
            }
            _ => self.insert(number, 1, random, sql),
        }
    }

    fn insert(&mut self, number: u64, count: u64, random: &mut Random, sql: &mut String) {
        let _ = write!(sql, "INSERT INTO {}.rows VALUES ", self.schema);
        for n in 0..count {
            let (key, value) = (self.next_key, random.value());
            self.next_key += 1;
            self.rows.insert(key, (value, number));
            let _ = write!(sql, "{}({key}, '{}', {number})", if n == 0 { "" } else { ", " }, value.text());
        }
        sql.push(';');
    }

    fn pick(&self, random: &mut Random) -> Option<u64> {
        let place = random.below(u64::try_from(self.rows.len()).ok()?.max(1));
        self.rows.keys().nth(usize::try_from(place).ok()?).copied()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good for any seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Mostly short values, now and then one that goes out of line.
    fn value(&mut self) -> Value {
        let length = if self.below(25) == 0 { 3_000 + self.below(9_000) } else { 1 + self.below(300) };
        Value { seed: self.next(), length: usize::try_from(length).expect("a length below 12,000") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_says_and_holds_the_same() {
        let mut write = Model::new("churn_7", 7);
        let written: Vec<String> = (1..=2_000).map(|number| write.transaction(number)).collect();
        let mut replay = Model::new("churn_7", 7);
        let replayed: Vec<String> = (1..=2_000).map(|number| replay.transaction(number)).collect();
        assert!(written == replayed);
        assert_eq!((&write.rows, &write.tables), (&replay.rows, &replay.tables));
    }

    #[test]
    fn every_kind_of_change_occurs() {
        let mut model = Model::new("s", 1);
        let all: String = (1..=2_000).map(|number| model.transaction(number)).collect();
        for kind in [
            "INSERT INTO s.rows",
            "UPDATE s.rows",
            "DELETE FROM s.rows",
            "CREATE TABLE",
            "DROP TABLE",
            "TRUNCATE",
        ] {
            assert!(all.matches(kind).count() >= 3, "{kind}");
        }
        assert!(model.rows.len() < 2 * ROWS && model.tables.len() <= TABLES);
    }
}
