//! What becomes of each file: stored whole, or laid over what the parent has of it.
//!
//! Asked by the walker, in the order of the walk. Memory is a few frames of the parent's manifest, and an entry a database.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pgstrata_protocol::Lsn;
use pgstrata_protocol::names::{Fork, RelationFile, TablespaceDir};

use super::source::Touched;
use super::{BlockRun, Changes, ChangesSummary, FRAGMENTS_MAX, Parent, blocks_of, join_runs};
use crate::failure::Failure;
use crate::repository::{BLOCK, BaseFiles, Extent, FileRecord};
use crate::sink::LARGE;

/// Packs of which less than this is used, in percent, are left: what they still hold is stored anew.
pub(crate) const SPARSE_PERCENT: u64 = 30;
/// A map of more extents than this is made anew where they have fewer than [`SHORT_RUN`] blocks on average.
const SCATTERED: usize = 64;
const SHORT_RUN: u64 = 2;
/// Bytes that a backup stores anew though they are the same: a share of the parent's, and always so many.
const BUDGET_SHARE: u64 = 50;
const BUDGET_LEAST: u64 = 16 << 20;
/// A file of which at least so many tenths have changed is stored whole: it is read at one go, and has a checksum.
const WHOLE_TENTHS: u64 = 8;
/// Seconds by which a file must be older than the parent: clocks are read here and there.
const OLDER: i64 = 1;

/// What becomes of a file.
#[derive(Debug, Default)]
pub(crate) enum Plan {
    /// It is read and stored whole.
    #[default]
    Whole,
    /// Likewise, but what it has in older packs is left.
    Renew,
    /// It is laid over the parent's map.
    Over(Box<Over>),
}

impl Plan {
    /// Whether nothing of the file is read, and how many extents its map has then.
    pub(crate) fn unread(&self) -> Option<usize> {
        match self {
            Self::Over(over) => match &over.stored {
                Stored::Runs(runs) if runs.is_empty() => Some(over.map.len()),
                _ => None,
            },
            Self::Whole | Self::Renew => None,
        }
    }
}

/// A file that is laid over the parent's map.
#[derive(Debug)]
pub(crate) struct Over {
    /// The parent's map, in the parent's table.
    pub(crate) map: Vec<Extent>,
    /// Blocks of it that may be kept, from the first.
    pub(crate) kept: u32,
    /// Facts that the walk has found.
    pub(crate) facts: FileFacts,
    /// Whether what is stored must lie in new packs.
    pub(crate) renews: bool,
    pub(crate) stored: Stored,
}

/// What a walk finds out about a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileFacts {
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) modified: u64,
    pub(crate) owner: u16,
}

/// Which blocks are stored.
#[derive(Debug)]
pub(crate) enum Stored {
    /// These, and no others are read. The file has the length that the walk found.
    Runs(Vec<BlockRun>),
    /// Those whose pages say so, and these. Only where the file is older than the parent.
    ByPage { since: Lsn, born_before: i64, renewed: Vec<BlockRun> },
}

/// What a backup takes over and what it stores, counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) unchanged_files: AtomicU64,
    pub(crate) changed_files: AtomicU64,
    pub(crate) kept_bytes: AtomicU64,
    pub(crate) changed_bytes: AtomicU64,
    pub(crate) renewed_bytes: AtomicU64,
    pub(crate) read_bytes: AtomicU64,
}

impl Tally {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    /// Notes what was counted.
    pub(crate) fn note(&self, summary: &mut ChangesSummary) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        summary.unchanged_files = read(&self.unchanged_files);
        summary.changed_files = read(&self.changed_files);
        summary.kept_bytes = read(&self.kept_bytes);
        summary.changed_bytes = read(&self.changed_bytes);
        summary.renewed_bytes = read(&self.renewed_bytes);
        summary.read_bytes = read(&self.read_bytes);
    }
}

/// Plans files.
#[derive(Debug)]
pub(crate) struct Planner {
    parent: Arc<Parent>,
    files: BaseFiles,
    changes: Changes,
    /// The data directory, and the folders in which databases lie, as paths name them.
    data_directory: PathBuf,
    places: Vec<String>,
    /// Whether a database is the one that the parent has.
    same: HashMap<u32, bool>,
    /// Bytes that may still be stored anew.
    budget: u64,
    tally: Arc<Tally>,
}

impl Planner {
    /// A planner for files below `data_directory`. `places` are `base` and the version's folder of every tablespace.
    pub(crate) fn new(
        parent: &Arc<Parent>,
        changes: Changes,
        data_directory: PathBuf,
        places: Vec<String>,
        tally: &Arc<Tally>,
    ) -> Result<Self, Failure> {
        let files = BaseFiles::of(&parent.base)?;
        let budget = (parent.base.manifest().summary.bytes / BUDGET_SHARE).max(BUDGET_LEAST);
        let (parent, tally) = (Arc::clone(parent), Arc::clone(tally));
        Ok(Self { parent, files, changes, data_directory, places, same: HashMap::new(), budget, tally })
    }

    /// What becomes of the file at `path`.
    pub(crate) fn plan(&mut self, path: &[u8], facts: FileFacts) -> Result<Plan, Failure> {
        // What WAL does not describe, or only by halves, is stored whole: other forks, what is no relation's.
        let Some(file) = RelationFile::parse(path).filter(|file| file.fork == Fork::Main) else {
            return Ok(Plan::Whole);
        };
        let Some(blocks) = whole_blocks(facts.size) else { return Ok(Plan::Whole) };
        let Some(record) = self.files.find(path)? else { return Ok(Plan::Whole) };
        let FileRecord { size, map, .. } = record;
        let Some(before) = whole_blocks(size) else { return Ok(Plan::Whole) };
        if !self.parent.base.can_use(&map) {
            return Ok(Plan::Whole);
        }
        let (kept, stored) = match self.changes.of(&file) {
            Touched::All => return Ok(Plan::Whole),
            Touched::Blocks { limit, runs } => {
                let kept = before.min(blocks).min(limit.unwrap_or(u32::MAX));
                (kept, Stored::Runs(stored_runs(runs, kept, blocks)))
            }
            Touched::ByPage(since) => {
                if !self.is_same_database(&file)? {
                    return Ok(Plan::Whole);
                }
                let born_before = i64::try_from(self.parent.started).unwrap_or(0) - OLDER;
                (before.min(blocks), Stored::ByPage { since, born_before, renewed: Vec::new() })
            }
        };
        if kept == 0 {
            return Ok(Plan::Whole);
        }
        let mut over = Over { map, kept, facts, renews: false, stored };
        self.renew(&mut over, blocks);
        let (Stored::Runs(runs) | Stored::ByPage { renewed: runs, .. }) = &over.stored;
        let stored = blocks_of(runs);
        let too_many = over.map.len() + 2 * runs.len() > FRAGMENTS_MAX;
        // Small files share frames, as they do elsewhere.
        let is_whole = (facts.size < LARGE && stored > 0) || stored * 10 >= u64::from(blocks) * WHOLE_TENTHS;
        Ok(match (is_whole || too_many, over.renews) {
            (false, _) => Plan::Over(Box::new(over)),
            (true, false) => Plan::Whole,
            (true, true) => Plan::Renew,
        })
    }

    /// Adds blocks that are to leave the packs or the map that they have, as far as the budget goes.
    fn renew(&mut self, over: &mut Over, blocks: u32) {
        let (Stored::Runs(runs) | Stored::ByPage { renewed: runs, .. }) = &mut over.stored;
        let before = blocks_of(runs);
        let fragments = over.map.len() + 2 * runs.len();
        let scattered = fragments > SCATTERED && u64::from(blocks) < SHORT_RUN * fragments as u64;
        let too_many = fragments > FRAGMENTS_MAX;
        let mut more = Vec::new();
        if scattered || too_many {
            more.push(BlockRun { block: 0, count: blocks });
        } else {
            for extent in over.map.iter().filter(|extent| extent.block < over.kept) {
                if self.parent.base.used_percent(extent.pack) < SPARSE_PERCENT {
                    let count = extent.count.min(over.kept - extent.block);
                    more.push(BlockRun { block: extent.block, count });
                }
            }
        }
        if more.is_empty() {
            return;
        }
        more.extend_from_slice(runs);
        let joined = join_runs(more);
        let bytes = (blocks_of(&joined) - before) * BLOCK;
        // A map that would not fit is made anew whatever it costs.
        if bytes > self.budget && !too_many {
            return;
        }
        self.budget = self.budget.saturating_sub(bytes);
        Tally::add(&self.tally.renewed_bytes, bytes);
        *runs = joined;
        over.renews = true;
    }

    /// Whether the file's database is the one that the parent has, by its `PG_VERSION`, which is written when it is
    /// made: one that took its number meanwhile has files of the same names and, as a copy of another, with old pages.
    fn is_same_database(&mut self, file: &RelationFile) -> Result<bool, Failure> {
        if file.tablespace == TablespaceDir::Global {
            return Ok(true);
        }
        if let Some(same) = self.same.get(&file.database) {
            return Ok(*same);
        }
        let mut found = None;
        for place in &self.places {
            let path = format!("{place}/{}/PG_VERSION", file.database);
            let there = self.data_directory.join(&path);
            match rustix::fs::stat(&there) {
                Ok(facts) => found = Some((path, u64::try_from(facts.st_mtime).unwrap_or(0))),
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(Failure::disk("look at", there, error)),
            }
        }
        let same = match found {
            None => false,
            Some((path, modified)) => {
                self.files.find(path.as_bytes())?.is_some_and(|before| before.modified == modified)
            }
        };
        self.same.insert(file.database, same);
        Ok(same)
    }
}

/// The blocks of a file that has only whole ones.
fn whole_blocks(size: u64) -> Option<u32> {
    let blocks = u32::try_from(size / BLOCK).ok()?;
    (blocks > 0 && size.is_multiple_of(BLOCK)).then_some(blocks)
}

/// Runs of changed blocks within a file of `blocks`, and everything from `kept` on.
fn stored_runs(runs: Vec<BlockRun>, kept: u32, blocks: u32) -> Vec<BlockRun> {
    let mut all: Vec<_> = runs
        .into_iter()
        .filter(|run| run.block < blocks)
        .map(|run| BlockRun { block: run.block, count: run.count.min(blocks - run.block) })
        .collect();
    all.push(BlockRun { block: kept, count: blocks - kept });
    join_runs(all)
}
