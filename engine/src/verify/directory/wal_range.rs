//! One of a manifest's ranges of WAL, checked as its bytes come.
//!
//! Invariants: the position never moves back; what lies between the segment's first header and the page on which the
//! range begins is not looked at, nor is what lies behind the range's end: recovery reads neither.

use pgstrata_protocol::Lsn;
use pgstrata_protocol::manifest::WalRange;
use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::wal::{SegmentStart, WalChecker, WalError, WalOrigin};

/// The check of a range. Bytes come in their order, pieces of any size.
pub(super) struct RangeCheck {
    range: WalRange,
    size: WalSegmentSize,
    /// The cluster, once it is known.
    identifier: Option<u64>,
    stage: Stage,
}

enum Stage {
    /// The part of the first segment's header that is here.
    Head(Vec<u8>),
    Records(Box<WalChecker>),
}

impl RangeCheck {
    /// A check of `range` in segments of `size`. Without an `identifier` the first segment says which cluster it is.
    pub(super) fn new(range: WalRange, size: WalSegmentSize, identifier: Option<u64>) -> Self {
        Self { range, size, identifier, stage: Stage::Head(Vec::new()) }
    }

    pub(super) fn range(&self) -> WalRange {
        self.range
    }

    pub(super) fn segment_size(&self) -> WalSegmentSize {
        self.size
    }

    /// The cluster that the WAL is of, as far as it is known.
    pub(super) fn identifier(&self) -> Option<u64> {
        self.identifier
    }

    /// The next byte that is needed.
    pub(super) fn position(&self) -> Lsn {
        match &self.stage {
            Stage::Head(bytes) => {
                Lsn(self.range.start.segment_start(self.size.bytes()).0 + bytes.len() as u64)
            }
            Stage::Records(checker) => checker.position(),
        }
    }

    /// The segment that holds it.
    pub(super) fn segment(&self) -> WalSegment {
        WalSegment::containing(self.range.timeline, self.position(), self.size)
    }

    /// Whether no more bytes are needed.
    pub(super) fn is_read(&self) -> bool {
        self.position() >= self.range.end
    }

    /// Takes `bytes` that begin `at`, which is not behind [`RangeCheck::position`]; ignores what is not needed.
    ///
    /// # Errors
    /// [`WalError`] for the first thing that is wrong.
    pub(super) fn push(&mut self, at: Lsn, bytes: &[u8]) -> Result<(), WalError> {
        let needed = self.range.end.0.saturating_sub(at.0);
        let bytes = &bytes[..usize::try_from(needed).map_or(bytes.len(), |needed| needed.min(bytes.len()))];
        loop {
            let skipped = self.position().0.saturating_sub(at.0);
            let Some(rest) = usize::try_from(skipped).ok().and_then(|skipped| bytes.get(skipped..)) else {
                return Ok(());
            };
            if rest.is_empty() {
                return Ok(());
            }
            match &mut self.stage {
                Stage::Head(head) => {
                    head.extend_from_slice(&rest[..rest.len().min(SegmentStart::LENGTH - head.len())]);
                    if let Some(head) = head.first_chunk() {
                        self.stage = Stage::Records(Box::new(begin(
                            self.range,
                            self.size,
                            &mut self.identifier,
                            head,
                        )?));
                    }
                }
                Stage::Records(checker) => return checker.push(rest),
            }
        }
    }

    /// Says whether the range ends where it should, once all of it was taken.
    ///
    /// # Errors
    /// [`WalError`] where its last record does not end there.
    pub(super) fn finish(&self) -> Result<(), WalError> {
        match &self.stage {
            Stage::Records(checker) => checker.finish(self.range.end),
            // The range lies in the header of its segment: there is no record in it.
            Stage::Head(_) => Ok(()),
        }
    }
}

fn begin(
    range: WalRange,
    size: WalSegmentSize,
    identifier: &mut Option<u64>,
    head: &[u8; SegmentStart::LENGTH],
) -> Result<WalChecker, WalError> {
    // What is no such header is refused by the checker, which says why.
    let found = SegmentStart::parse(head).map(|start| start.system_identifier);
    let system_identifier = *identifier.get_or_insert(found.unwrap_or_default());
    let origin = WalOrigin {
        system_identifier,
        timeline: range.timeline,
        segment_size: size,
        // The manifest names no version; the first page tells both.
        magic: None,
        page_size: None,
    };
    let mut checker = WalChecker::new(origin, range.start);
    checker.push(head)?;
    checker.skip_to_first_record();
    Ok(checker)
}
