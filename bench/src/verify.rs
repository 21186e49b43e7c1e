//! `compare verify`: each program checks its own repository, with one backup of the same cluster in it.

use crate::arguments::RepositoryOptions;
use crate::cache::Cache;
use crate::compare::{Comparison, subject};
use crate::invocation::Invocation;
use crate::one_run;
use crate::pairs::{Contest, Run, Side};
use crate::repositories::Repositories;

/// Sets up, measures and tells.
pub(crate) fn compare(options: &RepositoryOptions) -> anyhow::Result<()> {
    let comparison = Comparison::set_up(&options.compare)?;
    let repositories = Repositories::set_up(options, &comparison)?;
    let (theirs, ours) = repositories.fill(&[])?;
    let rival = crate::pgbackrest::PgBackRest::version()?;
    eprintln!("pgstrata-bench: {} bytes in pgBackRest's repository, {} in ours", theirs.bytes, ours.bytes);
    let ours = repositories.command("verify", &[]).with(options.compare.common.our_option.iter().cloned());
    let subject = subject("verify", &repositories.rival.verify(), &ours, repositories.contents);
    let mut contest = Verifications { repositories: &repositories, ours };
    comparison.run(&subject, &mut contest, &rival)?;
    repositories.end()
}

struct Verifications<'a> {
    repositories: &'a Repositories,
    ours: Invocation,
}

impl Contest for Verifications<'_> {
    fn prepare(&mut self, cache: Cache) -> anyhow::Result<()> {
        cache.prepare(&self.repositories.theirs())?;
        cache.prepare(self.repositories.ours())
    }

    fn run(&mut self, side: Side, _cache: Cache) -> anyhow::Result<Run> {
        let repositories = self.repositories;
        let (client, read) = match side {
            Side::Stock => (repositories.rival.verify(), repositories.theirs()),
            Side::Ours => (self.ours.clone(), repositories.ours().to_owned()),
        };
        one_run::run(&client, None, &read)
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}
