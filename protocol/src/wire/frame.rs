//! Cuts a received byte stream into frames, whatever the chunking.
//!
//! `CopyData` bodies, nearly all of a backup's bytes, come out as slices of the input: no copy, no allocation.
//! Every other message is gathered in a buffer that grows only with bytes that have arrived and never past a
//! limit. Invariant: `position` counts every byte consumed. After an error the decoder repeats that error.

use std::num::NonZeroUsize;

use bytes::BytesMut;

use super::message::BackendMessage;

/// The longest message, its length word included, of the kinds that carry rows or texts. A decoder may be
/// given another with [`FrameDecoder::with_message_limit`].
pub const DEFAULT_MESSAGE_LIMIT: usize = 1 << 20;

/// The longest message of the kinds that are always short: libpq drops a connection at the same bound
/// (`fe-protocol3.c`, `VALID_LONG_MESSAGE_TYPE`).
pub const SHORT_MESSAGE_LIMIT: usize = 30_000;

/// A tag and a length word.
const HEADER: usize = 5;

/// The longest text of an error that a postmaster sends without framing, as it can when fork() fails
/// (`postmaster.c`, `report_fork_failure_to_client`).
const UNFRAMED_LIMIT: usize = 1000;

/// A piece of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A piece of a `CopyData` body. Empty only for an empty body, which comes as one piece, first and last.
    CopyData {
        /// The bytes, within the input.
        chunk: &'a [u8],
        /// Whether a body begins here.
        first: bool,
        /// Whether the body ends here.
        last: bool,
    },
    /// Any other message, whole.
    Message(BackendMessage),
}

/// Bytes that are no PostgreSQL protocol. Positions count from the first byte that the decoder was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A tag that no server sends to a client of the simple query and replication protocols.
    #[error(
        "byte {position} of the server's stream: unknown message tag '{}' ({tag:#04x})\n\
         HINT: check that host and port belong to a PostgreSQL server and that nothing between alters the stream.",
        tag.escape_ascii()
    )]
    UnknownTag {
        /// The tag.
        tag: u8,
        /// Where the tag is.
        position: u64,
    },
    /// A length that cannot be true, or that is past the limit.
    #[error(
        "byte {position} of the server's stream: message '{}' states {found} bytes, expected {least} to {most}\n\
         HINT: check that host and port belong to a PostgreSQL server and that nothing between alters the stream.",
        tag.escape_ascii()
    )]
    BadLength {
        /// The message's tag.
        tag: u8,
        /// Where the tag is.
        position: u64,
        /// The length word.
        found: i32,
        /// The least it may be.
        least: usize,
        /// The most it may be.
        most: usize,
    },
    /// A body that does not hold what its tag promises.
    #[error("byte {position} of the server's stream: malformed '{}' message: {problem}", tag.escape_ascii())]
    Malformed {
        /// The message's tag.
        tag: u8,
        /// Where the tag is.
        position: u64,
        /// Expected and found.
        problem: String,
    },
    /// The server refused the connection before it could speak the protocol.
    #[error(
        "the server refused the connection: {text}\nHINT: a PostgreSQL server says this when it is out of processes or memory; see its log."
    )]
    Unframed {
        /// What it said.
        text: String,
    },
}

/// Cuts a stream into [`Frame`]s. One decoder serves one connection from its first byte on.
#[derive(Debug)]
pub struct FrameDecoder {
    state: State,
    /// Bytes consumed before the current input.
    position: u64,
    message_limit: usize,
    /// The message being gathered, header included; empty between messages.
    gathered: BytesMut,
}

#[derive(Debug)]
enum State {
    /// Fewer than five bytes of the next header are gathered.
    Header,
    /// Inside a `CopyData` body.
    CopyData { left: NonZeroUsize, first: bool },
    /// Inside any other message, which has `total` bytes with its header and began at `start`.
    Message { tag: u8, start: u64, total: usize },
    /// Inside an error without framing.
    Unframed,
    /// Nothing can follow.
    Failed(Box<WireError>),
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// A decoder for a new connection, with [`DEFAULT_MESSAGE_LIMIT`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_message_limit(DEFAULT_MESSAGE_LIMIT)
    }

    /// A decoder that takes rows and texts of up to `limit` bytes, at least [`SHORT_MESSAGE_LIMIT`].
    #[must_use]
    pub fn with_message_limit(limit: usize) -> Self {
        Self {
            state: State::Header,
            position: 0,
            message_limit: limit.clamp(SHORT_MESSAGE_LIMIT, i32::MAX as usize),
            gathered: BytesMut::new(),
        }
    }

    /// Bytes consumed so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether the stream stands between two messages. A connection that closes elsewhere was cut.
    #[must_use]
    pub fn is_between_messages(&self) -> bool {
        matches!(self.state, State::Header) && self.gathered.is_empty()
    }

    /// Takes the next frame off the front of `input`. `Ok(None)` means that `input` is used up.
    ///
    /// # Errors
    /// [`WireError`] where the bytes are no PostgreSQL protocol, and the same again on every later call.
    #[inline]
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Frame<'a>>, WireError> {
        loop {
            match self.state {
                State::CopyData { left, first } => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    return Ok(Some(self.copy_chunk(input, left, first)));
                }
                State::Header => {
                    if self.gathered.is_empty()
                        && let Some((header, rest)) = input.split_first_chunk::<HEADER>()
                        && header[0] == b'd'
                    {
                        *input = rest;
                        if let Some(empty) = self.begin(*header)? {
                            return Ok(Some(empty));
                        }
                    } else if let Some(frame) = self.gather_header(input)? {
                        return Ok(Some(frame));
                    } else if input.is_empty() && matches!(self.state, State::Header) {
                        return Ok(None);
                    }
                }
                State::Message { tag, start, total } => {
                    return match self.gather_message(input, tag, start, total)? {
                        Some(message) => Ok(Some(Frame::Message(message))),
                        None => Ok(None),
                    };
                }
                State::Unframed => return self.gather_unframed(input).map(|()| None),
                State::Failed(ref error) => return Err(error.as_ref().clone()),
            }
        }
    }

    #[inline]
    fn copy_chunk<'a>(&mut self, input: &mut &'a [u8], left: NonZeroUsize, first: bool) -> Frame<'a> {
        let (chunk, rest) = input.split_at(left.get().min(input.len()));
        *input = rest;
        self.position += chunk.len() as u64;
        self.state = match NonZeroUsize::new(left.get() - chunk.len()) {
            Some(left) => State::CopyData { left, first: false },
            None => State::Header,
        };
        Frame::CopyData { chunk, first, last: matches!(self.state, State::Header) }
    }

    /// Reads a header whose five bytes are just taken off the input, and returns an empty `CopyData` body at once.
    #[inline]
    fn begin<'a>(&mut self, header: [u8; HEADER]) -> Result<Option<Frame<'a>>, WireError> {
        let [tag, length @ ..] = header;
        let found = i32::from_be_bytes(length);
        let start = self.position;
        self.position += HEADER as u64;
        if tag == b'd' && found >= 4 {
            self.gathered.clear();
            let body = usize::try_from(found - 4).unwrap_or_default();
            return Ok(match NonZeroUsize::new(body) {
                Some(left) => {
                    self.state = State::CopyData { left, first: true };
                    None
                }
                None => {
                    self.state = State::Header;
                    Some(Frame::CopyData { chunk: &[], first: true, last: true })
                }
            });
        }
        self.begin_message(tag, start, found).map(|()| None)
    }

    fn begin_message(&mut self, tag: u8, start: u64, found: i32) -> Result<(), WireError> {
        let most = match tag {
            b'd' => i32::MAX as usize,
            b'T' | b'D' | b'E' | b'N' | b'A' => self.message_limit,
            b'R' | b'S' | b'K' | b'Z' | b'C' | b'I' | b'G' | b'H' | b'W' | b'c' | b'v' => SHORT_MESSAGE_LIMIT,
            _ => return self.fail(WireError::UnknownTag { tag, position: start }),
        };
        match usize::try_from(found) {
            Ok(length) if (4..=most).contains(&length) => {
                self.state = State::Message { tag, start, total: length + 1 };
                Ok(())
            }
            // Four letters read as a length: the text of an error in the manner of protocol 2.
            _ if tag == b'E' && start == 0 && found >= 4 => {
                self.state = State::Unframed;
                Ok(())
            }
            _ => self.fail(WireError::BadLength { tag, position: start, found, least: 4, most }),
        }
    }

    /// Gathers a header that is no `CopyData` or that the chunking has cut.
    #[cold]
    fn gather_header<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Frame<'a>>, WireError> {
        self.gather(input, HEADER);
        match <[u8; HEADER]>::try_from(&self.gathered[..]) {
            Ok(header) => {
                // `begin` counts these five bytes, whose front may have been counted with an earlier input.
                self.position -= HEADER as u64;
                self.begin(header)
            }
            Err(_) => Ok(None),
        }
    }

    fn gather_message(
        &mut self,
        input: &mut &[u8],
        tag: u8,
        start: u64,
        total: usize,
    ) -> Result<Option<BackendMessage>, WireError> {
        self.gather(input, total);
        if self.gathered.len() < total {
            return Ok(None);
        }
        self.state = State::Header;
        match BackendMessage::decode(tag, self.gathered.split()) {
            Ok(message) => Ok(Some(message)),
            Err(problem) => self.fail(WireError::Malformed { tag, position: start, problem }),
        }
    }

    fn gather_unframed(&mut self, input: &mut &[u8]) -> Result<(), WireError> {
        while let Some((byte, rest)) = input.split_first() {
            *input = rest;
            self.position += 1;
            let ended = *byte == 0 || *byte == b'\n';
            if !ended {
                self.gathered.extend_from_slice(&[*byte]);
            }
            if ended || self.gathered.len() >= UNFRAMED_LIMIT {
                let text = String::from_utf8_lossy(&self.gathered[1..]).into_owned();
                return self.fail(WireError::Unframed { text });
            }
        }
        Ok(())
    }

    /// Moves bytes from the input until `total` are gathered or the input is used up.
    fn gather(&mut self, input: &mut &[u8], total: usize) {
        let (taken, rest) = input.split_at(total.saturating_sub(self.gathered.len()).min(input.len()));
        self.gathered.extend_from_slice(taken);
        self.position += taken.len() as u64;
        *input = rest;
    }

    #[cold]
    fn fail<T>(&mut self, error: WireError) -> Result<T, WireError> {
        self.gathered = BytesMut::new();
        self.state = State::Failed(Box::new(error.clone()));
        Err(error)
    }
}

#[cfg(test)]
mod tests;
