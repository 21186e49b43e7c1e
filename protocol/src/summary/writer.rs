//! Writes a summary file, one relation fork at a time (`BlockRefTableWriteEntry`, `blkreftable.c`).
//!
//! The bytes are a server's for the same changes, but for the order of the places in a list: ascending here, and in a server's file
//! as the WAL named them.

use std::io::{self, Write};

use super::chunk::Chunk;
use super::decoder::ENTRY;
use super::{BITMAP_ENTRIES, BlockReferences, ForkReferences, MAGIC, MAX_FORK, RelationFork, SummaryError};

/// How much is gathered before it is written.
const BATCH: usize = 64 * 1024;

/// A file being written. Dropped without [`SummaryWriter::finish`] it leaves a file that no reader accepts.
#[derive(Debug)]
pub struct SummaryWriter<W> {
    sink: W,
    batch: Vec<u8>,
    /// Of what was written, without the batch.
    crc: u32,
    written: u64,
    previous: Option<RelationFork>,
}

impl<W: Write> SummaryWriter<W> {
    /// Begins a file. Writes come in batches of some 64 KiB, so `sink` needs no buffer of its own.
    pub fn new(sink: W) -> Self {
        let mut batch = Vec::with_capacity(BATCH + 2 * usize::from(BITMAP_ENTRIES));
        batch.extend_from_slice(&MAGIC.to_le_bytes());
        Self { sink, batch, crc: 0, written: 0, previous: None }
    }

    /// Adds a fork, which must come behind those before ([`BlockReferences::sorted`]).
    ///
    /// # Errors
    /// [`SummaryError::Order`] and [`SummaryError::ForkNumber`] as [`io::ErrorKind::InvalidInput`]; what `sink` fails with.
    pub fn fork(&mut self, fork: RelationFork, references: &ForkReferences) -> io::Result<()> {
        let offset = self.written + self.batch.len() as u64;
        if fork.fork > MAX_FORK {
            return Err(refused(SummaryError::ForkNumber { offset, found: fork.fork }));
        }
        let nothing = RelationFork { tablespace: 0, database: 0, relation: 0, fork: 0 };
        // All zeros would be the end of the list.
        let previous = self.previous.or((fork == nothing).then_some(nothing));
        if let Some(previous) = previous.filter(|previous| *previous >= fork) {
            return Err(refused(SummaryError::Order { offset, found: fork, previous }));
        }
        self.previous = Some(fork);

        let chunks = references.chunks();
        let count = chunks.last().map_or(0, |(number, _)| u32::from(*number) + 1);
        let limit = references.limit().map_or(u32::MAX, |limit| limit.0);
        for number in [fork.tablespace, fork.database, fork.relation, fork.fork, limit, count] {
            self.batch.extend_from_slice(&number.to_le_bytes());
        }
        let mut next = 0;
        for (number, chunk) in chunks {
            let gap = usize::from(*number) - next;
            self.batch.resize(self.batch.len() + 2 * gap, 0);
            self.batch.extend_from_slice(&size(chunk).to_le_bytes());
            next = usize::from(*number) + 1;
        }
        self.pass_on(BATCH)?;
        for (_, chunk) in chunks {
            match chunk {
                Chunk::Places(places) => {
                    self.batch.extend(places.iter().flat_map(|place| place.to_le_bytes()));
                }
                Chunk::Bitmap(words) => {
                    self.batch.extend(words.iter().flat_map(|word| word.to_le_bytes()));
                }
            }
            self.pass_on(BATCH)?;
        }
        Ok(())
    }

    /// Writes the end, flushes the sink and gives it back, with the file's length in bytes.
    ///
    /// # Errors
    /// What `sink` fails with.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.batch.resize(self.batch.len() + ENTRY, 0);
        self.pass_on(0)?;
        self.batch.extend_from_slice(&self.crc.to_le_bytes());
        self.pass_on(0)?;
        self.sink.flush()?;
        Ok((self.sink, self.written))
    }

    /// Writes what has been gathered, if it is so much.
    fn pass_on(&mut self, least: usize) -> io::Result<()> {
        if self.batch.len() < least {
            return Ok(());
        }
        self.crc = crc32c::crc32c_append(self.crc, &self.batch);
        self.sink.write_all(&self.batch)?;
        self.written += self.batch.len() as u64;
        self.batch.clear();
        Ok(())
    }
}

impl BlockReferences {
    /// Writes the table as a summary file; gives the sink back, with the file's length in bytes.
    ///
    /// # Errors
    /// As [`SummaryWriter::fork`].
    pub fn write<W: Write>(&self, sink: W) -> io::Result<(W, u64)> {
        let mut writer = SummaryWriter::new(sink);
        for (fork, references) in self.sorted() {
            writer.fork(fork, references)?;
        }
        writer.finish()
    }
}

/// A chunk's size as a file has it.
fn size(chunk: &Chunk) -> u16 {
    match chunk {
        Chunk::Places(places) => u16::try_from(places.len()).unwrap_or(BITMAP_ENTRIES),
        Chunk::Bitmap(_) => BITMAP_ENTRIES,
    }
}

fn refused(error: SummaryError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}
