//! Presence and sizes: the manifest's files against those on disk.
//!
//! Both sides are tallied; where the tallies agree, so do the files. Where they do not, the buckets that differ
//! are gone through again, a bounded number of files at a time, to name what is missing, extra or resized.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use pgstrata_protocol::manifest::ManifestFile;

use super::problem::Problem;
use super::run::Run;
use super::tally::Tally;
use super::walk::walk;
use super::{MANIFEST_TMP, ManifestFacts};
use crate::failure::Failure;
use crate::sink::HELD_CONTROL_FILE;

/// Files of the manifest that are looked at in one round. An entry takes some 50 bytes.
pub(super) const ROUND: u64 = 250_000;

/// What the manifest says of a file in a bucket that differs.
struct Listed {
    size: u64,
    on_disk: bool,
}

/// Compares, and reports every difference.
pub(super) fn check(run: &Run<'_>, facts: &ManifestFacts) -> Result<(), Failure> {
    let disk = Tally::new();
    let count = |path: &[u8], size: u64| {
        run.progress.files_seen.fetch_add(1, Ordering::Relaxed);
        disk.add(&run.keys, path, size);
        Ok(())
    };
    walk(run, &count, &|problem| run.report(problem))?;
    let before = run.problems.count();
    let rounds = facts.tally.differing(&disk, ROUND);
    for round in &rounds {
        resolve(run, facts, round)?;
    }
    // What was suppressed explains a difference too, and it was reported with its own reason.
    if !rounds.is_empty() && run.problems.count() == before && run.nothing_suppressed() {
        run.report(Problem::Changing)?;
    }
    Ok(())
}

fn resolve(run: &Run<'_>, facts: &ManifestFacts, buckets: &[usize]) -> Result<(), Failure> {
    let in_round = |path: &[u8]| {
        let fingerprint = run.keys.fingerprint(path);
        buckets.binary_search(&fingerprint.bucket).is_ok().then_some(fingerprint.identity)
    };
    let mut listed: HashMap<u128, Listed> = HashMap::new();
    run.read_manifest_again(facts, &mut |file: ManifestFile| {
        let Some(identity) = in_round(&file.path) else { return Ok(()) };
        match listed.insert(identity, Listed { size: file.size, on_disk: false }) {
            None => Ok(()),
            Some(_) => run.report(Problem::Duplicate { path: file.path }),
        }
    })?;

    let listed = Mutex::new(listed);
    let compare = |path: &[u8], found: u64| {
        let Some(identity) = in_round(path) else { return Ok(()) };
        let expected = match listed.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&identity) {
            Some(file) => {
                file.on_disk = true;
                Some(file.size)
            }
            None => None,
        };
        match expected {
            Some(expected) if expected == found => Ok(()),
            Some(expected) => run.report(Problem::Size { path: path.to_vec(), found, expected }),
            None if is_leftover(path) => run.report(Problem::Unfinished { path: path.to_vec() }),
            None => run.report(Problem::Extra { path: path.to_vec() }),
        }
    };
    // What is no file was reported by the first walk.
    walk(run, &compare, &|_| Ok(()))?;

    let listed = listed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if listed.values().all(|file| file.on_disk) {
        return Ok(());
    }
    run.read_manifest_again(facts, &mut |file: ManifestFile| {
        let missing = in_round(&file.path)
            .and_then(|identity| listed.get(&identity))
            .is_some_and(|listed| !listed.on_disk && !run.is_suppressed(&file.path));
        if missing { run.report(Problem::Missing { path: file.path }) } else { Ok(()) }
    })
}

/// Files that exist only until a backup is complete.
pub(super) fn is_leftover(path: &[u8]) -> bool {
    path == MANIFEST_TMP.as_bytes() || path == HELD_CONTROL_FILE.as_bytes()
}
