//! WAL within the archive that recovery could not read. No manifest covers it, so that nothing else would notice.

use pgstrata_tests::fake::{FakeBackup, Member, Script, honest_segment};

use crate::case::{Case, MAJORS, run_all};
use crate::compressed::{gzip, reply};

const SEGMENT: &str = "pg_wal/000000010000000000000020";
const NEXT: &str = "pg_wal/000000010000000000000021";
const OTHER_TIMELINE: &str = "pg_wal/000000020000000000000020";
const MISSING: &str = "segment 000000010000000000000020 did not arrive";

/// Segments as members: their paths and contents.
type Segments = Vec<(&'static str, Vec<u8>)>;
type Change = fn(Vec<u8>) -> Segments;

fn flipped(mut wal: Vec<u8>, place: usize) -> Segments {
    wal[place] ^= 1;
    vec![(SEGMENT, wal)]
}

#[test]
fn wal_in_the_archive_is_read() {
    let changes: [(&str, Change, &[&str]); 12] = [
        ("honest", |wal| vec![(SEGMENT, wal)], &[]),
        ("damaged behind its end", |wal| flipped(wal, 100_000), &[]),
        (
            "of a timeline that leads nowhere too",
            |wal| vec![(OTHER_TIMELINE, vec![0x5a; 1 << 20]), (SEGMENT, wal)],
            &[],
        ),
        ("and more", |wal| vec![(SEGMENT, wal.clone()), (NEXT, wal)], &[]),
        ("none", |_| Vec::new(), &["no segment arrived"]),
        (
            "flipped content",
            |wal| flipped(wal, 0x60),
            &["WAL record at 0/2000028: found content with CRC-32C"],
        ),
        ("flipped length", |wal| flipped(wal, 0x2b), &["WAL page at 0/2002000: found magic 0x0000"]),
        ("flipped system", |wal| flipped(wal, 24), &["WAL page at 0/2000000: found system identifier"]),
        ("empty", |_| vec![(SEGMENT, vec![0; 1 << 20])], &["found magic 0x0000"]),
        (
            "cut",
            |wal| vec![(SEGMENT, wal[..8192].to_vec())],
            &["segment 000000010000000000000020 has 8192 bytes, expected 1048576"],
        ),
        ("of another timeline", |wal| vec![(OTHER_TIMELINE, wal)], &[MISSING]),
        (
            "of another place",
            |wal| vec![(NEXT, wal)],
            &[MISSING, "found 000000010000000000000021 in its place"],
        ),
    ];
    let mut all = Vec::new();
    for major in MAJORS {
        for (name, change, words) in changes {
            let backup = move || {
                let mut backup = FakeBackup::honest(major);
                let segments = change(honest_segment(major)).into_iter();
                backup.members.extend(segments.map(|(path, content)| Member::file(path, content)));
                backup
            };
            let mut ways = vec![&["-X", "fetch", "-Fp"][..], &["-X", "fetch", "-Ft"]];
            if major >= 15 {
                ways.push(&["-X", "fetch", "-Fp", "-Z", "server-gzip", "--workers", "4"]);
                ways.push(&["-X", "fetch", "-Ft", "-Z", "server-gzip", "--workers", "4"]);
            }
            for way in ways {
                let packs = way.contains(&"server-gzip");
                let build = move |_: &crate::case::Place| {
                    let backup = backup();
                    let answer = if packs {
                        reply(&backup, "base.tar.gz", &gzip(&backup.base_archive().concat(), 0))
                    } else {
                        backup.reply()
                    };
                    Script::version(major).setting("wal_segment_size", "1MB").answer("BASE_BACKUP", answer)
                };
                let case = Case::new(format!("{major}: {name} {way:?}"), build).arguments(way);
                let refused = [&["WAL that came with the backup: ", "HINT: "][..], words].concat();
                all.push(if words.is_empty() { case } else { case.refused(&refused) });
            }
        }
    }
    run_all(&all);
}
