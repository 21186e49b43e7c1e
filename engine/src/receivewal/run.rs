//! Receives WAL until it is told to stop: connects, streams, follows timelines, and connects again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgstrata_protocol::replication::TimelineEnd;
use pgstrata_protocol::replication::command::start_replication;
use pgstrata_protocol::wal::{WalChecker, WalError};
use pgstrata_protocol::{Lsn, ServerVersion};
use tokio::sync::Notify;

use super::config::{Action, ReceiveObserver, ReceiveWalConfig, WalArchive, WalStore};
use super::facts::ServerFacts;
use super::place::{FolderPlace, ServerPast, WalPlace};
use super::start::Start;
use super::{history, slot, told};
use crate::connect::{
    Alarm, BulkStream, ControlRuntime, CopyDirection, NoticeSink, Purpose, Reply, Session, SessionError,
};
use crate::failure::Failure;
use crate::pipeline::Folder;
use crate::stop::Stop;
use crate::wal::{Reached, StreamEnd, StreamRules, WalSink, WalStream, within};
use crate::walarchive::StorePlace;

/// How long to wait before another attempt (`RECONNECT_SLEEP_TIME`, `pg_receivewal.c`).
const RECONNECT_AFTER: Duration = Duration::from_secs(5);
/// The first server whose slots can be asked where they stand (`READ_REPLICATION_SLOT`).
const READS_SLOTS: ServerVersion = ServerVersion(150_000);

/// Does what the configuration says. `stop` ends it in order, which is no failure once a connection was there.
///
/// # Errors
/// Where there is no first connection, where another attempt makes no sense or was not asked for.
pub fn run(
    config: &ReceiveWalConfig,
    observer: &Arc<dyn ReceiveObserver>,
    stop: &Stop<Failure>,
) -> Result<(), Failure> {
    let system = |what| move |error| Failure::disk(what, "the WAL receiver", error);
    let alarm = Alarm::new().map_err(system("make an eventfd for"))?;
    let thrown = Arc::new(Notify::new());
    let (rings, wakes) = (alarm.clone(), Arc::clone(&thrown));
    // Once for all attempts: whoever waits is one of these.
    stop.on_thrown(move || {
        wakes.notify_one();
        rings.ring();
    });
    let runtime = ControlRuntime::new().map_err(system("start the runtime of"))?;
    let place: Option<(Rules<'_>, Box<dyn WalPlace + '_>)> = match &config.action {
        Action::Receive(archive) => {
            let folder = open_folder(archive)?;
            Some((Rules::of_folder(archive), Box::new(FolderPlace { archive, folder })))
        }
        Action::Store(store) => Some((Rules::of_store(store), Box::new(StorePlace { store }))),
        Action::CreateSlot { .. } | Action::DropSlot { .. } => None,
    };
    let mut run =
        Run { config, observer, stop, alarm, thrown, runtime, system_identifier: None, damage: None };
    // A signal before the first connection ends the process as it would have ended without us.
    let (mut session, facts) = run.connect().map_err(|failure| stop.take_reason().unwrap_or(failure))?;
    if let Some((rules, place)) = place {
        return run.receive(&rules, &*place, (session, facts));
    }
    match &config.action {
        Action::CreateSlot { name, if_not_exists } => {
            observer.note(&format!("creating replication slot \"{name}\""));
            let created = run.wait(slot::create(&mut session, name, *if_not_exists));
            run.part(session, created)
        }
        Action::DropSlot { name } => {
            observer.note(&format!("dropping replication slot \"{name}\""));
            let removed = run.wait(slot::remove(&mut session, name));
            run.part(session, removed)
        }
        Action::Receive(_) | Action::Store(_) => unreachable!("their place was made above"),
    }
}

fn open_folder(archive: &WalArchive) -> Result<Arc<Folder>, Failure> {
    Folder::open(&archive.directory).map_err(|failure| match failure {
        Failure::Disk { source, path, .. } => {
            let reason = source.to_string();
            let reason = reason.split(" (os error").next().unwrap_or_default();
            Failure::Target(format!("could not open directory \"{}\": {reason}", path.display()))
        }
        other => other,
    })
}

/// What a stream is to keep to, wherever its WAL goes.
struct Rules<'a> {
    slot: Option<&'a str>,
    end: Option<Lsn>,
    reconnect: bool,
    synchronous: bool,
    check: bool,
    /// Whether trouble with the place at the beginning may pass.
    starts_again: bool,
}

impl<'a> Rules<'a> {
    fn of_folder(archive: &'a WalArchive) -> Self {
        Self {
            slot: archive.slot.as_deref(),
            end: archive.end,
            reconnect: archive.reconnect,
            synchronous: archive.synchronous,
            check: archive.check,
            starts_again: false,
        }
    }

    fn of_store(store: &'a WalStore) -> Self {
        Self {
            slot: store.slot.as_deref(),
            end: store.end,
            reconnect: store.reconnect,
            synchronous: store.interval.is_zero(),
            check: store.check,
            starts_again: true,
        }
    }
}

/// Why an attempt is over.
enum Trouble {
    /// Another one may do better.
    Passing(Failure),
    /// Another one would not, or would hide it.
    Lasting(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        // What a failed sync left in memory counts as written from then on: only a new process may try again.
        match failure {
            Failure::Disk { action: "sync" | "sync folder", .. } => Trouble::Lasting(failure),
            other => Trouble::Passing(other),
        }
    }
}

struct Run<'a> {
    config: &'a ReceiveWalConfig,
    observer: &'a Arc<dyn ReceiveObserver>,
    stop: &'a Stop<Failure>,
    alarm: Alarm,
    thrown: Arc<Notify>,
    runtime: ControlRuntime,
    /// The cluster that the first connection found.
    system_identifier: Option<u64>,
    /// What the last attempt found damaged.
    damage: Option<WalError>,
}

impl Run<'_> {
    fn stopped(&self) -> bool {
        self.stop.is_thrown()
    }

    /// Waits for the server, but no longer than until the run is stopped.
    fn wait<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        if self.stopped() {
            return Err(Failure::Stopped);
        }
        self.runtime.block_on(async {
            tokio::select! {
                done = work => done,
                () = self.thrown.notified() => Err(Failure::Stopped),
            }
        })
    }

    /// Ends a session whose one task is done, or has failed.
    fn part(&self, session: Session, outcome: Result<(), Failure>) -> Result<(), Failure> {
        if outcome.is_ok() {
            self.runtime.block_on(session.close());
        }
        outcome.map_err(|failure| self.stop.take_reason().unwrap_or(failure))
    }

    fn connect(&mut self) -> Result<(Session, ServerFacts), Failure> {
        let observer = Arc::clone(self.observer);
        let notices: NoticeSink = Arc::new(move |notice| observer.warning(&notice.to_string()));
        let limit = self.config.stall_timeout;
        let (session, facts) = self.wait(async {
            let connecting = Session::connect(&self.config.connection, Purpose::Replication, notices);
            let mut session = within(limit, connecting).await??;
            session.set_stall_limit(Some(limit));
            let facts = ServerFacts::ask(&mut session).await?;
            Ok((session, facts))
        })?;
        let found = facts.system.system_identifier;
        let expected = *self.system_identifier.get_or_insert(found);
        if found != expected {
            return Err(Failure::Target(format!(
                "the server is of another cluster than before: found system {found}, expected {expected}\n\
                 HINT: name one cluster's servers; its WAL is not written into this folder."
            )));
        }
        Ok((session, facts))
    }

    fn receive(
        &mut self,
        rules: &Rules<'_>,
        place: &dyn WalPlace,
        first: (Session, ServerFacts),
    ) -> Result<(), Failure> {
        let mut connected = Some(first);
        loop {
            let outcome = match connected.take() {
                Some(connected) => Ok(connected),
                None => self.connect().map_err(Trouble::from),
            };
            let outcome = outcome.and_then(|(session, facts)| self.attempt(rules, place, session, &facts));
            let failure = match outcome {
                Ok(()) => return Ok(()),
                Err(Trouble::Lasting(failure)) => return Err(failure),
                Err(Trouble::Passing(failure)) if self.stopped() => {
                    // It was to end, and has; what went wrong with that is told.
                    if !matches!(failure, Failure::Stopped) {
                        self.observer.error(&told(&failure));
                    }
                    return Ok(());
                }
                Err(Trouble::Passing(failure)) => failure,
            };
            self.observer.error(&told(&failure));
            if !rules.reconnect {
                return Err(Failure::Target("disconnected".into()));
            }
            self.observer
                .info(&format!("disconnected; waiting {} seconds to try again", RECONNECT_AFTER.as_secs()));
            let until = Instant::now() + RECONNECT_AFTER;
            while !self.stopped() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                self.alarm.wait(left);
            }
            if self.stopped() {
                return Ok(());
            }
        }
    }

    /// Streams over one connection, from timeline to timeline.
    fn attempt(
        &mut self,
        rules: &Rules<'_>,
        place: &dyn WalPlace,
        session: Session,
        facts: &ServerFacts,
    ) -> Result<(), Trouble> {
        let (session, mut from) = self.find_start(rules, place, session, facts)?;
        if from.timeline > facts.system.timeline {
            let text = format!("starting timeline {} is not present in the server", from.timeline);
            return Err(Failure::Target(text).into());
        }
        let Start { lsn, timeline } = from;
        self.observer.note(&format!("starting log streaming at {lsn} (timeline {timeline})"));
        let lost = |error| Failure::session("could not take over the socket", error);
        let mut stream = session.into_bulk().map_err(lost)?;
        stream.set_stall_limit(Some(self.config.stall_timeout)).map_err(lost)?;
        if rules.synchronous {
            stream.never_batch().map_err(lost)?;
        }
        loop {
            let gives_up = || self.stop.is_thrown();
            history::fetch(&mut stream, from.timeline, place, facts, &self.alarm, gives_up)?;
            if rules.end.is_some_and(|end| end < from.lsn) {
                self.observer
                    .note(&format!("stopped log streaming at {} (timeline {})", from.lsn, from.timeline));
                stream.close();
                return Ok(());
            }
            match self.follow(rules, place, stream, facts, from)? {
                Some((rest, next)) => (stream, from) = (rest, next),
                None => return Ok(()),
            }
        }
    }

    fn find_start(
        &self,
        rules: &Rules<'_>,
        place: &dyn WalPlace,
        mut session: Session,
        facts: &ServerFacts,
    ) -> Result<(Session, Start), Trouble> {
        let system = &facts.system;
        let mut past = || self.ask_past(rules, &mut session, facts);
        let local = place.find_start(facts, &mut past, self.observer.as_ref()).map_err(|failure| {
            // What lies in a folder does not change by itself; a repository may be out of reach for a while.
            if rules.starts_again { Trouble::from(failure) } else { Trouble::Lasting(failure) }
        })?;
        if let Some(local) = local {
            return Ok((session, local));
        }
        let held = match rules.slot {
            Some(name) if facts.version >= READS_SLOTS => self.wait(slot::position(&mut session, name))?,
            _ => None,
        };
        let (lsn, timeline) = held.unwrap_or((system.flushed, None));
        let lsn = lsn.segment_start(facts.segment_size.bytes());
        Ok((session, Start { lsn, timeline: timeline.unwrap_or(system.timeline) }))
    }

    fn ask_past(
        &self,
        rules: &Rules<'_>,
        session: &mut Session,
        facts: &ServerFacts,
    ) -> Result<ServerPast, Failure> {
        let history = self.wait(history::ask(session, facts.system.timeline))?;
        let slot = match rules.slot {
            None => None,
            Some(name) if facts.version >= READS_SLOTS => {
                self.wait(slot::position(session, name))?.map(|(lsn, _)| lsn)
            }
            Some(name) => self.slot_by_sql(name),
        };
        Ok(ServerPast { history, slot })
    }

    /// Who may stream need not be let in to a database: without an answer the stream goes on where the archive ends.
    fn slot_by_sql(&self, name: &str) -> Option<Lsn> {
        let limit = self.config.stall_timeout;
        let asked = self.wait(async {
            let quiet: NoticeSink = Arc::new(|_| {});
            let connecting = Session::connect(&self.config.connection, Purpose::Sql, quiet);
            let mut session = within(limit, connecting).await??;
            session.set_stall_limit(Some(limit));
            let position = slot::position_by_sql(&mut session, name).await;
            session.close().await;
            position
        });
        asked.unwrap_or_else(|failure| {
            self.observer.warning(&format!(
                "could not ask where replication slot \"{name}\" stands: {failure}\n\
                 HINT: segments that are missing below the end of the archive are not looked for, and the slot lets go of \
                 them. Let the user connect to a database as well."
            ));
            None
        })
    }

    /// Streams one timeline. Returns where to go on, on the same connection, where the timeline has ended.
    fn follow(
        &mut self,
        rules: &Rules<'_>,
        place: &dyn WalPlace,
        mut stream: BulkStream,
        facts: &ServerFacts,
        from: Start,
    ) -> Result<Option<(BulkStream, Start)>, Trouble> {
        let Start { lsn, timeline } = from;
        let command = start_replication(rules.slot, lsn, timeline)
            .map_err(|error| Failure::Target(error.to_string()))?;
        let refused =
            |error| Failure::session("could not send replication command \"START_REPLICATION\"", error);
        match stream.ask(&command, &self.alarm, || self.stop.is_thrown()).map_err(refused)? {
            Reply::Copy { direction: CopyDirection::Both, .. } => {}
            // Nothing is left of a timeline that ended where we start.
            Reply::Done(completed) if !completed.results.is_empty() => {
                return self.next(stream, &completed.results, from, lsn, facts).map(Some);
            }
            _ => {
                let error = &"the server did not begin to stream";
                return Err(Failure::stream("START_REPLICATION", error).into());
            }
        }
        let writer = place.writer(from, facts, self.observer, &self.alarm)?;
        let checker = rules.check.then(|| WalChecker::from_segment(facts.wal_origin(timeline), lsn));
        let stream_rules = StreamRules {
            status_interval: self.config.status_interval,
            stall_timeout: self.config.stall_timeout,
            // Without a slot the server must not take us for a synchronous standby, unless that is what we are to be.
            reports_flush: rules.slot.is_some() || rules.synchronous,
        };
        let mut stream = WalStream::new(stream, writer, checker, stream_rules)?;
        let is_end = |written| rules.end.is_some_and(|end| end < written);
        let ended =
            stream.run(&self.alarm, |Reached { written, .. }| is_end(written) || self.stop.is_thrown());
        // Whatever happened: what is here is closed as it is, and durable.
        let orderly = matches!(ended, Ok(StreamEnd::Enough | StreamEnd::Server));
        let rested = stream.sink().rest(orderly);
        let written = stream.sink().written();
        let ended = match (ended, rested.map_err(Trouble::from)) {
            (_, Err(failure @ Trouble::Lasting(_))) => return Err(failure),
            // The stream's own failure may be that of the same disk.
            (Err(failure), _) => return Err(failure.into()),
            (Ok(_), Err(failure)) => return Err(failure),
            (Ok(ended), Ok(())) => ended,
        };
        match ended {
            StreamEnd::Enough => {
                self.observer.note(&if is_end(written) {
                    format!("stopped log streaming at {written} (timeline {timeline})")
                } else {
                    "received interrupt signal, exiting".to_owned()
                });
                // All is here. However the stream ends now, it is no reason to fail.
                let ended = stream.end(&self.alarm);
                tracing::debug!(?ended, "WAL stream ended");
                stream.into_parts().0.close();
                Ok(None)
            }
            StreamEnd::Server => {
                self.damage = None;
                let answer = stream.answer_end(&self.alarm, || self.stop.is_thrown());
                let results = match answer {
                    Ok(completed) if !completed.results.is_empty() => completed.results,
                    // A server that shuts down says no more than that the command is over.
                    Ok(_) | Err(SessionError::Closed { .. } | SessionError::Io { .. }) => {
                        let text = "replication stream was terminated before stop point";
                        return Err(Failure::Wal(text.into()).into());
                    }
                    Err(error) => {
                        return Err(
                            Failure::session("unexpected termination of replication stream", error).into()
                        );
                    }
                };
                self.next(stream.into_parts().0, &results, from, written, facts).map(Some)
            }
            StreamEnd::Damaged(error) => Err(self.damaged(error)),
        }
    }

    /// Where a timeline goes on that has ended.
    fn next(
        &self,
        stream: BulkStream,
        results: &[pgstrata_protocol::replication::ResultSet],
        from: Start,
        written: Lsn,
        facts: &ServerFacts,
    ) -> Result<(BulkStream, Start), Trouble> {
        let refuse = |error: &dyn std::fmt::Display| Failure::stream("START_REPLICATION", error);
        let result = results.first().ok_or_else(|| refuse(&"no result"))?;
        let TimelineEnd { next, start } = TimelineEnd::from_result(result).map_err(|error| refuse(&error))?;
        let timeline = from.timeline;
        if next <= timeline {
            let text =
                format!("server reported unexpected next timeline {next}, following timeline {timeline}");
            return Err(Failure::Wal(text).into());
        }
        if start > written {
            let text = format!(
                "server stopped streaming timeline {timeline} at {written}, but reported next timeline {next} to begin \
                 at {start}"
            );
            return Err(Failure::Wal(text).into());
        }
        self.observer.note(&format!("switched to timeline {next} at {written}"));
        let lsn = start.segment_start(facts.segment_size.bytes());
        Ok((stream, Start { lsn, timeline: next }))
    }

    /// WAL that was changed on its way comes right when it comes again. What is damaged on the server does not.
    fn damaged(&mut self, error: WalError) -> Trouble {
        if self.damage.as_ref() != Some(&error) {
            let text = format!("{error}\nHINT: it was not written; the segment is received once more.");
            self.damage = Some(error);
            return Trouble::Passing(Failure::Wal(text));
        }
        Trouble::Lasting(Failure::Wal(format!(
            "{error}\n\
             HINT: it came twice, so it is damaged on the server: pg_waldump there tells. Recovery ends at that place; \
             take a new base backup. --no-check-wal receives the WAL behind it as it is."
        )))
    }
}
