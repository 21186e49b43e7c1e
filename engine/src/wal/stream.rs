//! One timeline's WAL on its way from the server: received, checked, written, reported.
//!
//! What becomes of the bytes is the sink's business, when to end is the caller's. Invariants: the sink gets WAL without
//! a gap and none behind the first damage; the server is told that WAL is durable only where the sink says so, and a sink
//! says it of no segment behind the last record that was whole and right. A slot keeps whole segments, so it never lets go
//! of WAL that may have to be had once more; within a segment the server hears all, or a standby that shuts down in the
//! middle of a record would wait for the rest of it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use pgstrata_protocol::Lsn;
use pgstrata_protocol::replication::{CompletedReply, StandbyStatus, WalEvent, WalStreamDecoder};
use pgstrata_protocol::wal::{WalChecker, WalError};
use pgstrata_protocol::wire::frontend;

use crate::connect::{Alarm, BulkStream, CopyEvent, Reply, SessionError};
use crate::failure::Failure;

/// How long the server may take to end the stream once it was asked to.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// PostgreSQL's epoch, 2000-01-01, in seconds since 1970 (`POSTGRES_EPOCH_JDATE`, `datatype/timestamp.h`).
const POSTGRES_EPOCH: u64 = 946_684_800;

/// Takes the WAL that comes.
pub trait WalSink {
    /// Appends WAL that begins `at`, where the last ended.
    ///
    /// # Errors
    /// Where it cannot be stored.
    fn write(&mut self, at: Lsn, bytes: &[u8]) -> Result<(), Failure>;

    /// The end of what was taken.
    fn written(&self) -> Lsn;

    /// The end of what is durable, in the segment of the last position that [`Self::settle`] was told at most; it may move
    /// at any time.
    fn flushed(&self) -> Lsn;

    /// All that has come is taken, and the stream is about to wait. Every record up to `verified` was whole and right.
    /// `asked`: the server wants to hear how much is durable, and would rather hear of all of it.
    ///
    /// # Errors
    /// Where something that was taken before cannot be stored after all.
    fn settle(&mut self, verified: Lsn, asked: bool) -> Result<(), Failure>;
}

/// How the server is dealt with.
#[derive(Clone, Copy, Debug)]
pub struct StreamRules {
    /// How often the position is reported unasked; zero for never.
    pub status_interval: Duration,
    /// The server counts as lost where no whole message comes for so long, although it was asked for a sign; zero for
    /// never. It is also the time that one message, of at most 128 KiB of WAL, may take.
    pub stall_timeout: Duration,
    /// Whether the server is told what is durable. It then counts as a synchronous standby where its name is in
    /// `synchronous_standby_names`.
    pub reports_flush: bool,
}

/// How far a stream is.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    /// The end of what the sink has taken.
    pub written: Lsn,
    /// The end of the last whole and right record, or of what the sink has taken where nothing is checked. It may lie
    /// behind that: what pads a record counts before it is here.
    pub verified: Lsn,
}

impl Reached {
    fn of(sink: &impl WalSink, checker: Option<&WalChecker>) -> Self {
        let written = sink.written();
        Self { written, verified: checker.map_or(written, WalChecker::verified) }
    }
}

/// Why a stream is over.
#[derive(Debug)]
pub enum StreamEnd {
    /// The caller has enough of it.
    Enough,
    /// The server ended its side: [`WalStream::answer_end`].
    Server,
    /// What came is not what recovery would read. The sink has none of it.
    Damaged(WalError),
}

enum Taken {
    All,
    End(StreamEnd),
}

/// A stream from the reply to `START_REPLICATION` on.
#[derive(Debug)]
pub struct WalStream<S> {
    stream: BulkStream,
    sink: S,
    checker: Option<WalChecker>,
    rules: StreamRules,
    decoder: WalStreamDecoder,
    reply_requested: bool,
    /// Whether a message has ended since this was last asked.
    heard_message: bool,
    /// Whether a message has begun and not ended.
    within_message: bool,
    /// What the server was last told to be durable.
    told: Lsn,
}

impl<S: WalSink> WalStream<S> {
    /// A stream whose first byte is the one that the sink waits for. Without a checker it is written as it comes.
    ///
    /// # Errors
    /// Where the socket refuses its time limit.
    pub fn new(
        mut stream: BulkStream,
        sink: S,
        checker: Option<WalChecker>,
        rules: StreamRules,
    ) -> Result<Self, Failure> {
        // For what is sent, and for replies around the stream.
        stream.set_stall_limit(Some(rules.stall_timeout)).map_err(broke_off)?;
        let decoder = WalStreamDecoder::new(sink.written());
        let told = sink.flushed();
        Ok(Self {
            stream,
            sink,
            checker,
            rules,
            decoder,
            reply_requested: false,
            heard_message: false,
            within_message: false,
            told,
        })
    }

    /// What the stream's bytes became.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Lets go of both ends, and of the checker between them, which stands where the sink stands unless it found damage.
    pub fn into_parts(self) -> (BulkStream, S, Option<WalChecker>) {
        (self.stream, self.sink, self.checker)
    }

    fn reached(&self) -> Reached {
        Reached::of(&self.sink, self.checker.as_ref())
    }

    /// Streams until `enough`, which is asked behind every message and whenever `alarm` rings, or until it ends otherwise.
    ///
    /// # Errors
    /// Where the server is lost or refuses to go on, and where the sink fails.
    pub fn run(
        &mut self,
        alarm: &Alarm,
        mut enough: impl FnMut(Reached) -> bool,
    ) -> Result<StreamEnd, Failure> {
        let StreamRules { status_interval: interval, stall_timeout: stall, reports_flush } = self.rules;
        let mut reported: Option<Instant> = None;
        let mut heard = Instant::now();
        let mut asked = false;
        loop {
            let begun = Instant::now();
            let taken = self.take_events(&mut enough)?;
            let verified = self.reached().verified;
            self.sink.settle(verified, self.reply_requested && reports_flush)?;
            // The time in which we wrote and synced is not the server's silence. Bytes alone are no sign of life: where
            // a length was changed on its way, what follows trickles into a message that never ends.
            if std::mem::take(&mut self.heard_message) {
                heard = Instant::now();
                asked = false;
            } else {
                heard += begun.elapsed();
            }
            if let Taken::End(end) = taken {
                return Ok(end);
            }
            if enough(self.reached()) {
                return Ok(StreamEnd::Enough);
            }
            let due = !interval.is_zero() && reported.is_none_or(|reported| reported.elapsed() >= interval);
            let news = reports_flush && self.sink.flushed() != self.told;
            if std::mem::take(&mut self.reply_requested) || due || news {
                self.report(false)?;
                reported = Some(Instant::now());
            }
            if !stall.is_zero() && heard.elapsed() >= stall {
                let sent = if self.within_message { "no whole message" } else { "nothing" };
                return Err(Failure::Silent { sent, limit: stall });
            }
            // A living server answers this at once; silence from then on is a lost connection.
            if !stall.is_zero() && !asked && heard.elapsed() >= stall / 2 {
                self.report(true)?;
                asked = true;
            }
            let status = reported.filter(|_| !interval.is_zero()).map(|reported| reported + interval);
            let sign = (!stall.is_zero()).then(|| heard + if asked { stall } else { stall / 2 });
            let deadline = status.into_iter().chain(sign).min();
            self.stream.wait(alarm, deadline).map_err(broke_off)?;
        }
    }

    /// Checks what has arrived and hands it to the sink.
    fn take_events(&mut self, enough: &mut impl FnMut(Reached) -> bool) -> Result<Taken, Failure> {
        loop {
            let (chunk, first, last) = match self.stream.next_event().map_err(broke_off)? {
                None => return Ok(Taken::All),
                Some(CopyEvent::End) => return Ok(Taken::End(StreamEnd::Server)),
                Some(CopyEvent::Data { chunk, first, last }) => (chunk, first, last),
            };
            self.heard_message |= last;
            self.within_message = !last;
            let events = self.decoder.push(chunk, first, last);
            for event in events.map_err(|error| Failure::stream("WAL stream", &error))? {
                match event {
                    WalEvent::Begin { .. } => {}
                    WalEvent::Data { at, bytes } => {
                        if let Some(Err(error)) = self.checker.as_mut().map(|checker| checker.push(bytes)) {
                            // What is needed may be here already, and the damage behind it.
                            let end = if enough(Reached::of(&self.sink, self.checker.as_ref())) {
                                StreamEnd::Enough
                            } else {
                                StreamEnd::Damaged(error)
                            };
                            return Ok(Taken::End(end));
                        }
                        self.sink.write(at, bytes)?;
                    }
                    WalEvent::Keepalive { reply_requested, .. } => self.reply_requested |= reply_requested,
                }
            }
            // A sink may have had enough within a message.
            if enough(self.reached()) {
                return Ok(Taken::End(StreamEnd::Enough));
            }
        }
    }

    fn report(&mut self, reply_requested: bool) -> Result<(), Failure> {
        let time = since_1970().saturating_sub(Duration::from_secs(POSTGRES_EPOCH));
        let durable = self.sink.flushed();
        let status = StandbyStatus {
            written: self.sink.written(),
            // Else the server would take us for a synchronous standby.
            flushed: if self.rules.reports_flush { durable } else { Lsn::INVALID },
            applied: Lsn::INVALID,
            sent_at: i64::try_from(time.as_micros()).unwrap_or(i64::MAX),
            reply_requested,
        };
        let mut out = BytesMut::new();
        status.encode(&mut out).map_err(|error| Failure::Wal(error.to_string()))?;
        self.told = durable;
        self.stream.send(&out).map_err(|error| Failure::session("could not report the WAL position", error))
    }

    /// Reports a last time, asks the server to end the stream, and waits for that, but not for long. What it still sends
    /// is not needed.
    ///
    /// # Errors
    /// Where it ends in any other way: no reason to fail.
    pub fn end(&mut self, alarm: &Alarm) -> Result<(), Failure> {
        let lost = |error| Failure::session("could not end the WAL stream", error);
        self.stream.set_stall_limit(Some(END_PATIENCE)).map_err(lost)?;
        self.report(false)?;
        self.send_copy_done().map_err(lost)?;
        let deadline = Instant::now() + END_PATIENCE;
        loop {
            while let Some(event) = self.stream.next_event().map_err(lost)? {
                if matches!(event, CopyEvent::End) {
                    let too_late = || Instant::now() >= deadline;
                    return self.stream.reply(alarm, too_late).map(drop).map_err(lost);
                }
            }
            if Instant::now() >= deadline {
                return Err(lost(SessionError::Stalled { limit: END_PATIENCE }));
            }
            self.stream.wait(alarm, Some(deadline)).map_err(lost)?;
        }
    }

    /// Ends our side after the server has ended its own, and returns what it has to say: where the timeline has ended,
    /// which one follows.
    ///
    /// # Errors
    /// As [`BulkStream::ask`].
    pub fn answer_end(
        &mut self,
        alarm: &Alarm,
        gives_up: impl Fn() -> bool,
    ) -> Result<CompletedReply, SessionError> {
        self.send_copy_done()?;
        match self.stream.reply(alarm, gives_up)? {
            Reply::Done(completed) => Ok(completed),
            Reply::Copy { .. } => Err(SessionError::OutOfPlace("a copy follows the WAL stream")),
        }
    }

    fn send_copy_done(&mut self) -> Result<(), SessionError> {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.stream.send(&out)
    }
}

fn broke_off(error: SessionError) -> Failure {
    Failure::session("the WAL stream broke off", error)
}

/// The time.
pub(super) fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
