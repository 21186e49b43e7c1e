//! The load that a backup runs beside: pgbench's own transactions, at a rate that leaves the server time.
//!
//! pgbench writes a line for each transaction. With a rate its latency counts from the moment at which it was due, so
//! that a server that stands still shows in every transaction that waits for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use pgstrata::postmaster::Server;
use serde::Serialize;

use crate::invocation::neutral;
use crate::sql;

/// The database of its tables.
const DATABASE: &str = "load";
/// How large they are (`-s`): 150 MB.
const SCALE: &str = "10";

/// Latencies of the transactions that ended within some time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Latency {
    /// How many there were.
    pub(crate) transactions: usize,
    /// The middle one, in milliseconds.
    pub(crate) median: f64,
    /// What 95 of 100 did not take longer than.
    pub(crate) p95: f64,
    /// What 99 of 100 did not take longer than.
    pub(crate) p99: f64,
    /// The longest.
    pub(crate) most: f64,
}

/// pgbench, and where it keeps its log.
#[derive(Debug)]
pub(crate) struct Load {
    program: PathBuf,
    conninfo: String,
    rate: u32,
    seconds: u32,
}

/// pgbench at work.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: tempfile::TempDir,
}

impl Load {
    /// Makes its tables.
    pub(crate) fn create(server: &Server, program: PathBuf, rate: u32, seconds: u32) -> anyhow::Result<Self> {
        let mut client = sql::connect(server)?;
        sql::execute(&mut client, &format!("DROP DATABASE IF EXISTS {DATABASE}"))?;
        sql::execute(&mut client, &format!("CREATE DATABASE {DATABASE}"))?;
        client.close();
        let conninfo = server.database_conninfo(DATABASE);
        let load = Self { program, conninfo, rate, seconds };
        let output = load.command().args(["-i", "-q", "-s", SCALE]).arg(&load.conninfo).output();
        let output = output.with_context(|| format!("cannot run {}", load.program.display()))?;
        ensure!(
            output.status.success(),
            "pgbench -i failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(load)
    }

    /// Removes its tables.
    pub(crate) fn remove(server: &Server) -> anyhow::Result<()> {
        let mut client = sql::connect(server)?;
        sql::execute(&mut client, &format!("DROP DATABASE {DATABASE}"))?;
        client.close();
        Ok(())
    }

    /// Begins, and returns once transactions end.
    pub(crate) fn begin(&self, server: &Server) -> anyhow::Result<Running> {
        let log = tempfile::tempdir().context("cannot create a temporary directory")?;
        let committed = format!("SELECT xact_commit FROM pg_stat_database WHERE datname = '{DATABASE}'");
        let mut client = sql::connect(server)?;
        let before = sql::number(&mut client, &committed)?;
        let mut command = self.command();
        command.args(["-n", "-c", "2", "-T", &self.seconds.to_string(), "-R", &self.rate.to_string(), "-l"]);
        command.arg("--log-prefix").arg(log.path().join("log")).arg(&self.conninfo);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut child = child.with_context(|| format!("cannot run {}", self.program.display()))?;
        // Backends report their commits once a second at most.
        while sql::number(&mut client, &committed)? < before + u64::from(self.rate) {
            if let Some(status) = child.try_wait().context("cannot wait for pgbench")? {
                bail!("pgbench ended before the measurement ({status}); its messages are above");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        client.close();
        Ok(Running { child, log })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        neutral(&mut command);
        command
    }
}

impl Running {
    /// Waits for its end, and says what transactions took that ended between two moments.
    pub(crate) fn finish(mut self, from: SystemTime, to: SystemTime) -> anyhow::Result<Latency> {
        if let Some(status) = self.child.try_wait().context("cannot wait for pgbench")? {
            bail!(
                "pgbench had ended before what was measured beside it ({status})\nHINT: ask for more --seconds."
            );
        }
        let status = self.child.wait().context("cannot wait for pgbench")?;
        ensure!(status.success(), "pgbench failed ({status}); its messages are above");
        let micros = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        let mut latencies = Vec::new();
        for entry in fs::read_dir(self.log.path()).context("cannot list pgbench's logs")? {
            read(&entry?.path(), micros(from)..=micros(to), &mut latencies)?;
        }
        Latency::of(latencies).context("no transaction ended meanwhile\nHINT: ask for a higher --rate.")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only where something failed before its end; then nobody asks how it ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Adds the latencies, in microseconds, of a log's transactions that ended within a range of microseconds since 1970.
fn read(log: &Path, within: std::ops::RangeInclusive<u128>, latencies: &mut Vec<u64>) -> anyhow::Result<()> {
    let text = fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
    for line in text.lines() {
        // client, transaction, time, script, second and microsecond of the end, lag
        let words: Vec<&str> = line.split(' ').collect();
        let number = |place: usize| words.get(place).and_then(|word| word.parse::<u64>().ok());
        let (Some(time), Some(second), Some(micro)) = (number(2), number(4), number(5)) else {
            bail!("expected a transaction in {}, found \"{line}\"", log.display());
        };
        if within.contains(&(u128::from(second) * 1_000_000 + u128::from(micro))) {
            latencies.push(time);
        }
    }
    Ok(())
}

impl Latency {
    /// Of microseconds; none of none.
    fn of(mut micros: Vec<u64>) -> Option<Self> {
        micros.sort_unstable();
        let last = micros.len().checked_sub(1)?;
        let at = |percent: usize| micros[last * percent / 100] as f64 / 1000.0;
        Some(Self { transactions: micros.len(), median: at(50), p95: at(95), p99: at(99), most: at(100) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_outside_of_the_time_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.1");
        fs::write(&log, "0 1 1500 0 10 500000 20\n1 1 900 0 11 0 3\n0 2 70 0 12 1 0\n").unwrap();
        let mut latencies = Vec::new();
        read(&log, 10_500_000..=12_000_000, &mut latencies).unwrap();
        assert_eq!(latencies, [1500, 900]);
        let latency = Latency::of(latencies).unwrap();
        assert_eq!((latency.transactions, latency.median, latency.most), (2, 0.9, 1.5));
        assert_eq!(Latency::of(Vec::new()), None);
        fs::write(&log, "skipped\n").unwrap();
        assert!(read(&log, 0..=1, &mut Vec::new()).is_err());
    }
}
