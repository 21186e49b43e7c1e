//! The decoder and the header writer against each other and against archives of real servers.

use proptest::prelude::*;

use super::*;

const BASE_13: &[u8] = include_bytes!("../../testdata/base_backup_13_base.tar");
const TABLESPACE_13: &[u8] = include_bytes!("../../testdata/base_backup_13_tablespace.tar");
const SYMLINK_15: &[u8; BLOCK_SIZE] = include_bytes!("../../testdata/symlink_15.header");

/// A member and its content.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    path: String,
    kind: MemberKind,
    mode: u32,
    content: Vec<u8>,
}

/// Decodes pieces, which together are the archive.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Seen>, TarError> {
    let mut decoder = TarDecoder::new();
    let mut seen: Vec<Seen> = Vec::new();
    let mut open = false;
    for mut piece in pieces {
        while let Some(event) = decoder.next(&mut piece)? {
            match event {
                TarEvent::Member(member) => {
                    assert!(!open, "a member begins inside of another");
                    open = true;
                    let TarMember { path, kind, mode, .. } = member;
                    seen.push(Seen { path: path.to_string(), kind, mode, content: Vec::new() });
                }
                TarEvent::Data(data) => {
                    assert!(open && !data.is_empty());
                    seen.last_mut().unwrap().content.extend_from_slice(data);
                }
                TarEvent::MemberEnd => {
                    assert!(open);
                    open = false;
                    let member = seen.last().unwrap();
                    let size = if let MemberKind::File { size } = member.kind { size } else { 0 };
                    assert_eq!(member.content.len() as u64, size);
                }
            }
        }
        assert!(piece.is_empty(), "input is left over");
    }
    decoder.finish()?;
    Ok(seen)
}

fn path(name: &str) -> MemberPath {
    MemberPath::parse(name.as_bytes()).unwrap()
}

fn push_member(archive: &mut Vec<u8>, header: &MemberHeader, content: &[u8]) {
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(content);
    archive.resize(archive.len() + padding_for(content.len() as u64), 0);
}

/// A header as it would be with other bytes at some place and a fitting checksum.
fn patched(header: &MemberHeader, at: usize, bytes: &[u8]) -> [u8; BLOCK_SIZE] {
    let mut block = *header.as_bytes();
    block[at..at + bytes.len()].copy_from_slice(bytes);
    let sum = header::checksum(&block);
    number::write(&mut block[148..156], sum.into());
    block
}

fn plain_file() -> MemberHeader {
    MemberHeader::file(&path("base/1/2619"), 0, 0o600, 1_700_000_000).unwrap()
}

#[test]
fn reads_archives_of_a_13_server() {
    let seen = decode([BASE_13]).unwrap();
    let find = |name: &str| seen.iter().find(|member| member.path == name).unwrap();
    assert_eq!(find("backup_label").kind, MemberKind::File { size: 203 });
    assert!(
        find("backup_label")
            .content
            .starts_with(b"START WAL LOCATION: 0/4000028 (file 000000010000000000000004)\n")
    );
    assert_eq!(find("pg_wal/archive_status").kind, MemberKind::Directory);
    assert_eq!(find("pg_wal").mode, 0o700);
    assert_eq!(find("global/pg_control").mode, 0o600);
    assert_eq!(find("global/pg_control").content.len(), 8192);
    assert_eq!(seen.last().unwrap().path, "global/pg_control");

    let seen = decode([TABLESPACE_13]).unwrap();
    let names: Vec<_> = seen.iter().map(|member| member.path.as_str()).collect();
    assert_eq!(names[..2], ["PG_13_202007201", "PG_13_202007201/13383"]);
}

#[test]
fn an_archive_means_the_same_with_and_without_its_final_blocks() {
    let whole = decode([BASE_13]).unwrap();
    for zeros in [512, 1024, 10240] {
        assert_eq!(decode([BASE_13, &vec![0; zeros]]).unwrap(), whole);
    }
}

#[test]
fn any_split_in_two_gives_the_same() {
    let archive = [TABLESPACE_13, &END_OF_ARCHIVE].concat();
    let whole = decode([&archive[..]]).unwrap();
    // Every place around the first blocks, and then around each block's edge.
    let near_edges = (1024..archive.len()).filter(|at| matches!(at % BLOCK_SIZE, 0 | 1 | 511));
    for at in (0..1024).chain(near_edges) {
        assert_eq!(decode([&archive[..at], &archive[at..]]).unwrap(), whole, "split at {at}");
    }
    assert_eq!(decode(archive.chunks(1)).unwrap(), whole);
}

#[test]
fn headers_are_those_of_a_server() {
    let owned = |header: MemberHeader, block: &[u8; BLOCK_SIZE]| {
        let read = |field: std::ops::Range<usize>| number::read(&block[field]).unwrap();
        *header.owned_by(read(108..116), read(116..124)).as_bytes()
    };
    let mut archive = BASE_13;
    let mut decoder = TarDecoder::new();
    while let Some(event) = decoder.next(&mut archive).unwrap() {
        let TarEvent::Member(member) = event else { continue };
        let TarMember { path, kind, mode, mtime, header: block, .. } = member;
        // The decoder strips the "./" that a server puts before two directories.
        if block.starts_with(b"./") {
            continue;
        }
        let header = match kind {
            MemberKind::File { size } => MemberHeader::file(&path, size, mode, mtime),
            MemberKind::Directory => MemberHeader::directory(&path, mode, mtime),
            MemberKind::Symlink { target } => MemberHeader::symlink(&path, &target, mode, mtime),
        };
        assert_eq!(owned(header.unwrap(), &block), *block, "{path}");
    }
    let mut symlink = &SYMLINK_15[..];
    let Some(TarEvent::Member(member)) = TarDecoder::new().next(&mut symlink).unwrap() else {
        unreachable!()
    };
    assert_eq!(member.kind, MemberKind::Symlink { target: b"/tmp/ta\\ble".to_vec() });
    let header = MemberHeader::symlink(&member.path, b"/tmp/ta\\ble", member.mode, member.mtime).unwrap();
    assert_eq!(owned(header, SYMLINK_15), *SYMLINK_15);
}

#[test]
fn another_size_changes_only_size_and_checksum() {
    let header = MemberHeader::file(&path("postgresql.auto.conf"), 88, 0o600, 1).unwrap().owned_by(999, 999);
    for size in [0, 88, 500, 1 << 33, 1 << 40] {
        let expected =
            MemberHeader::file(&path("postgresql.auto.conf"), size, 0o600, 1).unwrap().owned_by(999, 999);
        assert_eq!(&with_size(header.as_bytes(), size), expected.as_bytes());
        let mut input = expected.as_bytes().as_slice();
        let Ok(Some(TarEvent::Member(member))) = TarDecoder::new().next(&mut input) else {
            panic!("no member")
        };
        assert_eq!(member.kind, MemberKind::File { size });
    }
}

#[test]
fn takes_the_ustar_prefix_and_full_fields() {
    let with_prefix = patched(&plain_file(), 345, b"pg_tblspc/16384");
    assert_eq!(decode([&with_prefix[..]]).unwrap()[0].path, "pg_tblspc/16384/base/1/2619");
    let full_name = patched(&plain_file(), 0, &[b'n'; 100]);
    assert_eq!(decode([&full_name[..]]).unwrap()[0].path, "n".repeat(100));
    let nul_type = patched(&plain_file(), 156, &[0]);
    assert_eq!(decode([&nul_type[..]]).unwrap()[0].kind, MemberKind::File { size: 0 });
    let setuid = patched(&plain_file(), 100, b"0007777 ");
    assert_eq!(decode([&setuid[..]]).unwrap()[0].mode, 0o777);
    let root = MemberHeader::directory(&path("."), 0o700, 0).unwrap();
    assert_eq!(decode([&root.as_bytes()[..]]).unwrap()[0].path, "");
}

#[test]
fn names_that_do_not_fit_are_refused() {
    let long = path(&"n".repeat(100));
    assert!(MemberHeader::file(&path(&"n".repeat(99)), 0, 0, 0).is_ok());
    assert!(MemberHeader::directory(&path(&"n".repeat(99)), 0, 0).is_ok());
    assert_eq!(MemberHeader::file(&long, 0, 0, 0).err().map(|error| error.what), Some("file name"));
    assert!(MemberHeader::symlink(&path("l"), &[b't'; 99], 0, 0).is_ok());
    assert_eq!(
        MemberHeader::symlink(&path("l"), &[b't'; 100], 0, 0).err().map(|error| error.what),
        Some("link target")
    );
}

#[test]
fn refuses_bad_headers() {
    let file = plain_file();
    let kinds = [
        (b'1', "a hard link"),
        (b'3', "a device"),
        (b'4', "a device"),
        (b'6', "a named pipe"),
        (b'7', "a contiguous file"),
        (b'L', "a GNU long name record"),
        (b'K', "a GNU long name record"),
        (b'S', "a GNU sparse file"),
        (b'x', "a pax record"),
        (b'g', "a pax record"),
        (b'Z', "of unknown type \"Z\""),
    ];
    for (byte, name) in kinds {
        match decode([&patched(&file, 156, &[byte])[..]]) {
            Err(TarError::Kind { kind, offset: 0, .. }) => assert_eq!(kind, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    for (what, block) in [
        ("absolute", patched(&file, 0, b"/etc/passwd\0")),
        ("parent", patched(&file, 0, b"../../x\0\0\0\0\0")),
        ("by prefix", patched(&file, 345, b"..")),
        ("absolute by prefix", patched(&file, 345, b"/etc")),
        ("no name", patched(&file, 0, &[0; 100])),
    ] {
        assert!(matches!(decode([&block[..]]), Err(TarError::Path { offset: 0, .. })), "{what}");
    }
    for (what, at, bytes) in [
        ("size", 124, &b"0000000001x "[..]),
        ("size", 124, b"\x80\0\0\0\0\x20\0\0\0\0\0\x01"),
        ("size", 124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("mode", 100, b"rw------"),
        ("modification time", 136, b"-0000000001 "),
        ("user id", 108, b"        "),
    ] {
        match decode([&patched(&file, at, bytes)[..]]) {
            Err(TarError::Number { field, .. }) => assert_eq!(field, what),
            other => panic!("{what}: {other:?}"),
        }
    }
    let magic = patched(&file, 257, b"ustar  ");
    assert!(matches!(decode([&magic[..]]), Err(TarError::Magic { .. })));
    let directory = MemberHeader::directory(&path("base"), 0o700, 0).unwrap();
    let full_directory = patched(&directory, 124, b"00000000001 ");
    assert!(matches!(decode([&full_directory[..]]), Err(TarError::UnexpectedContent { size: 1, .. })));
    let aimless = patched(&MemberHeader::symlink(&path("l"), b"/t", 0o777, 0).unwrap(), 157, &[0; 100]);
    assert!(matches!(decode([&aimless[..]]), Err(TarError::LinkTarget { .. })));
}

#[test]
fn refuses_a_header_with_any_byte_changed() {
    for at in 0..BLOCK_SIZE {
        let mut block = *plain_file().as_bytes();
        block[at] ^= 1;
        let result = decode([&block[..]]);
        assert!(matches!(result, Err(TarError::Checksum { offset: 0, .. })), "byte {at}: {result:?}");
    }
}

#[test]
fn refuses_what_should_be_zero_and_is_not() {
    let mut archive = Vec::new();
    push_member(&mut archive, &MemberHeader::file(&path("f"), 3, 0o600, 0).unwrap(), b"abc");
    let end = archive.len();
    archive.extend_from_slice(&END_OF_ARCHIVE);
    for (at, place) in [
        (515, "a member's padding"),
        (1023, "a member's padding"),
        (end + 512, "the space behind the last member"),
        (end + 1023, "the space behind the last member"),
    ] {
        let mut bad = archive.clone();
        bad[at] = 7;
        let error = TarError::NotZero { offset: at as u64, place, found: 7 };
        assert_eq!(decode([&bad[..]]).unwrap_err(), error);
        assert_eq!(decode(bad.chunks(1)).unwrap_err(), error);
    }
}

#[test]
fn refuses_a_cut_archive() {
    let mut archive = Vec::new();
    push_member(&mut archive, &MemberHeader::file(&path("f"), 3, 0o600, 0).unwrap(), b"abc");
    archive.extend_from_slice(&END_OF_ARCHIVE);
    for length in 1..archive.len() {
        let place = match length {
            1..512 => "a header",
            512..515 => "a member's content",
            515..1024 => "a member's padding",
            1024 | 1536 => continue,
            1025..1536 => "a header",
            _ => "the final blocks",
        };
        assert_eq!(decode([&archive[..length]]).unwrap_err(), TarError::Cut { offset: length as u64, place });
    }
}

#[test]
fn an_error_is_final() {
    let mut decoder = TarDecoder::new();
    let mut bad: &[u8] = &[1; BLOCK_SIZE];
    assert!(matches!(decoder.next(&mut bad), Err(TarError::Checksum { .. })));
    let header = plain_file();
    let mut good: &[u8] = header.as_bytes();
    assert_eq!(decoder.next(&mut good).unwrap_err(), TarError::Failed);
    assert_eq!(decoder.finish(), Err(TarError::Failed));
}

prop_compose! {
    fn member()(name in "[a-z]{1,8}(/[a-z0-9_.]{1,8}x){0,3}", kind in 0..4, mode in 0u32..0o1000, mtime in any::<u32>(), content in proptest::collection::vec(any::<u8>(), 0..1500)) -> (Seen, u64) {
        let (kind, content) = match kind {
            0 => (MemberKind::Directory, Vec::new()),
            1 => (MemberKind::Symlink { target: content.iter().take(99).map(|byte| byte | 1).chain([b'/']).take(99).collect() }, Vec::new()),
            _ => (MemberKind::File { size: content.len() as u64 }, content),
        };
        (Seen { path: name, kind, mode, content }, mtime.into())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read_in_any_pieces(members in proptest::collection::vec(member(), 0..6), pieces in proptest::collection::vec(1usize..2000, 1..8), end in any::<bool>()) {
        let mut archive = Vec::new();
        for (member, mtime) in &members {
            let path = path(&member.path);
            let header = match &member.kind {
                MemberKind::File { size } => MemberHeader::file(&path, *size, member.mode, *mtime),
                MemberKind::Directory => MemberHeader::directory(&path, member.mode, *mtime),
                MemberKind::Symlink { target } => MemberHeader::symlink(&path, target, member.mode, *mtime),
            };
            push_member(&mut archive, &header.unwrap(), &member.content);
        }
        if end {
            archive.extend_from_slice(&END_OF_ARCHIVE);
        }
        let mut rest = archive.as_slice();
        let split = pieces.iter().cycle().map_while(|length| {
            let (piece, after) = rest.split_at((*length).min(rest.len()));
            rest = after;
            (!piece.is_empty()).then_some(piece)
        });
        let expected: Vec<_> = members.into_iter().map(|(member, _)| member).collect();
        prop_assert_eq!(decode(split).unwrap(), expected);
    }

    #[test]
    fn skipped_content_leaves_the_same_members(members in proptest::collection::vec(member(), 0..6), take in 1usize..2000) {
        let (mut archive, mut expected) = (Vec::new(), Vec::new());
        for (member, mtime) in &members {
            let MemberKind::File { size } = member.kind else { continue };
            let header = MemberHeader::file(&path(&member.path), size, member.mode, *mtime).unwrap();
            let start = archive.len() + BLOCK_SIZE;
            push_member(&mut archive, &header, &member.content);
            expected.push((member.path.clone().into_bytes(), start));
        }
        archive.extend_from_slice(&END_OF_ARCHIVE);
        let (mut decoder, mut found) = (TarDecoder::new(), Vec::new());
        // As a reader that goes where the decoder stands does it.
        while let Some(rest) = archive.get(usize::try_from(decoder.offset()).unwrap()..).filter(|rest| !rest.is_empty()) {
            let mut input = &rest[..take.min(rest.len())];
            while let Some(event) = decoder.next(&mut input).unwrap() {
                if let TarEvent::Member(member) = event {
                    found.push((member.path.as_bytes().to_vec(), usize::try_from(decoder.offset()).unwrap()));
                    decoder.skip_content(&mut input);
                }
            }
        }
        prop_assert_eq!(decoder.finish(), Ok(()));
        prop_assert_eq!(found, expected);
    }

    /// No bytes make the decoder panic, and an error does not depend on how the bytes are cut.
    #[test]
    fn damage_is_found_alike_in_any_pieces(at in 0..BASE_13.len(), value in any::<u8>(), length in 0..BASE_13.len(), piece in 1usize..3000) {
        let mut archive = BASE_13[..length].to_vec();
        if let Some(byte) = archive.get_mut(at) {
            *byte = value;
        }
        prop_assert_eq!(decode(archive.chunks(piece)), decode([&archive[..]]));
    }
}
