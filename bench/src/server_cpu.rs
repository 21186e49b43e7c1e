//! CPU seconds that the server spends on a run, from `/proc`.
//!
//! The postmaster's own, those of its living children, and those of the children that it has waited for. A backup's
//! walsenders end with it; the account is closed once they are gone, so that their time is counted once and wholly.
//! The kernel keeps these times in ticks of a hundredth of a second.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// How long walsenders may take to notice that their client is gone.
const GONE_WITHIN: Duration = Duration::from_secs(30);
/// How often they are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// An open account.
#[derive(Debug)]
pub(crate) struct ServerCpu {
    postmaster: u32,
    before: Usage,
}

#[derive(Debug, PartialEq, Eq)]
struct Usage {
    ticks: u64,
    children: BTreeSet<u32>,
}

impl ServerCpu {
    /// Begins to count.
    pub(crate) fn begin(postmaster: u32) -> anyhow::Result<Self> {
        Ok(Self { postmaster, before: Usage::of(postmaster)? })
    }

    /// Waits until the server has no more processes than when counting began, and returns the seconds spent.
    pub(crate) fn end(self) -> anyhow::Result<f64> {
        let began = Instant::now();
        loop {
            let now = Usage::of(self.postmaster)?;
            if now.children.is_subset(&self.before.children) {
                let ticks = now.ticks.saturating_sub(self.before.ticks);
                return Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64);
            }
            if began.elapsed() >= GONE_WITHIN {
                bail!(
                    "the server still runs processes that were not there before: {:?}",
                    now.children.difference(&self.before.children)
                );
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Usage {
    fn of(postmaster: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{postmaster}/stat");
        let read = || {
            let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            Stat::parse(&stat).with_context(|| format!("{path}: not as proc_pid_stat(5) has it: {stat:?}"))
        };
        loop {
            let before = read()?;
            let children = children_of(postmaster)?;
            let after = read()?;
            // A child that was waited for meanwhile may be in neither or in both.
            if before.waited_for == after.waited_for {
                return Ok(Self {
                    ticks: after.own + after.waited_for + children.iter().map(|(_, own)| own).sum::<u64>(),
                    children: children.into_iter().map(|(pid, _)| pid).collect(),
                });
            }
        }
    }
}

/// The living children of a process with their own ticks, or those that have ended and were not waited for.
fn children_of(parent: u32) -> anyhow::Result<Vec<(u32, u64)>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let entry = entry.context("cannot list /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while we look.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some(stat) = Stat::parse(&stat).filter(|stat| stat.parent == parent) {
            children.push((pid, stat.own));
        }
    }
    Ok(children)
}

/// What proc_pid_stat(5) says of a process.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// Ticks of its own, user and system.
    own: u64,
    /// Ticks of the children that it waited for.
    waited_for: u64,
}

impl Stat {
    fn parse(stat: &str) -> Option<Self> {
        // The second field is a name in parentheses that may hold anything.
        let (_, after_name) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        // Fields are numbered from 1, and the first one here is the third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(field(4)?).ok()?,
            own: field(14)?.checked_add(field(15)?)?,
            waited_for: field(16)?.checked_add(field(17)?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_whatever_the_name() {
        for (stat, expected) in [
            (
                "7 (postgres: a) b) S 3 7 7 0 -1 4 1 2 3 4 100 20 3 4 20 0 1 0",
                Some(Stat { parent: 3, own: 120, waited_for: 7 }),
            ),
            ("7 (x) S 3 7", None),
            ("", None),
        ] {
            assert_eq!(Stat::parse(stat), expected, "{stat}");
        }
    }

    #[test]
    fn children_come_and_go() {
        let ourselves = std::process::id();
        let account = ServerCpu::begin(ourselves).unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        assert!(children_of(ourselves).unwrap().iter().any(|(pid, _)| *pid == child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        // Other tests of this process may have children of their own, which end by themselves.
        assert!(account.end().unwrap() >= 0.0);
    }
}
