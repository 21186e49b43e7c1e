//! Receives WAL on a connection and a thread of its own while a backup runs.
//!
//! The connection and the slot are there before the backup begins, so that the server keeps all WAL that the
//! backup needs. The receiver ends by itself once it has everything up to the position it was told, each record
//! checked as recovery will check it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use crossbeam::channel::{Sender, bounded};
use pgstrata_protocol::Lsn;
use pgstrata_protocol::replication::command::{
    create_physical_slot, identify_system, start_replication, timeline_history,
};
use pgstrata_protocol::replication::{
    IdentifySystem, StandbyStatus, TimelineHistoryFile, WalEvent, WalStreamDecoder,
};
use pgstrata_protocol::wal::{WalChecker, WalError};
use pgstrata_protocol::wire::frontend;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::segments::SegmentWriter;
use crate::basebackup::{Progress, SlotChoice};
use crate::connect::{
    ConnectionSettings, ControlRuntime, CopyDirection, CopyEvent, NoticeSink, Purpose, Reply, Session,
};
use crate::failure::Failure;
use crate::stop::Stop;

/// How long the server may take to end the stream once it was asked to.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// How often a waiting session shows that it is not idle.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// PostgreSQL's epoch, 2000-01-01, in seconds since 1970 (`POSTGRES_EPOCH_JDATE`, `datatype/timestamp.h`).
const POSTGRES_EPOCH: u64 = 946_684_800;

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
    stop_at: watch::Sender<Option<Lsn>>,
    stop: Stop<Failure>,
}

impl WalReceiver {
    /// Connects and makes the slot; returns once both are done.
    pub fn connect(
        config: WalReceiverConfig,
        progress: &Arc<Progress>,
        notices: NoticeSink,
        stop: &Stop<Failure>,
    ) -> Result<WalReceiver, Failure> {
        let (ready, wait_ready) = bounded(1);
        let (start, begin) = oneshot::channel();
        let (stop_at, target) = watch::channel(None);
        let (progress, switch) = (Arc::clone(progress), stop.clone());
        let thread = thread::Builder::new().name("wal".into()).spawn(move || {
            let _told = switch.tell_of_panics("the WAL receiver");
            let mut ready = Some(ready);
            let work = receive(config, &progress, notices, &mut ready, begin, target);
            let outcome = ControlRuntime::new()
                .map_err(|error| Failure::disk("start the runtime of", "the WAL receiver", error))
                .and_then(|runtime| runtime.block_on(switch.unless_thrown(work)));
            match outcome {
                Ok(bytes) => Some(bytes),
                Err(failure) => {
                    // Before the start it is told to whoever waits for us, later through the switch.
                    match (ready, failure) {
                        (Some(ready), failure) => drop(ready.send(Err(failure))),
                        (None, Failure::Stopped) => {}
                        (None, failure) => switch.throw(Failure::wal(&failure)),
                    }
                    None
                }
            }
        });
        let thread = thread.map_err(|error| Failure::disk("start thread", "wal", error))?;
        let receiver = WalReceiver { thread: Some(thread), start: Some(start), stop_at, stop: stop.clone() };
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
        self.stop_at.send_replace(Some(end));
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

async fn receive(
    config: WalReceiverConfig,
    progress: &Progress,
    notices: NoticeSink,
    ready: &mut Option<Sender<Result<(), Failure>>>,
    begin: oneshot::Receiver<Begin>,
    target: watch::Receiver<Option<Lsn>>,
) -> Result<u64, Failure> {
    let mut session = Session::connect(&config.connection, Purpose::Replication, notices).await?;
    session.set_stall_limit(Some(config.stall_timeout));
    check_system(&mut session, config.system_identifier).await?;
    let slot = make_slot(&mut session, &config.slot, &config.made_slot).await?;
    if let Some(ready) = ready.take() {
        // Whoever waits for us has not given up: only this thread's end would make it.
        let _ = ready.send(Ok(()));
    }
    let lost = |error| Failure::session("the WAL stream broke off", error);
    let Begin { mut writer, checker } = wait_for_begin(&mut session, begin).await?;
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
    let command = start_replication(slot.as_deref(), writer.written(), writer.timeline())
        .map_err(|error| Failure::Wal(error.to_string()))?;
    let refused = |error| Failure::session("could not start WAL streaming", error);
    match session.begin_copy(&command).await.map_err(refused)? {
        Reply::Copy { direction: CopyDirection::Both, .. } => {}
        _ => return Err(Failure::stream("START_REPLICATION", &"the server did not begin to stream")),
    }
    let first = writer.written();
    let mut stream = WalStream {
        session,
        writer,
        checker,
        progress,
        first,
        config,
        reply_requested: false,
        heard_message: false,
        within_message: false,
    };
    stream.run(target).await?;
    let received = stream.writer.written().0 - first.0;
    let WalStream { session, writer, .. } = stream;
    writer.finish()?;
    session.close().await;
    Ok(received)
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

/// How far the events that have arrived went. What comes behind the last WAL that is needed does not matter.
enum Taken {
    All,
    /// The server ended the stream.
    Ended,
    UpToDamage(WalError),
}

struct WalStream<'a> {
    session: Session,
    writer: SegmentWriter,
    checker: WalChecker,
    progress: &'a Progress,
    first: Lsn,
    config: WalReceiverConfig,
    reply_requested: bool,
    /// Whether a message has ended since this was last asked.
    heard_message: bool,
    /// Whether a message has begun and not ended.
    within_message: bool,
}

impl WalStream<'_> {
    /// Streams until everything up to the target is checked and written, then has the server end the stream.
    async fn run(&mut self, mut target: watch::Receiver<Option<Lsn>>) -> Result<(), Failure> {
        let mut decoder = WalStreamDecoder::new(self.first);
        let mut reported = Instant::now();
        let mut heard = Instant::now();
        let mut asked = false;
        loop {
            let flushed = self.writer.flushed();
            let begun = Instant::now();
            let taken = self.take_events(&mut decoder)?;
            // The time in which we wrote and synced is not the server's silence. Bytes alone are no sign of life: where
            // a length was changed on its way, what follows trickles into a message that never ends.
            if std::mem::take(&mut self.heard_message) {
                heard = Instant::now();
                asked = false;
            } else {
                heard += begun.elapsed();
            }
            // Padding behind the last record counts as checked before it is here.
            let have = self.writer.written().min(self.checker.verified());
            let enough = target.borrow_and_update().is_some_and(|end| have >= end);
            if enough {
                // All that is needed is here. However the stream ends now, it is no reason to fail.
                let ended = tokio::time::timeout(END_PATIENCE, self.end()).await;
                tracing::debug!(?ended, "WAL stream ended");
                return Ok(());
            }
            match taken {
                Taken::All => {}
                Taken::Ended => {
                    return Err(Failure::wal(&format!(
                        "the server ended the stream at {}, before the backup's end: its timeline has changed\n\
                         HINT: a backup cannot follow that; take it again on the new timeline.",
                        self.writer.written()
                    )));
                }
                Taken::UpToDamage(error) => return Err(damaged(&error)),
            }
            let interval = self.config.status_interval;
            let due = !interval.is_zero() && reported.elapsed() >= interval;
            if std::mem::take(&mut self.reply_requested) || due || self.writer.flushed() != flushed {
                self.report(false).await?;
                reported = Instant::now();
            }
            let stall = self.config.stall_timeout;
            if !stall.is_zero() && heard.elapsed() >= stall {
                let sent = if self.within_message { "sent no whole message" } else { "sent nothing" };
                return Err(Failure::Wal(format!(
                    "the server {sent} for {stall:?}, although it was asked to"
                )));
            }
            // A living server answers this at once; silence from then on is a lost connection.
            if !stall.is_zero() && !asked && heard.elapsed() >= stall / 2 {
                self.report(true).await?;
                asked = true;
            }
            let status = (!interval.is_zero()).then(|| reported + interval);
            let sign = (!stall.is_zero()).then(|| heard + if asked { stall } else { stall / 2 });
            let deadline = status.into_iter().chain(sign).min();
            let wait = async {
                match deadline {
                    Some(deadline) => self.session.receive_until(deadline).await,
                    None => self.session.receive().await.map(Some),
                }
            };
            tokio::select! {
                received = wait => {
                    received.map_err(|error| Failure::session("the WAL stream broke off", error))?;
                }
                changed = target.changed() => changed.map_err(|_| Failure::Stopped)?,
            }
        }
    }

    /// Checks and writes what has arrived.
    fn take_events(&mut self, decoder: &mut WalStreamDecoder) -> Result<Taken, Failure> {
        loop {
            let event = self.session.next_event();
            match event.map_err(|error| Failure::session("the WAL stream broke off", error))? {
                None => return Ok(Taken::All),
                Some(CopyEvent::End) => return Ok(Taken::Ended),
                Some(CopyEvent::Data { chunk, first, last }) => {
                    self.heard_message |= last;
                    self.within_message = !last;
                    let events = decoder
                        .push(chunk, first, last)
                        .map_err(|error| Failure::stream("WAL stream", &error))?;
                    for event in events {
                        match event {
                            WalEvent::Begin { .. } => {}
                            WalEvent::Data { at, bytes } => {
                                if let Err(error) = self.checker.push(bytes) {
                                    return Ok(Taken::UpToDamage(error));
                                }
                                self.writer.write(at, bytes)?;
                                let received = self.writer.written().0 - self.first.0;
                                self.progress.wal_bytes.store(received, Ordering::Relaxed);
                            }
                            WalEvent::Keepalive { reply_requested, .. } => {
                                self.reply_requested |= reply_requested;
                            }
                        }
                    }
                }
            }
        }
    }

    async fn report(&mut self, reply_requested: bool) -> Result<(), Failure> {
        let time = since_1970().saturating_sub(Duration::from_secs(POSTGRES_EPOCH));
        let status = StandbyStatus {
            written: self.writer.written(),
            // Without a slot it stays unset, as pg_basebackup has it: the server must not take us for a
            // synchronous standby.
            flushed: if self.config.slot == SlotChoice::None { Lsn::INVALID } else { self.writer.flushed() },
            applied: Lsn::INVALID,
            sent_at: i64::try_from(time.as_micros()).unwrap_or(i64::MAX),
            reply_requested,
        };
        let mut out = BytesMut::new();
        status.encode(&mut out).map_err(|error| Failure::Wal(error.to_string()))?;
        self.session
            .send(out)
            .await
            .map_err(|error| Failure::session("could not report the WAL position", error))
    }

    /// Asks the server to end the stream, and waits for that. What it still sends is not needed.
    async fn end(&mut self) -> Result<(), Failure> {
        let lost = |error| Failure::session("could not end the WAL stream", error);
        self.report(false).await?;
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.session.send(out).await.map_err(lost)?;
        loop {
            while let Some(event) = self.session.next_event().map_err(lost)? {
                if matches!(event, CopyEvent::End) {
                    return self.session.resume().await.map(drop).map_err(lost);
                }
            }
            self.session.receive().await.map_err(lost)?;
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

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
