//! One conversation: received bytes on their way through frames to the reply of the present command.
//!
//! Knows no socket: [`super::Session`] fills the buffer asynchronously, [`super::BulkStream`] by blocking, and
//! both walk the same bytes. Invariant: `buffer[at..filled]` is received and not yet decoded.

use std::fmt;
use std::sync::Arc;

use pgstrata_protocol::replication::{CompletedReply, QueryReply, ReplyStep, ResultSet};
use pgstrata_protocol::wire::{BackendMessage, Frame, FrameDecoder, ServerError};

use super::error::SessionError;

/// Told of every notice and warning that the server sends.
pub type NoticeSink = Arc<dyn Fn(&ServerError) + Send + Sync>;

/// Which way `CopyData` flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyDirection {
    /// From the server.
    Out,
    /// To the server.
    In,
    /// Both ways.
    Both,
}

/// A reply, up to where `CopyData` begins or to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// `CopyData` comes next.
    Copy {
        /// Which way.
        direction: CopyDirection,
        /// The results before it, less those returned before.
        results: Vec<ResultSet>,
    },
    /// The command is complete.
    Done(CompletedReply),
}

/// A piece of a copy from the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyEvent<'a> {
    /// Bytes of a `CopyData` message, which may come in several pieces.
    Data {
        /// The bytes, in the receive buffer.
        chunk: &'a [u8],
        /// Whether a message begins here.
        first: bool,
        /// Whether the message ends here.
        last: bool,
    },
    /// The server's side of the copy ended. The reply goes on after it.
    End,
}

pub(super) struct Exchange {
    decoder: FrameDecoder,
    pub(super) buffer: Vec<u8>,
    at: usize,
    filled: usize,
    /// Of the command that was sent last, until its end.
    reply: Option<QueryReply>,
    notices: NoticeSink,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("decoder", &self.decoder)
            .field("undecoded", &(self.filled - self.at))
            .finish_non_exhaustive()
    }
}

impl Exchange {
    pub(super) fn new(buffer_bytes: usize, notices: NoticeSink) -> Self {
        Self {
            decoder: FrameDecoder::new(),
            buffer: vec![0; buffer_bytes],
            at: 0,
            filled: 0,
            reply: None,
            notices,
        }
    }

    /// The same conversation with a buffer of at least `bytes`.
    pub(super) fn with_buffer(mut self, bytes: usize) -> Self {
        let rest = &self.buffer[self.at..self.filled];
        let mut buffer = vec![0; bytes.max(rest.len())];
        buffer[..rest.len()].copy_from_slice(rest);
        (self.at, self.filled, self.buffer) = (0, rest.len(), buffer);
        self
    }

    /// Makes the buffer ready to be filled, or even taken away to be filled.
    ///
    /// # Errors
    /// [`SessionError::OutOfPlace`] where received bytes are not decoded yet.
    pub(super) fn rewind(&mut self) -> Result<(), SessionError> {
        if self.at != self.filled {
            return Err(SessionError::OutOfPlace("received bytes are waiting to be read"));
        }
        (self.at, self.filled) = (0, 0);
        Ok(())
    }

    /// Takes note that `received` bytes now stand at the front of the buffer.
    ///
    /// # Errors
    /// [`SessionError::Closed`] where that is none: the connection ended.
    pub(super) fn on_received(&mut self, received: usize) -> Result<usize, SessionError> {
        (self.at, self.filled) = (0, received);
        if received == 0 {
            Err(SessionError::Closed { position: self.decoder.position() })
        } else {
            Ok(received)
        }
    }

    pub(super) fn notice(&self, notice: &ServerError) {
        (self.notices)(notice);
    }

    /// The next message, for the handshake.
    pub(super) fn next_message(&mut self) -> Result<Option<BackendMessage>, SessionError> {
        let mut rest = &self.buffer[self.at..self.filled];
        let frame = self.decoder.next(&mut rest)?;
        self.at = self.filled - rest.len();
        match frame {
            None => Ok(None),
            Some(Frame::Message(message)) => Ok(Some(message)),
            Some(Frame::CopyData { .. }) => Err(SessionError::OutOfPlace("CopyData before any query")),
        }
    }

    /// Whether a command may be sent now.
    ///
    /// # Errors
    /// [`SessionError::OutOfPlace`] where the reply to the last one is not read to its end.
    pub(super) fn check_idle(&self) -> Result<(), SessionError> {
        match self.reply {
            None => Ok(()),
            Some(_) => Err(SessionError::OutOfPlace("the reply to the last command is not read to its end")),
        }
    }

    /// Whether the server has begun to reply to the command that was sent last, or is within a message.
    pub(super) fn reply_has_begun(&self) -> bool {
        !self.decoder.is_between_messages() || self.reply.as_ref().is_some_and(QueryReply::has_begun)
    }

    /// Walks what a server may say unasked: notices, changed settings, and why it ends the session.
    ///
    /// # Errors
    /// [`SessionError::Server`] for the last of these, and as they say for what has no place here.
    pub(super) fn check_quiet(&mut self) -> Result<(), SessionError> {
        self.check_idle()?;
        while let Some(message) = self.next_message()? {
            match message {
                BackendMessage::NoticeResponse(notice) => self.notice(&notice),
                BackendMessage::ParameterStatus { .. } | BackendMessage::NotificationResponse { .. } => {}
                BackendMessage::ErrorResponse(error) => {
                    return Err(SessionError::Server { error: Box::new(error), results: Vec::new() });
                }
                _ => return Err(SessionError::OutOfPlace("a reply without a command")),
            }
        }
        Ok(())
    }

    /// A command was sent: what comes next is its reply.
    pub(super) fn begin(&mut self) {
        self.reply = Some(QueryReply::new());
    }

    /// Walks what is received until the reply comes to a copy or to its end; `None` asks for more bytes.
    pub(super) fn next_reply(&mut self) -> Result<Option<Reply>, SessionError> {
        let mut rest = &self.buffer[self.at..self.filled];
        loop {
            let frame = self.decoder.next(&mut rest)?;
            self.at = self.filled - rest.len();
            let message = match frame {
                None => return Ok(None),
                Some(Frame::Message(message)) => message,
                Some(Frame::CopyData { .. }) => {
                    return Err(SessionError::OutOfPlace("CopyData that nobody reads"));
                }
            };
            let direction = match step(&mut self.reply, message)? {
                ReplyStep::Continue => continue,
                ReplyStep::Notice(notice) => {
                    (self.notices)(&notice);
                    continue;
                }
                ReplyStep::CopyOut => CopyDirection::Out,
                ReplyStep::CopyIn => CopyDirection::In,
                ReplyStep::CopyBoth => CopyDirection::Both,
                ReplyStep::CopyDone => return Err(SessionError::OutOfPlace("CopyDone that nobody reads")),
                ReplyStep::Done(completed) => return Ok(Some(Reply::Done(completed))),
            };
            let results = self.reply.as_mut().map(QueryReply::take_results).unwrap_or_default();
            return Ok(Some(Reply::Copy { direction, results }));
        }
    }

    /// The next piece of a copy from the server; `None` asks for more bytes.
    #[inline]
    pub(super) fn next_event(&mut self) -> Result<Option<CopyEvent<'_>>, SessionError> {
        let mut rest = &self.buffer[self.at..self.filled];
        loop {
            let frame = self.decoder.next(&mut rest)?;
            self.at = self.filled - rest.len();
            match frame {
                None => return Ok(None),
                Some(Frame::CopyData { chunk, first, last }) => {
                    self.reply.as_ref().ok_or(NO_COMMAND)?.on_copy_data()?;
                    return Ok(Some(CopyEvent::Data { chunk, first, last }));
                }
                Some(Frame::Message(message)) => match step(&mut self.reply, message)? {
                    ReplyStep::Continue => {}
                    ReplyStep::Notice(notice) => (self.notices)(&notice),
                    ReplyStep::CopyDone => return Ok(Some(CopyEvent::End)),
                    ReplyStep::CopyOut | ReplyStep::CopyIn | ReplyStep::CopyBoth | ReplyStep::Done(_) => {
                        return Err(SessionError::OutOfPlace(
                            "the reply went on without the end of the copy",
                        ));
                    }
                },
            }
        }
    }
}

const NO_COMMAND: SessionError = SessionError::OutOfPlace("no command was sent");

/// Feeds a message and forgets a reply that is at its end. A failure carries what was complete before it.
fn step(slot: &mut Option<QueryReply>, message: BackendMessage) -> Result<ReplyStep, SessionError> {
    let reply = slot.as_mut().ok_or(NO_COMMAND)?;
    let step = reply.on_message(message);
    let step = step.map_err(|error| SessionError::reply(error, reply.take_results()));
    let is_over = match &step {
        Ok(step) => matches!(step, ReplyStep::Done(_)),
        // The server's own error comes at the reply's end; any other ends the session.
        Err(error) => error.server_error().is_some(),
    };
    if is_over {
        *slot = None;
    }
    step
}
