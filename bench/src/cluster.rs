//! The measured cluster: made once, kept between runs, started the same way each time.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use pgstrata::postmaster::{Cluster, InitOptions, Server, ServerProgram, Shutdown};
use serde_json::json;

use crate::arguments::Over;
use crate::output::giga;
use crate::place::Place;
use crate::{cache, dataset, reach, sql, tree};

/// The settings that are measured with: PostgreSQL's own where they touch safety, and nothing that begins to work by
/// itself in the middle of a run.
const MEASURE_SETTINGS: [(&str, &str); 10] = [
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("synchronous_commit", "on"),
    ("wal_level", "replica"),
    ("max_wal_senders", "10"),
    ("shared_buffers", "256MB"),
    ("autovacuum", "off"),
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "1h"),
    ("log_checkpoints", "off"),
];

/// The name of the place of a comparison's cluster: another version, size or content is another place.
pub(crate) fn key(server: &ServerProgram, bytes: u64) -> String {
    format!("pg{}-{}mb-r{}", server.version, bytes / 1_000_000, dataset::REVISION)
}

/// The comparison's cluster at rest: the one that is kept in `place`, or a new one.
pub(crate) fn compared(
    server: &ServerProgram,
    place: &Place,
    bytes: u64,
    rebuild: bool,
) -> anyhow::Result<Cluster> {
    // Indexes may overshoot by a table; WAL and the files to load from come on top.
    let most = bytes / 8 * 9 + 500_000_000;
    kept(server, place, rebuild, most, |data| {
        eprintln!("pgstrata-bench: making a cluster of {:.1} GB in {}", giga(bytes), data.display());
        let cluster = Cluster::init(server, data, &InitOptions::default())?;
        let running = cluster.start(&dataset::LOAD_SETTINGS)?;
        dataset::load(&running, place, bytes)?;
        running.stop(Shutdown::Fast)?;
        Ok(())
    })?;
    place.require_space(most)?;
    Ok(Cluster::from_backup(server, &place.data())?)
}

/// Makes a data directory unless a complete one is kept in `place`. `most` is the space that it may take.
pub(crate) fn kept(
    server: &ServerProgram,
    place: &Place,
    rebuild: bool,
    most: u64,
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (data, marker) = (place.data(), place.marker());
    if marker.is_file() && !rebuild {
        return Ok(());
    }
    match fs::remove_file(&marker) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", marker.display()));
        }
        _ => tree::remove(&data)?,
    }
    place.require_space(most)?;
    let began = Instant::now();
    make(&data)?;
    cache::settle(place.dir())?;
    let contents = tree::contents(&data)?;
    let seconds = began.elapsed().as_secs_f64();
    let facts = json!({
        "server": server.to_string(),
        "files": contents.files,
        "bytes": contents.bytes,
        "seconds_to_make": seconds,
    });
    // Only now, when all that it promises is on disk.
    File::create(&marker)
        .and_then(|mut file| writeln!(file, "{facts:#}").and_then(|()| file.sync_all()))
        .with_context(|| format!("cannot write {}", marker.display()))?;
    eprintln!(
        "pgstrata-bench: made {:.2} GB in {} files in {seconds:.0} s",
        giga(contents.bytes),
        contents.files
    );
    Ok(())
}

/// Starts a cluster for measuring, with everything that could be written later already written.
pub(crate) fn start(cluster: &Cluster, place: &Place) -> anyhow::Result<Server> {
    start_for(cluster, place, Over::Socket)
}

/// The same, for clients that come that way.
pub(crate) fn start_for(cluster: &Cluster, place: &Place, over: Over) -> anyhow::Result<Server> {
    let more = reach::settings(over, cluster, place)?;
    let more: Vec<_> = more.iter().map(|(name, value)| (*name, value.as_str())).collect();
    start_with(cluster, place, &more)
}

/// The same, with further settings.
pub(crate) fn start_with(cluster: &Cluster, place: &Place, more: &[(&str, &str)]) -> anyhow::Result<Server> {
    let settings = [&MEASURE_SETTINGS[..], more].concat();
    let server = cluster.start(&settings)?;
    let mut client = sql::connect(&server)?;
    sql::execute(&mut client, "CHECKPOINT")?;
    client.close();
    cache::settle(place.dir())?;
    Ok(server)
}
