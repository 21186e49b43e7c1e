//! WAL in archives: places of segments that can be read later, and ranges that are checked while an archive streams by.
//!
//! In an archive that is not compressed a segment can be read once the others are known, in any order. In a compressed
//! one segments are checked as they come, which must be in their order: so every program writes them.

use std::sync::{Mutex, PoisonError};

use pgstrata_protocol::Lsn;
use pgstrata_protocol::manifest::WalRange;
use pgstrata_protocol::names::{WalSegment, WalSegmentSize};

use super::archive::{Archive, Content};
use super::problem::Problem;
use super::run::Run;
use super::wal;
use super::wal_range::RangeCheck;
use super::wal_store::is_segment_name;
use crate::failure::Failure;

/// The ranges of the manifest, as far as compressed archives have brought WAL for them.
pub(super) struct WalStreams {
    identifier: Option<u64>,
    ranges: Mutex<Vec<Streamed>>,
}

struct Streamed {
    range: WalRange,
    check: Option<RangeCheck>,
    /// Something was wrong, and was told.
    failed: bool,
    /// The last segment that was read, for messages.
    last: String,
}

/// A segment that streams by, for the ranges that need it.
pub(super) struct StreamedSegment {
    start: Lsn,
    at: u64,
    ranges: Vec<usize>,
}

/// The name of the segment that a member is, if it is one where the archive has them.
pub(super) fn segment_name<'a>(archive: &Archive, path: &'a [u8]) -> Option<&'a str> {
    let name = match archive.content {
        Content::Wal => path,
        Content::Base => path.strip_prefix(b"pg_wal/")?,
        Content::Tablespace(_) => return None,
    };
    is_segment_name(name).then(|| std::str::from_utf8(name).ok()).flatten()
}

/// Whether a range may need the segment with this name and length; one of another timeline or far away is not needed.
pub(super) fn is_needed(ranges: &[WalRange], name: &str, length: u64) -> bool {
    let lies_in = |range: &WalRange, size| {
        let first = WalSegment::containing(range.timeline, range.start, size);
        let last = WalSegment::containing(range.timeline, range.end, size);
        WalSegment::parse(name.as_bytes(), size).is_some_and(|segment| (first..=last).contains(&segment))
    };
    ranges.iter().any(|range| match WalSegmentSize::new(length) {
        Ok(size) => lies_in(range, size),
        // A wrong length, which is to be told if the segment may be needed: with one size or another.
        Err(_) => (20..=30)
            .filter_map(|shift| WalSegmentSize::new(1 << shift).ok())
            .any(|size| lies_in(range, size)),
    })
}

impl WalStreams {
    pub(super) fn new(ranges: &[WalRange], identifier: Option<u64>) -> Self {
        let streamed =
            |range: &WalRange| Streamed { range: *range, check: None, failed: false, last: String::new() };
        Self { identifier, ranges: Mutex::new(ranges.iter().map(streamed).collect()) }
    }

    /// Begins a segment of an archive; `None` where no range needs it.
    pub(super) fn begin(
        &self,
        run: &Run<'_>,
        archive: &Archive,
        name: &str,
        length: u64,
    ) -> Result<Option<StreamedSegment>, Failure> {
        let mut streamed = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut needed, mut start) = (Vec::new(), Lsn(0));
        for (number, streamed) in streamed.iter_mut().enumerate() {
            if streamed.failed || streamed.range.start >= streamed.range.end {
                continue;
            }
            let shown = format!("{}:{name}", archive.name);
            match streamed.begin(self.identifier, name, length) {
                Ok(None) => {}
                Ok(Some(begins)) => {
                    start = begins;
                    streamed.last = shown;
                    needed.push(number);
                }
                Err(reason) => {
                    streamed.failed = true;
                    run.report(Problem::wal(&streamed.range, shown, reason))?;
                }
            }
        }
        Ok((!needed.is_empty()).then_some(StreamedSegment { start, at: 0, ranges: needed }))
    }

    /// Takes the segment's next bytes.
    pub(super) fn push(
        &self,
        run: &Run<'_>,
        segment: &mut StreamedSegment,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let at = Lsn(segment.start.0.saturating_add(segment.at));
        segment.at += bytes.len() as u64;
        let mut streamed = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        for number in &segment.ranges {
            let Some(Streamed { range, check: Some(check), failed, last }) = streamed.get_mut(*number) else {
                continue;
            };
            if *failed {
                continue;
            }
            if let Err(error) = check.push(at, bytes) {
                *failed = true;
                run.report(Problem::wal(range, last.clone(), error.to_string()))?;
            }
        }
        Ok(())
    }

    /// Ends the ranges for which some WAL came, `control` being the cluster that the control file names. Returns the
    /// others.
    pub(super) fn finish(self, run: &Run<'_>, control: Option<u64>) -> Result<Vec<WalRange>, Failure> {
        let mut untouched = Vec::new();
        for Streamed { range, check, failed, last } in
            self.ranges.into_inner().unwrap_or_else(PoisonError::into_inner)
        {
            let Some(check) = check else {
                if !failed {
                    untouched.push(range);
                }
                continue;
            };
            if failed {
                continue;
            }
            let (place, reason) = if !check.is_read() {
                let name = check.segment().file_name(check.segment_size());
                (name, wal::missing(run, &check))
            } else if let Err(error) = check.finish() {
                (last, error.to_string())
            } else {
                match (check.identifier(), control) {
                    (Some(found), Some(expected)) if found != expected => {
                        (last, format!("found system identifier {found}, expected {expected}"))
                    }
                    _ => continue,
                }
            };
            run.report(Problem::wal(&range, place, reason))?;
        }
        Ok(untouched)
    }
}

impl Streamed {
    /// Says where the segment begins if it is the next one, or why it cannot be used.
    fn begin(&mut self, identifier: Option<u64>, name: &str, length: u64) -> Result<Option<Lsn>, String> {
        if !is_needed(&[self.range], name, length) {
            return Ok(None);
        }
        let known = self.check.as_ref().map(RangeCheck::segment_size);
        let size = match (WalSegmentSize::new(length), known) {
            (Ok(size), Some(known)) if size != known => {
                return Err(format!("the segment has {length} bytes, expected {}", known.bytes()));
            }
            (Ok(size), _) => size,
            (Err(_), known) => {
                let known = known.unwrap_or(WalSegmentSize::DEFAULT);
                return Err(format!("the segment has {length} bytes, expected {}", known.bytes()));
            }
        };
        let range = self.range;
        let check = self.check.get_or_insert_with(|| RangeCheck::new(range, size, identifier));
        let Some(segment) = WalSegment::parse(name.as_bytes(), size) else { return Ok(None) };
        let expected = check.segment();
        if check.is_read() || segment < expected {
            return Ok(None);
        }
        if segment > expected {
            return Err(format!(
                "the segment comes where {} was expected: that is missing, or the archive is not in order\n\
                 HINT: if the archive has both, unpack it and name the folder of WAL with --wal-directory.",
                expected.file_name(size)
            ));
        }
        Ok(segment.start(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstrata_protocol::TimelineId;

    #[test]
    fn only_segments_of_a_range_are_needed() {
        let range = WalRange { timeline: TimelineId(2), start: Lsn(0x320_0028), end: Lsn(0x510_0000) };
        for (name, length, needed) in [
            ("000000020000000000000002", 16 << 20, false),
            ("000000020000000000000003", 16 << 20, true),
            ("000000020000000000000005", 16 << 20, true),
            ("000000020000000000000006", 16 << 20, false),
            ("000000010000000000000004", 16 << 20, false),
            ("000000030000000000000004", 16 << 20, false),
            ("000000020000000000000003", 1 << 20, false),
            ("000000020000000000000032", 1 << 20, true),
            // Nobody knows of which size these should be.
            ("000000020000000000000004", 100, true),
            ("000000020000000000000032", 0, true),
            ("000000020000000000000100", 100, false),
            ("000000010000000000000004", 100, false),
        ] {
            assert_eq!(is_needed(&[range], name, length), needed, "{name} {length}");
        }
    }
}
