//! The threads that requests run on, apart from everything else: nobody who has only folders starts them.

use std::future::Future;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::failure::Failure;

/// A tokio runtime of its own.
#[derive(Debug)]
pub(super) struct Background {
    /// Taken when all is to end.
    runtime: Mutex<Option<Runtime>>,
    handle: Handle,
}

impl Background {
    /// Starts the threads. They hash, sign and encrypt what passes, so there are as many as cores, up to 16.
    pub(super) fn start() -> Result<Self, Failure> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores.clamp(2, 16))
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(|error| Failure::disk("start threads for", "the object store", error))?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Mutex::new(Some(runtime)) })
    }

    /// Does `work`, and waits for it. For threads that are none of a runtime's.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Failure> {
        let (tell, told) = sync_channel(1);
        self.handle.spawn(async move {
            // Whoever asked is waiting.
            let _ = tell.send(work.await);
        });
        told.recv().map_err(|_| match self.is_given_up() {
            true => Failure::Stopped,
            false => Failure::Target("a request panicked; this is a bug in pgstrata".into()),
        })
    }

    /// Does `work` beside.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(work);
    }

    /// Calls what needs to know the runtime.
    pub(super) fn enter<T>(&self, call: impl FnOnce() -> T) -> T {
        let _entered = self.handle.enter();
        call()
    }
}

impl Background {
    fn is_given_up(&self) -> bool {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Drops what is under way, and so wakes whoever waits for it. Nothing more is begun.
    pub(super) fn give_up(&self) {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            // The last one to hold the store may be one of its own threads, which must not wait for themselves.
            runtime.shutdown_background();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.give_up();
    }
}
