//! Proves the harness itself, on every version.

use std::time::Instant;

use pgstrata_tests as harness;

#[test]
fn every_version_starts_and_answers() {
    harness::each_major(|major| {
        let started = Instant::now();
        let source = harness::cluster(major).start();
        let version: u32 = source.sql().value("SHOW server_version_num");
        assert_eq!(version, source.program().version.0);
        eprintln!("  {} answers after {:?}", source.program(), started.elapsed());
    });
}
