//! What a server's own summarizer makes of ranges of its log, entry by entry.

use std::fs;

use pgstrata_protocol::summary::{BlockReferences, SummaryMerger, SummaryName};
use pgstrata_protocol::wal::Summarizer;
use pgstrata_tests as harness;
use pgstrata_tests::wait_until;

use crate::log::Log;
use crate::records::{compare, touched};
use crate::work::{server, work};

#[test]
fn records_and_summaries_of_version_17() {
    check(17);
}

#[test]
fn records_and_summaries_of_version_18() {
    check(18);
}

fn check(major: u32) {
    if !harness::majors().contains(&major) {
        eprintln!("skipped: PostgreSQL {major} was not asked for");
        return;
    }
    let complete = harness::complete(major);
    let builder = server(major).setting("summarize_wal", "on").setting("wal_consistency_checking", "hash");
    let source = match complete {
        Some(complete) => builder.complete(complete).start(),
        None => builder.start(),
    };
    let compressions: &[&str] = if complete.is_some() { &["pglz", "lz4", "zstd"] } else { &["pglz"] };
    let files = work(&source, major, compressions);
    let log = Log::of(&source, major);
    if let Some(complete) = complete {
        compare(&log, &complete.tool("pg_waldump"));
    }
    touched(&source, &log, &files);

    // Summaries end at redo points.
    let session = source.sql();
    session.execute("CHECKPOINT");
    let end = log.end();
    wait_until("the log is summarized", || {
        let up_to = "SELECT coalesce(max(end_lsn), '0/0') >= '";
        session.value::<String>(&format!("{up_to}{end}' FROM pg_available_wal_summaries()")) == "t"
    });
    let folder = log.folder.join("summaries");
    let mut compared = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(range) = SummaryName::parse(name.as_bytes()) else { continue };
        if range.start < log.start() || range.end > log.end() {
            continue;
        }
        let expected = fs::read(&path).unwrap();
        let mut summarizer = Summarizer::new(range.start, range.end);
        log.read(range.start, &mut summarizer);
        let (references, _) = summarizer.finish().unwrap();
        let (found, _) = references.write(Vec::new()).unwrap();
        // The same bytes, but for the order within a list, in which a server writes blocks as its log named them.
        assert_eq!(found.len(), expected.len(), "{name}");
        let (mut table, mut merger) = (BlockReferences::new(), SummaryMerger::new());
        merger.feed(&mut table, &expected).unwrap();
        merger.finish().unwrap();
        for (fork, expected) in table.sorted() {
            assert_eq!(references.get(&fork), Some(expected), "{name}: {fork}");
        }
        assert_eq!(references, table, "{name}");
        compared += expected.len();
    }
    assert!(compared > 20_000, "{compared} bytes of summaries");
}
