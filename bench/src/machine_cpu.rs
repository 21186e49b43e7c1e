//! CPU seconds that the whole machine spends on a run, from `/proc/stat`.
//!
//! A client's own account misses what the kernel does for it later: threads that write dirty pages back belong to
//! nobody. The machine's account has all of it, and all that others do meanwhile, so on a busy machine it says
//! nothing.

use std::fs;

use anyhow::Context;

/// An open account.
#[derive(Debug)]
pub(crate) struct MachineCpu {
    before: u64,
}

impl MachineCpu {
    /// Begins to count.
    pub(crate) fn begin() -> anyhow::Result<Self> {
        Ok(Self { before: busy_ticks()? })
    }

    /// The seconds since then in which a processor was not idle, over all processors.
    pub(crate) fn end(&self) -> anyhow::Result<f64> {
        let ticks = busy_ticks()?.saturating_sub(self.before);
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }
}

fn busy_ticks() -> anyhow::Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    parse(&stat).context("/proc/stat: not as proc_stat(5) has it")
}

/// Of the first line's user, nice, system, idle, iowait, irq, softirq, steal: all but idle, iowait and steal, which
/// is time that another guest had. Time of our own guests is in user and nice already.
fn parse(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Option<Vec<u64>> = line.split_ascii_whitespace().map(|field| field.parse().ok()).collect();
    match fields?[..] {
        [user, nice, system, _, _, irq, softirq, ..] => Some(user + nice + system + irq + softirq),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_is_not_busy() {
        for (stat, expected) in [
            ("cpu  1 20 300 4000 50000 600000 7000000 80000000 0 0\ncpu0 1 1 1 1\n", Some(7_600_321)),
            ("cpu  1 2 3\n", None),
            ("cpu0 1 2 3 4 5 6 7\n", None),
            ("", None),
        ] {
            assert_eq!(parse(stat), expected, "{stat}");
        }
    }
}
