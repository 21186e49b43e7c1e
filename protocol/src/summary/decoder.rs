//! Reads a summary file as it passes, in pieces of any size.
//!
//! Invariants: memory is at most the sizes of one entry's chunks (128 KiB), which grow only by those that have come, and one
//! chunk (8 KiB, twice). Entries ascend. Nothing read is to be believed before [`SummaryEvent::End`]: the checksum is the last
//! of the file.

use super::chunk::{Places, WORDS};
use super::{BITMAP_ENTRIES, CHUNK_BLOCKS, MAGIC, MAX_FORK, MOST_CHUNKS, RelationFork, SummaryError};
use crate::BlockNumber;

/// Bytes of an entry (`BlockRefTableSerializedEntry`, `blkreftable.c`).
pub(super) const ENTRY: usize = 24;

/// Bytes of a bitmap, the longest chunk.
const LONGEST: usize = BITMAP_ENTRIES as usize * 2;

/// What [`SummaryDecoder::next`] found.
#[derive(Debug)]
pub enum SummaryEvent<'a> {
    /// The next relation fork. Its blocks follow, if there are any.
    Fork {
        /// Which.
        fork: RelationFork,
        /// As [`ForkReferences::limit`](super::ForkReferences::limit).
        limit: Option<BlockNumber>,
    },
    /// Changed blocks of the fork, all above those before.
    Blocks(ChunkBlocks<'a>),
    /// The end; the checksum is right.
    End,
}

/// Changed blocks of one chunk.
#[derive(Clone, Debug)]
pub struct ChunkBlocks<'a> {
    pub(super) number: u16,
    pub(super) content: Content<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Content<'a> {
    /// Ascending.
    Places(&'a [u16]),
    Words(&'a [u64; WORDS]),
}

impl<'a> ChunkBlocks<'a> {
    /// The blocks' numbers within the fork, ascending.
    pub fn iter(&self) -> impl Iterator<Item = BlockNumber> + use<'a> {
        let base = u32::from(self.number) * CHUNK_BLOCKS;
        let places = match self.content {
            Content::Places(places) => Places::List(places.iter()),
            Content::Words(words) => Places::of_words(words, 0, u16::MAX),
        };
        places.map(move |place| BlockNumber(base + u32::from(place)))
    }
}

/// Takes one file apart.
#[derive(Debug)]
pub struct SummaryDecoder {
    state: State,
    /// Bytes consumed.
    offset: u64,
    /// Of the bytes consumed.
    crc: u32,
    /// What is here of the number, entry or chunk that comes.
    gathered: Box<[u8; LONGEST]>,
    have: usize,
    /// The entry that is read, and the one before it.
    fork: Option<RelationFork>,
    /// Sizes of its chunks, as far as they are here.
    sizes: Vec<u16>,
    /// The chunk last read, for an event to borrow.
    places: Vec<u16>,
    words: Box<[u64; WORDS]>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Magic,
    Entry,
    Sizes { of: u32 },
    Chunk { at: usize },
    Checksum { expected: u32 },
    End,
    Failed,
}

impl Default for SummaryDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl SummaryDecoder {
    /// A decoder at the first byte.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Magic,
            offset: 0,
            crc: 0,
            gathered: Box::new([0; LONGEST]),
            have: 0,
            fork: None,
            sizes: Vec::new(),
            places: Vec::new(),
            words: Box::new([0; WORDS]),
        }
    }

    /// Bytes of the file that were consumed.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next event from the front of `input`; `Ok(None)` means that the input is used up.
    ///
    /// # Errors
    /// [`SummaryError`] for the first thing that is wrong; every later call fails.
    pub fn next<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<SummaryEvent<'a>>, SummaryError> {
        match self.step(input) {
            Ok(Some(found)) => Ok(Some(self.event(found))),
            Ok(None) => Ok(None),
            Err(error) => {
                self.state = State::Failed;
                Err(error)
            }
        }
    }

    /// Says whether the file may end here.
    ///
    /// # Errors
    /// [`SummaryError::Cut`] where it may not.
    pub fn finish(&self) -> Result<(), SummaryError> {
        let expected = match self.state {
            State::End => return Ok(()),
            State::Failed => return Err(SummaryError::Failed),
            State::Magic => "a magic number",
            State::Entry => "an entry, or the zeros that end the list of them",
            State::Sizes { .. } => "the sizes of an entry's chunks",
            State::Chunk { .. } => "a chunk of block numbers",
            State::Checksum { .. } => "a checksum",
        };
        Err(SummaryError::Cut { found: self.offset, expected })
    }

    fn step(&mut self, input: &mut &[u8]) -> Result<Option<Found>, SummaryError> {
        while !input.is_empty() {
            match self.state {
                State::Magic => {
                    if self.gather(input, 4) {
                        let found = self.number(0);
                        if found != MAGIC {
                            return Err(SummaryError::Magic { found });
                        }
                        self.state = State::Entry;
                    }
                }
                State::Entry => {
                    if self.gather(input, ENTRY)
                        && let Some(found) = self.on_entry()?
                    {
                        return Ok(Some(found));
                    }
                }
                State::Sizes { of } => {
                    if self.gather(input, 2) {
                        self.on_size(of)?;
                    }
                }
                State::Chunk { at } => {
                    let size = self.sizes[at];
                    if self.gather(input, usize::from(size) * 2) {
                        return Ok(Some(self.on_chunk(at, size)));
                    }
                }
                State::Checksum { expected } => {
                    if self.gather(input, 4) {
                        let (found, bytes) = (self.number(0), self.offset - 4);
                        if found != expected {
                            return Err(SummaryError::Checksum { found, expected, bytes });
                        }
                        self.state = State::End;
                        return Ok(Some(Found::End));
                    }
                }
                State::End => return Err(SummaryError::TooLong { end: self.offset }),
                State::Failed => return Err(SummaryError::Failed),
            }
        }
        Ok(None)
    }

    /// Whether the next `length` bytes, of which there are some, are all in `gathered`.
    fn gather(&mut self, input: &mut &[u8], length: usize) -> bool {
        let (here, rest) = input.split_at(input.len().min(length - self.have));
        self.gathered[self.have..self.have + here.len()].copy_from_slice(here);
        *input = rest;
        self.have += here.len();
        self.offset += here.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, here);
        if self.have < length {
            return false;
        }
        self.have = 0;
        true
    }

    /// The number at a byte of what was gathered.
    fn number(&self, at: usize) -> u32 {
        self.gathered[at..].first_chunk().copied().map_or(0, u32::from_le_bytes)
    }

    fn on_entry(&mut self) -> Result<Option<Found>, SummaryError> {
        let offset = self.offset - ENTRY as u64;
        let [tablespace, database, relation, fork, limit, chunks] =
            [0, 4, 8, 12, 16, 20].map(|at| self.number(at));
        let found = RelationFork { tablespace, database, relation, fork };
        if self.gathered[..ENTRY].iter().all(|byte| *byte == 0) {
            self.state = State::Checksum { expected: self.crc };
            return Ok(None);
        }
        if fork > MAX_FORK {
            return Err(SummaryError::ForkNumber { offset, found: fork });
        }
        if let Some(previous) = self.fork.filter(|previous| *previous >= found) {
            return Err(SummaryError::Order { offset, found, previous });
        }
        if chunks > MOST_CHUNKS {
            return Err(SummaryError::ChunkCount { offset, fork: found, found: chunks });
        }
        self.fork = Some(found);
        self.sizes.clear();
        self.state = if chunks == 0 { State::Entry } else { State::Sizes { of: chunks } };
        let limit = (limit != u32::MAX).then_some(BlockNumber(limit));
        Ok(Some(Found::Fork { fork: found, limit }))
    }

    fn on_size(&mut self, of: u32) -> Result<(), SummaryError> {
        let found = u16::from_le_bytes([self.gathered[0], self.gathered[1]]);
        let before = u32::try_from(self.sizes.len()).unwrap_or(u32::MAX);
        if let Some(fork) = self.fork.filter(|_| found > BITMAP_ENTRIES) {
            let offset = self.offset - 2;
            return Err(SummaryError::ChunkSize { offset, fork, chunk: before, found });
        }
        self.sizes.push(found);
        if before + 1 == of {
            self.state = self.chunk_from(0);
        }
        Ok(())
    }

    fn on_chunk(&mut self, at: usize, size: u16) -> Found {
        let bytes = &self.gathered[..usize::from(size) * 2];
        if size == BITMAP_ENTRIES {
            for (word, bytes) in self.words.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
        } else {
            self.places.clear();
            self.places.extend(bytes.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)));
            // A server lists places in the order in which the WAL named them.
            if !self.places.is_sorted_by(|a, b| a < b) {
                self.places.sort_unstable();
                self.places.dedup();
            }
        }
        self.state = self.chunk_from(at + 1);
        // There are at most 2^16 sizes.
        let number = u16::try_from(at).unwrap_or(u16::MAX);
        Found::Chunk { number, bitmap: size == BITMAP_ENTRIES }
    }

    /// The first chunk from there on that has bytes, or the next entry.
    fn chunk_from(&self, from: usize) -> State {
        match self.sizes[from..].iter().position(|size| *size != 0) {
            Some(ahead) => State::Chunk { at: from + ahead },
            None => State::Entry,
        }
    }

    fn event(&self, found: Found) -> SummaryEvent<'_> {
        match found {
            Found::Fork { fork, limit } => SummaryEvent::Fork { fork, limit },
            Found::Chunk { number, bitmap } => {
                let content =
                    if bitmap { Content::Words(&self.words) } else { Content::Places(&self.places) };
                SummaryEvent::Blocks(ChunkBlocks { number, content })
            }
            Found::End => SummaryEvent::End,
        }
    }
}

/// An event before it borrows.
#[derive(Clone, Copy)]
enum Found {
    Fork { fork: RelationFork, limit: Option<BlockNumber> },
    Chunk { number: u16, bitmap: bool },
    End,
}
