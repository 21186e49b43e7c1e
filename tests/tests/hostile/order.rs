//! Messages that come in the wrong order, in the wrong number, or with bodies that mean nothing.

use pgstrata_tests::fake::message::{
    self, command_complete, copy_data, copy_done, copy_out, data_row, ready, row_description, with_length,
};
use pgstrata_tests::fake::{FakeBackup, Manifest, Reply, Script};

use crate::case::{Case, MAJORS, place_of, run_all};

type Change = fn(&mut Vec<Vec<u8>>);
type Row = (&'static str, Change, &'static [&'static str]);

fn changed(major: u32, change: impl Fn(&mut Vec<Vec<u8>>)) -> Reply {
    let mut messages = FakeBackup::honest(major).messages();
    change(&mut messages);
    Reply::messages(messages)
}

fn cases(majors: &[u32], rows: &'static [Row]) -> Vec<Case> {
    let case = |major: u32, (name, change, expected): &'static Row| {
        Case::answer(*name, major, move |_| changed(major, change)).refused(expected)
    };
    majors.iter().flat_map(|major| rows.iter().map(move |row| case(*major, row))).collect()
}

fn typed(kind: u8, body: &[u8]) -> Vec<u8> {
    copy_data(&[&[kind], body].concat())
}

#[test]
fn typed_messages_out_of_order_are_refused() {
    run_all(&cases(
        &[18],
        &[
            ("data before an archive", |m| before(m, b'd', Some(b'n'), typed(b'd', &[1; 512])), &["data"]),
            ("manifest before an archive", |m| before(m, b'd', Some(b'n'), typed(b'm', b"")), &["manifest"]),
            (
                "archive twice",
                |m| before(m, b'd', Some(b'm'), typed(b'n', b"base.tar\0\0")),
                &["new archive"],
            ),
            ("manifest twice", |m| before(m, b'd', Some(b'm'), typed(b'm', b"")), &["manifest"]),
            (
                "base missing",
                |m| {
                    m.remove(place_of(m, b'd', Some(b'n')));
                },
                &["data"],
            ),
            (
                "only a manifest",
                |m| {
                    let (begin, end) = (place_of(m, b'd', Some(b'n')), place_of(m, b'd', Some(b'm')));
                    m.drain(begin..end);
                },
                &["manifest"],
            ),
            ("nothing", |m| m.retain(|message| message[0] != b'd'), &["before any archive"]),
            (
                "archive after the manifest",
                |m| before(m, b'c', None, typed(b'n', b"16384.tar\0/x\0")),
                &["new archive"],
            ),
            (
                "tablespace that is not listed",
                |m| before(m, b'd', Some(b'n'), typed(b'n', b"16384.tar\0/x\0")),
                &["16384.tar", "list of tablespaces"],
            ),
            (
                "progress backwards",
                |m| before(m, b'd', Some(b'm'), typed(b'p', &[0xff; 8])),
                &["not negative"],
            ),
            ("short progress", |m| before(m, b'd', Some(b'm'), typed(b'p', &[0; 7])), &["8 bytes"]),
            ("long progress", |m| before(m, b'd', Some(b'm'), typed(b'p', &[0; 9])), &["8 bytes"]),
            ("endless progress", |m| before(m, b'd', Some(b'm'), typed(b'p', &[0; 9000])), &["more than"]),
            ("unknown type", |m| before(m, b'd', Some(b'm'), typed(b'x', b"")), &["unknown type"]),
            ("empty message", |m| before(m, b'd', Some(b'm'), copy_data(b"")), &["empty CopyData"]),
            (
                "manifest with content",
                |m| before(m, b'd', Some(b'm'), typed(b'm', b"x")),
                &["nothing behind"],
            ),
            ("name without an end", |m| name(m, typed(b'n', b"base.tar")), &["two strings"]),
            ("name without a location", |m| name(m, typed(b'n', b"base.tar\0")), &["two strings"]),
            ("three strings", |m| name(m, typed(b'n', b"base.tar\0\0\0")), &["two strings"]),
            ("endless name", |m| name(m, typed(b'n', &[b'x'; 100_000])), &["more than"]),
            ("path for a name", |m| name(m, typed(b'n', b"../../base.tar\0\0")), &["archive name"]),
            ("octal oid", |m| name(m, typed(b'n', b"016384.tar\0/x\0")), &["archive name"]),
            ("compressed", |m| name(m, typed(b'n', b"base.tar.gz\0\0")), &["compressed"]),
            ("base with a location", |m| name(m, typed(b'n', b"base.tar\0/x\0")), &["location"]),
            ("copy twice", |m| before(m, b'c', None, copy_out()), &["expected"]),
            (
                "second copy",
                |m| {
                    let at = place_of(m, b'c', None) + 1;
                    m.splice(at..at, [copy_out(), typed(b'n', b"base.tar\0\0"), copy_done()]);
                },
                &["second copy"],
            ),
        ],
    ));
}

/// Puts a message before the first of a kind.
fn before(messages: &mut Vec<Vec<u8>>, tag: u8, kind: Option<u8>, message: Vec<u8>) {
    messages.insert(place_of(messages, tag, kind), message);
}

/// Puts a message in the place of the first of a kind.
fn replace(messages: &mut [Vec<u8>], tag: u8, kind: Option<u8>, message: Vec<u8>) {
    let at = place_of(messages, tag, kind);
    messages[at] = message;
}

/// Puts a message in the place of the one that begins the archive.
fn name(messages: &mut [Vec<u8>], message: Vec<u8>) {
    replace(messages, b'd', Some(b'n'), message);
}

#[test]
fn untyped_copies_in_the_wrong_number_are_refused() {
    run_all(&cases(
        &[14],
        &[
            (
                "no archive",
                |m| {
                    let (begin, end) = (place_of(m, b'H', None), place_of(m, b'c', None));
                    m.drain(begin..=end);
                },
                &["tar"],
            ),
            (
                "third copy",
                |m| {
                    let at = m.len() - 5;
                    m.splice(at..at, [copy_out(), copy_data(b"x"), copy_done()]);
                },
                &["another copy"],
            ),
            (
                "manifest in the archive's copy",
                |m| {
                    let at = place_of(m, b'c', None);
                    m.drain(at..at + 2);
                },
                &["tar"],
            ),
            (
                "no manifest",
                |m| {
                    let from = place_of(m, b'c', None) + 1;
                    m.drain(from..from + 3);
                },
                &["manifest"],
            ),
            (
                "empty manifest",
                |m| {
                    let from = place_of(m, b'c', None) + 2;
                    m.remove(from);
                },
                &["manifest"],
            ),
            (
                "copy to the server",
                |m| replace(m, b'H', None, message::message(b'G', &[0, 0, 0])),
                &["without sending"],
            ),
        ],
    ));
}

#[test]
fn results_that_mean_nothing_are_refused() {
    let mut all = cases(
        &MAJORS,
        &[
            (
                "no results",
                |m| {
                    m.drain(..place_of(m, b'H', None));
                },
                &["0 results"],
            ),
            (
                "no tablespaces",
                |m| {
                    m.drain(3..place_of(m, b'H', None));
                },
                &["1 results"],
            ),
            (
                "no base",
                |m| {
                    m.remove(4);
                },
                &["data directory"],
            ),
            ("two bases", |m| m.insert(4, data_row(&[None, None, Some("1")])), &["data directory"]),
            ("NULL start", |m| m[1] = data_row(&[None, Some("1")]), &["recptr", "NULL"]),
            ("bad start", |m| m[1] = data_row(&[Some("0/XYZ"), Some("1")]), &["recptr", "log position"]),
            ("bad timeline", |m| m[1] = data_row(&[Some("0/2000028"), Some("99999999999")]), &["tli"]),
            ("timeline 0", |m| m[1] = data_row(&[Some("0/2000028"), Some("0")]), &["tli"]),
            ("short row", |m| m[1] = data_row(&[Some("0/2000028")]), &["columns"]),
            ("two starts", |m| m.insert(2, data_row(&[Some("0/2000028"), Some("1")])), &["rows"]),
            ("missing column", |m| m[0] = row_description(&["recptr", "tlj"]), &["tli"]),
            ("bad oid", |m| m.insert(4, data_row(&[Some("-1"), Some("/x"), Some("1")])), &["spcoid"]),
            ("NULL location", |m| m.insert(4, data_row(&[Some("16384"), None, Some("1")])), &["spclocation"]),
            ("size of nothing", |m| m[4] = data_row(&[None, None, Some("-5")]), &["size"]),
            (
                "relative location",
                |m| m.insert(4, data_row(&[Some("16384"), Some("../beside"), Some("1")])),
                &["16384"],
            ),
            ("empty location", |m| m.insert(4, data_row(&[Some("16384"), Some(""), Some("1")])), &["16384"]),
            (
                "in place elsewhere",
                |m| m.insert(4, data_row(&[Some("16384"), Some("pg_tblspc/1"), None])),
                &["16384"],
            ),
            (
                "an error instead",
                |m| *m = vec![message::error("XX000", "no"), ready()],
                &["no", "initiate base backup"],
            ),
            ("a fatal error instead", |m| *m = vec![message::fatal("57P01", "gone")], &["gone"]),
            (
                "nothing to send",
                |m| *m = vec![command_complete("BASE_BACKUP"), ready()],
                &["without sending"],
            ),
            (
                "an error in the data",
                |m| {
                    m.truncate(12);
                    m.extend([message::error("58P01", "lost file"), ready()]);
                },
                &["lost file", "broke off"],
            ),
            (
                "an error at the end",
                |m| {
                    let at = m.len() - 1;
                    m.insert(at, message::error("XX000", "late"));
                },
                &["late"],
            ),
            (
                "no end",
                |m| {
                    let at = m.len() - 5;
                    m.drain(at..at + 3);
                },
                &["end position"],
            ),
            (
                "bad end",
                |m| {
                    let at = m.len() - 4;
                    m[at] = data_row(&[Some("x"), Some("1")]);
                },
                &["recptr"],
            ),
            (
                "end before start",
                |m| {
                    let at = m.len() - 4;
                    m[at] = data_row(&[Some("0/1000000"), Some("1")]);
                },
                &["0/1000000"],
            ),
            (
                "end elsewhere",
                |m| {
                    let at = m.len() - 4;
                    m[at] = data_row(&[Some("0/2000101"), Some("1")]);
                },
                &["0/2000101"],
            ),
            (
                "end on another timeline",
                |m| {
                    let at = m.len() - 4;
                    m[at] = data_row(&[Some("0/2000100"), Some("2")]);
                },
                &["timeline"],
            ),
            ("start elsewhere", |m| m[1] = data_row(&[Some("0/2000030"), Some("1")]), &["0/2000030"]),
            (
                "no rows at the end",
                |m| {
                    let at = m.len() - 4;
                    m.remove(at);
                },
                &["rows"],
            ),
        ],
    );
    for major in MAJORS {
        // The same tablespace twice: one folder would be filled by two archives.
        let twice = move |place: &crate::case::Place| {
            let location = |n: u32| place.dir.join(format!("space {n}")).to_string_lossy().into_owned();
            let backup = FakeBackup::honest(major).with_tablespace("16384", &location(1), Vec::new());
            backup.with_tablespace("16384", &location(2), Vec::new()).reply()
        };
        all.push(Case::answer("tablespace listed twice", major, twice).refused(&["16384", "twice"]));
        let outside = move |place: &crate::case::Place| {
            let location = place.dir.join("space/../other").to_string_lossy().into_owned();
            FakeBackup::honest(major).with_tablespace("16384", &location, Vec::new()).reply()
        };
        all.push(Case::answer("location with dots", major, outside).refused(&["16384"]));
        let full = move |place: &crate::case::Place| {
            let location = place.dir.join("beside").to_string_lossy().into_owned();
            FakeBackup::honest(major).with_tablespace("16384", &location, Vec::new()).reply()
        };
        all.push(Case::answer("location in use", major, full).refused(&["beside", "not empty"]));
        let within = move |place: &crate::case::Place| {
            let location = place.dir.join("target/base").to_string_lossy().into_owned();
            FakeBackup::honest(major).with_tablespace("16384", &location, Vec::new()).reply()
        };
        all.push(Case::answer("location within the target", major, within).refused(&["base"]));
    }
    run_all(&all);
}

#[test]
fn frames_that_lie_are_refused() {
    let mut all = cases(
        &MAJORS,
        &[
            ("unknown tag", |m| m.insert(9, with_length(b'?', 4, b"")), &["unknown message tag"]),
            ("negative length", |m| m.insert(9, with_length(b'd', u32::MAX, b"")), &["states -1 bytes"]),
            ("length 3", |m| m.insert(9, with_length(b'd', 3, b"")), &["states 3 bytes"]),
            ("length 0", |m| m.insert(9, with_length(b'c', 0, b"")), &["states 0 bytes"]),
            (
                "huge row",
                |m| m[1] = with_length(b'D', i32::MAX.unsigned_abs(), &[0; 64]),
                &["states 2147483647 bytes"],
            ),
            (
                "huge error",
                |m| m.insert(9, with_length(b'E', 0x1000_0000, b"S")),
                &["states 268435456 bytes"],
            ),
            (
                "long completion",
                |m| m[2] = with_length(b'C', 40_000, &[b'x'; 39_996]),
                &["states 40000 bytes"],
            ),
            (
                "row that ends early",
                |m| m[1] = with_length(b'D', 12, &[0, 2, 0, 0, 0, 99, 1, 2]),
                &["malformed"],
            ),
            ("row of -2 columns", |m| m[1] = with_length(b'D', 6, &[0xff, 0xfe]), &["malformed"]),
            (
                "value of -2 bytes",
                |m| m[1] = with_length(b'D', 10, &[0, 1, 0xff, 0xff, 0xff, 0xfe]),
                &["malformed"],
            ),
            ("huge data", |m| m.insert(9, with_length(b'd', i32::MAX.unsigned_abs(), &[b'd'; 600])), &[""]),
            (
                "a password prompt",
                |m| m.insert(9, message::message(b'R', &3_u32.to_be_bytes())),
                &["expected"],
            ),
            ("a row in the data", |m| m.insert(9, data_row(&[Some("x")])), &["expected"]),
            ("ready in the data", |m| m.insert(12, ready()), &["expected"]),
        ],
    );
    for major in MAJORS {
        // A server that asks to wait for more rows than memory is for.
        let rows = move |_: &crate::case::Place| {
            let mut messages = FakeBackup::honest(major).messages();
            let row = data_row(&[Some("16384"), Some(&"/x".repeat(500)), Some("1")]);
            messages.splice(4..4, std::iter::repeat_n(row, 100_000));
            Reply::bytes(messages.concat())
        };
        all.push(Case::answer("100,000 tablespaces of 1000 bytes", major, rows).refused(&["more than"]));
        let many = move |place: &crate::case::Place| {
            let mut messages = FakeBackup::honest(major).messages();
            let row = |n: u32| {
                let location = place.dir.join(format!("spaces/{n}"));
                data_row(&[Some(&(16_384 + n).to_string()), Some(&location.to_string_lossy()), Some("1")])
            };
            messages.splice(4..4, (0..20_000).map(row));
            Reply::bytes(messages.concat())
        };
        all.push(Case::answer("20,000 tablespaces that do not come", major, many).refused(&[""]));
        let notices = move |_: &crate::case::Place| {
            let mut messages = FakeBackup::honest(major).messages();
            messages.splice(9..9, std::iter::repeat_n(message::warning("and again"), 5_000));
            Reply::bytes(messages.concat())
        };
        all.push(Case::answer("5,000 warnings", major, notices));
        let garbage = move |_: &crate::case::Place| {
            let mut messages = FakeBackup::honest(major).messages();
            messages.push(vec![0xff; 100_000]);
            Reply::messages(messages)
        };
        // The backup is complete; what comes behind belongs to nobody.
        all.push(Case::answer("garbage after the end", major, garbage));
        let unwanted = move |_: &crate::case::Place| FakeBackup::honest(major).reply();
        let unwanted = Case::answer("manifest that was not asked for", major, unwanted);
        all.push(unwanted.arguments(&["-X", "none", "--no-manifest"]).refused(&[""]));
        let absent =
            move |_: &crate::case::Place| FakeBackup::honest(major).with_manifest(Manifest::Absent).reply();
        all.push(Case::answer("no manifest", major, absent).refused(&["manifest"]));
    }
    all.push(
        Case::new("an answer to everything but the backup", |_| Script::version(18)).refused(&["no answer"]),
    );
    run_all(&all);
}
