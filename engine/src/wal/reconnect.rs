//! Which losses of a WAL connection pass, and how often another one is tried.
//!
//! Invariant: whoever gave up tells the loss that began it, and why the last attempt failed.

use std::time::Duration;

use tokio::time::Instant;

use crate::connect::{ConnectError, SessionError};
use crate::failure::Failure;

/// Classes of SQLSTATE with which another attempt is answered alike: system errors, among them `undefined_file` for WAL
/// that was removed; a user who may not; a slot that is not there.
const LASTING: [&str; 3] = ["58", "28", "42"];

/// Attempts to connect again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reconnect {
    /// For how long; zero for as long as it takes.
    pub(super) limit: Duration,
    /// Between two of them: the server may need a moment to notice that the last connection, and its hold on the slot,
    /// is gone.
    pub(super) pause: Duration,
}

impl Reconnect {
    /// Tries until there is a connection, another attempt makes no sense, or the time is over.
    pub(super) async fn until_connected<T>(
        self,
        lost: Failure,
        attempt: impl AsyncFn() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        loop {
            let left = self.limit.saturating_sub(begun.elapsed()).max(self.pause);
            let left = if self.limit.is_zero() { Duration::ZERO } else { left };
            let failure = match within(left, attempt()).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(failure)) | Err(failure) => failure,
            };
            let over = !self.limit.is_zero() && begun.elapsed() + self.pause >= self.limit;
            if over || !is_passing(&failure) {
                return Err(Failure::wal(&format!("{}; then {failure}", in_short(&lost))));
            }
            tokio::time::sleep(self.pause).await;
        }
    }
}

/// Does `work`, but for no longer than `limit`; zero is no limit.
///
/// # Errors
/// [`Failure::Silent`] where that passes.
pub async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Failure> {
    if limit.is_zero() {
        return Ok(work.await);
    }
    tokio::time::timeout(limit, work).await.map_err(|_| Failure::Silent { sent: "no answer", limit })
}

fn is_lasting(sqlstate: &str) -> bool {
    LASTING.iter().any(|class| sqlstate.starts_with(class))
}

/// What happened, without the advice that follows it.
pub(super) fn in_short(failure: &Failure) -> String {
    failure.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Whether another connection may do better.
pub(super) fn is_passing(failure: &Failure) -> bool {
    match failure {
        Failure::Session { error, .. } => match error {
            SessionError::Server { error, .. } => !is_lasting(error.sqlstate()),
            SessionError::Closed { .. } | SessionError::Stalled { .. } | SessionError::Io { .. } => true,
            _ => false,
        },
        Failure::Connect(error @ ConnectError::Failed { .. }) => {
            error.server_error().is_none_or(|error| !is_lasting(error.sqlstate()))
        }
        Failure::Silent { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;

    use super::*;

    fn lost() -> Failure {
        Failure::session("the WAL stream broke off", SessionError::Closed { position: 7 })
    }

    fn tries(limit: u64) -> Reconnect {
        Reconnect { limit: Duration::from_millis(limit), pause: Duration::from_millis(1) }
    }

    fn now<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(work)
    }

    #[test]
    fn attempts_go_on_while_they_may_help() {
        let attempts = Cell::new(0);
        let attempt = async || {
            attempts.set(attempts.get() + 1);
            if attempts.get() < 4 { Err(lost()) } else { Ok("connected") }
        };
        let connected = now(tries(0).until_connected(lost(), attempt));
        assert_eq!(connected.expect("the fourth one"), "connected");
        assert_eq!(attempts.get(), 4);
    }

    #[test]
    fn the_end_tells_of_both_failures() {
        let attempt = async || -> Result<(), _> {
            Err(Failure::session("no way", SessionError::Closed { position: 0 }))
        };
        let told =
            now(tries(20).until_connected(lost(), attempt)).expect_err("it never succeeds").to_string();
        assert!(told.contains("after 7 bytes") && told.contains("then no way"), "{told}");
        let attempt = async || -> Result<(), _> { Err(Failure::Target("another cluster".into())) };
        let told = now(tries(0).until_connected(lost(), attempt)).expect_err("it makes no sense").to_string();
        assert!(told.contains("then another cluster"), "{told}");
    }

    #[test]
    fn what_a_disk_or_a_stream_says_does_not_pass() {
        let io = || io::Error::from_raw_os_error(libc::EIO);
        assert!(!is_passing(&Failure::disk("write to", "segment", io())));
        assert!(!is_passing(&Failure::stream("WAL stream", &"a gap")));
        assert!(!is_passing(&Failure::Wal("damaged".into())));
        assert!(is_passing(&lost()));
        assert!(is_passing(&Failure::Silent { sent: "nothing", limit: Duration::ZERO }));
    }
}
