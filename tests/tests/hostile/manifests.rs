//! Manifests that do not match what arrived, or themselves.

use pgstrata_tests::fake::{FakeBackup, Member, sealed};

use crate::case::{Case, MAJORS, run_all, with_manifest};

/// The honest manifest, changed and sealed again.
fn changed(major: u32, change: impl Fn(String) -> String) -> Vec<u8> {
    let honest = FakeBackup::honest(major).manifest_bytes().expect("an honest manifest");
    let text = String::from_utf8(honest).expect("plain names");
    let end = text.find("\"Manifest-Checksum\"").expect("a sealed manifest");
    sealed(&change(text[..end].to_owned()))
}

/// One file's entry.
fn entry(path: &str, size: usize, checksum: &str) -> String {
    format!(
        "{{ \"Path\": \"{path}\", \"Size\": {size}, \"Last-Modified\": \"2023-11-14 22:13:20 GMT\", \
         \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum}\" }}"
    )
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

#[test]
fn manifests_that_do_not_match_the_files_are_refused() {
    type Change = fn(String) -> String;
    let rows: [(&str, Change, &[&str]); 16] = [
        (
            "wrong checksum",
            |t| replaced(&t, "\"Size\": 3,", "\"Size\": 3, \"Checksum\": \"00000000\", \"x"),
            &["manifest"],
        ),
        (
            "wrong size",
            |t| replaced(&t, "\"Size\": 400000", "\"Size\": 400001"),
            &["base/1/1259", "400000", "400001"],
        ),
        ("size 0", |t| replaced(&t, "\"Size\": 8192", "\"Size\": 0"), &["global/pg_control", "8192"]),
        (
            "a file more",
            |t| replaced(&t, "\n],\n", &format!(",\n{}\n],\n", entry("base/1/9", 1, "00000000"))),
            &["base/1/9", "did not arrive"],
        ),
        ("a name changed", |t| replaced(&t, "base/1/1259", "base/1/1260"), &["base/1/1260", "base/1/1259"]),
        ("a path out", |t| replaced(&t, "base/1/1259", "../beside/file"), &["..", "refused"]),
        ("an absolute path", |t| replaced(&t, "base/1/1259", "/etc/passwd"), &["absolute"]),
        ("negative size", |t| replaced(&t, "\"Size\": 400000", "\"Size\": -1"), &["invalid"]),
        ("huge size", |t| replaced(&t, "\"Size\": 400000", "\"Size\": 99999999999999999999"), &["manifest"]),
        (
            "sizes that overflow",
            |t| replaced(&t, "\"Size\": 400000", "\"Size\": 18446744073709551615"),
            &["64 bits"],
        ),
        (
            "no files",
            |t| {
                let (a, b) = (t.find("[\n").unwrap(), t.find("\n],").unwrap());
                format!("{}[{}", &t[..a], &t[b..])
            },
            &["not in the manifest"],
        ),
        (
            "an impossible range",
            |t| replaced(&t, "\"End-LSN\": \"0/2000100\"", "\"End-LSN\": \"0/1000000\""),
            &["range"],
        ),
        (
            "another end",
            |t| replaced(&t, "\"End-LSN\": \"0/2000100\"", "\"End-LSN\": \"0/2000101\""),
            &["0/2000101"],
        ),
        (
            "another start",
            |t| replaced(&t, "\"Start-LSN\": \"0/2000028\"", "\"Start-LSN\": \"0/2000020\""),
            &["0/2000020"],
        ),
        ("another timeline", |t| replaced(&t, "\"Timeline\": 1", "\"Timeline\": 2"), &["timeline"]),
        (
            "no range",
            |t| {
                let a = t.find("{ \"Timeline\"").unwrap();
                format!("{}\n],\n", &t[..a])
            },
            &["WAL"],
        ),
    ];
    let mut all = Vec::new();
    for major in MAJORS {
        for (name, change, expected) in rows {
            let build = move |_: &crate::case::Place| with_manifest(major, changed(major, change)).reply();
            let case = Case::answer(name, major, build).refused(expected);
            all.push(case.in_tar(move |_| {
                let reply = with_manifest(major, changed(major, change)).reply();
                pgstrata_tests::fake::Script::version(major).answer("BASE_BACKUP", reply)
            }));
            all.push(case);
        }
        // Each byte of one checksum, found and expected by name.
        for digit in 0..8 {
            let build = move |_: &crate::case::Place| {
                let manifest = changed(major, |text| {
                    let (head, rest) = text.split_once("base/1/1259").expect("it is there");
                    let at = rest.find("\"Checksum\": \"").expect("it has one") + 13 + digit;
                    let other = if &rest[at..=at] == "0" { "1" } else { "0" };
                    format!("{head}base/1/1259{}{other}{}", &rest[..at], &rest[at + 1..])
                });
                with_manifest(major, manifest).reply()
            };
            let case = Case::answer(format!("digit {digit} of a checksum"), major, build);
            all.push(case.refused(&["base/1/1259", "CRC32C", "found", "expected"]));
        }
        // Data changed, manifest as it was.
        let build = move |_: &crate::case::Place| {
            let honest = FakeBackup::honest(major);
            let manifest = honest.manifest_bytes().expect("an honest manifest");
            let mut backup = with_manifest(major, manifest);
            let long = backup.members.iter_mut().find(|member| member.content.len() == 400_000);
            long.expect("it is there").content[123_456] ^= 0x10;
            backup.reply()
        };
        all.push(Case::answer("a changed byte", major, build).refused(&["base/1/1259", "found", "expected"]));
        // Twice in the archive of a tar backup, where no file system notices.
        let build = move |_: &crate::case::Place| {
            let manifest = FakeBackup::honest(major).manifest_bytes().expect("an honest manifest");
            with_manifest(major, manifest).with(Member::file("PG_VERSION", format!("{major}\n"))).reply()
        };
        let case = Case::answer("a file twice", major, build);
        all.push(case.arguments(&["-X", "none", "-Ft"]).refused(&["PG_VERSION"]));
    }
    run_all(&all);
}

#[test]
fn manifests_that_do_not_match_themselves_are_refused() {
    let mut all = Vec::new();
    for major in MAJORS {
        let honest = FakeBackup::honest(major).manifest_bytes().expect("an honest manifest");
        let text = String::from_utf8(honest.clone()).expect("plain names");
        let seal = text.find("\"Manifest-Checksum\"").expect("a sealed manifest");
        let digit = text.rfind("\"}").expect("the end") - 1;
        let mut broken: Vec<(String, Vec<u8>)> = vec![
            ("self-checksum".into(), {
                let mut bytes = honest.clone();
                bytes[digit] = if bytes[digit] == b'0' { b'1' } else { b'0' };
                bytes
            }),
            ("a date".into(), text.replacen("22:13:20", "22:13:21", 1).into_bytes()),
            ("no seal".into(), text.as_bytes()[..seal].to_vec()),
            ("no line end".into(), text.trim_end().as_bytes().to_vec()),
            ("more behind".into(), format!("{text}{{}}\n").into_bytes()),
            ("empty".into(), Vec::new()),
            ("no manifest".into(), b"\0\xff\xfe".to_vec()),
            (
                "a later version".into(),
                changed(major, |text| {
                    text.replacen("-Version\": 1", "-Version\": 3", 1).replacen(
                        "-Version\": 2",
                        "-Version\": 3",
                        1,
                    )
                }),
            ),
            ("an endless line".into(), vec![b' '; 40 << 20]),
            ("deep nesting".into(), b"[".repeat(2 << 20)),
            (
                "a key twice".into(),
                changed(major, |text| text.replacen("\"Size\": 3,", "\"Size\": 3, \"Size\": 3,", 1)),
            ),
            (
                "an unknown key".into(),
                changed(major, |text| text.replacen("\"Size\": 3,", "\"Size\": 3, \"Mode\": 3,", 1)),
            ),
            ("another algorithm".into(), changed(major, |text| text.replacen("CRC32C", "MD5", 1))),
        ];
        for cut in (1..honest.len()).step_by(97) {
            broken.push((format!("cut after {cut}"), honest[..cut].to_vec()));
        }
        for (name, manifest) in broken {
            let build = move |_: &crate::case::Place| with_manifest(major, manifest.clone()).reply();
            all.push(Case::answer(name, major, build).refused(&["manifest"]));
        }
        // Of another cluster than the one that answers.
        if major >= 17 {
            let build = move |_: &crate::case::Place| {
                let manifest =
                    changed(major, |text| replaced(&text, "7300000000000000001", "7300000000000000002"));
                with_manifest(major, manifest).reply()
            };
            let case = Case::answer("another system", major, build);
            all.push(case.refused(&["7300000000000000001", "7300000000000000002"]));
        }
    }
    run_all(&all);
}
