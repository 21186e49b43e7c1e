//! Digests of tables, computed by the servers themselves: a count and a sum over 64-bit hashes of the rows' text.
//!
//! A sum does not depend on the order of rows, so nothing is sorted and the server may compute it in parallel. Rows
//! are hashed whole, TOASTed values included. Meant against accidents, not against an adversary.

use std::fmt::Write;

/// What of a table is digested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest<'a> {
    /// The table's name.
    pub(super) table: &'a str,
    /// The columns that count; all of them if empty.
    pub(super) columns: &'a [&'a str],
    /// Only rows whose column has at most this value.
    pub(super) up_to: Option<(&'a str, u64)>,
}

impl<'a> Digest<'a> {
    /// All rows, whole.
    pub(super) fn of(table: &'a str) -> Self {
        Self { table, columns: &[], up_to: None }
    }

    /// A query for one row: the count as a number, and the sum as text.
    pub(super) fn sql(&self) -> String {
        let row = if self.columns.is_empty() {
            "(t.*)".to_owned()
        } else {
            let columns: Vec<String> =
                self.columns.iter().map(|name| format!("t.{}", quoted_name(name))).collect();
            format!("ROW({})", columns.join(", "))
        };
        let mut sql = format!(
            "SELECT count(*), coalesce(sum(hashtextextended({row}::text, 0)), 0) FROM {} AS t",
            quoted_name(self.table)
        );
        if let Some((column, value)) = self.up_to {
            // Writing to a String cannot fail.
            let _ = write!(sql, " WHERE t.{} <= {value}", quoted_name(column));
        }
        sql
    }
}

/// A name as SQL reads it, whatever it holds.
pub(super) fn quoted_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL reads it under `standard_conforming_strings`.
pub(super) fn quoted_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        for (digest, expected) in [
            (
                Digest::of("events"),
                "SELECT count(*), coalesce(sum(hashtextextended((t.*)::text, 0)), 0) FROM \"events\" AS t",
            ),
            (
                Digest { columns: &["id", "a\"b"], ..Digest::of("accounts") },
                "SELECT count(*), coalesce(sum(hashtextextended(ROW(t.\"id\", t.\"a\"\"b\")::text, 0)), 0) \
                 FROM \"accounts\" AS t",
            ),
            (
                Digest { up_to: Some(("id", 17)), ..Digest::of("ledger") },
                "SELECT count(*), coalesce(sum(hashtextextended((t.*)::text, 0)), 0) \
                 FROM \"ledger\" AS t WHERE t.\"id\" <= 17",
            ),
        ] {
            assert_eq!(digest.sql(), expected);
        }
    }

    #[test]
    fn quotes() {
        assert_eq!(quoted_name("a\"b"), "\"a\"\"b\"");
        assert_eq!(quoted_text("it's"), "'it''s'");
    }
}
