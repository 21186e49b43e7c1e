//! Wakes the thread that waits for its disk, when there is new work in a queue the disk knows nothing of.
//!
//! Invariant: a ring that comes after the owner last returned from `reap` makes its next waiting `reap`
//! return, so work that is queued before ringing is never slept on. Ringing while the owner is awake is
//! one atomic exchange and no system call.

use crossbeam::channel::Sender;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// The owner is running and nobody rang.
const AWAKE: u8 = 0;
/// Somebody rang since the owner last looked.
const RUNG: u8 = 1;
/// The owner blocks, or is about to.
const ASLEEP: u8 = 2;

/// A handle that wakes a disk's owner; clones share the bell. It may outlive the disk.
#[derive(Clone)]
pub struct Doorbell {
    bell: Arc<Bell>,
}

struct Bell {
    state: AtomicU8,
    wake: Wake,
}

/// How the sleeping owner is reached.
enum Wake {
    /// The owner's ring reads this eventfd.
    Event(OwnedFd),
    /// The owner selects over this channel of capacity 1.
    Channel(Sender<()>),
}

impl Doorbell {
    pub(super) fn over_event(event: OwnedFd) -> Self {
        Self::new(Wake::Event(event))
    }

    pub(super) fn over_channel(sender: Sender<()>) -> Self {
        Self::new(Wake::Channel(sender))
    }

    fn new(wake: Wake) -> Self {
        Self { bell: Arc::new(Bell { state: AtomicU8::new(AWAKE), wake }) }
    }

    /// Makes the owner's current or next waiting `reap` return.
    pub fn ring(&self) {
        // Always an exchange, even when the bell was already rung: it orders the caller's queue operation
        // before the owner's look at the queue.
        if self.bell.state.swap(RUNG, Ordering::SeqCst) == ASLEEP {
            self.wake();
        }
    }

    /// Sends the wake-up itself, whatever the state.
    pub(super) fn wake(&self) {
        match &self.bell.wake {
            Wake::Event(event) => {
                // Fails only when the counter would pass 2^64 - 2, or on a signal before the write: retry.
                while rustix::io::write(event, &1u64.to_ne_bytes()) == Err(rustix::io::Errno::INTR) {}
            }
            // Full means that a wake-up is already under way; disconnected, that the disk is gone.
            Wake::Channel(sender) => drop(sender.try_send(())),
        }
    }

    /// The owner announces that it is about to block; false when somebody rang meanwhile, so it must not.
    pub(super) fn fall_asleep(&self) -> bool {
        let asleep =
            self.bell.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if !asleep {
            self.bell.state.swap(AWAKE, Ordering::SeqCst);
        }
        asleep
    }

    /// The owner is back; true when somebody rang.
    pub(super) fn wake_up(&self) -> bool {
        self.bell.state.swap(AWAKE, Ordering::SeqCst) == RUNG
    }

    /// The eventfd, for a bell that has one.
    pub(super) fn event(&self) -> Option<BorrowedFd<'_>> {
        match &self.bell.wake {
            Wake::Event(event) => Some(event.as_fd()),
            Wake::Channel(_) => None,
        }
    }

    #[cfg(test)]
    pub(super) fn owner_sleeps(&self) -> bool {
        self.bell.state.load(Ordering::SeqCst) == ASLEEP
    }
}

impl std::fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match self.bell.state.load(Ordering::Relaxed) {
            RUNG => "rung",
            ASLEEP => "owner asleep",
            _ => "owner awake",
        };
        write!(f, "Doorbell({state})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_only_sleepers_and_is_never_lost() {
        let (sender, receiver) = crossbeam::channel::bounded(1);
        let bell = Doorbell::over_channel(sender);
        bell.ring();
        assert!(receiver.is_empty(), "no wake-up while the owner is awake");
        assert!(!bell.fall_asleep(), "a ring before sleeping keeps the owner up");
        assert!(bell.fall_asleep(), "and is used up by that");
        bell.ring();
        bell.ring();
        assert_eq!(receiver.len(), 1);
        assert!(bell.wake_up());
        assert!(!bell.wake_up());
    }
}
