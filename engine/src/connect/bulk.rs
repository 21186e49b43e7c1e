//! The one big copy, received by blocking on a thread of its own.
//!
//! A backup's bytes come through one socket, and a thread that does nothing but receive and hand on needs no
//! runtime between itself and the kernel. The rest of the reply after the copy is read in the same way. Over TLS that
//! thread decrypts, from a batch of the wire into the receive buffer.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use pgstrata_protocol::wire::frontend;

use super::bulk_socket::{BATCH, SocketReceiver};
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

/// A session's connection from within a copy on, for a thread of its own.
pub struct BulkStream {
    source: Source,
    exchange: Exchange,
    stall: Option<Duration>,
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
        Ok(Self { source, exchange: exchange.with_buffer(BUFFER), stall: None })
    }

    /// A stream of recorded or invented bytes that begins with the reply to a command, as if that was just sent.
    /// [`Self::resume`] reads it up to its copy.
    #[must_use]
    pub fn from_receiver(receiver: Box<dyn BulkReceive>, notices: NoticeSink) -> Self {
        let mut exchange = Exchange::new(BUFFER, notices);
        exchange.begin();
        Self { source: Source::Other(receiver), exchange, stall: None }
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
                receive_secure(receiver, tls, &mut self.exchange.buffer)
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
            let _ = out.and_then(|out| receiver.send_all(&out));
        }
    }

    fn wire(&self) -> Option<&Arc<Wire>> {
        match &self.source {
            Source::Socket { wire, .. } => Some(wire),
            Source::Other(_) => None,
        }
    }
}

/// Waits until something of the conversation is received, and decrypts all that is there of it.
fn receive_secure(
    receiver: &mut SocketReceiver,
    stream: &mut TlsStream,
    into: &mut [u8],
) -> io::Result<usize> {
    loop {
        let decrypted = stream.decrypt(into)?;
        if decrypted > 0 || stream.tls.is_closed() {
            return Ok(decrypted);
        }
        (stream.at, stream.filled) = (0, 0);
        stream.filled = receiver.receive(&mut stream.wire)?;
        if stream.filled == 0 {
            return Ok(0);
        }
    }
}

impl Drop for BulkStream {
    fn drop(&mut self) {
        // Handles may outlive the stream and hold the socket open; the server must not wait for them.
        if let Some(wire) = self.wire() {
            wire.shut_down();
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
