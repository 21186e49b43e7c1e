//! A file that a reader has begun: what is read of it, and what is kept of an older backup's map instead.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use pgstrata_protocol::names::RelationFile;
use pgstrata_protocol::{BlockNumber, Lsn};
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use super::owners::Owners;
use super::walk::{Found, unreadable};
use crate::failure::Failure;
use crate::pipeline::Member;
use crate::repository::{BLOCK, BaseBackup, Extent};
use crate::ring::{DiskFile, IoMode};
use crate::tracking::{BlockReads, BlockRun, Over, Overlay, Plan, Stored, join_runs};

/// A file that is open, or need not be.
pub(super) struct OpenFile {
    /// None where nothing is read.
    pub(super) file: Option<Arc<DiskFile>>,
    pub(super) path: Vec<u8>,
    pub(super) size: u64,
    mode: u32,
    modified: u64,
    owner: u16,
    /// The number of its first page, if its pages may carry checksums.
    pub(super) first_block: Option<BlockNumber>,
    /// What is passed on of it.
    pub(super) passed: Passed,
    overlay: Option<Arc<Overlay>>,
}

/// What a reader passes on of a file.
pub(super) enum Passed {
    /// Everything.
    All,
    /// Nothing.
    Nothing,
    /// What these reads bring.
    Blocks(BlockReads),
    /// All is read, and pages that were changed are passed on.
    ByPage(ByPage),
}

/// How pages are told apart.
pub(super) struct ByPage {
    pub(super) since: Lsn,
    /// Blocks from this one on are passed on whatever they say, and these.
    pub(super) kept: u32,
    pub(super) renewed: Vec<BlockRun>,
    /// Extents of the older map.
    pub(super) extents: usize,
    /// The whole map, for a small file whose pages are all as they were.
    pub(super) map: Vec<Extent>,
}

impl OpenFile {
    pub(super) fn member(&self, sequence: u64) -> Member {
        Member {
            sequence,
            path: self.path.clone(),
            size: self.size,
            mode: self.mode,
            modified: self.modified,
            owner: self.owner,
            overlay: self.overlay.clone(),
        }
    }

    /// The member of a small file that turned out to be as it was, or not to be.
    pub(super) fn small_member(&self, unchanged: Option<Vec<Extent>>) -> Member {
        Member { overlay: unchanged.map(|map| Arc::new(Overlay::Unchanged(map))), ..self.member(0) }
    }

    /// The file's blocks.
    pub(super) fn blocks(&self) -> u32 {
        u32::try_from(self.size.div_ceil(BLOCK)).unwrap_or(u32::MAX)
    }
}

/// Begins a file; none where it has gone. `base` is the backup that plans speak of; no read is longer than `most` blocks.
pub(super) fn open(
    found: &mut Found,
    (mode, most): (IoMode, u32),
    base: Option<&BaseBackup>,
    owners: &mut Owners,
) -> Result<Option<OpenFile>, Failure> {
    let (over, renews) = match std::mem::take(&mut found.plan) {
        Plan::Whole => (None, false),
        Plan::Renew => (None, true),
        Plan::Over(over) => (Some(*over), false),
    };
    let over = over.zip(base);
    if let Some((over, base)) = &over
        && let Some(file) = unread(found, over, base)
    {
        return Ok(Some(file));
    }
    let Some(mut file) = open_whole(found, mode, owners)? else { return Ok(None) };
    if renews {
        file.overlay = Some(Arc::new(Overlay::Renewed));
    }
    if let Some((over, base)) = over {
        lay_over(&mut file, over, base, most);
    }
    Ok(Some(file))
}

/// A file of which nothing is read, if its packs can be used.
fn unread(found: &Found, over: &Over, base: &BaseBackup) -> Option<OpenFile> {
    let Stored::Runs(runs) = &over.stored else { return None };
    if !runs.is_empty() {
        return None;
    }
    let map = base.taken_over(&over.map, over.kept)?;
    let facts = over.facts;
    Some(OpenFile {
        file: None,
        path: found.path.clone(),
        size: facts.size,
        mode: facts.mode,
        modified: facts.modified,
        owner: facts.owner,
        first_block: None,
        passed: Passed::Nothing,
        overlay: Some(Arc::new(Overlay::Unchanged(map))),
    })
}

/// Lays a file over its older map. Where that cannot be it stays whole.
fn lay_over(file: &mut OpenFile, over: Over, base: &BaseBackup, most: u32) {
    let Over { map, kept, facts, renews, stored } = over;
    match stored {
        Stored::Runs(runs) => {
            let Some(kept) = base.by_frames(&map, kept) else { return };
            // The length, like the runs, is that of the walk: what the file has grown by since comes from the WAL.
            file.size = facts.size;
            let blocks = file.blocks();
            file.overlay = Some(Arc::new(Overlay::Changed { kept, blocks, renews }));
            file.passed = Passed::Blocks(BlockReads::of(&runs, most));
        }
        Stored::ByPage { since, born_before, renewed } => {
            let blocks = file.blocks();
            let kept = kept.min(blocks);
            if kept == 0 || !file.size.is_multiple_of(BLOCK) || !is_older(file, born_before) {
                return;
            }
            let Some(frames) = base.by_frames(&map, kept) else { return };
            let extents = map.len();
            let map = if kept == blocks { base.taken_over(&map, kept) } else { None };
            file.overlay = Some(Arc::new(Overlay::Changed { kept: frames, blocks, renews }));
            let renewed = join_runs(renewed);
            file.passed =
                Passed::ByPage(ByPage { since, kept, renewed, extents, map: map.unwrap_or_default() });
        }
    }
}

/// Whether a file was made before a time; not where nobody knows.
fn is_older(file: &OpenFile, born_before: i64) -> bool {
    let Some(handle) = &file.file else { return false };
    let facts = rustix::fs::statx(handle, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME);
    facts.is_ok_and(|facts| {
        facts.stx_mask & StatxFlags::BTIME.bits() != 0
            // Some file systems say zero for what they do not know.
            && facts.stx_btime.tv_sec > 0
            && facts.stx_btime.tv_sec < born_before
    })
}

fn open_whole(found: &Found, mode: IoMode, owners: &mut Owners) -> Result<Option<OpenFile>, Failure> {
    let name = OsStr::from_bytes(&found.name);
    let failed = |action, error: Errno| unreadable(action, &found.folder.path.join(name), error);
    let file = match DiskFile::open_read(&found.folder.handle, name, mode) {
        Ok(file) => file,
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => return Ok(None),
            Some(error) => return Err(failed("open", error)),
            // What took a file's name meanwhile is none, as what has gone is none.
            None if error.kind() == std::io::ErrorKind::InvalidInput => return Ok(None),
            None => return Err(Failure::disk("open", found.folder.path.join(name), error)),
        },
    };
    let facts = rustix::fs::fstat(&file).map_err(|error| failed("look at", error))?;
    Ok(Some(OpenFile {
        file: Some(Arc::new(file)),
        size: u64::try_from(facts.st_size).unwrap_or(0),
        mode: facts.st_mode & 0o777,
        modified: u64::try_from(facts.st_mtime).unwrap_or(0),
        owner: owners.number(facts.st_uid, facts.st_gid),
        first_block: RelationFile::parse(&found.path).map(|file| file.first_block()),
        path: found.path.clone(),
        passed: Passed::All,
        overlay: None,
    }))
}
