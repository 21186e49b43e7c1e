//! A small reader of incremental backups, written from the format's description and not from the engine's code: it puts
//! a full backup and the incremental ones that build on it together again, so that the result can be started.
//!
//! What `pg_combinebackup` does (`src/bin/pg_combinebackup/reconstruct.c`), for plain backups of 8 KiB blocks. Where that
//! program itself is at hand, [`stock_combine`] runs it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use pgstrata::postmaster::ServerProgram;

use crate::{Finished, Invocation, complete, servers};

/// BLCKSZ as everyone builds it.
const BLOCK: usize = 8192;
/// `INCREMENTAL_MAGIC` (`backup/basebackup_incremental.h`).
const MAGIC: u32 = 0xd3ae_1f0d;
/// What the names of incremental files begin with.
const PREFIX: &str = "INCREMENTAL.";

/// What a chain was put together from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Combined {
    /// Files that the last backup holds whole.
    pub whole: u64,
    /// Incremental files of the last backup.
    pub incremental: u64,
    /// Blocks in them.
    pub blocks: u64,
}

/// An incremental file.
struct Incremental {
    truncation_block: usize,
    blocks: BTreeMap<usize, Vec<u8>>,
}

/// Puts backups in plain format together, the full one first, each built on the one before. Tablespaces go to folders
/// beside the new data directory.
///
/// # Panics
/// Where the backups do not fit together.
#[track_caller]
#[must_use]
pub fn combine(chain: &[&Path], into: &Path) -> Combined {
    let mut combined = Combined::default();
    let outcome = combine_folder(chain, Path::new(""), into, &mut combined);
    outcome.unwrap_or_else(|error| panic!("{chain:?}: {error:#}"));
    combined
}

/// Has the `pg_combinebackup` of a major version put a chain together, if one is installed or can be had.
#[must_use]
pub fn stock_combine(major: u32, chain: &[&Path], into: &Path) -> Option<Finished> {
    let programs: Vec<ServerProgram> =
        servers::program(major).ok().cloned().into_iter().chain(ServerProgram::installed()).collect();
    let same = programs.iter().filter(|program| program.version.major() == major);
    let installed = same.filter_map(|program| program.companion("pg_combinebackup")).next();
    let combiner = installed.or_else(|| Some(complete(major)?.tool("pg_combinebackup")))?;
    let mut invocation = Invocation::new(&combiner, chain).arg("-N").arg("-o").arg(into);
    let last = chain.last()?;
    for entry in fs::read_dir(last.join("pg_tblspc")).ok()?.filter_map(Result::ok) {
        if let Ok(from) = fs::read_link(entry.path()) {
            let to = beside(into, &entry.file_name().to_string_lossy());
            invocation = invocation.arg("-T").arg(format!("{}={}", from.display(), to.display()));
        }
    }
    Some(invocation.run())
}

fn beside(into: &Path, tablespace: &str) -> PathBuf {
    let mut place = into.as_os_str().to_owned();
    place.push(format!(" space {tablespace}"));
    place.into()
}

fn combine_folder(chain: &[&Path], folder: &Path, into: &Path, done: &mut Combined) -> anyhow::Result<()> {
    let (last, older) = chain.split_last().context("a chain has a backup")?;
    let make = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    let to = into.join(folder);
    let is_tablespace = folder.parent() == Some(Path::new("pg_tblspc"));
    if is_tablespace && last.join(folder).is_symlink() {
        let place = beside(into, &folder.file_name().unwrap_or_default().to_string_lossy());
        make(&place)?;
        symlink(&place, &to)?;
    } else {
        make(&to)?;
    }
    for entry in fs::read_dir(last.join(folder)).with_context(|| format!("{}", folder.display()))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        // A tablespace's link leads to a folder.
        if fs::metadata(entry.path())?.is_dir() {
            combine_folder(chain, &path, into, done)?;
            continue;
        }
        let name = entry.file_name();
        match name.to_str().and_then(|name| name.strip_prefix(PREFIX)) {
            Some(name) => {
                let path = folder.join(name);
                let content = reconstruct(&fs::read(entry.path())?, older, &path, done)
                    .with_context(|| format!("{}", path.display()))?;
                fs::write(into.join(&path), content)?;
            }
            None if path == Path::new("backup_manifest") || path == Path::new("tablespace_map") => {}
            None if path == Path::new("backup_label") => {
                let label = fs::read_to_string(entry.path())?;
                let kept = label.lines().filter(|line| !line.starts_with("INCREMENTAL FROM "));
                ensure!(kept.clone().count() + 2 == label.lines().count(), "no incremental label: {label}");
                fs::write(into.join(&path), kept.map(|line| format!("{line}\n")).collect::<String>())?;
            }
            None => {
                done.whole += u64::from(!path.starts_with("pg_wal"));
                fs::copy(entry.path(), into.join(&path))?;
            }
        }
    }
    Ok(())
}

/// The file of the last backup, whole: its own blocks, and from those before it what it lacks, newest first.
fn reconstruct(bytes: &[u8], older: &[&Path], path: &Path, done: &mut Combined) -> anyhow::Result<Vec<u8>> {
    let last = read(bytes)?;
    done.incremental += 1;
    done.blocks += last.blocks.len() as u64;
    let highest = last.blocks.keys().next_back().map_or(0, |block| block + 1);
    let length = last.truncation_block.max(highest);
    let (limit, mut found) = (last.truncation_block, last.blocks);
    for backup in older.iter().rev() {
        let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let part = backup.join(folder).join(format!("{PREFIX}{}", name.to_string_lossy()));
        if part.exists() {
            for (block, content) in read(&fs::read(&part)?)?.blocks {
                if block < limit {
                    found.entry(block).or_insert(content);
                }
            }
            continue;
        }
        let whole = fs::read(backup.join(path)).context("in no earlier backup")?;
        for (block, content) in whole.chunks_exact(BLOCK).enumerate().take(limit) {
            found.entry(block).or_insert_with(|| content.to_vec());
        }
        let mut file = vec![0; length * BLOCK];
        for (block, content) in found {
            file[block * BLOCK..][..BLOCK].copy_from_slice(&content);
        }
        return Ok(file);
    }
    anyhow::bail!("no backup of the chain holds it whole")
}

fn read(bytes: &[u8]) -> anyhow::Result<Incremental> {
    let number = |at: usize| -> anyhow::Result<u32> {
        let four = bytes.get(at * 4..at * 4 + 4).context("the header is cut short")?;
        Ok(u32::from_le_bytes(four.try_into()?))
    };
    ensure!(number(0)? == MAGIC, "magic number {:#x}", number(0)?);
    let count = usize::try_from(number(1)?)?;
    let truncation_block = usize::try_from(number(2)?)?;
    let header = if count == 0 { 12 } else { (12 + 4 * count).next_multiple_of(BLOCK) };
    ensure!(bytes.len() == header + count * BLOCK, "{} bytes for {count} blocks", bytes.len());
    let mut blocks = BTreeMap::new();
    for (place, content) in bytes[header..].chunks_exact(BLOCK).enumerate() {
        blocks.insert(usize::try_from(number(3 + place)?)?, content.to_vec());
    }
    Ok(Incremental { truncation_block, blocks })
}
