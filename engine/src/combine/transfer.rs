//! How bytes get from sources to a file: read into buffers, checked, summed up and handed to a writer, or moved within the
//! kernel.
//!
//! A window of the file, a buffer's worth, takes one read from each source: an incremental file has the blocks of a window
//! one behind the other, and of the full file all from the first to the last that is needed is read in one piece, and what
//! newer backups have is laid over it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use pgstrata_protocol::BlockNumber;
use pgstrata_protocol::manifest::Checksum;
use pgstrata_protocol::page::{PAGE_SIZE, check_page};
use rustix::fs::Advice;

use super::assembly::{Assembly, Content, Piece};
use super::config::CopyMethod;
use super::observer::CombineProgress;
use super::plan::Plan;
use super::report::{Clock, Moment};
use super::run::Run;
use super::source_file::SourceFile;
use super::within_kernel::{clone_range, copy_range};
use crate::buffer::PageBuffer;
use crate::failure::Failure;
use crate::pipeline::{FileSender, Folder, Output, StageClock};

/// Fewer bytes are copied rather than shared: each shared range is one more extent of both files.
const LEAST_SHARED: u64 = 64 << 10;
/// Bytes of the file whose sources are asked for ahead.
const AHEAD: u64 = 8 << 20;
/// Bytes between two pieces of such advice.
const STRIDE: u64 = 4 << 20;

/// A part of a file on its way, with the sums of its bytes so far.
pub(super) struct Pass<'p> {
    pub(super) assembly: &'p Assembly,
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) sums: Vec<Checksum>,
}

/// One worker's way to the files.
pub(super) struct Transfer<'a> {
    run: &'a Run<'a>,
    files: FileSender,
    stage: StageClock,
    /// Blocks of one source on their way to their places in a window.
    scattered: Vec<u8>,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(run: &'a Run<'a>, files: FileSender) -> Self {
        Self { run, files, stage: StageClock::start(Arc::default()), scattered: Vec::new() }
    }

    /// Begins a file that a writer makes.
    pub(super) fn begin(&self, folder: &Arc<Folder>, name: &OsStr, length: u64) -> Arc<Output> {
        self.files.begin(Arc::clone(folder), name.to_owned(), self.run.file_mode, length)
    }

    /// Ends a file whose parts were all sent.
    pub(super) fn end(
        &mut self,
        output: &Arc<Output>,
        length: u64,
        clock: &mut Clock<'_>,
    ) -> Result<(), Failure> {
        let sent = self.files.send(output, length, None, Some(length), &mut self.stage);
        clock.book(Moment::Write);
        sent
    }

    /// Sends a part to the file's writer. The `only` part ends the file.
    pub(super) fn through_writer(
        &mut self,
        pass: &mut Pass<'_>,
        output: &Arc<Output>,
        only: bool,
        clock: &mut Clock<'_>,
    ) -> Result<(), Failure> {
        let (begin, end) = (pass.begin, pass.end);
        let mut offset = begin;
        while offset < end {
            let mut buffer = self.buffer(clock)?;
            let length = self.window(pass, offset, &mut buffer, clock)?;
            let ends_at = (only && offset + length == end).then_some(end);
            self.files.send(output, offset, Some(buffer), ends_at, &mut self.stage)?;
            clock.book(Moment::Write);
            self.run.tally.written(length);
            CombineProgress::add(&self.run.progress.bytes, length);
            offset += length;
        }
        if only && begin == end {
            self.end(output, end, clock)?;
        }
        Ok(())
    }

    /// Reads a part for its checksums alone.
    pub(super) fn only_read(&mut self, pass: &mut Pass<'_>, clock: &mut Clock<'_>) -> Result<(), Failure> {
        if pass.begin == pass.end || pass.sums.is_empty() {
            return Ok(());
        }
        let mut buffer = self.buffer(clock)?;
        let mut offset = pass.begin;
        while offset < pass.end {
            offset += self.window(pass, offset, &mut buffer, clock)?;
        }
        Ok(())
    }

    fn buffer(&self, clock: &mut Clock<'_>) -> Result<PageBuffer, Failure> {
        clock.book(Moment::Files);
        let buffer = self.run.pool()?.take().ok_or(Failure::Stopped);
        clock.book(Moment::Write);
        buffer
    }

    /// Fills a buffer with what the file has from `offset` on, checks it and sums it up. Returns how much that is.
    fn window(
        &mut self,
        pass: &mut Pass<'_>,
        offset: u64,
        buffer: &mut PageBuffer,
        clock: &mut Clock<'_>,
    ) -> Result<u64, Failure> {
        if self.run.stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        let Pass { assembly, begin, end, .. } = *pass;
        if offset == begin {
            advise(assembly, offset, end);
        } else if (offset - begin).is_multiple_of(STRIDE) {
            advise(assembly, offset.saturating_add(AHEAD - STRIDE), end);
        }
        let length = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buffer.capacity());
        let bytes = &mut buffer.as_mut_slice()[..length];
        match &assembly.content {
            Content::Whole(source) => {
                source.read(offset, bytes)?;
                self.run.tally.read(length as u64);
                clock.book(Moment::Read);
            }
            Content::Blocks { plan, sources, block_size, first_block } => {
                self.blocks(plan, sources, *block_size, offset, bytes)?;
                clock.book(Moment::Read);
                if let Some(first_block) = first_block.filter(|_| self.run.config.verify) {
                    self.check_pages(plan, sources, offset, first_block, bytes)?;
                }
            }
        }
        for sum in &mut pass.sums {
            sum.update(bytes);
        }
        buffer.set_len(length);
        clock.book(Moment::Checksums);
        Ok(length as u64)
    }

    /// Puts blocks together.
    fn blocks(
        &mut self,
        plan: &Plan,
        sources: &[SourceFile],
        block_size: u32,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), Failure> {
        let size = u64::from(block_size);
        let (block, count) = (number(offset / size), number(bytes.len() as u64 / size));
        let stretches: Vec<_> = plan.within(block, count).collect();
        let place = |block_at: u32| (block_at - block) as usize * block_size as usize;
        // The oldest has most of them, and is read right into its place; what lies over it comes after.
        for (number, source) in sources.iter().enumerate().rev() {
            let of_it = stretches.iter().filter_map(|stretch| {
                stretch.from.filter(|from| usize::from(from.source) == number).map(|from| (stretch, from.at))
            });
            let Some(first) = of_it.clone().map(|(_, at)| at).min() else { continue };
            let last = of_it.clone().map(|(stretch, at)| at + stretch.count).max().unwrap_or(first);
            let length = (last - first) as usize * block_size as usize;
            let from = source.header + u64::from(first) * size;
            self.run.tally.read(length as u64);
            if source.header == 0 {
                let at = place(first);
                source.read(from, &mut bytes[at..at + length])?;
                continue;
            }
            self.scattered.resize(length.max(self.scattered.len()), 0);
            let scattered = &mut self.scattered[..length];
            source.read(from, scattered)?;
            for (stretch, at) in of_it {
                let begin = (at - first) as usize * block_size as usize;
                let (to, length) = (place(stretch.block), stretch.count as usize * block_size as usize);
                bytes[to..to + length].copy_from_slice(&scattered[begin..begin + length]);
            }
        }
        for zeros in stretches.iter().filter(|stretch| stretch.from.is_none()) {
            let at = place(zeros.block);
            bytes[at..at + zeros.count as usize * block_size as usize].fill(0);
        }
        Ok(())
    }

    /// Compares pages with their own checksums, where the backup that they come from has any.
    fn check_pages(
        &self,
        plan: &Plan,
        sources: &[SourceFile],
        offset: u64,
        first_block: BlockNumber,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let (pages, _) = bytes.as_chunks::<PAGE_SIZE>();
        let block = number(offset / PAGE_SIZE as u64);
        for stretch in plan.within(block, number(pages.len() as u64)) {
            let Some(source) = stretch.from.and_then(|from| sources.get(usize::from(from.source))) else {
                continue;
            };
            let backup = &self.run.chain.backups[source.backup];
            if !backup.page_checksums {
                continue;
            }
            for step in 0..stretch.count {
                let number = BlockNumber(first_block.0.wrapping_add(stretch.block + step));
                let page = &pages[(stretch.block - block + step) as usize];
                check_page(page, number, backup.start).map_err(|error| {
                    Failure::Verification(format!(
                        "file \"{}\" has a damaged page: {error}\n\
                         HINT: the backup was changed, or is damaged; --no-verify-checksums takes it as it is.",
                        source.path.display()
                    ))
                })?;
            }
        }
        Ok(())
    }

    /// Moves a part to its place without reading it, as far as that goes.
    pub(super) fn within_kernel(
        &mut self,
        assembly: &Assembly,
        file: &File,
        (begin, end): (u64, u64),
        clock: &mut Clock<'_>,
    ) -> Result<(), Failure> {
        let shown = self.run.shown(&assembly.path);
        for piece in assembly.pieces(begin, end) {
            if self.run.stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            if self.run.config.method == CopyMethod::CopyFileRange {
                copy_range(piece.source, piece.from, piece.length, file, piece.to, &shown)?;
                self.run.tally.shared(piece.length);
            } else {
                self.share(&piece, file, &shown)?;
            }
            CombineProgress::add(&self.run.progress.bytes, piece.length);
            clock.book(Moment::Write);
        }
        Ok(())
    }

    /// Has a file share a range, or copies it where that is not worth it or does not work.
    fn share(&mut self, piece: &Piece<'_>, file: &File, shown: &std::path::Path) -> Result<(), Failure> {
        let Piece { source, from, to, length } = *piece;
        if length >= LEAST_SHARED && source.shares() {
            let shared = clone_range(source, from, length, file, to)
                .map_err(|error| Failure::disk("share a range with", shown, error))?;
            if shared {
                self.run.tally.shared(length);
                return Ok(());
            }
            source.does_not_share();
        }
        let mut done = 0;
        while done < length {
            let step = usize::try_from(length - done)
                .unwrap_or(usize::MAX)
                .min(self.run.config.resources.buffer_size);
            self.scattered.resize(step.max(self.scattered.len()), 0);
            let bytes = &mut self.scattered[..step];
            source.read(from + done, bytes)?;
            file.write_all_at(bytes, to + done)
                .map_err(|error: io::Error| Failure::disk("write to", PathBuf::from(shown), error))?;
            self.run.tally.read(step as u64);
            self.run.tally.written(step as u64);
            done += step as u64;
        }
        Ok(())
    }
}

/// A number of blocks, of which a file has at most `u32::MAX`.
fn number(blocks: u64) -> u32 {
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

/// Has the kernel fetch what is read next, from `from` on.
fn advise(assembly: &Assembly, from: u64, end: u64) {
    let until = end.min(from.saturating_add(AHEAD));
    if from >= until {
        return;
    }
    let pieces = assembly.pieces(from, until);
    // From each source one range that holds all that is needed of it.
    for source in assembly.sources() {
        let of_it = || pieces.iter().filter(|piece| std::ptr::eq(piece.source, source));
        let first = of_it().map(|piece| piece.from).min();
        let last = of_it().map(|piece| piece.from + piece.length).max();
        if let (Some(first), Some(last)) = (first, last) {
            // Advice: if it is not taken, it merely takes longer.
            let _ = rustix::fs::fadvise(&source.file, first, NonZeroU64::new(last - first), Advice::WillNeed);
        }
    }
}
