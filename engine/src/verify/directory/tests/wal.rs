//! The WAL of a backup: missing, cut, damaged, elsewhere, of several timelines.

use pgstrata_protocol::Lsn;

use super::super::made_wal;
use super::*;

const FIRST_SEGMENT: &str = "pg_wal/000000010000000000000002";
const THIRD_SEGMENT: &str = "pg_wal/000000010000000000000004";
const LAST_SEGMENT: &str = "pg_wal/000000010000000000000006";

#[test]
fn every_damage_to_wal_is_named() {
    let rows: [(&str, Damage, &str); 11] = [
        (
            "missing",
            |s| fs::remove_file(s.path(THIRD_SEGMENT)).expect("removed"),
            "could not find the segment",
        ),
        ("cut", |s| resize(&s.path(THIRD_SEGMENT), 8192), "the segment has 8192 bytes, expected 1048576"),
        ("empty", |s| resize(&s.path(FIRST_SEGMENT), 0), "the segment has 0 bytes, expected 1048576"),
        ("grown", |s| resize(&s.path(LAST_SEGMENT), 1 << 21), "the segment has 2097152 bytes"),
        ("flipped", |s| flip(&s.path(THIRD_SEGMENT), 500_000), "WAL record at 0/47"),
        ("flipped in the header", |s| flip(&s.path(FIRST_SEGMENT), 24), "found system identifier"),
        ("flipped magic", |s| flip(&s.path(FIRST_SEGMENT), 1), "found magic 0xC110, expected 0xD1"),
        (
            "flipped page address",
            |s| flip(&s.path(THIRD_SEGMENT), 8192 + 9),
            "WAL page at 0/402000: found address",
        ),
        (
            "another segment",
            |s| fs::copy(s.path(FIRST_SEGMENT), s.path(THIRD_SEGMENT)).map(drop).expect("copied"),
            "WAL page at 0/400000: found address 0/200000, expected 0/400000",
        ),
        (
            "zeros",
            |s| {
                resize(&s.path(LAST_SEGMENT), 0);
                resize(&s.path(LAST_SEGMENT), 1 << 20);
            },
            "found magic 0x0000",
        ),
        (
            "a folder",
            |s| {
                fs::remove_file(s.path(FIRST_SEGMENT)).expect("removed");
                fs::create_dir(s.path(FIRST_SEGMENT)).expect("made");
            },
            "it is not a regular file",
        ),
    ];
    for (name, damage, expected) in rows {
        let sample = Sample::new(ChecksumAlgorithm::Crc32c);
        damage(&sample);
        let report = sample.verify().expect("verifiable");
        let told = told(&report);
        assert_eq!(told.len(), 1, "{name}: {told:?}");
        assert!(told[0].starts_with("WAL parsing failed for timeline 1: "), "{name}: {told:?}");
        assert!(told[0].contains(expected) && told[0].contains("/pg_wal/00000001"), "{name}: {told:?}");
        assert_eq!(report.problems[0].kind(), "wal");
        let unread = verify(&VerifyConfig { parse_wal: false, ..sample.config() }).expect("verifiable");
        assert!(unread.verified && !unread.wal_parsed && unread.wal_bytes == 0, "{name}");
    }
}

#[test]
fn wal_that_nobody_needs_is_not_looked_at() {
    let sample = Sample::new(ChecksumAlgorithm::Crc32c);
    let end = sample.wal[0].end.0 % made_wal::SEGMENT;
    // Between the first header and the page of the first record, before that, and behind the last.
    flip(&sample.path(FIRST_SEGMENT), 8192 + 9);
    flip(&sample.path(FIRST_SEGMENT), 0x5026);
    flip(&sample.path(LAST_SEGMENT), end);
    fs::write(sample.path("pg_wal/000000010000000000000001"), b"").expect("written");
    fs::write(sample.path("pg_wal/000000010000000000000007"), b"").expect("written");
    let report = sample.verify().expect("verifiable");
    assert!(found(&report).is_empty(), "{:?}", report.problems);
    assert!(report.wal_parsed && report.wal_bytes > 4 << 20, "{}", report.wal_bytes);
}

#[test]
fn wal_may_lie_elsewhere() {
    let sample = Sample::new(ChecksumAlgorithm::Crc32c);
    let elsewhere = sample.scratch.path().join("elsewhere");
    fs::rename(sample.path("pg_wal"), &elsewhere).expect("renamed");
    let told_of = |config: &VerifyConfig| told(&verify(config).expect("verifiable"));
    let without = told_of(&sample.config());
    assert!(
        without[0].contains("could not open directory") && without[0].contains("--wal-directory"),
        "{without:?}"
    );
    let named = |folder: &Path| VerifyConfig { wal_directory: Some(folder.into()), ..sample.config() };
    assert_eq!(told_of(&named(&elsewhere)), [""; 0]);
    // As pg_waldump takes it: the data directory's own name does as well.
    let above = sample.scratch.path().join("above");
    fs::create_dir(&above).expect("made");
    symlink(&elsewhere, above.join("pg_wal")).expect("linked");
    assert_eq!(told_of(&named(&above)), [""; 0]);
    symlink(&elsewhere, sample.path("pg_wal")).expect("linked");
    assert_eq!(told_of(&sample.config()), [""; 0]);
}

#[test]
fn every_range_is_checked() {
    let mut sample = Sample::new(ChecksumAlgorithm::Crc32c);
    let switch = sample.wal[0].end.0;
    let newer = MadeWal::new(IDENTIFIER, 2, switch, 3);
    newer.write_to(&sample.path("pg_wal"));
    // The newest first, as servers list them.
    sample.wal.insert(0, newer.range());
    sample.write_manifest();
    assert_eq!(told(&sample.verify().expect("verifiable")), [""; 0]);
    let (damaged, missing) = ("pg_wal/000000020000000000000007", "pg_wal/000000010000000000000005");
    flip(&sample.path(damaged), 300_000);
    fs::remove_file(sample.path(missing)).expect("removed");
    let mut problems = told(&sample.verify().expect("verifiable"));
    problems.sort();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].starts_with("WAL parsing failed for timeline 1: ") && problems[0].contains(missing));
    assert!(problems[1].starts_with("WAL parsing failed for timeline 2: ") && problems[1].contains(damaged));
    let report = verify(&VerifyConfig { exit_on_error: true, ..sample.config() }).expect("verifiable");
    assert_eq!(report.problem_count, 1);
    // A range without a record in it needs no segment.
    sample.wal = vec![WalRange { start: Lsn(switch), end: Lsn(switch), ..newer.range() }];
    sample.write_manifest();
    fs::remove_dir_all(sample.path("pg_wal")).expect("removed");
    fs::create_dir(sample.path("pg_wal")).expect("made");
    assert_eq!(told(&sample.verify().expect("verifiable")), [""; 0]);
}

#[test]
fn the_cluster_of_wal_is_known_without_the_manifest() {
    let mut sample = Sample::new(ChecksumAlgorithm::Crc32c);
    let foreign = MadeWal::new(IDENTIFIER + 1, 1, WAL_START, 5);
    let write = |sample: &Sample| {
        let file = File::create(sample.path(MANIFEST)).expect("created");
        let mut writer = ManifestWriter::new(file, ManifestVersion::One, false);
        for file in &sample.files {
            writer.file(file).expect("written");
        }
        writer.finish(&sample.wal).expect("finished");
    };
    write(&sample);
    assert_eq!(told(&sample.verify().expect("verifiable")), [""; 0]);
    foreign.write_to(&sample.path("pg_wal"));
    let told_of_foreign = told(&sample.verify().expect("verifiable"));
    assert!(told_of_foreign[0].contains("found system identifier"), "{told_of_foreign:?}");
    // Nothing names the cluster but the WAL itself, which must agree with itself.
    sample.files.retain(|file| file.path != CONTROL_FILE);
    fs::remove_file(sample.path(CONTROL_FILE)).expect("removed");
    write(&sample);
    assert_eq!(told(&sample.verify().expect("verifiable")), [""; 0]);
    let (name, segment) = MadeWal::new(IDENTIFIER, 1, WAL_START, 5).segments()[1].clone();
    fs::write(sample.path("pg_wal").join(&name), segment).expect("written");
    let mixed = told(&sample.verify().expect("verifiable"));
    assert!(mixed[0].contains(&name) && mixed[0].contains("found system identifier"), "{mixed:?}");
}

#[test]
fn the_control_files_order_of_bytes_is_its_own() {
    for version in [1300_u32, 1700, 1800] {
        let little: Vec<u8> = [&IDENTIFIER.to_le_bytes()[..], &version.to_le_bytes()].concat();
        let big: Vec<u8> = [&IDENTIFIER.to_be_bytes()[..], &version.to_be_bytes()].concat();
        for bytes in [little, big] {
            assert_eq!(identifier_of(bytes.first_chunk().expect("12 bytes")), IDENTIFIER);
        }
    }
}
