//! From pairs of runs to the numbers that are told: each quantity's spread on both sides, and its ratios.

use serde::Serialize;

use crate::cache::Cache;
use crate::output::mebi;
use crate::pairs::{Pair, Run};
use crate::statistics::{Comparison, Spread};
use crate::table::Table;

/// All pairs in one state of the cache, and what they say.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Series {
    /// The state of the cache.
    pub(crate) cache: Cache,
    /// The pairs, in order.
    pub(crate) pairs: Vec<Pair>,
    /// The quantities.
    pub(crate) summary: Vec<Quantity>,
}

/// One quantity over all pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Quantity {
    /// Its name, with its unit.
    pub(crate) name: &'static str,
    /// Its numbers.
    #[serde(flatten)]
    pub(crate) comparison: Comparison,
}

type Measure = (&'static str, fn(&Run) -> Option<f64>);

const MEASURES: [Measure; 5] = [
    ("wall, s", |run| Some(run.cost.wall_seconds)),
    ("client CPU, s", |run| Some(run.cost.cpu_seconds())),
    ("peak memory, MiB", |run| Some(mebi(run.cost.peak_memory_bytes))),
    ("server CPU, s", |run| run.server_cpu_seconds),
    ("CPU of the whole machine, s", |run| Some(run.machine_cpu_seconds)),
];

impl Series {
    /// Sums up.
    pub(crate) fn new(cache: Cache, pairs: Vec<Pair>) -> Self {
        let compare = |(name, measure): Measure| {
            let values: Option<Vec<(f64, f64)>> =
                pairs.iter().map(|pair| Some((measure(&pair.stock)?, measure(&pair.ours)?))).collect();
            Some(Quantity { name, comparison: Comparison::of(values?)? })
        };
        let summary = MEASURES.into_iter().filter_map(compare).collect();
        Self { cache, pairs, summary }
    }

    /// The summary as a table, minimum, median and maximum in each cell.
    pub(crate) fn table(&self, stock: &str) -> String {
        let title = format!("{} cache, {} pairs (min / median / max)", self.cache.name(), self.pairs.len());
        let mut table = Table::new([title.as_str(), stock, "pgstrata", "ratio"]);
        for Quantity { name, comparison } in &self.summary {
            table.row(vec![
                (*name).to_owned(),
                shown(&comparison.stock, 2),
                shown(&comparison.ours, 2),
                comparison.ratio.as_ref().map_or_else(|| "–".to_owned(), |ratio| shown(ratio, 3)),
            ]);
        }
        table.render()
    }

    /// What the back ends of our runs were, each once, as the program named them.
    pub(crate) fn back_ends(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for report in self.pairs.iter().filter_map(|pair| pair.ours.report.as_ref()) {
            if let (Some(io), Some(reason)) = (report["io"].as_str(), report["io_reason"].as_str()) {
                let named = format!("{io} ({reason})");
                if !found.contains(&named) {
                    found.push(named);
                }
            }
        }
        found
    }

    /// What our runs were limited by, as the program named it, with the number of runs.
    pub(crate) fn limits(&self) -> Vec<(String, usize)> {
        let mut found: Vec<(String, usize)> = Vec::new();
        for report in self.pairs.iter().filter_map(|pair| pair.ours.report.as_ref()) {
            let Some(limit) = report["limited_by"].as_str() else { continue };
            match found.iter_mut().find(|(known, _)| known == limit) {
                Some((_, runs)) => *runs += 1,
                None => found.push((limit.to_owned(), 1)),
            }
        }
        found
    }
}

/// All runs of the program under test in one state of the cache, where it has no rival.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Solo {
    /// The state of the cache.
    pub(crate) cache: Cache,
    /// The runs, in order.
    pub(crate) runs: Vec<Run>,
}

impl Solo {
    /// The quantities as a table, minimum, median and maximum in each cell.
    pub(crate) fn table(&self) -> String {
        let title = format!("{} cache, {} runs (min / median / max)", self.cache.name(), self.runs.len());
        let mut table = Table::new([title.as_str(), "pgstrata"]);
        for (name, measure) in MEASURES {
            let values: Option<Vec<f64>> = self.runs.iter().map(measure).collect();
            if let Some(spread) = values.and_then(Spread::of) {
                table.row(vec![name.to_owned(), shown(&spread, 2)]);
            }
        }
        table.render()
    }
}

/// One pair in a line.
pub(crate) fn line(cache: Cache, number: u32, count: u32, stock: &str, pair: &Pair) -> String {
    let run = |run: &Run| {
        format!(
            "{:.2} s, {:.2} CPU s, {:.1} MiB",
            run.cost.wall_seconds,
            run.cost.cpu_seconds(),
            mebi(run.cost.peak_memory_bytes)
        )
    };
    let ratio = |measure: fn(&Run) -> f64| {
        let (stock, ours) = (measure(&pair.stock), measure(&pair.ours));
        if stock > 0.0 { format!("{:.3}", ours / stock) } else { "–".to_owned() }
    };
    format!(
        "{} {number}/{count}: {stock} {}; pgstrata {}; ratio of wall {}, of CPU {}",
        cache.name(),
        run(&pair.stock),
        run(&pair.ours),
        ratio(|run| run.cost.wall_seconds),
        ratio(|run| run.cost.cpu_seconds())
    )
}

/// A spread in one cell.
pub(crate) fn shown(spread: &Spread, digits: usize) -> String {
    format!("{:.digits$} / {:.digits$} / {:.digits$}", spread.min, spread.median, spread.max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::Side;
    use crate::pairs::tests::run;
    use serde_json::json;

    fn pairs() -> Vec<Pair> {
        let pair = |stock, ours| Pair { first: Side::Stock, stock, ours };
        vec![
            pair(run(10.0, 4.0, 8 << 20), run(5.0, 3.0, 40 << 20)),
            pair(run(12.0, 4.0, 8 << 20), run(9.0, 2.0, 44 << 20)),
        ]
    }

    #[test]
    fn the_table_shows_both_and_their_ratio() {
        let expected = "\
| warm cache, 2 pairs (min / median / max) |         pg_basebackup |              pgstrata |                 ratio |
| ---------------------------------------- | --------------------: | --------------------: | --------------------: |
| wall, s                                  | 10.00 / 11.00 / 12.00 |    5.00 / 7.00 / 9.00 | 0.500 / 0.625 / 0.750 |
| client CPU, s                            |    4.00 / 4.00 / 4.00 |    2.00 / 2.50 / 3.00 | 0.500 / 0.625 / 0.750 |
| peak memory, MiB                         |    8.00 / 8.00 / 8.00 | 40.00 / 42.00 / 44.00 | 5.000 / 5.250 / 5.500 |
| CPU of the whole machine, s              |    8.00 / 8.00 / 8.00 |    4.00 / 5.00 / 6.00 | 0.500 / 0.625 / 0.750 |
";
        assert_eq!(Series::new(Cache::Warm, pairs()).table("pg_basebackup"), expected);
    }

    #[test]
    fn a_quantity_that_a_run_lacks_is_left_out() {
        let mut pairs = pairs();
        let server = |pairs: &[Pair]| {
            let summary = Series::new(Cache::Cold, pairs.to_vec()).summary;
            summary.into_iter().find(|quantity| quantity.name == "server CPU, s")
        };
        assert_eq!(server(&pairs), None);
        for pair in &mut pairs {
            pair.stock.server_cpu_seconds = Some(0.0);
            pair.ours.server_cpu_seconds = Some(1.0);
        }
        let shown = Series::new(Cache::Cold, pairs.clone()).table("x");
        assert!(shown.lines().any(|line| line.contains("server CPU") && line.ends_with("– |")), "{shown}");
        assert_eq!(server(&pairs).unwrap().comparison.ratio, None);
        pairs[1].ours.server_cpu_seconds = None;
        assert_eq!(server(&pairs), None);
    }

    #[test]
    fn back_ends_and_limits_are_named_once() {
        let mut pairs = pairs();
        for pair in &mut pairs {
            pair.ours.report =
                Some(json!({"io": "direct", "io_reason": "fastest", "limited_by": "server send"}));
        }
        let series = Series::new(Cache::Warm, pairs);
        assert_eq!(series.back_ends(), ["direct (fastest)"]);
        assert_eq!(series.limits(), [("server send".to_owned(), 2)]);
    }

    #[test]
    fn the_table_of_one_without_a_rival_has_no_ratio() {
        let runs = pairs().into_iter().map(|pair| pair.ours).collect();
        let table = Solo { cache: Cache::Warm, runs }.table();
        assert!(table.starts_with("| warm cache, 2 runs (min / median / max) |"), "{table}");
        assert!(table.contains(" 5.00 / 7.00 / 9.00 |") && !table.contains("server CPU"), "{table}");
    }

    #[test]
    fn a_pair_is_told_in_a_line() {
        assert_eq!(
            line(Cache::Warm, 1, 2, "pg_basebackup", &pairs()[0]),
            "warm 1/2: pg_basebackup 10.00 s, 4.00 CPU s, 8.0 MiB; pgstrata 5.00 s, 3.00 CPU s, 40.0 MiB; \
             ratio of wall 0.500, of CPU 0.750"
        );
    }
}
