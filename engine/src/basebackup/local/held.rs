//! The session that holds the backup open: a non-exclusive backup lives as long as the session that began it.

use std::time::Duration;

use pgstrata_protocol::replication::{ResultSet, quote_literal};
use pgstrata_protocol::{Lsn, TimelineId};

use crate::connect::{ConnectionSettings, CopyDirection, NoticeSink, Purpose, Reply, Session, SessionError};
use crate::failure::Failure;

/// Up to this major version functions have their old names and may end exclusive backups as well.
const LAST_EXCLUSIVE: u32 = 14;
/// From this one on idle sessions can be ended by a setting.
const FIRST_IDLE_TIMEOUT: u32 = 14;
/// The first version with `transaction_timeout`, which counts while a checkpoint is waited for.
const FIRST_TRANSACTION_TIMEOUT: u32 = 17;

/// A SQL session on the server whose files are read.
pub(super) struct Held {
    session: Session,
    major: u32,
}

/// What the server says of itself over SQL.
#[derive(Debug)]
pub(super) struct SqlFacts {
    pub(super) port: String,
    /// Only who may see all settings is told.
    pub(super) data_directory: Option<Vec<u8>>,
    /// `stats_temp_directory`, up to 14; likewise.
    pub(super) statistics: Option<Vec<u8>>,
    pub(super) in_recovery: bool,
}

/// What `pg_control` says, read by the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ControlFacts {
    pub(super) system_identifier: u64,
    pub(super) time: i64,
    pub(super) checkpoint: Lsn,
    pub(super) redo: Lsn,
    pub(super) timeline: TimelineId,
}

/// The end of a backup.
pub(super) struct Stopped {
    pub(super) lsn: Lsn,
    pub(super) label: Vec<u8>,
}

impl Held {
    /// Connects. Nothing that the server's settings say may end this session or what it does.
    pub(super) async fn connect(
        settings: &ConnectionSettings,
        notices: NoticeSink,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let mut session = Session::connect(settings, Purpose::Sql, notices).await?;
        session.set_stall_limit(Some(patience));
        let major = session.server_version().major();
        let mut held = Self { session, major };
        let idle = match major {
            FIRST_TRANSACTION_TIMEOUT.. => "SET idle_session_timeout = 0; SET transaction_timeout = 0;",
            FIRST_IDLE_TIMEOUT.. => "SET idle_session_timeout = 0;",
            _ => "",
        };
        // Texts come as the server has them, whatever its encoding.
        let prepare = format!(
            "SET client_encoding = 'SQL_ASCII'; SET search_path = pg_catalog; SET statement_timeout = 0; \
             SET lock_timeout = 0; SET standard_conforming_strings = on; {idle}"
        );
        held.query("prepare the session", &prepare).await?;
        Ok(held)
    }

    async fn query(&mut self, what: &str, sql: &str) -> Result<Vec<ResultSet>, Failure> {
        self.session
            .simple_query(sql)
            .await
            .map_err(|error| Failure::session(format!("could not {what}"), error))
    }

    /// The one row of a query, as text.
    async fn row<const N: usize>(&mut self, what: &str, sql: &str) -> Result<[Option<Vec<u8>>; N], Failure> {
        let results = self.query(what, sql).await?;
        one_row(what, &results)
    }

    /// Fails where the session's user may not begin or end a backup.
    pub(super) async fn check_privileges(&mut self) -> Result<(), Failure> {
        let functions = if self.major <= LAST_EXCLUSIVE {
            [
                "pg_catalog.pg_start_backup(text, boolean, boolean)",
                "pg_catalog.pg_stop_backup(boolean, boolean)",
            ]
        } else {
            ["pg_catalog.pg_backup_start(text, boolean)", "pg_catalog.pg_backup_stop(boolean)"]
        };
        for function in functions {
            let sql = format!("SELECT has_function_privilege('{function}', 'EXECUTE'), current_user");
            let [may, user] = self.row("check privileges", &sql).await?;
            if may.as_deref() != Some(b"t") {
                let user = String::from_utf8_lossy(&user.unwrap_or_default()).into_owned();
                return Err(Failure::Target(format!(
                    "user \"{user}\" may not execute {function}\n\
                     HINT: as a superuser, in this database: GRANT EXECUTE ON FUNCTION {} TO \"{user}\"; and so for {}.",
                    functions[0], functions[1]
                )));
            }
        }
        Ok(())
    }

    /// Asks what the server is.
    pub(super) async fn facts(&mut self) -> Result<SqlFacts, Failure> {
        let setting = |name: &str| format!("(SELECT setting FROM pg_settings WHERE name = '{name}')");
        let sql = format!(
            "SELECT current_setting('port'), {}, {}, pg_is_in_recovery()",
            setting("data_directory"),
            setting("stats_temp_directory")
        );
        let [port, data_directory, statistics, in_recovery] =
            self.row("ask what the server is", &sql).await?;
        Ok(SqlFacts {
            port: String::from_utf8_lossy(&port.unwrap_or_default()).into_owned(),
            data_directory,
            statistics,
            in_recovery: in_recovery.as_deref() == Some(b"t"),
        })
    }

    /// What the server finds in its control file.
    pub(super) async fn control(&mut self) -> Result<ControlFacts, Failure> {
        const WHAT: &str = "ask what the server's control file says";
        let sql = "SELECT system_identifier, extract(epoch FROM pg_control_last_modified)::int8, checkpoint_lsn, \
                   redo_lsn, timeline_id FROM pg_control_system(), pg_control_checkpoint()";
        let [system, time, checkpoint, redo, timeline] = self.row(WHAT, sql).await?;
        let system: i64 = parsed(WHAT, system)?;
        Ok(ControlFacts {
            system_identifier: system.cast_unsigned(),
            time: parsed(WHAT, time)?,
            checkpoint: parsed(WHAT, checkpoint)?,
            redo: parsed(WHAT, redo)?,
            timeline: TimelineId(parsed(WHAT, timeline)?),
        })
    }

    /// Begins the backup; returns once the checkpoint is done, however long that takes.
    pub(super) async fn start(&mut self, label: &str, fast: bool) -> Result<Lsn, Failure> {
        const WHAT: &str = "begin the backup";
        let label = quote_literal(label).map_err(|error| Failure::Target(error.to_string()))?;
        let sql = if self.major <= LAST_EXCLUSIVE {
            format!("SELECT pg_start_backup({label}, {fast}, false)")
        } else {
            format!("SELECT pg_backup_start({label}, {fast})")
        };
        let failed = |error| Failure::session(format!("could not {WHAT}"), error);
        let results = match self.session.begin_slow_copy(&sql).await.map_err(failed)? {
            Reply::Done(reply) => reply.results,
            Reply::Copy {
                direction: CopyDirection::Out | CopyDirection::In | CopyDirection::Both, ..
            } => {
                return Err(Failure::stream("pg_backup_start", &"the server began a copy"));
            }
        };
        let [lsn] = one_row(WHAT, &results)?;
        parsed(WHAT, lsn)
    }

    /// Returns why the session ended, once it does.
    pub(super) async fn watch(&mut self) -> SessionError {
        self.session.watch().await
    }

    /// Ends the backup. The WAL it needs is streamed, so nobody waits for an archive.
    pub(super) async fn stop(&mut self) -> Result<Stopped, Failure> {
        const WHAT: &str = "end the backup";
        let sql = if self.major <= LAST_EXCLUSIVE {
            "SELECT lsn, labelfile FROM pg_stop_backup(false, false)"
        } else {
            "SELECT lsn, labelfile FROM pg_backup_stop(false)"
        };
        let [lsn, label] = self.row(WHAT, sql).await?;
        let label = label.ok_or_else(|| Failure::stream("pg_backup_stop", &"it returned no backup_label"))?;
        Ok(Stopped { lsn: parsed(WHAT, lsn)?, label })
    }

    /// The timeline that a standby has replayed to.
    pub(super) async fn recovery_timeline(&mut self) -> Result<TimelineId, Failure> {
        const WHAT: &str = "ask for the standby's timeline";
        let [timeline] =
            self.row(WHAT, "SELECT min_recovery_end_timeline FROM pg_control_recovery()").await?;
        Ok(TimelineId(parsed(WHAT, timeline)?))
    }

    /// Says goodbye.
    pub(super) async fn close(self) {
        self.session.close().await;
    }
}

fn one_row<const N: usize>(what: &str, results: &[ResultSet]) -> Result<[Option<Vec<u8>>; N], Failure> {
    let refuse = || Failure::stream(format!("could not {what}"), &format!("expected one row of {N} values"));
    let [row] = &results.last().ok_or_else(refuse)?.rows[..] else { return Err(refuse()) };
    let values: Vec<_> = row.iter().map(|value| value.as_ref().map(|value| value.to_vec())).collect();
    values.try_into().map_err(|_| refuse())
}

fn parsed<T: std::str::FromStr>(what: &str, value: Option<Vec<u8>>) -> Result<T, Failure> {
    let text = value.and_then(|value| String::from_utf8(value).ok());
    text.as_deref().and_then(|text| text.parse().ok()).ok_or_else(|| {
        Failure::stream(
            format!("could not {what}"),
            &format!("found {text:?}, expected a number or a position"),
        )
    })
}
