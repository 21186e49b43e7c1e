//! What a demonstration has measured.

use std::path::PathBuf;

use serde::Serialize;

use crate::basebackup::Report;
use crate::verify::VerifyReport;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// The server's programs.
    pub program: ProgramReport,
    /// The source.
    pub source: SourceReport,
    /// The backup. Its CPU seconds are those of this process during the backup, the writer included.
    pub backup: Report,
    /// The copy's files, read back. Its CPU seconds are those of this process during that.
    pub verify: VerifyReport,
    /// The copy's start.
    pub boot: BootReport,
    /// The comparison.
    pub comparison: Comparison,
    /// Seconds from the beginning to the end, cleaning up included.
    pub seconds: f64,
}

/// The server's programs.
#[derive(Clone, Debug, Serialize)]
pub struct ProgramReport {
    /// Their version.
    pub version: String,
    /// Their folder.
    pub bin_dir: PathBuf,
    /// Where they came from, in words.
    pub origin: String,
    /// The account that servers run as, if not the caller's own.
    pub account: Option<String>,
    /// The scratch folder.
    pub scratch: PathBuf,
    /// Seconds of finding, or downloading.
    pub seconds: f64,
}

/// The source, as loaded.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SourceReport {
    /// Tables made.
    pub tables: u64,
    /// Rows in them.
    pub rows: u64,
    /// Bytes of all databases and tablespaces.
    pub bytes: u64,
    /// Seconds of making the cluster and loading it.
    pub seconds: f64,
}

/// The copy's start.
#[derive(Clone, Debug, Serialize)]
pub struct BootReport {
    /// Seconds of giving the files to the server's account.
    pub owner_seconds: f64,
    /// Seconds from the start of the server until it takes connections, recovery included.
    pub seconds: f64,
}

/// What was compared, and matched.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Comparison {
    /// Tables that did not change during the backup, equal on both sides.
    pub static_tables: u64,
    /// Their rows.
    pub static_rows: u64,
    /// The ledger.
    pub ledger: LedgerReport,
    /// Accounts whose balance is the sum of their ledger entries.
    pub accounts: u64,
    /// Unlogged tables that have rows in the source and are empty in the copy, as they must be.
    pub unlogged_tables: u64,
    /// Relations of the copy that were read in full, system catalogues and TOAST included.
    pub relations_read: u64,
    /// Rows in them.
    pub rows_read: u64,
    /// Indexes of the copy that hold as many entries as their table has rows.
    pub indexes: u64,
    /// Seconds of the comparison.
    pub seconds: f64,
}

/// The transactions in the copy's ledger: all from the first to `in_copy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LedgerReport {
    /// Committed before the backup began.
    pub before: u64,
    /// Committed before the position in the WAL where the backup ends: at least these must be in the copy.
    pub by_end_lsn: u64,
    /// In the copy.
    pub in_copy: u64,
    /// Begun when the backup had ended: more cannot be in the copy.
    pub begun: u64,
}
