//! What a server says before and beside the data: greetings, settings, names, errors. And honest streams in odd
//! pieces, which are to be taken.

use pgstrata_tests::fake::message::{self, authentication_ok, backend_key_data, parameter_status, ready};
use pgstrata_tests::fake::{FakeBackup, Manifest, Member, Reply, Script, Step};

use crate::case::{Case, MAJORS, run_all};

#[test]
fn greetings_that_are_none_are_refused() {
    let auth = |code: u32, rest: &[u8]| message::message(b'R', &[&code.to_be_bytes()[..], rest].concat());
    let version =
        |text: &str| [authentication_ok(), parameter_status("server_version", text), ready()].concat();
    let mut all = Vec::new();
    for (name, welcome, expected) in [
        ("silence", Reply::default().then(Step::Close), "closed the connection"),
        ("a reset", Reply::default().then(Step::Reset), "error"),
        ("HTTP", Reply::bytes("HTTP/1.1 400 Bad Request\r\n\r\n"), "message 'H'"),
        ("SSH", Reply::bytes("SSH-2.0-OpenSSH_9.2\r\n"), "PostgreSQL"),
        ("zeros", Reply::bytes(vec![0; 1000]), "unknown message tag"),
        (
            "a huge greeting",
            Reply::bytes(message::with_length(b'R', 0x7fff_ffff, &[0; 100])),
            "states 2147483647 bytes",
        ),
        ("an old error", Reply::bytes("Esorry, too many clients already\n\0"), "too many clients"),
        ("a refusal", Reply::bytes(message::fatal("53300", "too many connections")), "too many connections"),
        ("Kerberos", Reply::bytes(auth(2, &[])), "authentication"),
        ("a new method", Reply::bytes(auth(99, &[])), "authentication"),
        ("SASL that nobody knows", Reply::bytes(auth(10, b"ROT13\0\0")), "ROT13"),
        ("half of an MD5 salt", Reply::bytes(auth(5, &[1, 2])), "R"),
        ("no version", Reply::bytes([authentication_ok(), ready()].concat()), "server_version"),
        ("a version that is none", Reply::bytes(version("newest")), "newest"),
        ("a huge version", Reply::bytes(version("99999999999.1")), "version"),
        ("version 9.6", Reply::bytes(version("9.6.24")), "9.6"),
        ("version 12", Reply::bytes(version("12.22")), "12"),
        (
            "data at once",
            Reply::bytes([authentication_ok(), message::copy_data(b"x"), ready()].concat()),
            "error",
        ),
        ("keys of any length", Reply::bytes(message::message(b'K', &[0; 3])), "error"),
    ] {
        let build = move |_: &crate::case::Place| Script::version(18).welcome(welcome.clone());
        all.push(Case::new(name, build).refused(&[expected]));
    }
    run_all(&all);
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let mut all = Vec::new();
    let identify = |row: &[Option<&str>]| Reply::rows(&["systemid", "timeline", "xlogpos", "dbname"], &[row]);
    for (query, reply, expected) in [
        ("SHOW \"DATA_DIRECTORY_MODE\"", Reply::value("data_directory_mode", "0999"), "octal"),
        ("SHOW \"DATA_DIRECTORY_MODE\"", Reply::value("data_directory_mode", "7777777"), "octal"),
        ("SHOW \"WAL_SEGMENT_SIZE\"", Reply::value("wal_segment_size", "17MB"), "17MB"),
        ("SHOW \"WAL_SEGMENT_SIZE\"", Reply::value("wal_segment_size", "0"), "wal_segment_size"),
        (
            "SHOW \"WAL_SEGMENT_SIZE\"",
            Reply::value("wal_segment_size", "99999999999999999999TB"),
            "wal_segment_size",
        ),
        (
            "SHOW \"WAL_SEGMENT_SIZE\"",
            Reply::rows(&["a", "b"], &[&[Some("1"), Some("2")]]),
            "wal_segment_size",
        ),
        ("SHOW \"WAL_SEGMENT_SIZE\"", Reply::rows(&["wal_segment_size"], &[]), "wal_segment_size"),
        (
            "SHOW \"WAL_SEGMENT_SIZE\"",
            Reply::bytes([message::copy_out(), message::copy_done(), ready()].concat()),
            "copy",
        ),
        ("IDENTIFY_SYSTEM", identify(&[None, Some("1"), Some("0/0"), None]), "systemid"),
        ("IDENTIFY_SYSTEM", identify(&[Some("-1"), Some("1"), Some("0/0"), None]), "systemid"),
        ("IDENTIFY_SYSTEM", identify(&[Some("1"), Some("x"), Some("0/0"), None]), "timeline"),
        ("IDENTIFY_SYSTEM", identify(&[Some("1"), Some("1"), Some("nowhere"), None]), "xlogpos"),
        (
            "IDENTIFY_SYSTEM",
            Reply::bytes([message::command_complete("X"), ready()].concat()),
            "IDENTIFY_SYSTEM",
        ),
        ("IDENTIFY_SYSTEM", Reply::default().then(Step::Close), "closed the connection"),
    ] {
        let build = move |_: &crate::case::Place| Script::version(18).answer(query, reply.clone());
        all.push(Case::new(format!("{query}: {expected}"), build).refused(&[expected]));
    }
    run_all(&all);
}

/// Whatever clears a screen, changes a title, hides what follows or starts a line over.
const TERMINAL: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\rdone \u{8}\u{9b}31m";

#[test]
fn words_of_a_server_do_not_drive_the_terminal() {
    let mut all = Vec::new();
    for major in MAJORS {
        let error = move |_: &crate::case::Place| Reply::error("XX000", &format!("no{TERMINAL}yes"));
        all.push(Case::answer("an error", major, error).refused(&["yes"]));
        let warning = move |_: &crate::case::Place| {
            let mut messages = FakeBackup::honest(major).messages();
            messages.insert(9, message::warning(&format!("look{TERMINAL}here")));
            Reply::messages(messages)
        };
        all.push(Case::answer("a warning", major, warning));
        let name = format!("base/1/{TERMINAL}");
        let missing = name.clone();
        let file = move |_: &crate::case::Place| {
            let manifest = FakeBackup::honest(major).manifest_bytes().expect("an honest manifest");
            let backup = FakeBackup::honest(major).with(Member::file(&name, "x"));
            backup.with_manifest(Manifest::Bytes(manifest)).reply()
        };
        all.push(
            Case::answer("a file's name", major, file)
                .arguments(&["-X", "none", "-v", "-P"])
                .refused(&["base/1/"]),
        );
        let directory = move |_: &crate::case::Place| {
            let backup = FakeBackup::honest(major).with(Member::directory(&missing));
            backup.with(Member::directory(&missing)).reply()
        };
        all.push(Case::answer("a directory's name", major, directory).refused(&["base/1/"]));
        let tablespace = move |_: &crate::case::Place| {
            FakeBackup::honest(major).with_tablespace("5", &format!("../{TERMINAL}"), Vec::new()).reply()
        };
        all.push(Case::answer("a location", major, tablespace).refused(&["5"]));
    }
    let version = |_: &crate::case::Place| {
        let version = parameter_status("server_version", &format!("18.1 {TERMINAL}"));
        let welcome = [authentication_ok(), version, backend_key_data(), ready()].concat();
        Script::version(18)
            .welcome(Reply::bytes(welcome))
            .answer("BASE_BACKUP", FakeBackup::honest(18).reply())
    };
    all.push(Case::new("a version", version).arguments(&["-X", "none", "-v"]));
    run_all(&all);
}

#[test]
fn honest_streams_are_taken_in_any_pieces() {
    let mut all = Vec::new();
    for major in MAJORS {
        for size in [1, 2, 3, 7, 511, 513, 4096, 100_000] {
            let build = move |_: &crate::case::Place| {
                let mut backup = FakeBackup::honest(major);
                if size < 100 {
                    backup.members.retain(|member| member.content.len() < 10_000);
                }
                Reply::bytes(backup.messages().concat()).in_pieces(size)
            };
            all.push(Case::answer(format!("pieces of {size}"), major, build));
        }
        // Names as PostgreSQL allows them.
        let odd = move |_: &crate::case::Place| {
            let names = ["base/1/ space", "base/1/-rf", "base/1/...", "base/1/a\\b", "base/1/größe"];
            names
                .iter()
                .fold(FakeBackup::honest(major), |backup, name| {
                    let quoted = name.replace('\\', "");
                    backup.with(Member::file(quoted, "x"))
                })
                .reply()
        };
        all.push(Case::answer("odd names", major, odd));
        let tablespace = move |place: &crate::case::Place| {
            let location = place.dir.join("target.space").to_string_lossy().into_owned();
            let top = format!("PG_{major}_202209061");
            let members = vec![Member::directory(&top), Member::file(format!("{top}/1"), vec![1; 8192])];
            FakeBackup::honest(major).with_tablespace("16384", &location, members).reply()
        };
        all.push(Case::answer("a tablespace", major, tablespace));
    }
    run_all(&all);
}
