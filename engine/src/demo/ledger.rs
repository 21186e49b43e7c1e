//! The rule for what a backup taken under load may hold: a prefix of the transactions, long enough, and no more.
//!
//! One writer numbers its transactions from 1 and commits them one after the other. A copy that is consistent holds
//! the first m of them: all that were committed before the position in the WAL where the backup ends (recovery
//! replays at least up to there), and none that had not begun when the backup had ended.

use pgstrata_protocol::Lsn;

use super::report::LedgerReport;

/// What the writer remembers of its transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Journal {
    /// A position in the WAL behind the commit of transaction n, at n - 1.
    behind_commit: Vec<Lsn>,
}

impl Journal {
    /// The next transaction has committed before `position`.
    pub(super) fn push(&mut self, position: Lsn) {
        self.behind_commit.push(position);
    }

    /// How many transactions have committed.
    pub(super) fn committed(&self) -> u64 {
        self.behind_commit.len() as u64
    }

    /// How many of them were committed before `end`.
    pub(super) fn committed_by(&self, end: Lsn) -> u64 {
        self.behind_commit.partition_point(|position| *position <= end) as u64
    }
}

/// The ledger of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Rows.
    pub(super) rows: u64,
    /// Different numbers among them.
    pub(super) distinct: u64,
    /// The lowest number; 0 without rows.
    pub(super) first: u64,
    /// The highest; 0 without rows.
    pub(super) last: u64,
}

/// Judges a copy's ledger. `expected.in_copy` is not looked at.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn judge(expected: LedgerReport, found: Found) -> Result<LedgerReport, Vec<String>> {
    let LedgerReport { before, by_end_lsn, begun, .. } = expected;
    let Found { rows, distinct, first, last } = found;
    let mut findings = Vec::new();
    if distinct != rows {
        findings.push(format!("ledger: {rows} rows have {distinct} different numbers"));
    }
    if rows > 0 && (first != 1 || last != distinct) {
        findings.push(format!(
            "ledger: {distinct} transactions with numbers from {first} to {last}, expected every one from 1 to {last}"
        ));
    }
    let required = before.max(by_end_lsn);
    if last < required {
        findings.push(format!(
            "ledger: ends at transaction {last}, but {required} were committed before the backup's end"
        ));
    }
    if last > begun {
        findings.push(format!(
            "ledger: ends at transaction {last}, but only {begun} had begun when the backup had ended"
        ));
    }
    if findings.is_empty() { Ok(LedgerReport { in_copy: last, ..expected }) } else { Err(findings) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_the_right_length_pass_and_nothing_else() {
        let expected = LedgerReport { before: 10, by_end_lsn: 20, in_copy: 0, begun: 25 };
        let found = |rows, distinct, first, last| Found { rows, distinct, first, last };
        for (found, complaint) in [
            (found(20, 20, 1, 20), None),
            (found(25, 25, 1, 25), None),
            (found(26, 26, 1, 26), Some("only 25 had begun")),
            (found(19, 19, 1, 19), Some("20 were committed")),
            (found(0, 0, 0, 0), Some("20 were committed")),
            (found(21, 21, 1, 22), Some("every one from 1 to 22")),
            (found(20, 20, 2, 21), Some("every one from 1 to 21")),
            (found(22, 21, 1, 21), Some("22 rows have 21")),
        ] {
            let judged = judge(expected, found).map_err(|findings| findings.join("\n"));
            match complaint {
                None => assert_eq!(judged, Ok(LedgerReport { in_copy: found.last, ..expected })),
                Some(text) => assert!(judged.as_ref().unwrap_err().contains(text), "{found:?}: {judged:?}"),
            }
        }
        // Even a backup that ends where it began holds what was committed before.
        let expected = LedgerReport { before: 10, by_end_lsn: 3, in_copy: 0, begun: 25 };
        assert!(judge(expected, found(9, 9, 1, 9)).is_err());
        let nothing = LedgerReport::default();
        assert_eq!(judge(nothing, found(0, 0, 0, 0)), Ok(nothing));
    }

    #[test]
    fn commits_are_placed_in_the_wal() {
        let mut journal = Journal::default();
        for position in [100, 200, 200, 300] {
            journal.push(Lsn(position));
        }
        assert_eq!(journal.committed(), 4);
        for (end, expected) in [(99, 0), (100, 1), (199, 1), (200, 3), (1000, 4)] {
            assert_eq!(journal.committed_by(Lsn(end)), expected, "{end}");
        }
    }
}
