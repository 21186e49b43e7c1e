//! What a failed run leaves on this machine and on the server: as little as was asked for.

use std::sync::Arc;
use std::time::Duration;

use pgstrata_protocol::replication::command::drop_slot as drop_slot_command;

use super::config::{BaseBackupConfig, SlotChoice, WalMethod};
use super::progress::Observer;
use super::target::Claims;
use crate::connect::{ControlRuntime, Purpose, Session};
use crate::failure::Failure;
use crate::wal::SlotState;

/// How long a server may take to drop the slot of a failed run.
const DROP_SLOT_PATIENCE: Duration = Duration::from_secs(10);

/// Removes what was made on this machine, unless it is to be kept.
pub(super) fn clean_up(
    config: &BaseBackupConfig,
    claims: Claims,
    failure: &Failure,
    observer: &Arc<dyn Observer>,
) {
    // As pg_basebackup does: data that the server found damaged is kept for a look at it. In a repository there is
    // nothing to look at: packs go, and WAL that waits to be packed would stay for good.
    let path = config.destination.path();
    let keeps_evidence = matches!(failure, Failure::ServerChecksum) && path.is_some();
    if config.clean && !keeps_evidence {
        for failure in claims.remove() {
            observer.warning(&format!("could not clean up: {failure}"));
        }
    } else {
        let made = !claims.is_empty();
        claims.keep();
        if let Some(path) = path.filter(|_| made) {
            observer.warning(&format!("the incomplete backup in \"{}\" was not removed", path.display()));
        }
    }
}

/// Drops the slot that this run made: nobody would read from it, and the server would keep all WAL for it.
pub(super) fn drop_slot(config: &BaseBackupConfig, state: SlotState, observer: &Arc<dyn Observer>) {
    let WalMethod::Stream(SlotChoice::Named { name, create: true }) = &config.wal else { return };
    match state {
        SlotState::Made if config.clean => {}
        SlotState::Asked => {
            // It may as well be an older slot of that name, which is not ours to drop.
            observer.warning(&format!(
                "replication slot \"{name}\" was asked for, and the answer was lost\n\
                 HINT: if it is there now, it makes the server keep WAL; drop it there with pg_drop_replication_slot."
            ));
            return;
        }
        SlotState::Made => {
            observer.warning(&format!(
                "replication slot \"{name}\" was created and not dropped\n\
                 HINT: it makes the server keep WAL; drop it there with pg_drop_replication_slot."
            ));
            return;
        }
        SlotState::NotMade => return,
    }
    let dropped = ControlRuntime::new().map_err(|error| error.to_string()).and_then(|runtime| {
        runtime.block_on(async {
            let work = async {
                let mut session =
                    Session::connect(&config.connection, Purpose::Replication, Arc::new(|_| {}))
                        .await
                        .map_err(|error| error.to_string())?;
                let command = drop_slot_command(name, true).map_err(|error| error.to_string())?;
                session.simple_query(&command).await.map_err(|error| error.to_string())?;
                session.close().await;
                Ok(())
            };
            tokio::time::timeout(DROP_SLOT_PATIENCE, work)
                .await
                .unwrap_or_else(|_| Err("the server does not answer".into()))
        })
    });
    if let Err(error) = dropped {
        observer.warning(&format!(
            "replication slot \"{name}\" was created and could not be dropped: {error}\n\
             HINT: it makes the server keep WAL; drop it there with pg_drop_replication_slot."
        ));
    }
}
