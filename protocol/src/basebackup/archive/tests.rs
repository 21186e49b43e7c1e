//! The typed messages, whole and in pieces, good and bad.

use super::*;
use proptest::prelude::*;

/// Events without borrowed data, adjacent data joined.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Start(String, Vec<u8>),
    Data(Vec<u8>),
    Progress(u64),
    ManifestStart,
    ManifestData(Vec<u8>),
}

/// Decodes whole messages cut in pieces of `piece` bytes.
fn decode(messages: &[&[u8]], piece: usize) -> Result<Vec<Seen>, ArchiveError> {
    let mut decoder = ArchiveDecoder::new();
    let mut seen = Vec::new();
    for message in messages {
        let mut chunks: Vec<&[u8]> = message.chunks(piece).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        for (index, chunk) in chunks.iter().enumerate() {
            let event = decoder.push(chunk, index == 0, index + 1 == chunks.len())?;
            match (event, seen.last_mut()) {
                (None, _) => {}
                (Some(ArchiveEvent::Data(data)), Some(Seen::Data(whole))) => whole.extend_from_slice(data),
                (Some(ArchiveEvent::ManifestData(data)), Some(Seen::ManifestData(whole))) => {
                    whole.extend_from_slice(data);
                }
                (Some(event), _) => seen.push(match event {
                    ArchiveEvent::ArchiveStart { name, location } => Seen::Start(name.to_string(), location),
                    ArchiveEvent::Data(data) => Seen::Data(data.to_vec()),
                    ArchiveEvent::Progress(done) => Seen::Progress(done),
                    ArchiveEvent::ManifestStart => Seen::ManifestStart,
                    ArchiveEvent::ManifestData(data) => Seen::ManifestData(data.to_vec()),
                }),
            }
        }
    }
    decoder.finish()?;
    Ok(seen)
}

const STREAM: &[&[u8]] = &[
    b"n16384.tar\0/srv/space\0",
    b"dabc",
    b"d",
    b"ddef",
    b"p\0\0\0\0\0\0\x01\x02",
    b"nbase.tar\0\0",
    b"dxyz",
    b"p\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"m",
    b"d{ }",
];

#[test]
fn takes_a_stream_apart_in_any_pieces() {
    let expected = [
        Seen::Start("16384.tar".into(), b"/srv/space".to_vec()),
        Seen::Data(b"abcdef".to_vec()),
        Seen::Progress(258),
        Seen::Start("base.tar".into(), Vec::new()),
        Seen::Data(b"xyz".to_vec()),
        Seen::Progress(i64::MAX.unsigned_abs()),
        Seen::ManifestStart,
        Seen::ManifestData(b"{ }".to_vec()),
    ];
    for piece in 1..25 {
        assert_eq!(decode(STREAM, piece).unwrap(), expected, "pieces of {piece}");
    }
    assert_eq!(decode(&STREAM[5..8], 99).unwrap(), expected[3..6]);
}

#[test]
fn empty_chunks_mean_nothing() {
    let mut decoder = ArchiveDecoder::new();
    assert_eq!(decoder.push(b"", true, false), Ok(None));
    assert_eq!(decoder.push(b"nbase.tar\0", false, false), Ok(None));
    assert_eq!(decoder.push(b"", false, false), Ok(None));
    assert_eq!(decoder.push(b"\0", false, false), Ok(None));
    let start = ArchiveEvent::ArchiveStart { name: ArchiveName::Base, location: Vec::new() };
    assert_eq!(decoder.push(b"", false, true), Ok(Some(start)));
    assert_eq!(decoder.push(b"da", true, false), Ok(Some(ArchiveEvent::Data(b"a"))));
    assert!(decoder.finish().is_err());
    assert_eq!(decoder.push(b"", false, true), Ok(None));
    assert_eq!(decoder.finish(), Ok(()));
    assert!(!decoder.manifest_seen());
}

#[test]
fn refuses() {
    let long_location = [b"n1.tar\0/".as_slice(), &[b'x'; 5000], b"\0"].concat();
    for (messages, error) in [
        (&[&b""[..]][..], "empty CopyData message"),
        (&[b"k"], "unknown type \"k\""),
        (&[b"dabc"], "unexpected data in a base backup, after the start"),
        (&[b"m"], "unexpected manifest in a base backup, after the start"),
        (&[b"n1.tar\0/t\0", b"m"], "unexpected manifest in a base backup, after a tablespace's archive"),
        (
            &[b"nbase.tar\0\0", b"n1.tar\0/t\0"],
            "unexpected new archive in a base backup, after the base archive",
        ),
        (&[b"nbase.tar\0\0", b"m", b"m"], "unexpected manifest in a base backup, after the manifest"),
        (&[b"nbase.tar\0\0", b"mx"], "expected nothing behind the type"),
        (&[b"nbase.tar"], "expected two strings that end in NUL"),
        (&[b"nbase.tar\0"], "expected two strings that end in NUL"),
        (&[b"nbase.tar\0\0\0"], "expected two strings that end in NUL"),
        (&[b"nbase.tar\0\0x"], "expected two strings that end in NUL"),
        (&[b"nbase.tar\0/x\0"], "archive base.tar has the location \"/x\", expected none"),
        (&[b"n1.tar\0\0"], "archive 1.tar has the location \"\", expected a directory"),
        (&[b"nbase.tar.gz\0\0"], "compressed archive \"base.tar.gz\""),
        (&[b"n1.tar.zst\0/t\0"], "compressed archive \"1.tar.zst\""),
        (&[b"n../base.tar\0\0"], "unexpected archive name \"../base.tar\""),
        (&[b"n01.tar\0/t\0"], "unexpected archive name \"01.tar\""),
        (&[b"n.tar\0/t\0"], "unexpected archive name \".tar\""),
        (&[b"n4294967296.tar\0/t\0"], "unexpected archive name"),
        (&[&long_location], "more than 4096 bytes"),
        (&[b"p\0\0\0\0\0\0\0"], "7 bytes"),
        (&[b"p\xff\0\0\0\0\0\0\0"], "a count that is not negative"),
        (&[], "ends before any archive, expected base.tar"),
        (&[b"n1.tar\0/t\0"], "ends after a tablespace's archive, expected base.tar"),
    ] {
        for piece in [1, 9999] {
            let found = decode(messages, piece).unwrap_err().to_string();
            assert!(found.contains(error), "{found}\nlacks {error}");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(messages in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(b'n'), Just(b'd'), Just(b'm'), any::<u8>()], 0..30), 0..6), piece in 1usize..8) {
        let mut stream: Vec<&[u8]> = vec![b"nbase.tar\0\0"];
        stream.extend(messages.iter().map(Vec::as_slice));
        prop_assert_eq!(decode(&stream, piece), decode(&stream, 100));
    }
}

#[test]
fn names_say_how_archives_are_compressed() {
    use CompressionMethod::{Gzip, Zstd};
    let begin = |mut decoder: ArchiveDecoder, name: &str, location: &str| {
        let message = format!("n{name}\0{location}\0");
        decoder.push(message.as_bytes(), true, true).map(|_| ()).map_err(|error| error.to_string())
    };
    for (name, location) in [("base.tar.gz", ""), ("16384.tar.gz", "/t")] {
        assert_eq!(begin(ArchiveDecoder::compressed(Gzip), name, location), Ok(()));
        assert_eq!(begin(ArchiveDecoder::of_a_target(), name, location), Ok(()));
    }
    assert_eq!(begin(ArchiveDecoder::of_a_target(), "base.tar", ""), Ok(()));
    for (name, expected) in [
        ("base.tar", "archive \"base.tar\", expected one compressed by zstd"),
        ("base.tar.gz", "expected one compressed by zstd"),
        ("base.tar.zst.zst", "unexpected archive name"),
        ("base.zst", "unexpected archive name"),
        (".zst", "unexpected archive name"),
    ] {
        let refused = begin(ArchiveDecoder::compressed(Zstd), name, "").unwrap_err();
        assert!(refused.contains(expected), "{name}: {refused}");
    }
}
