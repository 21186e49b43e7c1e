//! Wakes a thread that waits for its server, from any other thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// Ends the present or the next wait of a [`super::BulkStream::wait`]; clones share it.
#[derive(Clone, Debug)]
pub struct Alarm {
    event: Arc<OwnedFd>,
}

impl Alarm {
    /// An alarm that nobody has rung.
    ///
    /// # Errors
    /// The operating system's, where it has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event: Arc::new(event) })
    }

    /// Rings. What the woken thread is to see must be there before.
    pub fn ring(&self) {
        // A full counter means that it rings already.
        while rustix::io::write(&*self.event, &1_u64.to_ne_bytes()) == Err(Errno::INTR) {}
    }

    /// Stops ringing; the owner looks at what it was woken for afterwards.
    pub(super) fn silence(&self) {
        while rustix::io::read(&*self.event, &mut [0; 8]) == Err(Errno::INTR) {}
    }

    /// Waits until it rings, or `timeout` is over.
    pub(crate) fn wait(&self, timeout: std::time::Duration) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let timeout = Timespec::try_from(timeout).ok();
        // A signal to the process ends the wait early; whoever waits looks and waits again.
        let _ = poll(&mut [PollFd::new(&*self.event, PollFlags::IN)], timeout.as_ref());
        self.silence();
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
