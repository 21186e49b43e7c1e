//! What archived WAL changed, by notes made as it was archived: the same as by reading the WAL, along a history of timelines;
//! and never an answer where something is missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgstrata::postmaster::{Server, Shutdown};
use pgstrata::repository::{ClusterName, FrameCompression, LocalStore, Repository};
use pgstrata::stop::Stop;
use pgstrata::tracking::{ArchiveChanges, ArchiveRange, Missing, archive_changes};
use pgstrata::walarchive::{PushConfig, push};
use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::replication::TimelineHistory;
use pgstrata_protocol::summary::BlockReferences;
use pgstrata_protocol::wal::{StretchSummarizer, Summarizer, WalChecker, WalOrigin};
use pgstrata_protocol::{Lsn, TimelineId};
use pgstrata_tests as harness;
use pgstrata_tests::{Source, pgstrata, sql, wait_until};

/// A server of 1 MiB segments and the place where its WAL goes.
struct Bench {
    source: Source,
    repository: Repository,
    cluster: ClusterName,
    size: WalSegmentSize,
}

impl Bench {
    fn start(major: u32) -> Self {
        let source = harness::cluster(major).wal_segsize_mb(1).setting("autovacuum", "off").start();
        let store = Arc::new(LocalStore::new(source.dir("repo")));
        let repository = Repository::init(store).unwrap();
        let size = WalSegmentSize::new(1 << 20).unwrap();
        Self { source, repository, cluster: "main".parse().unwrap(), size }
    }

    fn system(&self, server: &Server) -> u64 {
        sql(server).value("SELECT system_identifier FROM pg_control_system()")
    }

    /// Archives files of a server's `pg_wal`, whichever order they come in.
    fn push(&self, pg_wal: &Path, names: impl Iterator<Item = String>) {
        for name in names {
            let config = PushConfig {
                repository: self.repository.clone(),
                cluster: self.cluster.clone(),
                path: pg_wal.join(name),
                data_directory: None,
                compression: FrameCompression::Lz4,
                check: true,
                jobs: 1,
                ahead: 0,
            };
            push(&config, &|warning| panic!("{warning}")).unwrap();
        }
    }

    fn segment(&self, timeline: u32, number: u64) -> String {
        WalSegment { timeline: TimelineId(timeline), number }.file_name(self.size)
    }

    fn note(&self, timeline: u32, number: u64) -> PathBuf {
        let name = self.segment(timeline, number);
        let folder = format!("repo/clusters/main/wal/{}/{}", &name[..8], &name[8..16]);
        self.source.dir(&folder).join(format!("{name}.changes"))
    }

    fn ask(
        &self,
        server: &Server,
        history: &TimelineHistory,
        (from_timeline, from): (u32, Lsn),
        to: Lsn,
        pg_wal: Option<&Path>,
    ) -> Result<ArchiveChanges, Missing> {
        let range = ArchiveRange {
            repository: &self.repository,
            cluster: &self.cluster,
            system_identifier: self.system(server),
            segment_size: self.size,
            history,
            from_timeline: TimelineId(from_timeline),
            from,
            to,
            pg_wal,
        };
        archive_changes(&range, &Stop::new()).unwrap()
    }

    fn number(&self, lsn: Lsn) -> u64 {
        lsn.0 / self.size.bytes()
    }

    fn start_of(&self, number: u64) -> Lsn {
        Lsn(number * self.size.bytes())
    }
}

fn lsn(server: &Server, what: &str) -> Lsn {
    sql(server).value::<String>(&format!("SELECT {what}")).parse().unwrap()
}

const WORK: &str = "
    CREATE TABLE IF NOT EXISTS kept (i int PRIMARY KEY, v text);
    INSERT INTO kept SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 6000) AS i ON CONFLICT (i) DO UPDATE SET v = '';
    DROP TABLE IF EXISTS gone; CREATE TABLE gone AS SELECT i FROM generate_series(1, 3000) AS i;
    SELECT pg_logical_emit_message(false, 'long', repeat('x', 2500000));
    UPDATE kept SET v = 'again' WHERE i % 40 = 0";

/// All records from the beginning of one segment to the beginning of another, in one pass.
fn at_once(folder: &Path, origin: WalOrigin, numbers: std::ops::Range<u64>) -> BlockReferences {
    let size = origin.segment_size;
    let start = Lsn(numbers.start * size.bytes());
    let mut checker = WalChecker::from_segment(origin, start);
    let mut summarizer = Summarizer::new(start, Lsn(u64::MAX));
    for number in numbers {
        let name = WalSegment { timeline: origin.timeline, number }.file_name(size);
        checker.push_to(&fs::read(folder.join(name)).unwrap(), &mut summarizer).unwrap();
    }
    summarizer.finish().unwrap().0
}

/// The same limits, and the same blocks below them; behind a limit all blocks count as changed.
fn same_changes(found: &BlockReferences, expected: &BlockReferences) {
    assert_eq!(found.len(), expected.len());
    for (fork, expected) in expected.sorted() {
        let found = found.get(&fork).unwrap();
        assert_eq!(found.limit(), expected.limit(), "{fork}");
        let below = ..expected.limit().map_or(u32::MAX, |limit| limit.0);
        assert!(found.blocks(below).eq(expected.blocks(below)), "{fork}");
    }
}

#[test]
fn notes_say_what_the_wal_says() {
    let Some(major) = [17, 16].into_iter().find(|major| harness::majors().contains(major)) else {
        eprintln!("skipped: neither 17 nor 16 was asked for");
        return;
    };
    let mut bench = Bench::start(major);
    let from = lsn(&bench.source, "pg_switch_wal()");
    let first = bench.number(from) + 1;
    let from = bench.start_of(first);
    bench.source.sql().execute(WORK);
    bench.source.sql().execute("SELECT pg_switch_wal()");
    let end = bench.number(lsn(&bench.source, "pg_current_wal_insert_lsn()"));
    assert!(end - first >= 6, "{first} to {end}");
    let pg_wal = bench.source.data_dir().join("pg_wal");
    // Backwards, as pushes side by side may come in.
    bench.push(&pg_wal, (first..end).rev().map(|number| bench.segment(1, number)));

    let server: &Server = &bench.source;
    let no_switches = TimelineHistory { timeline: TimelineId(1), switches: Vec::new() };
    let origin = WalOrigin {
        system_identifier: bench.system(server),
        timeline: TimelineId(1),
        segment_size: bench.size,
        magic: None,
        page_size: None,
    };
    let to = bench.start_of(end);
    let expected = at_once(&pg_wal, origin, first..end);
    let found = bench.ask(server, &no_switches, (1, from), to, None).unwrap();
    assert_eq!((found.notes_read, found.segments_read), (end - first, 0));
    same_changes(&found.references, &expected);
    assert!(expected.count() > 100, "{} blocks", expected.count());

    // Notes that are gone, or damaged, are made up for by the segments.
    fs::remove_file(bench.note(1, first + 1)).unwrap();
    let mut damaged = fs::read(bench.note(1, first + 3)).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(bench.note(1, first + 3), damaged).unwrap();
    let found = bench.ask(server, &no_switches, (1, from), to, None).unwrap();
    assert_eq!((found.notes_read, found.segments_read), (end - first - 2, 2));
    same_changes(&found.references, &expected);

    // What is not archived yet comes from the server's own folder, up to a record's end within a segment.
    bench.source.sql().execute("CREATE TABLE late AS SELECT 1 AS i; INSERT INTO late VALUES (2)");
    let file: u32 = bench.source.sql().value("SELECT pg_relation_filenode('late')");
    let to = lsn(server, "pg_current_wal_flush_lsn()");
    assert!(to > bench.start_of(end));
    let Err(Missing::Segment { segment }) = bench.ask(server, &no_switches, (1, from), to, None) else {
        panic!("the last segment is not there");
    };
    assert_eq!(segment.to_string(), bench.segment(1, bench.number(to)));
    let found = bench.ask(server, &no_switches, (1, from), to, Some(&pg_wal)).unwrap();
    let files: BTreeSet<u32> = found.references.sorted().map(|(fork, _)| fork.relation).collect();
    assert!(files.contains(&file));

    // Without the segment there is no answer, and the history must be the range's.
    let cut = bench.note(1, first + 1).with_extension("");
    fs::remove_file(cut).unwrap();
    let missing = bench.ask(server, &no_switches, (1, from), to, None).unwrap_err();
    assert!(
        matches!(missing, Missing::Segment { segment } if segment.to_string() == bench.segment(1, first + 1))
    );
    let missing = bench.ask(server, &no_switches, (3, from), to, None).unwrap_err();
    assert!(matches!(missing, Missing::History { .. }), "{missing}");

    promoted(&mut bench, first, from);
}

/// A range that begins on one timeline and ends on the next.
fn promoted(bench: &mut Bench, first: u64, from: Lsn) {
    let cluster = bench.source.stop(Shutdown::Fast);
    fs::write(cluster.data_dir().join("standby.signal"), b"").unwrap();
    bench.source.restart(&cluster);
    let server: &Server = &bench.source;
    sql(server).execute("SELECT pg_promote()");
    wait_until("it is promoted", || sql(server).value::<String>("SELECT pg_is_in_recovery()") == "f");
    sql(server).execute("CREATE TABLE after AS SELECT i FROM generate_series(1, 5000) AS i; CHECKPOINT; SELECT pg_switch_wal()");
    let file: u32 = sql(server).value("SELECT pg_relation_filenode('after')");
    let end = bench.number(lsn(server, "pg_current_wal_insert_lsn()"));
    let pg_wal = server.data_dir().join("pg_wal");
    let history = fs::read(pg_wal.join("00000002.history")).unwrap();
    let history = TimelineHistory::parse(TimelineId(2), &history).unwrap();
    let switch = bench.number(history.switches[0].end);
    bench.push(&pg_wal, (first..switch).map(|number| bench.segment(1, number)));
    bench.push(&pg_wal, (switch..end).map(|number| bench.segment(2, number)));
    let to = bench.start_of(end);
    let found = bench.ask(server, &history, (1, from), to, None).unwrap();
    let files: BTreeSet<u32> = found.references.sorted().map(|(fork, _)| fork.relation).collect();
    assert!(files.contains(&file));
    // A segment of the timeline that was left does not pass for that of the new one.
    let note = bench.note(2, switch);
    fs::remove_file(&note).unwrap();
    fs::remove_file(note.with_extension("")).unwrap();
    let missing = bench.ask(server, &history, (1, from), to, None).unwrap_err();
    assert!(matches!(missing, Missing::Segment { .. }), "{missing}");
}

#[test]
fn a_received_segment_is_noted_as_a_pushed_one() {
    let Some(major) = harness::majors().into_iter().find(|major| *major >= 15) else { return };
    let bench = Bench::start(major);
    let server: &Server = &bench.source;
    let session = bench.source.sql();
    session.execute("SELECT pg_create_physical_replication_slot('kept', true); SELECT pg_switch_wal()");
    session.execute(WORK);
    session.execute("SELECT pg_switch_wal()");
    let end = lsn(server, "pg_current_wal_insert_lsn()").segment_start(bench.size.bytes());
    // The receiver ends with what comes behind its end.
    session.execute("CREATE TABLE more (i int); SELECT pg_switch_wal()");
    let run =
        pgstrata(["wal", "receive", "-n", "-S", "kept", "--cluster", "main", "-d", &server.conninfo(), "-E"]);
    run.arg(end.to_string()).arg("--repo").arg(bench.source.dir("repo")).run().expect_success();
    let pg_wal = server.data_dir().join("pg_wal");
    let last = bench.number(end) - 1;
    let mut compared = 0;
    for number in last.saturating_sub(4)..=last {
        let name = bench.segment(1, number).parse().unwrap();
        let name = pgstrata::repository::ChangesName::Segment(name);
        let found = bench.repository.wal_changes(&bench.cluster, name, None).unwrap();
        let Some((found, _)) = found else { panic!("{name} is not there") };
        let origin = WalOrigin {
            system_identifier: bench.system(server),
            timeline: TimelineId(1),
            segment_size: bench.size,
            magic: None,
            page_size: None,
        };
        let mut expected = StretchSummarizer::new(origin, bench.start_of(number), Lsn(u64::MAX));
        expected.push(&fs::read(pg_wal.join(bench.segment(1, number))).unwrap()).unwrap();
        let expected = expected.finish().unwrap();
        assert!(found.references == expected.references, "{name}");
        assert_eq!((found.links, &found.head, &found.tail), (expected.links, &expected.head, &expected.tail));
        compared += found.references.count();
    }
    assert!(compared > 50, "{compared} blocks");
}
