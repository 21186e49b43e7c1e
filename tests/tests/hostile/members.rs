//! Archive members that lead out of the target, are of kinds that no data directory has, lie about their size, come
//! twice, or end early.

use pgstrata_tests::fake::{FakeBackup, Manifest, Member, Reply, Script};
use tar::EntryType;

use crate::case::{Case, MAJORS, Place, run_all};

type Row = (&'static str, fn(&Place) -> Member, &'static str);

fn absolute(place: &Place, name: &str) -> String {
    place.far.join(name).to_string_lossy().into_owned()
}

/// The member before pg_control, in both layouts, and in tar format too if that is to refuse it.
fn cases(rows: &[Row], in_tar: bool, cases: &mut Vec<Case>) {
    for major in MAJORS {
        for (name, make, expected) in rows {
            let make = *make;
            let script = move |place: &Place| {
                let backup = FakeBackup::honest(major).with(make(place));
                Script::version(major).answer("BASE_BACKUP", backup.reply())
            };
            let case = Case::new(format!("{major}: {name}"), script).refused(&[expected]);
            if in_tar {
                cases.push(case.in_tar(script));
            }
            cases.push(case);
        }
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    let mut all = Vec::new();
    cases(
        &[
            ("absolute file", |place| Member::file(absolute(place, "new"), "x"), "absolute"),
            ("absolute directory", |place| Member::directory(absolute(place, "new")), "absolute"),
            (
                "absolute behind a dot",
                |place| Member::file(format!("./{}", absolute(place, "new")), "x"),
                "absolute",
            ),
            ("parent", |_| Member::file("../beside/new", "x"), "\"..\""),
            ("parent behind a dot", |_| Member::file("./../beside/new", "x"), "\"..\""),
            ("parent further in", |_| Member::file("base/../../beside/new", "x"), "\"..\""),
            ("parent at the end", |_| Member::directory("base/.."), "\"..\""),
            ("parent alone", |_| Member::directory(".."), "\"..\""),
            ("dot inside", |_| Member::file("base/./x", "x"), "\".\""),
            ("double slash", |_| Member::file("base//x", "x"), "empty component"),
            ("empty", |_| Member::file("", "x"), "empty"),
            (
                "parent in the prefix field",
                |_| {
                    Member::file("new", "x")
                        .with_header(|header| header[345..355].copy_from_slice(b"../beside/"))
                },
                "\"..\"",
            ),
            (
                "absolute prefix field",
                |place| {
                    let prefix = absolute(place, "deeper");
                    Member::file("new", "x").with_header(move |header| {
                        header[345..345 + prefix.len()].copy_from_slice(prefix.as_bytes());
                    })
                },
                "absolute",
            ),
        ],
        true,
        &mut all,
    );
    run_all(&all);
}

#[test]
fn links_that_lead_elsewhere_are_refused() {
    let mut all = Vec::new();
    cases(
        &[
            ("link in base", |place| Member::link("base/link", absolute(place, "")), "link"),
            ("relative link out", |_| Member::link("base/link", "../../beside"), "link"),
            ("link to a file", |place| Member::link("postgresql.auto.conf", absolute(place, "file")), "link"),
            ("pg_wal as a link", |place| Member::link("pg_wal2", absolute(place, "")), "link"),
            ("oid with a sign", |place| Member::link("pg_tblspc/+1", absolute(place, "")), "link"),
            ("no oid", |place| Member::link("pg_tblspc/x", absolute(place, "")), "link"),
            ("link below a tablespace", |place| Member::link("pg_tblspc/1/x", absolute(place, "")), "link"),
            ("link without a target", |_| Member::link("base/link", ""), "link"),
        ],
        true,
        &mut all,
    );
    for major in MAJORS {
        // As of a tablespace that was created meanwhile: left out, and nothing goes where it leads.
        let unlisted = move |place: &Place| {
            let link = Member::link("pg_tblspc/1", absolute(place, ""));
            FakeBackup::honest(major).with(link).reply()
        };
        all.push(Case::answer("tablespace that is not listed", major, unlisted));
        // The list says one place, the link in the archive another.
        let other_target = move |place: &Place| {
            let location = place.dir.join("space").to_string_lossy().into_owned();
            let mut backup = FakeBackup::honest(major).with_tablespace("16384", &location, space(major));
            let last = backup.members.len() - 2;
            backup.members[last] = Member::link("pg_tblspc/16384", absolute(place, ""));
            backup.reply()
        };
        all.push(
            Case::answer("link beside the list", major, other_target).refused(&["link", "pg_tblspc/16384"]),
        );
        // A file through a link that the stream itself made, and through one to a tablespace.
        for (name, path) in
            [("in the tablespace", "pg_tblspc/16384/new"), ("below it", "pg_tblspc/16384/PG_X/new")]
        {
            let through = move |place: &Place| {
                let location = place.dir.join("space").to_string_lossy().into_owned();
                let backup = FakeBackup::honest(major).with_tablespace("16384", &location, space(major));
                backup.with(Member::file(path, "x")).reply()
            };
            all.push(
                Case::answer(format!("file through a link {name}"), major, through)
                    .refused(&["pg_tblspc/16384"]),
            );
        }
        let in_tablespace = move |place: &Place| {
            let location = place.dir.join("space").to_string_lossy().into_owned();
            let mut members = space(major);
            members.push(Member::link(format!("{}/link", top(major)), absolute(place, "")));
            FakeBackup::honest(major).with_tablespace("16384", &location, members).reply()
        };
        all.push(Case::answer("link in a tablespace", major, in_tablespace).refused(&["link"]));
    }
    run_all(&all);
}

/// What a tablespace of that version looks like.
fn space(major: u32) -> Vec<Member> {
    let file = Member::file(format!("{}/5/16385", top(major)), vec![7; 8192]);
    vec![Member::directory(top(major)), Member::directory(format!("{}/5", top(major))), file]
}

fn top(major: u32) -> String {
    format!("PG_{major}_202209061")
}

#[test]
fn kinds_that_no_data_directory_has_are_refused() {
    let mut all = Vec::new();
    cases(
        &[
            ("hard link", |_| Member::of_type(EntryType::Link, "base/x", "PG_VERSION", b""), "hard link"),
            ("character device", |_| Member::of_type(EntryType::Char, "base/x", "", b""), "device"),
            ("block device", |_| Member::of_type(EntryType::Block, "base/x", "", b""), "device"),
            ("named pipe", |_| Member::of_type(EntryType::Fifo, "base/x", "", b""), "named pipe"),
            ("contiguous", |_| Member::of_type(EntryType::Continuous, "base/x", "", b"x"), "contiguous"),
            ("pax", |_| Member::of_type(EntryType::XHeader, "x", "", b"21 path=../beside/new\n"), "pax"),
            ("global pax", |_| Member::of_type(EntryType::XGlobalHeader, "x", "", b"11 size=99\n"), "pax"),
            (
                "GNU long name",
                |_| Member::of_type(EntryType::GNULongName, "././@LongLink", "", b"../x"),
                "GNU long name",
            ),
            (
                "GNU long link",
                |_| Member::of_type(EntryType::GNULongLink, "././@LongLink", "", b"../x"),
                "GNU long name",
            ),
            ("GNU sparse", |_| Member::of_type(EntryType::GNUSparse, "base/x", "", b"x"), "sparse"),
            ("unknown", |_| Member::of_type(EntryType::new(b'Z'), "base/x", "", b"x"), "unknown type"),
            (
                "GNU magic",
                |_| {
                    Member::file("base/x", "x")
                        .with_header(|header| header[257..265].copy_from_slice(b"ustar  \0"))
                },
                "ustar",
            ),
            (
                "wrong checksum",
                |_| Member::file("base/x", "x").with_raw_header(|header| header[0] ^= 1),
                "checksum",
            ),
            ("directory with content", |_| Member::directory("base/x").claiming(512), "size"),
        ],
        true,
        &mut all,
    );
    run_all(&all);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let size = |field: [u8; 12]| move |header: &mut [u8]| header[124..136].copy_from_slice(&field);
    let negative = size([0xff; 12]);
    let huge = size([0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let mut all = Vec::new();
    cases(
        &[
            ("less than sent", |_| Member::file("base/x", vec![b'x'; 2000]).claiming(1000), "tar"),
            ("none of what is sent", |_| Member::file("base/x", vec![b'x'; 512]).claiming(0), "tar"),
            ("more than sent", |_| Member::file("base/x", vec![b'x'; 512]).claiming(5 << 20), ""),
            ("an exbibyte", |_| Member::file("base/x", "x").claiming(1 << 60), "size"),
        ],
        true,
        &mut all,
    );
    for major in MAJORS {
        for (name, change) in [("negative", negative), ("2^63", huge)] {
            let build = move |_: &Place| {
                let backup = FakeBackup::honest(major).with(Member::file("base/x", "x").with_header(change));
                backup.reply()
            };
            all.push(Case::answer(name, major, build).refused(&["size"]));
        }
    }
    run_all(&all);
}

#[test]
fn members_that_come_twice_are_refused() {
    // An archive that is kept as it came may hold a file twice where the manifest says so: only unpacking shows it.
    let mut all = Vec::new();
    cases(
        &[
            ("file", |_| Member::file("PG_VERSION", "18\n"), "PG_VERSION"),
            ("directory", |_| Member::directory("base/1"), "base/1"),
            ("file over a directory", |_| Member::file("base/1", "x"), "base/1"),
            ("directory over a file", |_| Member::directory("PG_VERSION"), "PG_VERSION"),
            ("below a file", |_| Member::file("PG_VERSION/x", "x"), "PG_VERSION"),
            ("pg_control", |_| Member::file("global/pg_control", vec![0x5a; 8192]), "pg_control"),
        ],
        false,
        &mut all,
    );
    run_all(&all);
}

#[test]
fn archives_that_end_early_or_go_on_are_refused() {
    let mut all = Vec::new();
    for major in MAJORS {
        let bytes = FakeBackup::honest(major).base_archive().concat();
        let blocks = bytes.len() / 512;
        // Each block around the headers, every 61st within the long file.
        let cuts = (0..blocks).filter(|n| *n < 10 || *n > blocks - 26 || n % 61 == 0);
        let plain = &["-X", "none", "-N"][..];
        let tar = &["-X", "none", "-N", "-Ft"][..];
        let unlisted = &["-X", "none", "-N", "--no-manifest"][..];
        let unlisted_tar = &["-X", "none", "-N", "--no-manifest", "-Ft"][..];
        let kinds = [(0, plain), (7, plain), (0, tar), (0, unlisted), (0, unlisted_tar)];
        for (cut, (odd, arguments)) in cuts.flat_map(|cut| kinds.map(|kind| (cut, kind))) {
            let bytes = bytes[..cut * 512 + odd].to_vec();
            let build = move |_: &Place| {
                let mut backup = FakeBackup::honest(major);
                if arguments.contains(&"--no-manifest") {
                    backup = backup.with_manifest(Manifest::Absent);
                }
                let pieces: Vec<Vec<u8>> = bytes.chunks(32 << 10).map(<[u8]>::to_vec).collect();
                Reply::messages(backup.messages_with_base(&pieces))
            };
            let name = format!("cut after {cut} blocks and {odd} bytes {}", arguments.join(" "));
            let case = Case::answer(name, major, build).arguments(arguments);
            // Without its final zeros an archive is as good as one of 14.
            let whole = odd == 0 && cut >= blocks - if major >= 15 { 2 } else { 0 };
            all.push(if whole { case } else { case.refused(&[""]) });
        }
        for (name, rest) in [("a member", Member::file("late", "x").header), ("one byte", vec![1])] {
            let build = move |_: &Place| {
                let backup = FakeBackup::honest(major);
                let mut pieces = backup.base_archive();
                pieces.extend([vec![0; 1024], rest.clone()]);
                Reply::messages(backup.messages_with_base(&pieces))
            };
            all.push(
                Case::answer(format!("{name} after the end"), major, build)
                    .refused(&["behind the last member"]),
            );
        }
    }
    run_all(&all);
}
