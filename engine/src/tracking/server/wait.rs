//! Waits until the server has summarised WAL up to a position, as `WaitForWalSummarization` (`walsummarizer.c`) does, by asking.

use std::time::Duration;

use pgstrata_protocol::Lsn;
use tokio::time::{Instant, sleep, timeout};

use super::{Obstacle, parsed, query, unintelligible};
use crate::connect::Session;

const WHAT: &str = "ask how far the server's WAL summaries are";

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// One answer.
struct State {
    summarises: bool,
    /// On disk.
    summarised: Lsn,
    /// In memory.
    pending: Lsn,
}

/// Waits. What comes back is why there is no use in it, for the case that summaries turn out to be missing: where they are
/// switched off those that are there may be enough.
///
/// # Errors
/// Where `patience` passes without progress.
pub(super) async fn until_summarised(
    session: &mut Session,
    end: Lsn,
    patience: Duration,
) -> Result<Option<String>, Obstacle> {
    let mut state = ask(session, patience).await?;
    let (mut reached, mut since) = (state.pending, Instant::now());
    loop {
        if state.summarised >= end {
            return Ok(None);
        }
        if !state.summarises {
            return Ok(Some("summarize_wal is off".to_owned()));
        }
        if state.pending > reached {
            (reached, since) = (state.pending, Instant::now());
        }
        if since.elapsed() >= patience {
            let State { summarised, pending, .. } = state;
            return Err(Obstacle::Reason(format!(
                "the server's WAL summaries do not go on: they are needed up to {end}, and for {patience:?} have been at \
                 {summarised} on disk and {pending} in memory"
            )));
        }
        sleep(PAUSE.min(patience)).await;
        state = ask(session, patience).await?;
    }
}

async fn ask(session: &mut Session, patience: Duration) -> Result<State, Obstacle> {
    let sql = "SELECT current_setting('summarize_wal'), summarized_lsn, pending_lsn FROM pg_get_wal_summarizer_state()";
    // A summariser that is stuck may hold the lock that the answer needs.
    let results = timeout(patience, query(session, WHAT, sql)).await.map_err(|_| {
        Obstacle::Reason(format!("could not {WHAT}: the server has not answered for {patience:?}"))
    })??;
    let rows = results.last().map_or(&[][..], |result| &result.rows);
    let state = match rows {
        [row] => match &row[..] {
            [summarises, summarised, pending] => {
                parsed(summarised).zip(parsed(pending)).map(|(summarised, pending)| State {
                    summarises: summarises.as_deref() == Some(b"on"),
                    summarised,
                    pending,
                })
            }
            _ => None,
        },
        _ => None,
    };
    state.ok_or_else(|| unintelligible(WHAT, &rows))
}
