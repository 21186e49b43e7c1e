//! Clusters that differ in one thing only: how many files their bytes are in.
//!
//! The files are put into `template1`'s directory while no server runs, named like relations that no catalogue
//! knows and filled with new (zero) pages. A server sends whatever lies there: the stream, the manifest and the
//! client's work are those of as many relations. Tables would take minutes to make and fill catalogues besides, so
//! that the clusters differed in more than the number of files.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use pgstrata::postmaster::{Cluster, InitOptions, ServerProgram};

use crate::cluster;
use crate::place::Place;

/// PostgreSQL's usual page, the content of one of the many files.
const PAGE: u64 = 8192;
/// Beyond all object identifiers that a young cluster gives out.
const FIRST_NAME: u64 = 1_000_000_000;
/// The directory of `template1`, whose identifier is fixed (`Template1DbOid` in pg_database.h).
const TEMPLATE1: &str = "base/1";

/// The cluster in `place` with `count` files more than an empty one, of `pages` pages each.
pub(crate) fn cluster(
    server: &ServerProgram,
    place: &Place,
    count: u32,
    pages: u64,
    rebuild: bool,
) -> anyhow::Result<Cluster> {
    let most = u64::from(count) * pages * PAGE + 500_000_000;
    cluster::kept(server, place, rebuild, most, |data| {
        eprintln!("pgstrata-bench: making a cluster with {count} more files in {}", data.display());
        Cluster::init(server, data, &InitOptions::default())?;
        fill(&data.join(TEMPLATE1), count, pages)
    })?;
    place.require_space(most)?;
    // Gives the new files to the server's account as well.
    Ok(Cluster::from_backup(server, &place.data())?)
}

fn fill(dir: &Path, count: u32, pages: u64) -> anyhow::Result<()> {
    let page = vec![0; usize::try_from(PAGE).context("a page fits into memory")?];
    for number in 0..u64::from(count) {
        let path = dir.join((FIRST_NAME + number).to_string());
        let write = || {
            let mut file = File::create_new(&path)?;
            (0..pages).try_for_each(|_| file.write_all(&page))
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    let found = fs::metadata(dir.join(FIRST_NAME.to_string())).map_or(0, |meta| meta.len());
    anyhow::ensure!(found == pages * PAGE, "{}: a file has {found} bytes", dir.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{self, Contents};

    #[test]
    fn files_are_as_many_and_as_large_as_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), 3, 2).unwrap();
        assert_eq!(tree::contents(dir.path()).unwrap(), Contents { files: 3, bytes: 3 * 2 * 8192 });
        assert!(dir.path().join("1000000002").is_file());
        assert!(fill(dir.path(), 1, 1).is_err(), "nothing is written over");
    }
}
