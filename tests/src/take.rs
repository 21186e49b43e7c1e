//! The short way to take a backup of a source, and what the source and the program said of it.

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use pgstrata::postmaster::Server;
use serde_json::Value;

use crate::source::FRUGAL;
use crate::{Finished, Invocation, Source, Sql, pgstrata};

/// How long a condition may take to come true, and how often it is looked at.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a walsender logs of each command with `log_replication_commands`.
const RECEIVED: &str = "received replication command: ";

/// `pgstrata basebackup` from a server, over TCP and with a fast checkpoint. The target is still to be named.
#[must_use]
pub fn basebackup(server: &Server) -> Invocation {
    pgstrata(["basebackup", "-c", "fast", "-d", &server.conninfo()])
}

/// A session of a server's superuser in the database `postgres`.
///
/// # Panics
/// Where the server refuses.
#[track_caller]
#[must_use]
pub fn sql(server: &Server) -> Sql {
    Sql::connect(&server.socket_conninfo()).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Waits for a condition.
///
/// # Panics
/// Where it does not come true for long.
#[track_caller]
pub fn wait_until(what: impl Display, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(LOOK_EVERY);
    }
}

impl Source {
    /// As [`boot`](Self::boot), with further settings.
    ///
    /// # Panics
    /// As [`boot`](Self::boot).
    #[track_caller]
    #[must_use]
    pub fn boot_with(&self, dir: &Path, settings: &[(&str, &str)]) -> Server {
        let started = self.adopt(dir).and_then(|cluster| cluster.start(&[&FRUGAL, settings].concat()));
        started.unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
    }

    /// The replication commands that the server has received so far, as it logged them. It must have been started
    /// with `log_replication_commands`.
    ///
    /// # Panics
    /// Where the log cannot be read.
    #[must_use]
    pub fn replication_commands(&self) -> Vec<String> {
        let log = fs::read(self.log_path()).unwrap_or_else(|error| panic!("the server's log: {error}"));
        let log = String::from_utf8_lossy(&log);
        log.lines().filter_map(|line| Some(line.split_once(RECEIVED)?.1.to_owned())).collect()
    }
}

impl Finished {
    /// What `--json` printed, an object a line.
    ///
    /// # Panics
    /// Where a line is no JSON object with an `event`.
    #[track_caller]
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        let parse = |line: &str| {
            let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
            assert!(event["event"].is_string(), "{line:?}: no event");
            event
        };
        self.stdout_text().lines().map(parse).collect()
    }

    /// The summary that `--json` printed last.
    ///
    /// # Panics
    /// Where there is none.
    #[track_caller]
    #[must_use]
    pub fn json_summary(&self) -> Value {
        let last = self.events().pop();
        last.filter(|event| event["event"] == "summary").unwrap_or_else(|| panic!("no summary: {self}"))
    }
}
