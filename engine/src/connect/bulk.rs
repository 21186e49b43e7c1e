//! The one big copy, received by blocking on a thread of its own.
//!
//! A backup's bytes come through one socket, and a thread that does nothing but receive and hand on needs no
//! runtime between itself and the kernel. The rest of the reply after the copy is read in the same way.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use pgstrata_protocol::wire::frontend;
use socket2::Socket;

use super::error::SessionError;
use super::exchange::{CopyEvent, Exchange, NoticeSink, Reply};
use super::socket::{CancelHandle, Wire};

/// The receive buffer.
const BUFFER: usize = 256 << 10;

/// Where a bulk stream's bytes come from.
pub trait BulkReceive: Send {
    /// Waits for bytes and stores them at the front of `into`; 0 is the end of the stream.
    ///
    /// # Errors
    /// Kind `WouldBlock` or `TimedOut` where nothing came within the source's time limit.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize>;
}

/// recv(2) on a blocking socket.
struct SocketReceiver(Socket);

impl BulkReceive for SocketReceiver {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// A session's connection from within a copy on, for a thread of its own.
pub struct BulkStream {
    receiver: Box<dyn BulkReceive>,
    exchange: Exchange,
    /// None where the bytes come from elsewhere than a server.
    socket: Option<(Arc<Wire>, Socket)>,
    stall: Option<Duration>,
}

impl BulkStream {
    pub(super) fn of_socket(wire: Arc<Wire>, exchange: Exchange) -> Result<Self, SessionError> {
        let receiver = wire.blocking_socket().map_err(SessionError::receiving)?;
        let sender = receiver.try_clone().map_err(SessionError::receiving)?;
        Ok(Self {
            receiver: Box::new(SocketReceiver(receiver)),
            exchange: exchange.with_buffer(BUFFER),
            socket: Some((wire, sender)),
            stall: None,
        })
    }

    /// A stream of recorded or invented bytes that begins with the reply to a command, as if that was just sent.
    /// [`Self::resume`] reads it up to its copy.
    #[must_use]
    pub fn from_receiver(receiver: Box<dyn BulkReceive>, notices: NoticeSink) -> Self {
        let mut exchange = Exchange::new(BUFFER, notices);
        exchange.begin();
        Self { receiver, exchange, socket: None, stall: None }
    }

    /// Fails with [`SessionError::Stalled`] where nothing arrives for `limit`; `None` waits forever.
    ///
    /// # Errors
    /// [`SessionError::Io`] where the socket refuses the limit, as it does one of zero.
    pub fn set_stall_limit(&mut self, limit: Option<Duration>) -> Result<(), SessionError> {
        if let Some((_, socket)) = &self.socket {
            socket.set_read_timeout(limit).map_err(SessionError::receiving)?;
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
        let result = self.receiver.receive(&mut self.exchange.buffer);
        if self.socket.as_ref().is_some_and(|(wire, _)| wire.is_cancelled()) {
            return Err(SessionError::Cancelled);
        }
        match result {
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
        self.socket.as_ref().map(|(wire, _)| CancelHandle { wire: Arc::clone(wire) })
    }

    /// Says goodbye and ends the connection.
    pub fn close(mut self) {
        if let Some((_, socket)) = &mut self.socket {
            let mut out = BytesMut::new();
            frontend::terminate(&mut out);
            // A server that is gone already needs no goodbye.
            let _ = socket.write_all(&out);
        }
    }
}

impl Drop for BulkStream {
    fn drop(&mut self) {
        // Handles may outlive the stream and hold the socket open; the server must not wait for them.
        if let Some((wire, _)) = &self.socket {
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
