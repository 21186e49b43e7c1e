//! The one big copy, received by blocking on a thread of its own.
//!
//! A backup's bytes come through one socket, and a thread that does nothing but receive and hand on needs no
//! runtime between itself and the kernel. The rest of the reply after the copy is read in the same way. Over TLS that
//! thread decrypts, from a batch of the wire into the receive buffer.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pgstrata_protocol::wire::frontend;

use super::alarm::Alarm;
use super::bulk_socket::{BATCH, SocketReceiver, Waited};
use super::error::SessionError;
use super::exchange::{CopyEvent, Exchange, NoticeSink, Reply};
use super::socket::{CancelHandle, Wire};
use super::tls::TlsStream;

/// The receive buffer: room for one batch while the next one gathers.
const BUFFER: usize = 2 * BATCH;

/// Where a bulk stream's bytes come from.
pub trait BulkReceive: Send {
    /// Waits for bytes and stores them at the front of `into`; 0 is the end of the stream.
    ///
    /// # Errors
    /// Kind `WouldBlock` or `TimedOut` where nothing came within the source's time limit.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize>;
}

/// What ended a [`BulkStream::wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Bytes have come: [`BulkStream::next_event`] has them.
    Bytes,
    /// The alarm rang.
    Alarm,
    /// Nothing, until the deadline.
    Nothing,
}

/// A session's connection from within a copy on, for a thread of its own.
pub struct BulkStream {
    source: Source,
    exchange: Exchange,
    stall: Option<Duration>,
    /// Whether the server was told that this is the end.
    said_goodbye: bool,
}

enum Source {
    Socket { receiver: SocketReceiver, tls: Option<Box<TlsStream>>, wire: Arc<Wire> },
    Other(Box<dyn BulkReceive>),
}

impl BulkStream {
    pub(super) fn of_socket(
        wire: Arc<Wire>,
        tls: Option<Box<TlsStream>>,
        exchange: Exchange,
    ) -> Result<Self, SessionError> {
        let socket = wire.blocking_socket().map_err(SessionError::receiving)?;
        let receiver = SocketReceiver::new(socket).map_err(SessionError::receiving)?;
        let tls = tls.map(|mut stream| {
            stream.enlarge(BUFFER);
            stream
        });
        let source = Source::Socket { receiver, tls, wire };
        Ok(Self { source, exchange: exchange.with_buffer(BUFFER), stall: None, said_goodbye: false })
    }

    /// A stream of recorded or invented bytes that begins with the reply to a command, as if that was just sent.
    /// [`Self::resume`] reads it up to its copy.
    #[must_use]
    pub fn from_receiver(receiver: Box<dyn BulkReceive>, notices: NoticeSink) -> Self {
        let mut exchange = Exchange::new(BUFFER, notices);
        exchange.begin();
        Self { source: Source::Other(receiver), exchange, stall: None, said_goodbye: false }
    }

    /// Fails with [`SessionError::Stalled`] where nothing arrives for `limit`; `None`, as at first, and zero wait
    /// forever.
    ///
    /// # Errors
    /// [`SessionError::Io`] where the socket refuses the limit.
    pub fn set_stall_limit(&mut self, limit: Option<Duration>) -> Result<(), SessionError> {
        let limit = limit.filter(|limit| !limit.is_zero());
        if let Source::Socket { receiver, .. } = &mut self.source {
            receiver.set_limit(limit).map_err(SessionError::receiving)?;
            receiver.set_send_limit(limit).map_err(SessionError::sending)?;
        }
        self.stall = limit;
        Ok(())
    }

    /// Waits for bytes and returns their count, at least 1. Call it only when [`Self::next_event`] returned `None`.
    ///
    /// # Errors
    /// [`SessionError::Closed`], [`SessionError::Cancelled`], [`SessionError::Stalled`] or [`SessionError::Io`].
    pub fn receive(&mut self) -> Result<usize, SessionError> {
        self.exchange.rewind()?;
        let result = match &mut self.source {
            Source::Socket { receiver, tls: None, .. } => receiver.receive(&mut self.exchange.buffer),
            Source::Socket { receiver, tls: Some(tls), .. } => {
                let receive = |wire: &mut [u8]| receiver.receive(wire).map(Waited::Bytes);
                receive_secure(tls, &mut self.exchange.buffer, receive).map(|waited| match waited {
                    Waited::Bytes(received) => received,
                    Waited::Alarm | Waited::Time => unreachable!("a plain receive waits for bytes alone"),
                })
            }
            Source::Other(receiver) => receiver.receive(&mut self.exchange.buffer),
        };
        match result {
            _ if self.wire().is_some_and(|wire| wire.is_cancelled()) => Err(SessionError::Cancelled),
            Ok(received) => self.exchange.on_received(received),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                // A dead peer's ETIMEDOUT, from keepalive or tcp_user_timeout, is the socket's own failure.
                match self.stall {
                    Some(limit) if error.raw_os_error() != Some(libc::ETIMEDOUT) => {
                        Err(SessionError::Stalled { limit })
                    }
                    _ => Err(SessionError::receiving(error)),
                }
            }
            Err(error) => Err(SessionError::receiving(error)),
        }
    }

    /// As [`Self::receive`], but no longer than until `alarm` rings or `deadline` passes; the stall limit counts for
    /// nothing here.
    ///
    /// # Errors
    /// As [`Self::receive`], but for [`SessionError::Stalled`].
    pub fn wait(&mut self, alarm: &Alarm, deadline: Option<Instant>) -> Result<Heard, SessionError> {
        self.exchange.rewind()?;
        let result = match &mut self.source {
            Source::Socket { receiver, tls: None, .. } => {
                receiver.wait(&mut self.exchange.buffer, alarm, deadline)
            }
            Source::Socket { receiver, tls: Some(tls), .. } => {
                receive_secure(tls, &mut self.exchange.buffer, |wire| receiver.wait(wire, alarm, deadline))
            }
            Source::Other(receiver) => receiver.receive(&mut self.exchange.buffer).map(Waited::Bytes),
        };
        match result {
            _ if self.wire().is_some_and(|wire| wire.is_cancelled()) => Err(SessionError::Cancelled),
            Ok(Waited::Bytes(received)) => self.exchange.on_received(received).map(|_| Heard::Bytes),
            Ok(Waited::Alarm) => Ok(Heard::Alarm),
            Ok(Waited::Time) => Ok(Heard::Nothing),
            Err(error) => Err(SessionError::receiving(error)),
        }
    }

    /// Sends messages, encoded by [`frontend`].
    ///
    /// # Errors
    /// [`SessionError::Io`], [`SessionError::Cancelled`], or [`SessionError::Stalled`] where the server takes nothing:
    /// the session is over.
    pub fn send(&mut self, out: &[u8]) -> Result<(), SessionError> {
        let Source::Socket { receiver, tls, wire } = &mut self.source else {
            return Err(SessionError::OutOfPlace("nobody listens to what is recorded"));
        };
        let sent = match tls {
            None => receiver.send_all(out),
            Some(stream) => stream.tls.encrypt(out).and_then(|out| receiver.send_all(&out)),
        };
        sent.map_err(|error| match (error.kind(), self.stall) {
            _ if wire.is_cancelled() => SessionError::Cancelled,
            (io::ErrorKind::WouldBlock, Some(limit)) => SessionError::Stalled { limit },
            _ => SessionError::sending(error),
        })
    }

    /// Sends a command and returns its reply up to where `CopyData` begins, or all of it where none does.
    /// `gives_up` is asked before each wait, and `alarm` ends a wait.
    ///
    /// # Errors
    /// As [`super::Session::simple_query`]; [`SessionError::Cancelled`] where it was given up, which ends the session.
    pub fn ask(
        &mut self,
        command: &str,
        alarm: &Alarm,
        gives_up: impl Fn() -> bool,
    ) -> Result<Reply, SessionError> {
        self.exchange.check_idle()?;
        let mut out = BytesMut::new();
        frontend::query(command, &mut out)?;
        self.send(&out)?;
        self.exchange.begin();
        self.reply(alarm, gives_up)
    }

    /// As [`Self::resume`], but given up where `gives_up` says so.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn reply(&mut self, alarm: &Alarm, gives_up: impl Fn() -> bool) -> Result<Reply, SessionError> {
        loop {
            if let Some(reply) = self.exchange.next_reply()? {
                return Ok(reply);
            }
            let deadline = self.stall.map(|limit| (limit, Instant::now() + limit));
            loop {
                if gives_up() {
                    return Err(SessionError::Cancelled);
                }
                match self.wait(alarm, deadline.map(|(_, deadline)| deadline))? {
                    Heard::Bytes => break,
                    Heard::Alarm => {}
                    Heard::Nothing => {
                        let limit = deadline.map(|(limit, _)| limit).unwrap_or_default();
                        return Err(SessionError::Stalled { limit });
                    }
                }
            }
        }
    }

    /// Receives piece by piece from now on, where batches would make somebody wait for the last piece.
    ///
    /// # Errors
    /// [`SessionError::Io`] where the socket refuses.
    pub fn never_batch(&mut self) -> Result<(), SessionError> {
        match &mut self.source {
            Source::Socket { receiver, .. } => receiver.never_batch().map_err(SessionError::receiving),
            Source::Other(_) => Ok(()),
        }
    }

    /// The next piece of the copy, from what is received; `None` where that is used up: [`Self::receive`] then.
    ///
    /// # Errors
    /// As [`super::Session::next_event`].
    #[inline]
    pub fn next_event(&mut self) -> Result<Option<CopyEvent<'_>>, SessionError> {
        self.exchange.next_event()
    }

    /// The rest of the reply after [`CopyEvent::End`]: up to the next copy or to its end.
    ///
    /// # Errors
    /// As [`super::Session::resume`].
    pub fn resume(&mut self) -> Result<Reply, SessionError> {
        loop {
            if let Some(reply) = self.exchange.next_reply()? {
                return Ok(reply);
            }
            self.receive()?;
        }
    }

    /// A handle that ends the connection from any thread; `None` for a stream that is no connection.
    #[must_use]
    pub fn cancel_handle(&self) -> Option<CancelHandle> {
        self.wire().map(|wire| CancelHandle { wire: Arc::clone(wire) })
    }

    /// Says goodbye and ends the connection.
    pub fn close(mut self) {
        if let Source::Socket { receiver, tls, .. } = &mut self.source {
            let mut out = BytesMut::new();
            frontend::terminate(&mut out);
            let out = match tls {
                None => Ok(Vec::from(out)),
                Some(stream) => stream.tls.encrypt(&out),
            };
            // A server that is gone already needs no goodbye.
            self.said_goodbye = out.and_then(|out| receiver.send_all(&out)).is_ok();
        }
    }

    fn wire(&self) -> Option<&Arc<Wire>> {
        match &self.source {
            Source::Socket { wire, .. } => Some(wire),
            Source::Other(_) => None,
        }
    }
}

/// Receives until something of the conversation is there, or the wait ends otherwise, and decrypts all that is there.
fn receive_secure(
    stream: &mut TlsStream,
    into: &mut [u8],
    mut receive: impl FnMut(&mut [u8]) -> io::Result<Waited>,
) -> io::Result<Waited> {
    loop {
        let decrypted = stream.decrypt(into)?;
        if decrypted > 0 || stream.tls.is_closed() {
            return Ok(Waited::Bytes(decrypted));
        }
        (stream.at, stream.filled) = (0, 0);
        match receive(&mut stream.wire)? {
            Waited::Bytes(0) => return Ok(Waited::Bytes(0)),
            Waited::Bytes(received) => stream.filled = received,
            ended => return Ok(ended),
        }
    }
}

impl Drop for BulkStream {
    fn drop(&mut self) {
        // Handles may outlive the stream and hold the socket open; the server must not wait for them.
        match self.wire() {
            Some(wire) if self.said_goodbye => wire.shut_down(),
            Some(wire) => wire.abandon(),
            None => {}
        }
    }
}

impl fmt::Debug for BulkStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BulkStream")
            .field("exchange", &self.exchange)
            .field("stall", &self.stall)
            .finish_non_exhaustive()
    }
}
