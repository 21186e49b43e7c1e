//! Proves the harness itself, on every version.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use pgstrata::postmaster::{Cluster, Shutdown};
use pgstrata_tests as harness;
use pgstrata_tests::{Source, Sql, Workload};

/// Copies a stopped source by `cp`, tablespaces and all.
fn copy_stopped(source: &Source, from: &Cluster) -> Cluster {
    let dir = source.dir("copy");
    let cp = |from: &Path, to: &Path| {
        assert!(Command::new("cp").args(["-a", "-T"]).args([from, to]).status().unwrap().success());
    };
    cp(from.data_dir(), &dir);
    for tablespace in source.tablespaces() {
        let Some(location) = &tablespace.location else { continue };
        let (moved, link) =
            (location.with_extension("copy"), dir.join(format!("pg_tblspc/{}", tablespace.oid)));
        cp(location, &moved);
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&moved, &link).unwrap();
    }
    Cluster::from_backup(from.program(), &dir).unwrap()
}

#[test]
fn every_version_loads_a_workload_and_stops() {
    harness::each_major(|major| {
        let started = Instant::now();
        let mut source = harness::cluster(major).with(Workload::small()).start();
        let version: u32 = source.sql().value("SHOW server_version_num");
        assert_eq!(version, source.program().version.0);
        let rows: u32 = source.sql().value("SELECT count(*) FROM data.texts");
        assert_eq!(rows, 2_000);
        eprintln!("  {} is loaded after {:?}", source.program(), started.elapsed());
        source.stop(Shutdown::Fast);
    });
}

#[test]
fn a_copy_of_a_stopped_source_compares_equal() {
    let workload = Workload::small().rows(20_000).in_place_tablespace().special_files();
    let mut source = harness::cluster(17).with(workload).start();
    let writer = source.writer(1);
    writer.wait_for(700);
    let ledger = writer.stop();
    let cluster = source.stop(Shutdown::Immediate);
    let copy = copy_stopped(&source, &cluster);
    for name in ["special.fifo", "special.to-file", "special.to-folder", "special.to-nothing"] {
        fs::remove_file(copy.data_dir().join(name)).unwrap();
    }
    source.restart(&cluster);
    let copy = copy.start(&[]).unwrap();
    let started = Instant::now();
    let comparison = harness::compare(&source, &copy);
    eprintln!("{comparison} after {:?}", started.elapsed());
    let sql = Sql::connect(&copy.conninfo()).unwrap();
    let started = Instant::now();
    assert_eq!(ledger.check(&sql, ledger.acknowledged()), ledger.acknowledged());
    eprintln!("{} transactions checked after {:?}", ledger.acknowledged(), started.elapsed());
}
