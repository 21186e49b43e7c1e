//! Backups that are laid over older ones: whatever happened between the two, what they hold is what the data directory held.

mod sample;
mod workload;

use std::fs;
use std::process::Command;

use pgstrata::postmaster::Shutdown;
use pgstrata_tests as harness;
use pgstrata_tests::{Source, Workload, pgstrata};
use sample::{Sample, quiet};
use serde_json::Value;
use workload::Dice;

fn changes<'a>(summary: &'a Value, what: &str) -> &'a Value {
    &summary["stored"]["changes"][what]
}

fn number(summary: &Value, what: &str) -> u64 {
    changes(summary, what).as_u64().unwrap_or_else(|| panic!("no {what}: {summary}"))
}

/// The sources of change that a server of this version has.
fn sources(major: u32) -> &'static [&'static str] {
    if major >= 17 { &["server", "archive", "pages"] } else { &["archive", "pages"] }
}

/// Restores, boots and compares with the source.
fn expect_restored(sample: &Sample, cluster: &str, major: u32) {
    let copy = sample.restore_of(cluster, &format!("copy of {cluster}"));
    pgstrata(["verifybackup"]).arg(&copy).run().expect_success();
    harness::verify_backup(&copy, major).expect_good();
    let server = sample.source.boot(&copy);
    harness::compare(&sample.source, &server);
    harness::amcheck(&server).unwrap();
    drop(server);
    fs::remove_dir_all(copy).unwrap();
}

#[test]
fn only_changed_pages_are_read_and_stored() {
    for major in [15, 18] {
        let workload = Workload::empty().rows(200).large_table_mib(24);
        let builder = quiet(major).with(workload);
        let builder = if major >= 17 { builder.setting("summarize_wal", "on") } else { builder };
        let sample = Sample::of(builder.start());
        let first = sample.backup(&[]);
        assert_eq!(changes(&first, "source"), "full", "{first}");
        let sql = sample.source.sql();
        sql.execute(
            "CREATE TABLE wide AS SELECT n, repeat('x', 900) AS t FROM generate_series(1, 20000) AS n",
        );
        sql.execute("CREATE INDEX ON wide (n)");
        sql.execute("VACUUM ANALYZE");
        // Pages are believed only of files that are older than the backup below.
        let made = std::time::Instant::now();
        harness::wait_until("files are older", || made.elapsed().as_secs() > 3);
        for source in sources(major) {
            let full = sample.backup_of(source, &["--full"]);
            assert_eq!(changes(&full, "source"), "full");
        }
        sql.execute("UPDATE wide SET t = repeat('y', 900) WHERE n % 500 = 1");
        for source in sources(major) {
            let changed = sample.backup_of(source, &["--changes", source]);
            assert_eq!(changes(&changed, "source"), source);
            assert!(
                number(&changed, "changed_files") > 0 && number(&changed, "unchanged_files") > 100,
                "{changed}"
            );
            assert!(number(&changed, "kept_bytes") > 16 << 20, "{changed}");
            assert!(number(&changed, "changed_bytes") < 4 << 20, "{changed}");
            let (read, bytes) = (number(&changed, "read_bytes"), changed["bytes"].as_u64().unwrap());
            eprintln!("{major} by {source}: read {read} of {bytes}: {}", changed["stored"]);
            assert_eq!(read < bytes / 4, *source != "pages", "{changed}");
            sample.expect_same(&changed);
            // It stands alone: what is below it is removed.
            let folder = sample.repo.join(format!("clusters/{source}/backups"));
            let newest = changed["stored"]["backup"].as_str().unwrap();
            for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
                if !entry.file_name().to_str().unwrap().starts_with(newest) {
                    fs::remove_file(entry.path()).unwrap();
                }
            }
            sample.command("verify").args(["--cluster", source, "--json"]).run().expect_success();
            expect_restored(&sample, source, major);
        }
        // By itself it takes the cheapest; the one with nothing to go by is the first of its cluster.
        let next = sample.backup(&[]);
        assert_eq!(changes(&next, "source"), sources(major)[0], "{next}");
        sample.expect_same(&next);
        let empty = sample.backup(&[]);
        assert_eq!(changes(&empty, "source"), sources(major)[0], "{empty}");
        assert!(number(&empty, "changed_bytes") < 1 << 20, "{empty}");
        sample.expect_same(&empty);
    }
}

/// Each step does some of what a server may do, then takes a backup through every source, each over its own last one, and
/// compares them with the data directory page by page. `PGSTRATA_SEEDS=100..200` asks for other seeds.
#[test]
fn whatever_happens_in_between() {
    let seeds = std::env::var("PGSTRATA_SEEDS").unwrap_or_else(|_| "0..6".into());
    let (first, end) = seeds.split_once("..").expect("FIRST..END");
    let seeds: std::ops::Range<u64> = first.parse().unwrap()..end.parse().unwrap();
    for major in harness::majors().into_iter().filter(|major| [13, 15, 17, 18].contains(major)) {
        let builder = quiet(major);
        let builder = if major >= 17 { builder.setting("summarize_wal", "on") } else { builder };
        let mut sample = Sample::of(builder.start());
        workload::prepare(&sample.source);
        for source in sources(major) {
            sample.backup_of(source, &[]);
        }
        for seed in seeds.clone() {
            let mut dice = Dice::of(seed);
            let mut log = Vec::new();
            for _ in 0..5 + dice.below(8) {
                log.push(workload::step(&mut sample.source, &mut dice, major));
            }
            settle(&sample.source);
            for source in sources(major) {
                let summary = sample.backup_of(source, &["--changes", source]);
                let differences = sample.differences(&summary);
                assert!(
                    differences.is_empty(),
                    "PostgreSQL {major}, seed {seed}, by {source}:\n{}\nafter {log:#?}\n{summary}",
                    differences.join("\n")
                );
            }
        }
        for source in sources(major) {
            sample.command("verify").args(["--cluster", source, "--json"]).run().expect_success();
            expect_restored(&sample, source, major);
        }
    }
}

/// Nobody else writes from here on. What a backup's own sessions look at has its hint bits.
fn settle(source: &Source) {
    let sql = source.sql();
    sql.execute("SELECT 1 FROM pg_database, pg_authid, pg_tablespace, pg_proc WHERE false");
    sql.execute("SET enable_indexscan = off; SET enable_bitmapscan = off; SELECT count(*) FROM pg_database; CHECKPOINT");
}

/// A promoted copy and the server that it was made of share a past, and no more.
#[test]
fn only_a_backup_of_the_same_past_is_laid_under_another() {
    let major = 17;
    let builder = quiet(major).setting("summarize_wal", "on").with(Workload::empty().rows(300));
    let mut sample = Sample::of(builder.start());
    let sql = sample.source.sql();
    sql.execute("CREATE TABLE kept AS SELECT n, repeat('x', 300) AS t FROM generate_series(1, 20000) AS n");
    let shared = sample.backup(&[]);
    let id = |summary: &Value| summary["stored"]["backup"].as_str().unwrap().to_owned();
    sql.execute("UPDATE kept SET t = 'before' WHERE n % 100 = 0");
    drop(sql);
    // A copy with all that there was, and then each goes its own way.
    let stopped = sample.source.stop(Shutdown::Fast);
    let copy = sample.source.dir("promoted");
    let copied = Command::new("cp").arg("-a").args([stopped.data_dir(), &copy]).status();
    assert!(copied.expect("cp").success());
    fs::write(copy.join("standby.signal"), "").unwrap();
    sample.source.restart(&stopped);
    let sql = sample.source.sql();
    sql.execute("UPDATE kept SET t = 'on the old timeline' WHERE n % 50 = 0");
    sql.execute("CHECKPOINT");
    let old_way = sample.backup(&[]);
    assert_eq!(old_way["stored"]["parent"], id(&shared).as_str(), "{old_way}");
    sample.expect_same(&old_way);

    let settings =
        [("summarize_wal", "on"), ("wal_level", "replica"), ("autovacuum", "off"), ("max_wal_senders", "10")];
    let adopted = sample.source.adopt(&copy).unwrap();
    let promoted = adopted.start(&settings).unwrap_or_else(|error| panic!("{error}"));
    let there = harness::sql(&promoted);
    there.execute("SELECT pg_promote()");
    harness::wait_until("promoted", || there.value::<u32>("SELECT (NOT pg_is_in_recovery())::int") == 1);
    there.execute("UPDATE kept SET t = 'on the new timeline' WHERE n % 70 = 0");
    there.execute("CHECKPOINT");
    // The positions of the first backup lie on its way, but who knows whether the files do.
    let new_way = sample.run_at(&promoted, "main", &["--changes", "server"]).run();
    new_way.expect_failure().expect_stderr("another data directory").expect_stderr("HINT: ");
    let new_way = sample.run_at(&promoted, "main", &[]).run().expect_success().json_summary();
    assert_eq!((&new_way["timeline"], changes(&new_way, "source")), (&2.into(), &"full".into()), "{new_way}");
    there.execute("UPDATE kept SET t = 'still there' WHERE n % 30 = 0; CHECKPOINT");
    for source in sources(major) {
        let next =
            sample.run_at(&promoted, "main", &["--changes", source]).run().expect_success().json_summary();
        assert_eq!(changes(&next, "source"), source);
        let differences = sample.differences_from(&next, &copy);
        assert!(differences.is_empty(), "of {source}: {}", differences.join("\n"));
    }
    // And the other way round: what the promoted server has is no past of the old one's.
    let last = sample.backup(&[]);
    assert_eq!(last["stored"]["parent"], id(&old_way).as_str(), "{last}");
    sample.expect_same(&last);
    sample.command("verify").arg("--json").run().expect_success();
}

/// Page checksums that were switched on change every page, and no LSN.
#[test]
fn checksums_that_came_make_a_full_backup() {
    let checksums =
        harness::program(15).expect("15").companion("pg_checksums").expect("a complete installation");
    let mut sample = Sample::of(quiet(15).checksums(false).with(Workload::empty().rows(300)).start());
    sample.backup(&[]);
    // Without them pages do not tell.
    let refused = sample.run_of("main", &["--changes", "pages"]).run();
    refused.expect_failure().expect_stderr("no page checksums").expect_stderr("HINT: ");
    let stopped = sample.source.stop(Shutdown::Fast);
    let enabled = Command::new(checksums).args(["--enable", "-D"]).arg(stopped.data_dir()).output();
    assert!(enabled.expect("pg_checksums").status.success());
    sample.source.restart(&stopped);
    let full = sample.backup(&[]);
    assert_eq!(changes(&full, "source"), "full", "{full}");
    assert!(
        full["stored"]["changes"]["passed_over"][0]["why"].as_str().unwrap().contains("page checksums"),
        "{full}"
    );
    sample.expect_same(&full);
}
