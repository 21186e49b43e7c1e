//! Sorts any number of frames by their hashes, in bounded memory: runs that fit, written out and merged.
//!
//! The files have no names: whatever ends the process, nothing of them stays.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::container::{Hash, PACK_FRAMES_MAX, PLAIN_MAX, field};
use crate::failure::Failure;

/// Bytes of an entry.
pub(super) const ENTRY: usize = 40;
/// Entries of a run, and bytes that all runs together are read ahead when they are merged.
const RUN: usize = 1 << 17;
const AHEAD: usize = 4 << 20;

/// An entry: hash, pack and frame with its length, so that bytes sort as entries do.
pub(super) type Entry = [u8; ENTRY];

const _: () = assert!(PACK_FRAMES_MAX <= 1 << 12 && PLAIN_MAX <= 1 << 20);

/// Where a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// The pack, by its place among those that were gathered.
    pub(super) pack: u32,
    /// The frame in it.
    pub(super) frame: u32,
    /// Its plain bytes.
    pub(super) plain: u32,
}

/// Makes an entry; `None` for what no pack has.
pub(super) fn entry(hash: &Hash, known: Known) -> Option<Entry> {
    let Known { pack, frame, plain } = known;
    if frame as usize >= PACK_FRAMES_MAX || plain == 0 || plain as usize > PLAIN_MAX {
        return None;
    }
    let mut entry = [0; ENTRY];
    entry[..32].copy_from_slice(hash);
    entry[32..36].copy_from_slice(&pack.to_be_bytes());
    entry[36..].copy_from_slice(&((frame << 20) | (plain - 1)).to_be_bytes());
    Some(entry)
}

/// Takes an entry apart.
pub(super) fn known(entry: &[u8]) -> Known {
    let packed = u32::from_be_bytes(field(&entry[36..ENTRY]));
    Known {
        pack: u32::from_be_bytes(field(&entry[32..36])),
        frame: packed >> 20,
        plain: (packed & ((1 << 20) - 1)) + 1,
    }
}

/// Takes entries in any order.
pub(super) struct FrameSorter {
    folder: PathBuf,
    run: Vec<Entry>,
    runs: Vec<Run>,
    written: Option<File>,
    end: u64,
}

struct Run {
    next: u64,
    end: u64,
    ahead: Vec<u8>,
    at: usize,
}

impl FrameSorter {
    /// A sorter whose files lie in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), run: Vec::new(), runs: Vec::new(), written: None, end: 0 }
    }

    /// Entries so far.
    pub(super) fn count(&self) -> u64 {
        self.end / ENTRY as u64 + self.run.len() as u64
    }

    /// Takes an entry.
    pub(super) fn push(&mut self, entry: Entry) -> Result<(), Failure> {
        self.run.push(entry);
        if self.run.len() < RUN { Ok(()) } else { self.end_run() }
    }

    fn failed(&self) -> impl Fn(std::io::Error) -> Failure + use<> {
        let folder = self.folder.clone();
        move |error| Failure::disk("use a temporary file in", &folder, error)
    }

    fn end_run(&mut self) -> Result<(), Failure> {
        self.run.sort_unstable();
        let file = match self.written.take() {
            Some(file) => file,
            None => tempfile::tempfile_in(&self.folder).map_err(self.failed())?,
        };
        file.write_all_at(self.run.as_flattened(), self.end).map_err(self.failed())?;
        let end = self.end + (self.run.len() * ENTRY) as u64;
        self.runs.push(Run { next: self.end, end, ahead: Vec::new(), at: 0 });
        self.end = end;
        self.written = Some(file);
        self.run.clear();
        Ok(())
    }

    /// Hands out all entries in their order, those of one hash once, and returns a file of them.
    pub(super) fn finish(mut self, mut visit: impl FnMut(&Entry)) -> Result<File, Failure> {
        let failed = self.failed();
        let sorted = tempfile::tempfile_in(&self.folder).map_err(&failed)?;
        let mut writer = BufWriter::with_capacity(256 << 10, sorted);
        let mut last: Option<Hash> = None;
        let mut take = |entry: &Entry| -> Result<(), Failure> {
            let hash: Hash = field(&entry[..32]);
            if last == Some(hash) {
                return Ok(());
            }
            last = Some(hash);
            visit(entry);
            writer.write_all(entry).map_err(&failed)
        };
        if self.runs.is_empty() {
            self.run.sort_unstable();
            self.run.iter().try_for_each(&mut take)?;
        } else {
            self.end_run()?;
            self.run = Vec::new();
            let file = self.written.as_ref().expect("a run was written");
            let piece = (AHEAD / self.runs.len() / ENTRY).clamp(16, 1 << 14) * ENTRY;
            let mut heads = BinaryHeap::new();
            for (number, run) in self.runs.iter_mut().enumerate() {
                heads.extend(run.next(file, piece).map_err(&failed)?.map(|entry| Reverse((entry, number))));
            }
            while let Some(Reverse((entry, number))) = heads.pop() {
                take(&entry)?;
                let next = self.runs[number].next(file, piece).map_err(&failed)?;
                heads.extend(next.map(|entry| Reverse((entry, number))));
            }
        }
        writer.into_inner().map_err(|error| failed(error.into_error()))
    }
}

impl Run {
    fn next(&mut self, file: &File, piece: usize) -> std::io::Result<Option<Entry>> {
        if self.at == self.ahead.len() {
            let most = usize::try_from(self.end - self.next).map_or(piece, |left| left.min(piece));
            self.ahead.resize(most, 0);
            file.read_exact_at(&mut self.ahead, self.next)?;
            self.next += most as u64;
            self.at = 0;
        }
        let entry = self.ahead.get(self.at..self.at + ENTRY).map(field);
        self.at += ENTRY;
        if entry.is_none() {
            self.at = self.ahead.len();
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back() {
        let most = Known { pack: u32::MAX, frame: 4095, plain: 1 << 20 };
        for place in [most, Known { pack: 0, frame: 0, plain: 1 }] {
            assert_eq!(known(&entry(&[9; 32], place).expect("possible")), place);
        }
        for place in
            [Known { frame: 4096, ..most }, Known { plain: 0, ..most }, Known { plain: 1 << 21, ..most }]
        {
            assert!(entry(&[9; 32], place).is_none());
        }
    }

    #[test]
    fn any_number_is_sorted_and_each_hash_comes_once() {
        let scratch = tempfile::tempdir().expect("a folder");
        for count in [0, 1, 1000, RUN, 3 * RUN + 17] {
            let mut sorter = FrameSorter::new(scratch.path());
            for number in 0..count {
                let number = u32::try_from(number).expect("small");
                // Each hash twice, the later one in an earlier pack.
                let hash = *blake3::hash(&(number - number % 2).to_le_bytes()).as_bytes();
                let place = Known { pack: u32::MAX - number, frame: number % 4096, plain: 5 };
                sorter.push(entry(&hash, place).expect("possible")).expect("taken");
            }
            assert_eq!(sorter.count(), count as u64);
            let mut seen: Vec<Entry> = Vec::new();
            let file = sorter.finish(|entry| seen.push(*entry)).expect("sorted");
            assert!(seen.windows(2).all(|pair| pair[0][..32] < pair[1][..32]), "{count}");
            assert_eq!(seen.len(), count.div_ceil(2), "{count}");
            let mut kept = vec![0; seen.len() * ENTRY];
            file.read_exact_at(&mut kept, 0).expect("as long");
            assert_eq!(kept, seen.as_flattened());
            // Of the two with one hash the earlier pack.
            assert!(
                count < 2
                    || seen.iter().all(|entry| (u32::MAX - known(entry).pack) % 2 == 1 || count % 2 == 1)
            );
        }
        assert_eq!(std::fs::read_dir(scratch.path()).expect("listed").count(), 0);
    }
}
