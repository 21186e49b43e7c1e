//! `target_session_attrs`: whether a server that let us in is one of those wanted.
//!
//! Follows `CONNECTION_CHECK_TARGET` of libpq (`fe-connect.c`): servers from 14 on say what they are while they let a
//! client in, older ones are asked.

use super::error::AttemptError;
use super::session::Session;
use super::settings::Wanting;

const IS_READ_ONLY: &str = "SHOW transaction_read_only";
const IS_STANDBY: &str = "SELECT pg_catalog.pg_is_in_recovery()";

/// # Errors
/// [`AttemptError::WrongServer`], or [`AttemptError::UnknownServer`] where it does not tell: a replication session of
/// a server before 14 does not say whether it is a standby.
pub(super) async fn check(session: &mut Session, wanting: Wanting) -> Result<(), AttemptError> {
    let problem = match wanting {
        Wanting::Any => None,
        Wanting::ReadWrite => is_read_only(session).await?.then_some("session is read-only"),
        Wanting::ReadOnly => (!is_read_only(session).await?).then_some("session is not read-only"),
        Wanting::Primary => is_standby(session).await?.then_some("server is in hot standby mode"),
        Wanting::Standby | Wanting::PreferStandby => {
            (!is_standby(session).await?).then_some("server is not in hot standby mode")
        }
    };
    problem.map_or(Ok(()), |problem| Err(AttemptError::WrongServer(problem)))
}

async fn is_read_only(session: &mut Session) -> Result<bool, AttemptError> {
    let reported = ["default_transaction_read_only", "in_hot_standby"].map(|name| reported(session, name));
    match reported {
        [Some(read_only), Some(standby)] => Ok(read_only || standby),
        _ => ask(session, IS_READ_ONLY, b"on").await,
    }
}

async fn is_standby(session: &mut Session) -> Result<bool, AttemptError> {
    match reported(session, "in_hot_standby") {
        Some(standby) => Ok(standby),
        None => ask(session, IS_STANDBY, b"t").await,
    }
}

fn reported(session: &Session, name: &str) -> Option<bool> {
    session.parameter(name).map(|value| value == "on")
}

async fn ask(session: &mut Session, query: &'static str, yes: &[u8]) -> Result<bool, AttemptError> {
    let results = session.simple_query(query).await;
    let results = results.map_err(|source| AttemptError::UnknownServer { query, source })?;
    let value = results.first().and_then(|result| result.rows.first()?.first()?.as_deref());
    Ok(value == Some(yes))
}
