//! The reader and the writer against each other and against a real server's manifest.

use std::io::{self, Read};

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::{Lsn, TimelineId};

/// Written by a 13 server with forced encoding and SHA-256, cut down to a few files; checksum recomputed by sha256sum.
const MANIFEST_13: &[u8] = include_bytes!("../../testdata/base_backup_13.manifest");

type Events = Vec<ManifestEvent>;

fn read(source: impl Read) -> Result<(ManifestSummary, Events), ManifestError<&'static str>> {
    let mut events = Vec::new();
    let summary = read_manifest(source, &mut |event| {
        events.push(event);
        Ok(())
    })?;
    Ok((summary, events))
}

/// Puts the checksum line behind the other lines.
fn sealed(body: &str) -> Vec<u8> {
    let digest = Sha256::digest(body.as_bytes());
    let checksum = ChecksumValue::new(&digest).unwrap();
    format!("{body}\"Manifest-Checksum\": \"{checksum}\"}}\n").into_bytes()
}

const FILE: &str = r#"{ "Path": "a", "Size": 1, "Last-Modified": "2024-02-29 23:59:59 GMT" }"#;

fn with_files(files: &str) -> String {
    format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{files}\n],\n\"WAL-Ranges\": [\n\
         {{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n"
    )
}

fn rewrite(events: &[ManifestEvent], force_encode: bool) -> Vec<u8> {
    let system_identifier = events.iter().find_map(|event| match event {
        ManifestEvent::SystemIdentifier(identifier) => Some(*identifier),
        _ => None,
    });
    let version = match system_identifier {
        None => ManifestVersion::One,
        Some(system_identifier) => ManifestVersion::Two { system_identifier },
    };
    let mut writer = ManifestWriter::new(Vec::new(), version, force_encode);
    let mut ranges = Vec::new();
    for event in events {
        match event {
            ManifestEvent::File(file) => writer.file(file).unwrap(),
            ManifestEvent::WalRange { timeline, start, end } => {
                ranges.push(WalRange { timeline: *timeline, start: *start, end: *end });
            }
            _ => {}
        }
    }
    let written = writer.finish(&ranges).unwrap();
    assert_eq!(written.bytes, written.sink.len() as u64);
    written.sink
}

#[test]
fn reads_and_rewrites_a_manifest_of_a_13_server() {
    let (summary, events) = read(MANIFEST_13).unwrap();
    assert_eq!(
        (summary.version, summary.system_identifier, summary.files, summary.wal_ranges),
        (1, None, 11, 1)
    );
    assert_eq!(events[0], ManifestEvent::Version(1));
    let paths: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            ManifestEvent::File(file) => Some(String::from_utf8(file.path.clone()).unwrap()),
            _ => None,
        })
        .collect();
    assert!(paths.contains(&"pg_tblspc/16393/PG_13_202007201/13383/16394".to_owned()), "{paths:?}");
    let range =
        ManifestEvent::WalRange { timeline: TimelineId(1), start: Lsn(0x400_0028), end: Lsn(0x400_0100) };
    assert_eq!(events.last(), Some(&range));
    assert_eq!(rewrite(&events, true), MANIFEST_13);
}

#[test]
fn the_layout_is_the_servers() {
    let checksum = ChecksumValue::from_hex(b"839206e3").map(|value| (ChecksumAlgorithm::Crc32c, value));
    let file = |path: &[u8], checksum| ManifestFile {
        path: path.to_vec(),
        size: 9,
        modified: ModifiedTime(0),
        checksum,
    };
    let mut writer =
        ManifestWriter::new(Vec::new(), ManifestVersion::Two { system_identifier: u64::MAX }, false);
    writer.file(&file(b"base/1/\"q\\\n\x01\x7f\xc3\xa9", checksum)).unwrap();
    writer.file(&file(b"\xff", None)).unwrap();
    let range = WalRange { timeline: TimelineId(2), start: Lsn(0x10_0000_0028), end: Lsn(0x10_0000_0100) };
    let written = writer.finish(&[range, WalRange { timeline: TimelineId(1), ..range }]).unwrap();
    let body = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\
        \"System-Identifier\": 18446744073709551615,\n\
        \"Files\": [\n\
        { \"Path\": \"base/1/\\\"q\\\\\\n\\u0001\u{7f}é\", \"Size\": 9, \"Last-Modified\": \"1970-01-01 00:00:00 GMT\", \
        \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"839206e3\" },\n\
        { \"Encoded-Path\": \"ff\", \"Size\": 9, \"Last-Modified\": \"1970-01-01 00:00:00 GMT\" }\n\
        ],\n\
        \"WAL-Ranges\": [\n\
        { \"Timeline\": 2, \"Start-LSN\": \"10/28\", \"End-LSN\": \"10/100\" },\n\
        { \"Timeline\": 1, \"Start-LSN\": \"10/28\", \"End-LSN\": \"10/100\" }\n\
        ],\n";
    assert_eq!(String::from_utf8(written.sink.clone()).unwrap(), String::from_utf8(sealed(body)).unwrap());
    let (summary, _) = read(&written.sink[..]).unwrap();
    assert_eq!(
        (summary.checksum, summary.system_identifier, summary.bytes),
        (written.checksum, Some(u64::MAX), 18)
    );
}

#[test]
fn other_layouts_are_the_same_manifest() {
    let spread = "{\n\t\"PostgreSQL-Backup-Manifest-Version\":1 ,\r\n\n\"WAL-Ranges\":[], \"Files\":[\n{\n\"Size\"\n:1,\
                  \"Last-Modified\":\"2024-02-29 23:59:59 GMT\",\"P\\u0061th\":\"\\u0061\"\n}\n]\n,\n";
    let (summary, events) = read(&sealed(spread)[..]).unwrap();
    assert_eq!((summary.files, summary.bytes, summary.wal_ranges), (1, 1, 0));
    let file =
        ManifestFile { path: b"a".to_vec(), size: 1, modified: ModifiedTime(1_709_251_199), checksum: None };
    assert_eq!(events, [ManifestEvent::Version(1), ManifestEvent::File(file)]);
    for empty in [
        r#"{ "Path": "a", "Size": 1, "Last-Modified": "2024-02-29 23:59:59 GMT", "Checksum-Algorithm": "NONE" }"#,
        r#"{ "Path": "a", "Size": 1, "Last-Modified": "2024-02-29 23:59:59 GMT", "Checksum-Algorithm": "none", "Checksum": "" }"#,
    ] {
        assert_eq!(read(&sealed(&with_files(empty))[..]).unwrap().1[1], events[1]);
    }
}

/// Gives one byte at a time and an interruption before each.
struct Drip<'a>(&'a [u8], bool);

impl Read for Drip<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = buffer.len().min(self.0.len()).min(1);
        let (now, later) = self.0.split_at(length);
        buffer[..length].copy_from_slice(now);
        self.0 = later;
        Ok(length)
    }
}

#[test]
fn single_bytes_and_interruptions_change_nothing() {
    assert_eq!(read(Drip(MANIFEST_13, false)).unwrap(), read(MANIFEST_13).unwrap());
}

#[test]
fn every_cut_is_noticed() {
    for length in 0..MANIFEST_13.len() {
        let error = read(&MANIFEST_13[..length]).unwrap_err();
        assert!(matches!(error, ManifestError::Truncated { .. }), "{length}: {error}");
    }
}

#[test]
fn every_changed_bit_is_noticed() {
    for at in 0..MANIFEST_13.len() {
        let mut bad = MANIFEST_13.to_vec();
        bad[at] ^= 0x01;
        assert!(read(&bad[..]).is_err(), "byte {at}");
    }
    // Upper-case digits say the same.
    let last = MANIFEST_13.len() - 68;
    let shouted = [&MANIFEST_13[..last], &MANIFEST_13[last..].to_ascii_uppercase()].concat();
    assert!(read(&shouted[..]).is_ok());
}

#[test]
fn a_wrong_checksum_is_named() {
    let text = String::from_utf8(MANIFEST_13.to_vec()).unwrap();
    let changed = text.replacen("\"Size\": ", "\"Size\": 1", 1);
    match read(changed.as_bytes()) {
        Err(ManifestError::Checksum { found, expected }) => assert_ne!(found, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_may_follow() {
    for (tail, trailing) in [("x", true), ("{}", true), ("\0", true), ("\n", false), (" ", false)] {
        let longer = [MANIFEST_13, tail.as_bytes()].concat();
        let error = read(&longer[..]).unwrap_err();
        assert_eq!(matches!(error, ManifestError::TrailingData { .. }), trailing, "{tail:?}: {error}");
    }
    let unfinished = MANIFEST_13.strip_suffix(b"\n").unwrap();
    assert!(matches!(read(unfinished), Err(ManifestError::Truncated { .. })));
}

#[test]
fn refuses_what_is_no_manifest() {
    let file = |old: &str, new: &str| with_files(&FILE.replacen(old, new, 1));
    let body = |old: &str, new: &str| with_files(FILE).replacen(old, new, 1);
    let long_path = format!("{:?}", "x".repeat(1024));
    for (body, error) in [
        ("[1,\n".to_owned(), "invalid type: sequence, expected a backup manifest"),
        ("{ \"Files\": [],\n".to_owned(), "the first key must be"),
        ("{".to_owned(), "the first key must be"),
        (body("Version\": 1", "Version\": 3"), "version 3, expected 1 or 2"),
        (body("Version\": 1", "Version\": 0"), "version 0, expected 1 or 2"),
        (body("Version\": 1", "Version\": \"1\""), "expected u64"),
        (body("Version\": 1", "Version\": 2"), "missing field `System-Identifier`"),
        (body("\"Files\"", "\"System-Identifier\": 1, \"Files\""), "has no place in version 1"),
        (body("\"Files\"", "\"PostgreSQL-Backup-Manifest-Version\": 1, \"Files\""), "duplicate field"),
        (body("\"Files\"", "\"Files\": [], \"Files\""), "duplicate field `Files`"),
        (body("\"WAL-Ranges\"", "\"WAL-Ranges\": [], \"WAL-Ranges\""), "duplicate field `WAL-Ranges`"),
        (body("\"Files\"", "\"Directories\": [], \"Files\""), "unknown key \"Directories\""),
        (body("\"WAL-Ranges\": [", "\"X\": ["), "unknown key \"X\""),
        (
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [],\n".to_owned(),
            "missing field `WAL-Ranges`",
        ),
        (
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"WAL-Ranges\": [],\n".to_owned(),
            "missing field `Files`",
        ),
        (body("],\n\"WAL", "]\n\"WAL"), "malformed: expected `,` or `}` at line"),
        (file("\"Path\": \"a\", ", ""), "missing field `Path`"),
        (file("\"Size\": 1, ", ""), "missing field `Size`"),
        (file(", \"Last-Modified\": \"2024-02-29 23:59:59 GMT\"", ""), "missing field `Last-Modified`"),
        (file("\"Path\"", "\"Path\": \"b\", \"Path\""), "duplicate field `Path`"),
        (file("\"Path\"", "\"Encoded-Path\": \"62\", \"Path\""), "duplicate field `Path`"),
        (file("\"Size\"", "\"Owner\": 1, \"Size\""), "unknown key \"Owner\""),
        (file("1,", "-1,"), "expected u64"),
        (file("1,", "18446744073709551616,"), "expected u64"),
        (file("1,", "1.5,"), "expected u64"),
        (file("1,", "null,"), "expected u64"),
        (
            with_files(&[FILE, FILE].join(",").replace(": 1,", ": 9223372036854775808,")),
            "sizes exceed 64 bits",
        ),
        (file("02-29", "2-29"), "found \"2024-2-29 23:59:59 GMT\", expected a time"),
        (file(" GMT", " CET"), "expected a time"),
        (file("\"a\"", "\"\""), "refused: the name is empty"),
        (file("\"a\"", "\"/etc/passwd\""), "refused: the name is absolute"),
        (file("\"a\"", "\"base/../../x\""), "\"base/../../x\" refused: the name has a component"),
        (file("\"a\"", "\"./a\""), "refused: the name has a component"),
        (file("\"a\"", "\"a//b\""), "refused: the name has an empty component"),
        (file("\"a\"", "\"a/\""), "refused: the name has an empty component"),
        (file("\"a\"", "\"a\\u0000b\""), "refused: the name holds a NUL byte"),
        (file("\"a\"", &long_path), "refused: the name is 1024 bytes long"),
        (file("\"a\"", "7"), "invalid type: integer `7`, expected a path"),
        (file("\"Path\": \"a\"", "\"Encoded-Path\": \"6\""), "found \"6\", expected a path in hexadecimal"),
        (file("\"Path\": \"a\"", "\"Encoded-Path\": \"6g\""), "expected a path in hexadecimal"),
        (file("\"Path\": \"a\"", "\"Encoded-Path\": \"2f61\""), "refused: the name is absolute"),
        (file(" }", ", \"Checksum\": \"00\" }"), "missing field `Checksum-Algorithm`"),
        (file(" }", ", \"Checksum-Algorithm\": \"CRC32C\" }"), "missing field `Checksum`"),
        (
            file(" }", ", \"Checksum-Algorithm\": \"MD5\", \"Checksum\": \"00\" }"),
            "found \"MD5\", expected NONE, CRC32C",
        ),
        (
            file(" }", ", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"00\" }"),
            "checksum 00 is no CRC32C, expected 4 bytes",
        ),
        (
            file(" }", ", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"0000000g\" }"),
            "hexadecimal digits",
        ),
        (body("\"Timeline\": 1", "\"Timeline\": 0"), "impossible WAL range"),
        (body("\"Timeline\": 1", "\"Timeline\": 4294967296"), "expected u32"),
        (body("\"0/2000028\"", "\"0/3000000\""), "impossible WAL range 0/3000000 to 0/2000100 on timeline 1"),
        (body("\"0/2000028\"", "\"2000028\""), "found \"2000028\", expected a log position"),
        (body("\"Timeline\": 1, ", ""), "missing field `Timeline`"),
        (body(", \"End-LSN\": \"0/2000100\"", ""), "missing field `End-LSN`"),
        (body("\"Timeline\"", "\"Timeline\": 1, \"Timeline\""), "duplicate field `Timeline`"),
        (
            format!("{}{}", with_files(FILE), "\"Manifest-Checksum\": \"00\",\n"),
            "found \"00\", expected 64 hexadecimal digits",
        ),
        (
            format!("{}\"Manifest-Checksum\": \"{}\",\n", with_files(FILE), "0".repeat(64)),
            "must be the last key",
        ),
    ] {
        let found = read(&sealed(&body)[..]).unwrap_err().to_string();
        assert!(found.contains(error), "{body}\n{found}\nlacks {error}");
    }
    assert!(matches!(read(&b""[..]), Err(ManifestError::Truncated { .. })));
}

#[test]
fn hostile_sizes_are_bounded() {
    let long_string = with_files(&FILE.replace("\"a\"", &format!("{:?}", "x".repeat(70_000))));
    assert!(matches!(read(&sealed(&long_string)[..]), Err(ManifestError::LineTooLong)));
    // Without any line break, from a source that never ends.
    assert!(matches!(read(io::repeat(b' ')), Err(ManifestError::LineTooLong)));
    assert!(matches!(read((&b"{ \""[..]).chain(io::repeat(b'x'))), Err(ManifestError::LineTooLong)));
    let deep = with_files(&"[\n".repeat(100_000));
    assert!(matches!(read(&sealed(&deep)[..]), Err(ManifestError::Content { .. })));
    let ignored_deep = format!(
        "{}\"Manifest-Checksum\": \"{}\",\n\"x\": {}",
        with_files(FILE),
        "0".repeat(64),
        "[\n".repeat(100_000)
    );
    assert!(read(ignored_deep.as_bytes()).is_err());
}

#[test]
fn errors_of_others_pass_unchanged() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::StaleNetworkFileHandle, "gone"))
        }
    }
    match read(MANIFEST_13[..500].chain(Broken)) {
        Err(ManifestError::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::StaleNetworkFileHandle),
        other => panic!("{other:?}"),
    }
    let mut seen = 0;
    let stopped = read_manifest(MANIFEST_13, &mut |_| {
        seen += 1;
        if seen == 3 { Err("enough") } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(ManifestError::Visit("enough"))));
    assert_eq!(seen, 3);
}

prop_compose! {
    fn file()(path in proptest::collection::vec(prop_oneof![4 => Just(b'a'), 1 => 1u8..=255], 1..40), size in 0u64..1 << 50, seconds in 0i64..1 << 40, algorithm in 0usize..6, bytes in proptest::collection::vec(any::<u8>(), 64)) -> ManifestFile {
        use ChecksumAlgorithm::{Crc32c, None, Sha224, Sha256, Sha384, Sha512};
        let algorithm = [None, Crc32c, Sha224, Sha256, Sha384, Sha512][algorithm];
        // No component may be empty or consist of dots.
        let path = path.into_iter().map(|byte| if matches!(byte, b'.' | b'/') { b'_' } else { byte }).collect();
        let value = ChecksumValue::new(&bytes[..algorithm.digest_len()]);
        let checksum = value.filter(|_| algorithm != None).map(|value| (algorithm, value));
        ManifestFile { path, size, modified: ModifiedTime(seconds), checksum }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(files in proptest::collection::vec(file(), 0..20), identifier in proptest::option::of(any::<u64>()), force_encode in any::<bool>()) {
        let mut events = vec![ManifestEvent::Version(if identifier.is_some() { 2 } else { 1 })];
        events.extend(identifier.map(ManifestEvent::SystemIdentifier));
        events.extend(files.into_iter().map(ManifestEvent::File));
        events.push(ManifestEvent::WalRange { timeline: TimelineId(1), start: Lsn(1), end: Lsn(2) });
        let manifest = rewrite(&events, force_encode);
        let (_, found) = read(&manifest[..]).unwrap();
        prop_assert_eq!(&found, &events);
        prop_assert_eq!(read(Drip(&manifest, false)).unwrap().1, events);
    }

    #[test]
    fn no_bytes_make_it_panic(at in 0..MANIFEST_13.len(), bytes in proptest::collection::vec(any::<u8>(), 1..20)) {
        let mut bad = MANIFEST_13.to_vec();
        bad.splice(at..at, bytes);
        prop_assert!(read(&bad[..]).is_err());
    }
}
