//! A background writer whose every transaction is known, so that a copy can be checked to the last row.
//!
//! Transaction *n* of a writer is a function of its seed, of *n* and of the state that transactions 1 to *n*−1 left
//! (see [`Model`](model::Model)). It changes rows, makes and drops tables, and enters *n* in a ledger table, all or
//! nothing. A copy that recovered to the end of some transaction *m* must hold a ledger of exactly 1..=*m* and tables
//! that equal the model after *m* transactions; and *m* must not lie before what was acknowledged when the backup
//! started. Between transactions the writer vacuums, reindexes and switches WAL files.

mod ledger;
mod model;

use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::Sql;

pub use ledger::Ledger;
use model::Model;

/// The pause between two transactions unless a test asks for another: enough churn for any backup, and enough
/// processor left for it.
const PAUSE: Duration = Duration::from_millis(2);
/// How long a test waits for the writer to get somewhere.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running writer. Dropping it stops it.
#[derive(Debug)]
pub struct Writer {
    schema: String,
    seed: u64,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    /// The last transaction that was sent.
    sent: u64,
    /// The last transaction whose commit was acknowledged.
    acknowledged: u64,
    stop: bool,
    /// Why the writer ended before it was told to.
    failure: Option<String>,
}

impl Writer {
    /// Starts a writer in the database `postgres`. Writers side by side need different numbers; the number is the seed
    /// too.
    ///
    /// # Panics
    /// Where its tables cannot be made.
    #[track_caller]
    #[must_use]
    pub fn start(conninfo: &str, number: u64) -> Self {
        Self::start_with_pause(conninfo, number, PAUSE)
    }

    /// As [`start`](Self::start), with another pause between transactions.
    ///
    /// # Panics
    /// Where its tables cannot be made.
    #[track_caller]
    #[must_use]
    pub fn start_with_pause(conninfo: &str, number: u64, pause: Duration) -> Self {
        let schema = format!("churn_{number}");
        let sql = Sql::connect(conninfo).unwrap_or_else(|error| panic!("{error:#}"));
        sql.execute(&model::schema(&schema));
        let shared = Arc::new(Shared::default());
        let (model, theirs) = (Model::new(&schema, number), Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name(schema.clone())
            .spawn(move || theirs.write(&sql, model, pause))
            .expect("a thread can be started");
        Self { schema, seed: number, shared, thread: Some(thread) }
    }

    /// Whether it writes no more, because it could not.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// How many transactions are known to be committed: a backup that starts now must hold them all.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared.lock().acknowledged
    }

    /// Waits until that many transactions are committed.
    ///
    /// # Panics
    /// Where the writer ended, or got nowhere for long.
    #[track_caller]
    pub fn wait_for(&self, transactions: u64) {
        let progress = self.shared.lock();
        let waiting =
            |progress: &mut Progress| progress.acknowledged < transactions && progress.failure.is_none();
        let (progress, _) =
            self.shared.changed.wait_timeout_while(progress, PATIENCE, waiting).expect("the writer panicked");
        assert!(
            progress.acknowledged >= transactions,
            "{}: {} transactions instead of {transactions} after {PATIENCE:?}: {}",
            self.schema,
            progress.acknowledged,
            progress.failure.as_deref().unwrap_or("the writer is stuck")
        );
    }

    /// Waits until `more` further transactions are committed.
    ///
    /// # Panics
    /// As [`wait_for`](Self::wait_for).
    #[track_caller]
    pub fn wait_for_more(&self, more: u64) {
        self.wait_for(self.acknowledged() + more);
    }

    /// Stops the writer after its current transaction.
    ///
    /// # Panics
    /// Where it ended by itself; see [`end`](Self::end).
    #[track_caller]
    #[must_use]
    pub fn stop(self) -> Ledger {
        let (ledger, failure) = self.end();
        assert_eq!(failure, None, "the writer ended by itself");
        ledger
    }

    /// As [`stop`](Self::stop), for a writer whose server was killed: also returns why it ended by itself, if it did.
    #[must_use]
    pub fn end(mut self) -> (Ledger, Option<String>) {
        self.join();
        let progress = self.shared.lock().clone();
        let ledger = Ledger::new(self.schema.clone(), self.seed, progress.acknowledged, progress.sent);
        (ledger, progress.failure)
    }

    fn join(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has poisoned the progress, and shows in the next look at it.
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.join();
    }
}

impl Shared {
    #[track_caller]
    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().expect("the writer panicked")
    }

    fn write(&self, sql: &Sql, mut model: Model, pause: Duration) {
        loop {
            let progress = self.lock();
            let (mut progress, _) = self
                .changed
                .wait_timeout_while(progress, pause, |progress| !progress.stop)
                .expect("nobody panics");
            if progress.stop {
                return;
            }
            progress.sent += 1;
            let number = progress.sent;
            drop(progress);
            let upkeep = model.upkeep(number);
            let done = upkeep.iter().try_for_each(|statement| sql.try_execute(statement));
            let done = done.and_then(|()| sql.try_execute(&model.transaction(number)));
            let mut progress = self.lock();
            match done {
                Ok(()) => progress.acknowledged = number,
                Err(error) => {
                    progress.failure = Some(format!("{error:#}"));
                    progress.stop = true;
                }
            }
            drop(progress);
            self.changed.notify_all();
        }
    }
}
