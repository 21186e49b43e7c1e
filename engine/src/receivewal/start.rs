//! Where a receiver goes on: behind the highest whole segment that is here, or with the beginning of a partial one.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pgstrata_protocol::names::{WalCompression, WalFile, WalSegment, WalSegmentSize};
use pgstrata_protocol::wal::SegmentStart;
use pgstrata_protocol::{Lsn, TimelineId};

use super::archive::UNNAMED;
use super::config::ReceiveObserver;
use super::stored;
use crate::failure::Failure;

/// The first byte of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) lsn: Lsn,
    pub(crate) timeline: TimelineId,
}

/// A segment in the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    number: u64,
    timeline: TimelineId,
    whole: bool,
    compression: Option<Order>,
}

/// [`WalCompression`] in some order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    Gzip,
    Lz4,
    Zstd,
}

/// Removes the files that an earlier run left without a name.
pub(super) fn remove_unnamed(directory: &Path, size: WalSegmentSize) -> Result<(), Failure> {
    let failed = |error| Failure::disk("read folder", directory, error);
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(segment) = name.as_bytes().strip_suffix(UNNAMED.as_bytes())
            && matches!(WalFile::parse(segment, size), Some(WalFile::Segment { partial: false, .. }))
        {
            let path = directory.join(&name);
            fs::remove_file(&path).map_err(|error| Failure::disk("remove", path, error))?;
        }
    }
    Ok(())
}

/// Looks through the folder; `None` where it has no WAL yet. With `sync`, what the position rests on is durable
/// afterwards: the server will be told that it is.
pub(super) fn find(
    directory: &Path,
    size: WalSegmentSize,
    system_identifier: u64,
    sync: bool,
    observer: &dyn ReceiveObserver,
) -> Result<Option<Start>, Failure> {
    let failed = |error| Failure::disk("read folder", directory, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(WalFile::Segment { segment, compression, partial }) =
            WalFile::parse(name.as_bytes(), size)
        {
            let compression = compression.map(Order::of);
            let WalSegment { timeline, number } = segment;
            found.push(Candidate { number, timeline, whole: !partial, compression });
        }
    }
    // Only the highest that counts is read: an archive may be large.
    found.sort_unstable();
    for candidate in found.into_iter().rev() {
        let path = directory.join(candidate.name(size));
        if candidate.whole && !is_whole(&path, candidate, size, observer)? {
            continue;
        }
        check_origin(&path, candidate, system_identifier)?;
        let segment = candidate.segment();
        let next = if candidate.whole { segment.next() } else { segment };
        let Some(lsn) = next.start(size) else { continue };
        if sync {
            // Whoever wrote it may have died between its rename and the sync of the folder, or not have synced at all.
            for path in [&path, directory] {
                let synced = fs::File::open(path).and_then(|file| file.sync_all());
                synced.map_err(|error| Failure::disk("sync", path, error))?;
            }
        }
        return Ok(Some(Start { lsn, timeline: candidate.timeline }));
    }
    Ok(None)
}

fn is_whole(
    path: &Path,
    candidate: Candidate,
    size: WalSegmentSize,
    observer: &dyn ReceiveObserver,
) -> Result<bool, Failure> {
    let name = candidate.name(size);
    match candidate.compression {
        None => {
            let found = fs::metadata(path).map_err(|error| Failure::disk("look at", path, error))?.len();
            if found != size.bytes() {
                observer.warning(&format!("segment file \"{name}\" has incorrect size {found}, skipping"));
            }
            Ok(found == size.bytes())
        }
        Some(compression) => {
            let found = match stored::uncompressed_size(path, compression.into(), size.bytes()) {
                Ok(found) => found,
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    observer.warning(&format!("compressed segment file \"{name}\" is cut short, skipping"));
                    return Ok(false);
                }
                Err(error) => return Err(Failure::disk("decompress file", path, error)),
            };
            if found != size.bytes() {
                observer.warning(&format!(
                    "compressed segment file \"{name}\" has incorrect uncompressed size {found}, skipping"
                ));
            }
            Ok(found == size.bytes())
        }
    }
}

/// WAL of another cluster in the same folder would be overwritten, or taken for this one's.
fn check_origin(path: &Path, candidate: Candidate, expected: u64) -> Result<(), Failure> {
    let mut head = [0; SegmentStart::LENGTH];
    let mut source = stored::open(path, candidate.compression.map(Into::into))
        .map_err(|error| Failure::disk("open", path, error))?;
    // A partial segment may hold less, or nothing that can be read.
    if source.read_exact(&mut head).is_err() {
        return Ok(());
    }
    match SegmentStart::parse(&head) {
        Some(found) if found.system_identifier != expected => Err(Failure::Target(format!(
            "\"{}\" is of another cluster: found system identifier {}, expected {expected}\n\
             HINT: receive the WAL of each cluster into a folder of its own.",
            path.display(),
            found.system_identifier
        ))),
        _ => Ok(()),
    }
}

impl Candidate {
    fn segment(self) -> WalSegment {
        WalSegment { timeline: self.timeline, number: self.number }
    }

    fn name(self, size: WalSegmentSize) -> String {
        let compression = self.compression.map(Into::into);
        WalFile::Segment { segment: self.segment(), compression, partial: !self.whole }.file_name(size)
    }
}

impl Order {
    fn of(compression: WalCompression) -> Self {
        match compression {
            WalCompression::Gzip => Order::Gzip,
            WalCompression::Lz4 => Order::Lz4,
            WalCompression::Zstd => Order::Zstd,
        }
    }
}

impl From<Order> for WalCompression {
    fn from(order: Order) -> Self {
        match order {
            Order::Gzip => WalCompression::Gzip,
            Order::Lz4 => WalCompression::Lz4,
            Order::Zstd => WalCompression::Zstd,
        }
    }
}
