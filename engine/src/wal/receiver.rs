//! Receives WAL on a connection and a thread of its own while a backup runs.
//!
//! The connection and the slot are there before the backup begins, so that the server keeps all WAL that the
//! backup needs. The receiver ends by itself once it has everything up to the position it was told, each record
//! checked as recovery will check it. A connection that is lost on the way is made again (`reconnect.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use pgstrata_protocol::Lsn;
use pgstrata_protocol::replication::command::{
    create_physical_slot, identify_system, start_replication, timeline_history,
};
use pgstrata_protocol::replication::{IdentifySystem, TimelineHistoryFile};
use pgstrata_protocol::wal::{WalChecker, WalError};
use tokio::sync::oneshot;

use super::reconnect::{self, Reconnect};
use super::segments::SegmentWriter;
use super::stream::{StreamEnd, StreamRules, WalStream, since_1970};
use crate::basebackup::{Observer, Progress, SlotChoice};
use crate::connect::{
    Alarm, BulkStream, ConnectionSettings, ControlRuntime, CopyDirection, NoticeSink, Purpose, Reply, Session,
};
use crate::failure::Failure;
use crate::stop::Stop;

/// How often a waiting session shows that it is not idle.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Between attempts to connect again.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);

/// What a receiver needs to know to connect.
#[derive(Clone, Debug)]
pub struct WalReceiverConfig {
    /// The server.
    pub connection: ConnectionSettings,
    /// The slot that holds WAL for us.
    pub slot: SlotChoice,
    /// The cluster that this must be, as the first connection found it.
    pub system_identifier: u64,
    /// How often the position is reported unasked; zero for never.
    pub status_interval: Duration,
    /// The server counts as lost where no whole message comes for so long, although it was asked for a sign; zero for
    /// never. It is also the time that one message, of at most 128 KiB of WAL, may take.
    pub stall_timeout: Duration,
    /// What has become of the permanent slot that was to be made; a failed run has to see to it.
    pub made_slot: Arc<MadeSlot>,
}

/// Whether a run has made a permanent slot on the server.
#[derive(Debug, Default)]
pub struct MadeSlot(AtomicU8);

/// What is known of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// It was not asked for, or the server refused to make it.
    NotMade,
    /// It was asked for, and nobody knows whether the server made it.
    Asked,
    /// The server made it.
    Made,
}

impl MadeSlot {
    /// What is known.
    #[must_use]
    pub fn state(&self) -> SlotState {
        match self.0.load(Ordering::Acquire) {
            0 => SlotState::NotMade,
            1 => SlotState::Asked,
            _ => SlotState::Made,
        }
    }

    fn set(&self, state: SlotState) {
        self.0.store(state as u8, Ordering::Release);
    }
}

/// What a stream begins with.
#[derive(Debug)]
struct Begin {
    writer: SegmentWriter,
    checker: WalChecker,
}

/// A connected receiver. Dropping it before [`WalReceiver::finish`] ends the run that it belongs to.
#[derive(Debug)]
pub struct WalReceiver {
    thread: Option<JoinHandle<Option<u64>>>,
    start: Option<oneshot::Sender<Begin>>,
    target: Target,
    stop: Stop<Failure>,
}

/// Up to where WAL is needed; 0 as long as that is not known.
#[derive(Clone, Debug)]
struct Target {
    end: Arc<AtomicU64>,
    alarm: Alarm,
}

impl Target {
    fn get(&self) -> Option<Lsn> {
        Some(Lsn(self.end.load(Ordering::Acquire))).filter(|end| *end != Lsn::INVALID)
    }
}

impl WalReceiver {
    /// Connects and makes the slot; returns once both are done.
    pub fn connect(
        config: WalReceiverConfig,
        progress: &Arc<Progress>,
        observer: &Arc<dyn Observer>,
        stop: &Stop<Failure>,
    ) -> Result<WalReceiver, Failure> {
        let (ready, wait_ready) = bounded(1);
        let (start, begin) = oneshot::channel();
        let alarm =
            Alarm::new().map_err(|error| Failure::disk("make an eventfd for", "the WAL receiver", error))?;
        let target = Target { end: Arc::default(), alarm };
        let watched = target.clone();
        let (progress, observer, switch) = (Arc::clone(progress), Arc::clone(observer), stop.clone());
        let thread = thread::Builder::new().name("wal".into()).spawn(move || {
            let _told = switch.tell_of_panics("the WAL receiver");
            let mut ready = Some(ready);
            let outcome = ControlRuntime::new()
                .map_err(|error| Failure::disk("start the runtime of", "the WAL receiver", error))
                .and_then(|runtime| {
                    let work = begin_stream(&config, notices(&observer), &mut ready, begin);
                    let (stream, begin) = runtime.block_on(switch.unless_thrown(work))?;
                    let run = Receiving {
                        config: &config,
                        progress: &progress,
                        observer: &observer,
                        target: &watched,
                        runtime: &runtime,
                        stop: &switch,
                    };
                    run.receive(stream, begin)
                });
            match outcome {
                Ok(bytes) => Some(bytes),
                Err(failure) => {
                    // Before the start it is told to whoever waits for us, later through the switch.
                    match (ready, failure) {
                        (Some(ready), failure) => drop(ready.send(Err(failure))),
                        (None, Failure::Stopped) => {}
                        (None, failure @ Failure::Wal(_)) => switch.throw(failure),
                        (None, failure) => switch.throw(Failure::wal(&failure)),
                    }
                    None
                }
            }
        });
        let thread = thread.map_err(|error| Failure::disk("start thread", "wal", error))?;
        let receiver = WalReceiver { thread: Some(thread), start: Some(start), target, stop: stop.clone() };
        match wait_ready.recv() {
            Ok(Ok(())) => Ok(receiver),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::Stopped),
        }
    }

    /// Begins to stream into `writer`, from where it stands, past `checker`, which stands at the same position.
    pub fn start(&mut self, writer: SegmentWriter, checker: WalChecker) {
        if let Some(start) = self.start.take() {
            // A receiver that is gone has thrown the switch.
            let _ = start.send(Begin { writer, checker });
        }
    }

    /// Tells up to where WAL is needed.
    pub fn stop_at(&self, end: Lsn) {
        self.target.end.store(end.0, Ordering::Release);
        self.target.alarm.ring();
    }

    /// Waits until all is received and durable. Returns the bytes of WAL received.
    pub fn finish(mut self) -> Result<u64, Failure> {
        self.join().ok_or(Failure::Stopped)
    }

    fn join(&mut self) -> Option<u64> {
        let thread = self.thread.take()?;
        if let Ok(bytes) = thread.join() {
            return bytes;
        }
        None
    }
}

impl Drop for WalReceiver {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.start = None;
            self.stop.throw_quietly();
            self.join();
        }
    }
}

/// Connects, makes the slot, waits for the backup to begin, and has the server begin to stream.
async fn begin_stream(
    config: &WalReceiverConfig,
    notices: NoticeSink,
    ready: &mut Option<Sender<Result<(), Failure>>>,
    begin: oneshot::Receiver<Begin>,
) -> Result<(BulkStream, Begin), Failure> {
    let mut session = Session::connect(&config.connection, Purpose::Replication, notices).await?;
    session.set_stall_limit(Some(config.stall_timeout));
    check_system(&mut session, config.system_identifier).await?;
    let slot = make_slot(&mut session, &config.slot, &config.made_slot).await?;
    if let Some(ready) = ready.take() {
        // Whoever waits for us has not given up: only this thread's end would make it.
        let _ = ready.send(Ok(()));
    }
    let lost = |error| Failure::session("the WAL stream broke off", error);
    let mut begin = wait_for_begin(&mut session, begin).await?;
    let writer = &mut begin.writer;
    if writer.timeline().0 > 1 {
        let results = session.simple_query(&timeline_history(writer.timeline())).await.map_err(lost)?;
        let refuse = |error: &dyn std::fmt::Display| Failure::stream("TIMELINE_HISTORY", error);
        let result = results.first().ok_or_else(|| refuse(&"no result"))?;
        let history = TimelineHistoryFile::from_result(result).map_err(|error| refuse(&error))?;
        let expected = format!("{:08X}.history", writer.timeline().0);
        if history.name != expected {
            return Err(refuse(&format!("found file {:?}, expected {expected}", history.name)));
        }
        writer.add_history(&expected, &history.content)?;
    }
    let stream = start_stream(session, slot.as_deref(), writer).await?;
    Ok((stream, begin))
}

fn notices(observer: &Arc<dyn Observer>) -> NoticeSink {
    let observer = Arc::clone(observer);
    Arc::new(move |notice| observer.warning(&notice.to_string()))
}

/// A receiver whose stream has begun.
struct Receiving<'a> {
    config: &'a WalReceiverConfig,
    progress: &'a Progress,
    observer: &'a Arc<dyn Observer>,
    target: &'a Target,
    runtime: &'a ControlRuntime,
    stop: &'a Stop<Failure>,
}

impl Receiving<'_> {
    /// Streams until everything up to the target is checked and written, over as many connections as that takes, then
    /// has the server end the stream. Returns the bytes of WAL received.
    fn receive(&self, mut stream: BulkStream, begin: Begin) -> Result<u64, Failure> {
        let config = self.config;
        let Begin { mut writer, mut checker } = begin;
        let first = writer.written();
        let rules = StreamRules {
            status_interval: config.status_interval,
            stall_timeout: config.stall_timeout,
            // Without a slot it stays unset, as pg_basebackup has it.
            reports_flush: config.slot != SlotChoice::None,
        };
        loop {
            if let Some(cancel) = stream.cancel_handle() {
                self.stop.on_thrown(move || cancel.cancel());
            }
            let mut wal = WalStream::new(stream, writer, Some(checker), rules)?;
            let ended = wal.run(&self.target.alarm, |reached| {
                self.progress.wal_bytes.store(reached.written.0 - first.0, Ordering::Relaxed);
                // Padding behind the last record counts as checked before it is here.
                self.target.get().is_some_and(|end| reached.written.min(reached.verified) >= end)
            });
            if matches!(ended, Ok(StreamEnd::Enough)) {
                // All that is needed is here. However the stream ends now, it is no reason to fail.
                let ended = wal.end(&self.target.alarm);
                tracing::debug!(?ended, "WAL stream ended");
            }
            let rest;
            (rest, writer, checker) = match wal.into_parts() {
                (rest, writer, Some(checker)) => (rest, writer, checker),
                (.., None) => unreachable!("it was given one"),
            };
            let written = writer.written();
            let failure = match ended {
                Ok(StreamEnd::Enough) => {
                    writer.finish()?;
                    rest.close();
                    return Ok(written.0 - first.0);
                }
                Ok(StreamEnd::Server) => {
                    return Err(Failure::wal(&format!(
                        "the server ended the stream at {written}, before the backup's end: its timeline has changed, or \
                         it was shut down\n\
                         HINT: a backup cannot follow that; take it again."
                    )));
                }
                Ok(StreamEnd::Damaged(error)) => return Err(damaged(&error)),
                Err(failure) => failure,
            };
            drop(rest);
            stream = self.reconnect(failure, &writer)?;
        }
    }

    /// Goes on where the last connection was lost. Nothing can be missed: a server that no longer has that WAL says so.
    fn reconnect(&self, lost: Failure, writer: &SegmentWriter) -> Result<BulkStream, Failure> {
        if !reconnect::is_passing(&lost) || self.stop.is_thrown() {
            return Err(lost);
        }
        let config = self.config;
        let (what, from) = (reconnect::in_short(&lost), writer.written());
        self.observer.warning(&format!("WAL receiver: {what}; connecting again for WAL from {from}"));
        let attempt = async || {
            let mut session =
                Session::connect(&config.connection, Purpose::Replication, notices(self.observer)).await?;
            session.set_stall_limit(Some(config.stall_timeout));
            check_system(&mut session, config.system_identifier).await?;
            let slot = match &config.slot {
                SlotChoice::Named { name, .. } => Some(name.clone()),
                // The last one went with its connection. This one holds what there still is.
                SlotChoice::Temporary => make_slot(&mut session, &config.slot, &config.made_slot).await?,
                SlotChoice::None => None,
            };
            start_stream(session, slot.as_deref(), writer).await
        };
        let tries = Reconnect { limit: config.stall_timeout, pause: BETWEEN_ATTEMPTS };
        self.runtime.block_on(self.stop.unless_thrown(tries.until_connected(lost, attempt)))
    }
}

/// Has the server begin to stream from where the writer stands.
async fn start_stream(
    mut session: Session,
    slot: Option<&str>,
    writer: &SegmentWriter,
) -> Result<BulkStream, Failure> {
    let command = start_replication(slot, writer.written(), writer.timeline())
        .map_err(|error| Failure::Wal(error.to_string()))?;
    let refused = |error| Failure::session("could not start WAL streaming", error);
    match session.begin_copy(&command).await.map_err(refused)? {
        Reply::Copy { direction: CopyDirection::Both, .. } => {}
        _ => return Err(Failure::stream("START_REPLICATION", &"the server did not begin to stream")),
    }
    session.into_bulk().map_err(|error| Failure::session("the WAL stream broke off", error))
}

/// Waits until the backup has begun, which a spread checkpoint may put off for long. The server must not take the
/// session for an idle one meanwhile (`idle_session_timeout`, 14 and newer), so it is asked something.
async fn wait_for_begin(
    session: &mut Session,
    mut begin: oneshot::Receiver<Begin>,
) -> Result<Begin, Failure> {
    let lost = |error| Failure::session("the WAL connection was lost before the backup began", error);
    loop {
        tokio::select! {
            begun = &mut begin => return begun.map_err(|_| Failure::Stopped),
            error = session.watch() => return Err(lost(error)),
            () = tokio::time::sleep(SIGN_OF_LIFE) => {}
        }
        session.simple_query(&identify_system()).await.map_err(lost)?;
    }
}

async fn check_system(session: &mut Session, expected: u64) -> Result<(), Failure> {
    let results = session
        .simple_query(&identify_system())
        .await
        .map_err(|error| Failure::session("could not identify the system", error))?;
    let refuse = |error: &dyn std::fmt::Display| Failure::stream("IDENTIFY_SYSTEM", error);
    let result = results.first().ok_or_else(|| refuse(&"no result"))?;
    let found = IdentifySystem::from_result(result).map_err(|error| refuse(&error))?.system_identifier;
    if found == expected {
        return Ok(());
    }
    Err(Failure::Target(format!(
        "the second connection reached another cluster: found system {found}, expected {expected}\n\
         HINT: name one server; a load balancer in between may answer with any."
    )))
}

/// Makes the slot that was asked for, and returns its name.
async fn make_slot(
    session: &mut Session,
    choice: &SlotChoice,
    made: &MadeSlot,
) -> Result<Option<String>, Failure> {
    let (name, temporary) = match choice {
        SlotChoice::None => return Ok(None),
        SlotChoice::Named { name, create: false } => return Ok(Some(name.clone())),
        SlotChoice::Named { name, create: true } => (name.clone(), false),
        SlotChoice::Temporary => {
            let time = since_1970();
            (format!("pgstrata_{}_{}", std::process::id(), time.as_nanos()), true)
        }
    };
    let command = create_physical_slot(&name, temporary, true, session.server_version())
        .map_err(|error| Failure::Target(error.to_string()))?;
    let context = format!("could not create replication slot \"{name}\"");
    if !temporary {
        made.set(SlotState::Asked);
    }
    match session.simple_query(&command).await {
        Ok(_) if temporary => Ok(Some(name)),
        Ok(_) => {
            made.set(SlotState::Made);
            Ok(Some(name))
        }
        Err(error) => {
            if error.server_error().is_some() {
                made.set(SlotState::NotMade);
            }
            Err(Failure::session(context, error))
        }
    }
}

fn damaged(error: &WalError) -> Failure {
    Failure::Wal(format!(
        "{error}\n\
         HINT: pg_waldump on the server tells whether the WAL is damaged there. If it is not, it was changed on its way: \
         check the network path, then take the backup again."
    ))
}
