//! The server's WAL summaries, of 17 and 18: `pgstrata walsummary` beside pg_walsummary, and what changed by them beside what did.

mod changes;
mod gaps;
mod stock_lines;
mod tool;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pgstrata::connect::{ConnectionSettings, ControlRuntime, GivenSettings, Purpose, Session, Surroundings};
use pgstrata::tracking::{ChangesAsked, ServerChanges, SummaryPlace, server_changes};
use pgstrata_protocol::TimelineId;
use pgstrata_protocol::replication::{BackupPosition, TimelineHistory};
use pgstrata_protocol::summary::BlockReferences;
use pgstrata_tests as harness;
use pgstrata_tests::{Complete, Source, Sql};

#[test]
fn of_version_17() {
    all(17);
}

#[test]
fn of_version_18() {
    all(18);
}

#[test]
fn older_servers_have_none() {
    let source = harness::cluster(15).start();
    let at = position(&source.sql());
    let found = ask(&source, &asked(at, at, SummaryPlace::Sql));
    let ServerChanges::Unknown(reason) = found else { panic!("{found:?}") };
    assert!(reason.contains("writes no WAL summaries, expected 17 or newer"), "{reason}");
}

fn all(major: u32) {
    let Some(stock) = harness::complete(major) else { return };
    let settings = [("autovacuum", "off"), ("wal_keep_size", "512MB")];
    let source =
        settings.iter().fold(harness::cluster(major), |made, (name, value)| made.setting(name, value));
    let mut bench = Bench { source: source.start(), stock };
    // Not on the command line, which nothing could turn off again.
    let sql = bench.source.sql();
    sql.execute("ALTER SYSTEM SET summarize_wal = on");
    sql.execute("SELECT pg_reload_conf()");
    drop(sql);
    let span = changes::touched_and_nothing_else(&bench);
    gaps::are_named(&bench, span);
    changes::over_a_switch_of_timelines(&mut bench, span);
    gaps::nothing_is_waited_for_in_vain(&bench, span.0);
    tool::beside_the_stock_tool(&bench, major);
}

/// A server that summarises, and the tools of its version.
struct Bench {
    source: Source,
    stock: &'static Complete,
}

impl Bench {
    /// The summaries.
    fn folder(&self) -> PathBuf {
        self.source.data_dir().join("pg_wal/summaries")
    }

    /// The summaries that are needed, in order, as the server lists them.
    fn needed(&self, (from, to): (BackupPosition, BackupPosition)) -> Vec<PathBuf> {
        // Positions of a test are small.
        let hex = |value: &str| format!("lpad(to_hex(({value})::int8), 16, '0')");
        let (start, end) = (hex("start_lsn - '0/0'"), hex("end_lsn - '0/0'"));
        let name = format!("lpad(to_hex(tli), 8, '0') || {start} || {end}");
        let sql = format!(
            "SELECT upper({name}) || '.summary' FROM pg_available_wal_summaries() \
             WHERE end_lsn > '{}' AND start_lsn < '{}' ORDER BY tli, start_lsn",
            from.lsn, to.lsn
        );
        let names = self.source.sql().rows(&sql);
        names.into_iter().map(|row| self.folder().join(row[0].as_deref().expect("a name"))).collect()
    }

    /// What changed, by both ways of reading, which must agree.
    fn changes(&self, asked: &ChangesAsked) -> BlockReferences {
        let of = |place| match ask(&self.source, &ChangesAsked { place, ..asked.clone() }) {
            ServerChanges::Known { changes, summaries } => {
                assert!(summaries > 0);
                changes
            }
            ServerChanges::Unknown(reason) => panic!("{reason}"),
        };
        let (by_rows, by_files) = (of(SummaryPlace::Sql), of(SummaryPlace::Folder(self.folder())));
        assert_eq!(stock_lines::of_table(&by_rows), stock_lines::of_table(&by_files));
        by_files
    }
}

/// Where a backup would begin now.
fn position(sql: &Sql) -> BackupPosition {
    let lsn: String = sql.value("SELECT pg_backup_start('x', true)");
    sql.execute("SELECT pg_backup_stop(false)");
    let timeline = sql.value("SELECT timeline_id FROM pg_control_checkpoint()");
    BackupPosition { lsn: lsn.parse().expect("a position"), timeline: TimelineId(timeline) }
}

fn asked(from: BackupPosition, to: BackupPosition, place: SummaryPlace) -> ChangesAsked {
    ChangesAsked { from, to, history: None, place, patience: None }
}

/// Asks the server as a backup does.
fn ask(source: &Source, asked: &ChangesAsked) -> ServerChanges {
    let surroundings = Surroundings { variable: &|_| None, ..Surroundings::of_process() };
    let conninfo = source.conninfo();
    let given = GivenSettings { conninfo: Some(&conninfo), ..GivenSettings::default() };
    let settings = ConnectionSettings::resolve(&given, &surroundings).expect("a good connection string");
    let settings = settings.with_database("postgres");
    let runtime = ControlRuntime::new().expect("a runtime");
    runtime.block_on(async {
        let mut session =
            Session::connect(&settings, Purpose::Sql, Arc::new(|_| ())).await.expect("a session");
        session.set_stall_limit(Some(Duration::from_secs(120)));
        let found = server_changes(&mut session, asked).await;
        session.close().await;
        found.expect("the connection holds")
    })
}

/// The history of a timeline, as the server keeps it.
fn history(data_dir: &Path, timeline: u32) -> TimelineHistory {
    let path = data_dir.join(format!("pg_wal/{timeline:08X}.history"));
    TimelineHistory::parse(TimelineId(timeline), &fs::read(path).expect("a history")).expect("a good one")
}
