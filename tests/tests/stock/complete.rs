//! The stock installations that everything here is compared with are what they are taken for.

use std::fs;

use pgstrata_tests as harness;
use pgstrata_tests::{Invocation, Workload};

#[test]
fn complete_installations_compress_and_find_their_own_siblings() {
    for major in [15, 17, 18] {
        let Some(stock) = harness::complete(major) else { continue };
        let source = harness::cluster(major).complete(stock).with(Workload::empty().rows(100)).start();
        let copy = source.dir("copy");
        let line = ["-c", "fast", "-Z", "server-zstd", "-X", "stream", "-d", &source.conninfo(), "-D"];
        let taken = Invocation::new(&stock.tool("pg_basebackup"), line).arg(&copy).run();
        assert!(taken.expect_success().stderr.is_empty(), "{taken}");
        // It runs pg_waldump of its own version.
        let verified = Invocation::new(&stock.tool("pg_verifybackup"), [&copy]).run();
        assert_eq!(verified.expect_success().stdout_text(), "backup successfully verified\n", "{verified}");

        let archive = source.dir("archive");
        let line = ["-c", "fast", "-Z", "lz4", "-Ft", "-X", "none", "-d", &source.conninfo(), "-D"];
        Invocation::new(&stock.tool("pg_basebackup"), line).arg(&archive).run().expect_success();
        assert!(fs::metadata(archive.join("base.tar.lz4")).unwrap().len() > 0);
        if major >= 17 {
            let combiner = Invocation::new(&stock.tool("pg_combinebackup"), ["--version"]).run();
            let version = format!("pg_combinebackup (PostgreSQL) {major}.");
            assert!(combiner.expect_success().stdout_text().starts_with(&version), "{combiner}");
        }
    }
}
