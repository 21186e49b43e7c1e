//! Compression on this side: what becomes of an output's chunks between their checks and their writer.
//!
//! It is the lanes' work: lz4 and zstd compress where the chunk is (zstd with further threads of its own, as many as
//! were asked for), gzip deals blocks to threads that all lanes share. The compressed bytes are packed into buffers of
//! a second pool that only writers give back: chunks that wait for compression can never hold what it needs to go on.

mod deflate;
mod packer;

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Sender, bounded};
use pgstrata_protocol::basebackup::{CompressionMethod, CompressionSpec};
use zstd::stream::raw::{CParameter, Encoder, Operation, OutBuffer};

use super::chunk::{Chunk, Output};
use super::spawn;
use crate::buffer::{BufferPool, PageBuffer};
use crate::failure::Failure;
use crate::stop::Stop;
use deflate::{DeflateJob, Deflater};
pub(super) use packer::{Outlet, Packer};

/// How outputs are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// With what.
    pub spec: CompressionSpec,
    /// Threads that compress for gzip, beside the lanes.
    pub threads: usize,
    /// Buffers for compressed bytes; of the same size as the others.
    pub buffers: usize,
}

/// What the level of gzip's default is (`Z_DEFAULT_COMPRESSION`, `zlib.h`).
const GZIP_DEFAULT: u32 = 6;
/// The most threads of one zstd stream: `ZSTDMT_NBWORKERS_MAX` (`zstdmt_compress.h`) on 64-bit machines.
const ZSTD_MOST_WORKERS: i32 = 200;

/// The level that zlib knows a specification's level by.
#[must_use]
pub fn gzip_level(spec: &CompressionSpec) -> u32 {
    u32::try_from(spec.level).unwrap_or(GZIP_DEFAULT)
}

/// What all lanes share for compressing.
#[derive(Clone, Debug)]
pub(super) struct Compressors {
    spec: CompressionSpec,
    pool: BufferPool,
    /// Where gzip's blocks are dealt from.
    jobs: Option<Sender<DeflateJob>>,
    threads: usize,
}

impl Compressors {
    /// Starts the threads. They end when every clone is gone.
    pub(super) fn start(
        compression: &Compression,
        buffer_size: usize,
        threads: &mut Vec<JoinHandle<()>>,
        stop: &Stop<Failure>,
    ) -> Result<Self, Failure> {
        let Compression { spec, threads: count, buffers } = *compression;
        let pool = BufferPool::new(buffers, buffer_size).map_err(|error| {
            Failure::Target(format!(
                "could not allocate buffers: {error}\nHINT: ask for less with --buffers."
            ))
        })?;
        let wake = pool.clone();
        stop.on_thrown(move || wake.close());
        let mut jobs = None;
        if spec.method == CompressionMethod::Gzip {
            let (input, output) = bounded::<DeflateJob>(count.max(1));
            for number in 0..count.max(1) {
                let (output, stop) = (output.clone(), stop.clone());
                threads.push(spawn(format!("deflate-{number}"), move || {
                    let _told = stop.tell_of_panics("a compressing thread");
                    deflate::work(&output, gzip_level(&spec));
                })?);
            }
            jobs = Some(input);
        }
        Ok(Self { spec, pool, jobs, threads: count.max(1) })
    }

    /// The pool of what goes to the writers.
    pub(super) fn pool(&self) -> &BufferPool {
        &self.pool
    }

    /// Begins an output.
    pub(super) fn begin(&self, output: Arc<Output>) -> Result<Compressor, Failure> {
        let coder = match (&self.jobs, self.spec.method) {
            (Some(jobs), _) => Coder::Gzip(Deflater::new(jobs.clone(), self.threads)),
            (None, CompressionMethod::Lz4) => Coder::Lz4(Lz4::new(&self.spec).map_err(failed)?),
            (None, _) => Coder::Zstd(zstd(&self.spec).map_err(failed)?),
        };
        Ok(Compressor { packer: Packer::new(self.pool.clone(), output), coder })
    }
}

/// One output on its way through compression.
pub(super) struct Compressor {
    packer: Packer,
    coder: Coder,
}

enum Coder {
    Gzip(Deflater),
    Lz4(Lz4),
    Zstd(Encoder<'static>),
}

impl Compressor {
    /// Whether it is this output.
    pub(super) fn is_of(&self, output: &Arc<Output>) -> bool {
        self.packer.is_of(output)
    }

    /// Takes the next chunk; at the last, all goes to the writer.
    pub(super) fn take(&mut self, chunk: Chunk, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        if let Some(data) = chunk.data {
            self.compress(data, outlet)?;
        }
        if chunk.ends_at.is_none() {
            return Ok(());
        }
        let packer = &mut self.packer;
        match &mut self.coder {
            Coder::Gzip(deflater) => deflater.finish(packer, outlet)?,
            Coder::Lz4(lz4) => lz4.finish(packer, outlet)?,
            Coder::Zstd(encoder) => loop {
                let mut room = OutBuffer::around(packer.room(outlet)?);
                let left = encoder.finish(&mut room, true).map_err(failed)?;
                let written = room.pos();
                packer.filled(written, outlet)?;
                if left == 0 {
                    break;
                }
            },
        }
        packer.finish(outlet)
    }

    fn compress(&mut self, data: PageBuffer, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        let packer = &mut self.packer;
        match &mut self.coder {
            Coder::Gzip(deflater) => deflater.take(data, packer, outlet),
            Coder::Lz4(lz4) => lz4.take(&data, packer, outlet),
            Coder::Zstd(encoder) => {
                let mut rest = &data[..];
                while !rest.is_empty() {
                    let room = packer.room(outlet)?;
                    let status = encoder.run_on_buffers(rest, room).map_err(failed)?;
                    rest = &rest[status.bytes_read..];
                    packer.filled(status.bytes_written, outlet)?;
                }
                Ok(())
            }
        }
    }
}

fn zstd(spec: &CompressionSpec) -> io::Result<Encoder<'static>> {
    let mut encoder = Encoder::new(spec.level)?;
    // As with lz4, so that `zstd -t` and every reader notice damage.
    encoder.set_parameter(CParameter::ChecksumFlag(true))?;
    if let Some(workers) = spec.workers {
        let workers = u32::try_from(workers.clamp(0, ZSTD_MOST_WORKERS)).unwrap_or(0);
        encoder.set_parameter(CParameter::NbWorkers(workers))?;
    }
    if let Some(long) = spec.long {
        encoder.set_parameter(CParameter::EnableLongDistanceMatching(long))?;
    }
    Ok(encoder)
}

/// One LZ4 frame.
struct Lz4 {
    encoder: Option<lz4::Encoder<Spill>>,
    spill: Spill,
}

/// What the encoder has written; at most one chunk's worth at a time.
#[derive(Clone, Default)]
struct Spill(Rc<RefCell<Vec<u8>>>);

impl Write for Spill {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lz4 {
    fn new(spec: &CompressionSpec) -> io::Result<Self> {
        let spill = Spill::default();
        let encoder = lz4::EncoderBuilder::new()
            .level(u32::try_from(spec.level).unwrap_or(0))
            // The size that PostgreSQL takes.
            .block_size(lz4::BlockSize::Max256KB)
            .checksum(lz4::ContentChecksum::ChecksumEnabled)
            .build(spill.clone())?;
        Ok(Self { encoder: Some(encoder), spill })
    }

    fn take(&mut self, data: &[u8], packer: &mut Packer, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        let encoder = self.encoder.as_mut().expect("the frame is not finished");
        encoder.write_all(data).map_err(failed)?;
        self.pack(packer, outlet)
    }

    fn finish(&mut self, packer: &mut Packer, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        let (_, finished) = self.encoder.take().expect("a frame is finished once").finish();
        finished.map_err(failed)?;
        self.pack(packer, outlet)
    }

    fn pack(&mut self, packer: &mut Packer, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        let mut bytes = self.spill.0.borrow_mut();
        packer.write(&bytes, outlet)?;
        bytes.clear();
        Ok(())
    }
}

/// Compression itself cannot fail but for want of memory.
fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Target(format!(
        "could not compress: {error}\nHINT: a lower compression level or fewer workers need less memory."
    ))
}
