//! `impact`: what a backup does to the database that it is taken of.
//!
//! pgbench runs at a set rate; beside it nothing, or one of the backups. Half of the relation files are in the page
//! cache when a run begins: how much of that half is still there afterwards, and how much of the other half came in,
//! says whose cache the backup used. The programs take turns, round by round.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use pgstrata::postmaster::Shutdown;
use serde::Serialize;

use crate::arguments::ImpactOptions;
use crate::cache::{self, Cache};
use crate::compare::Comparison;
use crate::environment::Environment;
use crate::invocation::Invocation;
use crate::output::{Output, giga};
use crate::page_cache::Halves;
use crate::pgbench::{Latency, Load};
use crate::repositories::Repositories;
use crate::statistics::Spread;
use crate::summary::shown;
use crate::table::Table;
use crate::{measure, tree};

/// One run of one program beside the load.
#[derive(Debug, Clone, Serialize)]
struct Beside {
    program: &'static str,
    wall_seconds: f64,
    latency: Latency,
    /// Shares of bytes.
    hot_left: f64,
    cold_brought_in: f64,
}

#[derive(Debug, Serialize)]
struct Document {
    benchmark: &'static str,
    bytes: u64,
    rate: u32,
    commands: Vec<(&'static str, String)>,
    environment: Environment,
    runs: Vec<Beside>,
}

/// Sets up, measures and tells.
pub(crate) fn measure(options: &ImpactOptions) -> anyhow::Result<()> {
    let compare = &options.repository.compare;
    let comparison = Comparison::set_up(compare)?;
    let output = Output::open(compare.common.json.as_deref())?;
    Cache::Cold.prepare(comparison.place.dir())?;
    let repositories = Repositories::set_up(&options.repository, &comparison)?;
    let server = &repositories.server;
    let halves = Halves::of(&server.data_dir().join("base"))?;
    let program = comparison.peer.server.companion("pgbench");
    let program = program.context("this installation of PostgreSQL has no pgbench")?;
    let load = Load::create(server, program, options.rate, options.seconds)?;
    let conninfo = server.socket_conninfo();
    let stock = Invocation::new(&comparison.peer.basebackup)
        .with(["-d", &conninfo, "-X", "stream", "-c", "fast", "-D"])
        .with([repositories.target()]);
    let ours = repositories.backup(&compare.common.our_option);
    let rivals: [(&'static str, Option<Invocation>); 4] = [
        ("nothing", None),
        ("pg_basebackup", Some(stock)),
        ("pgBackRest", Some(repositories.rival.backup())),
        ("pgstrata", Some(ours)),
    ];
    let environment = Environment::of(comparison.place.dir(), &comparison.peer.server, &comparison.program)?;
    output.say(&format!("{environment}- data: {:.2} GB", giga(repositories.contents.bytes)))?;
    let mut runs = Vec::new();
    for round in 1..=compare.pairs {
        for (name, command) in &rivals {
            repositories.create()?;
            cache::settle(&repositories.home)?;
            Cache::Cold.prepare(server.data_dir())?;
            halves.warm()?;
            let running = load.begin(server)?;
            let from = SystemTime::now();
            match command {
                Some(command) => drop(measure::run(command)?),
                // Not a wait for anything: the time in which nothing but the load runs is what is measured.
                None => std::thread::sleep(Duration::from_secs(u64::from(options.seconds) / 2)),
            }
            let to = SystemTime::now();
            let held = halves.held()?;
            let latency = running.finish(from, to)?;
            let run = Beside {
                program: name,
                wall_seconds: to.duration_since(from).unwrap_or_default().as_secs_f64(),
                latency,
                hot_left: held.hot,
                cold_brought_in: held.cold,
            };
            output.say(&format!(
                "{round}/{}: {name}: {:.2} s, p99 {:.2} ms, {:.0} % of the hot half left, {:.0} % of the cold one came in",
                compare.pairs,
                run.wall_seconds,
                run.latency.p99,
                run.hot_left * 100.0,
                run.cold_brought_in * 100.0
            ))?;
            runs.push(run);
            tree::remove(&repositories.home)?;
            cache::settle(server.data_dir())?;
        }
    }
    Load::remove(server)?;
    output.say(&format!("\n{}", table(&rivals.each_ref().map(|(name, _)| *name), &runs)))?;
    let commands = rivals.iter().filter_map(|(name, command)| Some((*name, command.as_ref()?.shown())));
    let document = Document {
        benchmark: "impact",
        bytes: repositories.contents.bytes,
        rate: options.rate,
        commands: commands.collect(),
        environment,
        runs,
    };
    repositories.server.stop(Shutdown::Fast)?;
    output.finish(&document)
}

/// Each program's runs, minimum, median and maximum in each cell.
fn table(programs: &[&'static str], runs: &[Beside]) -> String {
    type Measure = (&'static str, usize, fn(&Beside) -> f64);
    let measures: [Measure; 7] = [
        ("wall, s", 2, |run| run.wall_seconds),
        ("latency, median, ms", 2, |run| run.latency.median),
        ("latency, 95 %, ms", 2, |run| run.latency.p95),
        ("latency, 99 %, ms", 2, |run| run.latency.p99),
        ("latency, longest, ms", 1, |run| run.latency.most),
        ("hot half left in the page cache, %", 0, |run| run.hot_left * 100.0),
        ("cold half brought in, %", 0, |run| run.cold_brought_in * 100.0),
    ];
    let mut table = Table::new(["beside (min / median / max)"].into_iter().chain(programs.iter().copied()));
    for (name, digits, measure) in measures {
        let cell = |program: &&'static str| {
            let of = runs.iter().filter(|run| run.program == *program).map(measure);
            Spread::of(of).map_or_else(|| "–".to_owned(), |spread| shown(&spread, digits))
        };
        let cells = [name.to_owned()].into_iter().chain(programs.iter().map(cell)).collect();
        table.row(cells);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_has_a_column_of_its_own_runs() {
        let latency = Latency { transactions: 10, median: 1.0, p95: 2.0, p99: 3.0, most: 4.0 };
        let run = |program, wall_seconds| Beside {
            program,
            wall_seconds,
            latency,
            hot_left: 0.5,
            cold_brought_in: 0.25,
        };
        let rendered = table(
            &["nothing", "pgstrata", "x"],
            &[run("nothing", 2.0), run("pgstrata", 3.0), run("nothing", 4.0)],
        );
        let row = |name: &str| -> Vec<String> {
            let line = rendered.lines().find(|line| line.contains(name)).unwrap();
            line.split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        assert_eq!(row("wall, s")[2..5], ["2.00 / 3.00 / 4.00", "3.00 / 3.00 / 3.00", "–"]);
        assert_eq!(row("brought in")[3], "25 / 25 / 25");
    }
}
