//! Backups of a running server, beside the stock tools of 15 and 18: the same exit status and words, the same files with
//! the same modes, the same slots left on the server; and each side's verifier accepts what the other side wrote.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pgstrata_tests as harness;
use pgstrata_tests::{Complete, Finished, Scratch, Source, Workload};

use crate::beside;

/// Paths, with the kind and mode of each.
type Listing = BTreeMap<String, String>;

/// What a row is about to find: `T` and `W` are folders that do not exist, `EMPTY` one of mode 0711 and `FULL` one with a
/// hidden file in it.
struct Places {
    root: PathBuf,
}

impl Places {
    fn make(scratch: &Scratch) -> Self {
        let root = scratch.join("places");
        let _ = fs::remove_dir_all(&root);
        for (name, mode) in [("", 0o755), ("EMPTY", 0o711), ("FULL", 0o700)] {
            fs::create_dir(root.join(name)).unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(root.join("FULL/.hidden"), "kept").unwrap();
        Self { root }
    }

    fn word(&self, word: &str) -> String {
        match word.strip_prefix("--waldir=") {
            Some(place) => format!("--waldir={}", self.root.join(place).display()),
            None if matches!(word, "T" | "T/deep/er" | "EMPTY" | "FULL" | "FULL/.hidden/x") => {
                self.root.join(word).display().to_string()
            }
            None if word == "LONG" => "x".repeat(1100),
            None => word.to_owned(),
        }
    }

    /// Everything there is, with its kind and mode, and the members of archives that are not compressed. Names of segments
    /// and of relations that only one backup saw are not its choice.
    fn listing(&self) -> Listing {
        let mut found = BTreeMap::new();
        let mut pending = vec![self.root.clone()];
        while let Some(path) = pending.pop() {
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(&self.root).unwrap().display().to_string();
            if name.contains("archive_status/") {
                continue;
            }
            let kind = if meta.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                "folder"
            } else if meta.is_symlink() {
                "link"
            } else {
                "file"
            };
            found.insert(anonymous(&name), format!("{kind} {:o}", meta.permissions().mode() & 0o7777));
            if name.ends_with(".tar") {
                members(fs::File::open(&path).unwrap(), &name, &mut found);
            }
        }
        found
    }
}

/// The name of a WAL segment differs from backup to backup.
fn anonymous(name: &str) -> String {
    let part = |part: &str| match part.len() == 24 && part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => "SEGMENT".to_owned(),
        false => part.to_owned(),
    };
    name.split('/').map(part).collect::<Vec<_>>().join("/")
}

fn members(archive: impl Read, name: &str, found: &mut Listing) {
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let entry = entry.unwrap();
        let (header, path) = (entry.header(), entry.path().unwrap().display().to_string());
        let path = path.trim_start_matches("./").trim_end_matches('/');
        if !path.contains("archive_status/") {
            let shape = format!("{:?} {:o}", header.entry_type(), header.mode().unwrap() & 0o7777);
            found.insert(format!("{name}: {}", anonymous(path)), shape);
        }
    }
}

/// Backups that succeed, and from which version on they are compared: what the versions do alike is compared with the
/// newest alone.
const GOOD: &[(u32, &str)] = &[
    (15, "-D T"),
    (15, "-D T -v -R"),
    (15, "-D T -P -X none -l night"),
    (18, "-D T -v -X fetch --no-slot"),
    (18, "-D T -v -N -S there -R"),
    (18, "-D T -N -v -C -S fresh"),
    (15, "-D T -N --waldir=W --no-manifest -v"),
    (18, "-D T/deep/er -N --manifest-force-encode --manifest-checksums=SHA256"),
    (18, "-D EMPTY -N"),
    (15, "-D T -Ft -v -P"),
    (15, "-D EMPTY -N -Ft -R -X fetch"),
    (18, "-D T -N -Ft -X none --no-manifest"),
    (15, "-D T -N -Ft -z"),
    (18, "-D T -N -Ft -Z lz4:1"),
    (18, "-D T -N -Ft -Z client-zstd"),
    (18, "-D T -N -Ft -Z server-gzip:1"),
    (15, "-D T -N -Z server-zstd"),
    (15, "-D - -Ft -X fetch"),
    (18, "-D - -Ft -X none -z --no-manifest"),
    (15, "-t blackhole -X fetch -v"),
    (18, "-t blackhole -X none -z -P"),
];

/// Backups that the server or the file system refuses, and what both say of it.
const BAD: &[(&str, &str)] = &[
    ("-D FULL", "FULL\" exists but is not empty"),
    ("-D FULL -Ft", "FULL\" exists but is not empty"),
    ("-D T --waldir=FULL", "FULL\" exists but is not empty"),
    ("-D FULL/.hidden/x", "FULL/.hidden/x\""),
    ("-D T -l LONG", "backup label "),
    ("-D T -U nobody_there", "FATAL:  role \"nobody_there\" does not exist"),
    ("-D T -U plain", "FATAL:  "),
    ("-D T -w -U guarded", "fe_sendauth: no password supplied"),
    ("-D T -d password=wrong -U guarded", "FATAL:  password authentication failed for user \"guarded\""),
    ("-D T -S nothere", "ERROR:  replication slot \"nothere\" does not exist"),
    ("-D T -C -S there", "ERROR:  replication slot \"there\" already exists"),
    ("-D T -C -S BAD-NAME", "replication slot name \"BAD-NAME\" contains invalid character"),
    ("-D EMPTY -C -S BAD-NAME", "replication slot name \"BAD-NAME\" contains invalid character"),
    ("-D T --manifest-checksums=sha3", "unrecognized checksum algorithm: \"sha3\""),
    (
        "-D T -Z server-gzip:99",
        "ERROR:  invalid compression specification: compression algorithm \"gzip\" expects",
    ),
    ("-D T -Z server-bogus", "unrecognized compression algorithm: \"bogus\""),
    ("-t nosuch -X none", "could not initiate base backup: ERROR:  "),
    ("-t blackhole:x -X none", "could not initiate base backup: ERROR:  "),
    ("-t server:relative -X none", "could not initiate base backup: ERROR:  "),
    ("-t blackhole -X none -R", "recovery configuration cannot be written when a backup target is used"),
    ("-D - -Ft -X none -Z server-gzip", "cannot inject manifest into a compressed tar file"),
];

struct Side<'a> {
    source: &'a Source,
    folder: &'a Path,
}

impl Side<'_> {
    fn take(&self, line: &str, places: &Places) -> Finished {
        self.take_with(line, places, &[])
    }

    fn take_with(&self, line: &str, places: &Places, more: &[&str]) -> Finished {
        let port = self.source.port().to_string();
        let run =
            beside::tool(self.folder, "pg_basebackup").args(["-c", "fast", "-h", "127.0.0.1", "-p", &port]);
        let user: &[&str] = if line.contains("-U ") { &[] } else { &["-U", "postgres"] };
        run.args(user).args(line.split(' ').map(|word| places.word(word))).args(more).run()
    }

    /// What is left of slots; those that a run made are dropped.
    fn slots(&self) -> String {
        let sql = self.source.sql();
        let slots =
            sql.value("SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots");
        sql.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name <> 'there'",
        );
        slots
    }

    fn verify(&self, backup: &Path, options: &[&str]) -> Finished {
        beside::tool(self.folder, "pg_verifybackup").args(options).arg(backup).run()
    }
}

fn source(major: u32, stock: &'static Complete) -> Source {
    let source = harness::cluster(major)
        .complete(stock)
        .setting("autovacuum", "off")
        .wal_segsize_mb(1)
        .setting("wal_keep_size", "64MB")
        .with(Workload::empty().rows(100))
        .start();
    let rules = source.data_dir().join("pg_hba.conf");
    let kept = fs::read_to_string(&rules).unwrap();
    fs::write(&rules, format!("host all,replication guarded 127.0.0.1/32 scram-sha-256\n{kept}")).unwrap();
    source.sql().execute(
        "CREATE ROLE plain LOGIN; CREATE ROLE guarded LOGIN REPLICATION PASSWORD 'right';
         SELECT pg_create_physical_replication_slot('there'); SELECT pg_reload_conf()",
    );
    source
}

fn each_version(body: impl Fn(u32, &Source, [Side<'_>; 2])) {
    for (major, stock) in beside::stock().into_iter().filter(|(major, _)| *major != 17) {
        eprintln!("PostgreSQL {major}");
        let source = source(major, stock);
        let ours = beside::links(source.scratch());
        let sides =
            [Side { source: &source, folder: stock.bin_dir() }, Side { source: &source, folder: &ours }];
        body(major, &source, sides);
    }
}

/// Lines that tell how far a backup is come as time passes; how many there are is nobody's choice. Of what libpq and the
/// server add, and of the slot that the stock tool names by its process, nothing is expected.
fn steady(text: &str, tool: &str) -> String {
    let passing = |line: &&str| {
        !line.contains(" kB (")
            && !line.contains(" kB, ")
            && !line.contains("created temporary replication slot")
    };
    let position = |line: &str| -> String {
        let part = |word: &str| if word.contains('/') { "0/0" } else { word }.to_owned();
        line.split(' ').map(part).collect::<Vec<_>>().join(" ")
    };
    let named = |line: &str| if line.starts_with(tool) { position(line) } else { line.to_owned() };
    text.lines().filter(passing).map(|line| named(line) + "\n").collect()
}

/// What only one of the sides has.
fn difference(theirs: &Listing, ours: &Listing) -> Option<String> {
    let only = |a: &Listing, b: &Listing| {
        let missing = a.iter().filter(|(name, shape)| b.get(*name) != Some(shape));
        missing.map(|(name, shape)| format!("{name} ({shape})")).collect::<Vec<_>>().join(", ")
    };
    (theirs != ours).then(|| format!("stock has {}; ours has {}", only(theirs, ours), only(ours, theirs)))
}

#[test]
fn backups_are_the_same_and_each_side_accepts_the_others() {
    each_version(|major, source, [stock, ours]| {
        let mut different = Vec::new();
        for (_, line) in GOOD.iter().filter(|(since, _)| *since <= major) {
            eprintln!("{line}");
            let mut seen = Vec::new();
            for side in [&stock, &ours] {
                let places = Places::make(source.scratch());
                let finished = side.take(line, &places);
                finished.expect_success();
                let mut files = places.listing();
                if line.contains("-D -") {
                    match line.contains("-z") {
                        true => assert_eq!(finished.stdout[..2], [0x1f, 0x8b], "{line}: no gzip"),
                        false => members(&finished.stdout[..], "stdout", &mut files),
                    }
                } else {
                    assert!(finished.stdout.is_empty(), "{line}: {finished}");
                }
                let [_, err] = beside::said(&finished, side.folder);
                seen.push((files, steady(&err, "pg_basebackup"), side.slots()));
                check_both_ways(major, line, &places, [&stock, &ours]);
            }
            let [(their_files, their_words, their_slots), (files, words, slots)] = &seen[..] else {
                unreachable!("two sides")
            };
            different
                .extend(difference(their_files, files).map(|difference| format!("{line}: {difference}")));
            // With -v ours tells more, and in its own order.
            let unsaid = match line.contains("-v") {
                true => their_words.lines().filter(|line| !words.contains(line)).map(str::to_owned).collect(),
                false => beside::unsaid(their_words, words),
            };
            if !unsaid.is_empty() {
                different.push(format!("{line}:\n    {}", unsaid.join("\n    ")));
            }
            assert_eq!(their_slots, slots, "{line}");
        }
        assert!(different.is_empty(), "{}", different.join("\n"));
    });
}

/// Both verifiers accept the backup, whoever took it. The stock one knows archives from 18 on, and no WAL in them.
fn check_both_ways(major: u32, line: &str, places: &Places, sides: [&Side<'_>; 2]) {
    let place = ["T", "T/deep/er", "EMPTY"].map(|place| places.root.join(place));
    let Some(backup) = place.iter().find(|place| place.join("backup_manifest").exists()) else { return };
    let tar = !backup.join("PG_VERSION").exists();
    let no_wal = line.contains("-X none");
    let options: &[&str] = if tar || no_wal { &["-n"] } else { &[] };
    let [stock, ours] = sides;
    let mut verdicts = vec![ours.verify(backup, options)];
    if tar && !no_wal {
        verdicts.push(ours.verify(backup, &[]));
    }
    if !tar || major >= 18 {
        verdicts.push(stock.verify(backup, options));
    }
    for finished in verdicts {
        assert_eq!(
            finished.expect_success().stdout_text(),
            "backup successfully verified\n",
            "{line}: {finished}"
        );
        assert!(finished.stderr.is_empty(), "{line}: {finished}");
    }
}

#[test]
fn refused_backups_are_refused_alike() {
    each_version(|major, source, [stock, ours]| {
        // What the servers say they have said for long.
        for (line, expected) in BAD.iter().filter(|_| major >= 18) {
            eprintln!("{line}");
            let mut slots = Vec::new();
            for side in [&stock, &ours] {
                let places = Places::make(source.scratch());
                let before = places.listing();
                let finished = side.take(line, &places);
                finished.expect_failure().expect_stderr(expected);
                assert!(finished.stdout.is_empty(), "{line}: {finished}");
                let [_, err] = beside::said(&finished, side.folder);
                assert!(err.starts_with("pg_basebackup: error: "), "{line}: {finished}");
                assert_eq!(places.listing(), before, "{line}: {finished}");
                slots.push(side.slots());
            }
            assert_eq!(slots[0], slots[1], "{line}");
        }
    });
}

#[test]
fn folders_that_the_group_may_read_and_mapped_tablespaces_are_the_same() {
    let Some((major, stock)) = beside::stock().into_iter().next_back() else { return };
    let source = harness::cluster(major)
        .complete(stock)
        .init(|options| options.group_access = true)
        .setting("autovacuum", "off")
        .wal_segsize_mb(1)
        .with(Workload::empty().rows(100).tablespaces(1))
        .start();
    let ours = beside::links(source.scratch());
    let sides = [Side { source: &source, folder: stock.bin_dir() }, Side { source: &source, folder: &ours }];
    let location = source.tablespaces()[0].location.as_ref().unwrap().display().to_string();
    let mapping = format!("{location}={}", source.scratch().join("places/moved").display());
    let mapped = ["-T", mapping.as_str()];
    for (line, more) in [("-D T -N", &mapped[..]), ("-D T -N -Ft", &[]), ("-D EMPTY -N", &mapped)] {
        let listings = sides.each_ref().map(|side| {
            let places = Places::make(source.scratch());
            side.take_with(line, &places, more).expect_success();
            check_both_ways(major, line, &places, sides.each_ref());
            let mut listing = places.listing();
            // Segments in an archive are 0600 there whatever the cluster's mode is, and follow it here.
            let segment = listing.remove("T/pg_wal.tar: SEGMENT");
            assert_eq!(segment.is_some(), line.contains("-Ft"), "{line}");
            listing
        });
        assert_eq!(difference(&listings[0], &listings[1]), None, "{line}");
        // As the server's own: the group may read, and nobody else.
        let made =
            listings[1].iter().filter(|(name, _)| name.starts_with("T/") || name.starts_with("moved/"));
        for (name, shape) in made {
            let expected = if line.contains("-Ft") {
                &["file 640"][..]
            } else {
                &["file 640", "folder 750", "link 777"]
            };
            assert!(
                name.contains(".tar: ") || expected.contains(&shape.as_str()),
                "{line}: {name} is {shape}"
            );
        }
    }
}
