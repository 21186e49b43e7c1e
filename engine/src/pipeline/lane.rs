//! A worker lane: checks what passes, byte by byte, and hands it on to the writers.
//!
//! A lane sees whole outputs in order, so it holds the state of one member at a time. With nothing to
//! write to (a discarding run) the buffers go straight back to the pool. Where outputs are compressed, the lane
//! compresses them or has it done, and hands on the compressed bytes.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use pgstrata_protocol::incremental::IncrementalError;
use pgstrata_protocol::manifest::{Checksum, ChecksumAlgorithm};

use super::chunk::{Chunk, Member, Span};
use super::compress::{Compressor, Compressors, Outlet};
use super::feeder::send;
use super::findings::Findings;
use super::pack::FramePacker;
use super::stage::{Spent, StageClock};
use super::writer::WriterHandle;
use crate::failure::Failure;
use crate::stop::Stop;
use crate::verify::{ArrivedMember, ContentChecker, ContentChecks};

/// What a lane checks.
#[derive(Clone, Debug)]
pub struct Checks {
    /// The checksum of each member, [`ChecksumAlgorithm::None`] for none.
    pub algorithm: ChecksumAlgorithm,
    /// What is looked for within members.
    pub content: ContentChecks,
}

/// A lane's ends.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) input: Receiver<Chunk>,
    pub(super) writers: Vec<WriterHandle>,
    pub(super) ledger: Sender<ArrivedMember>,
    pub(super) checks: Checks,
    pub(super) compressors: Option<Compressors>,
    /// Where outputs are frames of a repository.
    pub(super) packer: Option<FramePacker>,
    pub(super) findings: Arc<Findings>,
    pub(super) stop: Stop<Failure>,
    pub(super) clock: StageClock,
}

struct Current {
    member: Arc<Member>,
    checksum: Checksum,
}

impl Lane {
    /// Works until the feeder is gone and its last chunk is handed on.
    pub(super) fn run(mut self) {
        let (mut current, mut compressor) = (None, None);
        let mut content = ContentChecker::new(self.checks.content.clone());
        self.clock.book(Spent::Starved);
        while let Ok(chunk) = self.input.recv() {
            self.clock.book(Spent::Starved);
            // After a stop the rest is only drained, so that nobody in front of us blocks.
            if self.stop.is_thrown() {
                continue;
            }
            let passed = self.pass(&mut current, &mut content, &chunk);
            match passed.and_then(|()| self.hand_on(&mut compressor, chunk)) {
                Ok(()) | Err(Failure::Stopped) => {}
                Err(failure) => self.stop.throw(failure),
            }
            self.clock.book(Spent::Busy);
        }
        if let Some(wal) = content.into_wal() {
            self.findings.wal(wal);
        }
        self.end_packing();
    }

    /// Ends the pack that this lane has filled.
    fn end_packing(&mut self) {
        let Self { writers, clock, packer, stop, .. } = self;
        if let Some(packer) = packer.as_mut().filter(|_| !stop.is_thrown()) {
            match packer.finish(&mut Outlet { writers, clock }) {
                Ok(()) | Err(Failure::Stopped) => {}
                Err(failure) => stop.throw(failure),
            }
        }
    }

    fn pass(
        &mut self,
        current: &mut Option<Current>,
        content: &mut ContentChecker,
        chunk: &Chunk,
    ) -> Result<(), Failure> {
        for Span { member, range, ends, .. } in &chunk.spans {
            let bytes = chunk.data.as_ref().map_or(&[][..], |data| &data[range.clone()]);
            let state = current.get_or_insert_with(|| {
                content.begin(&member.path, member.size);
                // Of what does not pass whole nobody knows the checksum.
                let is_whole = member.overlay.as_ref().is_none_or(|overlay| overlay.is_whole());
                let algorithm = if is_whole { self.checks.algorithm } else { ChecksumAlgorithm::None };
                Current { checksum: Checksum::new(algorithm), member: Arc::clone(member) }
            });
            debug_assert!(Arc::ptr_eq(&state.member, member), "members arrive one after the other");
            state.checksum.update(bytes);
            let passed = content.update(bytes, |page| self.findings.page(member.display_path(), page));
            passed.map_err(|error| malformed(member, &error))?;
            self.clock.counters().passed(bytes.len());
            if *ends && let Some(done) = current.take() {
                content.end().map_err(|error| malformed(member, &error))?;
                let arrived = ArrivedMember {
                    sequence: done.member.sequence,
                    path: done.member.path.clone(),
                    size: done.member.size,
                    modified: done.member.modified,
                    checksum: done.checksum.finish(),
                };
                send(&self.ledger, arrived, &mut self.clock)?;
            }
        }
        Ok(())
    }

    fn hand_on(&mut self, compressor: &mut Option<Compressor>, chunk: Chunk) -> Result<(), Failure> {
        let Self { writers, clock, compressors, packer, .. } = self;
        let mut outlet = Outlet { writers, clock };
        if let Some(packer) = packer {
            return packer.take(chunk, &mut outlet);
        }
        let Some(compressors) = compressors.as_ref().filter(|_| chunk.output.writer.is_some()) else {
            return outlet.send(chunk);
        };
        // A lane has one such output at a time.
        let current = match &mut *compressor {
            Some(current) => current,
            none => none.insert(compressors.begin(Arc::clone(&chunk.output))?),
        };
        debug_assert!(current.is_of(&chunk.output), "outputs arrive one after the other");
        let ends = chunk.ends_at.is_some();
        current.take(chunk, &mut outlet)?;
        if ends {
            *compressor = None;
        }
        Ok(())
    }
}

/// What an incremental file that is none comes to. Nothing could be made of the backup later.
fn malformed(member: &Member, error: &IncrementalError) -> Failure {
    let path = member.display_path().display();
    match error {
        IncrementalError::TruncationLength { .. } => Failure::Verification(format!(
            "incremental file \"{path}\": {error}\n\
             HINT: no tool can combine it, and servers before 17.8 and 18.2 write such files of tables of more than one \
             segment that were truncated: update the server, or take a full backup."
        )),
        _ => Failure::stream(format!("incremental file \"{path}\""), error),
    }
}
