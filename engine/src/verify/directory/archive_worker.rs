//! Reads what lies in archives and sums it up: members of which the place is known, and archives that stream by.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crossbeam::channel::Receiver;
use pgstrata_protocol::manifest::{Checksum, ChecksumAlgorithm, ChecksumValue};
use pgstrata_protocol::tar::{MemberKind, TarEvent, TarMember};
use rustix::io::Errno;

use super::archive::Archive;
use super::archive_members::{FoundMember, MemberSpool, lost};
use super::archive_wal::{StreamedSegment, WalStreams, segment_name};
use super::problem::Problem;
use super::report::{Moment, WorkerClock};
use super::run::Run;
use super::tally::Tally;
use super::tree::is_tablespace;
use super::{BUFFER, CONTROL_FILE, CONTROL_HEAD, ManifestFacts, identifier_of};
use crate::failure::Failure;

/// What a worker is to do.
pub(super) enum Task {
    /// Read members of one archive, whose places are known.
    Members { archive: usize, members: Vec<Member> },
    /// Read a whole archive as it decompresses.
    Stream { archive: usize },
}

/// A member of an archive that is not compressed.
pub(super) struct Member {
    /// As the manifest names it.
    pub(super) path: Vec<u8>,
    /// Where its content begins.
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// What all workers share.
pub(super) struct Shared<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) facts: &'a ManifestFacts,
    pub(super) archives: &'a [Archive],
    pub(super) tally: Tally,
    pub(super) streams: WalStreams,
    /// Whether WAL is to be read out of the archives.
    pub(super) with_wal: bool,
    /// The cluster that the control file names.
    pub(super) control: Mutex<Option<u64>>,
    /// Whether an archive could not be read to its end.
    pub(super) broken: AtomicBool,
}

impl Shared<'_> {
    /// Reports an archive that cannot be read to its end.
    pub(super) fn report_broken(&self, archive: &Archive, reason: &str) -> Result<(), Failure> {
        self.broken.store(true, Ordering::Relaxed);
        self.run.report(archive.broken(reason))
    }

    /// Reports a member that is neither a file, nor a folder, nor a tablespace's link.
    pub(super) fn check_kind(&self, path: &[u8], kind: &MemberKind) -> Result<(), Failure> {
        match kind {
            MemberKind::Symlink { .. } if !is_tablespace(path) => {
                self.run.report(Problem::NotRegular { path: path.to_vec(), kind: "symbolic link" })
            }
            _ => Ok(()),
        }
    }

    fn take_control(&self, head: &[u8]) -> Result<(), Failure> {
        let Some(head) = head.first_chunk::<CONTROL_HEAD>() else { return Ok(()) };
        let found = identifier_of(head);
        *self.control.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        match self.facts.summary.system_identifier {
            Some(expected) if expected != found => {
                self.run.report(Problem::SystemIdentifier { found, expected })
            }
            _ => Ok(()),
        }
    }
}

/// A worker.
pub(super) struct Worker<'a> {
    shared: &'a Shared<'a>,
    spool: MemberSpool,
    clock: WorkerClock<'a>,
    buffer: Vec<u8>,
}

/// A member that is being summed up.
struct Summing {
    path: Vec<u8>,
    size: u64,
    checksum: Checksum,
    /// The first bytes of a control file.
    control: Option<Vec<u8>>,
}

/// What a streamed member's bytes are for.
enum Current {
    Nothing,
    File(Box<Summing>),
    Segment(StreamedSegment),
}

impl<'a> Worker<'a> {
    pub(super) fn new(shared: &'a Shared<'a>, clock: WorkerClock<'a>) -> Self {
        Self { shared, spool: MemberSpool::new(), clock, buffer: vec![0; BUFFER] }
    }

    /// Works until there is nothing more to do. Returns the members that were read.
    pub(super) fn run(mut self, tasks: &Receiver<Task>) -> Result<MemberSpool, Failure> {
        loop {
            self.clock.book(Moment::Checksums);
            let Ok(task) = tasks.recv() else { return Ok(self.spool) };
            self.clock.book(Moment::Manifest);
            match task {
                Task::Members { archive, members } => self.read_members(archive, members)?,
                Task::Stream { archive } => self.stream(archive)?,
            }
        }
    }

    fn read_members(&mut self, number: usize, members: Vec<Member>) -> Result<(), Failure> {
        let archive = &self.shared.archives[number];
        let ends = members.first().zip(members.last());
        let read = ends.map(|(first, last)| (first.offset, last.offset.saturating_add(last.size)));
        for member in members {
            self.read_member(number, member)?;
        }
        if let Some((start, end)) = read {
            archive.forget(start, end);
        }
        Ok(())
    }

    fn read_member(&mut self, number: usize, member: Member) -> Result<(), Failure> {
        let (run, archive) = (self.shared.run, &self.shared.archives[number]);
        let Member { path, offset, size } = member;
        let mut summing = self.begin(path, size);
        let needed = match (&summing.checksum, &summing.control) {
            (Checksum::None, None) => 0,
            (Checksum::None, Some(_)) => size.min(CONTROL_HEAD as u64),
            _ => size,
        };
        let mut done = 0;
        while done < needed {
            if run.stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            let length = usize::try_from(needed - done).map_or(BUFFER, |left| left.min(BUFFER));
            self.clock.book(Moment::Checksums);
            let read = rustix::io::pread(&*archive.file, &mut self.buffer[..length], offset + done);
            self.clock.book(if archive.clean_up { Moment::Device } else { Moment::Checksums });
            match read {
                Ok(0) => {
                    let at = offset + done;
                    let reason = format!("the archive ends at byte {at} inside of a member's content");
                    return self.shared.report_broken(archive, &reason);
                }
                Ok(read) => {
                    summing.update(&self.buffer[..read]);
                    done += read as u64;
                    run.progress.bytes.fetch_add(read as u64, Ordering::Relaxed);
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    let reason = format!("could not read the archive at byte {}: {error}", offset + done);
                    return self.shared.report_broken(archive, &reason);
                }
            }
        }
        self.end(number, summing)
    }

    fn stream(&mut self, number: usize) -> Result<(), Failure> {
        let (shared, archive) = (self.shared, &self.shared.archives[number]);
        let prefix = archive.prefix();
        let mut current = Current::Nothing;
        let read = archive.stream(shared.run, &mut |event| {
            match event {
                TarEvent::Member(member) => current = self.begin_streamed(archive, &prefix, &member)?,
                TarEvent::Data(bytes) => match &mut current {
                    Current::Nothing => {}
                    Current::File(summing) => {
                        summing.update(bytes);
                        if !matches!(summing.checksum, Checksum::None) {
                            shared.run.progress.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        }
                    }
                    Current::Segment(segment) => {
                        shared.streams.push(shared.run, segment, bytes)?;
                        shared.run.progress.wal_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    }
                },
                TarEvent::MemberEnd => {
                    if let Current::File(summing) = std::mem::replace(&mut current, Current::Nothing) {
                        self.end(number, *summing)?;
                    }
                }
            }
            Ok(())
        })?;
        match read {
            Ok(()) => Ok(()),
            Err(reason) => shared.report_broken(archive, &reason),
        }
    }

    fn begin_streamed(
        &self,
        archive: &Archive,
        prefix: &[u8],
        member: &TarMember,
    ) -> Result<Current, Failure> {
        let shared = self.shared;
        let path = [prefix, member.path.as_bytes()].concat();
        let MemberKind::File { size } = member.kind else {
            shared.check_kind(&path, &member.kind)?;
            return Ok(Current::Nothing);
        };
        if let Some(name) = segment_name(archive, &path) {
            if !shared.with_wal {
                return Ok(Current::Nothing);
            }
            let begun = shared.streams.begin(shared.run, archive, name, size)?;
            return Ok(begun.map_or(Current::Nothing, Current::Segment));
        }
        if !shared.is_compared(archive, &path) {
            return Ok(Current::Nothing);
        }
        Ok(Current::File(Box::new(self.begin(path, size))))
    }

    fn begin(&self, path: Vec<u8>, size: u64) -> Summing {
        let Shared { run, facts, .. } = self.shared;
        let algorithm = if run.config.skip_checksums { None } else { facts.algorithms.of(&run.keys, &path) };
        let control = (path == CONTROL_FILE).then(Vec::new);
        Summing { path, size, checksum: Checksum::new(algorithm.unwrap_or(ChecksumAlgorithm::None)), control }
    }

    fn end(&mut self, archive: usize, summing: Summing) -> Result<(), Failure> {
        let Summing { path, size, checksum, control } = summing;
        let progress = self.shared.run.progress;
        if let Some(head) = control {
            self.shared.take_control(&head)?;
        }
        if !matches!(checksum, Checksum::None) {
            progress.files.fetch_add(1, Ordering::Relaxed);
        }
        progress.files_seen.fetch_add(1, Ordering::Relaxed);
        let checksum: ChecksumValue = checksum.finish();
        self.shared.tally.add_content(&self.shared.run.keys, &path, size, checksum.as_bytes());
        let noted: io::Result<()> = self.spool.add(&FoundMember { archive, path, size, checksum });
        noted.map_err(|error| lost(&error))
    }
}

impl Shared<'_> {
    /// Whether the manifest has a say about a member.
    pub(super) fn is_compared(&self, archive: &Archive, path: &[u8]) -> bool {
        archive.content != super::archive::Content::Wal && !self.run.config.ignore.covers(path)
    }
}

impl Summing {
    fn update(&mut self, bytes: &[u8]) {
        self.checksum.update(bytes);
        if let Some(head) = &mut self.control {
            head.extend_from_slice(&bytes[..bytes.len().min(CONTROL_HEAD - head.len().min(CONTROL_HEAD))]);
        }
    }
}
