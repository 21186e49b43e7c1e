//! The runtime of sockets, timers and control tasks: tokio-uring where the kernel lets it, plain tokio elsewhere.
//!
//! Containers commonly forbid `io_uring_setup` (Docker's default seccomp profile, `kernel.io_uring_disabled`).
//! Backups must work there too, so the same futures run on readiness (epoll) then, and the choice is reported.
//! Either way the runtime is one thread, `tokio::task::spawn_local` spawns on it, and tokio's timers work in it.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io;

use tokio::task::LocalSet;

thread_local! {
    /// Whether the code on this thread runs inside a tokio-uring runtime.
    static URING: Cell<bool> = const { Cell::new(false) };
}

/// Whether transports opened now go through the ring.
pub(super) fn ring_is_running() -> bool {
    URING.get()
}

/// How sockets are driven.
#[derive(Debug)]
pub enum SocketDriver {
    /// tokio-uring.
    Uring,
    /// Readiness, because this is what the kernel said to a ring, or because it was asked for.
    Readiness {
        /// The refusal; none where readiness was asked for.
        refusal: Option<io::Error>,
    },
}

impl fmt::Display for SocketDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uring => f.write_str("io_uring"),
            Self::Readiness { refusal: None } => f.write_str("epoll"),
            Self::Readiness { refusal: Some(refusal) } => write!(f, "epoll (io_uring is refused: {refusal})"),
        }
    }
}

enum Inner {
    Uring(tokio_uring::Runtime),
    Readiness(tokio::runtime::Runtime, LocalSet),
}

/// A single-threaded runtime that sessions run on.
pub struct ControlRuntime {
    inner: Inner,
    driver: SocketDriver,
}

impl ControlRuntime {
    /// A runtime on tokio-uring, or on readiness where the kernel refuses a ring.
    ///
    /// # Errors
    /// The operating system's, where it has no file descriptors or memory left.
    pub fn new() -> io::Result<Self> {
        // A plain ring: the crate waits for completions through epoll and hangs on DEFER_TASKRUN and IOPOLL rings.
        match tokio_uring::Runtime::new(&tokio_uring::builder()) {
            Ok(runtime) => Ok(Self { inner: Inner::Uring(runtime), driver: SocketDriver::Uring }),
            Err(refusal) => Self::readiness(Some(refusal)),
        }
    }

    /// A runtime on readiness alone.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without_ring() -> io::Result<Self> {
        Self::readiness(None)
    }

    fn readiness(refusal: Option<io::Error>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let driver = SocketDriver::Readiness { refusal };
        Ok(Self { inner: Inner::Readiness(runtime, LocalSet::new()), driver })
    }

    /// How sockets are driven.
    #[must_use]
    pub fn driver(&self) -> &SocketDriver {
        &self.driver
    }

    /// Runs a future to its end, and the tasks that it spawns meanwhile.
    ///
    /// # Panics
    /// Where it is called from within a runtime.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        /// Puts the thread's mark back, also when the future panics.
        struct Restore(bool);
        impl Drop for Restore {
            fn drop(&mut self) {
                URING.set(self.0);
            }
        }
        match &self.inner {
            Inner::Uring(runtime) => {
                let _restore = Restore(URING.replace(true));
                runtime.block_on(future)
            }
            Inner::Readiness(runtime, local) => {
                let _restore = Restore(URING.replace(false));
                local.block_on(runtime, future)
            }
        }
    }
}

impl fmt::Debug for ControlRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlRuntime").field("driver", &self.driver).finish_non_exhaustive()
    }
}
