//! One switch that ends a run early: the first reason wins, and everything that blocks is woken.
//!
//! Threads that find the switch thrown give up quietly; the reason is told once, by whoever runs the whole.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::failure::Failure;

type Waker = Box<dyn Fn() + Send>;

/// A shared stop switch that carries the error `E` which threw it.
pub struct Stop<E> {
    inner: Arc<Inner<E>>,
}

struct Inner<E> {
    thrown: AtomicBool,
    state: Mutex<State<E>>,
}

struct State<E> {
    reason: Option<E>,
    wakers: Vec<Waker>,
}

impl<E> Clone for Stop<E> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<E> fmt::Debug for Stop<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stop").field("thrown", &self.is_thrown()).finish_non_exhaustive()
    }
}

impl<E> Default for Stop<E> {
    fn default() -> Self {
        let state = State { reason: None, wakers: Vec::new() };
        Self { inner: Arc::new(Inner { thrown: AtomicBool::new(false), state: Mutex::new(state) }) }
    }
}

impl<E> Stop<E> {
    /// A switch that nobody has thrown.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the run is to end.
    #[must_use]
    pub fn is_thrown(&self) -> bool {
        self.inner.thrown.load(Ordering::Acquire)
    }

    /// Ends the run because of `reason`, unless there is a reason already, and wakes everything that blocks.
    pub fn throw(&self, reason: E) {
        self.wake(Some(reason));
    }

    /// Ends the run for a reason that the caller tells itself.
    pub fn throw_quietly(&self) {
        self.wake(None);
    }

    fn wake(&self, reason: Option<E>) {
        let wakers = {
            let mut state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.reason.is_none() {
                state.reason = reason;
            }
            self.inner.thrown.store(true, Ordering::Release);
            std::mem::take(&mut state.wakers)
        };
        for wake in wakers {
            wake();
        }
    }

    /// Has `wake` called once when the switch is thrown; at once, if it has been.
    pub fn on_thrown(&self, wake: impl Fn() + Send + 'static) {
        {
            let mut state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.is_thrown() {
                state.wakers.push(Box::new(wake));
                return;
            }
        }
        wake();
    }

    /// Takes the reason out, once.
    #[must_use]
    pub fn take_reason(&self) -> Option<E> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner).reason.take()
    }
}

/// Throws its switch when the thread that holds it panics.
#[derive(Debug)]
pub struct PanicTeller {
    stop: Stop<Failure>,
    who: &'static str,
}

impl Drop for PanicTeller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let who = self.who;
            self.stop.throw(Failure::Target(format!("{who} panicked; this is a bug in pgstrata")));
        }
    }
}

impl Stop<Failure> {
    /// Makes sure that a panic of this thread, while the guard lives, ends the run at once and not at its join.
    #[must_use]
    pub fn tell_of_panics(&self, who: &'static str) -> PanicTeller {
        PanicTeller { stop: self.clone(), who }
    }

    /// Does `work`, but no longer than until the switch is thrown.
    pub async fn unless_thrown<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let thrown = Arc::new(Notify::new());
        let wake = Arc::clone(&thrown);
        self.on_thrown(move || wake.notify_one());
        tokio::select! {
            done = work => done,
            () = thrown.notified() => Err(Failure::Stopped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn first_reason_wins_and_wakers_run_once() {
        let stop = Stop::new();
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        stop.on_thrown(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        assert!(!stop.is_thrown());
        stop.throw("first");
        stop.throw("second");
        let count = Arc::clone(&woken);
        stop.on_thrown(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        assert!(stop.is_thrown());
        assert_eq!(woken.load(Ordering::SeqCst), 2);
        assert_eq!(stop.take_reason(), Some("first"));
        assert_eq!(stop.take_reason(), None);
    }
}
