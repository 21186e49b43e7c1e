//! `compare combinebackup`: one chain of a full backup and incremental ones, put together into an empty folder, durable.
//!
//! pg_basebackup takes the chain, so that it is the other program's own work that both are given. Between backups one row on
//! every so many pages is updated, over all tables that have pages enough. The cluster is one of its own kind, for it is
//! changed: it is made anew each time. What ours makes has to pass pg_verifybackup once for each state of the cache, outside
//! of the measured time.

use std::path::PathBuf;

use anyhow::Context;
use pgstrata::postmaster::{Server, Shutdown};

use crate::arguments::CombinebackupOptions;
use crate::cache::{self, Cache};
use crate::cluster;
use crate::compare::{Comparison, subject};
use crate::invocation::Invocation;
use crate::measure;
use crate::one_run;
use crate::pairs::{Contest, Run, Side};
use crate::sql;
use crate::tree;

/// Rows of `noise` on a page.
const ROWS_A_PAGE: u32 = 4;

/// Sets up, measures and tells.
pub(crate) fn compare(options: &CombinebackupOptions) -> anyhow::Result<()> {
    let comparison = Comparison::set_up_for(&options.compare, "chain-")?;
    let stock = comparison.peer.server.companion("pg_combinebackup").with_context(|| {
        format!(
            "{} has no pg_combinebackup, so there is nothing to compare with\n\
             HINT: name the bin directory of a complete PostgreSQL 17 or newer with --pg-bin.",
            comparison.peer.server
        )
    })?;
    let size = options.compare.size_gb.0;
    let chain = comparison.place.dir().join("chain");
    tree::remove(&chain)?;
    std::fs::create_dir(&chain).context("cannot create a folder for the chain")?;
    // The last run has changed what is there.
    let cluster = cluster::compared(&comparison.peer.server, &comparison.place, size, true)?;
    // The chain, and what is made of it.
    comparison.place.require_space(size * 3)?;
    let server = cluster::start_with(&cluster, &comparison.place, &[("summarize_wal", "on")])?;
    let mut backups: Vec<PathBuf> = Vec::new();
    for number in 0..=options.incrementals {
        let to = chain.join(number.to_string());
        let mut take = Invocation::new(&comparison.peer.basebackup).with([
            "-d".into(),
            server.socket_conninfo(),
            "-c".into(),
            "fast".into(),
            "-D".into(),
        ]);
        take = take.with([to.clone()]);
        if let Some(before) = backups.last() {
            change(&server, options, number)?;
            take = take.with(["-i".into(), before.join("backup_manifest")]);
        }
        measure::run(&take)?;
        backups.push(to);
    }
    server.stop(Shutdown::Fast)?;
    cache::settle(comparison.place.dir())?;

    let target = comparison.place.copy();
    let arguments = |invocation: Invocation| {
        let output = ["-o".into(), target.clone()];
        invocation.with(options.both.iter().cloned()).with(output).with(backups.iter().cloned())
    };
    let stock = arguments(Invocation::new(stock));
    let ours = Invocation::new(&comparison.program.path)
        .with(["combinebackup", "--json"])
        .with(options.compare.common.our_option.iter().cloned());
    let ours = arguments(ours);
    let subject = subject("combinebackup", &stock, &ours, tree::contents(&chain)?);
    let verify = comparison.peer.verifybackup.clone();
    let mut contest = Combinations { chain: chain.clone(), target, stock, ours, verify, verified: None };
    comparison.run(&subject, &mut contest, "pg_combinebackup")?;
    tree::remove(&chain)
}

/// Updates one row on every so many pages of the largest table, others each time.
fn change(server: &Server, options: &CombinebackupOptions, number: u32) -> anyhow::Result<()> {
    let every = 100 / options.changed * ROWS_A_PAGE;
    let place = number * 37 % every;
    let mut client = sql::connect(server)?;
    // In its place, so that only pages of the table itself change.
    let update = format!("UPDATE noise SET id = id WHERE id % {every} = {place}");
    sql::execute(&mut client, &update)?;
    client.close();
    Ok(())
}

struct Combinations {
    chain: PathBuf,
    target: PathBuf,
    stock: Invocation,
    ours: Invocation,
    /// `pg_verifybackup`.
    verify: Option<PathBuf>,
    /// The state of the cache in which an output of ours was verified last.
    verified: Option<Cache>,
}

impl Contest for Combinations {
    fn prepare(&mut self, cache: Cache) -> anyhow::Result<()> {
        std::fs::create_dir(&self.target).context("cannot create the target")?;
        cache::settle(&self.target)?;
        cache.prepare(&self.chain)
    }

    fn run(&mut self, side: Side, cache: Cache) -> anyhow::Result<Run> {
        let client = match side {
            Side::Stock => &self.stock,
            Side::Ours => &self.ours,
        };
        let run = one_run::run(client, None, &self.target)?;
        if side == Side::Ours && self.verified != Some(cache) {
            if let Some(verify) = &self.verify {
                let check = Invocation::new(verify).with([self.target.clone()]);
                measure::run(&check).context("what pgstrata put together does not pass pg_verifybackup")?;
            }
            self.verified = Some(cache);
        }
        Ok(run)
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        tree::remove(&self.target)?;
        cache::settle(&self.chain)
    }
}
