//! The messages inside the two-way copy of `START_REPLICATION` (`walsender.c`, `walreceiver.c`).
//!
//! `w` (1-byte tag, start, server end, time: 25 bytes, then WAL) and `k` (tag, server end, time, reply flag: 18
//! bytes) come from the server, `r` (34 bytes) goes to it. Positions are 64-bit, times are microseconds since
//! 2000-01-01 UTC, all big-endian. Invariant: WAL is contiguous; a gap or an overlap is an error, because a
//! segment written from it would be silently wrong.

use bytes::BytesMut;

use crate::lsn::Lsn;
use crate::wire::{EncodeError, frontend};

/// The bytes before the WAL in `w`.
const WAL_HEADER: usize = 25;
/// The bytes of `k`.
const KEEPALIVE: usize = 18;
/// The bytes of `r`.
const STANDBY_STATUS: usize = 34;

/// Something in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalEvent<'a> {
    /// A message with WAL begins.
    Begin {
        /// The position of its first byte of WAL.
        start: Lsn,
        /// The end of the WAL that the server has.
        server_end: Lsn,
        /// When it was sent, in microseconds since 2000-01-01 UTC by the server's clock.
        sent_at: i64,
    },
    /// WAL; never empty.
    Data {
        /// The position of the first byte.
        at: Lsn,
        /// The bytes, within the piece that was pushed.
        bytes: &'a [u8],
    },
    /// The server shows that it lives.
    Keepalive {
        /// The end of the WAL that the server has sent.
        server_end: Lsn,
        /// When it was sent, in microseconds since 2000-01-01 UTC by the server's clock.
        sent_at: i64,
        /// Whether it wants a [`StandbyStatus`] now, else it may end the session.
        reply_requested: bool,
    },
}

/// The events of one piece, at most two: iterate over them.
pub type WalEvents<'a> = std::iter::Flatten<std::array::IntoIter<Option<WalEvent<'a>>, 2>>;

/// A stream that is no WAL stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalStreamError {
    /// A message of another kind.
    #[error("WAL stream at {at}: found a message of type {found:#04x}, expected 'w' or 'k'")]
    UnknownType {
        /// The position that the stream had reached.
        at: Lsn,
        /// The type.
        found: u8,
    },
    /// A message that is too short or too long for its type.
    #[error("WAL stream at {at}: found a {kind} message of {found} bytes, expected {expected}")]
    BadLength {
        /// The position that the stream had reached.
        at: Lsn,
        /// What it is.
        kind: &'static str,
        /// Its bytes, counted up to the first one too many.
        found: usize,
        /// What they should be.
        expected: &'static str,
    },
    /// WAL that does not continue where the last one ended.
    #[error(
        "WAL stream: found WAL from {found}, expected it from {expected}\n\
         HINT: the received WAL ends before the gap; start streaming again from there."
    )]
    Gap {
        /// Where the message begins.
        found: Lsn,
        /// Where it should.
        expected: Lsn,
    },
    /// Pieces in an order that the frame decoder never gives.
    #[error("WAL stream at {at}: found {found}, expected {expected}")]
    BadPiece {
        /// The position that the stream had reached.
        at: Lsn,
        /// The piece.
        found: &'static str,
        /// What should have come.
        expected: &'static str,
    },
    /// WAL past the last position that there is.
    #[error("WAL stream at {at}: {more} more bytes pass the last possible position")]
    PastTheEnd {
        /// The position that the stream had reached.
        at: Lsn,
        /// The bytes that follow.
        more: usize,
    },
}

/// Decodes the server's messages from pieces of `CopyData`, however they were cut.
#[derive(Debug)]
pub struct WalStreamDecoder {
    state: State,
    /// The position of the next byte of WAL.
    next: Lsn,
}

#[derive(Debug)]
enum State {
    Between,
    /// `have` bytes of a header or a keepalive are here.
    Gathering {
        have: usize,
        header: [u8; WAL_HEADER],
    },
    InWal,
    Failed(WalStreamError),
}

impl WalStreamDecoder {
    /// A decoder for a stream that was asked for from `start`.
    #[must_use]
    pub fn new(start: Lsn) -> Self {
        Self { state: State::Between, next: start }
    }

    /// The position after the last byte of WAL that was given out.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.next
    }

    /// Takes a piece as [`crate::wire::Frame::CopyData`] gives it, and returns what it held.
    ///
    /// # Errors
    /// [`WalStreamError`], and the same again on every later call.
    #[inline]
    pub fn push<'a>(
        &mut self,
        chunk: &'a [u8],
        first: bool,
        last: bool,
    ) -> Result<WalEvents<'a>, WalStreamError> {
        match self.decode(chunk, first, last) {
            Ok(events) => Ok(events.into_iter().flatten()),
            Err(error) => {
                self.state = State::Failed(error.clone());
                Err(error)
            }
        }
    }

    fn decode<'a>(
        &mut self,
        chunk: &'a [u8],
        first: bool,
        last: bool,
    ) -> Result<[Option<WalEvent<'a>>; 2], WalStreamError> {
        let bad_piece = |at, found, expected| Err(WalStreamError::BadPiece { at, found, expected });
        let (mut have, mut header) = match self.state {
            State::Failed(ref error) => return Err(error.clone()),
            State::Between if first => (0, [0; WAL_HEADER]),
            State::Between => {
                return bad_piece(self.next, "the rest of a message", "the beginning of a message");
            }
            _ if first => {
                return bad_piece(self.next, "the beginning of a message", "the rest of a message");
            }
            State::Gathering { have, header } => (have, header),
            State::InWal => {
                let data = self.wal(chunk)?;
                if last {
                    self.state = State::Between;
                }
                return Ok([data, None]);
            }
        };

        // The type is known with the first byte, and with it how much is to be gathered.
        let kind = if have > 0 { Some(header[0]) } else { chunk.first().copied() };
        let (wanted, name, expected) = match kind {
            Some(b'w') => (WAL_HEADER, "WAL", "at least 25"),
            Some(b'k') => (KEEPALIVE, "keepalive", "18"),
            Some(found) => return Err(WalStreamError::UnknownType { at: self.next, found }),
            None => (1, "replication", "at least 1"),
        };
        let (taken, rest) = chunk.split_at((wanted - have).min(chunk.len()));
        header[have..have + taken.len()].copy_from_slice(taken);
        have += taken.len();
        let bad_length =
            |found| Err(WalStreamError::BadLength { at: self.next, kind: name, found, expected });
        if have < wanted || kind.is_none() {
            if last {
                return bad_length(have);
            }
            self.state = State::Gathering { have, header };
            return Ok([None, None]);
        }
        if kind == Some(b'k') {
            if !rest.is_empty() || !last {
                return bad_length(KEEPALIVE + 1);
            }
            self.state = State::Between;
            let keepalive = WalEvent::Keepalive {
                server_end: Lsn(be_u64(&header, 1)),
                sent_at: be_u64(&header, 9).cast_signed(),
                reply_requested: header[17] != 0,
            };
            return Ok([Some(keepalive), None]);
        }
        let start = Lsn(be_u64(&header, 1));
        if start != self.next {
            return Err(WalStreamError::Gap { found: start, expected: self.next });
        }
        let begin = WalEvent::Begin {
            start,
            server_end: Lsn(be_u64(&header, 9)),
            sent_at: be_u64(&header, 17).cast_signed(),
        };
        let data = self.wal(rest)?;
        self.state = if last { State::Between } else { State::InWal };
        Ok([Some(begin), data])
    }

    fn wal<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<WalEvent<'a>>, WalStreamError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let at = self.next;
        let past = || WalStreamError::PastTheEnd { at, more: bytes.len() };
        self.next = Lsn(at.0.checked_add(bytes.len() as u64).ok_or_else(past)?);
        Ok(Some(WalEvent::Data { at, bytes }))
    }
}

fn be_u64(header: &[u8; WAL_HEADER], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_be_bytes(bytes)
}

/// How far a receiver is, which lets the server remove WAL and see the receiver in `pg_stat_replication`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyStatus {
    /// The end of the WAL that is written.
    pub written: Lsn,
    /// The end of the WAL that is durable; a slot lets go of what lies before it.
    pub flushed: Lsn,
    /// The end of the WAL that is replayed, [`Lsn::INVALID`] for a receiver that replays none.
    pub applied: Lsn,
    /// The time of sending in microseconds since 2000-01-01 UTC.
    pub sent_at: i64,
    /// Whether the server shall answer with a keepalive at once.
    pub reply_requested: bool,
}

impl StandbyStatus {
    /// The body of the `CopyData` message.
    #[must_use]
    pub fn to_bytes(self) -> [u8; STANDBY_STATUS] {
        let mut body = [0; STANDBY_STATUS];
        body[0] = b'r';
        body[1..9].copy_from_slice(&self.written.0.to_be_bytes());
        body[9..17].copy_from_slice(&self.flushed.0.to_be_bytes());
        body[17..25].copy_from_slice(&self.applied.0.to_be_bytes());
        body[25..33].copy_from_slice(&self.sent_at.to_be_bytes());
        body[33] = u8::from(self.reply_requested);
        body
    }

    /// Appends the whole `CopyData` message.
    pub fn encode(self, out: &mut BytesMut) -> Result<(), EncodeError> {
        frontend::copy_data(&self.to_bytes(), out)
    }
}

#[cfg(test)]
mod tests;
