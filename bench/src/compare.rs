//! What both comparisons share: setting up, running all series, telling the results.

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

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
use crate::summary::{self, Series, Solo};
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
    /// Finds or builds the programs and takes the place of the cluster that backups are compared on.
    pub(crate) fn set_up(options: &CompareOptions) -> anyhow::Result<Self> {
        Self::set_up_for(options, "")
    }

    /// As [`Self::set_up`], with the place of a cluster of its own kind.
    pub(crate) fn set_up_for(options: &CompareOptions, kind: &str) -> anyhow::Result<Self> {
        let common = &options.common;
        let output = Output::open(common.json.as_deref())?;
        let peer = Peer::find(common.pg_bin.as_deref())?;
        let caches = Cache::chosen(options.cache)?;
        let program = Program::obtain(common.pgstrata.as_deref())?;
        let base = place::base(common.dir.as_deref())?;
        let key = cluster::key(&peer.server, options.size_gb.0);
        let place = Place::take(&base, &format!("{kind}{key}"))?;
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

/// Everything that was measured of a program without a rival.
#[derive(Debug, Serialize)]
struct SoloDocument<'a> {
    #[serde(flatten)]
    subject: &'a Subject,
    files: u64,
    bytes: u64,
    environment: Environment,
    series: Vec<Solo>,
}

impl Comparison {
    /// Runs the program under test alone, in all states of the cache; `reason` says why there is no rival.
    pub(crate) fn run_alone(
        self,
        subject: &Subject,
        contest: &mut impl Contest,
        reason: &str,
    ) -> anyhow::Result<()> {
        let environment = Environment::of(self.place.dir(), &self.peer.server, &self.program)?;
        let Contents { files, bytes } = subject.contents;
        let say = |text: &str| self.output.say(text);
        say(&format!("{environment}- data: {:.2} GB in {files} files", giga(bytes)))?;
        say(&format!("- no rival: {reason}\n- pgstrata: `{}`\n", subject.ours))?;
        let mut series = Vec::new();
        for cache in &self.caches {
            let tell = |number, run: &pairs::Run| {
                let (wall, cpu) = (run.cost.wall_seconds, run.cost.cpu_seconds());
                say(&format!("{} {number}/{}: {wall:.2} s, {cpu:.2} CPU s", cache.name(), self.pairs))
            };
            series.push(Solo { cache: *cache, runs: pairs::alone(contest, *cache, self.pairs, tell)? });
        }
        for series in &series {
            say(&format!("\n{}", series.table()))?;
        }
        self.output.finish(&SoloDocument { subject, files, bytes, environment, series })
    }
}

/// What the program under test reported about itself: the last JSON object that it printed, unless that is an event
/// on the way.
pub(crate) fn own_report(stdout: &str) -> Option<Value> {
    let last = stdout.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok())?;
    let is_report = last.is_object() && last.get("event").is_none_or(|event| event == "summary");
    is_report.then_some(last)
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
    fn reports_are_told_from_events() {
        let progress = r#"{"event":"progress","bytes":1}"#;
        for (stdout, expected) in [
            (format!("{progress}\nnoise\n{{\"event\":\"summary\",\"io\":\"direct\"}}\n"), Some("direct")),
            ("{\"io\":\"threads\"}\n".to_owned(), Some("threads")),
            (progress.to_owned(), None),
            ("1\n".to_owned(), None),
            ("backup successfully verified\n".to_owned(), None),
            (String::new(), None),
        ] {
            let found = own_report(&stdout).map(|report| report["io"].as_str().unwrap().to_owned());
            assert_eq!(found.as_deref(), expected, "{stdout}");
        }
    }
}
