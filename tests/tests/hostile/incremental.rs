//! Servers that do not take a manifest as they should, and incremental files that are none.

use pgstrata_tests::fake::message::{command_complete, copy_in, error, fatal, ready, warning};
use pgstrata_tests::fake::{FakeBackup, Member, Reply, Script, Step};

use crate::case::{Case, run_all};
use crate::compressed::{gzip, reply};

const MAJOR: u32 = 18;
const BLOCK: usize = 8192;
const PATH: &str = "base/1/INCREMENTAL.16384";
/// A manifest without a byte, and one without an end: the scripted server reads neither.
const SHORT: [&str; 4] = ["-X", "none", "-i", "/dev/null"];
const ENDLESS: [&str; 4] = ["-X", "none", "-i", "/dev/zero"];

/// A right file of these blocks.
fn file(truncation: u32, blocks: &[u32]) -> Vec<u8> {
    let count = u32::try_from(blocks.len()).expect("few");
    let numbers = [0xd3ae_1f0d, count, truncation].into_iter().chain(blocks.iter().copied());
    let mut file: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
    if count > 0 {
        file.resize(BLOCK * (1 + blocks.len()), 0);
    }
    file
}

fn script(content: &[u8], packs: bool) -> Script {
    let backup = FakeBackup::honest(MAJOR).with(Member::file(PATH, content));
    let answer = if packs {
        reply(&backup, "base.tar.gz", &gzip(&backup.base_archive().concat(), 0))
    } else {
        backup.reply()
    };
    let taken = [command_complete("UPLOAD_MANIFEST"), ready()].concat();
    Script::version(MAJOR)
        .answer("UPLOAD_MANIFEST", Reply::bytes(copy_in()))
        .after_copy(Reply::bytes(taken))
        .answer("BASE_BACKUP ( INCREMENTAL, ", answer)
}

#[test]
fn incremental_files_are_taken_as_they_should_be_and_in_no_other_way() {
    let put = |place: usize, number: u32| {
        let mut changed = file(9, &[3, 5]);
        changed[place..place + 4].copy_from_slice(&number.to_le_bytes());
        changed
    };
    let mut all = Vec::new();
    for (name, content, words) in [
        ("honest", file(9, &[3, 5]), &[][..]),
        ("without blocks", file(131_072, &[]), &[]),
        ("of every block but one", file(0, &(0..300).collect::<Vec<_>>()), &[]),
        ("empty", Vec::new(), &["it ends after 0 bytes"]),
        ("magic", put(0, 0xd3ae_1f0e), &["magic number 0xd3ae1f0e, expected 0xd3ae1f0d"]),
        ("one block more", put(4, 3), &["24576 bytes, expected 32768 for 3 blocks"]),
        ("every block there is", put(4, u32::MAX), &["4294967295 blocks, expected at most 131072"]),
        (
            "longer than a segment",
            put(8, 131_073),
            &["truncation block length of 131073", "HINT: no tool can combine it"],
        ),
        ("order", put(12, 6), &["entry 1 of the list of blocks: block 5, expected one above 6"]),
        ("a block too far", put(16, 131_072), &["block 131072, expected one below 131072"]),
        ("padding", put(8188, 1), &["byte 8188 is 0x01, expected padding"]),
    ] {
        for format in [&["-Fp"][..], &["-Ft"], &["-Fp", "-Z", "server-gzip"], &["-Ft", "-Z", "server-gzip"]] {
            let content = content.clone();
            let packs = format.len() > 1;
            let build = move |_: &crate::case::Place| script(&content, packs);
            let case = Case::new(format!("{name} {format:?}"), build);
            let case = case.arguments(&[&SHORT[..], format].concat());
            let about = [&["incremental file \"base/1/INCREMENTAL.16384\": ", "HINT: "][..], words].concat();
            all.push(if words.is_empty() { case } else { case.refused(&about) });
        }
    }
    // In a backup that is not incremental it is a file like any other.
    all.push(Case::answer("whole", MAJOR, |_| {
        FakeBackup::honest(MAJOR).with(Member::file(PATH, b"no such thing")).reply()
    }));
    run_all(&all);
}

#[test]
fn a_manifest_is_uploaded_as_the_server_asks_and_no_longer() {
    let refusal = || error("XX000", "could not parse backup manifest: too much of it");
    let honest = file(9, &[3]);
    let mut all = Vec::new();
    for (name, arguments, first, after, words) in [
        (
            "refused at once",
            &SHORT[..],
            Reply::error("42501", "permission denied"),
            Reply::default(),
            &["could not upload manifest: ERROR:  permission denied"][..],
        ),
        (
            "refused at the end",
            &SHORT,
            Reply::bytes(copy_in()),
            Reply::bytes([refusal(), ready()].concat()),
            &[
                "could not upload manifest: ERROR:  could not parse",
                "HINT: \"/dev/null\" must be the unchanged",
            ],
        ),
        (
            "refused in between",
            &ENDLESS,
            Reply::bytes([copy_in(), refusal(), ready()].concat()),
            Reply::default(),
            &[
                "could not upload manifest: ERROR:  could not parse",
                "HINT: \"/dev/zero\" must be the unchanged",
            ],
        ),
        (
            "shut down in between",
            &ENDLESS,
            Reply::bytes([copy_in(), warning("soon"), fatal("57P01", "terminating connection")].concat())
                .then(Step::Close),
            Reply::default(),
            &["could not upload manifest: FATAL:  terminating connection", "WARNING:  soon"],
        ),
        (
            "lost in between",
            &ENDLESS,
            Reply::bytes(copy_in()).then(Step::Close),
            Reply::default(),
            &["could not upload manifest: "],
        ),
        (
            "not read",
            &["-X", "none", "-i", "/dev/zero", "--stall-timeout", "1"],
            Reply::bytes(copy_in()).then(Step::Stall),
            Reply::default(),
            &["could not upload manifest: the server sent nothing for 1s"],
        ),
        (
            "taken before its end",
            &ENDLESS,
            Reply::bytes([copy_in(), command_complete("UPLOAD_MANIFEST"), ready()].concat()),
            Reply::default(),
            &["the server ended the copy before all was sent"],
        ),
        (
            "not asked for",
            &SHORT,
            Reply::bytes([command_complete("UPLOAD_MANIFEST"), ready()].concat()),
            Reply::default(),
            &["the command began no copy to the server"],
        ),
        (
            "asked for twice",
            &SHORT,
            Reply::bytes(copy_in()),
            Reply::bytes(copy_in()),
            &["the server began another copy, expected its verdict"],
        ),
    ] {
        let honest = honest.clone();
        let build = move |_: &crate::case::Place| {
            script(&honest, false).answer("UPLOAD_MANIFEST", first.clone()).after_copy(after.clone())
        };
        all.push(Case::new(name, build).arguments(arguments).refused(words));
    }
    run_all(&all);
}
