//! Verifies a backup in tar format: its archives, all cores at a time.
//!
//! ```text
//! base.tar ─► headers ─► places of members ─┐
//!                                           ├─► workers: read, sum up ─► tally ─ equal? ─► done
//! 16384.tar.zst ────────────────────────────┘                    └────► spool ── no ───► name what differs
//! ```
//! Of an archive that is not compressed only the headers are read in their order; what lies between them is dealt to
//! the workers. A compressed archive is one worker's.
//!
//! Invariants: nothing is unpacked, and no member's name opens anything; memory does not grow with the number of members
//! or their sizes, but for the places of the WAL segments that are needed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam::channel::{Sender, bounded};
use pgstrata_protocol::tar::{MemberKind, TarDecoder, TarError, TarEvent};
use rustix::io::Errno;

use super::archive::{self, Archive, Compression};
use super::archive_members::{MemberSpool, resolve, rounds};
use super::archive_wal::{WalStreams, is_needed, segment_name};
use super::archive_worker::{Member, Shared, Task, Worker};
use super::progress::VerifyPhase;
use super::report::{VerifySeconds, WorkerClock, WorkerTimes};
use super::run::Run;
use super::tally::Tally;
use super::wal_store::{SegmentPlace, WalStore};
use super::way::Way;
use super::{BUFFER, ManifestFacts, Reading, all_started, wal};
use crate::failure::Failure;

/// The most members that are handed over together.
const HAND: usize = 64;
/// The bytes that make a hand full.
const HAND_BYTES: u64 = 4 << 20;
/// Of more WAL segments than this the rest is not looked for.
const MOST_SEGMENTS: usize = 1 << 20;
/// What a read of headers takes: as much as several small members.
const WINDOW: usize = 64 << 10;

/// Archives and their members, then WAL.
pub(super) fn compare(
    run: &Run<'_>,
    facts: &ManifestFacts,
    way: Way,
    seconds: &mut VerifySeconds,
) -> Result<Reading, Failure> {
    let began = Instant::now();
    run.progress.enter(VerifyPhase::Checksums);
    let archives = archive::discover(run)?;
    let with_wal = run.config.parse_wal && run.config.wal_directory.is_none();
    let shared = Shared {
        run,
        facts,
        archives: &archives,
        tally: Tally::new(),
        streams: WalStreams::new(&facts.wal_ranges, facts.summary.system_identifier),
        with_wal,
        control: Mutex::new(None),
        broken: AtomicBool::new(false),
    };
    let times = WorkerTimes::default();
    let read = read_archives(&shared, &times);
    seconds.checksums = began.elapsed().as_secs_f64();
    let (mut spools, segments) = read?;

    let began = Instant::now();
    run.progress.enter(VerifyPhase::Presence);
    let all_read = !shared.broken.load(Ordering::Relaxed);
    let named = rounds(facts, &shared.tally)
        .iter()
        .try_for_each(|round| resolve(run, facts, &archives, &mut spools, round, all_read));
    seconds.presence = began.elapsed().as_secs_f64();
    named?;

    let Shared { streams, control, .. } = shared;
    let control = control.into_inner().unwrap_or_else(PoisonError::into_inner);
    let identifier = facts.summary.system_identifier.or(control);
    let began = Instant::now();
    run.progress.enter(VerifyPhase::Wal);
    let checked = if with_wal {
        streams
            .finish(run, identifier)
            .and_then(|left| wal::check(run, &left, &WalStore::Members(segments), identifier))
    } else if run.config.parse_wal {
        wal::check_folder(run, &facts.wal_ranges, identifier)
    } else {
        Ok(())
    };
    seconds.wal = began.elapsed().as_secs_f64();
    checked?;
    Ok(Reading { way, from_cache: 0, workers: times.seconds() })
}

type Segments = HashMap<Vec<u8>, SegmentPlace>;

/// Reads every archive. Returns what was found in them, and where WAL lies.
fn read_archives(shared: &Shared<'_>, times: &WorkerTimes) -> Result<(Vec<MemberSpool>, Segments), Failure> {
    let run = shared.run;
    let workers = run.config.resources.workers.max(1);
    let (sender, receiver) = bounded(2 * workers);
    thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|number| {
                let tasks = receiver.clone();
                let work = move || {
                    Worker::new(shared, WorkerClock::start(times)).run(&tasks).inspect_err(|failure| {
                        // The others are to end too; the first reason is the one that is told.
                        if !matches!(failure, Failure::Stopped) {
                            run.stop.throw_quietly();
                        }
                    })
                };
                thread::Builder::new()
                    .name(format!("verify-{number}"))
                    .spawn_scoped(scope, work)
                    .map_err(|error| Failure::disk("start a thread to read", &run.config.backup, error))
            })
            .collect();
        // With the last worker the queue is to close, so that dealing ends.
        drop(receiver);
        let mut outcome = all_started(&handles).and_then(|()| deal(shared, &sender));
        drop(sender);
        let mut spools = Vec::new();
        for handle in handles.into_iter().flatten() {
            match (handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), &outcome) {
                (Ok(spool), _) => spools.push(spool),
                (Err(failure), Ok(_) | Err(Failure::Stopped)) => outcome = Err(failure),
                (Err(_), Err(_)) => {}
            }
        }
        outcome.map(|segments| (spools, segments))
    })
}

/// Hands out what is to be read.
fn deal(shared: &Shared<'_>, workers: &Sender<Task>) -> Result<Segments, Failure> {
    let numbered = || shared.archives.iter().enumerate();
    // They take the longest, as each keeps one worker busy.
    for (archive, _) in numbered().filter(|(_, archive)| archive.compression != Compression::None) {
        workers.send(Task::Stream { archive }).map_err(|_| Failure::Stopped)?;
    }
    let mut segments = Segments::new();
    for (number, archive) in numbered().filter(|(_, archive)| archive.compression == Compression::None) {
        let mut dealer = Dealer { shared, workers, number, archive, hand: Vec::new(), bytes: 0 };
        if let Err(reason) = dealer.deal(&mut segments)? {
            shared.report_broken(archive, &reason)?;
        }
    }
    Ok(segments)
}

/// Reads the headers of one archive.
struct Dealer<'a> {
    shared: &'a Shared<'a>,
    workers: &'a Sender<Task>,
    number: usize,
    archive: &'a Archive,
    hand: Vec<Member>,
    bytes: u64,
}

impl Dealer<'_> {
    /// The outer error ends the run, the inner one says what is wrong with the archive.
    fn deal(&mut self, segments: &mut Segments) -> Result<Result<(), String>, Failure> {
        let prefix = self.archive.prefix();
        let (mut decoder, mut window) = (TarDecoder::new(), vec![0; WINDOW.min(BUFFER)]);
        let outcome = loop {
            if self.shared.run.stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            // The decoder stands behind all that it was given and all that was skipped.
            let mut input = match rustix::io::pread(&*self.archive.file, &mut window, decoder.offset()) {
                Ok(0) if decoder.offset() > self.archive.length => {
                    let (offset, place) = (self.archive.length, "a member's content");
                    break Err(TarError::Cut { offset, place }.to_string());
                }
                Ok(0) => break decoder.finish().map_err(|error| error.to_string()),
                Ok(read) => &window[..read],
                Err(Errno::INTR) => continue,
                Err(error) => break Err(format!("could not read the archive: {error}")),
            };
            if let Err(error) = self.take_headers(&mut decoder, &mut input, &prefix, segments)? {
                break Err(error.to_string());
            }
        };
        self.send()?;
        Ok(outcome)
    }

    fn take_headers(
        &mut self,
        decoder: &mut TarDecoder,
        input: &mut &[u8],
        prefix: &[u8],
        segments: &mut Segments,
    ) -> Result<Result<(), TarError>, Failure> {
        loop {
            let member = match decoder.next(input) {
                Ok(Some(TarEvent::Member(member))) => member,
                Ok(Some(_)) => continue,
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            };
            let path = [prefix, member.path.as_bytes()].concat();
            let MemberKind::File { size } = member.kind else {
                self.shared.check_kind(&path, &member.kind)?;
                continue;
            };
            let offset = decoder.offset();
            decoder.skip_content(input);
            // One that the archive does not hold whole is told when its end is not found.
            if offset.saturating_add(size) > self.archive.length {
                continue;
            }
            if let Some(name) = segment_name(self.archive, &path) {
                let ranges = &self.shared.facts.wal_ranges;
                if self.shared.with_wal && segments.len() < MOST_SEGMENTS && is_needed(ranges, name, size) {
                    let (file, archive) = (Arc::clone(&self.archive.file), Arc::clone(&self.archive.name));
                    let place = SegmentPlace { file, archive, offset, length: size };
                    segments.insert(name.as_bytes().to_vec(), place);
                }
            } else if self.shared.is_compared(self.archive, &path) {
                self.hand.push(Member { path, offset, size });
                self.bytes = self.bytes.saturating_add(size);
                if self.hand.len() >= HAND || self.bytes >= HAND_BYTES {
                    self.send()?;
                }
            }
        }
    }

    fn send(&mut self) -> Result<(), Failure> {
        self.bytes = 0;
        let task = Task::Members { archive: self.number, members: std::mem::take(&mut self.hand) };
        self.workers.send(task).map_err(|_| Failure::Stopped)
    }
}
