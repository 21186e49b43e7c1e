//! What goes before an incremental backup: the manifest of the earlier backup, uploaded for the server to judge.
//!
//! The file is read by a thread of its own and in pieces: it may be a pipe that nobody writes to, and a run that is
//! stopped must not wait for it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::thread;

use pgstrata_protocol::replication::command::upload_manifest;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::sync::oneshot;

use super::prepare::ServerFacts;
use super::run::Run;
use crate::connect::{CopyInError, Session, SessionError};
use crate::failure::Failure;

/// Bytes of the manifest that are sent at a time, as pg_basebackup does.
const PIECE: usize = 64 << 10;
/// Pieces that may be read ahead of the socket.
const AHEAD: usize = 2;

/// SQLSTATE `internal_error`: with it servers refuse a manifest that they cannot use (`basebackup_incremental.c`).
const INTERNAL_ERROR: &str = "XX000";
/// SQLSTATE `object_not_in_prerequisite_state`: no summaries of the WAL, or not of all that is needed.
const MISSING_PREREQUISITE: &str = "55000";

impl Run<'_> {
    /// Gives the server the manifest at `path`. Returns the session, ready for `BASE_BACKUP`.
    pub(super) async fn upload_manifest(
        &self,
        mut session: Session,
        facts: &ServerFacts,
        path: &Path,
    ) -> Result<Session, Failure> {
        self.options().check(facts.version).map_err(|error| Failure::Target(error.to_string()))?;
        let mut pieces = read_ahead(path).await?;
        self.note(format_args!("uploading the manifest \"{}\"", path.display()));
        let uploaded = session.copy_in(&upload_manifest(), &mut pieces).await;
        uploaded.map(|_| session).map_err(|error| match error {
            CopyInError::Source(error) => Failure::disk("read file", path, error),
            CopyInError::Session(error) => {
                let hint = match error.server_error() {
                    Some(said) if said.sqlstate() == INTERNAL_ERROR => Some(format!(
                        "\"{}\" must be the unchanged backup_manifest of an earlier backup of this very cluster.",
                        path.display()
                    )),
                    _ => None,
                };
                Failure::session_with_hint("could not upload manifest", error, hint)
            }
        })
    }

    /// What a server's refusal to begin the backup comes to.
    pub(super) fn refused(&self, error: SessionError) -> Failure {
        let lacks_summaries =
            error.server_error().is_some_and(|said| said.sqlstate() == MISSING_PREREQUISITE);
        let hint = (self.config.incremental.is_some() && lacks_summaries).then(|| {
            "the server must run with summarize_wal = on, and have kept its summaries (wal_summary_keep_time) since the \
             earlier backup began, on a timeline that leads here; where that is not so, take a full backup."
                .to_owned()
        });
        Failure::session_with_hint("could not initiate base backup", error, hint)
    }
}

/// Opens the file and reads it, a few pieces ahead.
async fn read_ahead(path: &Path) -> Result<Receiver<io::Result<Vec<u8>>>, Failure> {
    let (opened, wait_opened) = oneshot::channel();
    let (pieces, output) = channel(AHEAD);
    let owned = path.to_owned();
    thread::Builder::new()
        .name("manifest".into())
        .spawn(move || {
            // Whoever waits may be gone: then nobody needs the file.
            match File::open(owned) {
                Err(error) => drop(opened.send(Err(error))),
                Ok(mut file) => {
                    if opened.send(Ok(())).is_ok() {
                        while let Some(piece) = read_piece(&mut file) {
                            let failed = piece.is_err();
                            if pieces.blocking_send(piece).is_err() || failed {
                                break;
                            }
                        }
                    }
                }
            }
        })
        .map_err(|error| Failure::disk("start thread", "manifest", error))?;
    match wait_opened.await {
        Ok(Ok(())) => Ok(output),
        Ok(Err(error)) => Err(Failure::disk("open file", path, error)),
        Err(_) => Err(Failure::Target("the thread that opens the manifest died".into())),
    }
}

/// The next bytes, none at the end.
fn read_piece(file: &mut File) -> Option<io::Result<Vec<u8>>> {
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return None,
            Ok(read) => {
                piece.truncate(read);
                return Some(Ok(piece));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Some(Err(error)),
        }
    }
}
