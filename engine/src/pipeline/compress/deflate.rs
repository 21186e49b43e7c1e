//! gzip on several threads, as one ordinary gzip stream.
//!
//! Each chunk is deflated by itself, with the 32 KiB before it as its dictionary, and ends on a byte boundary (a sync
//! flush), so that the blocks follow each other in one stream: the ratio is that of one thread but for a few bytes a
//! chunk. The stream has a single member, because PostgreSQL's own readers stop at the end of the first
//! (`fe_utils/astreamer_gzip.c`).

use std::collections::VecDeque;

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use flate2::{Compress, Compression, Crc, FlushCompress};

use super::packer::{Outlet, Packer};
use crate::buffer::PageBuffer;
use crate::failure::Failure;

/// RFC 1952: magic, deflate, no flags, no time, no extra flags, Unix.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
/// RFC 1951: a last block, of fixed codes, that holds nothing.
const LAST_BLOCK: [u8; 2] = [3, 0];
/// How far back deflate looks.
const WINDOW: usize = 32 << 10;
/// Blocks that cannot be compressed are stored, with a few bytes for each 16 KiB.
const SLACK: usize = 1 << 10;

/// A chunk to deflate.
#[derive(Debug)]
pub(super) struct DeflateJob {
    data: PageBuffer,
    /// What came before it.
    dictionary: Vec<u8>,
    done: Sender<Result<Deflated, String>>,
}

/// A chunk deflated.
#[derive(Debug)]
struct Deflated {
    bytes: Vec<u8>,
    crc: Crc,
}

/// Does jobs until there is nobody left who deals them.
pub(super) fn work(jobs: &Receiver<DeflateJob>, level: u32) {
    let mut compress = Compress::new(Compression::new(level), false);
    for DeflateJob { data, dictionary, done } in jobs {
        let deflated = deflate(&mut compress, &dictionary, &data);
        drop(data);
        // Nobody waits for it after a stop.
        let _ = done.send(deflated);
    }
}

fn deflate(compress: &mut Compress, dictionary: &[u8], data: &[u8]) -> Result<Deflated, String> {
    compress.reset();
    if !dictionary.is_empty() {
        compress.set_dictionary(dictionary).map_err(|error| error.to_string())?;
    }
    let mut crc = Crc::new();
    crc.update(data);
    let mut bytes = Vec::with_capacity(data.len() + SLACK);
    let begin = compress.total_in();
    loop {
        let taken = usize::try_from(compress.total_in() - begin).map_err(|error| error.to_string())?;
        compress
            .compress_vec(&data[taken..], &mut bytes, FlushCompress::Sync)
            .map_err(|error| error.to_string())?;
        // A flush is complete once it leaves room.
        if bytes.len() < bytes.capacity() {
            return Ok(Deflated { bytes, crc });
        }
        bytes.reserve(SLACK);
    }
}

/// One gzip stream that is being assembled.
pub(super) struct Deflater {
    jobs: Sender<DeflateJob>,
    /// Chunks that are being deflated, in the order of the stream.
    pending: VecDeque<Receiver<Result<Deflated, String>>>,
    most_pending: usize,
    dictionary: Vec<u8>,
    crc: Crc,
    begun: bool,
}

impl Deflater {
    pub(super) fn new(jobs: Sender<DeflateJob>, threads: usize) -> Self {
        Self {
            jobs,
            pending: VecDeque::new(),
            most_pending: 2 * threads,
            dictionary: Vec::new(),
            crc: Crc::new(),
            begun: false,
        }
    }

    pub(super) fn take(
        &mut self,
        data: PageBuffer,
        packer: &mut Packer,
        outlet: &mut Outlet<'_>,
    ) -> Result<(), Failure> {
        self.begin(packer, outlet)?;
        let tail = data[data.len().saturating_sub(WINDOW)..].to_vec();
        let dictionary = std::mem::replace(&mut self.dictionary, tail);
        let (done, wait) = bounded(1);
        self.jobs.send(DeflateJob { data, dictionary, done }).map_err(|_| Failure::Stopped)?;
        self.pending.push_back(wait);
        self.pack(self.most_pending, packer, outlet)
    }

    pub(super) fn finish(&mut self, packer: &mut Packer, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        self.begin(packer, outlet)?;
        self.pack(0, packer, outlet)?;
        packer.write(&LAST_BLOCK, outlet)?;
        packer.write(&self.crc.sum().to_le_bytes(), outlet)?;
        // Modulo 2^32, as the format has it.
        packer.write(&self.crc.amount().to_le_bytes(), outlet)
    }

    fn begin(&mut self, packer: &mut Packer, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(());
        }
        packer.write(&HEADER, outlet)
    }

    /// Packs what is ready, and waits until no more than `most` chunks are under way.
    fn pack(&mut self, most: usize, packer: &mut Packer, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        while let Some(first) = self.pending.front() {
            let deflated = if self.pending.len() > most {
                first.recv().map_err(|_| Failure::Stopped)?
            } else {
                match first.try_recv() {
                    Ok(deflated) => deflated,
                    Err(TryRecvError::Empty) => return Ok(()),
                    Err(TryRecvError::Disconnected) => return Err(Failure::Stopped),
                }
            };
            self.pending.pop_front();
            let Deflated { bytes, crc } = deflated.map_err(super::failed)?;
            self.crc.combine(&crc);
            packer.write(&bytes, outlet)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use flate2::bufread::GzDecoder;
    use flate2::write::GzEncoder;

    use super::*;

    /// Joins chunks as [`Deflater`] does.
    fn gzip(plain: &[u8], chunk: usize, level: u32) -> Vec<u8> {
        let mut compress = Compress::new(Compression::new(level), false);
        let (mut stream, mut crc) = (HEADER.to_vec(), Crc::new());
        for (number, data) in plain.chunks(chunk).enumerate() {
            let begin = number * chunk;
            let dictionary = &plain[begin.saturating_sub(WINDOW)..begin];
            let deflated = deflate(&mut compress, dictionary, data).expect("memory");
            stream.extend_from_slice(&deflated.bytes);
            crc.combine(&deflated.crc);
        }
        stream.extend_from_slice(&LAST_BLOCK);
        stream.extend_from_slice(&crc.sum().to_le_bytes());
        stream.extend_from_slice(&crc.amount().to_le_bytes());
        stream
    }

    #[test]
    fn blocks_are_one_member_at_the_ratio_of_one_thread() {
        let text: Vec<u8> =
            (0..150_000_u64).flat_map(|n| format!("{:x} ", n * n % 9973).into_bytes()).collect();
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(300_000)
        .collect();
        for plain in [text, noise, vec![0; 1 << 20], b"x".to_vec(), Vec::new()] {
            for (chunk, level) in [(64 << 10, 6), (256 << 10, 1), (8192, 9)] {
                let stream = gzip(&plain, chunk, level);
                // This reader stops at the end of the first member.
                let (mut decoder, mut found) = (GzDecoder::new(&stream[..]), Vec::new());
                decoder.read_to_end(&mut found).expect("one valid member");
                assert!(found == plain && decoder.into_inner().is_empty(), "{chunk} {level}");
                let mut whole = GzEncoder::new(Vec::new(), Compression::new(level));
                whole.write_all(&plain).expect("memory");
                let whole = whole.finish().expect("memory").len();
                let chunks = plain.len().div_ceil(chunk);
                assert!(stream.len() <= whole + whole / 50 + 64 * (chunks + 1), "{} {whole}", stream.len());
            }
        }
    }
}
