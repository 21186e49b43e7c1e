//! A backup that the server keeps at a target of its own: what comes here is how far it is, and how it ended.

use std::sync::atomic::Ordering;

use pgstrata_protocol::basebackup::{ArchiveDecoder, ArchiveEvent, ArchiveName};
use pgstrata_protocol::replication::BackupPosition;

use super::StreamEnd;
use crate::basebackup::{Observer, Progress};
use crate::connect::{BulkStream, CopyEvent, Reply, SessionError};
use crate::failure::Failure;

/// SQLSTATE `data_corrupted`: the server found wrong page checksums, and says so at the very end.
const DATA_CORRUPTED: &str = "XX001";

/// Follows the backup to the end of the command. Data is refused: it was to stay there. `may_wait` says whether the
/// server was asked to wait for its WAL archive, which is silence without a limit.
pub fn watch_target(
    stream: &mut BulkStream,
    may_wait: bool,
    progress: &Progress,
    observer: &dyn Observer,
) -> Result<StreamEnd, Failure> {
    let lost = |error: SessionError| match error.server_error() {
        Some(refusal) if refusal.sqlstate() == DATA_CORRUPTED => {
            observer.warning(&refusal.to_string());
            Failure::ServerChecksum
        }
        _ => Failure::session("the backup broke off", error),
    };
    let mut archives = ArchiveDecoder::of_a_target();
    let mut begun = 0_u32;
    loop {
        match stream.next_event().map_err(lost)? {
            Some(CopyEvent::Data { chunk, first, last }) => {
                match archives.push(chunk, first, last).map_err(|error| broken(&error))? {
                    None => {}
                    Some(ArchiveEvent::ArchiveStart { name, .. }) => {
                        progress.tablespaces_done.store(begun, Ordering::Relaxed);
                        begun = begun.saturating_add(1);
                        if may_wait && name == ArchiveName::Base {
                            stream.set_stall_limit(None).map_err(lost)?;
                        }
                    }
                    Some(ArchiveEvent::Progress(bytes)) => progress.bytes.store(bytes, Ordering::Relaxed),
                    Some(ArchiveEvent::ManifestStart) => {
                        progress.tablespaces_done.store(begun, Ordering::Relaxed);
                    }
                    Some(ArchiveEvent::Data(_) | ArchiveEvent::ManifestData(_)) => {
                        return Err(broken(&"the server sent data, expected it to keep the backup"));
                    }
                }
            }
            Some(CopyEvent::End) => {
                archives.finish().map_err(|error| broken(&error))?;
                progress.tablespaces_done.store(begun, Ordering::Relaxed);
                let Reply::Done(reply) = stream.resume().map_err(lost)? else {
                    return Err(broken(&"a second copy began, expected one for all archives"));
                };
                let result = reply.results.last().ok_or_else(|| broken(&"the end position is missing"))?;
                let end = BackupPosition::from_result(result).map_err(|error| broken(&error))?;
                return Ok(StreamEnd { end });
            }
            None => {
                stream.receive().map_err(lost)?;
            }
        }
    }
}

fn broken(error: &dyn std::fmt::Display) -> Failure {
    Failure::stream("backup stream", error)
}
