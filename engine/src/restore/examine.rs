//! What a restore will meet, found out before anything is changed: all of it, so that it is told at once.
//!
//! Invariant: nothing is written here.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::config::{Onto, RestoreConfig};
use super::databases::{Selection, database_of};
use super::marker::Marker;
use super::occupied::{Found, check_no_server, mounted_below};
use super::owners::Owners;
use super::space::{Needs, Space};
use super::target::Places;
use crate::basebackup::Held;
use crate::failure::Failure;
use crate::repository::{BackupSummary, Manifest, PathShare, RepositoryError, TablespaceSummary, Tree};

/// A restore that may begin.
pub(super) struct Plan {
    /// What the data directory holds.
    pub(super) found: Found,
    pub(super) places: Places,
    pub(super) held: Held,
    pub(super) tree: Tree,
    pub(super) selection: Selection,
    pub(super) owners: Owners,
    /// Each file system, with what goes there.
    pub(super) space: Vec<Space>,
    /// Files of databases that nobody asked for.
    pub(super) omitted: u64,
}

impl Plan {
    /// The mark of this restore.
    pub(super) fn marker(&self, summary: &BackupSummary) -> Marker {
        Marker {
            cluster: summary.cluster.clone(),
            backup: summary.backup.clone(),
            system_identifier: summary.system_identifier.to_string(),
            folders: self.places.outside().map(|(_, place)| place.to_owned()).collect(),
        }
    }
}

/// Looks at everything. What stands in the way goes to `problems`, each with its hint.
///
/// # Errors
/// Where the backup is damaged, or something cannot be looked at.
pub(super) fn examine(
    config: &RestoreConfig,
    manifest: &Manifest,
    problems: &mut Vec<String>,
) -> Result<Plan, Failure> {
    let summary = &manifest.summary;
    let options = &config.options;
    let places = Places {
        tablespaces: places(&summary.tablespaces, &config.tablespace_mapping, problems),
        wal: options.wal_directory.clone(),
    };
    check_apart(config, &places, problems);
    let found = note(Found::at(&config.target), problems).unwrap_or(Found::Other);
    check_found(config, summary, &found, problems);
    if !found.is_nothing() && options.onto != Onto::Empty {
        note(check_no_server(&config.target), problems);
        let mounted = mounted_below(&config.target)
            .map_err(|error| Failure::disk("look through", &config.target, error));
        if let Some(path) = note(mounted, problems).flatten() {
            problems.push(format!(
                "another file system is mounted at \"{}\"\n\
                 HINT: unmount it, or empty the data directory and restore into it without --delta.",
                path.display()
            ));
        }
    }
    check_outside(config, &found, &places, problems);

    let mut needs = Needs::default();
    let (held, tree, folders) = look_through(manifest, &mut needs)?;
    let selection = Selection::of(&options.databases, summary, &folders, problems);
    let mut omitted = 0;
    if options.databases.is_empty() {
        // What was counted counts.
    } else {
        needs = Needs::default();
        manifest.each_file(|file| {
            if selection.omits(&file.path) {
                omitted += 1;
            } else {
                needs.add(&file);
            }
            Ok(())
        })?;
    }
    let owners = Owners::of(summary, options.owner.as_ref(), problems);
    let space = needs.measure(&config.target, &places, !found.is_nothing())?;
    for space in space.iter().filter(|space| space.is_short()) {
        problems.push(space.to_string());
    }
    Ok(Plan { found, places, held, tree, selection, owners, space, omitted })
}

/// What was found out, or the problem with it.
fn note<T>(outcome: Result<T, Failure>, problems: &mut Vec<String>) -> Option<T> {
    outcome.map_err(|failure| problems.push(failure.to_string())).ok()
}

/// All problems as one failure.
pub(super) fn refusal(problems: &[String]) -> Result<(), Failure> {
    match problems {
        [] => Ok(()),
        [one] => Err(Failure::Target(one.clone())),
        _ => {
            let mut text = format!("{} things stand in the way of this restore:", problems.len());
            for problem in problems {
                text += &format!("\n{problem}");
            }
            Err(Failure::Target(text))
        }
    }
}

/// Every pack that maps name is there, and as long as it should be.
pub(super) fn check_packs(
    config: &RestoreConfig,
    manifest: &Manifest,
    problems: &mut Vec<String>,
) -> Result<(), Failure> {
    let listed = config.repository.store().list(&config.cluster.packs())?;
    let there: HashMap<_, _> = listed.into_iter().map(|entry| (entry.name, entry.length)).collect();
    for pack in manifest.packs.iter().filter(|pack| pack.needed) {
        let name = manifest.pack_name(pack);
        let what = match there.get(&pack.id.to_string()).copied() {
            Some(length) if length == pack.length => continue,
            Some(length) => format!("found {length} bytes, expected {}", pack.length),
            None => "it is missing".to_owned(),
        };
        problems.push(RepositoryError::damaged(name, what).to_string());
    }
    Ok(())
}

/// Whether this restore may go where something is.
fn check_found(config: &RestoreConfig, summary: &BackupSummary, found: &Found, problems: &mut Vec<String>) {
    let shown = config.target.display();
    let own = summary.system_identifier;
    let other_system = |system: Option<u64>| match system {
        Some(system) if system == own => None,
        _ if config.options.other_cluster => None,
        Some(system) => Some(format!(
            "\"{shown}\" is the data directory of system {system}, and this backup is of system {own}\n\
             HINT: check --into; with --overwrite-other-cluster that cluster is lost. Nothing was changed."
        )),
        None => Some(format!(
            "\"{shown}\" is a data directory without a control file, expected one of system {own}\n\
             HINT: check --into; with --overwrite-other-cluster what is there is lost. Nothing was changed."
        )),
    };
    let problem = match (config.options.onto, found) {
        (_, Found::Nothing | Found::Empty) => None,
        (Onto::Empty, Found::Restore(marker, false)) => Some(format!(
            "directory \"{shown}\" exists but is not empty: it holds a restore of backup {} that did not end\n\
             HINT: go on with --resume, or begin anew with --delta; nothing was changed.",
            marker.backup
        )),
        (Onto::Empty, Found::Other) => Some(format!(
            "directory \"{shown}\" exists but is not empty\n\
             HINT: remove or empty it, or name another folder; nothing was changed."
        )),
        (Onto::Empty, _) => Some(format!(
            "directory \"{shown}\" exists but is not empty: it is a data directory\n\
             HINT: with --delta it becomes the backup's, and what is right there already stays; nothing was changed."
        )),
        (_, Found::Other) => Some(format!(
            "\"{shown}\" is no data directory: it has no \"PG_VERSION\"\n\
             HINT: check --into, or empty the folder; nothing was changed."
        )),
        (Onto::Old, Found::Cluster(system)) => other_system(*system),
        (Onto::Old, Found::Restore(marker, _)) => other_system(marker.system_identifier.parse().ok()),
        (Onto::Interrupted, Found::Restore(marker, false)) => {
            let same = marker.backup == summary.backup && marker.cluster == summary.cluster;
            (!same).then(|| {
                format!(
                    "\"{shown}\" holds a restore of backup {} of cluster \"{}\" that did not end, and this is \
                     backup {}\nHINT: leave --backup out to go on with it, or begin anew with --delta.",
                    marker.backup, marker.cluster, summary.backup
                )
            })
        }
        (Onto::Interrupted, _) => Some(format!(
            "\"{shown}\" is a data directory, and no restore is under way there\n\
             HINT: with --delta it becomes the backup's, and what is right there already stays; nothing was changed."
        )),
    };
    problems.extend(problem);
}

/// Folders that links are to lead to: nothing in them, or what the old data directory's own link leads to.
fn check_outside(config: &RestoreConfig, found: &Found, places: &Places, problems: &mut Vec<String>) {
    let own = |path: &str, place: &Path| {
        let link = config.target.join(path);
        let leads = link.is_symlink().then(|| link.canonicalize().ok()).flatten();
        let marked =
            matches!(found, Found::Restore(marker, _) if marker.folders.iter().any(|one| one == place));
        !found.is_nothing() && (marked || leads.is_some_and(|leads| leads == resolved(place)))
    };
    let tablespaces = places.tablespaces.iter();
    let tablespaces = tablespaces.filter_map(|(oid, place)| {
        Some((format!("pg_tblspc/{oid}"), format!("tablespace {oid}"), place.as_deref()?))
    });
    let wal = places.wal.as_deref().map(|wal| ("pg_wal".to_owned(), "the WAL".to_owned(), wal));
    for (link, what, place) in tablespaces.chain(wal) {
        let Some(found) = note(Found::at(place), problems) else { continue };
        if !found.is_nothing() && !own(&link, place) {
            problems.push(format!(
                "directory \"{}\" exists but is not empty, and {what} is to go there\n\
                 HINT: remove or empty it, or name another folder with {}; nothing was changed.",
                place.display(),
                if link == "pg_wal" { "--waldir" } else { "--tablespace-mapping" }
            ));
        }
    }
    let wal = config.target.join("pg_wal");
    if !found.is_nothing() && places.wal.is_none() && wal.is_symlink() {
        let leads = wal.read_link().unwrap_or_default();
        problems.push(format!(
            "\"{}\" is a link to \"{}\", and no link is followed unasked\n\
             HINT: name that folder with --waldir to keep the WAL there, or remove the link.",
            wal.display(),
            leads.display()
        ));
    }
}

/// No two of these may be one folder, or lie in one another; nor may the repository lie in one.
fn check_apart(config: &RestoreConfig, places: &Places, problems: &mut Vec<String>) {
    let mut all = vec![("the data directory".to_owned(), resolved(&config.target), config.target.as_path())];
    all.extend(places.outside().map(|(what, place)| (what, resolved(place), place)));
    for (number, (what, place, shown)) in all.iter().enumerate() {
        for (other, there, _) in &all[..number] {
            if place == there {
                problems.push(format!(
                    "{other} and {what} would both go to \"{}\"\n\
                     HINT: give each a folder of its own with --tablespace-mapping; nothing was changed.",
                    shown.display()
                ));
            } else if place.starts_with(there) || there.starts_with(place) {
                let (inner, outer) = if place.starts_with(there) { (what, other) } else { (other, what) };
                problems.push(format!(
                    "{inner} would go into the folder of {outer}: \"{}\" and \"{}\"\n\
                     HINT: give each a folder of its own with --tablespace-mapping; nothing was changed.",
                    place.display(),
                    there.display()
                ));
            }
        }
        let repository = PathBuf::from(config.repository.store().address());
        if repository.is_absolute() && resolved(&repository).starts_with(place) {
            problems.push(format!(
                "the repository lies in \"{}\", where {what} is to go\n\
                 HINT: name another folder; nothing was changed.",
                shown.display()
            ));
        }
    }
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
    problems: &mut Vec<String>,
) -> Vec<(u32, Option<PathBuf>)> {
    let location = |tablespace: &TablespaceSummary| PathBuf::from(OsStr::from_bytes(&tablespace.location));
    for (old, _) in mapping {
        if !tablespaces.iter().any(|tablespace| location(tablespace) == *old) {
            let known: Vec<_> = tablespaces.iter().map(|one| location(one).display().to_string()).collect();
            problems.push(format!(
                "no tablespace of this backup lay in \"{}\"\nHINT: those that did: {}.",
                old.display(),
                if known.is_empty() { "none".into() } else { known.join(", ") }
            ));
        }
    }
    let mut place = |tablespace: &TablespaceSummary| {
        let old = location(tablespace);
        if old.is_relative() {
            return (tablespace.oid, None);
        }
        let mapped = mapping.iter().find(|(from, _)| *from == old).map(|(_, to)| to.clone());
        let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        if mapped.is_none() && !old.components().all(plain) {
            problems.push(format!(
                "tablespace {} lay in \"{}\", expected a path without \"..\"\n\
                 HINT: say where it is to go with --tablespace-mapping.",
                tablespace.oid,
                old.display()
            ));
        }
        (tablespace.oid, Some(mapped.unwrap_or(old)))
    };
    tablespaces.iter().map(&mut place).collect()
}

/// Reads all paths before anything is made, and finds names for what is held back that no other path has: a data
/// directory may hold whatever a backup that died in it has left. Also all folders of databases.
fn look_through(manifest: &Manifest, needs: &mut Needs) -> Result<(Held, Tree, HashSet<u32>), Failure> {
    let mut held = Held::default();
    let mut tree = Tree::of(manifest)?;
    let mut databases = HashSet::new();
    let mut taken = [tree.has_folder(held.manifest.as_bytes()), tree.has_folder(held.control.as_bytes())];
    let mut paths = PathShare::begin(manifest, 0);
    manifest.each_file(|file| {
        paths.add(&file.path);
        taken[0] |= file.path == held.manifest.as_bytes();
        taken[1] |= file.path == held.control.as_bytes();
        databases.extend(database_of(&file.path).map(|(oid, _)| oid));
        needs.add(&file);
        tree.file(&file.path)
    })?;
    tree.finish()?;
    paths.finish(manifest)?;
    PathShare::check_others(manifest)?;
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
    Ok((held, tree, databases))
}
