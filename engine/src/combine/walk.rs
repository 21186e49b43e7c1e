//! Walks the last backup: makes the folders of the output, and deals out the files.
//!
//! Nothing is gathered: folders are read as they are walked, and files wait in a bounded queue. No link is followed but
//! those of tablespaces.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgstrata_protocol::incremental::NAME_PREFIX;
use rustix::fs::{AtFlags, Dir, FileType};

use super::observer::CombineProgress;
use super::run::Run;
use super::tablespaces::{Tablespace, oid};
use super::task::Task;
use crate::failure::Failure;
use crate::pipeline::Folder;
use crate::sink::HELD_CONTROL_FILE;
use crate::verify::Tree;

/// Folders in folders, at most: far more than PostgreSQL makes, and each is open while it is walked.
const DEPTH: usize = 128;
/// Files that are dealt out together.
const HAND: usize = 32;
/// The bytes that make a hand full: workers are to end at about the same time.
const HAND_BYTES: u64 = 4 << 20;
/// What an incremental file is counted as at least: it becomes longer than it is.
const INCREMENTAL_BYTES: u64 = 1 << 20;

const CONTROL_FILE: &[u8] = b"global/pg_control";
const TABLESPACES: &[u8] = b"pg_tblspc";

/// A walk under way.
pub(super) struct Walk<'a> {
    run: &'a Run<'a>,
    tree: Tree<'a>,
    hand: Vec<Task>,
    hand_bytes: u64,
    /// Folders that were made, for their syncs.
    pub(super) made: Vec<PathBuf>,
}

/// A folder of the last backup, and its counterpart.
#[derive(Clone)]
struct Here {
    /// Its path as manifests name it, empty for the data directory.
    path: Vec<u8>,
    /// Its path, for messages.
    shown: PathBuf,
    /// Its counterpart; none in a dry run.
    to: Option<Arc<Folder>>,
    /// Whether it belongs to a tablespace.
    in_tablespace: bool,
}

impl Here {
    fn below(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path, &b"/"[..], name].concat() }
    }

    /// Whether what is called incremental here is incremental.
    fn has_incrementals(&self) -> bool {
        self.in_tablespace
            || self.path.starts_with(b"base/")
            || self.path == b"global"
            || self.path.starts_with(b"pg_tblspc/")
    }

    fn is_wal(&self) -> bool {
        !self.in_tablespace && (self.path == b"pg_wal" || self.path.starts_with(b"pg_wal/"))
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(run: &'a Run<'a>) -> Self {
        let tree = Tree::new(run.chain.last().folder.as_fd());
        Self { run, tree, hand: Vec::new(), hand_bytes: 0, made: Vec::new() }
    }

    /// Walks everything that is not in a tablespace. `to` is the output's folder.
    pub(super) fn data_directory(&mut self, to: Option<&Arc<Folder>>) -> Result<(), Failure> {
        let shown = self.run.chain.last().path.clone();
        self.tell(|| format!("processing backup directory \"{}\"", shown.display()));
        self.folder(&Here { path: Vec::new(), shown, to: to.cloned(), in_tablespace: false }, 0)
    }

    /// Walks a tablespace. `base` is the output's folder.
    pub(super) fn tablespace(
        &mut self,
        tablespace: &Tablespace,
        base: Option<&Arc<Folder>>,
    ) -> Result<(), Failure> {
        self.tell(|| format!("processing tablespace directory \"{}\"", tablespace.from.display()));
        let link = self.run.config.output.join("pg_tblspc").join(tablespace.oid.to_string());
        let (link, place) = (link.display(), tablespace.to.display());
        let verb = if base.is_none() { "would create" } else { "creating" };
        self.tell(|| match tablespace.in_place {
            true => format!("{verb} directory \"{place}\""),
            false => format!("{verb} symbolic link from \"{link}\" to \"{place}\""),
        });
        let to = match base {
            None => None,
            Some(base) => Some(self.place(tablespace, base)?),
        };
        let path = [TABLESPACES, b"/", tablespace.name.as_bytes()].concat();
        self.folder(&Here { path, shown: tablespace.from.clone(), to, in_tablespace: true }, 0)?;
        Ok(())
    }

    /// Makes the folder of a tablespace, or the link to it.
    fn place(&mut self, tablespace: &Tablespace, base: &Arc<Folder>) -> Result<Arc<Folder>, Failure> {
        let parent = base.descend(TABLESPACES)?;
        let name = OsStr::new(&tablespace.name);
        if tablespace.in_place {
            return self.make(&parent, name);
        }
        rustix::fs::symlinkat(&tablespace.to, &parent.handle, tablespace.oid.to_string()).map_err(
            |error| {
                let link = parent.path.join(tablespace.oid.to_string());
                Failure::Target(format!(
                    "could not create symbolic link from \"{}\" to \"{}\": {error}",
                    link.display(),
                    tablespace.to.display()
                ))
            },
        )?;
        self.made.push(tablespace.to.clone());
        Folder::open(&tablespace.to)
    }

    fn make(&mut self, parent: &Arc<Folder>, name: &OsStr) -> Result<Arc<Folder>, Failure> {
        let path = parent.path.join(name);
        if !parent.make(name, self.run.folder_mode)? {
            return Err(Failure::Target(format!(
                "could not create directory \"{}\": it is there",
                path.display()
            )));
        }
        self.made.push(path);
        parent.descend(name.as_bytes())
    }

    /// Deals out what is left in the hand.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        if self.hand.is_empty() {
            return Ok(());
        }
        self.hand_bytes = 0;
        self.run.jobs.deal(std::mem::take(&mut self.hand))
    }

    fn tell(&self, text: impl FnOnce() -> String) {
        if self.run.observer.wants_details() {
            self.run.observer.detail(&text());
        }
    }

    fn folder(&mut self, here: &Here, depth: usize) -> Result<(), Failure> {
        if depth > DEPTH {
            return Err(Failure::Target(format!(
                "directory \"{}\" lies in {DEPTH} others, expected no such depth in a backup",
                here.shown.display()
            )));
        }
        let failed = |error: std::io::Error| Failure::disk("open directory", &here.shown, error);
        let opened = self.tree.open_folder(&here.path).map_err(failed)?;
        for entry in Dir::read_from(&opened).map_err(|error| failed(error.into()))? {
            if self.run.stop.is_thrown() {
                return Err(Failure::Stopped);
            }
            let entry = entry.map_err(|error| Failure::disk("read directory", &here.shown, error))?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                self.entry(here, &opened, name, depth)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, here: &Here, opened: &impl AsFd, name: &CStr, depth: usize) -> Result<(), Failure> {
        let bytes = name.to_bytes();
        let shown = here.shown.join(OsStr::from_bytes(bytes));
        let stat = rustix::fs::statat(opened, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Failure::disk("stat file", &shown, error))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_link_or_folder = matches!(kind, FileType::Symlink | FileType::Directory);
        if !here.in_tablespace && here.path == TABLESPACES && is_link_or_folder && oid(bytes).is_some() {
            // Walked as a tablespace.
            return Ok(());
        }
        match kind {
            FileType::Directory => {
                let path = here.below(bytes);
                let verb = if here.to.is_some() { "creating" } else { "would create" };
                self.tell(|| format!("{verb} directory \"{}\"", self.run.shown(&path).display()));
                let to = match &here.to {
                    None => None,
                    Some(to) => Some(self.make(to, OsStr::from_bytes(bytes))?),
                };
                self.folder(&Here { path, shown, to, in_tablespace: here.in_tablespace }, depth + 1)
            }
            FileType::RegularFile => self.file(here, bytes, u64::try_from(stat.st_size).unwrap_or(0)),
            FileType::Symlink => {
                self.run.observer.warning(&format!("skipping symbolic link \"{}\"", shown.display()));
                Ok(())
            }
            _ => {
                self.run.observer.warning(&format!("skipping special file \"{}\"", shown.display()));
                Ok(())
            }
        }
    }

    fn file(&mut self, here: &Here, name: &[u8], size: u64) -> Result<(), Failure> {
        if here.path.is_empty() && matches!(name, b"backup_label" | b"backup_manifest") {
            // Made anew.
            return Ok(());
        }
        let of = name.strip_prefix(NAME_PREFIX).filter(|_| here.has_incrementals());
        let (name, incremental) = (of.unwrap_or(name), of.is_some());
        if name.is_empty() {
            return Err(Failure::Verification(format!(
                "directory \"{}\" has an incremental file of no name",
                here.shown.display()
            )));
        }
        let path = here.below(name);
        let held = Path::new(HELD_CONTROL_FILE).file_name().unwrap_or_default();
        let name: OsString =
            if path == CONTROL_FILE { held.to_owned() } else { OsStr::from_bytes(name).to_owned() };
        CombineProgress::add(&self.run.progress.found, 1);
        self.hand.push(Task { path, incremental, summed: !here.is_wal(), folder: here.to.clone(), name });
        self.hand_bytes += if incremental { size.max(INCREMENTAL_BYTES) } else { size };
        if self.hand.len() >= HAND || self.hand_bytes >= HAND_BYTES { self.finish() } else { Ok(()) }
    }
}
