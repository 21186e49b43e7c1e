//! Summaries read where they lie, in the server's `pg_wal/summaries`: checked by name and checksum.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use pgstrata_protocol::summary::{BlockReferences, SummaryMerger, SummaryName};

use super::Obstacle;

/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;

/// Lays a summary over the table. Where it fails the table is to be thrown away.
pub(super) fn lay_over(
    changes: &mut BlockReferences,
    folder: &Path,
    summary: &SummaryName,
) -> Result<(), Obstacle> {
    let path = folder.join(summary.to_string());
    let failed = |doing: &str, error: &dyn std::fmt::Display| {
        Obstacle::Reason(format!("could not {doing} WAL summary \"{}\": {error}", path.display()))
    };
    let mut file = File::open(&path).map_err(|error| failed("open", &error))?;
    let mut merger = SummaryMerger::new();
    let mut piece = vec![0; PIECE];
    loop {
        let length = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed("read", &error)),
        };
        merger.feed(changes, &piece[..length]).map_err(|error| failed("use", &error))?;
    }
    merger.finish().map_err(|error| failed("use", &error))
}
