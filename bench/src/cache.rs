//! Brings the page cache and the disk into a known state between runs.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, anyhow};
use serde::Serialize;

use crate::arguments::CacheChoice;
use crate::tree;

/// Where Linux is told to forget what it has cached (proc_sys_vm(5)).
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// The state of the page cache that a run starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cache {
    /// What the run reads is in it.
    Warm,
    /// It is empty.
    Cold,
}

impl Cache {
    /// The name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Cache::Warm => "warm",
            Cache::Cold => "cold",
        }
    }

    /// The states to measure. Cold alone fails where it cannot be had; together with warm, it is left out aloud.
    pub(crate) fn chosen(choice: CacheChoice) -> anyhow::Result<Vec<Cache>> {
        let cold = || {
            drop_all().map_err(|error| {
                anyhow!(
                    "cannot write {DROP_CACHES} ({error}), so the cache cannot be made cold\nHINT: run as root."
                )
            })
        };
        match choice {
            CacheChoice::Warm => Ok(vec![Cache::Warm]),
            CacheChoice::Cold => cold().map(|()| vec![Cache::Cold]),
            CacheChoice::Both => Ok(match cold() {
                Ok(()) => vec![Cache::Warm, Cache::Cold],
                Err(error) => {
                    eprintln!("pgstrata-bench: warm cache only: {error}");
                    vec![Cache::Warm]
                }
            }),
        }
    }

    /// Brings the page cache into this state, for a run that reads `source`.
    pub(crate) fn prepare(self, source: &Path) -> anyhow::Result<()> {
        match self {
            Cache::Warm => tree::read_all(source),
            Cache::Cold => drop_all().with_context(|| format!("cannot write {DROP_CACHES}")),
        }
    }
}

/// Waits until nothing is left to be written to the file system that `place` is on.
pub(crate) fn settle(place: &Path) -> anyhow::Result<()> {
    let dir = File::open(place).with_context(|| format!("cannot open {}", place.display()))?;
    rustix::fs::syncfs(&dir).with_context(|| format!("cannot sync the file system of {}", place.display()))
}

/// Forgets clean pages, names and inodes. Dirty pages cannot be forgotten, so they are written first.
fn drop_all() -> io::Result<()> {
    rustix::fs::sync();
    fs::write(DROP_CACHES, "3")
}
