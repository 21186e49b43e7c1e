//! The folders of a restored cluster: the data directory, mapped tablespaces, and what lies in them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::basebackup::{Claims, Held};
use crate::failure::Failure;
use crate::pipeline::Folder;
use crate::repository::{Manifest, RepositoryError, TablespaceSummary, Tree, tablespace_of};

const CONTROL_FILE: &[u8] = b"global/pg_control";
const MANIFEST: &[u8] = b"backup_manifest";

/// Where everything goes.
#[derive(Debug)]
pub(super) struct Target {
    base: Arc<Folder>,
    /// Where the files that complete a cluster are written until it is complete.
    pub(super) held: Held,
    /// Tablespaces outside of the data directory, by OID.
    tablespaces: HashMap<u32, Arc<Folder>>,
    /// Folders that were made, for their syncs.
    pub(super) made: Vec<PathBuf>,
}

impl Target {
    /// Claims and makes all folders and links.
    pub(super) fn make(
        claims: &mut Claims,
        manifest: &Manifest,
        path: &Path,
        mapping: &[(PathBuf, PathBuf)],
    ) -> Result<Self, Failure> {
        let mode = manifest.summary.folder_mode & 0o777;
        let places = places(&manifest.summary.tablespaces, mapping)?;
        check_apart(path, &places)?;
        let held = look_through(manifest)?;
        claims.claim(path, mode)?;
        let base = Folder::open(path)?;
        let mut target = Target { base, held, tablespaces: HashMap::new(), made: Vec::new() };
        for (oid, place) in &places {
            if let Some(place) = place {
                claims.claim(place, mode)?;
                target.tablespaces.insert(*oid, Folder::open(place)?);
                target.made.push(place.clone());
            }
        }
        manifest.each_folder(|folder| {
            let (parent, name) = target.place(&folder.path)?;
            // A path that a link of ours leads away from cannot come twice as anything else.
            if !parent.make(&name, folder.mode)? {
                let what = format!("folder \"{}\" comes twice", folder.path.escape_ascii());
                return Err(RepositoryError::damaged(manifest.object().name(), what).into());
            }
            target.made.push(parent.path.join(&name));
            Ok(())
        })?;
        let links = target.base.path.join("pg_tblspc");
        for (oid, place) in &places {
            let name = oid.to_string();
            let made = match place {
                Some(place) => {
                    rustix::fs::symlinkat(place, &target.base.descend(b"pg_tblspc")?.handle, &name)
                        .map_err(|error| Failure::disk("create link", links.join(&name), error))
                }
                None => Ok(()),
            };
            made?;
        }
        Ok(target)
    }

    /// Where a file is written until the restore is complete.
    pub(super) fn held<'p>(&'p self, path: &'p [u8]) -> &'p [u8] {
        match path {
            CONTROL_FILE => self.held.control.as_bytes(),
            MANIFEST => self.held.manifest.as_bytes(),
            path => path,
        }
    }

    /// The folder that holds `path`, and the name within.
    pub(super) fn place(&self, path: &[u8]) -> Result<(Arc<Folder>, OsString), Failure> {
        let (root, path) = match self.tablespace_of(path) {
            Some((root, path)) => (root, path),
            None => (&self.base, path),
        };
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&[][..], path),
        };
        Ok((root.descend(parent)?, OsStr::from_bytes(name).to_owned()))
    }

    fn tablespace_of<'p>(&self, path: &'p [u8]) -> Option<(&Arc<Folder>, &'p [u8])> {
        let (oid, below) = tablespace_of(path)?;
        Some((self.tablespaces.get(&oid)?, below))
    }
}

/// Reads all paths before anything is made, and finds names for what is held back that no other path has: a data
/// directory may hold whatever a backup that died in it has left.
fn look_through(manifest: &Manifest) -> Result<Held, Failure> {
    let mut held = Held::default();
    let mut tree = Tree::of(manifest)?;
    let mut taken = [tree.has_folder(held.manifest.as_bytes()), tree.has_folder(held.control.as_bytes())];
    manifest.each_file(|file| {
        taken[0] |= file.path == held.manifest.as_bytes();
        taken[1] |= file.path == held.control.as_bytes();
        tree.file(&file.path)
    })?;
    tree.finish()?;
    // Chance enough that nobody can have foreseen it.
    let other = |name: &mut String| -> Result<(), Failure> {
        *name += &format!(".{:032x}", u128::from_le_bytes(crate::repository::random()?));
        Ok(())
    };
    if taken[0] {
        other(&mut held.manifest)?;
    }
    if taken[1] {
        other(&mut held.control)?;
    }
    Ok(held)
}

/// No two of these may be one folder.
fn check_apart(target: &Path, places: &[(u32, Option<PathBuf>)]) -> Result<(), Failure> {
    let mut seen = HashMap::from([(resolved(target), "the data directory".to_owned())]);
    for (oid, place) in places {
        let Some(place) = place else { continue };
        let what = format!("tablespace {oid}");
        if let Some(other) = seen.insert(resolved(place), what.clone()) {
            return Err(Failure::Target(format!(
                "{other} and {what} would both go to \"{}\"\n\
                 HINT: give each a folder of its own with --tablespace-mapping; nothing was changed.",
                place.display()
            )));
        }
    }
    Ok(())
}

/// A path without links, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for above in path.ancestors() {
        if let (Ok(there), Ok(rest)) = (above.canonicalize(), path.strip_prefix(above)) {
            // Joined to nothing it would end in a slash, which paths compare without.
            return there.join(rest);
        }
    }
    path
}

/// Where each tablespace goes; none for those that lie in the data directory.
fn places(
    tablespaces: &[TablespaceSummary],
    mapping: &[(PathBuf, PathBuf)],
) -> Result<Vec<(u32, Option<PathBuf>)>, Failure> {
    let location = |tablespace: &TablespaceSummary| PathBuf::from(OsStr::from_bytes(&tablespace.location));
    for (old, _) in mapping {
        if !tablespaces.iter().any(|tablespace| location(tablespace) == *old) {
            let known: Vec<_> = tablespaces.iter().map(|one| location(one).display().to_string()).collect();
            return Err(Failure::Target(format!(
                "no tablespace of this backup lay in \"{}\"\nHINT: those that did: {}.",
                old.display(),
                if known.is_empty() { "none".into() } else { known.join(", ") }
            )));
        }
    }
    let place = |tablespace: &TablespaceSummary| {
        let old = location(tablespace);
        if old.is_relative() {
            return Ok((tablespace.oid, None));
        }
        let mapped = mapping.iter().find(|(from, _)| *from == old).map(|(_, to)| to.clone());
        let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        match mapped {
            Some(place) => Ok((tablespace.oid, Some(place))),
            None if old.components().all(plain) => Ok((tablespace.oid, Some(old))),
            None => Err(Failure::Target(format!(
                "tablespace {} lay in \"{}\", expected a path without \"..\"\n\
                 HINT: say where it is to go with --tablespace-mapping.",
                tablespace.oid,
                old.display()
            ))),
        }
    };
    tablespaces.iter().map(place).collect()
}
