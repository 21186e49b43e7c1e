//! Backups in tar format: the sample packed into archives, damaged in every way, compressed in every way.

use std::io::Read;

use pgstrata_protocol::tar::{END_OF_ARCHIVE, MemberHeader, MemberPath, padding_for};

use super::*;

type Content = Vec<(Vec<u8>, Vec<u8>)>;

/// The sample's archives before they are written: what their members are called and hold.
struct Packed {
    sample: Sample,
    base: Content,
    space: Content,
    wal: Content,
}

const BASE: &str = "base.tar";
const SPACE: &str = "16400.tar";
const WAL: &str = "pg_wal.tar";
const PLAIN: &str = "";
const COMPRESSIONS: [&str; 4] = [PLAIN, ".gz", ".lz4", ".zst"];

impl Packed {
    fn new() -> Self {
        Self::of(Sample::new(ChecksumAlgorithm::Crc32c))
    }

    fn of(sample: Sample) -> Self {
        let (mut base, mut space) = (Content::new(), Content::new());
        for file in &sample.files {
            let content = fs::read(sample.path(&file.path)).expect("read");
            match file.path.strip_prefix(b"pg_tblspc/16400/") {
                Some(path) => space.push((path.to_vec(), content)),
                None => base.push((file.path.clone(), content)),
            }
        }
        base.insert(0, (b"postgresql.auto.conf".to_vec(), b"not in the manifest".to_vec()));
        let segments = MadeWal::new(IDENTIFIER, 1, WAL_START, 5).segments();
        let mut wal: Content =
            segments.into_iter().map(|(name, content)| (name.into_bytes(), content)).collect();
        wal.push((b"archive_status/000000010000000000000002.done".to_vec(), Vec::new()));
        Self { sample, base, space, wal }
    }

    fn folder(&self) -> PathBuf {
        self.sample.scratch.path().join("archives")
    }

    fn archive(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Writes the archives, with a compression by its suffix, and the manifest.
    fn write(&self, compression: &str) {
        let _ = fs::remove_dir_all(self.folder());
        fs::create_dir(self.folder()).expect("made");
        for (name, content) in [(BASE, &self.base), (SPACE, &self.space), (WAL, &self.wal)] {
            let name = format!("{name}{compression}");
            let links = if name.starts_with(BASE) { link(b"pg_tblspc/16400") } else { Vec::new() };
            let archive = [links, pack(content)].concat();
            fs::write(self.archive(&name), compress(&archive, compression)).expect("written");
        }
        fs::copy(self.sample.path(MANIFEST), self.archive(MANIFEST)).expect("copied");
    }

    fn config(&self) -> VerifyConfig {
        let mut config = VerifyConfig::of(self.folder());
        config.resources.workers = 2;
        config
    }

    fn verify(&self) -> VerifyReport {
        verify(&self.config()).expect("verifiable")
    }

    fn member(&mut self, path: &[u8]) -> &mut Vec<u8> {
        let archives = [&mut self.base, &mut self.space, &mut self.wal];
        let mut members = archives.into_iter().flatten();
        &mut members.find(|(member, _)| member == path).expect("a member").1
    }
}

/// An archive of these members and a folder.
fn pack(content: &Content) -> Vec<u8> {
    let parse = |path: &[u8]| MemberPath::parse(path).expect("a path");
    let folder = MemberHeader::directory(&parse(b"./base"), 0o700, 1).expect("short");
    let mut archive = folder.as_bytes().to_vec();
    for (path, content) in content {
        let size = content.len() as u64;
        let header = MemberHeader::file(&parse(path), size, 0o600, 1).expect("short");
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(content);
        archive.resize(archive.len() + padding_for(size), 0);
    }
    archive.extend_from_slice(&END_OF_ARCHIVE);
    archive
}

/// The header of a link.
fn link(path: &[u8]) -> Vec<u8> {
    let path = MemberPath::parse(path).expect("a path");
    MemberHeader::symlink(&path, b"/space", 0o700, 1).expect("short").as_bytes().to_vec()
}

fn compress(bytes: &[u8], suffix: &str) -> Vec<u8> {
    match suffix {
        ".gz" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("compressed")
        }
        ".lz4" => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(bytes).expect("compressed");
            encoder.finish().expect("compressed")
        }
        ".zst" => zstd::encode_all(bytes, 1).expect("compressed"),
        _ => bytes.to_vec(),
    }
}

#[test]
fn every_algorithm_in_every_compression() {
    use ChecksumAlgorithm::{Crc32c, None as Unsummed, Sha224, Sha256, Sha384, Sha512};
    for algorithm in [Crc32c, Sha224, Sha256, Sha384, Sha512, Unsummed] {
        let mut packed = Packed::of(Sample::new(algorithm));
        for compression in COMPRESSIONS {
            packed.write(compression);
            for format in [None, Some(BackupFormat::Tar)] {
                let report = verify(&VerifyConfig { format, ..packed.config() }).expect("verifiable");
                assert!(found(&report).is_empty(), "{algorithm} {compression}: {:?}", report.problems);
                let bytes: u64 = packed.sample.files.iter().map(|file| file.size).sum();
                let (summed, bytes) = if algorithm == Unsummed { (0, 12) } else { (7, bytes) };
                assert_eq!((report.files, report.files_summed), (7, summed), "{algorithm} {compression}");
                assert!(report.bytes == bytes || algorithm == Unsummed && report.bytes <= bytes);
                assert!(report.wal_parsed && report.wal_bytes > 4 << 20, "{}", report.wal_bytes);
            }
        }
        packed.member(LARGE.as_bytes())[700_000] ^= 1;
        for compression in COMPRESSIONS {
            packed.write(compression);
            let expected: &[&str] = if algorithm == Unsummed { &[] } else { &["checksum base/5/16384"] };
            assert_eq!(found(&packed.verify()), expected, "{algorithm} {compression}");
        }
    }
}

type Damage = fn(&mut Packed);

#[test]
fn every_damage_is_named() {
    let rows: [(&str, Damage, &[&str]); 13] = [
        ("nothing", |_| {}, &[]),
        ("another order", |p| p.base.reverse(), &[]),
        ("extra", |p| p.base.push((b"base/5/1".to_vec(), vec![1])), &["extra base/5/1"]),
        ("extra in a tablespace", |p| p.space.push((b"x".to_vec(), vec![1])), &["extra pg_tblspc/16400/x"]),
        (
            "missing",
            |p| p.base.retain(|(path, _)| path != b"base/1/2619" && path != ODD),
            &["missing base/1/2619", "missing base/5/odd\\xff\\xfename"],
        ),
        ("longer", |p| p.member(LARGE.as_bytes()).push(0), &["size base/5/16384"]),
        ("emptied", |p| p.member(b"base/1/1259").clear(), &["size base/1/1259"]),
        ("flipped", |p| p.member(ODD)[4999] ^= 128, &["checksum base/5/odd\\xff\\xfename"]),
        (
            "flipped in a tablespace",
            |p| p.member(&IN_TABLESPACE.as_bytes()[16..])[0] ^= 1,
            &["checksum pg_tblspc/16400/PG_15_202209061/5/16500"],
        ),
        (
            "twice",
            |p| {
                let again = p.base[1].clone();
                p.base.push(again);
            },
            &["duplicate PG_VERSION"],
        ),
        (
            "twice, once damaged",
            |p| {
                let again = p.base[1].clone();
                p.base.push(again);
                p.base[1].1[0] ^= 1;
            },
            &["checksum PG_VERSION", "duplicate PG_VERSION"],
        ),
        (
            "another cluster's control file",
            |p| p.member(CONTROL_FILE)[0] ^= 2,
            &["checksum global/pg_control", "system_identifier global/pg_control"],
        ),
        ("not a tablespace's", |p| p.wal.push((b"x".to_vec(), vec![1])), &[]),
    ];
    for (name, damage, expected) in rows {
        for compression in COMPRESSIONS {
            let mut packed = Packed::new();
            damage(&mut packed);
            packed.write(compression);
            assert_eq!(found(&packed.verify()), expected, "{name} {compression}");
        }
    }
}

#[test]
fn messages_are_those_of_the_stock_tool_and_more() {
    let mut packed = Packed::new();
    packed.base.push((b"base/5/1".to_vec(), vec![1]));
    packed.member(b"base/1/1259").clear();
    packed.member(ODD)[0] ^= 1;
    packed.write(".gz");
    let mut told = told(&packed.verify());
    told.sort();
    assert!(told[0].starts_with("checksum mismatch for file \"base/5/odd"), "{told:?}");
    assert!(told[0].contains("in archive \"base.tar.gz\": CRC32C found "), "{told:?}");
    assert_eq!(
        told[1],
        "file \"base/1/1259\" has size 0 in archive \"base.tar.gz\" but size 98304 in the manifest"
    );
    assert_eq!(told[2], "file \"base/5/1\" is present in archive \"base.tar.gz\" but not in the manifest");
    assert_eq!(told.len(), 3);
}

#[test]
fn damaged_archives_are_named_once() {
    for compression in COMPRESSIONS {
        let packed = Packed::new();
        packed.write(compression);
        let base = packed.archive(&format!("{BASE}{compression}"));
        let whole = fs::read(&base).expect("read");
        for length in [0, 1, 100, 600, whole.len() / 2, whole.len() - 1] {
            // An empty archive is none that was cut, but everything is missing from it.
            fs::write(&base, &whole[..length]).expect("written");
            let report = packed.verify();
            let archives = report.problems.iter().filter(|problem| problem.kind() == "archive").count();
            let missing = report.problems.iter().any(|problem| problem.kind() == "missing");
            assert!(
                archives == 1 || archives == 0 && missing,
                "{compression} {length}: {:?}",
                report.problems
            );
        }
        fs::write(&base, [&whole[..], b"more"].concat()).expect("written");
        let report = packed.verify();
        assert_eq!(found(&report), [format!("archive {BASE}{compression}")], "{compression}");
        // Compressed in two parts, one behind the other.
        let bytes = [link(b"pg_tblspc/16400"), pack(&packed.base)].concat();
        let (one, other) = bytes.split_at(bytes.len() / 3);
        fs::write(&base, [compress(one, compression), compress(other, compression)].concat())
            .expect("written");
        assert_eq!(told(&packed.verify()), [""; 0], "{compression}");
        fs::remove_file(&base).expect("removed");
        let config = VerifyConfig { format: Some(BackupFormat::Tar), ..packed.config() };
        let report = verify(&config).expect("verifiable");
        assert_eq!(found(&report).len(), 6, "{compression}: {:?}", report.problems);
        assert!(report.problems.iter().all(|problem| problem.kind() == "missing"));
    }
}

#[test]
fn any_flipped_byte_of_an_archive_is_noticed() {
    for compression in COMPRESSIONS {
        let packed = Packed::new();
        packed.write(compression);
        let base = packed.archive(&format!("{BASE}{compression}"));
        let whole = fs::read(&base).expect("read");
        for at in (0..whole.len()).step_by(whole.len() / 23) {
            // The gzip header's time, flags and system say nothing of the content.
            if compression == ".gz" && at < 10 {
                continue;
            }
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            fs::write(&base, &damaged).expect("written");
            let report = packed.verify();
            assert!(!report.verified, "{compression}: byte {at}");
        }
    }
}

#[test]
fn hostile_archives_are_refused() {
    let header = |kind: u8, name: &[u8]| {
        let mut block = *MemberHeader::file(&MemberPath::parse(b"x").expect("a path"), 0, 0o600, 1)
            .expect("short")
            .as_bytes();
        block[..100].fill(0);
        block[..name.len()].copy_from_slice(name);
        block[156] = kind;
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block.to_vec()
    };
    for (name, header, expected) in [
        ("up", header(b'0', b"../x"), "archive base.tar"),
        ("absolute", header(b'0', b"/etc/x"), "archive base.tar"),
        ("hard link", header(b'1', b"x"), "archive base.tar"),
        ("pax", header(b'x', b"x"), "archive base.tar"),
        ("device", header(b'3', b"x"), "archive base.tar"),
    ] {
        let packed = Packed::new();
        packed.write(PLAIN);
        for compression in COMPRESSIONS {
            packed.write(compression);
            let archive = [&header[..], &pack(&packed.base)].concat();
            let path = packed.archive(&format!("{BASE}{compression}"));
            fs::write(path, compress(&archive, compression)).expect("written");
            let found = found(&packed.verify());
            assert_eq!(found, [format!("{expected}{compression}")], "{name}");
        }
    }
    // A link that is no tablespace's.
    let packed = Packed::new();
    packed.write(PLAIN);
    fs::write(packed.archive(BASE), [link(b"base/6"), pack(&packed.base)].concat()).expect("written");
    assert_eq!(found(&packed.verify()), ["not_regular base/6"]);
}

#[test]
fn what_does_not_belong_there_is_named() {
    let packed = Packed::new();
    packed.write(PLAIN);
    fs::write(packed.archive("16401.tar.partial"), b"").expect("written");
    fs::write(packed.archive("README"), b"").expect("written");
    fs::create_dir(packed.archive("16402.tar")).expect("made");
    let expected = ["not_regular 16402.tar", "unexpected README", "unfinished 16401.tar.partial"];
    assert_eq!(found(&packed.verify()), expected);
    // Archives may be links.
    packed.write(PLAIN);
    fs::rename(packed.archive(BASE), packed.sample.scratch.path().join("moved")).expect("renamed");
    symlink(packed.sample.scratch.path().join("moved"), packed.archive(BASE)).expect("linked");
    assert_eq!(found(&packed.verify()), [""; 0]);
    let mut config = packed.config();
    config.resources.io = Some(IoMode::Direct);
    let refused = verify(&config).expect_err("direct").to_string();
    assert!(refused.contains("--io=direct is not supported for backups in tar format"), "{refused}");
    // A plain backup is none in tar format, nor the other way round.
    let plain = VerifyConfig { format: Some(BackupFormat::Tar), ..packed.sample.config() };
    assert!(!verify(&plain).expect("verifiable").verified);
    let tar = VerifyConfig { format: Some(BackupFormat::Plain), ..packed.config() };
    assert!(!verify(&tar).expect("verifiable").verified);
}

#[test]
fn options_hold_for_archives_too() {
    let mut packed = Packed::new();
    packed.member(ODD)[0] ^= 1;
    packed.member(LARGE.as_bytes())[0] ^= 1;
    for compression in COMPRESSIONS {
        packed.write(compression);
        let skipping = verify(&VerifyConfig { skip_checksums: true, ..packed.config() }).expect("verifiable");
        assert!(skipping.verified && skipping.files_summed == 0, "{:?}", skipping.problems);
        let first = verify(&VerifyConfig { exit_on_error: true, ..packed.config() }).expect("verifiable");
        assert_eq!(first.problem_count, 1);
        let mut ignoring = packed.config();
        ignoring.ignore.add(b"base/5");
        assert!(verify(&ignoring).expect("verifiable").verified);
    }
}

#[test]
fn wal_in_archives() {
    let rows: [(&str, Damage, &[&str]); 8] = [
        ("in the base archive", |p| move_wal(p), &[]),
        ("missing", |p| drop(p.wal.remove(2)), &["WAL parsing failed for timeline 1: "]),
        ("none", |p| p.wal.clear(), &["WAL parsing failed for timeline 1: ", "could not find the segment"]),
        (
            "no last one",
            |p| drop(p.wal.remove(4)),
            &["could not find the segment", "000000010000000000000006"],
        ),
        ("flipped", |p| p.wal[2].1[500_000] ^= 1, &["pg_wal.tar", "WAL record at 0/47"]),
        ("cut", |p| p.wal[1].1.truncate(8192), &["the segment has 8192 bytes, expected 1048576"]),
        ("first cut", |p| p.wal[0].1.truncate(512), &["the segment has 512 bytes, expected"]),
        (
            "of another cluster",
            |p| {
                let foreign = MadeWal::new(IDENTIFIER + 1, 1, WAL_START, 5).segments();
                p.wal = foreign.into_iter().map(|(name, content)| (name.into_bytes(), content)).collect();
            },
            &["found system identifier"],
        ),
    ];
    for (name, damage, expected) in rows {
        for compression in COMPRESSIONS {
            let mut packed = Packed::new();
            damage(&mut packed);
            packed.write(compression);
            let report = packed.verify();
            let told = told(&report);
            assert_eq!(told.len(), usize::from(!expected.is_empty()), "{name} {compression}: {told:?}");
            for word in expected {
                assert!(told[0].contains(word), "{name} {compression}: {told:?}");
            }
            let without = VerifyConfig { parse_wal: false, ..packed.config() };
            assert!(verify(&without).expect("verifiable").verified, "{name} {compression}");
            // A folder of WAL beside the archives goes before what is in them.
            let elsewhere =
                VerifyConfig { wal_directory: Some(packed.sample.path("pg_wal")), ..packed.config() };
            assert!(verify(&elsewhere).expect("verifiable").verified, "{name} {compression}");
        }
    }
}

fn move_wal(packed: &mut Packed) {
    for (path, content) in std::mem::take(&mut packed.wal) {
        packed.base.push(([&b"pg_wal/"[..], &path].concat(), content));
    }
}

#[test]
fn the_order_of_wal_matters_only_where_it_must() {
    let mut packed = Packed::new();
    packed.wal.reverse();
    packed.write(PLAIN);
    assert_eq!(told(&packed.verify()), [""; 0]);
    packed.write(".zst");
    let told = told(&packed.verify());
    assert!(told.len() == 1 && told[0].contains("unpack it and name the folder"), "{told:?}");
}

#[test]
fn wal_without_a_cluster_named_by_the_manifest() {
    let mut sample = Sample::new(ChecksumAlgorithm::Crc32c);
    let file = File::create(sample.path(MANIFEST)).expect("created");
    let mut writer = ManifestWriter::new(file, ManifestVersion::One, false);
    for file in &sample.files {
        writer.file(file).expect("written");
    }
    writer.finish(&sample.wal).expect("finished");
    sample.wal.clear();
    let mut packed = Packed::of(sample);
    for compression in COMPRESSIONS {
        packed.write(compression);
        assert_eq!(told(&packed.verify()), [""; 0], "{compression}");
    }
    let foreign = MadeWal::new(IDENTIFIER + 1, 1, WAL_START, 5).segments();
    packed.wal = foreign.into_iter().map(|(name, content)| (name.into_bytes(), content)).collect();
    for compression in COMPRESSIONS {
        packed.write(compression);
        let told = told(&packed.verify());
        assert!(told.len() == 1 && told[0].contains("found system identifier"), "{compression}: {told:?}");
    }
}

#[test]
fn a_bomb_takes_no_memory() {
    // A gibibyte of zeros in a megabyte, where a member's content should be.
    let mut packed = Packed::new();
    let sample_size = 1 << 30;
    let header = MemberHeader::file(&MemberPath::parse(b"zeros").expect("a path"), sample_size, 0o600, 1);
    let content = io_repeat(sample_size);
    packed.write(PLAIN);
    fs::remove_file(packed.archive(BASE)).expect("removed");
    let file = File::create(packed.archive("base.tar.zst")).expect("created");
    let mut encoder = zstd::stream::write::Encoder::new(file, 1).expect("begun");
    encoder.write_all(header.expect("short").as_bytes()).expect("compressed");
    std::io::copy(&mut { content }, &mut encoder).expect("compressed");
    encoder.write_all(&pack(&packed.base)).expect("compressed");
    encoder.finish().expect("compressed");
    packed.base.clear();
    assert_eq!(found(&packed.verify()), ["extra zeros"]);
}

fn io_repeat(length: u64) -> impl Read {
    std::io::repeat(0).take(length)
}
