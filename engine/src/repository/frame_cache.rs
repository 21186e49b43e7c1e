//! Frames that were unpacked last: a map that alternates between a few of them reads and unpacks each once.
//!
//! Invariants: bounded in frames and in bytes, whatever maps say; the memory is the kernel's again when the cache goes, not
//! an allocator's that keeps it for each thread.

use std::io;

use memmap2::MmapMut;

use super::read_ahead::Key;

/// Frames, at most.
const FRAMES: usize = 16;
/// Their bytes, at most, beside the one that was put in last.
const BYTES: usize = 4 << 20;

/// Unpacked frames, the one used last behind the others.
#[derive(Default)]
pub(super) struct FrameCache {
    frames: Vec<(Key, MmapMut)>,
    bytes: usize,
    /// Memory of one that had to go.
    spare: Option<MmapMut>,
}

impl FrameCache {
    pub(super) fn has(&self, key: Key) -> bool {
        self.frames.iter().any(|(held, _)| *held == key)
    }

    /// A frame, which is the one used last from here on.
    pub(super) fn get(&mut self, key: Key) -> Option<&[u8]> {
        let last = self.frames.len().checked_sub(1)?;
        let place = self.frames.iter().rposition(|(held, _)| *held == key)?;
        self.frames[place..].rotate_left(1);
        Some(&self.frames[last].1)
    }

    /// Makes room for a frame, and gives memory for it. What it holds is nothing.
    ///
    /// # Errors
    /// Where there is no memory, or the frame has no bytes.
    pub(super) fn room(&mut self, length: usize) -> io::Result<MmapMut> {
        while self.frames.len() >= FRAMES || (!self.frames.is_empty() && self.bytes + length > BYTES) {
            let (_, old) = self.frames.remove(0);
            self.bytes -= old.len();
            self.spare = Some(old);
        }
        match self.spare.take().filter(|spare| spare.len() == length) {
            Some(spare) => Ok(spare),
            None => MmapMut::map_anon(length),
        }
    }

    /// Takes in a frame that [`Self::room`] was made for and that is not there.
    pub(super) fn put(&mut self, key: Key, plain: MmapMut) {
        self.bytes += plain.len();
        self.frames.push((key, plain));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_the_longest_goes_first() {
        let mut cache = FrameCache::default();
        let mut put = |frame: u32, length: usize| {
            let plain = cache.room(length).expect("memory");
            cache.put((0, frame), plain);
            (0..40).filter(|frame| cache.has((0, *frame))).collect::<Vec<_>>()
        };
        for frame in 0..16 {
            put(frame, 1);
        }
        assert_eq!(put(16, 1), (1..17).collect::<Vec<_>>());
        assert_eq!(put(17, BYTES - 4), [13, 14, 15, 16, 17]);
        assert_eq!(put(18, BYTES + 1), [18]);
        assert_eq!(put(19, 1), [19]);
        assert_eq!(put(20, 1), [19, 20]);
        assert_eq!(cache.get((0, 19)).map(<[u8]>::len), Some(1));
        assert_eq!(cache.get((1, 19)), None);
        let plain = cache.room(BYTES - 1).expect("memory");
        cache.put((0, 21), plain);
        assert!(cache.has((0, 19)) && !cache.has((0, 20)));
        assert_eq!(cache.bytes, BYTES);
    }
}
