//! Feeds a manifest to the JSON parser while it hashes every line but the last.
//!
//! Invariants: a line is hashed as soon as a byte behind it is known; `held` is the line that may be the last and never
//! longer than [`MAX_LINE`]. So a string in the manifest, which cannot hold a line break, is bounded as well.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// The longest line that is read. A path of `MAXPGPATH` bytes takes at most six times as many.
pub(super) const MAX_LINE: usize = 64 * 1024;

/// A line longer than [`MAX_LINE`], as the source of an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("a line has more than {MAX_LINE} bytes")]
pub(super) struct LineTooLong;

/// A reader that hashes what passes.
pub(super) struct Intake<R> {
    source: R,
    hash: Sha256,
    held: Vec<u8>,
}

impl<R: Read> Intake<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, hash: Sha256::new(), held: Vec::new() }
    }

    /// The hash of every line before the last one, and whether a line break ends that one. To be called at the end.
    pub(super) fn finish(self) -> ([u8; 32], bool) {
        (self.hash.finalize().into(), self.held.ends_with(b"\n"))
    }

    fn pass(&mut self, bytes: &[u8]) -> io::Result<()> {
        // The last byte may be the file's last line break, which ends no line before the last.
        let Some((_, before_last)) = bytes.split_last() else { return Ok(()) };
        // Lines longer than the limit need not be searched for: only the line held over can have become too long,
        // and the caller reads no more than the limit at once.
        let first_line = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        if self.held.ends_with(b"\n") {
            self.hash.update(&self.held);
            self.held.clear();
        }
        if self.held.len() + first_line > MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, LineTooLong));
        }
        match before_last.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => {
                self.hash.update(&self.held);
                self.hash.update(&bytes[..=at]);
                self.held.clear();
                self.held.extend_from_slice(&bytes[at + 1..]);
            }
            None => self.held.extend_from_slice(bytes),
        }
        Ok(())
    }
}

impl<R: Read> Read for Intake<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(MAX_LINE);
        let length = self.source.read(&mut buffer[..room])?;
        self.pass(&buffer[..length.min(room)])?;
        Ok(length)
    }
}
