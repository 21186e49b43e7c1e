//! `compare backup`: a full backup into an empty repository, pgBackRest's and ours, of one server on one disk.
//!
//! Both repositories are made anew before each run, outside of the measured time.

use std::ffi::OsString;

use crate::arguments::RepositoryOptions;
use crate::cache::{self, Cache};
use crate::compare::{Comparison, subject};
use crate::one_run;
use crate::pairs::{Contest, Run, Side};
use crate::repositories::Repositories;

/// Sets up, measures and tells.
pub(crate) fn compare(options: &RepositoryOptions) -> anyhow::Result<()> {
    let comparison = Comparison::set_up(&options.compare)?;
    let repositories = Repositories::set_up(options, &comparison)?;
    let ours = options.compare.common.our_option.clone();
    let rival = crate::pgbackrest::PgBackRest::version()?;
    let subject =
        subject("backup", &repositories.rival.backup(), &repositories.backup(&ours), repositories.contents);
    let mut contest = Backups { repositories: &repositories, ours };
    comparison.run(&subject, &mut contest, &rival)?;
    repositories.end()
}

struct Backups<'a> {
    repositories: &'a Repositories,
    ours: Vec<OsString>,
}

impl Contest for Backups<'_> {
    fn prepare(&mut self, cache: Cache) -> anyhow::Result<()> {
        self.repositories.create()?;
        cache::settle(&self.repositories.home)?;
        cache.prepare(self.repositories.server.data_dir())
    }

    fn run(&mut self, side: Side, _cache: Cache) -> anyhow::Result<Run> {
        let repositories = self.repositories;
        let (client, made) = match side {
            Side::Stock => (repositories.rival.backup(), repositories.theirs()),
            Side::Ours => (repositories.backup(&self.ours), repositories.ours().to_owned()),
        };
        one_run::run(&client, Some(&repositories.server), &made)
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        crate::tree::remove(&self.repositories.home)?;
        cache::settle(self.repositories.server.data_dir())
    }
}
