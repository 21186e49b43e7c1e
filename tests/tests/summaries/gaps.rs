//! Whatever is missing is named, and nobody waits for what does not come.

use std::fs;
use std::time::{Duration, Instant};

use pgstrata::tracking::{ChangesAsked, ServerChanges, SummaryPlace};
use pgstrata_protocol::TimelineId;
use pgstrata_protocol::replication::BackupPosition;
use pgstrata_protocol::summary::SummaryName;
use pgstrata_tests as harness;
use rustix::process::{Pid, Signal, kill_process};

use crate::changes::Span;
use crate::{Bench, ask, asked, history, position};

fn reason(bench: &Bench, asked: &ChangesAsked) -> String {
    match ask(&bench.source, asked) {
        ServerChanges::Unknown(reason) => reason,
        ServerChanges::Known { summaries, .. } => panic!("known by {summaries} summaries"),
    }
}

pub(crate) fn are_named(bench: &Bench, (from, to): Span) {
    let folder = bench.folder();
    let files = bench.needed((from, to));
    let middle = &files[files.len() / 2];
    let name = middle.file_name().expect("a name");
    let range = SummaryName::parse(name.as_encoded_bytes()).expect("a summary's name");
    let aside = bench.source.dir("aside");
    let places = [SummaryPlace::Sql, SummaryPlace::Folder(folder)];

    fs::rename(middle, &aside).expect("one file system");
    for place in places.clone() {
        let reason = reason(bench, &asked(from, to, place));
        let expected = format!(
            "WAL summaries are needed on timeline 1 from {} to {}, and there is none for {}",
            from.lsn, to.lsn, range.start
        );
        assert_eq!(reason, expected);
    }

    // The server lists what is damaged, too.
    let mut bytes = fs::read(&aside).expect("it is there");
    let half = bytes.len() / 2;
    bytes[half] ^= 0x10;
    fs::write(middle, &bytes).expect("a writable folder");
    let by_rows = reason(bench, &asked(from, to, SummaryPlace::Sql));
    assert!(by_rows.starts_with("could not read a WAL summary of the server: "), "{by_rows}");
    let by_files = reason(bench, &asked(from, to, places[1].clone()));
    assert!(
        by_files.starts_with(&format!("could not use WAL summary \"{}\": ", middle.display())),
        "{by_files}"
    );

    let elsewhere = SummaryPlace::Folder(bench.source.dir("nothing"));
    fs::remove_file(middle).expect("it is there");
    fs::rename(&aside, middle).expect("one file system");
    let missing = reason(bench, &asked(from, to, elsewhere));
    assert!(missing.starts_with("could not open WAL summary \""), "{missing}");
    let foreign = BackupPosition { timeline: TimelineId(9), ..from };
    let foreign = reason(bench, &asked(foreign, to, SummaryPlace::Sql));
    let expected =
        "the older backup is no ancestor of this one: timeline 9 is not in the history of timeline 1";
    assert_eq!(foreign, expected);
    // As before.
    bench.changes(&asked(from, to, SummaryPlace::Sql));
}

pub(crate) fn nothing_is_waited_for_in_vain(bench: &Bench, from: BackupPosition) {
    let sql = bench.source.sql();
    let history = Some(history(bench.source.data_dir(), 2));
    let patience = Some(Duration::from_millis(500));
    let asked =
        |to| ChangesAsked { history: history.clone(), patience, ..asked(from, to, SummaryPlace::Sql) };
    let before = position(&sql);
    let known = ChangesAsked { patience: None, ..asked(before) };
    bench.changes(&known);

    let pid: i32 = sql.value("SELECT summarizer_pid FROM pg_get_wal_summarizer_state()");
    let pid = Pid::from_raw(pid).expect("a process");
    kill_process(pid, Signal::STOP).expect("it runs");
    sql.execute("UPDATE s.touched SET v = 'meanwhile' WHERE i = 1");
    let to = position(&sql);
    let started = Instant::now();
    let stuck = reason(bench, &asked(to));
    kill_process(pid, Signal::CONT).expect("it stands still");
    assert!(stuck.contains(&format!("they are needed up to {}, and for 500ms", to.lsn)), "{stuck}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    bench.changes(&ChangesAsked { patience: None, ..asked(to) });

    sql.execute("ALTER SYSTEM SET summarize_wal = off");
    sql.execute("SELECT pg_reload_conf()");
    harness::wait_until("nobody summarises", || {
        sql.value::<String>("SELECT summarizer_pid IS NULL FROM pg_get_wal_summarizer_state()") == "t"
    });
    sql.execute("UPDATE s.touched SET v = 'unseen' WHERE i = 2");
    let later = position(&sql);
    let started = Instant::now();
    let off = reason(bench, &ChangesAsked { patience: None, ..asked(later) });
    assert!(off.ends_with(&format!("and there is none for {}; summarize_wal is off", to.lsn)), "{off}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    // What has been summarised is enough for what lies before.
    bench.changes(&asked(to));
}
