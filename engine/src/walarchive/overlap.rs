//! What an earlier run has kept of a segment that is received once more, compared with what comes now.
//!
//! Parts may hold the beginning of a record that nobody has seen whole: changed on its way, it is found out only by what
//! follows. So parts are read when the segment begins, and their hash is compared with the stream's where they end.
//! Invariants: nothing behind a part counts as kept before that; whole records are never given up: where they differ, the
//! archive holds another log, and that is refused.

use std::collections::BTreeSet;

use pgstrata_protocol::names::WalSegmentSize;

use super::parts::{Length, chain, read_parts};
use super::publisher::Shelf;
use crate::failure::Failure;
use crate::receivewal::ReceiveObserver;
use crate::repository::{RepositoryError, SegmentName, WalName};

/// Bytes from the segment's first on.
struct Kept {
    end: u64,
    hash: blake3::Hash,
}

/// What is compared.
pub(super) struct Overlap {
    /// Up to the end of the last whole record.
    records: Kept,
    /// All of it.
    all: Kept,
    hasher: blake3::Hasher,
    taken: u64,
}

/// What a comparison came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// Not at the end yet.
    Unknown,
    /// It is the same up to here.
    Same(u64),
    /// It is the same up to the end of the last whole record, which is here, and differs behind it.
    TailDiffers(u64),
    /// It is another log.
    Differs,
}

impl Overlap {
    /// Reads the parts of a segment. Those that are damaged are removed: the server is about to send what they held.
    pub(super) fn read(
        shelf: &Shelf,
        segment: SegmentName,
        size: WalSegmentSize,
        mut parts: BTreeSet<(u32, u32)>,
        observer: &dyn ReceiveObserver,
    ) -> Result<Option<Self>, Failure> {
        let (chained, end) = loop {
            let (chained, end) = chain(&parts);
            let Some(bad) =
                chained.iter().find_map(|part| check(shelf, segment, size, *part).err().map(|e| (*part, e)))
            else {
                break (chained, u64::from(end));
            };
            match bad {
                (part, Failure::Repository(error)) if error.is_damage() => {
                    observer.warning(&format!(
                        "{}: {}; it is removed, and received once more",
                        error.object, error.what
                    ));
                    shelf.remove(segment, &BTreeSet::from([part]))?;
                    parts.remove(&part);
                }
                (_, failure) => return Err(failure),
            }
        };
        if end == 0 {
            return Ok(None);
        }
        // An earlier run may have been killed behind a rename and ahead of its sync.
        shelf.sync_folder(segment)?;
        let mut length = Length::of(shelf.owner.system_identifier, segment, size);
        let mut hasher = blake3::Hasher::new();
        each(shelf, segment, &chained, |piece| {
            length.push(piece);
            hasher.update(piece);
        })?;
        let all = Kept { end, hash: hasher.finalize() };
        // What pads the last record counts before it is here.
        let whole = length.end().min(end);
        let (mut hasher, mut left) = (blake3::Hasher::new(), whole);
        each(shelf, segment, &chained, |piece| {
            let most = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
            hasher.update(&piece[..most]);
            left -= most as u64;
        })?;
        let records = Kept { end: whole, hash: hasher.finalize() };
        Ok(Some(Self { records, all, hasher: blake3::Hasher::new(), taken: 0 }))
    }

    /// The end of what is kept.
    pub(super) fn end(&self) -> u64 {
        self.all.end
    }

    /// Takes the bytes of the stream that follow.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Compared {
        for kept in [&self.records, &self.all] {
            let room = usize::try_from(kept.end.saturating_sub(self.taken)).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.hasher.update(now);
            self.taken += now.len() as u64;
            bytes = later;
            if self.taken < kept.end {
                return Compared::Unknown;
            }
            // Each is looked at once: where the stream comes to its end.
            if self.taken == kept.end && self.hasher.finalize() != kept.hash {
                let of_records = kept.end == self.records.end;
                return if of_records { Compared::Differs } else { Compared::TailDiffers(self.records.end) };
            }
        }
        Compared::Same(self.all.end)
    }
}

/// Reads a part whole.
fn check(
    shelf: &Shelf,
    segment: SegmentName,
    size: WalSegmentSize,
    (from, to): (u32, u32),
) -> Result<(), Failure> {
    let name = WalName::Part { segment, from, to };
    // Whoever merges parts removes them; nobody else is at work here.
    let Some(object) = shelf.repository.wal_object(&shelf.cluster, name)? else {
        let hint = "somebody else receives or removes this WAL; try again.";
        return Err(RepositoryError::new(name.object(&shelf.cluster), "it is gone", hint).into());
    };
    let found = &object.summary;
    if found.system_identifier != shelf.owner.system_identifier || found.segment_size != size.bytes() {
        let what = format!(
            "it is of system {} with segments of {} bytes, expected system {} with segments of {}",
            found.system_identifier,
            found.segment_size,
            shelf.owner.system_identifier,
            size.bytes()
        );
        let hint = "give this server's WAL another --cluster name. Nothing was changed.";
        return Err(RepositoryError::new(object.name(), what, hint).into());
    }
    let mut hasher = blake3::Hasher::new();
    object.read(|piece| {
        hasher.update(piece);
        Ok(())
    })?;
    if found.size == u64::from(to - from) && hasher.finalize().to_hex().as_str() == found.blake3 {
        return Ok(());
    }
    let what = format!(
        "it holds {} bytes and is to hold those from {from} to {to}, or has another hash",
        found.size
    );
    Err(RepositoryError::damaged(object.name(), what).into())
}

fn each(
    shelf: &Shelf,
    segment: SegmentName,
    chained: &[(u32, u32)],
    mut to: impl FnMut(&[u8]),
) -> Result<(), Failure> {
    read_parts(&shelf.repository, &shelf.cluster, segment, chained, |_, piece| {
        to(piece);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlap(kept: &[u8], records: usize) -> Overlap {
        let of = |bytes: &[u8]| Kept { end: bytes.len() as u64, hash: blake3::hash(bytes) };
        Overlap { records: of(&kept[..records]), all: of(kept), hasher: blake3::Hasher::new(), taken: 0 }
    }

    #[test]
    fn however_the_stream_is_cut_it_is_compared_where_parts_end() {
        for (stream, expected) in [
            (&b"recordstail and more"[..], Compared::Same(11)),
            (b"recordstail", Compared::Same(11)),
            (b"recordstai", Compared::Unknown),
            (b"recordsTail and more", Compared::TailDiffers(7)),
            (b"Recordstail", Compared::Differs),
            (b"recordS", Compared::Differs),
            (b"record", Compared::Unknown),
        ] {
            for size in 1..=stream.len() {
                let mut overlap = overlap(b"recordstail", 7);
                let mut found = Compared::Unknown;
                for chunk in stream.chunks(size) {
                    if !matches!(found, Compared::TailDiffers(_) | Compared::Differs) {
                        found = overlap.take(chunk);
                    }
                }
                assert_eq!(found, expected, "{stream:?} by {size}");
            }
        }
        assert_eq!(overlap(b"ab", 2).take(b"aX"), Compared::Differs, "whole records only");
        assert_eq!(overlap(b"ab", 0).take(b"aX"), Compared::TailDiffers(0), "no whole record");
    }
}
