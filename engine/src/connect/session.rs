//! A session with a server: commands, replies, copies.
//!
//! One task owns a session. Receiving may be given up at any await point and taken up again without losing
//! bytes; sending must be awaited to its end. Dropping a session ends its connection.

mod copy_in;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use pgstrata_protocol::ServerVersion;
use pgstrata_protocol::replication::ResultSet;
use pgstrata_protocol::wire::{SessionInfo, frontend};
use tokio::time::Instant;

pub use copy_in::CopyInError;

use super::bulk::BulkStream;
use super::error::{ConnectError, SessionError};
use super::exchange::{CopyEvent, Exchange, NoticeSink, Reply};
use super::login;
use super::settings::ConnectionSettings;
use super::socket::{CancelHandle, Wire};
use super::transport::Transport;

/// The receive buffer of a session: two WAL messages, which have up to 128 KiB each (`MAX_SEND_SIZE`, `walsender.c`).
pub(super) const BUFFER: usize = 256 << 10;

/// What a session is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Physical replication commands, no database.
    Replication,
    /// SQL in the settings' database.
    Sql,
}

/// An open session.
pub struct Session {
    transport: Transport,
    exchange: Exchange,
    info: SessionInfo,
    version: ServerVersion,
    stall: Option<Duration>,
}

impl Session {
    /// Connects and logs in, trying every address that the host name has.
    ///
    /// Must run within [`super::ControlRuntime::block_on`], or in any tokio runtime with I/O and time enabled,
    /// where the socket is driven by readiness.
    ///
    /// # Errors
    /// [`ConnectError::PasswordRequired`] where a password is needed and none is known; the others as they say.
    pub async fn connect(
        settings: &ConnectionSettings,
        purpose: Purpose,
        notices: NoticeSink,
    ) -> Result<Self, ConnectError> {
        login::open(settings, purpose, &notices).await
    }

    /// A session that the server has just let in.
    pub(super) fn new(
        transport: Transport,
        exchange: Exchange,
        info: SessionInfo,
        version: ServerVersion,
    ) -> Self {
        Self { transport, exchange, info, version, stall: None }
    }

    /// From now on replies fail with [`SessionError::Stalled`] where nothing of them arrives for `limit`; `None`, as
    /// at first, and zero wait forever.
    pub fn set_stall_limit(&mut self, limit: Option<Duration>) {
        self.stall = limit.filter(|limit| !limit.is_zero());
    }

    /// The server's version.
    #[must_use]
    pub fn server_version(&self) -> ServerVersion {
        self.version
    }

    /// A setting that the server reported while it let us in, such as `server_encoding`.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.info.parameter(name)
    }

    /// Runs a query or replication command that copies nothing, and returns its results.
    ///
    /// # Errors
    /// [`SessionError::Server`] where the server refuses; the session goes on. The others end it.
    pub async fn simple_query(&mut self, query: &str) -> Result<Vec<ResultSet>, SessionError> {
        match self.begin_copy(query).await? {
            Reply::Done(completed) => Ok(completed.results),
            Reply::Copy { .. } => Err(SessionError::OutOfPlace("the query began a copy")),
        }
    }

    /// Sends a command and returns its reply up to where `CopyData` begins, or all of it where none does.
    ///
    /// After [`Reply::Copy`] read the copy with [`Self::next_event`] and [`Self::receive`] (or
    /// [`Self::into_bulk`]), send to it with [`Self::send`], and go on with [`Self::resume`].
    ///
    /// # Errors
    /// As [`Self::simple_query`].
    pub async fn begin_copy(&mut self, command: &str) -> Result<Reply, SessionError> {
        self.begin(command).await?;
        self.resume().await
    }

    /// As [`Self::begin_copy`], for a command that the server works on before it replies: the stall limit holds only
    /// from the reply's first message on.
    ///
    /// # Errors
    /// As [`Self::simple_query`].
    pub async fn begin_slow_copy(&mut self, command: &str) -> Result<Reply, SessionError> {
        self.begin(command).await?;
        loop {
            if let Some(reply) = self.exchange.next_reply()? {
                return Ok(reply);
            }
            if self.exchange.reply_has_begun() {
                self.receive_in_time().await?;
            } else {
                self.receive().await?;
            }
        }
    }

    async fn begin(&mut self, command: &str) -> Result<(), SessionError> {
        self.exchange.check_idle()?;
        let mut out = BytesMut::new();
        frontend::query(command, &mut out)?;
        self.send(out).await?;
        self.exchange.begin();
        Ok(())
    }

    /// The rest of the reply after [`CopyEvent::End`] or after the client's `CopyDone`: up to the next copy
    /// (servers before 15 send one for each tablespace) or to its end.
    ///
    /// # Errors
    /// As [`Self::simple_query`].
    pub async fn resume(&mut self) -> Result<Reply, SessionError> {
        loop {
            if let Some(reply) = self.exchange.next_reply()? {
                return Ok(reply);
            }
            self.receive_in_time().await?;
        }
    }

    /// The next piece of a copy, from what is received; `None` where that is used up: [`Self::receive`] then.
    ///
    /// # Errors
    /// [`SessionError::Server`] where the server broke off, and as it says for the others.
    pub fn next_event(&mut self) -> Result<Option<CopyEvent<'_>>, SessionError> {
        self.exchange.next_event()
    }

    /// Waits for bytes and returns their count, at least 1. Call it only when [`Self::next_event`] returned `None`.
    ///
    /// May be dropped, as `select!` does, and called again: no byte is lost.
    ///
    /// # Errors
    /// [`SessionError::Closed`], [`SessionError::Cancelled`] or [`SessionError::Io`]: the session is over.
    pub async fn receive(&mut self) -> Result<usize, SessionError> {
        self.exchange.rewind()?;
        let result = self.transport.read(&mut self.exchange.buffer).await;
        match result {
            _ if self.transport.wire().is_cancelled() => Err(SessionError::Cancelled),
            Ok(received) => self.exchange.on_received(received),
            Err(error) => Err(SessionError::receiving(error)),
        }
    }

    /// As [`Self::receive`], but returns `None` when `deadline` passes first.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub async fn receive_until(&mut self, deadline: Instant) -> Result<Option<usize>, SessionError> {
        match tokio::time::timeout_at(deadline, self.receive()).await {
            Ok(result) => result.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// As [`Self::receive`], within the stall limit.
    async fn receive_in_time(&mut self) -> Result<usize, SessionError> {
        let Some(limit) = self.stall else { return self.receive().await };
        let received = self.receive_until(Instant::now() + limit).await?;
        received.ok_or(SessionError::Stalled { limit })
    }

    /// Watches a session that has no command under way: returns why it ended, once it does.
    ///
    /// May be dropped, as [`Self::receive`].
    pub async fn watch(&mut self) -> SessionError {
        loop {
            match self.exchange.check_quiet() {
                Err(error) => return error,
                Ok(()) => {
                    if let Err(error) = self.receive().await {
                        return error;
                    }
                }
            }
        }
    }

    /// Sends messages, encoded by [`frontend`]. Await it to its end: a send dropped half-way ends the session.
    ///
    /// # Errors
    /// [`SessionError::Io`] or [`SessionError::Cancelled`]: the session is over. What the server said before
    /// it closed may still be there to be received.
    pub async fn send(&mut self, bytes: BytesMut) -> Result<(), SessionError> {
        match self.transport.write(bytes).await {
            Ok(()) => Ok(()),
            Err(_) if self.transport.wire().is_cancelled() => Err(SessionError::Cancelled),
            Err(error) => Err(SessionError::sending(error)),
        }
    }

    /// Says goodbye and ends the connection.
    pub async fn close(mut self) {
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        // A server that is gone already needs no goodbye.
        let _ = self.send(out).await;
    }

    /// A handle that ends the connection from any thread.
    #[must_use]
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle { wire: Arc::clone(self.wire()) }
    }

    /// Gives the socket up to a thread that reads it by blocking, for the one big copy.
    ///
    /// # Errors
    /// [`SessionError::OutOfPlace`] where a receive was given up and not taken up again, and
    /// [`SessionError::Io`] where the operating system has no descriptor left: the session is over.
    pub fn into_bulk(self) -> Result<BulkStream, SessionError> {
        let (wire, tls) = self
            .transport
            .release()
            .map_err(|_| SessionError::OutOfPlace("a read or a write of the session is not finished"))?;
        BulkStream::of_socket(wire, tls, self.exchange)
    }

    fn wire(&self) -> &Arc<Wire> {
        self.transport.wire()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("version", &self.version)
            .field("exchange", &self.exchange)
            .finish_non_exhaustive()
    }
}
