//! A segment that is not whole in the archive: its received parts, put together, or what a promoted server left of it.
//!
//! Invariant: parts are taken from the segment's first byte on without a gap; behind their end there are zeros, which
//! recovery takes for the end of the log.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use pgstrata_protocol::names::WalSegmentSize;
use pgstrata_protocol::wal::WalChecker;

use super::file::origin;
use super::spool::create;
use crate::failure::Failure;
use crate::repository::{ClusterName, Repository, RepositoryError, SegmentName, WalName};

/// Parts of one segment that lie in a folder of the archive.
pub(super) fn parts_of(names: &[String], segment: SegmentName) -> BTreeSet<(u32, u32)> {
    let part = |name: &String| match name.parse() {
        Ok(WalName::Part { segment: of, from, to }) if of == segment => Some((from, to)),
        _ => None,
    };
    names.iter().filter_map(part).collect()
}

/// The parts that lead from the first byte as far as can be, and how far that is.
pub(super) fn chain(parts: &BTreeSet<(u32, u32)>) -> (Vec<(u32, u32)>, u32) {
    let (mut chain, mut end) = (Vec::new(), 0);
    loop {
        let next = parts.iter().filter(|(from, to)| *from <= end && *to > end).max_by_key(|(_, to)| *to);
        match next {
            Some(next) => {
                chain.push(*next);
                end = next.1;
            }
            None => return (chain, end),
        }
    }
}

/// Where something of a segment can be had that is not whole.
#[derive(Debug)]
pub(super) enum Remnant {
    /// Received parts.
    Parts(Vec<(u32, u32)>),
    /// A promoted server's.
    Partial,
}

/// The remnant that holds most of a segment, with the end of it in bytes.
pub(super) fn longest(
    repository: &Repository,
    cluster: &ClusterName,
    segment: SegmentName,
    names: &[String],
) -> Result<Option<(Remnant, u64)>, Failure> {
    let (chain, end) = chain(&parts_of(names, segment));
    let parts = (end > 0).then_some((Remnant::Parts(chain), u64::from(end)));
    let name = WalName::Partial(segment);
    let Some(object) = repository.wal_object(cluster, name)? else { return Ok(parts) };
    let Ok(size) = WalSegmentSize::new(object.summary.segment_size) else {
        return Err(RepositoryError::damaged(object.name(), "it is of no segment size").into());
    };
    let mut length = Length::of(object.summary.system_identifier, segment, size);
    object.read(|piece| {
        length.push(piece);
        Ok(())
    })?;
    let partial = Some((Remnant::Partial, length.end())).filter(|(_, end)| *end > 0);
    Ok(match (parts, partial) {
        (Some(parts), Some(partial)) => Some(if partial.1 > parts.1 { partial } else { parts }),
        (parts, partial) => parts.or(partial),
    })
}

/// Writes a remnant to a file of a whole segment's size.
pub(super) fn write(
    repository: &Repository,
    cluster: &ClusterName,
    segment: SegmentName,
    remnant: &Remnant,
    path: &Path,
) -> Result<(), Failure> {
    let mut file = create(path)?;
    let gone = |name: WalName| -> Failure {
        let hint = "somebody removes WAL meanwhile; try again.";
        RepositoryError::new(name.object(cluster), "it is gone", hint).into()
    };
    let Remnant::Parts(chain) = remnant else {
        let name = WalName::Partial(segment);
        let object = repository.wal_object(cluster, name)?.ok_or_else(|| gone(name))?;
        return object.copy_to(&mut file, path);
    };
    let mut size = 0;
    read_parts(repository, cluster, segment, chain, |segment_size, piece| {
        size = segment_size;
        file.write_all(piece).map_err(|error| Failure::disk("write to", path, error))
    })?;
    file.set_len(size).map_err(|error| Failure::disk("write to", path, error))
}

/// Reads a chain of parts, each byte once. `to` gets the size of the whole segment and the pieces.
pub(super) fn read_parts(
    repository: &Repository,
    cluster: &ClusterName,
    segment: SegmentName,
    chain: &[(u32, u32)],
    mut to: impl FnMut(u64, &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut end = 0u64;
    for (from, upto) in chain {
        let name = WalName::Part { segment, from: *from, to: *upto };
        let Some(object) = repository.wal_object(cluster, name)? else {
            let hint = "the segment was finished meanwhile; try again.";
            return Err(RepositoryError::new(name.object(cluster), "it is gone", hint).into());
        };
        let summary = &object.summary;
        if summary.size != u64::from(upto - from) || WalSegmentSize::new(summary.segment_size).is_err() {
            let what = format!("it holds {} bytes of a segment of {}", summary.size, summary.segment_size);
            return Err(RepositoryError::damaged(object.name(), what).into());
        }
        let (size, mut at) = (summary.segment_size, u64::from(*from));
        object.read(|piece| {
            // What an earlier part has is passed over.
            let known = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
            at += piece.len() as u64;
            to(size, &piece[known..])
        })?;
        end = end.max(at);
    }
    Ok(())
}

/// Reads what was received of a segment that is not whole. Returns whether there is any.
///
/// # Errors
/// Where it cannot be read; a segment that becomes whole meanwhile is to be asked for again.
pub(crate) fn read_received(
    repository: &Repository,
    cluster: &ClusterName,
    segment: SegmentName,
    mut to: impl FnMut(&[u8]),
) -> Result<bool, Failure> {
    let names = repository.wal_names(&cluster.wal_folder(segment.timeline, segment.high))?;
    let (chain, end) = chain(&parts_of(&names, segment));
    read_parts(repository, cluster, segment, &chain, |_, piece| {
        to(piece);
        Ok(())
    })?;
    Ok(end > 0)
}

/// How much of a segment's bytes recovery would read.
pub(super) struct Length {
    checker: WalChecker,
    start: u64,
    over: bool,
}

impl Length {
    pub(super) fn of(system_identifier: u64, segment: SegmentName, size: WalSegmentSize) -> Self {
        let start = segment.segment(size).and_then(|segment| segment.start(size));
        let over = start.is_none();
        let start = start.unwrap_or_default();
        let checker = WalChecker::from_segment(origin(system_identifier, segment, size), start);
        Self { checker, start: start.0, over }
    }

    /// Takes the bytes that follow. What comes behind the first that is none of the log's is of no account.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.over = self.over || self.checker.push(bytes).is_err();
    }

    /// Whether all bytes that were taken are the log's.
    pub(super) fn is_sound(&self) -> bool {
        !self.over
    }

    /// Bytes up to the end of the last whole record.
    pub(super) fn end(&self) -> u64 {
        self.checker.verified().0.saturating_sub(self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_chained_without_a_gap() {
        let of = |parts: &[(u32, u32)]| chain(&parts.iter().copied().collect());
        assert_eq!(of(&[]), (vec![], 0));
        assert_eq!(of(&[(5, 9)]), (vec![], 0));
        assert_eq!(of(&[(0, 5), (5, 9), (10, 12)]), (vec![(0, 5), (5, 9)], 9));
        assert_eq!(of(&[(0, 5), (0, 9), (3, 7), (7, 20)]), (vec![(0, 9), (7, 20)], 20));
    }
}
