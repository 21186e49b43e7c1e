//! Reads an archive as it arrives, in pieces of any size.
//!
//! Content is handed through as slices of the input; the only bytes ever kept are those of a header that straddles two
//! pieces. The decoder is lenient in nothing: an archive that is not exactly what PostgreSQL writes is refused with the
//! position at which it went wrong.

use std::num::NonZeroU64;

use super::header::padding_for;
use super::{BLOCK_SIZE, MemberKind, TarError, TarMember};

/// Splits an archive into members.
#[derive(Debug)]
pub struct TarDecoder {
    state: State,
    /// Bytes consumed so far, for messages.
    offset: u64,
    /// The head of a header that straddles pieces of input.
    partial: [u8; BLOCK_SIZE],
}

#[derive(Debug)]
enum State {
    /// `have` bytes of the next header have been seen.
    Header {
        have: usize,
    },
    Body {
        left: NonZeroU64,
        padding: usize,
    },
    Padding {
        left: usize,
    },
    MemberEnd,
    /// Only zeros from here on.
    Trailer,
    /// An error was reported; there is no way to go on.
    Failed,
}

/// What [`TarDecoder::next`] found.
#[derive(Debug)]
pub enum TarEvent<'a> {
    /// A member begins.
    Member(TarMember),
    /// The next bytes of the member's content, never empty.
    Data(&'a [u8]),
    /// The member is complete, its padding consumed. Follows every member, also those without content.
    MemberEnd,
}

impl Default for TarDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl TarDecoder {
    /// A decoder at an archive's first byte.
    #[must_use]
    pub fn new() -> Self {
        Self { state: State::Header { have: 0 }, offset: 0, partial: [0; BLOCK_SIZE] }
    }

    /// How many bytes of the archive have been consumed.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next event from the front of `input`. `Ok(None)` means that the input is used up; events that need no
    /// input come before that. After an error every call fails.
    #[inline]
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TarEvent<'a>>, TarError> {
        if let State::Body { left, padding } = self.state {
            if input.is_empty() {
                return Ok(None);
            }
            let length = usize::try_from(left.get()).map_or(input.len(), |left| left.min(input.len()));
            let data = self.take(input, length);
            self.state = match NonZeroU64::new(left.get() - length as u64) {
                Some(left) => State::Body { left, padding },
                None => State::Padding { left: padding },
            };
            return Ok(Some(TarEvent::Data(data)));
        }
        let event = self.between_bodies(input);
        if event.is_err() {
            self.state = State::Failed;
        }
        event
    }

    /// Leaves out what is left of a member's content: what `input` has of it is taken, and the caller leaves out the bytes
    /// up to [`TarDecoder::offset`]. Does nothing elsewhere.
    pub fn skip_content(&mut self, input: &mut &[u8]) {
        if let State::Body { left, padding } = self.state {
            let here = usize::try_from(left.get()).map_or(input.len(), |left| left.min(input.len()));
            *input = &input[here..];
            self.offset = self.offset.saturating_add(left.get());
            self.state = State::Padding { left: padding };
        }
    }

    /// Says whether the archive may end here. Servers up to 14 send no end-of-archive blocks, so their absence is no
    /// error; a cut header, content, padding or final block is.
    pub fn finish(&self) -> Result<(), TarError> {
        let place = match self.state {
            State::Header { have: 0 } => return Ok(()),
            State::Header { .. } => "a header",
            State::Body { .. } => "a member's content",
            State::Padding { left: 0 } | State::MemberEnd => "an unfinished member",
            State::Padding { .. } => "a member's padding",
            State::Trailer if self.offset.is_multiple_of(BLOCK_SIZE as u64) => return Ok(()),
            State::Trailer => "the final blocks",
            State::Failed => return Err(TarError::Failed),
        };
        Err(TarError::Cut { offset: self.offset, place })
    }

    /// Consumes `length` bytes, which the input has.
    fn take<'a>(&mut self, input: &mut &'a [u8], length: usize) -> &'a [u8] {
        let (taken, rest) = input.split_at(length);
        *input = rest;
        self.offset += length as u64;
        taken
    }

    fn take_zeros(&mut self, input: &mut &[u8], length: usize, place: &'static str) -> Result<(), TarError> {
        let start = self.offset;
        let taken = self.take(input, length);
        match taken.iter().position(|byte| *byte != 0) {
            Some(at) => Err(TarError::NotZero { offset: start + at as u64, place, found: taken[at] }),
            None => Ok(()),
        }
    }

    fn between_bodies<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TarEvent<'a>>, TarError> {
        loop {
            match self.state {
                State::Header { have } => {
                    let length = input.len().min(BLOCK_SIZE - have);
                    if length == 0 {
                        return Ok(None);
                    }
                    let taken = self.take(input, length);
                    self.partial[have..have + length].copy_from_slice(taken);
                    if have + length < BLOCK_SIZE {
                        self.state = State::Header { have: have + length };
                        return Ok(None);
                    }
                    if self.partial == [0; BLOCK_SIZE] {
                        self.state = State::Trailer;
                        continue;
                    }
                    let member = TarMember::parse(&self.partial, self.offset - BLOCK_SIZE as u64)?;
                    self.state = match member.kind {
                        MemberKind::File { size } => match NonZeroU64::new(size) {
                            Some(left) => State::Body { left, padding: padding_for(size) },
                            None => State::MemberEnd,
                        },
                        MemberKind::Directory | MemberKind::Symlink { .. } => State::MemberEnd,
                    };
                    return Ok(Some(TarEvent::Member(member)));
                }
                State::Padding { left } => {
                    let length = input.len().min(left);
                    self.take_zeros(input, length, "a member's padding")?;
                    if length < left {
                        self.state = State::Padding { left: left - length };
                        return Ok(None);
                    }
                    self.state = State::MemberEnd;
                }
                State::MemberEnd => {
                    self.state = State::Header { have: 0 };
                    return Ok(Some(TarEvent::MemberEnd));
                }
                State::Trailer => {
                    self.take_zeros(input, input.len(), "the space behind the last member")?;
                    return Ok(None);
                }
                State::Body { .. } => return Ok(None),
                State::Failed => return Err(TarError::Failed),
            }
        }
    }
}
