//! `pgstrata verifybackup` beside PostgreSQL's own `pg_verifybackup`, over one table of damages made on real backups.
//!
//! Both must accept what is whole, refuse what is not, and name the same files. Where no `pg_verifybackup` of the server's
//! version can be had, ours is judged alone.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use pgstrata_tests as harness;
use pgstrata_tests::{
    Finished, Invocation, Relocation, Source, Workload, basebackup, pgstrata, sql, wait_until,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// With manifests of version 1 and the distribution's own tools, and with those of version 2.
const FORMATS: [u32; 2] = [15, 18];
const CONTENT: &str = "WAL parsing failed for timeline 1";

fn each_format(body: impl Fn(u32)) {
    for major in harness::majors().into_iter().filter(|major| FORMATS.contains(major)) {
        eprintln!("PostgreSQL {major}");
        body(major);
    }
}

/// A source with a tablespace and segments of 1 MiB, so that a backup needs several.
fn source(major: u32) -> Source {
    let workload = Workload::empty().rows(200).tablespaces(1);
    harness::cluster(major).wal_segsize_mb(1).with(workload).start()
}

/// Takes a backup that needs several segments of WAL: some are written while it is under way.
fn take(source: &Source, target: &Path, options: &[&str]) {
    let session = sql(source);
    let run = basebackup(source).arg("-D").arg(target).args(["-N", "-r", "40M"]).args(options);
    let running = run.spawn();
    let streaming =
        "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files'";
    wait_until("the backup streams", || !running.is_running() || session.value::<u32>(streaming) == 1);
    session.execute(
        "CREATE TABLE IF NOT EXISTS much (t text); INSERT INTO much SELECT repeat(md5(i::text), 20) FROM generate_series(1, 6000) i",
    );
    running.wait().expect_success();
}

fn ours(backup: &Path, options: &[&str]) -> Finished {
    pgstrata(["verifybackup"]).args(options).arg(backup).run()
}

/// What `pg_verifybackup` of the server's own version says, where it can be had.
fn stock(backup: &Path, major: u32, options: &[&str]) -> Option<Finished> {
    let verifier = harness::complete(major)?.tool("pg_verifybackup");
    Some(Invocation::new(&verifier, options).arg(backup).run())
}

/// The files that `pg_verifybackup` complains about, relative to the backup.
fn named(finished: &Finished, backup: &Path) -> Vec<String> {
    let said = finished.stderr_text().replace(&format!("{}/", backup.display()), "");
    let complaints = said.lines().filter_map(|line| line.strip_prefix("pg_verifybackup: error: "));
    let files = complaints.filter_map(|text| {
        let (_, rest) = text.split_once('"')?;
        // What JSON's tokens are called is not comparable.
        rest.split_once('"').filter(|_| !text.contains("backup manifest")).map(|(name, _)| name.to_owned())
    });
    files.collect()
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

fn flip(path: &Path, at: u64) {
    own(path);
    let file = OpenOptions::new().read(true).write(true).open(path).expect("it can be opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("it is that long");
    file.write_all_at(&[byte[0] ^ 0x20], at).expect("written");
}

/// Inverts more bytes than the padding between two members of an archive has, or than a back reference of a compressed one:
/// a single byte there may be one that changes nothing of any file. Twice leaves all as it was.
fn invert(path: &Path, at: u64) {
    own(path);
    let file = OpenOptions::new().read(true).write(true).open(path).expect("it can be opened");
    let mut bytes = [0; 1024];
    file.read_exact_at(&mut bytes, at).expect("it is that long");
    file.write_all_at(&bytes.map(|byte| !byte), at).expect("written");
}

fn resize(path: &Path, change: impl FnOnce(u64) -> u64) {
    own(path);
    let file = OpenOptions::new().write(true).open(path).expect("it can be opened");
    let length = file.metadata().expect("it has a length").len();
    file.set_len(change(length)).expect("resized");
}

/// A backup in plain format, and where its WAL lies.
struct Plain {
    dir: PathBuf,
    start: u64,
    end: u64,
}

const SEGMENT: u64 = 1 << 20;

impl Plain {
    fn new(dir: PathBuf) -> Self {
        let manifest: Value =
            serde_json::from_slice(&fs::read(dir.join("backup_manifest")).expect("a manifest"))
                .expect("JSON");
        let range = &manifest["WAL-Ranges"][0];
        let position = |key: &str| {
            let (high, low) = range[key].as_str().expect("text").split_once('/').expect("a position");
            let half = |text| u64::from_str_radix(text, 16).expect("a number");
            half(high) << 32 | half(low)
        };
        Self { start: position("Start-LSN"), end: position("End-LSN"), dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// The segment that holds a position.
    fn segment(&self, position: u64) -> PathBuf {
        self.path("pg_wal").join(format!("0000000100000000{:08X}", position / SEGMENT))
    }

    fn flip_wal(&self, position: u64) {
        flip(&self.segment(position), position % SEGMENT);
    }

    /// The first page of the segment behind the first, which some record runs into or begins on.
    fn second_segment(&self) -> u64 {
        (self.start / SEGMENT + 1) * SEGMENT
    }
}

type Damage = fn(&Plain);

/// Damages that both programs find, and a word of what ours says of each.
const DAMAGES: [(&str, Damage, &str); 21] = [
    ("a flipped bit", |b| flip(&b.path("base/1/1259"), 9000), "checksum mismatch for file \"base/1/1259\""),
    (
        "a flipped bit in a small file",
        |b| flip(&b.path("PG_VERSION"), 0),
        "checksum mismatch for file \"PG_VERSION\"",
    ),
    (
        "a flipped bit in the label",
        |b| flip(&b.path("backup_label"), 30),
        "checksum mismatch for file \"backup_label\"",
    ),
    ("a missing file", |b| fs::remove_file(b.path("base/1/1259")).expect("removed"), "not on disk"),
    ("a missing folder", |b| fs::remove_dir_all(b.path("base/1")).expect("removed"), "not on disk"),
    ("a missing label", |b| fs::remove_file(b.path("backup_label")).expect("removed"), "\"backup_label\""),
    ("an extra file", |b| fs::write(b.path("base/1/1"), "x").expect("written"), "not in the manifest"),
    ("a longer file", |b| resize(&b.path("base/1/1259"), |n| n + 1), "in the manifest"),
    ("a shorter file", |b| resize(&b.path("base/1/1259"), |n| n - 1), "in the manifest"),
    ("an emptied file", |b| resize(&b.path("global/pg_control"), |_| 0), "has size 0 on disk"),
    ("a changed manifest", |b| flip(&b.path("backup_manifest"), 200), "backup manifest"),
    ("a cut manifest", |b| resize(&b.path("backup_manifest"), |n| n - 100), "backup manifest"),
    ("no manifest", |b| fs::remove_file(b.path("backup_manifest")).expect("removed"), "backup_manifest"),
    ("a flipped bit in a record's checksum", |b| b.flip_wal(b.start + 20), CONTENT),
    ("a flipped bit in a record's link", |b| b.flip_wal(b.start + 9), CONTENT),
    ("a flipped bit in a page's magic", |b| b.flip_wal(b.second_segment()), CONTENT),
    ("a flipped bit in a page's address", |b| b.flip_wal(b.second_segment() + 8192 + 10), CONTENT),
    ("a missing segment", |b| fs::remove_file(b.segment(b.second_segment())).expect("removed"), CONTENT),
    ("a cut segment", |b| resize(&b.segment(b.second_segment()), |_| 8192), CONTENT),
    (
        "zeros in place of a segment",
        |b| {
            resize(&b.segment(b.end - 1), |_| 0);
            resize(&b.segment(b.end - 1), |_| SEGMENT);
        },
        CONTENT,
    ),
    (
        "one segment in place of another",
        |b| {
            own(&b.segment(b.second_segment()));
            fs::copy(b.segment(b.start), b.segment(b.second_segment())).expect("copied");
        },
        CONTENT,
    ),
];

#[test]
fn both_refuse_the_same_damages() {
    each_format(|major| {
        let source = source(major);
        let whole = source.dir("whole");
        let relocation = Relocation::new(&source, &whole);
        let mapping: Vec<_> =
            relocation.arguments().iter().map(|word| word.to_str().unwrap().to_owned()).collect();
        take(&source, &whole, &mapping.iter().map(String::as_str).collect::<Vec<_>>());
        let damaged = source.dir("damaged");
        let undamaged = Plain::new(whole.clone());
        assert!(
            undamaged.end / SEGMENT > undamaged.second_segment() / SEGMENT,
            "a backup of several segments"
        );
        let accepted = |finished: &Finished| {
            finished.expect_success();
            assert_eq!(finished.stdout_text(), "backup successfully verified\n");
        };
        accepted(&ours(&whole, &[]));
        if let Some(stock) = stock(&whole, major, &[]) {
            accepted(&stock);
        }
        for (name, damage, expected) in DAMAGES {
            copy(&whole, &damaged);
            let backup = Plain::new(damaged.clone());
            damage(&backup);
            eprintln!("{name}");
            let finished = ours(&damaged, &[]);
            finished.expect_failure().expect_stderr(expected);
            assert_eq!(finished.status.code(), Some(1), "{name}");
            assert_eq!(finished.stdout_text(), "", "{name}");
            let stock_of = |options: &[&str]| stock(&damaged, major, options);
            if let Some(stock) = stock_of(&[]) {
                assert_eq!(
                    (stock.status.code(), stock.stdout_text().as_str()),
                    (Some(1), ""),
                    "{name}: {stock}"
                );
                for file in named(&stock, &damaged) {
                    finished.expect_stderr(&file);
                }
            }
            // Without WAL, both find the same but for WAL.
            let without = ours(&damaged, &["-n"]).status.success();
            assert_eq!(without, expected == CONTENT, "{name}");
            if let Some(stock) = stock_of(&["-n"]) {
                assert_eq!(stock.status.success(), without, "{name}: {stock}");
            }
        }
        // What nobody needs may be anything.
        copy(&whole, &damaged);
        let backup = Plain::new(damaged.clone());
        flip(&backup.segment(backup.end), backup.end % SEGMENT + 100);
        accepted(&ours(&damaged, &[]));
        if let Some(stock) = stock(&damaged, major, &[]) {
            accepted(&stock);
        }
        // WAL may lie elsewhere.
        let wal = source.dir("wal");
        fs::rename(whole.join("pg_wal"), &wal).expect("renamed");
        ours(&whole, &[]).expect_failure().expect_stderr(CONTENT);
        let named = ["-w", wal.to_str().unwrap()];
        accepted(&ours(&whole, &named));
        if let Some(stock) = stock(&whole, major, &named) {
            accepted(&stock);
        }
    });
}

/// Rewrites a manifest, checksum and all.
fn rewrite_manifest(backup: &Plain, change: impl FnOnce(String) -> String) {
    let path = backup.path("backup_manifest");
    let text = fs::read_to_string(&path).expect("a manifest");
    let (body, _) = text.rsplit_once("\"Manifest-Checksum\"").expect("its checksum comes last");
    let body = change(body.to_owned());
    let sum: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    own(&path);
    fs::write(&path, format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n")).expect("written");
}

/// A damage, options, whether the backup is accepted with them, and the oldest version that is so.
type Choice = (u32, &'static str, Damage, &'static [&'static str], bool);

const CLASS: &str = "base/1/1259";

/// Damages that options make up for, or do not.
const CHOICES: [Choice; 22] = [
    (15, "an ignored file", |b| fs::remove_file(b.path(CLASS)).expect("removed"), &["-i", CLASS], true),
    (15, "an ignored folder", |b| flip(&b.path(CLASS), 9000), &["-i", "base/1"], true),
    (15, "an ignored folder, oddly", |b| flip(&b.path(CLASS), 9000), &["-i", "./base//1/"], true),
    (15, "a part of a name", |b| flip(&b.path(CLASS), 9000), &["-i", "base/1/12"], false),
    (15, "an ignored extra file", |b| fs::write(b.path("x"), "").expect("written"), &["-i", "x"], true),
    (15, "an extra link", |b| symlink("PG_VERSION", b.path("x")).expect("made"), &[], false),
    (15, "an extra pipe", |b| pipe(&b.path("x")), &[], false),
    (15, "an extra empty folder", |b| fs::create_dir(b.path("x")).expect("made"), &[], true),
    (
        15,
        "a changed auto.conf",
        |b| fs::write(b.path("postgresql.auto.conf"), "x").expect("written"),
        &[],
        true,
    ),
    (15, "a signal file", |b| fs::write(b.path("standby.signal"), "").expect("written"), &[], true),
    (15, "a map of tablespaces", |b| fs::write(b.path("tablespace_map"), "").expect("written"), &[], false),
    (15, "no checksums", |b| flip(&b.path(CLASS), 9000), &["-s"], true),
    (15, "no checksums but sizes", |b| resize(&b.path(CLASS), |n| n + 1), &["-s"], false),
    (15, "a quiet refusal", |b| flip(&b.path(CLASS), 9000), &["-q"], false),
    (15, "WAL that is nowhere", |_| {}, &["-w", "/nonexistent"], false),
    (15, "a manifest that is nowhere", |_| {}, &["-m", "/nonexistent"], false),
    (
        15,
        "an unknown version of the manifest",
        |b| rewrite_manifest(b, |text| text.replacen("Manifest-Version\": ", "Manifest-Version\": 9", 1)),
        &[],
        false,
    ),
    (
        15,
        "an unknown key",
        |b| rewrite_manifest(b, |text| text.replacen("\"Last-Modified\"", "\"Lost-Modified\"", 1)),
        &[],
        false,
    ),
    (
        15,
        "an unknown algorithm",
        |b| rewrite_manifest(b, |text| text.replacen("\"CRC32C\"", "\"CRC32D\"", 1)),
        &[],
        false,
    ),
    (
        15,
        "a file that the manifest lists twice",
        |b| {
            rewrite_manifest(b, |text| {
                let file = text.lines().find(|line| line.contains("\"PG_VERSION\"")).expect("it is listed");
                let twice = format!("{file}\n{file}");
                text.replacen(file, &twice, 1)
            });
        },
        &[],
        false,
    ),
    // From 17 on the manifest says whose it is.
    (17, "another system identifier", |b| flip(&b.path("global/pg_control"), 0), &["-s"], false),
    (
        17,
        "another system identifier, ignored",
        |b| flip(&b.path("global/pg_control"), 0),
        &["-i", "global"],
        true,
    ),
];

fn pipe(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).expect("made");
}

#[test]
fn both_heed_the_same_options() {
    each_format(|major| {
        let source = harness::cluster(major).wal_segsize_mb(1).start();
        let (whole, damaged) = (source.dir("whole"), source.dir("damaged"));
        basebackup(&source).arg("-D").arg(&whole).arg("-N").run().expect_success();
        for (_, name, damage, options, accepted) in CHOICES.into_iter().filter(|choice| choice.0 <= major) {
            eprintln!("{name}");
            copy(&whole, &damaged);
            damage(&Plain::new(damaged.clone()));
            let finished = ours(&damaged, options);
            assert_eq!(finished.status.code(), Some(i32::from(!accepted)), "{name}: {finished}");
            let Some(stock) = stock(&damaged, major, options) else { continue };
            assert_eq!(stock.status, finished.status, "{name}: {stock}{finished}");
            assert_eq!(stock.stdout, finished.stdout, "{name}: {stock}{finished}");
            for file in named(&stock, &damaged) {
                finished.expect_stderr(&file);
            }
        }
        // With -e the first complaint is the last.
        copy(&whole, &damaged);
        for file in [CLASS, "base/1/1249"] {
            fs::remove_file(damaged.join(file)).expect("removed");
        }
        for (options, complaints) in [(&["-n"][..], 2), (&["-n", "-e"], 1)] {
            let finished = [Some(ours(&damaged, options)), stock(&damaged, major, options)];
            for finished in finished.into_iter().flatten() {
                let said = finished.expect_failure().stderr_text();
                let found = said.lines().filter(|line| line.contains("not on disk")).count();
                assert_eq!(found, complaints, "{finished}");
            }
        }
        // The manifest may lie elsewhere.
        copy(&whole, &damaged);
        let manifest = source.dir("manifest");
        fs::rename(damaged.join("backup_manifest"), &manifest).expect("renamed");
        let options = ["-m", manifest.to_str().expect("UTF-8")];
        ours(&damaged, &options).expect_success();
        if let Some(stock) = stock(&damaged, major, &options) {
            stock.expect_success();
        }
    });
}

#[test]
fn every_version_every_way() {
    harness::each_major(|major| {
        let source = source(major);
        for (number, (format, method)) in
            [("p", "stream"), ("p", "fetch"), ("t", "stream"), ("t", "fetch")].into_iter().enumerate()
        {
            let target = source.dir(&format!("copy {number}"));
            let mut options: Vec<String> = ["-F", format, "-X", method].map(str::to_owned).to_vec();
            if format == "p" {
                let relocation = Relocation::new(&source, &target);
                options.extend(relocation.arguments().iter().map(|word| word.to_str().unwrap().to_owned()));
            }
            take(&source, &target, &options.iter().map(String::as_str).collect::<Vec<_>>());
            for options in [&[][..], &["-q"], &["-P"], &["-e", "-F", format], &["-s"]] {
                let finished = ours(&target, options);
                finished.expect_success();
                let quiet = options.contains(&"-q");
                let expected = if quiet { "" } else { "backup successfully verified\n" };
                assert_eq!(finished.stdout_text(), expected, "{finished}");
                assert_eq!(finished.stderr_text().is_empty(), quiet, "{finished}");
            }
            let report: Value =
                serde_json::from_str(&ours(&target, &["--json"]).stdout_text()).expect("JSON");
            assert_eq!(
                (&report["verified"], &report["wal_parsed"]),
                (&Value::Bool(true), &Value::Bool(true))
            );
            assert!(report["wal_bytes"].as_u64().is_some_and(|bytes| bytes > SEGMENT), "{report}");
        }
    });
}

/// Backups in tar format from the stock pg_basebackup, compressed as it does that, whole and damaged. The stock verifier
/// reads archives from 18 on, and no WAL in them.
#[test]
fn archives_that_the_stock_tool_compressed() {
    each_format(|major| {
        let Some(complete) = harness::complete(major) else { return };
        let source = source(major);
        let take = |target: &Path, options: &[&str]| {
            let tool = complete.tool("pg_basebackup");
            let run = Invocation::new(&tool, ["-d", &source.conninfo(), "-c", "fast", "-N", "-Ft"]);
            run.args(options).arg("-D").arg(target).run().expect_success();
        };
        let theirs = |target: &Path| (major >= 18).then(|| stock(target, major, &["-n"])).flatten();
        let refused = |target: &Path, expected: &str| {
            ours(target, &["-n"]).expect_failure().expect_stderr(expected);
            if let Some(theirs) = theirs(target) {
                theirs.expect_failure();
            }
        };
        for (compression, suffix) in
            [("none", ""), ("client-gzip:1", ".gz"), ("client-lz4", ".lz4"), ("client-zstd:1", ".zst")]
        {
            let methods: &[&str] = if suffix.is_empty() { &["stream", "fetch"] } else { &["stream"] };
            for method in methods {
                let target = source.dir(&format!("{method}{suffix}"));
                take(&target, &["-X", method, "-Z", compression]);
                ours(&target, &[]).expect_success();
                if let Some(theirs) = theirs(&target) {
                    theirs.expect_success();
                }
                let base = target.join(format!("base.tar{suffix}"));
                let length = fs::metadata(&base).expect("the base archive").len();
                let archive = format!("base.tar{suffix}");
                invert(&base, length / 2);
                refused(&target, &archive);
                invert(&base, length / 2);
                fs::write(target.join("extra"), "").expect("written");
                refused(&target, "\"extra\"");
                fs::remove_file(target.join("extra")).expect("removed");
                // Behind the last member the stock tool looks at nothing.
                resize(&base, |n| n - 1);
                ours(&target, &["-n"]).expect_failure().expect_stderr(&archive);
                resize(&base, |n| n / 2);
                refused(&target, &format!("archive \"{archive}\""));
                fs::remove_file(&base).expect("removed");
                ours(&target, &["-F", "tar"]).expect_failure().expect_stderr("not on disk");
                if let Some(theirs) = theirs(&target) {
                    theirs.expect_failure();
                }
            }
        }
        // Damage to WAL, in the archive that holds it.
        let target = source.dir("wal.gz");
        take(&target, &["-z"]);
        let wal = ["pg_wal.tar", "pg_wal.tar.gz"].map(|name| target.join(name));
        let wal = wal.iter().find(|path| path.exists()).expect("an archive of WAL");
        let kept = fs::read(wal).expect("read");
        fs::remove_file(wal).expect("removed");
        ours(&target, &[]).expect_failure().expect_stderr("could not find the segment");
        ours(&target, &["-n"]).expect_success();
        File::create(wal).and_then(|file| file.write_all_at(&kept[..kept.len() / 2], 0)).expect("written");
        ours(&target, &[]).expect_failure();
    });
}

/// A standby's backup ends where its recovery stood, on whatever timeline that is.
#[test]
fn backups_of_standbys_and_later_timelines() {
    each_format(|major| {
        let source = harness::cluster(major).wal_segsize_mb(1).start();
        let copy = source.dir("standby");
        basebackup(&source).arg("-D").arg(&copy).args(["-N", "-R"]).run().expect_success();
        let standby = source.boot(&copy);
        let writer = source.writer(1);
        writer.wait_for(50);
        let check = |target: &Path| {
            ours(target, &[]).expect_success();
            if let Some(stock) = stock(target, major, &[]) {
                stock.expect_success();
            }
        };
        for number in 0..3 {
            let target = source.dir(&format!("of the standby {number}"));
            basebackup(&standby).arg("-D").arg(&target).arg("-N").run().expect_success();
            check(&target);
        }
        let _ = writer.stop();
        let session = sql(&standby);
        session.execute("SELECT pg_promote()");
        wait_until("it is promoted", || session.value::<String>("SELECT pg_is_in_recovery()") == "f");
        session.execute("CHECKPOINT");
        for format in ["p", "t"] {
            let target = source.dir(&format!("of timeline 2 {format}"));
            basebackup(&standby).arg("-D").arg(&target).args(["-N", "-F", format]).run().expect_success();
            ours(&target, &[]).expect_success();
            let manifest = fs::read_to_string(target.join("backup_manifest")).expect("a manifest");
            assert!(manifest.contains("\"Timeline\": 2"), "{manifest}");
        }
        check(&source.dir("of timeline 2 p"));
    });
}
