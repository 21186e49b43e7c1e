//! Lays a summary file over a table as it is read, so that only the table is in memory.

use super::decoder::Content;
use super::{BlockReferences, SummaryDecoder, SummaryError, SummaryEvent};
use crate::BlockNumber;

/// One file on its way onto a table: the file is of later WAL than all that the table has.
///
/// Its checksum comes last, so a table onto which a file was laid that turns out to be bad is to be thrown away.
#[derive(Debug, Default)]
pub struct SummaryMerger {
    decoder: SummaryDecoder,
    /// The table's entry for the fork that is read.
    entry: Option<usize>,
}

impl SummaryMerger {
    /// One at the first byte of a file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the file, any number. `table` is the same with every call, and changed by nobody else meanwhile.
    ///
    /// # Errors
    /// [`SummaryError`] for the first thing that is wrong with the file; the table has a part of it then.
    pub fn feed(&mut self, table: &mut BlockReferences, mut bytes: &[u8]) -> Result<(), SummaryError> {
        while let Some(event) = self.decoder.next(&mut bytes)? {
            match event {
                SummaryEvent::Fork { fork, limit } => {
                    let entry = table.entry(fork);
                    table.at(entry).set_limit(limit.unwrap_or(BlockNumber(u32::MAX)));
                    self.entry = Some(entry);
                }
                SummaryEvent::Blocks(chunk) => {
                    let Some(entry) = self.entry else { continue };
                    match chunk.content {
                        Content::Places(places) => table.at(entry).unite_places(chunk.number, places),
                        Content::Words(words) => table.at(entry).unite_words(chunk.number, words),
                    }
                }
                SummaryEvent::End => {}
            }
        }
        Ok(())
    }

    /// Says whether the file may end here, and so whether the table is to be believed.
    ///
    /// # Errors
    /// [`SummaryError::Cut`] where it may not.
    pub fn finish(&self) -> Result<(), SummaryError> {
        self.decoder.finish()
    }
}
