//! Where received WAL goes: the seam between the run that streams and what keeps it.

use std::sync::Arc;

use pgstrata_protocol::replication::TimelineHistory;
use pgstrata_protocol::{Lsn, TimelineId};

use super::archive::ArchiveWriter;
use super::config::{ReceiveObserver, WalArchive};
use super::facts::ServerFacts;
use super::history;
use super::start::{self, Start};
use crate::connect::Alarm;
use crate::failure::Failure;
use crate::pipeline::Folder;
use crate::wal::WalSink;

/// What a server knows of the log before its present position.
#[derive(Debug)]
pub(crate) struct ServerPast {
    /// How it came to its timeline.
    pub(crate) history: TimelineHistory,
    /// Where the WAL begins that the slot holds.
    pub(crate) slot: Option<Lsn>,
}

/// Asks the server for its past.
pub(crate) type AskPast<'a> = &'a mut dyn FnMut() -> Result<ServerPast, Failure>;

/// A place for the WAL of one cluster.
pub(crate) trait WalPlace {
    /// Where to go on; `None` where there is no WAL yet. The server counts as told that all before it is durable.
    fn find_start(
        &self,
        facts: &ServerFacts,
        past: AskPast<'_>,
        observer: &dyn ReceiveObserver,
    ) -> Result<Option<Start>, Failure>;

    /// Whether a timeline's history is there.
    fn has_history(&self, timeline: TimelineId) -> Result<bool, Failure>;

    /// Keeps a timeline's history, durably.
    fn keep_history(&self, timeline: TimelineId, content: &[u8], facts: &ServerFacts) -> Result<(), Failure>;

    /// A writer for a timeline's WAL. `alarm` rings whenever more is durable.
    fn writer(
        &self,
        start: Start,
        facts: &ServerFacts,
        observer: &Arc<dyn ReceiveObserver>,
        alarm: &Alarm,
    ) -> Result<Box<dyn RestingSink>, Failure>;
}

/// A sink that can be left where it stands.
pub(crate) trait RestingSink: WalSink {
    /// Keeps what is not whole as it is, and waits until everything is durable. `orderly`: the stream ended as it should;
    /// else a segment whose last record nobody has seen whole does not count as one.
    fn rest(&mut self, orderly: bool) -> Result<(), Failure>;
}

impl WalSink for Box<dyn RestingSink> {
    fn write(&mut self, at: Lsn, bytes: &[u8]) -> Result<(), Failure> {
        (**self).write(at, bytes)
    }

    fn written(&self) -> Lsn {
        (**self).written()
    }

    fn flushed(&self) -> Lsn {
        (**self).flushed()
    }

    fn settle(&mut self, verified: Lsn, asked: bool) -> Result<(), Failure> {
        (**self).settle(verified, asked)
    }
}

/// A folder of segments, as pg_receivewal keeps it.
pub(super) struct FolderPlace<'a> {
    pub(super) archive: &'a WalArchive,
    pub(super) folder: Arc<Folder>,
}

impl WalPlace for FolderPlace<'_> {
    fn find_start(
        &self,
        facts: &ServerFacts,
        _past: AskPast<'_>,
        observer: &dyn ReceiveObserver,
    ) -> Result<Option<Start>, Failure> {
        let (directory, sync) = (&self.archive.directory, self.archive.sync);
        start::find(directory, facts.segment_size, facts.system.system_identifier, sync, observer)
    }

    fn has_history(&self, timeline: TimelineId) -> Result<bool, Failure> {
        history::is_there(timeline, self.archive, &self.folder)
    }

    fn keep_history(&self, timeline: TimelineId, content: &[u8], facts: &ServerFacts) -> Result<(), Failure> {
        history::write(timeline, self.archive, &self.folder, content, facts.file_mode)
    }

    fn writer(
        &self,
        start: Start,
        facts: &ServerFacts,
        observer: &Arc<dyn ReceiveObserver>,
        alarm: &Alarm,
    ) -> Result<Box<dyn RestingSink>, Failure> {
        let (size, mode) = (facts.segment_size, facts.file_mode);
        let writer = ArchiveWriter::new(self.archive, &self.folder, size, mode, start, observer, alarm)?;
        Ok(Box::new(writer))
    }
}
