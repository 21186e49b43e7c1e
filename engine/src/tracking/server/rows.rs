//! A summary read over SQL, a row for each limit and block, as it comes: `COPY` of `pg_wal_summary_contents`.

use pgstrata_protocol::BlockNumber;
use pgstrata_protocol::summary::{BlockReferences, MAX_FORK, RelationFork, SummaryName};

use super::{Obstacle, unintelligible};
use crate::connect::{CopyDirection, CopyEvent, Reply, Session};

const WHAT: &str = "read a WAL summary of the server";

/// The longest row: six numbers.
const ROW_MAX: usize = 128;

/// Reads one.
pub(super) async fn read(session: &mut Session, summary: &SummaryName) -> Result<BlockReferences, Obstacle> {
    let SummaryName { timeline, start, end } = summary;
    let sql = format!(
        "COPY (SELECT reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, is_limit_block \
         FROM pg_wal_summary_contents({timeline}, '{start}', '{end}')) TO STDOUT"
    );
    let failed = |error| Obstacle::session(WHAT, error);
    match session.begin_copy(&sql).await.map_err(failed)? {
        Reply::Copy { direction: CopyDirection::Out, .. } => {}
        Reply::Copy { .. } | Reply::Done(_) => return Err(unintelligible(WHAT, &"no copy")),
    }
    let mut changes = BlockReferences::new();
    let mut row = Vec::with_capacity(ROW_MAX);
    loop {
        match session.next_event().map_err(failed)? {
            Some(CopyEvent::Data { chunk, last, .. }) => {
                if row.len() + chunk.len() > ROW_MAX {
                    return Err(unintelligible(WHAT, &"a longer row"));
                }
                row.extend_from_slice(chunk);
                if last {
                    add(&mut changes, &row)?;
                    row.clear();
                }
            }
            Some(CopyEvent::End) => break,
            None => {
                session.receive().await.map_err(failed)?;
            }
        }
    }
    match session.resume().await.map_err(failed)? {
        Reply::Done(_) => Ok(changes),
        Reply::Copy { .. } => Err(unintelligible(WHAT, &"a second copy")),
    }
}

/// Adds what a row says: numbers between tabs, and `t` for a limit.
fn add(changes: &mut BlockReferences, row: &[u8]) -> Result<(), Obstacle> {
    let numbers = || {
        let row = std::str::from_utf8(row).ok()?.strip_suffix('\n')?;
        let mut values = row.split('\t');
        let mut number = || values.next()?.parse::<u32>().ok();
        let fork = RelationFork {
            tablespace: number()?,
            database: number()?,
            relation: number()?,
            fork: number().filter(|fork| *fork <= MAX_FORK)?,
        };
        let block = number()?;
        let is_limit = match values.next()? {
            "t" => true,
            "f" => false,
            _ => return None,
        };
        values.next().is_none().then_some((fork, BlockNumber(block), is_limit))
    };
    let (fork, block, is_limit) =
        numbers().ok_or_else(|| unintelligible(WHAT, &String::from_utf8_lossy(row)))?;
    if is_limit {
        // It would cut blocks that changed after it.
        if changes.get(&fork).is_some() {
            return Err(unintelligible(WHAT, &format!("the limit of {fork} behind its blocks")));
        }
        changes.set_limit(fork, block);
    } else {
        changes.mark_block(fork, block);
    }
    Ok(())
}
