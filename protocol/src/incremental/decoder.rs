//! Reads an incremental file as it passes, in pieces of any size.
//!
//! Invariants: what the header claims is compared with the file's length, which is known beforehand, before anything
//! depends on it; the list of numbers grows only by numbers that have come, and has at most as many as a segment has
//! blocks. Blocks are handed through as slices of the input.

use super::{Geometry, IncrementalError, MAGIC};

/// The three numbers before the list.
const FIXED: usize = 12;

/// What a file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncrementalHeader {
    /// How many blocks it holds.
    pub blocks: u32,
    /// The least length, in blocks, of the file that it becomes: blocks below it that are not here are those of the
    /// earlier backup.
    pub truncation_length: u32,
}

/// What [`IncrementalDecoder::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum IncrementalEvent<'a> {
    /// The header, checked against the file's length.
    Header(IncrementalHeader),
    /// The next bytes of a block, never empty.
    Block {
        /// Its number within the segment.
        number: u32,
        /// The bytes.
        bytes: &'a [u8],
        /// Whether the block begins with them.
        first: bool,
        /// Whether the block ends with them.
        last: bool,
    },
}

/// Takes one file apart.
#[derive(Debug)]
pub struct IncrementalDecoder {
    geometry: Geometry,
    /// The file's length.
    length: u64,
    /// Bytes consumed.
    offset: u64,
    state: State,
    /// The part of the header or of a number that is here.
    gathered: [u8; FIXED],
    have: usize,
    numbers: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    Numbers { left: u32 },
    Padding { left: u64 },
    Block { place: usize, left: u32 },
    End,
    Failed,
}

impl IncrementalDecoder {
    /// A decoder of a file of `length` bytes.
    #[must_use]
    pub fn new(geometry: Geometry, length: u64) -> Self {
        Self {
            geometry,
            length,
            offset: 0,
            state: State::Header,
            gathered: [0; FIXED],
            have: 0,
            numbers: Vec::new(),
        }
    }

    /// Bytes of the file that were consumed.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The numbers of the blocks that have come so far, ascending: all of them once the header is consumed.
    #[must_use]
    pub fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    /// Takes the next event from the front of `input`; `Ok(None)` means that the input is used up.
    ///
    /// # Errors
    /// [`IncrementalError`] for the first thing that is wrong; every later call fails.
    pub fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<IncrementalEvent<'a>>, IncrementalError> {
        let event = self.step(input);
        if event.is_err() {
            self.state = State::Failed;
        }
        event
    }

    /// Says whether the file may end here.
    ///
    /// # Errors
    /// [`IncrementalError::Cut`] where it may not.
    pub fn finish(&self) -> Result<(), IncrementalError> {
        match self.state {
            State::End => Ok(()),
            State::Failed => Err(IncrementalError::Failed),
            _ => Err(IncrementalError::Cut { found: self.offset, expected: self.length }),
        }
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<IncrementalEvent<'a>>, IncrementalError> {
        while !input.is_empty() {
            match self.state {
                State::Header => {
                    if let Some(fixed) = self.gather::<FIXED>(input) {
                        return self.on_header(fixed).map(|header| Some(IncrementalEvent::Header(header)));
                    }
                }
                State::Numbers { left } => {
                    if let Some(number) = self.gather::<4>(input) {
                        self.on_number(u32::from_le_bytes(number))?;
                        self.state = match left - 1 {
                            0 => self.after_numbers(),
                            left => State::Numbers { left },
                        };
                    }
                }
                State::Padding { left } => {
                    let here = take(input, left);
                    if let Some(at) = here.iter().position(|byte| *byte != 0) {
                        let offset = self.offset + at as u64;
                        return Err(IncrementalError::Padding { offset, found: here[at] });
                    }
                    self.offset += here.len() as u64;
                    self.state = match left - here.len() as u64 {
                        0 => self.block(0),
                        left => State::Padding { left },
                    };
                }
                State::Block { place, left } => {
                    let bytes = take(input, left.into());
                    self.offset += bytes.len() as u64;
                    // A block has at most 32 KiB.
                    let rest = left - u32::try_from(bytes.len()).unwrap_or(left);
                    self.state = match rest {
                        0 => self.block(place + 1),
                        left => State::Block { place, left },
                    };
                    let (first, last) = (left == self.geometry.block_size(), rest == 0);
                    let number = self.numbers[place];
                    return Ok(Some(IncrementalEvent::Block { number, bytes, first, last }));
                }
                State::End => return Err(IncrementalError::TooLong { expected: self.length }),
                State::Failed => return Err(IncrementalError::Failed),
            }
        }
        Ok(None)
    }

    /// The next `N` bytes, once they are all here.
    fn gather<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        let here = take(input, (N - self.have) as u64);
        self.gathered[self.have..self.have + here.len()].copy_from_slice(here);
        self.have += here.len();
        self.offset += here.len() as u64;
        if self.have < N {
            return None;
        }
        self.have = 0;
        self.gathered.first_chunk::<N>().copied()
    }

    fn on_header(&mut self, fixed: [u8; FIXED]) -> Result<IncrementalHeader, IncrementalError> {
        let [magic, blocks, truncation_length] =
            [0, 4, 8].map(|at| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]));
        if magic != MAGIC {
            return Err(IncrementalError::Magic { found: magic });
        }
        let most = self.geometry.segment_blocks();
        if blocks > most {
            return Err(IncrementalError::BlockCount { found: blocks, most });
        }
        if truncation_length > most {
            return Err(IncrementalError::TruncationLength { found: truncation_length, most });
        }
        let (found, expected) = (self.length, self.geometry.file_length(blocks));
        if found != expected {
            return Err(IncrementalError::Length { found, expected, blocks });
        }
        self.state = if blocks == 0 { State::End } else { State::Numbers { left: blocks } };
        Ok(IncrementalHeader { blocks, truncation_length })
    }

    fn on_number(&mut self, found: u32) -> Result<(), IncrementalError> {
        let limit = self.geometry.segment_blocks();
        let entry = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        if found >= limit {
            return Err(IncrementalError::BlockNumber { entry, found, limit });
        }
        if let Some(previous) = self.numbers.last().copied().filter(|previous| *previous >= found) {
            return Err(IncrementalError::Order { entry, found, previous });
        }
        self.numbers.push(found);
        Ok(())
    }

    fn after_numbers(&self) -> State {
        let blocks = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        match self.geometry.header_length(blocks) - self.offset {
            0 => self.block(0),
            left => State::Padding { left },
        }
    }

    fn block(&self, place: usize) -> State {
        if place < self.numbers.len() {
            State::Block { place, left: self.geometry.block_size() }
        } else {
            State::End
        }
    }
}

/// Takes at most `most` bytes from the front.
fn take<'a>(input: &mut &'a [u8], most: u64) -> &'a [u8] {
    let length = usize::try_from(most).map_or(input.len(), |most| most.min(input.len()));
    let (taken, rest) = input.split_at(length);
    *input = rest;
    taken
}
