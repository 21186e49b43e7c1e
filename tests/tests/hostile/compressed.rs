//! Archives that the server is said to have compressed, and that are damaged, cut, or something else.

use std::io::Write;

use pgstrata_tests::fake::message::copy_data;
use pgstrata_tests::fake::{FakeBackup, Member, Reply};

use crate::case::{Case, place_of, run_all};

/// What the option and the archive's name say, and how it is done, with so many zeros behind.
type Method = (&'static str, &'static str, fn(&[u8], usize) -> Vec<u8>);
type Change = fn(Vec<u8>) -> Vec<u8>;

const METHODS: [Method; 3] = [("gzip", ".gz", gzip), ("lz4", ".lz4", lz4), ("zstd", ".zst", zstd)];

pub(crate) fn gzip(plain: &[u8], zeros: usize) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(3));
    write(&mut encoder, plain, zeros);
    encoder.finish().expect("memory")
}

fn lz4(plain: &[u8], zeros: usize) -> Vec<u8> {
    let mut encoder = lz4::EncoderBuilder::new().build(Vec::new()).expect("memory");
    write(&mut encoder, plain, zeros);
    let (packed, finished) = encoder.finish();
    finished.expect("memory");
    packed
}

fn zstd(plain: &[u8], zeros: usize) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("memory");
    write(&mut encoder, plain, zeros);
    encoder.finish().expect("memory")
}

/// In pieces: this process's own memory must stay small, for the program's is compared with it.
fn write(into: &mut impl Write, plain: &[u8], zeros: usize) {
    into.write_all(plain).expect("memory");
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), zeros as u64), into).expect("memory");
}

/// The answer to BASE_BACKUP with a compressed base archive of this name.
pub(crate) fn reply(backup: &FakeBackup, name: &str, packed: &[u8]) -> Reply {
    let pieces: Vec<_> = packed.chunks(5000).map(<[u8]>::to_vec).collect();
    let mut messages = backup.messages_with_base(&pieces);
    let place = place_of(&messages, b'd', Some(b'n'));
    messages[place] = copy_data(format!("n{name}\0\0").as_bytes());
    Reply::messages(messages)
}

/// The case in plain format and in tar format.
fn in_each_format(cases: &mut Vec<Case>, method: &str, make: impl Fn(&str) -> Case) {
    let option = format!("server-{method}");
    for format in ["-Fp", "-Ft"] {
        cases.push(make(format).arguments(&["-X", "none", "-Z", &option, format]));
    }
}

#[test]
fn compressed_archives_are_taken_as_they_should_be_and_in_no_other_way() {
    let whole: Change = |packed| packed;
    let changes: [(&str, Change, &[&str]); 7] = [
        ("honest", whole, &[]),
        ("empty", |_| Vec::new(), &["stream ends before its end"]),
        ("cut at the start", |packed| packed[..3].to_vec(), &["stream ends before its end"]),
        ("cut", |packed| packed[..packed.len() / 2].to_vec(), &["stream ends before its end"]),
        ("cut at the end", |packed| packed[..packed.len() - 1].to_vec(), &["stream ends before its end"]),
        ("followed by more", |packed| [&packed[..], b"more"].concat(), &["behind the end of the archive"]),
        ("not compressed", |_| vec![b'x'; 9000], &["stream is damaged"]),
    ];
    let mut all = Vec::new();
    for (method, extension, pack) in METHODS {
        for (what, change, words) in changes {
            in_each_format(&mut all, method, |format| {
                let case = Case::answer(format!("{method} {what} {format}"), 18, move |_| {
                    let backup = FakeBackup::honest(18);
                    let packed = change(pack(&backup.base_archive().concat(), 0));
                    reply(&backup, &format!("base.tar{extension}"), &packed)
                });
                if words.is_empty() { case } else { case.refused(words) }
            });
        }
        // Other names than were asked for.
        for name in ["base.tar", "base.tar.xz", "base.tar.gz.gz"] {
            in_each_format(&mut all, method, |format| {
                Case::answer(format!("{method} named {name} {format}"), 18, move |_| {
                    let backup = FakeBackup::honest(18);
                    reply(&backup, name, &pack(&backup.base_archive().concat(), 0))
                })
                .refused(&["archive"])
            });
        }
        // What is inside is as hostile as ever.
        in_each_format(&mut all, method, |format| {
            Case::answer(format!("{method} with a path outside {format}"), 18, move |_| {
                let backup = FakeBackup::honest(18).with(Member::file("../beside/new", "x"));
                reply(&backup, &format!("base.tar{extension}"), &pack(&backup.base_archive().concat(), 0))
            })
            .refused(&["\"..\""])
        });
        in_each_format(&mut all, method, |format| {
            Case::answer(
                format!("{method} with other content than the manifest has {format}"),
                18,
                move |_| {
                    let backup = FakeBackup::honest(18);
                    let mut plain = backup.base_archive().concat();
                    let at = plain.windows(7).position(|window| window == b"# fake\n").expect("it is there");
                    plain[at] = b'!';
                    reply(&backup, &format!("base.tar{extension}"), &pack(&plain, 0))
                },
            )
            .refused(&["postgresql.conf", "expected"])
        });
    }
    run_all(&all);
}

#[test]
fn what_unpacks_to_gigabytes_takes_no_memory() {
    let mut all = Vec::new();
    for (method, extension, pack) in METHODS {
        in_each_format(&mut all, method, |format| {
            Case::answer(format!("{method} bomb {format}"), 18, move |_| {
                let backup = FakeBackup::honest(18);
                // Behind the last member only zeros may come, and as many as the server likes.
                let packed = pack(&backup.base_archive().concat(), 512 << 20);
                reply(&backup, &format!("base.tar{extension}"), &packed)
            })
        });
    }
    run_all(&all);
}
