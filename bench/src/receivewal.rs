//! `compare receivewal`: pg_receivewal against pgstrata, the same options, the same server, the same disk.
//!
//! The WAL was written beforehand and lies in the server's `pg_wal`, held back by a slot; each run takes all of it
//! through a copy of that slot, into an empty folder, and ends at its end. What ours wrote is compared with the server's
//! own files, once a state of the cache, outside of the measured time.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use pgstrata::postmaster::{Cluster, InitOptions, Server, Shutdown};
use pgstrata_protocol::ServerVersion;

use crate::arguments::ReceivewalOptions;
use crate::cache::{self, Cache};
use crate::cluster;
use crate::compare::{Comparison, subject};
use crate::invocation::Invocation;
use crate::one_run;
use crate::output::giga;
use crate::pairs::{Contest, Run, Side};
use crate::place::Place;
use crate::reach;
use crate::sql;
use crate::tree::{self, Contents};

/// The slot that holds the WAL back, and its copy for a run.
const HOLDER: &str = "held";
const RUNNER: &str = "run";
/// The size of a segment in bytes, as initdb takes it unasked.
const SEGMENT: u64 = 16 << 20;
/// Settings of the server that writes the WAL.
const WRITE_SETTINGS: [(&str, &str); 6] = [
    ("fsync", "off"),
    ("wal_level", "replica"),
    ("autovacuum", "off"),
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "1h"),
    ("shared_buffers", "256MB"),
];
/// The first version whose slots say where their WAL begins.
const READS_SLOTS: ServerVersion = ServerVersion(150_000);

/// Sets up, measures and tells.
pub(crate) fn compare(options: &ReceivewalOptions) -> anyhow::Result<()> {
    let common = &options.compare.common;
    let comparison = Comparison::set_up_for(&options.compare, "wal-")?;
    let program = &comparison.peer.server;
    let Some(receiver) = program.companion("pg_receivewal").filter(|_| program.version >= READS_SLOTS) else {
        bail!(
            "{program} has no pg_receivewal that begins where its slot does, so there is nothing to compare with\n\
             HINT: install PostgreSQL 15 or newer, or name its bin directory with --pg-bin."
        );
    };
    let cluster = made(&comparison, options.compare.size_gb.0, common.rebuild)?;
    let server = cluster::start_for(&cluster, &comparison.place, options.over)?;
    let mut client = sql::connect(&server)?;
    let flushed = sql::number(&mut client, "SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint")?;
    let begun = sql::number(
        &mut client,
        &format!(
            "SELECT (restart_lsn - '0/0'::pg_lsn)::bigint FROM pg_replication_slots WHERE slot_name = '{HOLDER}'"
        ),
    )?;
    client.close();
    // Up to the last segment that is full: what lies behind it was written when the server started.
    let (first, last) = (begun / SEGMENT, flushed / SEGMENT);
    let end = last * SEGMENT;
    let conninfo = reach::conninfo(options.over, &server);
    let copy = comparison.place.copy();
    let arguments = || {
        let end = format!("{:X}/{:X}", (end - 1) >> 32, (end - 1) & 0xFFFF_FFFF);
        let words = ["-d", &conninfo, "-S", RUNNER, "-n", "-E", &end].map(OsString::from);
        let synchronous = options.synchronous.then(|| OsString::from("--synchronous"));
        let compress = options.compress.iter().map(|method| OsString::from(format!("--compress={method}")));
        let copy = [OsString::from("-D"), copy.clone().into_os_string()];
        words.into_iter().chain(synchronous).chain(compress).chain(copy)
    };
    let stock = Invocation::new(receiver).with(arguments());
    let ours = Invocation::new(&comparison.program.path)
        .with(["receivewal"])
        .with(arguments())
        .with(common.our_option.iter().cloned());
    let contents = Contents { files: last - first, bytes: (last - first) * SEGMENT };
    let subject = subject("receivewal", &stock, &ours, contents);
    let compares = options.compress.is_none();
    let mut contest =
        Receptions { server: &server, copy, stock, ours, segments: last - first, compares, compared: None };
    comparison.run(&subject, &mut contest, "pg_receivewal")?;
    server.stop(Shutdown::Fast)?;
    Ok(())
}

/// The cluster at rest whose slot holds back so many bytes of WAL.
fn made(comparison: &Comparison, bytes: u64, rebuild: bool) -> anyhow::Result<Cluster> {
    let (server, place): (_, &Place) = (&comparison.peer.server, &comparison.place);
    // The tables that the WAL tells of, the WAL, and a copy of it.
    let most = 3 * bytes + 500_000_000;
    cluster::kept(server, place, rebuild, most, |data| {
        eprintln!("pgstrata-bench: writing {:.1} GB of WAL in {}", giga(bytes), data.display());
        let cluster = Cluster::init(server, data, &InitOptions::default())?;
        let running = cluster.start(&WRITE_SETTINGS)?;
        let mut client = sql::connect(&running)?;
        sql::execute(
            &mut client,
            &format!("SELECT pg_switch_wal(); SELECT pg_create_physical_replication_slot('{HOLDER}', true)"),
        )?;
        sql::execute(&mut client, "CREATE TABLE filler (n bigint, x text)")?;
        let written = format!(
            "SELECT (pg_current_wal_lsn() - restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = '{HOLDER}'"
        );
        while sql::number(&mut client, &written)? < bytes {
            sql::execute(
                &mut client,
                "INSERT INTO filler SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 100000) AS n",
            )?;
        }
        sql::execute(&mut client, "SELECT pg_switch_wal()")?;
        client.close();
        running.stop(Shutdown::Fast)?;
        Ok(())
    })?;
    place.require_space(bytes / 8 * 9 + 500_000_000)?;
    Ok(Cluster::from_backup(server, &place.data())?)
}

struct Receptions<'a> {
    server: &'a Server,
    copy: PathBuf,
    stock: Invocation,
    ours: Invocation,
    segments: u64,
    /// Whether files can be compared as they are.
    compares: bool,
    /// The state of the cache in which files of ours were compared last.
    compared: Option<Cache>,
}

impl Contest for Receptions<'_> {
    fn prepare(&mut self, cache: Cache) -> anyhow::Result<()> {
        fs::create_dir_all(&self.copy).with_context(|| format!("cannot create {}", self.copy.display()))?;
        let mut client = sql::connect(self.server)?;
        sql::execute(
            &mut client,
            &format!("SELECT pg_copy_physical_replication_slot('{HOLDER}', '{RUNNER}')"),
        )?;
        client.close();
        cache::settle(&self.copy)?;
        cache.prepare(&self.server.data_dir().join("pg_wal"))
    }

    fn run(&mut self, side: Side, cache: Cache) -> anyhow::Result<Run> {
        let client = match side {
            Side::Stock => &self.stock,
            Side::Ours => &self.ours,
        };
        let run = one_run::run(client, Some(self.server), &self.copy)?;
        let whole = self.whole()?;
        ensure!(
            whole.len() as u64 >= self.segments,
            "{}: {} segments, expected {}",
            client.shown(),
            whole.len(),
            self.segments
        );
        if side == Side::Ours && self.compares && self.compared != Some(cache) {
            let theirs = self.server.data_dir().join("pg_wal");
            for name in whole {
                let same = fs::read(self.copy.join(&name))? == fs::read(theirs.join(&name))?;
                ensure!(same, "segment {} differs from the server's", name.display());
            }
            self.compared = Some(cache);
        }
        Ok(run)
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        let mut client = sql::connect(self.server)?;
        sql::execute(
            &mut client,
            &format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
                 WHERE slot_name = '{RUNNER}' AND active"
            ),
        )?;
        sql::execute(&mut client, &format!("SELECT pg_drop_replication_slot('{RUNNER}')"))?;
        client.close();
        tree::remove(&self.copy)?;
        cache::settle(self.copy.parent().context("a copy lies in a place")?)
    }
}

impl Receptions<'_> {
    /// The names of the segments that are whole.
    fn whole(&self) -> anyhow::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.copy)? {
            let name = entry?.file_name();
            if !name.as_encoded_bytes().ends_with(b".partial") {
                names.push(name);
            }
        }
        Ok(names)
    }
}
