//! `compare restore`: one backup in each repository, restored into an empty folder, durable.
//!
//! What ours restores has to pass pg_verifybackup once for each state of the cache, where that is at hand, outside of the
//! measured time.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context;

use crate::arguments::RepositoryOptions;
use crate::cache::{self, Cache};
use crate::compare::{Comparison, subject};
use crate::invocation::Invocation;
use crate::measure;
use crate::one_run;
use crate::pairs::{Contest, Run, Side};
use crate::repositories::Repositories;
use crate::tree;

/// Sets up, measures and tells.
pub(crate) fn compare(options: &RepositoryOptions) -> anyhow::Result<()> {
    let comparison = Comparison::set_up(&options.compare)?;
    let repositories = Repositories::set_up(options, &comparison)?;
    let (theirs, ours) = repositories.fill(&[])?;
    let rival = crate::pgbackrest::PgBackRest::version()?;
    eprintln!("pgstrata-bench: {} bytes in pgBackRest's repository, {} in ours", theirs.bytes, ours.bytes);
    let target = repositories.target();
    let ours = restoring(&repositories, &options.compare.common.our_option);
    let subject = subject("restore", &repositories.rival.restore(&target), &ours, repositories.contents);
    let verify = comparison.peer.verifybackup.clone();
    let mut contest = Restores { repositories: &repositories, target, ours, verify, verified: None };
    comparison.run(&subject, &mut contest, &rival)?;
    repositories.end()
}

fn restoring(repositories: &Repositories, options: &[OsString]) -> Invocation {
    let arguments = ["--cluster".into(), "bench".into(), "--into".into(), repositories.target().into()];
    repositories.command("restore", &arguments).with(options.iter().cloned())
}

struct Restores<'a> {
    repositories: &'a Repositories,
    target: PathBuf,
    ours: Invocation,
    /// `pg_verifybackup`.
    verify: Option<PathBuf>,
    /// The state of the cache in which a restored cluster of ours was verified last.
    verified: Option<Cache>,
}

impl Contest for Restores<'_> {
    fn prepare(&mut self, cache: Cache) -> anyhow::Result<()> {
        std::fs::create_dir(&self.target).context("cannot create the target")?;
        cache::settle(&self.target)?;
        cache.prepare(&self.repositories.theirs())?;
        cache.prepare(self.repositories.ours())
    }

    fn run(&mut self, side: Side, cache: Cache) -> anyhow::Result<Run> {
        let client = match side {
            Side::Stock => self.repositories.rival.restore(&self.target),
            Side::Ours => self.ours.clone(),
        };
        let run = one_run::run(&client, None, &self.target)?;
        if side == Side::Ours && self.verified != Some(cache) {
            if let Some(verify) = &self.verify {
                let check = Invocation::new(verify).with(["-n".into(), self.target.clone().into_os_string()]);
                measure::run(&check).context("what pgstrata restored does not pass pg_verifybackup")?;
            }
            self.verified = Some(cache);
        }
        Ok(run)
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        tree::remove(&self.target)?;
        cache::settle(&self.repositories.home)
    }
}
