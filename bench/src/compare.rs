//! What both comparisons share: setting up, running all series, telling the results.

use anyhow::Context;
use serde::Serialize;

use crate::arguments::CompareOptions;
use crate::cache::Cache;
use crate::cluster;
use crate::environment::Environment;
use crate::invocation::Invocation;
use crate::measure;
use crate::output::{Output, giga, mebi};
use crate::pairs::{self, Contest};
use crate::peer::Peer;
use crate::place::{self, Place};
use crate::program::Program;
use crate::summary::{self, Series};
use crate::tree::Contents;

/// A comparison that is set up but for its cluster.
#[derive(Debug)]
pub(crate) struct Comparison {
    /// The rival and the server.
    pub(crate) peer: Peer,
    /// The program under test.
    pub(crate) program: Program,
    /// Where everything lies.
    pub(crate) place: Place,
    output: Output,
    caches: Vec<Cache>,
    pairs: u32,
}

/// What is compared, for the record.
#[derive(Debug, Serialize)]
pub(crate) struct Subject {
    /// The name of the comparison.
    pub(crate) benchmark: &'static str,
    /// The rival's command.
    pub(crate) stock: String,
    /// The command of the program under test.
    pub(crate) ours: String,
    /// The files that the rivals are given.
    #[serde(skip)]
    pub(crate) contents: Contents,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    subject: &'a Subject,
    files: u64,
    bytes: u64,
    /// What a process that does nothing shows as peak memory: no client can show less.
    memory_floor_bytes: u64,
    environment: Environment,
    series: Vec<Series>,
}

impl Comparison {
    /// Finds or builds the programs and takes the place.
    pub(crate) fn set_up(options: &CompareOptions) -> anyhow::Result<Self> {
        let common = &options.common;
        let output = Output::open(common.json.as_deref())?;
        let peer = Peer::find(common.pg_bin.as_deref())?;
        let caches = Cache::chosen(options.cache)?;
        let program = Program::obtain(common.pgstrata.as_deref())?;
        let base = place::base(common.dir.as_deref())?;
        let place = Place::take(&base, &cluster::key(&peer.server, options.size_gb.0))?;
        Ok(Self { peer, program, place, output, caches, pairs: options.pairs })
    }

    /// Runs all pairs in all states of the cache, and tells them.
    pub(crate) fn run(
        self,
        subject: &Subject,
        contest: &mut impl Contest,
        stock: &str,
    ) -> anyhow::Result<()> {
        let environment = Environment::of(self.place.dir(), &self.peer.server, &self.program)?;
        let Contents { files, bytes } = subject.contents;
        let floor = measure::floor().context("cannot measure a process that does nothing")?;
        let say = |text: &str| self.output.say(text);
        say(&format!("{environment}- data: {:.2} GB in {files} files", giga(bytes)))?;
        say(&format!("- {stock}: `{}`\n- pgstrata: `{}`\n", subject.stock, subject.ours))?;
        let mut series = Vec::new();
        for cache in &self.caches {
            let tell =
                |number, pair: &pairs::Pair| say(&summary::line(*cache, number, self.pairs, stock, pair));
            series.push(Series::new(*cache, pairs::compete(contest, *cache, self.pairs, tell)?));
        }
        for series in &series {
            say(&format!("\n{}", series.table(stock)))?;
            for back_end in series.back_ends() {
                say(&format!("I/O back end: {back_end}"))?;
            }
            for (limit, runs) in series.limits() {
                say(&format!("limited by: {limit} ({runs} of {} runs)", series.pairs.len()))?;
            }
        }
        say(&format!("\nNo process can show less peak memory here than {:.1} MiB.", mebi(floor)))?;
        let document = Document { subject, files, bytes, memory_floor_bytes: floor, environment, series };
        self.output.finish(&document)
    }
}

/// The last event of this name among the lines of JSON that the program under test printed.
pub(crate) fn last_event(stdout: &str, name: &str) -> Option<serde_json::Value> {
    stdout.lines().rev().find_map(|line| {
        serde_json::from_str::<serde_json::Value>(line).ok().filter(|event| event["event"] == name)
    })
}

/// The subject of a comparison of two commands.
pub(crate) fn subject(
    benchmark: &'static str,
    stock: &Invocation,
    ours: &Invocation,
    contents: Contents,
) -> Subject {
    Subject { benchmark, stock: stock.shown(), ours: ours.shown(), contents }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_found_among_other_lines() {
        let stdout =
            "{\"event\":\"progress\",\"bytes\":1}\nnoise\n{\"event\":\"summary\",\"io\":\"direct\"}\n";
        assert_eq!(last_event(stdout, "summary").unwrap()["io"], "direct");
        assert_eq!(last_event(stdout, "error"), None);
        assert_eq!(last_event("", "summary"), None);
    }
}
