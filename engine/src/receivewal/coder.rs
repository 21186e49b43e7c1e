//! A segment's bytes on their way into its file: as they are, or compressed.
//!
//! A compressed file is one gzip member, LZ4 frame or Zstandard frame, as PostgreSQL's own programs read them.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use pgstrata_protocol::basebackup::{CompressionMethod, CompressionSpec};
use pgstrata_protocol::names::WalCompression;

use crate::pipeline::gzip_level;

/// How names say that a file is compressed so.
pub(super) fn of_method(method: CompressionMethod) -> WalCompression {
    match method {
        CompressionMethod::Gzip => WalCompression::Gzip,
        CompressionMethod::Lz4 => WalCompression::Lz4,
        CompressionMethod::Zstd => WalCompression::Zstd,
    }
}

/// What writes one file.
pub(super) enum Coder {
    /// At its place.
    Plain(Arc<File>),
    Gzip(Box<GzEncoder<Arc<File>>>),
    Lz4(Box<lz4::Encoder<Arc<File>>>),
    Zstd(Box<zstd::Encoder<'static, Arc<File>>>),
}

impl std::fmt::Debug for Coder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Coder::Plain(_) => "Plain",
            Coder::Gzip(_) => "Gzip",
            Coder::Lz4(_) => "Lz4",
            Coder::Zstd(_) => "Zstd",
        })
    }
}

impl Coder {
    pub(super) fn new(file: &Arc<File>, spec: Option<&CompressionSpec>) -> io::Result<Self> {
        let file = Arc::clone(file);
        let Some(spec) = spec else { return Ok(Coder::Plain(file)) };
        Ok(match spec.method {
            CompressionMethod::Gzip => {
                Coder::Gzip(Box::new(GzEncoder::new(file, Compression::new(gzip_level(spec)))))
            }
            CompressionMethod::Lz4 => Coder::Lz4(Box::new(
                lz4::EncoderBuilder::new()
                    .level(u32::try_from(spec.level).unwrap_or(0))
                    .checksum(lz4::ContentChecksum::ChecksumEnabled)
                    .build(file)?,
            )),
            CompressionMethod::Zstd => {
                let mut encoder = zstd::Encoder::new(file, spec.level)?;
                encoder.include_checksum(true)?;
                if let Some(workers) = spec.workers.and_then(|workers| u32::try_from(workers).ok()) {
                    encoder.multithread(workers)?;
                }
                if let Some(long) = spec.long {
                    encoder.long_distance_matching(long)?;
                }
                Coder::Zstd(Box::new(encoder))
            }
        })
    }

    /// Appends bytes whose place in the segment is `at`.
    pub(super) fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        match self {
            Coder::Plain(file) => file.write_all_at(bytes, at),
            Coder::Gzip(encoder) => encoder.write_all(bytes),
            Coder::Lz4(encoder) => encoder.write_all(bytes),
            Coder::Zstd(encoder) => encoder.write_all(bytes),
        }
    }

    /// Has everything so far in the file, where it can be read.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Coder::Plain(_) => Ok(()),
            Coder::Gzip(encoder) => encoder.flush(),
            Coder::Lz4(encoder) => encoder.flush(),
            Coder::Zstd(encoder) => encoder.flush(),
        }
    }

    /// Ends what was compressed.
    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            Coder::Plain(_) => Ok(()),
            Coder::Gzip(encoder) => encoder.finish().map(drop),
            Coder::Lz4(encoder) => encoder.finish().1,
            Coder::Zstd(encoder) => encoder.finish().map(drop),
        }
    }
}
