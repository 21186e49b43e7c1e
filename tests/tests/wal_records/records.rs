//! Every record of a log, compared with `pg_waldump` where there is one; of all versions, what the log says was changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pgstrata_protocol::Lsn;
use pgstrata_protocol::summary::BlockReferences;
use pgstrata_protocol::wal::{Summarizer, WalStretch};
use pgstrata_tests as harness;
use pgstrata_tests::Source;

use crate::dump::{Lines, pg_waldump};
use crate::log::Log;
use crate::work::{server, work};

/// The installed tools of 15.
const STOCK: &str = "/usr/lib/postgresql/15/bin/pg_waldump";

#[test]
fn records_of_version_13() {
    check(13, &["on"]);
}

#[test]
fn records_of_version_14() {
    check(14, &["on"]);
}

#[test]
fn records_of_version_15() {
    check(15, &["pglz", "lz4", "zstd"]);
}

#[test]
fn records_of_version_16() {
    check(16, &["pglz"]);
}

fn check(major: u32, compressions: &[&str]) {
    if !harness::majors().contains(&major) {
        eprintln!("skipped: PostgreSQL {major} does not run here, or was not asked for");
        return;
    }
    let source = server(major).setting("wal_consistency_checking", "hash").start();
    let files = work(&source, major, compressions);
    let log = Log::of(&source, major);
    let program = Path::new(STOCK);
    if major == 15 && program.exists() {
        compare(&log, program);
    }
    touched(&source, &log, &files);
}

/// Record by record, block by block.
pub(crate) fn compare(log: &Log, program: &Path) {
    let expected = pg_waldump(program, log);
    let mut found = Lines::default();
    log.read(log.start(), &mut found);
    let differs = expected.iter().zip(&found.lines).position(|(expected, found)| expected != found);
    if let Some(at) = differs {
        let range = at.saturating_sub(3)..at + 1;
        panic!("line {at}: expected {:#?}, found {:#?}", &expected[range.clone()], &found.lines[range]);
    }
    assert_eq!(expected.len(), found.lines.len());
    assert!(expected.len() > 10_000, "{} lines", expected.len());
    let managers: BTreeSet<&str> = expected.iter().filter_map(|line| line.split(" len ").next()).collect();
    for manager in [
        "XLOG",
        "Transaction",
        "Storage",
        "Database",
        "Tablespace",
        "RelMap",
        "Standby",
        "Heap2",
        "Heap",
        "Btree",
        "Hash",
        "Gin",
        "Gist",
        "Sequence",
        "SPGist",
        "BRIN",
        "LogicalMessage",
    ] {
        assert!(managers.contains(manager), "no record of {manager}");
    }
    for part in ["FPW for WAL verification", "fork vm", "fork fsm", "fork init"] {
        assert!(expected.iter().any(|line| line.contains(part)), "no {part}");
    }
}

/// The log names the files that were changed, and says the same whether it is read at once or segment by segment.
pub(crate) fn touched(source: &Source, log: &Log, files: &[String]) {
    let mut at_once = Summarizer::new(log.start(), Lsn(u64::MAX));
    log.read(log.start(), &mut at_once);
    let (references, links) = at_once.finish().unwrap();
    assert_eq!(links.minimal, None);
    let stretches = log.stretches();
    assert!(stretches.iter().filter(|stretch| stretch.tail.is_some()).count() > 5, "records run over ends");
    assert!(stretches.iter().any(|stretch| stretch.links.first.is_none()), "one runs over a whole segment");
    let joined = join(stretches.clone());
    same_changes(&joined.references, &references);
    assert_eq!(joined.links, links);
    assert_eq!((joined.start, joined.end), (log.start(), log.end()));
    // Joined in another order, as roll-ups are.
    let pairs = stretches.chunks(3).map(|chunk| join(chunk.to_vec())).collect();
    same_changes(&join(pairs).references, &references);
    // A segment left out is noticed, wherever it is.
    for missing in [1, stretches.len() / 2] {
        let (before, after) = (stretches[missing - 1].clone(), stretches[missing + 1].clone());
        before.join(after).unwrap_err();
    }

    let known: BTreeSet<PathBuf> = references
        .sorted()
        .filter(|(fork, _)| fork.fork == 0)
        .map(|(fork, _)| {
            source.data_dir().join(match fork.tablespace {
                1663 => format!("base/{}/{}", fork.database, fork.relation),
                1664 => format!("global/{}", fork.relation),
                _ => return PathBuf::from(format!("{}", fork.relation)),
            })
        })
        .collect();
    assert!(!files.is_empty());
    for file in files {
        let path = Path::new(file);
        let in_space = || PathBuf::from(path.file_name().unwrap());
        assert!(
            known.contains(&source.data_dir().join(path)) || known.contains(&in_space()),
            "{file} was changed, and the log does not tell"
        );
    }
}

/// The same limits, and the same blocks below them. Of those behind a limit, which count as changed anyway, a table of many stretches
/// may name fewer: each stretch forgets at its own limits, and a table of all only where a limit is the lowest so far.
fn same_changes(joined: &BlockReferences, at_once: &BlockReferences) {
    assert_eq!(joined.len(), at_once.len());
    for (fork, expected) in at_once.sorted() {
        let found = joined.get(&fork).unwrap();
        assert_eq!(found.limit(), expected.limit(), "{fork}");
        let below = ..expected.limit().map_or(u32::MAX, |limit| limit.0);
        assert!(found.blocks(below).eq(expected.blocks(below)), "{fork}");
        assert!(found.blocks(..).all(|block| expected.contains(block)), "{fork}");
    }
}

fn join(stretches: Vec<WalStretch>) -> WalStretch {
    stretches.into_iter().reduce(|earlier, later| earlier.join(later).unwrap()).unwrap()
}
