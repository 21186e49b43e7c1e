//! `compare basebackup`: pg_basebackup against pgstrata, the same options, the same server, the same disk.
//!
//! Plain format, WAL streamed beside it, fast checkpoint, durable. Each copy is counted and removed, and everything is
//! synced, before the next run begins, so that no run pays for another's writes. One copy of ours a state of the
//! cache is handed to pg_verifybackup, where that is at hand, outside of the measured time: a fast wrong copy is
//! worth nothing.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use pgstrata::postmaster::{Server, Shutdown};

use crate::archive;
use crate::arguments::{BasebackupOptions, Method};
use crate::cache::{self, Cache};
use crate::cluster;
use crate::compare::{Comparison, subject};
use crate::invocation::Invocation;
use crate::measure;
use crate::one_run;
use crate::pairs::{Contest, Run, Side};
use crate::{reach, tree};

/// Sets up, measures and tells.
pub(crate) fn compare(options: &BasebackupOptions) -> anyhow::Result<()> {
    take(options, "basebackup", &["-F", "plain"], Check::Plain)
}

/// Compares backups that both programs take with these further arguments.
pub(crate) fn take(
    options: &BasebackupOptions,
    benchmark: &'static str,
    format: &[&str],
    check: Check,
) -> anyhow::Result<()> {
    let common = &options.compare.common;
    let comparison = Comparison::set_up(&options.compare)?;
    let size = options.compare.size_gb.0;
    let cluster = cluster::compared(&comparison.peer.server, &comparison.place, size, common.rebuild)?;
    let server = cluster::start_for(&cluster, &comparison.place, options.over)?;
    let copy = comparison.place.copy();
    let conninfo = reach::conninfo(options.over, &server);
    let arguments = || {
        let words = ["-d", &conninfo, "-X", "stream", "-c", "fast"].into_iter().chain(format.iter().copied());
        words.map(OsString::from).chain(["-D".into(), copy.clone().into_os_string()])
    };
    let stock = Invocation::new(&comparison.peer.basebackup).with(arguments());
    let ours = Invocation::new(&comparison.program.path)
        .with(["basebackup"])
        .with(arguments())
        .with(["--json"])
        .with(common.our_option.iter().cloned());
    // The WAL in the data directory is not sent with it.
    let contents = tree::contents(server.data_dir())? - tree::contents(&server.data_dir().join("pg_wal"))?;
    let subject = subject(benchmark, &stock, &ours, contents);
    let verify = comparison.peer.verifybackup.clone();
    let mut contest = Basebackups { server: &server, copy, stock, ours, verify, check, verified: None };
    comparison.run(&subject, &mut contest, "pg_basebackup")?;
    server.stop(Shutdown::Fast)?;
    Ok(())
}

/// How a copy is handed to pg_verifybackup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// As it is.
    Plain,
    /// Unpacked, since pg_verifybackup reads no archives before version 18.
    Unpacked(Method),
}

struct Basebackups<'a> {
    server: &'a Server,
    copy: PathBuf,
    stock: Invocation,
    ours: Invocation,
    /// `pg_verifybackup`.
    verify: Option<PathBuf>,
    check: Check,
    /// The state of the cache in which a copy of ours was verified last.
    verified: Option<Cache>,
}

impl Contest for Basebackups<'_> {
    fn prepare(&mut self, cache: Cache) -> anyhow::Result<()> {
        cache.prepare(self.server.data_dir())
    }

    fn run(&mut self, side: Side, cache: Cache) -> anyhow::Result<Run> {
        let client = match side {
            Side::Stock => &self.stock,
            Side::Ours => &self.ours,
        };
        let run = one_run::run(client, Some(self.server), &self.copy)?;
        if side == Side::Ours && self.verified != Some(cache) {
            self.verify()?;
            self.verified = Some(cache);
        }
        Ok(run)
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        tree::remove(&self.copy)?;
        cache::settle(self.copy.parent().context("a copy lies in a place")?)
    }
}

impl Basebackups<'_> {
    fn verify(&self) -> anyhow::Result<()> {
        let Some(verify) = &self.verify else { return Ok(()) };
        let mut copy = fs::canonicalize(&self.copy)?;
        if let Check::Unpacked(method) = self.check {
            copy = archive::unpack(&copy, method)?;
        }
        let check = Invocation::new(verify).with(["-n".into(), copy.into_os_string()]);
        measure::run(&check).context("pgstrata's copy does not pass pg_verifybackup").map(drop)
    }
}
