//! Collects what a running program writes to a pipe, so that it never waits for us, and lets a test wait for a text.

use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Collects what a program writes to a pipe.
#[derive(Debug)]
pub(crate) struct Collector {
    collected: Arc<(Mutex<Collected>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

impl Collector {
    pub(crate) fn new(pipe: Option<impl Read + Send + 'static>) -> Self {
        let collected = Arc::<(Mutex<Collected>, Condvar)>::default();
        let theirs = Arc::clone(&collected);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 8192];
            let mut pipe = pipe;
            loop {
                let read = pipe.as_mut().map_or(Ok(0), |pipe| pipe.read(&mut buffer));
                let mut collected = theirs.0.lock().expect("nobody panics with the lock");
                match read {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => collected.ended = true,
                    Ok(count) => collected.bytes.extend_from_slice(&buffer[..count]),
                }
                theirs.1.notify_all();
                if collected.ended {
                    return;
                }
            }
        });
        Self { collected, thread: Some(thread) }
    }

    pub(crate) fn wait_for(&self, text: &str, limit: Duration) -> bool {
        let holds = |collected: &Collected| {
            collected.bytes.windows(text.len().max(1)).any(|window| window == text.as_bytes())
        };
        let (lock, changed) = &*self.collected;
        let collected = lock.lock().expect("nobody panics with the lock");
        let waiting = |collected: &mut Collected| !collected.ended && !holds(collected);
        let waited = changed.wait_timeout_while(collected, limit, waiting);
        holds(&waited.expect("nobody panics with the lock").0)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.collected.0.lock().expect("nobody panics with the lock").bytes)
            .into_owned()
    }

    /// Waits for the end of the pipe, which comes when no process holds it any more.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("reading a pipe does not panic");
        }
        std::mem::take(&mut self.collected.0.lock().expect("nobody panics with the lock").bytes)
    }
}
