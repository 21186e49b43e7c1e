//! The load during the backup: one session that moves money between accounts, a transaction at a time.
//!
//! Each transaction writes a numbered line to the ledger and changes the balance of one account, so that in any
//! consistent copy every balance is the sum of its lines. Accounts are visited all over their table: pages change
//! while they are being copied.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use pgstrata_protocol::Lsn;

use super::ledger::Journal;
use super::sql::Sql;
use super::{DemoError, Side};
use crate::connect::ConnectionSettings;
use crate::failure::Failure;

/// The pause between transactions: the load is to be there, not to take the cores from the backup.
const PAUSE: Duration = Duration::from_millis(1);

/// A prime larger than any number of accounts here, so that consecutive transactions hit distant pages.
const STRIDE: u64 = 2_654_435_761;

/// The writer at work. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    quit: Option<Sender<()>>,
    thread: Option<JoinHandle<Result<Journal, DemoError>>>,
}

#[derive(Debug, Default)]
struct Shared {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    begun: u64,
    committed: u64,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl Writer {
    /// Starts to write, to accounts 1 to `accounts`.
    pub(super) fn start(settings: ConnectionSettings, accounts: u64) -> Result<Self, DemoError> {
        let shared = Arc::new(Shared::default());
        let (quit, ended) = bounded(0);
        let work = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("demo-writer".into())
            .spawn(move || {
                let outcome = write(&settings, accounts, &work, &ended);
                work.change(|counts| counts.ended = true);
                outcome
            })
            .map_err(|error| Failure::disk("start thread", "demo-writer", error))?;
        Ok(Self { shared, quit: Some(quit), thread: Some(thread) })
    }

    /// Waits until `count` transactions have committed.
    pub(super) fn after(self, count: u64) -> Result<Self, DemoError> {
        let waiting = |counts: &mut Counts| counts.committed < count && !counts.ended;
        let counts = self.shared.changed.wait_while(self.shared.lock(), waiting);
        let ended = counts.unwrap_or_else(PoisonError::into_inner).ended;
        if ended { Err(self.finish().err().unwrap_or(DemoError::Writer)) } else { Ok(self) }
    }

    /// Transactions whose commit the server has confirmed.
    pub(super) fn committed(&self) -> u64 {
        self.shared.lock().committed
    }

    /// Transactions that have been sent.
    pub(super) fn begun(&self) -> u64 {
        self.shared.lock().begun
    }

    /// Lets it end its present transaction, and returns its journal.
    pub(super) fn finish(mut self) -> Result<Journal, DemoError> {
        self.quit = None;
        let thread = self.thread.take().ok_or(DemoError::Writer)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.quit = None;
        if let Some(thread) = self.thread.take() {
            // Whoever drops it without asking has a failure of their own to tell.
            let _ = thread.join();
        }
    }
}

fn write(
    settings: &ConnectionSettings,
    accounts: u64,
    shared: &Shared,
    quit: &Receiver<()>,
) -> Result<Journal, DemoError> {
    let mut sql = Sql::connect(settings, Side::Source)?;
    let mut journal = Journal::default();
    while quit.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
        let number = journal.committed() + 1;
        shared.change(|counts| counts.begun = number);
        let [position]: [Lsn; 1] = sql.row("write to the ledger", &transaction(number, accounts))?;
        journal.push(position);
        shared.change(|counts| counts.committed = number);
    }
    Ok(journal)
}

/// One transaction, and then the end of the WAL, which lies behind its commit.
fn transaction(number: u64, accounts: u64) -> String {
    let account = number.wrapping_mul(STRIDE) % accounts.max(1) + 1;
    // Never 0, so that every transaction changes a balance.
    let amount = i64::try_from(number % 1999).unwrap_or(0) - 1000;
    let amount = if amount == 0 { 1000 } else { amount };
    format!(
        "BEGIN; \
         INSERT INTO ledger (id, account, amount) VALUES ({number}, {account}, {amount}); \
         UPDATE accounts SET balance = balance + {amount} WHERE id = {account}; \
         COMMIT; \
         SELECT pg_current_wal_insert_lsn()"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_visit_distant_accounts_and_change_them() {
        for (number, accounts, account, amount) in [
            (1, 1_000_000, STRIDE % 1_000_000 + 1, -999),
            (1000, 7, 1000 * STRIDE % 7 + 1, 1000),
            (1998, 1, 1, 998),
            (5, 0, 1, -995),
        ] {
            let sql = transaction(number, accounts);
            assert!(sql.contains(&format!("VALUES ({number}, {account}, {amount})")), "{sql}");
            assert!(sql.contains(&format!("balance + {amount} WHERE id = {account};")), "{sql}");
        }
    }
}
