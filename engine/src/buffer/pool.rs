//! The pool: one anonymous mapping, cut into equal page-aligned buffers.
//!
//! Invariants: `count * size` bytes are reserved once and never grow; a buffer number has at most one
//! owner, so at most one [`PageBuffer`] reaches its bytes. Pages are touched only when a buffer is filled.
//! Taking from a pool with free buffers makes no system call and takes no lock.

use super::free::FreeStack;
use super::page::PageBuffer;
use memmap2::{MmapMut, MmapRaw};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Buffers are aligned to, and sized in multiples of, this many bytes: the strictest alignment that common
/// disks ask of direct I/O.
pub const PAGE: usize = 4096;

/// The largest buffer: a ring takes 32-bit lengths, and registers at most 1 GiB in one piece.
const MAX_SIZE: usize = 1 << 30;

/// A handle to a pool of page-aligned buffers; clones share the pool.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<PoolMemory>,
}

/// What the handles and the buffers that are out share.
pub(super) struct PoolMemory {
    map: MmapRaw,
    size: usize,
    count: usize,
    free: FreeStack,
    closed: AtomicBool,
    /// How many takers sleep, or are about to, on `returned`.
    sleepers: AtomicUsize,
    gate: Mutex<()>,
    returned: Condvar,
    waits: AtomicU64,
    waited_nanoseconds: AtomicU64,
}

impl BufferPool {
    /// Reserves `count` buffers of `size` bytes each.
    ///
    /// # Errors
    /// `InvalidInput` when `count` is zero, `size` is no positive multiple of [`PAGE`] up to 1 GiB, or the
    /// product does not fit the address space; else what mapping the memory failed with.
    pub fn new(count: usize, size: usize) -> io::Result<Self> {
        let number = u32::try_from(count).ok().filter(|&n| n > 0 && n < u32::MAX);
        let number = number.ok_or_else(|| invalid(format!("a pool of {count} buffers is not possible")))?;
        if size == 0 || !size.is_multiple_of(PAGE) || size > MAX_SIZE {
            return Err(invalid(format!(
                "buffer size {size} is not a multiple of {PAGE} bytes between {PAGE} and {MAX_SIZE}"
            )));
        }
        let total = count.checked_mul(size).filter(|&total| isize::try_from(total).is_ok());
        let total = total.ok_or_else(|| invalid(format!("{count} buffers of {size} bytes do not fit")))?;
        let map = MmapRaw::from(MmapMut::map_anon(total)?);
        Ok(Self {
            shared: Arc::new(PoolMemory {
                map,
                size,
                count,
                free: FreeStack::full(number),
                closed: AtomicBool::new(false),
                sleepers: AtomicUsize::new(0),
                gate: Mutex::new(()),
                returned: Condvar::new(),
                waits: AtomicU64::new(0),
                waited_nanoseconds: AtomicU64::new(0),
            }),
        })
    }

    /// Takes an empty buffer, waiting until one is free; `None` once the pool is closed.
    #[must_use]
    pub fn take(&self) -> Option<PageBuffer> {
        if let Some(buffer) = self.try_take() {
            return Some(buffer);
        }
        if self.shared.closed.load(Ordering::SeqCst) {
            return None;
        }
        let started = Instant::now();
        let number = self.shared.wait_for_number();
        let nanoseconds = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.shared.waits.fetch_add(1, Ordering::Relaxed);
        self.shared.waited_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        number.map(|number| self.buffer(number))
    }

    /// Takes an empty buffer if one is free now and the pool is open.
    #[must_use]
    pub fn try_take(&self) -> Option<PageBuffer> {
        if self.shared.closed.load(Ordering::SeqCst) {
            return None;
        }
        self.shared.free.pop().map(|number| self.buffer(number))
    }

    /// Ends the handing out: everyone waiting in [`take`](Self::take), and every later call, gets `None`.
    /// Buffers that are out stay valid.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        drop(self.shared.gate.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.returned.notify_all();
    }

    /// Whether [`close`](Self::close) was called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::SeqCst)
    }

    /// Bytes in one buffer.
    #[must_use]
    pub fn buffer_size(&self) -> usize {
        self.shared.size
    }

    /// Buffers in the pool, free or not.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Buffers that are free; exact only while nobody takes or returns one.
    #[must_use]
    pub fn free(&self) -> usize {
        self.shared.free.len()
    }

    /// How often a taker found the pool empty and had to wait.
    #[must_use]
    pub fn waits(&self) -> u64 {
        self.shared.waits.load(Ordering::Relaxed)
    }

    /// Total time that takers spent waiting for a buffer.
    #[must_use]
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.shared.waited_nanoseconds.load(Ordering::Relaxed))
    }

    /// Whether `buffer` was taken from this pool.
    #[must_use]
    pub fn owns(&self, buffer: &PageBuffer) -> bool {
        Arc::ptr_eq(&self.shared, buffer.memory())
    }

    /// Every buffer's memory, in the order of [`PageBuffer::index`], for registration with a ring. The
    /// memory stays mapped for as long as any handle or buffer of this pool lives.
    #[must_use]
    pub fn as_iovecs(&self) -> Vec<libc::iovec> {
        (0..self.shared.count)
            .map(|n| libc::iovec { iov_base: self.shared.start(n).cast(), iov_len: self.shared.size })
            .collect()
    }

    fn buffer(&self, number: u32) -> PageBuffer {
        PageBuffer::new(Arc::clone(&self.shared), number)
    }
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferPool")
            .field("count", &self.count())
            .field("buffer_size", &self.buffer_size())
            .field("free", &self.free())
            .finish_non_exhaustive()
    }
}

impl PoolMemory {
    /// Bytes in one buffer.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The first byte of buffer `number`.
    pub(super) fn start(&self, number: usize) -> *mut u8 {
        assert!(number < self.count, "buffer {number} of a pool of {}", self.count);
        // `count * size` was checked to fit, so this neither overflows nor leaves the mapping.
        self.map.as_mut_ptr().wrapping_add(number * self.size)
    }

    /// Takes back a buffer and wakes one waiting taker.
    pub(super) fn give_back(&self, number: u32) {
        self.free.push(number);
        // A sleeper announces itself before it looks at the stack for the last time, and we look for
        // sleepers after the push. Both sides are sequentially consistent, so one of them sees the other.
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.gate.lock().unwrap_or_else(PoisonError::into_inner));
            self.returned.notify_one();
        }
    }

    fn wait_for_number(&self) -> Option<u32> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let number = loop {
            if self.closed.load(Ordering::SeqCst) {
                break None;
            }
            if let Some(number) = self.free.pop() {
                break Some(number);
            }
            gate = self.returned.wait(gate).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        number
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_sizes_that_cannot_work() {
        for (count, size) in
            [(0, PAGE), (1, 0), (1, 100), (1, PAGE + 512), (1, MAX_SIZE + PAGE), (1 << 40, PAGE)]
        {
            let error = BufferPool::new(count, size).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{count} x {size}: {error}");
        }
    }

    #[test]
    fn buffers_are_aligned_disjoint_and_return_on_drop() {
        let pool = BufferPool::new(4, 2 * PAGE).expect("pool");
        let mut out: Vec<PageBuffer> = (0..4).map(|_| pool.take().expect("open")).collect();
        assert!(pool.try_take().is_none());
        for (number, buffer) in (0u8..).zip(out.iter_mut()) {
            assert_eq!(buffer.as_mut_slice().as_ptr().align_offset(PAGE), 0);
            assert!(pool.owns(buffer));
            buffer.as_mut_slice().fill(number + 1);
            buffer.set_len(2 * PAGE);
        }
        for (number, buffer) in (0u8..).zip(&out) {
            assert!(buffer.iter().all(|&byte| byte == number + 1));
        }
        drop(out);
        assert_eq!(pool.free(), 4);
        assert_eq!(pool.as_iovecs().len(), 4);
    }

    #[test]
    fn a_waiting_taker_gets_the_returned_buffer() {
        let pool = BufferPool::new(1, PAGE).expect("pool");
        let held = pool.take().expect("open");
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| pool.take().is_some());
            while pool.shared.sleepers.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            drop(held);
            assert!(taker.join().expect("taker"));
        });
        assert_eq!((pool.free(), pool.waits()), (1, 1));
        assert!(pool.waited() > Duration::ZERO);
    }

    #[test]
    fn closing_wakes_every_taker() {
        let pool = BufferPool::new(1, PAGE).expect("pool");
        let held = pool.take().expect("open");
        std::thread::scope(|scope| {
            let takers: Vec<_> = (0..3).map(|_| scope.spawn(|| pool.take().is_none())).collect();
            while pool.shared.sleepers.load(Ordering::SeqCst) < 3 {
                std::thread::yield_now();
            }
            pool.close();
            assert!(takers.into_iter().all(|taker| taker.join().expect("taker")));
        });
        drop(held);
        assert!(pool.take().is_none() && pool.try_take().is_none() && pool.is_closed());
        assert_eq!(pool.free(), 1);
    }

    #[test]
    fn no_taker_is_forgotten_under_contention() {
        let pool = BufferPool::new(2, PAGE).expect("pool");
        std::thread::scope(|scope| {
            for seed in 0u8..6 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for round in 0u8..=255 {
                        for _ in 0..16 {
                            let mut buffer = pool.take().expect("open");
                            let mark = seed ^ round;
                            buffer.as_mut_slice()[..8].fill(mark);
                            assert!(buffer.as_mut_slice()[..8].iter().all(|&byte| byte == mark));
                        }
                    }
                });
            }
        });
        assert_eq!(pool.free(), 2);
    }
}
