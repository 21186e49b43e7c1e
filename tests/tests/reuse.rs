//! What is stored already is stored once: against the newest backup, and after interrupted ones.

use std::fs;
use std::path::{Path, PathBuf};

use pgstrata_tests as harness;
use pgstrata_tests::repositories::{backup, backup_by, command, expect_verified, init, names, restore};
use pgstrata_tests::{Finished, Interposer, Invocation, Source, Workload};
use rustix::process::Signal;
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn packs(repo: &Path) -> Vec<PathBuf> {
    let folder = repo.join("clusters/main/packs");
    if !folder.exists() {
        return Vec::new();
    }
    names(&folder).iter().map(|name| folder.join(name)).collect()
}

fn stored(summary: &Value, what: &str) -> u64 {
    summary["stored"][what].as_u64().unwrap_or_else(|| panic!("no {what}: {summary}"))
}

fn succeeds(run: Invocation) -> (Value, Finished) {
    let finished = run.run();
    (finished.expect_success().json_summary(), finished)
}

#[track_caller]
fn expect_good(source: &Source, repo: &Path, backup: &str) {
    let verified = command("verify", repo).arg("--json").run().expect_success().json_summary();
    assert_eq!(verified["problem_count"], 0, "{verified}");
    let copy = source.dir(&format!("copy of {backup}"));
    restore(source, repo, &copy).args(["--backup", backup]).run().expect_success();
    expect_verified(&copy, 15);
    harness::compare(source, &source.boot(&copy));
    fs::remove_dir_all(copy).unwrap();
}

#[test]
fn a_second_backup_stores_what_changed_and_stands_alone() {
    let workload = Workload::small().small_relations(300).large_table_mib(48);
    let source = harness::cluster(15).with(workload).start();
    let repo = init(&source);
    let (first, _) = succeeds(backup(&source, &repo));
    assert_eq!((stored(&first, "reused_bytes"), stored(&first, "resumed_bytes")), (0, 0));
    // A few rows, and a few files that were not there.
    let sql = source.sql();
    sql.execute("CREATE TABLE added AS SELECT n, repeat('x', 200) FROM generate_series(1, 500) AS n");
    let (second, run) = succeeds(backup(&source, &repo));
    let (before, after) = (stored(&first, "bytes"), stored(&second, "bytes"));
    let [first, second] = [&first, &second].map(|one| one["stored"]["backup"].as_str().unwrap().to_owned());
    let shown = command("show", &repo).args(["--cluster", "main", "--backup", &second, "--json"]).run();
    let shown = shown.expect_success().json_summary();
    assert_eq!(shown["parent"], first.as_str());
    let [bytes, wal, reused] =
        ["bytes", "wal_bytes", "reused_bytes"].map(|what| shown[what].as_u64().unwrap());
    eprintln!("of {bytes} bytes, {wal} of WAL, {reused} were there; {after} were stored, after {before}");
    assert!(reused > bytes / 8 * 7, "{run}");
    assert!(after < before / 4, "{run}");
    // What the second one needs it names itself.
    fs::remove_file(repo.join(format!("clusters/main/backups/{first}.manifest"))).unwrap();
    expect_good(&source, &repo, &second);

    // Damaged footers of older packs are no reason to fail, nor to be referred to.
    let largest = packs(&repo).into_iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    let mut damaged = fs::read(&largest).unwrap();
    let place = damaged.len() - 100;
    damaged[place] ^= 1;
    fs::write(&largest, damaged).unwrap();
    let (third, run) = succeeds(backup(&source, &repo));
    run.expect_stderr("stored anew what an older pack should have held")
        .expect_stderr("does not match its checksum");
    assert!(stored(&third, "reused_bytes") > 0 && stored(&third, "bytes") > 2 * MIB, "{run}");
    let third = third["stored"]["backup"].as_str().unwrap();
    fs::remove_file(repo.join(format!("clusters/main/backups/{second}.manifest"))).unwrap();
    expect_good(&source, &repo, third);

    // Two at once, both upon the third.
    let both = [backup(&source, &repo).spawn(), backup(&source, &repo).args(["--reuse", "backup"]).spawn()];
    for run in both {
        let summary = run.wait().expect_success().json_summary();
        assert!(stored(&summary, "reused_bytes") > 0, "{summary}");
        expect_good(&source, &repo, summary["stored"]["backup"].as_str().unwrap());
    }
    let (anew, run) = succeeds(backup(&source, &repo).args(["--reuse", "none"]));
    assert_eq!(stored(&anew, "reused_bytes"), 0, "{run}");
}

#[test]
fn an_interrupted_backup_goes_on() {
    let workload = Workload::empty().small_relations(200).large_table_mib(40);
    let source = harness::cluster(15).with(workload).start();
    let repo = init(&source);
    let small = |run: Invocation| run.args(["-Z", "none", "--pack-size", "1"]);
    let (mut resumed, mut there) = (0, 0);
    for more in [4, 12, 12] {
        let running = small(backup(&source, &repo)).args(["-r", "40M"]).spawn();
        harness::wait_until("more packs", || packs(&repo).len() >= there + more);
        running.signal(Signal::KILL);
        running.wait().expect_killed_by(Signal::KILL);
        assert!(!names(&repo.join("clusters/main")).contains(&"backups".to_owned()));
        there = packs(&repo).len();
    }
    // Torn, and whole by its ends but not within: neither is referred to.
    let left = packs(&repo);
    let complete = |pack: &&PathBuf| fs::read(pack).unwrap().ends_with(b"ATARTSGP");
    let spoiled = left.iter().filter(complete).nth(1).expect("complete packs");
    let mut bytes = fs::read(spoiled).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(spoiled, bytes).unwrap();
    let torn = left.iter().filter(complete).nth(2).expect("complete packs");
    let bytes = fs::read(torn).unwrap();
    fs::write(torn, &bytes[..bytes.len() - 1]).unwrap();

    // The connection is lost: what is complete stays, and is said to.
    let network = Interposer::before(&source, &[]);
    let running = small(backup_by(&network.conninfo(&source), &repo)).args(["-r", "40M"]).spawn();
    harness::wait_until("more packs", || packs(&repo).len() >= there + 6);
    network.cut_all();
    let lost = running.wait();
    lost.expect_failure().expect_stderr("are kept: the next backup of cluster \"main\" goes on from them");
    lost.expect_stderr("stored are kept");
    assert!(packs(&repo).len() > there);

    let (summary, run) = succeeds(small(backup(&source, &repo)));
    resumed += stored(&summary, "resumed_bytes");
    eprintln!("resumed {resumed} of {}", summary["bytes"]);
    assert!(resumed > 20 * MIB, "{run}");
    assert_eq!(stored(&summary, "reused_bytes"), 0, "{run}");
    run.expect_stderr("stored anew what an older pack should have held").expect_stderr(name(spoiled));
    assert!(!run.stderr_text().contains(name(torn)), "{run}");
    // The next one refers to the same packs through the backup.
    let (next, run) = succeeds(small(backup(&source, &repo)));
    assert!(stored(&next, "reused_bytes") > 40 * MIB && stored(&next, "resumed_bytes") < MIB, "{run}");
    // Nobody needs them.
    fs::remove_file(spoiled).unwrap();
    fs::remove_file(torn).unwrap();
    for summary in [&summary, &next] {
        expect_good(&source, &repo, summary["stored"]["backup"].as_str().unwrap());
    }
}

#[test]
fn packs_of_a_backup_under_way_may_be_referred_to_whatever_becomes_of_it() {
    let source = harness::cluster(15).with(Workload::empty().large_table_mib(24)).start();
    let repo = init(&source);
    let under_way = backup(&source, &repo).args(["-Z", "none", "--pack-size", "1", "-r", "6M"]).spawn();
    harness::wait_until("its packs", || packs(&repo).len() > 8);
    let (other, run) = succeeds(backup(&source, &repo));
    assert!(under_way.is_running(), "too fast to tell");
    assert!(stored(&other, "resumed_bytes") > 2 * MIB, "{run}");
    under_way.signal(Signal::TERM);
    under_way.wait().expect_killed_by(Signal::TERM).expect_stderr("are kept");
    expect_good(&source, &repo, other["stored"]["backup"].as_str().unwrap());
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}
