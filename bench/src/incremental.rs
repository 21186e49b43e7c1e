//! `compare incremental`: the backup after a change of so many pages, of one server on one disk.
//!
//! The rival is pgBackRest, or pg_basebackup with `--incremental`. Both have a full backup first. Then a share of the heap
//! pages of all large tables is changed before each pair, so that every backup finds exactly one change since the
//! one before it. A page is changed by locking a row of it: that is logged and bumps its LSN, moves nothing and makes no
//! table larger, however often it is done.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use pgstrata::postmaster::Server;
use serde_json::Value;

use crate::arguments::{IncrementalOptions, Pattern, Rival, Tracked};
use crate::cache::{self, Cache};
use crate::compare::{Comparison, subject};
use crate::invocation::Invocation;
use crate::output::giga;
use crate::pairs::{Contest, Run, Side};
use crate::repositories::Repositories;
use crate::{measure, one_run, sql, tree};

/// PostgreSQL's usual page, in bytes.
const PAGE: u64 = 8192;

/// Sets up, measures and tells.
pub(crate) fn compare(options: &IncrementalOptions) -> anyhow::Result<()> {
    let comparison = Comparison::set_up(&options.repository.compare)?;
    let ours = options.repository.compare.common.our_option.clone();
    let settings: &[(&str, &str)] = match options.changes {
        // Off until there is a repository to archive to.
        Tracked::Archive => &[("archive_mode", "on"), ("archive_command", "")],
        Tracked::Server => &[("summarize_wal", "on")],
        Tracked::Auto | Tracked::Pages => &[],
    };
    let repositories = Repositories::set_up_with(&options.repository, &comparison, settings)?;
    let server = &repositories.server;
    let tables = large_tables(server)?;
    let rival = match options.rival {
        Rival::PgBackRest => Rivals::PgBackRest,
        Rival::PgBasebackup => Rivals::PgBasebackup {
            program: comparison.peer.basebackup.clone(),
            manifest: repositories.home.join("manifest"),
        },
    };
    repositories.create()?;
    // Everything that is archived from now on goes to the repository: what lies before its first backup is not asked for.
    if options.changes == Tracked::Archive {
        set(server, "archive_command", &format!("{} %p", repositories.push().shown()))?;
    }
    let name = rival.name();
    let full = repositories.backup(&ours);
    rival.begin(&repositories)?;
    measure::run(&full)?;
    let ours = repositories.backup(&ours).with(["--changes", options.changes.name()]);
    let subject = subject("incremental", &rival.incremental(&repositories), &ours, repositories.contents);
    let mut contest = Incrementals {
        repositories: &repositories,
        rival,
        ours,
        tables,
        percent: options.percent,
        pattern: options.pattern,
        rounds: 0,
        prepared: 0,
        changed: 0,
        told: Vec::new(),
    };
    let outcome = comparison.run(&subject, &mut contest, name);
    for line in &contest.told {
        eprintln!("{line}");
    }
    if options.changes == Tracked::Archive {
        let mut client = sql::connect(&repositories.server)?;
        client.query("ALTER SYSTEM RESET archive_command")?;
        client.close();
    }
    outcome?;
    repositories.end()
}

/// The tables whose pages are changed, and how many pages each has.
fn large_tables(server: &Server) -> anyhow::Result<Vec<(String, u64)>> {
    let mut client = sql::connect(server)?;
    let results = client.query(
        "SELECT oid::regclass::text, pg_relation_size(oid) / 8192 FROM pg_class \
         WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1",
    )?;
    client.close();
    let rows = results.first().map(|result| &result.rows[..]).unwrap_or_default();
    let text = |row: &[Option<_>], column: usize| -> anyhow::Result<String> {
        let value: &[u8] = row[column].as_deref().context("expected no NULL")?;
        Ok(String::from_utf8(value.to_vec())?)
    };
    rows.iter().map(|row| Ok((text(row, 0)?, text(row, 1)?.parse()?))).collect()
}

fn set(server: &Server, setting: &str, value: &str) -> anyhow::Result<()> {
    let mut client = sql::connect(server)?;
    sql::execute(&mut client, &format!("ALTER SYSTEM SET {setting} = {}", sql::quoted(value)))?;
    sql::execute(&mut client, "SELECT pg_reload_conf()")?;
    client.close();
    Ok(())
}

/// Whom pgstrata is compared with.
enum Rivals {
    PgBackRest,
    PgBasebackup {
        program: PathBuf,
        /// The manifest of its last backup, which the next one builds on.
        manifest: PathBuf,
    },
}

impl Rivals {
    fn name(&self) -> &'static str {
        match self {
            Self::PgBackRest => "pgBackRest",
            Self::PgBasebackup { .. } => "pg_basebackup",
        }
    }

    /// Its full backup.
    fn begin(&self, repositories: &Repositories) -> anyhow::Result<()> {
        match self {
            Self::PgBackRest => measure::run(&repositories.rival.backup()).map(drop),
            Self::PgBasebackup { program, .. } => {
                measure::run(&copying(program, repositories))?;
                self.end(repositories)
            }
        }
    }

    /// Its backup of what changed.
    fn incremental(&self, repositories: &Repositories) -> Invocation {
        match self {
            Self::PgBackRest => repositories.rival.incremental(),
            Self::PgBasebackup { program, manifest } => {
                copying(program, repositories).with([OsString::from("-i"), manifest.into()])
            }
        }
    }

    /// Keeps what the next backup needs of the last one.
    fn end(&self, repositories: &Repositories) -> anyhow::Result<()> {
        let (Self::PgBasebackup { manifest, .. }, made) = (self, repositories.target()) else {
            return Ok(());
        };
        let last = made.join("backup_manifest");
        fs::rename(&last, manifest).with_context(|| format!("cannot keep {}", last.display()))?;
        tree::remove(&made)
    }
}

fn copying(program: &PathBuf, repositories: &Repositories) -> Invocation {
    let conninfo = repositories.server.socket_conninfo();
    let words = ["-d", &conninfo, "-X", "stream", "-c", "fast", "-D"].map(OsString::from);
    Invocation::new(program).with(words).with([repositories.target()])
}

struct Incrementals<'a> {
    repositories: &'a Repositories,
    rival: Rivals,
    ours: Invocation,
    tables: Vec<(String, u64)>,
    percent: u32,
    pattern: Pattern,
    /// Changes made so far.
    rounds: u64,
    prepared: u64,
    /// Pages of the last one.
    changed: u64,
    /// What our runs said of their changes.
    told: Vec<String>,
}

impl Contest for Incrementals<'_> {
    fn prepare(&mut self, cache: Cache) -> anyhow::Result<()> {
        // Once a pair.
        if self.prepared.is_multiple_of(2) {
            self.change()?;
        }
        self.prepared += 1;
        cache::settle(&self.repositories.home)?;
        cache.prepare(self.repositories.server.data_dir())
    }

    fn run(&mut self, side: Side, _cache: Cache) -> anyhow::Result<Run> {
        let repositories = self.repositories;
        match side {
            Side::Stock => {
                let client = self.rival.incremental(repositories);
                let run = one_run::run(&client, Some(&repositories.server), &repositories.home)?;
                self.rival.end(repositories)?;
                Ok(run)
            }
            Side::Ours => {
                let run = one_run::run(&self.ours, Some(&repositories.server), repositories.ours())?;
                let report = run.report.as_ref().unwrap_or(&Value::Null);
                self.told.push(told(self.changed * PAGE, report));
                Ok(run)
            }
        }
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        cache::settle(self.repositories.server.data_dir())
    }
}

impl Incrementals<'_> {
    /// Changes its share of the pages, others each time, and has the server write them.
    fn change(&mut self) -> anyhow::Result<()> {
        let mut client = sql::connect(&self.repositories.server)?;
        self.changed = 0;
        for (table, pages) in &self.tables {
            let Some(blocks) = blocks(*pages, self.percent, self.pattern, self.rounds) else { continue };
            let locked = sql::number(
                &mut client,
                &format!(
                    "SELECT count(*) FROM (SELECT 1 FROM {table} WHERE ctid = ANY (ARRAY(\
                     SELECT format('(%s,1)', b)::tid FROM {blocks} AS b)) FOR UPDATE) AS locked"
                ),
            )?;
            self.changed += locked;
        }
        sql::execute(&mut client, "CHECKPOINT")?;
        client.close();
        ensure!(self.percent == 0 || self.changed > 0, "no page was changed");
        self.rounds += 1;
        Ok(())
    }
}

/// A set of block numbers as SQL yields it; none where there is none.
fn blocks(pages: u64, percent: u32, pattern: Pattern, round: u64) -> Option<String> {
    let percent = u64::from(percent);
    let count = pages * percent / 100;
    if count == 0 {
        return None;
    }
    Some(match pattern {
        // One of each hundred, ten of each hundred, and so on, spread evenly.
        Pattern::Scattered => {
            let step = 100 / percent;
            format!("generate_series({}, {}, {step})", round % step, pages - 1)
        }
        Pattern::Clustered => {
            let first = (round * count) % (pages - count + 1);
            format!("generate_series({first}, {})", first + count - 1)
        }
    })
}

/// What a run of ours said of what it found changed.
fn told(changed: u64, report: &Value) -> String {
    let stored = &report["stored"];
    let changes = &stored["changes"];
    let bytes = |value: &Value| {
        value.as_u64().map_or_else(|| "?".to_owned(), |bytes| format!("{:.4} GB", giga(bytes)))
    };
    format!(
        "changed {:.4} GB of pages: by {}, read {}, stored before compression {}, packs grew by {}",
        giga(changed),
        changes["source"].as_str().unwrap_or("?"),
        bytes(&changes["read_bytes"]),
        bytes(&changes["changed_bytes"]),
        bytes(&stored["bytes"]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_pages_are_chosen_as_were_asked_for() {
        for (percent, pattern, round, expected) in [
            (0, Pattern::Scattered, 0, None),
            (1, Pattern::Scattered, 3, Some("generate_series(3, 999, 100)")),
            (1, Pattern::Scattered, 103, Some("generate_series(3, 999, 100)")),
            (50, Pattern::Scattered, 1, Some("generate_series(1, 999, 2)")),
            (10, Pattern::Clustered, 2, Some("generate_series(200, 299)")),
            (100, Pattern::Clustered, 7, Some("generate_series(0, 999)")),
        ] {
            assert_eq!(blocks(1000, percent, pattern, round).as_deref(), expected);
        }
        assert_eq!(blocks(50, 1, Pattern::Clustered, 0), None);
    }
}
