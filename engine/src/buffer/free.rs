//! The free list: a lock-free stack of buffer numbers.
//!
//! Invariants: a number is either in the stack once or owned by whoever popped it. Last in, first out, so
//! that a pool that is larger than the work at hand keeps touching the same few warm buffers.
//! Knows nothing of memory; never blocks.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Marks the end of the chain; no buffer carries this number.
const END: u32 = u32::MAX;

/// A stack of the numbers `0..count`, linked through an array that is allocated once.
///
/// The head packs a tag above the number. Every change raises the tag, so a pop that was preempted between
/// reading `next` and exchanging the head fails when the same number came back in the meantime, unless
/// exactly a multiple of 2^32 changes happened during that one preemption.
pub(super) struct FreeStack {
    head: AtomicU64,
    next: Box<[AtomicU32]>,
    free: AtomicUsize,
}

fn pack(tag: u32, number: u32) -> u64 {
    (u64::from(tag) << 32) | u64::from(number)
}

#[expect(clippy::cast_possible_truncation, reason = "takes the two halves of a packed word apart")]
fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

impl FreeStack {
    /// A stack that holds every number below `count`, the lowest on top. `count` must be below `u32::MAX`.
    pub(super) fn full(count: u32) -> Self {
        let next = (1..=count).map(|n| AtomicU32::new(if n == count { END } else { n })).collect();
        let top = if count == 0 { END } else { 0 };
        Self { head: AtomicU64::new(pack(0, top)), next, free: AtomicUsize::new(count as usize) }
    }

    /// Takes the number that was put back last, or `None` when all are out.
    pub(super) fn pop(&self) -> Option<u32> {
        // Sequentially consistent, because a taker that is about to sleep relies on this load coming after
        // it has announced itself (see `pool.rs`).
        let mut head = self.head.load(Ordering::SeqCst);
        loop {
            let (tag, number) = unpack(head);
            if number == END {
                return None;
            }
            let next = self.next[number as usize].load(Ordering::Relaxed);
            let replacement = pack(tag.wrapping_add(1), next);
            match self.head.compare_exchange_weak(head, replacement, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => {
                    self.free.fetch_sub(1, Ordering::Relaxed);
                    return Some(number);
                }
                Err(now) => head = now,
            }
        }
    }

    /// Puts back a number that `pop` returned.
    pub(super) fn push(&self, number: u32) {
        // Counted first, so that the count never drops below zero between a push and a racing pop.
        self.free.fetch_add(1, Ordering::Relaxed);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            let (tag, top) = unpack(head);
            self.next[number as usize].store(top, Ordering::Relaxed);
            let replacement = pack(tag.wrapping_add(1), number);
            match self.head.compare_exchange_weak(head, replacement, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// How many numbers are in the stack; exact only while nobody pushes or pops.
    pub(super) fn len(&self) -> usize {
        self.free.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn pops_what_was_pushed_last() {
        let stack = FreeStack::full(4);
        assert_eq!((stack.pop(), stack.pop(), stack.pop()), (Some(0), Some(1), Some(2)));
        stack.push(1);
        stack.push(0);
        assert_eq!(stack.len(), 3);
        let rest: Vec<_> = std::iter::from_fn(|| stack.pop()).collect();
        assert_eq!(rest, [0, 1, 3]);
        assert_eq!(stack.len(), 0);
    }

    #[test]
    fn an_empty_stack_stays_empty() {
        assert_eq!(FreeStack::full(0).pop(), None);
    }

    #[test]
    fn a_number_never_has_two_owners() {
        const COUNT: u32 = 3;
        let stack = FreeStack::full(COUNT);
        let owned: Vec<AtomicBool> = (0..COUNT).map(|_| AtomicBool::new(false)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        if let Some(number) = stack.pop() {
                            let owner = &owned[number as usize];
                            assert!(!owner.swap(true, Ordering::AcqRel), "buffer {number} handed out twice");
                            owner.store(false, Ordering::Release);
                            stack.push(number);
                        }
                    }
                });
            }
        });
        assert_eq!(stack.len(), COUNT as usize);
        let mut all: Vec<_> = std::iter::from_fn(|| stack.pop()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..COUNT).collect::<Vec<_>>());
    }
}
