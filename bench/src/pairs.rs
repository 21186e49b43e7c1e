//! Pairs of runs: one of each rival, in turn, under the same conditions, alternating who goes first.
//!
//! Whatever changes slowly while a benchmark runs (other load, the device's state, temperature) meets both rivals of
//! a pair alike; whatever the first run of a pair leaves behind meets each of them equally often.

use serde::Serialize;
use serde_json::Value;

use crate::cache::Cache;
use crate::measure::Cost;

/// Whose run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// PostgreSQL's program.
    Stock,
    /// pgstrata.
    Ours,
}

/// One run of one rival.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Run {
    /// What it cost the client.
    pub(crate) cost: Cost,
    /// CPU seconds that the server spent on it, where a server took part.
    pub(crate) server_cpu_seconds: Option<f64>,
    /// CPU seconds of everything on the machine while it ran, the kernel's own threads included.
    pub(crate) machine_cpu_seconds: f64,
    /// Bytes of the files that it made or read.
    pub(crate) bytes: u64,
    /// What the program itself reported, where it does.
    pub(crate) report: Option<Value>,
}

/// One run of each.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Pair {
    /// Who went first.
    pub(crate) first: Side,
    pub(crate) stock: Run,
    pub(crate) ours: Run,
}

/// What is run in pairs.
pub(crate) trait Contest {
    /// Brings disk and page cache into the state that every run starts from.
    fn prepare(&mut self, cache: Cache) -> anyhow::Result<()>;

    /// Runs one rival, everything being prepared for this state of the cache.
    fn run(&mut self, side: Side, cache: Cache) -> anyhow::Result<Run>;

    /// Removes what a run made, and waits until nothing of it is left to be written.
    fn clear(&mut self) -> anyhow::Result<()>;
}

/// Runs `count` pairs, telling each with its number from 1.
pub(crate) fn compete(
    contest: &mut impl Contest,
    cache: Cache,
    count: u32,
    mut tell: impl FnMut(u32, &Pair) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for number in 1..=count {
        let mut one = |side| {
            contest.prepare(cache)?;
            let run = contest.run(side, cache)?;
            contest.clear()?;
            anyhow::Ok(run)
        };
        let pair = if number % 2 == 1 {
            let stock = one(Side::Stock)?;
            Pair { first: Side::Stock, ours: one(Side::Ours)?, stock }
        } else {
            let ours = one(Side::Ours)?;
            Pair { first: Side::Ours, stock: one(Side::Stock)?, ours }
        };
        tell(number, &pair)?;
        pairs.push(pair);
    }
    Ok(pairs)
}

/// Runs the program under test alone, `count` times, where it has no rival.
pub(crate) fn alone(
    contest: &mut impl Contest,
    cache: Cache,
    count: u32,
    mut tell: impl FnMut(u32, &Run) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Run>> {
    let mut runs = Vec::new();
    for number in 1..=count {
        contest.prepare(cache)?;
        let run = contest.run(Side::Ours, cache)?;
        contest.clear()?;
        tell(number, &run)?;
        runs.push(run);
    }
    Ok(runs)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run with these numbers.
    pub(crate) fn run(wall: f64, cpu: f64, memory: u64) -> Run {
        let cost = Cost {
            wall_seconds: wall,
            user_seconds: cpu / 2.0,
            system_seconds: cpu / 2.0,
            peak_memory_bytes: memory,
        };
        Run { cost, server_cpu_seconds: None, machine_cpu_seconds: 2.0 * cpu, bytes: 0, report: None }
    }

    #[derive(Default)]
    struct Recorded {
        events: Vec<String>,
        fail_at: Option<usize>,
    }

    impl Contest for Recorded {
        fn prepare(&mut self, cache: Cache) -> anyhow::Result<()> {
            self.events.push(cache.name().to_owned());
            Ok(())
        }

        fn run(&mut self, side: Side, _cache: Cache) -> anyhow::Result<Run> {
            self.events.push(format!("{side:?}"));
            anyhow::ensure!(self.fail_at != Some(self.events.len()), "failed");
            Ok(run(f64::from(u32::try_from(self.events.len())?), 1.0, 1))
        }

        fn clear(&mut self) -> anyhow::Result<()> {
            self.events.push("clear".to_owned());
            Ok(())
        }
    }

    #[test]
    fn rivals_take_turns_at_going_first_and_each_run_is_prepared_and_cleared() {
        let (mut contest, mut told) = (Recorded::default(), Vec::new());
        let pairs = compete(&mut contest, Cache::Cold, 3, |number, pair| {
            told.push((number, pair.first));
            Ok(())
        });
        let sides: Vec<&str> = contest.events.chunks(3).map(|run| run[1].as_str()).collect();
        assert_eq!(sides, ["Stock", "Ours", "Ours", "Stock", "Stock", "Ours"]);
        assert!(contest.events.chunks(3).all(|run| run[0] == "cold" && run[2] == "clear"));
        assert_eq!(told, [(1, Side::Stock), (2, Side::Ours), (3, Side::Stock)]);
        // Each run belongs to the side that made it: the second pair's first run, the third of all, is ours.
        let walls: Vec<(f64, f64)> = pairs
            .unwrap()
            .iter()
            .map(|pair| (pair.stock.cost.wall_seconds, pair.ours.cost.wall_seconds))
            .collect();
        assert_eq!(walls, [(2.0, 5.0), (11.0, 8.0), (14.0, 17.0)]);
    }

    #[test]
    fn who_has_no_rival_runs_alone_under_the_same_conditions() {
        let mut contest = Recorded::default();
        let runs = alone(&mut contest, Cache::Warm, 2, |_, _| Ok(())).unwrap();
        assert_eq!(contest.events, ["warm", "Ours", "clear", "warm", "Ours", "clear"]);
        assert_eq!(runs.iter().map(|run| run.cost.wall_seconds).collect::<Vec<_>>(), [2.0, 5.0]);
    }

    #[test]
    fn a_failed_run_ends_everything() {
        let mut contest = Recorded { fail_at: Some(5), ..Recorded::default() };
        assert!(compete(&mut contest, Cache::Warm, 3, |_, _| Ok(())).is_err());
        assert_eq!(contest.events.len(), 5);
    }
}
