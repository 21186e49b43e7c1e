//! One buffer of the pool, owned by whoever fills, checks or writes it; dropping it gives it back.
//!
//! Invariants: `len <= capacity`; no other `PageBuffer` reaches the same bytes while this one lives.
//! The bytes past `len` are whatever the previous owner left there, never another process's memory.

use super::pool::PoolMemory;
use std::ops::Deref;
use std::sync::Arc;

/// An owned, page-aligned buffer with a filled length. Dereferences to its filled part.
pub struct PageBuffer {
    memory: Arc<PoolMemory>,
    number: u32,
    len: usize,
}

impl PageBuffer {
    /// Wraps a number that the free list just handed out, which makes this its only owner.
    pub(super) fn new(memory: Arc<PoolMemory>, number: u32) -> Self {
        Self { memory, number, len: 0 }
    }

    pub(super) fn memory(&self) -> &Arc<PoolMemory> {
        &self.memory
    }

    /// The buffer's number in its pool, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.number as usize
    }

    /// Bytes filled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is filled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes the buffer can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.size()
    }

    /// Bytes that can still be filled.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.capacity() - self.len
    }

    /// The filled part.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` lies in a live mapping of at least `capacity >= len` bytes from there, all of them
        // initialised because the mapping is anonymous; this is the only owner of the range, and the borrow
        // of `self` keeps `as_mut_slice` away while the slice lives.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }

    /// The whole buffer, filled or not. What is past [`len`](Self::len) is left over from earlier use.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, over the whole capacity; `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.capacity()) }
    }

    /// The part that is not filled yet; after writing to it, say so with [`set_len`](Self::set_len).
    #[must_use]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let filled = self.len;
        &mut self.as_mut_slice()[filled..]
    }

    /// Declares the first `len` bytes filled.
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "length {len} in a buffer of {} bytes", self.capacity());
        self.len = len;
    }

    /// Empties the buffer; its bytes stay.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends as much of `bytes` as fits and returns how many were copied.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> usize {
        let copied = bytes.len().min(self.remaining());
        self.spare_mut()[..copied].copy_from_slice(&bytes[..copied]);
        self.len += copied;
        copied
    }

    /// Zeroes what lies between the filled part and `end`, so that padding carries nothing left over.
    ///
    /// # Panics
    /// When `end` exceeds the capacity.
    pub fn zero_until(&mut self, end: usize) {
        let filled = self.len;
        if end > filled {
            self.as_mut_slice()[filled..end].fill(0);
        }
    }

    /// `length` bytes from `start`, filled or not: padding is written past the filled part.
    ///
    /// # Panics
    /// When the range exceeds the capacity.
    pub(crate) fn bytes(&self, start: usize, length: usize) -> &[u8] {
        // SAFETY: as in `as_slice`, over the whole capacity.
        let all = unsafe { std::slice::from_raw_parts(self.start(), self.capacity()) };
        &all[start..start + length]
    }

    /// The first byte. The pointer is valid for `capacity` bytes until the buffer is dropped.
    pub(crate) fn start(&self) -> *mut u8 {
        self.memory.start(self.number as usize)
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl std::fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageBuffer(#{}, {} of {} bytes)", self.number, self.len, self.capacity())
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        self.memory.give_back(self.number);
    }
}

#[cfg(test)]
mod tests {
    use crate::buffer::{BufferPool, PAGE};

    #[test]
    fn fills_up_to_its_capacity() {
        let pool = BufferPool::new(1, PAGE).expect("pool");
        let mut buffer = pool.take().expect("open");
        assert_eq!(buffer.extend_from_slice(&[7; 4000]), 4000);
        assert_eq!(buffer.extend_from_slice(&[8; 4000]), 96);
        assert_eq!((buffer.len(), buffer.remaining()), (PAGE, 0));
        assert_eq!((buffer[3999], buffer[4000]), (7, 8));
        buffer.clear();
        assert!(buffer.is_empty());
    }

    #[test]
    fn padding_hides_what_was_left_over() {
        let pool = BufferPool::new(1, PAGE).expect("pool");
        let mut buffer = pool.take().expect("open");
        buffer.as_mut_slice().fill(0xAA);
        drop(buffer);
        let mut buffer = pool.take().expect("open");
        assert!(buffer.is_empty());
        buffer.extend_from_slice(&[1; 10]);
        buffer.zero_until(512);
        assert!(buffer.as_mut_slice()[10..512].iter().all(|&byte| byte == 0));
        assert_eq!(buffer.as_mut_slice()[512], 0xAA);
    }

    #[test]
    #[should_panic(expected = "length 4097")]
    fn refuses_a_length_beyond_its_memory() {
        BufferPool::new(1, PAGE).expect("pool").take().expect("open").set_len(PAGE + 1);
    }
}
