//! What changed, by the server's own WAL summaries (17 and newer, `summarize_wal`).
//!
//! It is waited for until the server has summarised all WAL up to this backup's start; then the summaries between the two starts
//! are laid over each other, oldest first. They are believed only if they cover every byte of that WAL, on the way that leads
//! from one backup to the other, and if each is whole by its checksum. Whatever is missing is said, and is the reason to take
//! another source: only a connection that is lost, or the stop of the run, is a failure.

mod files;
mod rows;
mod wait;

use std::path::PathBuf;
use std::time::Duration;

use pgstrata_protocol::Lsn;
use pgstrata_protocol::replication::{BackupPosition, ResultSet, TimelineHistory};
use pgstrata_protocol::summary::{BlockReferences, SummaryName, covering, wal_between};

use crate::connect::{Session, SessionError};
use crate::failure::Failure;

/// The first version that writes summaries.
const FIRST: u32 = 17;

/// How long a server may be about its summaries without any progress, as its own incremental backup lets it
/// (`WaitForWalSummarization`, `walsummarizer.c`).
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the summaries are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SummaryPlace {
    /// By SQL, a row for each block.
    Sql,
    /// The files themselves, in this folder: the server's `pg_wal/summaries`.
    Folder(PathBuf),
}

/// Which changes are asked for.
#[derive(Clone, Debug)]
pub struct ChangesAsked {
    /// Where the older backup began.
    pub from: BackupPosition,
    /// Where this one began.
    pub to: BackupPosition,
    /// The history of this one's timeline; timeline 1 has none.
    pub history: Option<TimelineHistory>,
    /// Where summaries are read.
    pub place: SummaryPlace,
    /// How long the server may be about its summaries without progress; `None` for a minute, as its own incremental backup.
    pub patience: Option<Duration>,
}

/// What the server's summaries say.
#[derive(Debug)]
pub enum ServerChanges {
    /// All that changed.
    Known {
        /// It may name blocks that changed before the older backup, or after this one's start.
        changes: BlockReferences,
        /// How many summaries were read.
        summaries: usize,
    },
    /// Not all: what is missing, for the record, and for the operator.
    Unknown(String),
}

/// Asks the server what changed. `session` is one for SQL, used by nobody else meanwhile, and to be closed afterwards.
///
/// Given up at any await point it leaves nothing behind but the session. The table is in memory; what it is made from passes by.
///
/// # Errors
/// [`Failure::Session`] where the connection is lost. All else that is in the way is [`ServerChanges::Unknown`].
pub async fn server_changes(session: &mut Session, asked: &ChangesAsked) -> Result<ServerChanges, Failure> {
    match attempt(session, asked).await {
        Ok(known) => Ok(known),
        Err(Obstacle::Reason(reason)) => Ok(ServerChanges::Unknown(reason)),
        Err(Obstacle::Failure(failure)) => Err(failure),
    }
}

/// Why there is no table.
enum Obstacle {
    /// Something is missing.
    Reason(String),
    /// The run cannot go on.
    Failure(Failure),
}

impl Obstacle {
    fn reason(reason: impl Into<String>) -> Self {
        Self::Reason(reason.into())
    }

    /// A refusal is a reason, a lost connection a failure.
    fn session(what: &str, error: SessionError) -> Self {
        match error.server_error().filter(|said| !said.is_fatal()) {
            Some(said) => Self::Reason(format!("could not {what}: {said}")),
            None => Self::Failure(Failure::session(format!("could not {what}"), error)),
        }
    }
}

async fn attempt(session: &mut Session, asked: &ChangesAsked) -> Result<ServerChanges, Obstacle> {
    let version = session.server_version();
    if version.major() < FIRST {
        return Err(Obstacle::reason(format!(
            "a server of PostgreSQL {version} writes no WAL summaries, expected {FIRST} or newer"
        )));
    }
    let parts = wal_between(asked.from, asked.to, asked.history.as_ref())
        .map_err(|error| Obstacle::reason(format!("the older backup is no ancestor of this one: {error}")))?;
    query(session, "prepare the session", PREPARE).await?;
    let last = parts.last().map(|part| part.end);
    let standstill = match last {
        Some(end) => wait::until_summarised(session, end, asked.patience.unwrap_or(PATIENCE)).await?,
        None => None,
    };
    let available = available(session).await?;
    let mut needed = Vec::new();
    for part in &parts {
        let summaries =
            covering(part, &available).map_err(|from| missing(part, from, standstill.as_deref()))?;
        needed.extend(summaries);
    }
    let mut changes = BlockReferences::new();
    for summary in &needed {
        match &asked.place {
            SummaryPlace::Folder(folder) => files::lay_over(&mut changes, folder, summary)?,
            SummaryPlace::Sql => changes.merge(rows::read(session, summary).await?),
        }
        // Whoever waits for this to be given up gets a turn.
        tokio::task::yield_now().await;
    }
    Ok(ServerChanges::Known { changes, summaries: needed.len() })
}

/// What the settings of a role or database say must not end the session, nor hide functions.
const PREPARE: &str = "SET search_path = pg_catalog; SET statement_timeout = 0; SET idle_session_timeout = 0; \
                       SET transaction_timeout = 0; SET client_encoding = 'SQL_ASCII'";

fn missing(part: &SummaryName, from: Lsn, standstill: Option<&str>) -> Obstacle {
    let SummaryName { timeline, start, end } = part;
    let why = standstill.map(|why| format!("; {why}")).unwrap_or_default();
    Obstacle::Reason(format!(
        "WAL summaries are needed on timeline {timeline} from {start} to {end}, and there is none for {from}{why}"
    ))
}

/// The summaries that the server has.
async fn available(session: &mut Session) -> Result<Vec<SummaryName>, Obstacle> {
    const WHAT: &str = "list the server's WAL summaries";
    let sql = "SELECT tli, start_lsn, end_lsn FROM pg_available_wal_summaries()";
    let results = query(session, WHAT, sql).await?;
    let rows = results.last().map_or(&[][..], |result| &result.rows);
    let name = |row: &Vec<Option<bytes::Bytes>>| {
        let [timeline, start, end] = &row[..] else { return None };
        let (start, end) = (parsed(start)?, parsed(end)?);
        Some(SummaryName { timeline: pgstrata_protocol::TimelineId(parsed(timeline)?), start, end })
    };
    rows.iter().map(|row| name(row).ok_or_else(|| unintelligible(WHAT, row))).collect()
}

async fn query(session: &mut Session, what: &str, sql: &str) -> Result<Vec<ResultSet>, Obstacle> {
    session.simple_query(sql).await.map_err(|error| Obstacle::session(what, error))
}

fn parsed<T: std::str::FromStr>(value: &Option<bytes::Bytes>) -> Option<T> {
    std::str::from_utf8(value.as_ref()?).ok()?.parse().ok()
}

fn unintelligible(what: &str, found: &dyn std::fmt::Debug) -> Obstacle {
    let found: String = format!("{found:?}").chars().take(200).collect();
    Obstacle::Reason(format!("could not {what}: found {found}, expected numbers and positions"))
}
