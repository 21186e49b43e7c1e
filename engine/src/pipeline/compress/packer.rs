//! Packs compressed bytes into full buffers and sends them to the output's writer.

use std::sync::Arc;

use super::super::chunk::{Chunk, Output};
use super::super::feeder::take_buffer;
use super::super::stage::StageClock;
use super::super::writer::WriterHandle;
use crate::buffer::{BufferPool, PageBuffer};
use crate::failure::Failure;

/// Where a lane's chunks go, and the clock of the lane.
pub(in super::super) struct Outlet<'a> {
    pub(in super::super) writers: &'a [WriterHandle],
    pub(in super::super) clock: &'a mut StageClock,
}

impl Outlet<'_> {
    /// Hands a chunk to its writer; without one it is done with.
    pub(in super::super) fn send(&mut self, chunk: Chunk) -> Result<(), Failure> {
        match chunk.output.writer.and_then(|writer| self.writers.get(writer)) {
            Some(writer) => writer.send(chunk, self.clock),
            None => Ok(()),
        }
    }
}

/// The end of one output that is being filled.
pub(in super::super) struct Packer {
    pool: BufferPool,
    output: Arc<Output>,
    offset: u64,
    buffer: Option<PageBuffer>,
}

impl Packer {
    pub(in super::super) fn new(pool: BufferPool, output: Arc<Output>) -> Self {
        Self { pool, output, offset: 0, buffer: None }
    }

    pub(super) fn is_of(&self, output: &Arc<Output>) -> bool {
        Arc::ptr_eq(&self.output, output)
    }

    /// Room for bytes, never empty; say how many were put there with [`Self::filled`].
    pub(super) fn room(&mut self, outlet: &mut Outlet<'_>) -> Result<&mut [u8], Failure> {
        let buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => take_buffer(&self.pool, outlet.clock)?,
        };
        Ok(self.buffer.insert(buffer).spare_mut())
    }

    /// `count` bytes were put into the room.
    pub(super) fn filled(&mut self, count: usize, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        let buffer = self.buffer.as_mut().expect("room was asked for");
        buffer.set_len(buffer.len() + count);
        if buffer.remaining() == 0 { self.send(false, outlet) } else { Ok(()) }
    }

    pub(in super::super) fn write(
        &mut self,
        mut bytes: &[u8],
        outlet: &mut Outlet<'_>,
    ) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let room = self.room(outlet)?;
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            self.filled(count, outlet)?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Sends what is left, and with it the output's length.
    pub(in super::super) fn finish(&mut self, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        self.send(true, outlet)
    }

    fn send(&mut self, last: bool, outlet: &mut Outlet<'_>) -> Result<(), Failure> {
        let data = self.buffer.take();
        let end = self.offset + data.as_ref().map_or(0, PageBuffer::len) as u64;
        let chunk = Chunk {
            output: Arc::clone(&self.output),
            offset: self.offset,
            data,
            spans: Vec::new(),
            ends_at: last.then_some(end),
        };
        self.offset = end;
        outlet.send(chunk)
    }
}
