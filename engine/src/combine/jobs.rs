//! Who does what next: files are dealt to whoever is idle, and parts of large files go first, so that a single large one
//! does not keep one worker busy at the end.
//!
//! The lock is taken once for a handful of files or a part of many megabytes. The queue is bounded; no worker waits for
//! another but for work that the other may still make.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::assembly::Assembly;
use super::task::Task;
use crate::failure::Failure;
use crate::stop::Stop;

/// What one worker does at a time.
pub(super) enum Job {
    /// Files to look at.
    Files(Vec<Task>),
    /// A part of a file.
    Part(Arc<Assembly>, usize),
}

#[derive(Default)]
struct State {
    files: VecDeque<Vec<Task>>,
    /// Large files that may have parts left.
    large: Vec<Arc<Assembly>>,
    dealt_out: bool,
    /// Workers that look at files, and may find large ones among them.
    looking: usize,
}

/// The queue.
pub(super) struct Jobs {
    state: Mutex<State>,
    changed: Condvar,
    most: usize,
    stop: Stop<Failure>,
}

impl Jobs {
    /// An empty queue for so many workers, whose waiters `stop` wakes.
    pub(super) fn new(workers: usize, stop: &Stop<Failure>) -> Arc<Self> {
        let jobs = Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            most: 2 * workers,
            stop: stop.clone(),
        });
        let wake = Arc::downgrade(&jobs);
        stop.on_thrown(move || {
            if let Some(jobs) = wake.upgrade() {
                drop(jobs.lock());
                jobs.changed.notify_all();
            }
        });
        jobs
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Deals files out, once there is room.
    pub(super) fn deal(&self, files: Vec<Task>) -> Result<(), Failure> {
        let mut state = self.lock();
        while state.files.len() >= self.most && !self.stop.is_thrown() {
            state = self.wait(state);
        }
        if self.stop.is_thrown() {
            return Err(Failure::Stopped);
        }
        state.files.push_back(files);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// No more files come.
    pub(super) fn dealt_out(&self) {
        self.lock().dealt_out = true;
        self.changed.notify_all();
    }

    /// Lets others help with a file.
    pub(super) fn share(&self, file: &Arc<Assembly>) {
        self.lock().large.push(Arc::clone(file));
        self.changed.notify_all();
    }

    /// The next job; `None` when all is done or the run is to end. After [`Job::Files`] call [`looked`](Self::looked).
    pub(super) fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if self.stop.is_thrown() {
                return None;
            }
            while let Some(large) = state.large.first() {
                if let Some(part) = large.claim_part() {
                    return Some(Job::Part(Arc::clone(large), part));
                }
                state.large.remove(0);
            }
            if let Some(files) = state.files.pop_front() {
                state.looking += 1;
                drop(state);
                self.changed.notify_all();
                return Some(Job::Files(files));
            }
            if state.dealt_out && state.looking == 0 {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// The files that were taken last are looked at.
    pub(super) fn looked(&self) {
        self.lock().looking -= 1;
        self.changed.notify_all();
    }
}
