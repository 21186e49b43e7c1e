//! Reads segments that lie in the folder, compressed or not.
//!
//! Nothing is kept but one buffer, whatever a file claims to hold.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use pgstrata_protocol::names::WalCompression;

const BUFFER: usize = 64 << 10;

/// Opens a segment for its uncompressed bytes.
pub(super) fn open(path: &Path, compression: Option<WalCompression>) -> io::Result<Box<dyn Read>> {
    let file = File::open(path)?;
    Ok(match compression {
        None => Box::new(file),
        Some(WalCompression::Gzip) => Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER, file))),
        Some(WalCompression::Lz4) => Box::new(lz4_flex::frame::FrameDecoder::new(file)),
        Some(WalCompression::Zstd) => Box::new(zstd::Decoder::new(file)?),
    })
}

/// How many uncompressed bytes a file has, counted up to the first behind `most`.
pub(super) fn uncompressed_size(path: &Path, compression: WalCompression, most: u64) -> io::Result<u64> {
    // A gzip member's last four bytes are its length modulo 2^32 (RFC 1952, ISIZE).
    if compression == WalCompression::Gzip {
        let mut file = File::open(path)?;
        if file.metadata()?.len() < 4 {
            return Ok(0);
        }
        file.seek(SeekFrom::End(-4))?;
        let mut size = [0; 4];
        file.read_exact(&mut size)?;
        return Ok(u32::from_le_bytes(size).into());
    }
    io::copy(&mut open(path, Some(compression))?.take(most + 1), &mut io::sink())
}

/// How many bytes of a file, which need not be whole, can be read.
pub(super) fn readable(path: &Path, compression: WalCompression) -> io::Result<u64> {
    let mut source = open(path, Some(compression))?;
    let (mut buffer, mut count) = (vec![0; BUFFER], 0);
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(count),
            Ok(read) => count += read as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Where it was cut off.
            Err(_) => return Ok(count),
        }
    }
}
