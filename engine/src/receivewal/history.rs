//! Timeline history files: fetched where they are not here yet.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use pgstrata_protocol::TimelineId;
use pgstrata_protocol::names::{WalFile, WalSegmentSize};
use pgstrata_protocol::replication::command::timeline_history;
use pgstrata_protocol::replication::{ResultSet, TimelineHistory, TimelineHistoryFile};
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, statat};
use rustix::io::Errno;

use super::coder::{Coder, of_method};
use super::config::WalArchive;
use super::facts::{ServerFacts, query};
use super::place::WalPlace;
use crate::connect::{Alarm, BulkStream, Reply, Session};
use crate::failure::Failure;
use crate::pipeline::Folder;

/// Fetches the history of a timeline, unless it is there. The first has none.
pub(super) fn fetch(
    stream: &mut BulkStream,
    timeline: TimelineId,
    place: &dyn WalPlace,
    facts: &ServerFacts,
    alarm: &Alarm,
    gives_up: impl Fn() -> bool,
) -> Result<(), Failure> {
    if timeline.0 == 1 || place.has_history(timeline)? {
        return Ok(());
    }
    let refused = |error| Failure::session("could not send replication command \"TIMELINE_HISTORY\"", error);
    let refuse = |error: &dyn std::fmt::Display| Failure::stream("TIMELINE_HISTORY", error);
    let reply = stream.ask(&timeline_history(timeline), alarm, gives_up).map_err(refused)?;
    let Reply::Done(completed) = reply else { return Err(refuse(&"the server began to copy")) };
    let (content, _) = read_reply(timeline, &completed.results)?;
    place.keep_history(timeline, &content, facts)
}

/// Asks for the history of the server's own timeline, before the stream. The first has none.
pub(super) async fn ask(session: &mut Session, timeline: TimelineId) -> Result<TimelineHistory, Failure> {
    if timeline.0 == 1 {
        return Ok(TimelineHistory { timeline, switches: Vec::new() });
    }
    let results = query(session, "TIMELINE_HISTORY", &timeline_history(timeline)).await?;
    read_reply(timeline, &results).map(|(_, history)| history)
}

fn read_reply(timeline: TimelineId, results: &[ResultSet]) -> Result<(Bytes, TimelineHistory), Failure> {
    let refuse = |error: &dyn std::fmt::Display| Failure::stream("TIMELINE_HISTORY", error);
    let result = results.first().ok_or_else(|| refuse(&"no result"))?;
    let file = TimelineHistoryFile::from_result(result).map_err(|error| refuse(&error))?;
    if file.name != file_name(timeline) {
        return Err(refuse(&format!(
            "server reported unexpected history file name for timeline {timeline}: {:?}",
            file.name
        )));
    }
    let history = TimelineHistory::parse(timeline, &file.content).map_err(|error| refuse(&error))?;
    Ok((file.content, history))
}

fn file_name(timeline: TimelineId) -> String {
    WalFile::History(timeline).file_name(WalSegmentSize::DEFAULT)
}

/// As the stock tool has it, a history is compressed as segments are.
fn stored_name(timeline: TimelineId, archive: &WalArchive) -> String {
    let extension = archive.compression.map_or("", |spec| of_method(spec.method).extension());
    format!("{}{extension}", file_name(timeline))
}

/// Whether a folder has the history of a timeline.
pub(super) fn is_there(timeline: TimelineId, archive: &WalArchive, folder: &Folder) -> Result<bool, Failure> {
    let name = stored_name(timeline, archive);
    match statat(&folder.handle, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(Failure::disk("look at", folder.path.join(name), error)),
    }
}

/// Writes the history of a timeline to a folder.
pub(super) fn write(
    timeline: TimelineId,
    archive: &WalArchive,
    folder: &Folder,
    content: &[u8],
    mode: u32,
) -> Result<(), Failure> {
    let name = stored_name(timeline, archive);
    let temporary = format!("{name}.tmp");
    let path = folder.path.join(&temporary);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&folder.handle, temporary.as_str(), flags, Mode::from_raw_mode(mode))
        .map_err(|error| Failure::disk("create file", &path, error))?;
    let file = Arc::new(File::from(file));
    let fill = || -> io::Result<()> {
        let mut coder = Coder::new(&file, archive.compression.as_ref())?;
        coder.write(content, 0)?;
        coder.finish()
    };
    fill().map_err(|error| Failure::disk("write to", &path, error))?;
    if archive.sync {
        file.sync_all().map_err(|error| Failure::disk("sync", &path, error))?;
    }
    renameat(&folder.handle, temporary.as_str(), &folder.handle, name.as_str())
        .map_err(|error| Failure::disk("rename", &path, error))?;
    if archive.sync { folder.sync() } else { Ok(()) }
}
