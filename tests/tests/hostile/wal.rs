//! WAL streams that no honest server sends.

use std::time::Duration;

use pgstrata_tests::fake::message::{
    command_complete, copy_both, copy_data, copy_done, data_row, ready, row_description, with_length,
};
use pgstrata_tests::fake::{FakeBackup, FakeServer, Reply, Script, Step, WAL_START as START, honest_wal};
use pgstrata_tests::{Scratch, pgstrata};

use crate::case::{Case, MAJORS, run_all};

/// A message with WAL.
fn wal(major: u32, at: u64, length: usize) -> Vec<u8> {
    let from = usize::try_from(at.saturating_sub(START)).unwrap_or_default().min(1 << 20);
    message(at, &honest_wal(major, from + length)[from..])
}

fn message(at: u64, content: &[u8]) -> Vec<u8> {
    let header = [&b"w"[..], &at.to_be_bytes(), &at.wrapping_add(1).to_be_bytes(), &[0; 8]].concat();
    copy_data(&[&header, content].concat())
}

/// The honest backup's WAL with something changed.
fn changed(major: u32, change: impl Fn(&mut Vec<u8>)) -> Vec<Vec<u8>> {
    let mut log = honest_wal(major, 8192);
    change(&mut log);
    vec![message(START, &log)]
}

fn keepalive(reply: u8) -> Vec<u8> {
    copy_data(&[&b"k"[..], &[0; 16], &[reply]].concat())
}

fn script(major: u32, stream: Vec<Vec<u8>>) -> Script {
    let slot = Reply::rows(
        &["slot_name", "consistent_point", "snapshot_name", "output_plugin"],
        &[&[Some("s"), Some("0/0"), None, None]],
    );
    let stream = Reply::messages([vec![copy_both()], stream].concat());
    let end = [copy_done(), command_complete("COPY 0"), command_complete("START_STREAMING"), ready()];
    Script::version(major)
        .answer("BASE_BACKUP", FakeBackup::honest(major).reply())
        .answer("CREATE_REPLICATION_SLOT", slot)
        .answer("START_REPLICATION", stream)
        .after_copy(Reply::bytes(end.concat()))
}

#[test]
fn honest_streams_are_taken_in_any_pieces() {
    let mut all = Vec::new();
    for major in MAJORS {
        for (name, stream) in [
            ("one message", vec![wal(major, START, 8192)]),
            ("small messages", (0..600).map(|n| wal(major, START + n, 1)).collect()),
            (
                "keepalives between",
                vec![
                    keepalive(1),
                    wal(major, START, 100),
                    keepalive(0),
                    wal(major, START + 100, 400),
                    keepalive(1),
                ],
            ),
            ("more than is needed", vec![wal(major, START, 131_072), wal(major, START + 131_072, 131_072)]),
        ] {
            for arguments in [&["-X", "stream"][..], &["-X", "stream", "-Ft"]] {
                let stream = stream.clone();
                let build = move |_: &crate::case::Place| script(major, stream.clone());
                all.push(Case::new(format!("{major}: {name}"), build).arguments(arguments));
            }
        }
    }
    run_all(&all);
}

#[test]
fn wal_that_is_none_is_refused() {
    let cut = |message: Vec<u8>, length: usize| copy_data(&message[5..5 + length]);
    let mut all = Vec::new();
    for major in MAJORS {
        for (name, stream, expected) in [
            ("from elsewhere", vec![wal(major, START + 8192, 8192)], "0/2002000"),
            ("from before", vec![wal(major, 0, 8192)], "0/0"),
            ("a gap", vec![wal(major, START, 8), wal(major, START + 9, 8192)], "0/2000009"),
            ("an overlap", vec![wal(major, START, 8), wal(major, START + 7, 8192)], "0/2000007"),
            ("past the end of all", vec![wal(major, u64::MAX - 5, 100)], "FFFFFFFF"),
            (
                "a changed record",
                changed(major, |log| log[100] ^= 1),
                "WAL record at 0/2000028: found content",
            ),
            ("another cluster's", changed(major, |log| log[24] ^= 1), "WAL page at 0/2000000: found system"),
            ("another version's", changed(major, |log| log[0] ^= 1), "found magic"),
            ("zeros", changed(major, |log| log.fill(0)), "found magic 0x0000"),
            ("an endless record", changed(major, |log| log[0x2b] = 0x7f), "found length"),
            ("unknown type", vec![copy_data(b"x12345678")], "type 0x78"),
            ("empty message", vec![copy_data(b"")], "0 bytes"),
            ("short header", vec![cut(wal(major, START, 8), 24)], "24 bytes"),
            ("short keepalive", vec![cut(keepalive(0), 17)], "17 bytes"),
            ("long keepalive", vec![copy_data(&[&b"k"[..], &[0; 18]].concat())], "19 bytes"),
            (
                "an end",
                vec![wal(major, START, 8), copy_done(), command_complete("COPY 0"), ready()],
                "ended the stream",
            ),
            (
                "an error",
                vec![
                    wal(major, START, 8),
                    pgstrata_tests::fake::message::error("58P01", "recycled"),
                    ready(),
                ],
                "recycled",
            ),
            ("a row", vec![data_row(&[Some("x")])], "expected"),
            ("garbage", vec![vec![0xee; 100]], "unknown message tag"),
        ] {
            for arguments in [&["-X", "stream"][..], &["-X", "stream", "-Ft"]] {
                let stream = stream.clone();
                let build = move |_: &crate::case::Place| script(major, stream.clone());
                let case = Case::new(format!("{major}: {name}"), build).arguments(arguments);
                all.push(case.refused(&["WAL", expected]));
            }
        }
        // A history whose name leads out, for a backup on timeline 2.
        for (name, file) in
            [("a path", "../../beside/file"), ("another timeline", "00000003.history"), ("nothing", "")]
        {
            let history = Reply::rows(&["filename", "content"], &[&[Some(file), Some("1\t0/1000000\tx\n")]]);
            let build = move |_: &crate::case::Place| {
                let mut backup = FakeBackup::honest(major);
                backup.start.1 = "2".into();
                backup.end.1 = "2".into();
                script(major, vec![wal(major, START, 8192)])
                    .answer("BASE_BACKUP", backup.reply())
                    .answer("TIMELINE_HISTORY", history.clone())
            };
            let case =
                Case::new(format!("{major}: history called {name}"), build).arguments(&["-X", "stream"]);
            all.push(case.refused(&["TIMELINE_HISTORY", "00000002.history"]));
        }
        let other = Reply::rows(
            &["systemid", "timeline", "xlogpos", "dbname"],
            &[&[Some("12"), Some("1"), Some("0/3000000"), None]],
        );
        let refused = move |_: &crate::case::Place| {
            script(major, Vec::new()).answer("START_REPLICATION", Reply::error("55000", "not today"))
        };
        let case = Case::new(format!("{major}: refusal"), refused).arguments(&["-X", "stream"]);
        all.push(case.refused(&["not today", "WAL"]));
        let no_slot = move |_: &crate::case::Place| {
            script(major, Vec::new())
                .answer("CREATE_REPLICATION_SLOT", Reply::error("53400", "all slots in use"))
        };
        let case = Case::new(format!("{major}: no slot"), no_slot).arguments(&["-X", "stream"]);
        all.push(case.refused(&["all slots in use"]));
        // The answer to the first question is the answer to the second: one script. So the slot tells the difference.
        let no_result = move |_: &crate::case::Place| {
            script(major, Vec::new()).answer("IDENTIFY_SYSTEM", other.clone()).answer("BASE_BACKUP", {
                let mut messages = vec![row_description(&["recptr", "tli"])];
                messages.extend([command_complete("SELECT"), ready()]);
                Reply::messages(messages)
            })
        };
        let case = Case::new(format!("{major}: no start"), no_result).arguments(&["-X", "stream"]);
        all.push(case.refused(&["BASE_BACKUP"]));
    }
    run_all(&all);
}

/// A length that was changed on its way makes everything behind it part of one message. The answers to the client's
/// questions then come as bytes within a long record, where no check can tell them from WAL; they are no sign of life.
#[test]
fn bytes_without_a_whole_message_are_no_sign_of_life() {
    for major in MAJORS {
        let mut log = honest_wal(major, 8000);
        log[0x28..0x2c].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        let header = [&b"w"[..], &START.to_be_bytes(), &(START + 1).to_be_bytes(), &[0; 8]].concat();
        let begun = with_length(b'd', 1 << 24, &[&header, &log[..100]].concat());
        let stream = Reply::messages([copy_both(), begun])
            .then(Step::Trickle(keepalive(0), Duration::from_millis(100)));
        let server = FakeServer::start(script(major, Vec::new()).answer("START_REPLICATION", stream));
        let scratch = Scratch::new();
        let finished = pgstrata(["basebackup", "--stall-timeout", "2", "-c", "fast", "-d"])
            .arg(server.conninfo())
            .arg("-D")
            .arg(scratch.join("target"))
            .limit(Duration::from_secs(30))
            .run();
        assert_eq!(finished.status.code(), Some(1), "{finished}");
        assert!(finished.stderr_text().contains("sent no whole message for 2s"), "{finished}");
    }
}
