//! What changed between two positions, by the WAL in an archive.
//!
//! Notes on what folders of segments and single segments changed are joined in the order of the log; where there is none, the
//! segment itself is read; where that is not in the archive yet, it may be had from a server's `pg_wal`.
//!
//! Invariants: the answer covers every record that begins in the range, and may cover more, up to whole segments at both ends,
//! which only makes more count as changed. All stretches hang together record by record; where one is missing, or does not
//! follow upon the one before, there is no answer but what is missing.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::thread;

use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::replication::TimelineHistory;
use pgstrata_protocol::summary::BlockReferences;
use pgstrata_protocol::wal::{StretchSummarizer, WalOrigin, WalStretch};
use pgstrata_protocol::{Lsn, TimelineId};

use crate::failure::Failure;
use crate::repository::{ChangesName, ClusterName, Repository, SegmentName, WalName};
use crate::stop::Stop;
use crate::walarchive::{per_folder, read_received};

/// Stretches that are read at a time.
const WAVE: usize = 16;
/// Bytes of a segment that are read at a time.
const PIECE: usize = 1 << 20;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct ArchiveRange<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// Whose archive.
    pub cluster: &'a ClusterName,
    /// The system whose WAL it has to be.
    pub system_identifier: u64,
    /// The size of its segments.
    pub segment_size: WalSegmentSize,
    /// The history of the timeline at the range's end; without switches for the first timeline.
    pub history: &'a TimelineHistory,
    /// The timeline at the range's beginning.
    pub from_timeline: TimelineId,
    /// The beginning: a backup's start, where a record begins.
    pub from: Lsn,
    /// The end, where a record ends: the new backup's start.
    pub to: Lsn,
    /// A server's `pg_wal`, for what is not archived yet.
    pub pg_wal: Option<&'a Path>,
}

/// What the WAL of a range changed.
#[derive(Debug, Default)]
pub struct ArchiveChanges {
    /// The blocks and the limits of forks. Changes of free space maps are not all among them, nor are those of visibility maps.
    pub references: BlockReferences,
    /// Segments that had to be read.
    pub segments_read: u64,
    /// Notes that were read.
    pub notes_read: u64,
}

/// Why the WAL of a range does not tell what changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// The range does not lie on one history.
    #[error("timeline {timeline} at {at} is not in the history of timeline {of}")]
    History {
        /// The timeline at the beginning.
        timeline: TimelineId,
        /// The beginning.
        at: Lsn,
        /// The timeline at the end.
        of: TimelineId,
    },
    /// A segment is not there, or not far enough.
    #[error("the archive has no whole WAL segment {segment}")]
    Segment {
        /// Its name.
        segment: SegmentName,
    },
    /// The WAL does not hang together, or is not understood.
    #[error("{0}")]
    Unusable(String),
    /// Less was logged than is needed.
    #[error("wal_level was minimal at {at}, so not all changes are in the WAL")]
    Minimal {
        /// Where the log says so.
        at: Lsn,
    },
}

/// Something to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Folder { timeline: TimelineId, high: u32 },
    Segment(WalSegment),
}

type Found<T> = Result<Result<T, Missing>, Failure>;

/// Says what changed in a range, or what is missing for that.
///
/// # Errors
/// Where the repository cannot be read.
pub fn archive_changes(range: &ArchiveRange<'_>, stop: &Stop<Failure>) -> Found<ArchiveChanges> {
    if let Some(missing) = range.off_history() {
        return Ok(Err(missing));
    }
    if range.from >= range.to {
        return Ok(Ok(ArchiveChanges::default()));
    }
    let mut all: Option<WalStretch> = None;
    let (mut segments_read, mut notes_read) = (0, 0);
    for wave in range.steps().chunks(WAVE) {
        if stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        let read = thread::scope(|scope| {
            let threads: Vec<_> = wave.iter().map(|step| scope.spawn(|| range.read(*step))).collect();
            let ended = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(ended).collect::<Vec<Found<Stretch>>>()
        });
        for found in read {
            let next = match found? {
                Ok(next) => next,
                Err(missing) => return Ok(Err(missing)),
            };
            segments_read += next.segments_read;
            notes_read += next.notes_read;
            all = Some(match all {
                None => next.stretch,
                Some(before) => match before.join(next.stretch) {
                    Ok(joined) => joined,
                    Err(error) => return Ok(Err(Missing::Unusable(error.to_string()))),
                },
            });
        }
    }
    let Some(all) = all else { return Ok(Ok(ArchiveChanges::default())) };
    if let Some(at) = all.links.minimal {
        return Ok(Err(Missing::Minimal { at }));
    }
    if let Some(tail) = all.tail.filter(|tail| tail.start < range.to) {
        return Ok(Err(Missing::Unusable(format!(
            "the WAL record at {} does not end before {}",
            tail.start, range.to
        ))));
    }
    Ok(Ok(ArchiveChanges { references: all.references, segments_read, notes_read }))
}

/// A stretch, and what was read for it.
struct Stretch {
    stretch: WalStretch,
    segments_read: u64,
    notes_read: u64,
}

impl ArchiveRange<'_> {
    fn number(&self, lsn: Lsn) -> u64 {
        lsn.0 / self.segment_size.bytes()
    }

    /// Why the beginning is not on the history, where that is so.
    fn off_history(&self) -> Option<Missing> {
        let TimelineHistory { timeline: of, switches } = self.history;
        let left = switches.iter().find(|switch| switch.timeline == self.from_timeline);
        let is_on = match left {
            Some(left) => self.from <= left.end,
            None => self.from_timeline == *of,
        };
        let missing = Missing::History { timeline: self.from_timeline, at: self.from, of: *of };
        (!is_on).then_some(missing)
    }

    /// The timeline that a segment is taken from: one in which a timeline was left is in the newer one, with all before.
    fn timeline_of(&self, number: u64) -> TimelineId {
        let leg = self.history.switches.iter().find(|switch| number < self.number(switch.end));
        leg.map_or(self.history.timeline, |switch| switch.timeline)
    }

    /// What is to be read, in the order of the log.
    fn steps(&self) -> Vec<Step> {
        let (first, last) = (self.number(self.from), self.number(Lsn(self.to.0 - 1)));
        let per_folder = u64::from(per_folder(self.segment_size));
        let (mut steps, mut number) = (Vec::new(), first);
        while number <= last {
            let timeline = self.timeline_of(number);
            let end = number + per_folder - 1;
            let high = u32::try_from(number / per_folder).unwrap_or(u32::MAX);
            if number % per_folder == 0 && end <= last && self.timeline_of(end) == timeline {
                steps.push(Step::Folder { timeline, high });
                number = end + 1;
            } else {
                steps.push(Step::Segment(WalSegment { timeline, number }));
                number += 1;
            }
        }
        steps
    }

    fn read(&self, step: Step) -> Found<Stretch> {
        match step {
            Step::Segment(segment) => self.segment(segment),
            Step::Folder { timeline, high } => self.folder(timeline, high),
        }
    }

    /// The note of that name. One that is damaged is none: what it says can be had from the WAL.
    fn note(&self, name: ChangesName) -> Option<Stretch> {
        let note = self.repository.wal_changes(self.cluster, name, Some(self.system_identifier));
        let (stretch, size) = note.ok().flatten()?;
        (size == self.segment_size).then_some(Stretch { stretch, segments_read: 0, notes_read: 1 })
    }

    fn folder(&self, timeline: TimelineId, high: u32) -> Found<Stretch> {
        if let Some(found) = self.note(ChangesName::Folder { timeline, high }) {
            return Ok(Ok(found));
        }
        let per_folder = u64::from(per_folder(self.segment_size));
        let first = u64::from(high) * per_folder;
        let mut all: Option<Stretch> = None;
        for number in first..first + per_folder {
            let next = match self.segment(WalSegment { timeline, number })? {
                Ok(next) => next,
                Err(missing) => return Ok(Err(missing)),
            };
            all = Some(match all {
                None => next,
                Some(before) => match before.stretch.join(next.stretch) {
                    Ok(stretch) => Stretch {
                        stretch,
                        segments_read: before.segments_read + next.segments_read,
                        notes_read: before.notes_read + next.notes_read,
                    },
                    Err(error) => return Ok(Err(Missing::Unusable(error.to_string()))),
                },
            });
        }
        let first = SegmentName { timeline, high, low: 0 };
        Ok(all.ok_or(Missing::Segment { segment: first }))
    }

    fn segment(&self, segment: WalSegment) -> Found<Stretch> {
        let name = SegmentName::of(segment, self.segment_size);
        if let Some(found) = self.note(ChangesName::Segment(name)) {
            return Ok(Ok(found));
        }
        let missing = || Ok(Err(Missing::Segment { segment: name }));
        let Some(start) = segment.start(self.segment_size) else { return missing() };
        let end = Lsn(start.0.saturating_add(self.segment_size.bytes())).min(self.to);
        let mut reading = Reading::new(self, segment.timeline, start, end);
        if let Some(object) = self.repository.wal_object(self.cluster, WalName::Segment(name))? {
            if object.summary.system_identifier != self.system_identifier {
                let what = format!("WAL segment {name} is of system {}", object.summary.system_identifier);
                return Ok(Err(Missing::Unusable(what)));
            }
            object.read(|piece| {
                reading.push(piece);
                Ok(())
            })?;
        } else if !self.read_local(name, &mut reading)? {
            let received = read_received(self.repository, self.cluster, name, |piece| reading.push(piece))?;
            if !received {
                return missing();
            }
        }
        match reading.finish() {
            Ok(Some(stretch)) => Ok(Ok(Stretch { stretch, segments_read: 1, notes_read: 0 })),
            Ok(None) => missing(),
            Err(what) => Ok(Err(Missing::Unusable(what))),
        }
    }

    /// Reads a segment from the server's own folder, where it is there.
    fn read_local(&self, name: SegmentName, reading: &mut Reading) -> Result<bool, Failure> {
        let Some(folder) = self.pg_wal else { return Ok(false) };
        let path = folder.join(name.to_string());
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Failure::disk("open", &path, error)),
        };
        let mut piece = vec![0; PIECE];
        while reading.wants_more() {
            match file.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => reading.push(&piece[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::disk("read", &path, error)),
            }
        }
        Ok(true)
    }
}

/// A segment that is read up to a position.
struct Reading {
    summarizer: StretchSummarizer,
    at: Lsn,
    end: Lsn,
    is_cut: bool,
    wrong: Option<String>,
}

impl Reading {
    fn new(range: &ArchiveRange<'_>, timeline: TimelineId, start: Lsn, end: Lsn) -> Self {
        let origin = WalOrigin {
            system_identifier: range.system_identifier,
            timeline,
            segment_size: range.segment_size,
            magic: None,
            page_size: None,
        };
        let is_cut = end.0 < start.0.saturating_add(range.segment_size.bytes());
        let summarizer = StretchSummarizer::new(origin, start, range.to);
        Self { summarizer, at: start, end, is_cut, wrong: None }
    }

    fn wants_more(&self) -> bool {
        self.at < self.end && self.wrong.is_none()
    }

    /// Takes the bytes that follow, but for those behind the end.
    fn push(&mut self, bytes: &[u8]) {
        let left = usize::try_from(self.end.0 - self.at.0).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(left)];
        if self.wants_more()
            && let Err(error) = self.summarizer.push(bytes)
        {
            self.wrong = Some(error.to_string());
        }
        self.at.0 += bytes.len() as u64;
    }

    /// The stretch; `None` where it is shorter than it must be.
    fn finish(self) -> Result<Option<WalStretch>, String> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        if self.at < self.end {
            return Ok(None);
        }
        if self.is_cut {
            self.summarizer.ends_at(self.end).map_err(|error| error.to_string())?;
        }
        self.summarizer.finish().map(Some).map_err(|error| error.to_string())
    }
}
