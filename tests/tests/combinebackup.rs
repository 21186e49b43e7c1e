//! `pgstrata combinebackup` beside PostgreSQL's own `pg_combinebackup` of 17 and 18: the same chains, the same bytes; the same
//! refusals in the same words; and what is damaged named, which the stock tool would take.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use pgstrata_tests as harness;
use pgstrata_tests::{Complete, Finished, FsKind, Invocation, Relocation, SmallFs, Source, Workload};
use rustix::process::Signal;
use serde_json::Value;

/// A page of a relation file.
const BLOCK: u64 = 8192;

/// Tables that grow, shrink, come and go, in all kinds of tablespaces.
const TABLES: &str = "
    CREATE SCHEMA chain;
    CREATE TABLE chain.updated AS SELECT i, repeat(md5(i::text), 8) AS v FROM generate_series(1, 6000) AS i;
    CREATE INDEX ON chain.updated (i);
    CREATE TABLE chain.untouched AS SELECT i, md5(i::text) AS v FROM generate_series(1, 9000) AS i;
    CREATE TABLE chain.shortened AS SELECT i, md5(i::text) AS v FROM generate_series(1, 12000) AS i;
    CREATE TABLE chain.truncated AS SELECT i, md5(i::text) AS v FROM generate_series(1, 5000) AS i;
    CREATE TABLE chain.grown AS SELECT i, md5(i::text) AS v FROM generate_series(1, 3000) AS i";

/// A chain of backups of one server, taken by the stock tool and by ours in turn.
struct Chain {
    source: Source,
    stock: &'static Complete,
    backups: Vec<PathBuf>,
}

impl Chain {
    /// A full backup and so many incremental ones; none where this version cannot be had complete.
    fn take(major: u32, incrementals: usize, workload: Workload) -> Option<Self> {
        let stock = harness::complete(major).filter(|_| harness::majors().contains(&major))?;
        let source = harness::cluster(major).complete(stock).setting("summarize_wal", "on");
        // What is left alone is to stay as it is.
        let source = source.setting("autovacuum", "off").with(workload).start();
        source.sql().execute(TABLES);
        // Else the first to read a page marks its rows, and all pages change.
        source.sql().execute("VACUUM FREEZE");
        let mut chain = Self { source, stock, backups: Vec::new() };
        chain.backup();
        for step in 1..=incrementals {
            chain.change(step);
            chain.backup();
        }
        Some(chain)
    }

    fn change(&self, step: usize) {
        let sql = self.source.sql();
        sql.execute(&format!(
            "UPDATE chain.updated SET v = 'step {step}' WHERE i % ({step} * 300) = 7;
             INSERT INTO chain.grown SELECT i, 'step {step}' FROM generate_series(1, {step} * 900) AS i;
             DELETE FROM chain.shortened WHERE i > 12000 - {step} * 2000;
             CREATE TABLE chain.made_{step} AS SELECT i FROM generate_series(1, 3000) AS i"
        ));
        match step {
            2 => sql.execute("TRUNCATE chain.truncated; INSERT INTO chain.truncated VALUES (1, 'anew')"),
            3 => sql.execute("DROP TABLE chain.made_1"),
            4 => sql
                .execute("INSERT INTO chain.shortened SELECT i, 'again' FROM generate_series(1, 20000) AS i"),
            _ => {}
        }
        sql.execute("VACUUM (TRUNCATE) chain.shortened");
    }

    fn backup(&mut self) {
        let number = self.backups.len();
        let to = self.source.dir(&format!("backup {number}"));
        let run = match number % 2 {
            0 => Invocation::new(
                &self.stock.tool("pg_basebackup"),
                ["-c", "fast", "-d", &self.source.conninfo()],
            ),
            _ => harness::basebackup(&self.source),
        };
        let run = run.arg("-N").args(Relocation::new(&self.source, &to).arguments());
        let run = match self.backups.last() {
            Some(before) => run.arg("-i").arg(before.join("backup_manifest")),
            None => run,
        };
        run.arg("-D").arg(&to).run().expect_success();
        self.backups.push(to);
    }

    /// Runs a program on the first so many backups.
    fn run(&self, run: Invocation, backups: &[PathBuf], options: &[&str], to: &Path) -> Finished {
        let mut run = run.args(options).arg("-o").arg(to);
        let last = backups.last().expect("a chain has a backup");
        for (from, to) in mappings(last, to) {
            run = run.arg("-T").arg(format!("{}={}", from.display(), to.display()));
        }
        run.args(backups).run()
    }

    fn stock(&self, backups: &[PathBuf], options: &[&str], to: &Path) -> Finished {
        self.run(Invocation::new(&self.stock.tool("pg_combinebackup"), [""; 0]), backups, options, to)
    }

    fn ours(&self, backups: &[PathBuf], options: &[&str], to: &Path) -> Finished {
        self.run(harness::pgstrata(["combinebackup"]), backups, options, to)
    }
}

/// Where the tablespaces of a backup lie, and where they go beside a new place.
fn mappings(backup: &Path, to: &Path) -> Vec<(PathBuf, PathBuf)> {
    let Ok(entries) = fs::read_dir(backup.join("pg_tblspc")) else { return Vec::new() };
    let links =
        entries.filter_map(Result::ok).filter_map(|entry| Some((fs::read_link(entry.path()).ok()?, entry)));
    let beside = |name: &str| PathBuf::from(format!("{} space {name}", to.display()));
    links.map(|(from, entry)| (from, beside(&entry.file_name().to_string_lossy()))).collect()
}

fn remove(output: &Path) {
    for (place, _) in mappings(output, output) {
        let _ = fs::remove_dir_all(place);
    }
    let _ = fs::remove_dir_all(output);
}

/// What lies in an output, tablespaces too: kind, mode and content by path; of the manifest all but the times and the order.
fn content(output: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    fn walk(root: &Path, below: &Path, found: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
        for entry in fs::read_dir(root.join(below)).expect("a folder") {
            let path = below.join(entry.expect("an entry").file_name());
            let whole = root.join(&path);
            // Through the links of tablespaces.
            let mode = fs::metadata(&whole).expect("it is there").permissions().mode();
            let bytes = match path.to_str() {
                _ if whole.is_dir() => Vec::new(),
                Some("backup_manifest") => manifest(&whole),
                _ => fs::read(&whole).expect("readable"),
            };
            found.insert(path.clone(), (mode, bytes));
            if whole.is_dir() {
                walk(root, &path, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(output, Path::new(""), &mut found);
    found
}

/// The outcome that `--json` wrote.
#[track_caller]
fn report(finished: &Finished) -> Value {
    serde_json::from_str(&finished.expect_success().stdout_text()).expect("JSON")
}

fn manifest(path: &Path) -> Vec<u8> {
    let text = fs::read_to_string(path).expect("a manifest");
    let manifest: Value = serde_json::from_str(&text).expect("JSON");
    let files = manifest["Files"].as_array().expect("files").iter();
    let mut files: Vec<String> = files
        .map(|file| {
            let mut file = file.as_object().expect("an object").clone();
            assert!(file.remove("Last-Modified").is_some());
            format!("{file:?}")
        })
        .collect();
    files.sort();
    format!("{} {} {files:#?}", manifest["System-Identifier"], manifest["WAL-Ranges"]).into_bytes()
}

#[track_caller]
fn expect_same(theirs: &Path, ours: &Path) {
    let (theirs, ours) = (content(theirs), content(ours));
    let names = |tree: &BTreeMap<PathBuf, _>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&theirs), names(&ours));
    for (path, theirs) in &theirs {
        assert!(*theirs == ours[path], "{}: {:o} and {:o}", path.display(), theirs.0, ours[path].0);
    }
}

fn chains(major: u32, options_of_longest: &[&[&str]]) {
    let workload = Workload::empty().rows(200).tablespaces(1).in_place_tablespace().unlogged();
    let Some(chain) = Chain::take(major, 5, workload) else { return };
    let (theirs, ours) = (chain.source.dir("theirs"), chain.source.dir("ours"));
    for length in 1..=chain.backups.len() {
        let last = length == chain.backups.len();
        let options: &[&[&str]] = if last { options_of_longest } else { &[&["-N"]] };
        for options in options {
            for output in [&theirs, &ours] {
                remove(output);
            }
            chain.stock(&chain.backups[..length], options, &theirs).expect_success();
            let finished = chain.ours(&chain.backups[..length], &[*options, &["--json"]].concat(), &ours);
            let report = report(&finished);
            eprintln!("PostgreSQL {major}: {length} backups {options:?}: {report}");
            expect_same(&theirs, &ours);
            assert_eq!(report["backups"], length);
            assert_eq!(report["reconstructed_files"].as_u64().unwrap() > 0, length > 1, "{report}");
        }
    }
    // As an operator goes on.
    remove(&ours);
    chain.ours(&chain.backups, &["--workers", "3"], &ours).expect_success().expect_stderr("limited by");
    Invocation::new(&chain.stock.tool("pg_verifybackup"), [&ours]).run().expect_success();
    harness::pgstrata(["verifybackup"]).arg(&ours).run().expect_success();
    let adopted = chain.source.adopt(&ours).expect("a copy");
    let copy = adopted.start(&[("allow_in_place_tablespaces", "on")]);
    let copy = copy.unwrap_or_else(|error| panic!("{error}"));
    harness::compare(&chain.source, &copy);
}

#[test]
fn chains_of_version_17() {
    chains(17, &[&["-N"], &["--manifest-checksums=sha256"]]);
}

#[test]
fn chains_of_version_18() {
    chains(
        18,
        &[
            &[],
            &["-N", "--no-manifest"],
            &["--manifest-checksums", "NONE", "--sync-method=syncfs"],
            &["-N", "--copy-file-range", "--manifest-checksums=sha224"],
            &["-k"],
        ],
    );
}

/// Clears a folder that is not to be told from one that never was.
fn is_gone(output: &Path) -> bool {
    fs::symlink_metadata(output).is_err()
}

/// What a program said, its own name and the output's path made alike.
fn errors(finished: &Finished) -> Vec<String> {
    let said = finished.stderr_text();
    let lines = said
        .lines()
        .filter_map(|line| line.split_once("pg_combinebackup: ").map(|(_, text)| text.to_owned()));
    lines.filter(|text| !text.starts_with("hint: ")).collect()
}

#[test]
fn refused_in_the_same_words() {
    let Some(chain) = Chain::take(18, 2, Workload::empty().tablespaces(1)) else { return };
    let scratch = chain.source.scratch();
    let bin = scratch.join("bin");
    harness::pgstrata(["links"]).arg(&bin).run().expect_success();
    let [full, one, two] = [0, 1, 2].map(|number| chain.backups[number].display().to_string());
    let place = fs::read_link(
        fs::read_dir(chain.backups[2].join("pg_tblspc")).unwrap().next().unwrap().unwrap().path(),
    );
    let place = place.expect("a link").display().to_string();
    let occupied = scratch.join("occupied");
    fs::create_dir_all(occupied.join("x")).unwrap();
    let changed = |name: &str, change: &dyn Fn(&Path)| {
        let to = scratch.join(name);
        copy(&chain.backups[2], &to);
        change(&to);
        to.display().to_string()
    };
    let label = |from: &'static str, to: &'static str| {
        move |dir: &Path| {
            let path = dir.join("backup_label");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{text}");
            own(&path);
            fs::write(path, text.replace(from, to)).unwrap();
        }
    };
    let no_start = changed("no start", &label("START WAL LOCATION", "STOP"));
    let bad_tli = changed("bad tli", &label("START TIMELINE: 1", "START TIMELINE: x"));
    let half_label = changed("half label", &label("INCREMENTAL FROM TLI", "X"));
    let elsewhere = changed("elsewhere", &label("INCREMENTAL FROM LSN: 0/", "INCREMENTAL FROM LSN: F/"));
    let other_line = changed("other line", &label("INCREMENTAL FROM TLI: 1", "INCREMENTAL FROM TLI: 2"));
    let torn = changed("torn", &|dir| flip(&dir.join("global/pg_control"), 20));
    let no_version = changed("no version", &|dir| {
        own(&dir.join("PG_VERSION"));
        fs::write(dir.join("PG_VERSION"), "x\n").unwrap();
    });
    let other_system = changed("other system", &|dir| {
        rewrite_manifest(dir, |text| {
            let (begin, rest) = text.split_once("\"System-Identifier\": ").unwrap();
            let (_, end) = rest.split_once(',').unwrap();
            format!("{begin}\"System-Identifier\": 42,{end}")
        });
    });
    let version_1 = changed("version 1", &|dir| {
        rewrite_manifest(dir, |text| {
            let text = text.replace("Manifest-Version\": 2", "Manifest-Version\": 1");
            let (begin, rest) = text.split_once("\"System-Identifier\"").unwrap();
            format!("{begin}{}", rest.split_once(",\n").unwrap().1)
        });
    });
    let no_manifest = changed("no manifest", &|dir| fs::remove_file(dir.join("backup_manifest")).unwrap());
    let nowhere = scratch.join("nowhere").display().to_string();
    let mapping = format!("-T{place}={}", scratch.join("space").display());
    let output = scratch.join("output");
    let to = output.display().to_string();
    let occupied = occupied.display().to_string();
    let table: &[&[&str]] = &[
        &[],
        &["-o", &to],
        &[&full],
        &["--nonsense", "-o", &to, &full],
        &["--co", "-o", &to, &full],
        &["-o", &to, "-y", &full],
        &["-o"],
        &["--no-manifest=1", "-o", &to, &full],
        &["-o", &to, "--manifest-checksums", "md5", &full],
        &["-o", &to, "--sync-method", "often", &full],
        &["-o", &to, "-T", "/a", &full],
        &["-o", &to, "-T", "=/b", &full],
        &["-o", &to, "-T", "a=/b", &full],
        &["-o", &to, "-T", "/a=b", &full],
        &["-o", &to, "-T", "/a=/b=/c", &full],
        &["-o", &to, &full, "--help"],
        &["-o", &to, &full, &nowhere],
        &["-o", &to, &nowhere, &one],
        &[&mapping, "-o", &to, &full, &two],
        &[&mapping, "-o", &to, &one, &two],
        &[&mapping, "-o", &to, &two, &one, &full],
        &[&mapping, "-o", &to, &full, &full],
        &[&mapping, "-o", &to, &full, &two, &one],
        &["-o", &to, &full, &one, &two],
        &[&mapping, "-o", &occupied, &full, &one, &two],
        &[&mapping, "-n", "-o", &occupied, &full, &one, &two],
        &[&mapping, "-o", &to, &full, &one, &no_start],
        &[&mapping, "-o", &to, &full, &one, &bad_tli],
        &[&mapping, "-o", &to, &full, &one, &half_label],
        &[&mapping, "-o", &to, &full, &one, &elsewhere],
        &[&mapping, "-o", &to, &full, &one, &other_line],
        &[&mapping, "-o", &to, &full, &one, &torn],
        &[&mapping, "-o", &to, &full, &one, &no_version],
        &[&mapping, "-o", &to, &full, &one, &other_system],
        &[&mapping, "-o", &to, &full, &one, &version_1],
        &[&mapping, "-o", &to, &full, &one, &no_manifest],
    ];
    for arguments in table {
        let run = |folder: &Path| {
            let finished = Invocation::new(&folder.join("pg_combinebackup"), *arguments).run();
            assert!(is_gone(&output), "{finished}");
            finished
        };
        let (theirs, ours) = (run(chain.stock.bin_dir()), run(&bin));
        theirs.expect_failure();
        ours.expect_failure();
        assert_eq!(errors(&theirs), errors(&ours), "{arguments:?}\n{theirs}\n{ours}");
    }
    // Without a manifest of the last one it works where none is asked for, with the same warning.
    for folder in [chain.stock.bin_dir(), &bin] {
        let run =
            Invocation::new(&folder.join("pg_combinebackup"), ["-N", "--no-manifest", &mapping, "-o", &to]);
        let finished = run.args([&full, &one, &no_manifest]).run();
        finished.expect_success().expect_stderr("pg_combinebackup: warning: file \"");
        remove(&output);
    }
    let mapping = mapping.replace("backup 2 space", "backup 0 space");
    let finished = harness::pgstrata(["combinebackup", &mapping, "-o"])
        .arg(chain.backups[0].join("inside"))
        .arg(&full)
        .run();
    finished.expect_failure().expect_stderr("lies within the backup");
}

/// A copy whose files are the same until they are changed: see [`own`].
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let status = Command::new("cp").args(["-a", "-l", "-T"]).args([from, to]).status();
    assert!(status.expect("cp runs").success());
}

/// Gives a copy a file of its own.
fn own(path: &Path) {
    let new = path.with_extension("new");
    fs::copy(path, &new).expect("copied");
    fs::rename(new, path).expect("renamed");
}

fn write_at(path: &Path, at: u64, bytes: &[u8]) {
    own(path);
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn flip(path: &Path, at: u64) {
    let byte = fs::read(path).unwrap()[usize::try_from(at).unwrap()];
    write_at(path, at, &[byte ^ 0x20]);
}

/// Changes a manifest and its own checksum with it.
fn rewrite_manifest(dir: &Path, change: impl FnOnce(&str) -> String) {
    use sha2::{Digest, Sha256};
    let path = dir.join("backup_manifest");
    let text = fs::read_to_string(&path).unwrap();
    let (body, _) = text.rsplit_once("\"Manifest-Checksum\"").unwrap();
    let body = change(body);
    let sum: String = Sha256::digest(body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    own(&path);
    fs::write(path, format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n")).unwrap();
}

/// Files that are not what they should be: each is named, and nothing is left of the output.
#[test]
fn damaged_backups_are_refused_by_name() {
    let Some(chain) = Chain::take(18, 2, Workload::empty()) else { return };
    let scratch = chain.source.scratch();
    let table = |name: &str| {
        let sql = chain.source.sql();
        sql.value::<String>(&format!("SELECT pg_relation_filepath('{name}')"))
    };
    let (updated, untouched) = (table("chain.updated"), table("chain.untouched"));
    let partial =
        updated.rsplit_once('/').map(|(folder, name)| format!("{folder}/INCREMENTAL.{name}")).unwrap();
    let of_untouched =
        untouched.rsplit_once('/').map(|(folder, name)| format!("{folder}/INCREMENTAL.{name}")).unwrap();
    let header = fs::read(chain.backups[2].join(&partial)).unwrap();
    let count = u32::from_le_bytes(header[4..8].try_into().unwrap());
    assert!(count > 2, "{count} blocks");
    // A block of the full backup that no newer one has.
    let taken = |backup: usize| {
        let bytes = fs::read(chain.backups[backup].join(&partial)).unwrap();
        let count = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
        bytes[12..12 + 4 * count]
            .chunks(4)
            .map(|four| u32::from_le_bytes(four.try_into().unwrap()))
            .collect::<Vec<_>>()
    };
    let (newer, newest) = (taken(1), taken(2));
    let old = (0u32..).find(|block| !newer.contains(block) && !newest.contains(block)).unwrap();
    let number = |value: u32| value.to_le_bytes();
    type Damage<'a> = (&'a str, usize, &'a str, Box<dyn Fn(&Path) + 'a>, &'a [&'a str]);
    let cases: Vec<Damage<'_>> = vec![
        (
            "a whole file of the last",
            2,
            "postgresql.conf",
            Box::new(|path| flip(path, 10)),
            &["CRC32C checksum"],
        ),
        (
            "a whole file of the last, longer",
            2,
            "postgresql.conf",
            Box::new(|path| {
                let length = fs::metadata(path).unwrap().len();
                write_at(path, length, b"\n");
            }),
            &["bytes, but \"", "expects"],
        ),
        (
            "the full one's file, unchanged since",
            0,
            &untouched,
            Box::new(|path| flip(path, 3 * BLOCK + 99)),
            &["CRC32C checksum"],
        ),
        (
            "a page of the full one",
            0,
            &updated,
            Box::new(move |path| flip(path, u64::from(old) * BLOCK + 999)),
            &["damaged page: block", "checksum"],
        ),
        (
            "the full one's file, cut",
            0,
            &untouched,
            Box::new(|path| {
                own(path);
                OpenOptions::new().write(true).open(path).unwrap().set_len(BLOCK).unwrap();
            }),
            &["bytes, but \"", "expects"],
        ),
        (
            "magic",
            2,
            &partial,
            Box::new(|path| write_at(path, 0, &[1, 2, 3, 4])),
            &["has bad incremental magic number (0x4030201, expected 0xd3ae1f0d)"],
        ),
        (
            "count",
            2,
            &partial,
            Box::new(move |path| write_at(path, 4, &number(131_073))),
            &["has block count 131073 in excess of segment size 131072"],
        ),
        (
            "count and length",
            2,
            &partial,
            Box::new(move |path| write_at(path, 4, &number(count + 1))),
            &["expected", "blocks"],
        ),
        (
            "truncation",
            1,
            &partial,
            Box::new(move |path| write_at(path, 8, &number(131_073))),
            &["has truncation block length 131073 in excess of segment size 131072"],
        ),
        (
            "order",
            2,
            &partial,
            Box::new(move |path| write_at(path, 16, &header[12..16])),
            &["expected one above"],
        ),
        (
            "beyond the segment",
            1,
            &partial,
            Box::new(move |path| write_at(path, 12, &number(131_072))),
            &["block 131072, expected one below 131072"],
        ),
        (
            "cut short",
            1,
            &partial,
            Box::new(|path| {
                own(path);
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.set_len(file.metadata().unwrap().len() - 1).unwrap();
            }),
            &["bytes, expected"],
        ),
        (
            "no list",
            1,
            &partial,
            Box::new(|path| {
                own(path);
                OpenOptions::new().write(true).open(path).unwrap().set_len(3).unwrap();
            }),
            &["ends after 3 bytes"],
        ),
        (
            "a block of an incremental file",
            2,
            &partial,
            Box::new(|path| flip(path, BLOCK + 500)),
            &["damaged page"],
        ),
        (
            "missing in between",
            1,
            &partial,
            Box::new(|path| fs::remove_file(path).unwrap()),
            &["could not open file", "No such file"],
        ),
        (
            "no full file",
            0,
            &untouched,
            Box::new(|path| fs::remove_file(path).unwrap()),
            &["could not open file", "No such file"],
        ),
        (
            "incremental from the start",
            0,
            &untouched,
            Box::new(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                fs::remove_file(path).unwrap();
                fs::copy(
                    chain.backups[1].join(&of_untouched),
                    path.with_file_name(format!("INCREMENTAL.{name}")),
                )
                .unwrap();
            }),
            &["full backup contains unexpected incremental file"],
        ),
        (
            "paths that lead out",
            2,
            "backup_manifest",
            Box::new(|path| {
                rewrite_manifest(path.parent().unwrap(), |text| {
                    text.replacen("\"postgresql.conf\"", "\"../postgresql.conf\"", 1)
                });
            }),
            &["path \"../postgresql.conf\" refused"],
        ),
        (
            "a path twice",
            2,
            "backup_manifest",
            Box::new(|path| {
                rewrite_manifest(path.parent().unwrap(), |text| {
                    text.replacen("\"pg_hba.conf\"", "\"postgresql.conf\"", 1)
                });
            }),
            &["duplicate path name in backup manifest: \"postgresql.conf\""],
        ),
        (
            "a manifest that was changed",
            1,
            "backup_manifest",
            Box::new(|path| flip(path, 300)),
            &["backup_manifest\": "],
        ),
    ];
    let output = scratch.join("output");
    for (what, backup, file, damage, expected) in cases {
        let mut backups = chain.backups.clone();
        backups[backup] = scratch.join("damaged");
        copy(&chain.backups[backup], &backups[backup]);
        eprintln!("{what}: {file} of backup {backup}");
        damage(&backups[backup].join(file));
        let finished = chain.ours(&backups, &["-N"], &output);
        finished.expect_failure();
        let said = finished.stderr_text();
        for words in expected {
            assert!(said.contains(words), "{what}: lacks {words}: {said}");
        }
        if file != "backup_manifest" {
            let name = Path::new(file).file_name().unwrap().to_str().unwrap();
            assert!(said.contains(name), "{what}: {said}");
        }
        assert!(is_gone(&output), "{what}: {finished}");
    }
    // Taken as it is where that is asked for; and a folder that was there stays, emptied.
    let mut backups = chain.backups.clone();
    backups[2] = scratch.join("damaged");
    copy(&chain.backups[2], &backups[2]);
    flip(&backups[2].join("postgresql.conf"), 10);
    fs::create_dir(&output).unwrap();
    chain.ours(&backups, &["-N"], &output).expect_failure();
    assert_eq!(fs::read_dir(&output).unwrap().count(), 0);
    chain.ours(&backups, &["-N", "--no-verify-checksums"], &output).expect_success();
    assert_eq!(
        fs::read(output.join("postgresql.conf")).unwrap(),
        fs::read(backups[2].join("postgresql.conf")).unwrap()
    );
    remove(&output);

    // A signal leaves all or nothing.
    let mut run = harness::pgstrata(["combinebackup", "--workers", "1", "-o"]).arg(&output);
    run = run.args(&chain.backups);
    let running = run.spawn();
    harness::wait_until("it has begun", || output.exists() || !running.is_running());
    running.signal(Signal::INT);
    let finished = running.wait();
    if output.join("global/pg_control").exists() {
        finished.expect_success();
        harness::pgstrata(["verifybackup", "-q"]).arg(&output).run().expect_success();
    } else {
        finished.expect_killed_by(Signal::INT);
        assert!(is_gone(&output), "{finished}");
    }
}

/// Shared with the backups where the file system does that, and the same bytes all the same.
#[test]
fn reflinks_and_links() {
    let Some(chain) = Chain::take(18, 2, Workload::empty()) else { return };
    let scratch = chain.source.scratch();
    let plain = scratch.join("plain");
    chain.stock(&chain.backups, &["-N"], &plain).expect_success();
    for kind in [FsKind::Xfs, FsKind::Btrfs] {
        let mounted = match SmallFs::mount(kind, 400, scratch) {
            Ok(mounted) => mounted,
            Err(reason) => {
                eprintln!("skipped: {reason}");
                continue;
            }
        };
        let moved: Vec<PathBuf> = (0..3).map(|number| mounted.path().join(number.to_string())).collect();
        for (from, to) in chain.backups.iter().zip(&moved) {
            let status = Command::new("cp").args(["-a", "-T"]).args([from, to]).status();
            assert!(status.expect("cp runs").success());
        }
        let output = mounted.path().join("output");
        for options in [&["--clone"][..], &["--copy-file-range"], &["--clone", "--no-manifest"], &["-k"]] {
            let finished = chain.ours(&moved, &[options, &["--json"]].concat(), &output);
            let report = report(&finished);
            eprintln!("{kind} {options:?}: {report}");
            let count = |name: &str| report[name].as_u64().expect("a number");
            if options[0] == "-k" {
                finished.expect_stderr(
                    "warning: --link mode was used; any modifications to the output directory",
                );
                assert!(count("bytes_linked") * 10 > count("bytes") * 8, "{report}");
                let inode = |dir: &Path| fs::metadata(dir.join("postgresql.conf")).unwrap().ino();
                assert_eq!(inode(&moved[2]), inode(&output));
            } else {
                assert!(count("bytes_within_kernel") * 10 > count("bytes") * 9, "{report}");
            }
            if options.len() == 1 {
                expect_same(&plain, &output);
            } else {
                assert!(!output.join("backup_manifest").exists());
                harness::pgstrata(["verifybackup", "-q", "-m"])
                    .arg(plain.join("backup_manifest"))
                    .arg(&output)
                    .run()
                    .expect_success();
            }
            remove(&output);
        }
        // Not from another file system.
        let finished = chain.ours(&chain.backups, &["--clone"], &output);
        finished.expect_failure().expect_stderr("error while cloning file \"").expect_stderr("HINT: ");
        let finished = chain.ours(&chain.backups, &["-k"], &output);
        finished.expect_failure().expect_stderr("could not create link from \"").expect_stderr("HINT: ");
        assert!(is_gone(&output));
    }
}
