//! Backups that are laid over older ones: whatever happened between the two, what they hold is what the data directory held.

mod sample;

use std::fs;

use pgstrata_tests as harness;
use pgstrata_tests::{Workload, pgstrata};
use sample::Sample;

#[test]
fn only_changed_pages_are_stored() {
    let sample = Sample::start(15, Workload::empty().rows(200).large_table_mib(24));
    let first = sample.backup(&[]);
    assert_eq!(first["stored"]["changes"]["source"], "full", "{first}");
    let sql = sample.source.sql();
    sql.execute(
        "CREATE TABLE wide AS SELECT n, repeat('x', 900) AS t FROM generate_series(1, 20000) AS n;
         CREATE INDEX ON wide (n);
         VACUUM ANALYZE",
    );
    sample.backup(&["--full"]);
    sql.execute("UPDATE wide SET t = repeat('y', 900) WHERE n % 500 = 1");
    let changed = sample.backup(&["--changes", "pages"]);
    let number = |what: &str| changed["stored"]["changes"][what].as_u64().unwrap();
    eprintln!("{changed}");
    assert_eq!(changed["stored"]["changes"]["source"], "pages");
    assert!(number("changed_files") > 0 && number("unchanged_files") > 100, "{changed}");
    assert!(number("kept_bytes") > 16 << 20, "{changed}");
    sample.expect_same(&changed);
    // It stands alone: the one below it is removed.
    let folder = sample.repo.join("clusters/main/backups");
    let newest = changed["stored"]["backup"].as_str().unwrap();
    for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
        if !entry.file_name().to_str().unwrap().starts_with(newest) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    sample.command("verify").arg("--json").run().expect_success();
    let copy = sample.restore("copy");
    pgstrata(["verifybackup"]).arg(&copy).run().expect_success();
    harness::verify_backup(&copy, 15).expect_good();
    let server = sample.source.boot(&copy);
    harness::compare(&sample.source, &server);
    harness::amcheck(&server).unwrap();
}
