//! Where the parts of a backup lie: target folders, tablespaces, a WAL directory of its own, and WAL segments of other
//! sizes than most have.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pgstrata_tests as harness;
use pgstrata_tests::{Manifest, Relocation, Source, Workload, basebackup};

/// Before the typed archives of 15, with them, and with the manifests of 17 and later.
const WIRES: [u32; 3] = [14, 15, 18];

/// The versions of [`WIRES`] that run here and were asked for.
fn each_wire(body: impl Fn(u32)) {
    for major in harness::majors().into_iter().filter(|major| WIRES.contains(major)) {
        eprintln!("PostgreSQL {major}");
        body(major);
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn targets_are_made_with_their_parents_or_taken_as_they_are() {
    let source = harness::cluster(15).start();
    for format in ["p", "t"] {
        let control = if format == "p" { "global/pg_control" } else { "base.tar" };
        let new = source.dir(&format!("{format}/a/b/c"));
        basebackup(&source).arg("-D").arg(&new).args(["-N", "-F", format]).run().expect_success();
        assert!(new.join(control).exists());
        for dir in new.ancestors().take_while(|dir| *dir != source.scratch().path()) {
            assert_eq!(mode(dir), 0o700, "{}", dir.display());
        }

        let empty = source.dir(&format!("{format} empty"));
        fs::create_dir(&empty).unwrap();
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o711)).unwrap();
        let before = fs::metadata(&empty).unwrap().ino();
        basebackup(&source).arg("-D").arg(&empty).args(["-N", "-F", format]).run().expect_success();
        assert!(empty.join(control).exists());
        assert_eq!((mode(&empty), fs::metadata(&empty).unwrap().ino()), (0o711, before));

        // As seen from where the program runs.
        let here = source.dir(&format!("{format} here"));
        fs::create_dir(&here).unwrap();
        let run = basebackup(&source).args(["-D", "x/../relative", "-N", "-F", format]).current_dir(&here);
        fs::create_dir(here.join("x")).unwrap();
        run.run().expect_success();
        assert!(here.join("relative").join(control).exists());
        fs::remove_dir(here.join("x")).unwrap();
        assert_eq!(names(&here), ["relative"]);
    }
    // A link to a folder is as good as the folder.
    let (folder, link) = (source.dir("folder"), source.dir("link"));
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(&folder, &link).unwrap();
    basebackup(&source).arg("-D").arg(&link).arg("-N").run().expect_success();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    Manifest::check(&folder);
    drop(source.boot(&folder));
}

/// A source with tablespaces in folders of these names.
fn spaced(major: u32, folders: &[&str]) -> (Source, Vec<PathBuf>) {
    let source = harness::cluster(major).start();
    let session = source.sql();
    let mut locations = Vec::new();
    for (number, name) in folders.iter().enumerate() {
        let location = source.dir(name);
        source.cluster().run_as().create_dir(&location).unwrap();
        session.execute(&format!("CREATE TABLESPACE s{number} LOCATION '{}'", location.display()));
        session.execute(&format!(
            "CREATE TABLE t{number} TABLESPACE s{number} AS SELECT i FROM generate_series(1, 1000) AS i"
        ));
        locations.push(location);
    }
    (source, locations)
}

/// An equals sign, and what a backup's `tablespace_map` has to escape.
const ODD_FOLDERS: [&str; 3] = ["a=b", "back\\slash", "new\nline = two"];

#[test]
fn tablespaces_go_where_they_are_mapped() {
    each_wire(|major| {
        let (source, locations) = spaced(major, &ODD_FOLDERS);
        let escaped = |path: &Path| path.to_str().unwrap().replace('=', "\\=");
        let copy = source.dir("copy");
        let moved: Vec<PathBuf> =
            ODD_FOLDERS.iter().map(|name| source.dir(&format!("moved {name}"))).collect();
        let mut run = basebackup(&source).arg("-D").arg(&copy).arg("-N");
        for (old, new) in locations.iter().zip(&moved) {
            run = run.arg("-T").arg(format!("{}={}", escaped(old), escaped(new)));
        }
        run.run().expect_success();
        let links = fs::read_dir(copy.join("pg_tblspc")).unwrap();
        let mut targets: Vec<_> = links.map(|link| fs::read_link(link.unwrap().path()).unwrap()).collect();
        let mut expected = moved.clone();
        targets.sort();
        expected.sort();
        assert_eq!(targets, expected);
        Manifest::check(&copy);
        harness::verify_backup(&copy, major).expect_good();
        let server = source.boot(&copy);
        harness::compare(&source, &server);
        let places = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname ~ '^s[0-9]$' ORDER BY spcname";
        let places: Vec<_> =
            harness::sql(&server).rows(places).into_iter().map(|row| row[0].clone().unwrap()).collect();
        assert_eq!(places, moved.iter().map(|path| path.to_str().unwrap()).collect::<Vec<_>>());
        drop(server);

        // In tar format the server's map says where they were, escaped.
        let archives = source.dir("archives");
        basebackup(&source).arg("-D").arg(&archives).args(["-N", "-Ft"]).run().expect_success();
        let spaces: Vec<(u32, PathBuf)> = source
            .sql()
            .rows("SELECT oid FROM pg_tablespace WHERE spcname ~ '^s[0-9]$' ORDER BY spcname")
            .into_iter()
            .zip(&locations)
            .map(|(row, location)| (row[0].as_ref().unwrap().parse().unwrap(), location.clone()))
            .collect();
        let unpacked = source.dir("unpacked");
        let relocation = Relocation::of(&spaces, &unpacked);
        relocation.unpack(&archives, &unpacked);
        Manifest::check(&unpacked);
        let cluster = source.adopt(&unpacked).unwrap();
        relocation.rewrite_map(&unpacked);
        let server = cluster.start(&[]).unwrap();
        harness::compare(&source, &server);
        assert_eq!(names(&unpacked.join("pg_tblspc")).len(), ODD_FOLDERS.len(), "links made by the server");
    });
}

#[test]
fn a_tablespace_whose_place_is_taken_ends_the_backup() {
    each_wire(|major| {
        let (source, locations) = spaced(major, &["space", "other"]);
        let content = names(&locations[0]);
        let (copy, moved) = (source.dir("copy"), source.dir("moved"));
        // One is mapped, the other would be written over where it lies.
        let mapping = format!("{}={}", locations[1].display(), moved.display());
        let finished = basebackup(&source).arg("-D").arg(&copy).args(["-T", &mapping]).run();
        finished.expect_failure().expect_stderr("exists but is not empty");
        finished.expect_stderr(locations[0].to_str().unwrap());
        assert!(!copy.exists() && !moved.exists(), "{finished}");
        assert_eq!(names(&locations[0]), content);
        // Other folders than the server has are no mistake: one set of options serves many servers.
        let all = ["space", "other", "third"].map(|name| {
            format!("{}={}", source.dir(name).display(), source.dir(&format!("moved {name}")).display())
        });
        let run = basebackup(&source).arg("-D").arg(&copy).arg("-N");
        run.args(all.iter().flat_map(|mapping| ["-T", mapping])).run().expect_success();
        assert!(!source.dir("moved third").exists());
        drop(source.boot(&copy));
    });
}

#[test]
fn a_tablespace_in_the_data_directory_stays_there() {
    // Up to 15 the server itself leaves them out of a backup in tar format.
    for major in harness::majors() {
        eprintln!("PostgreSQL {major}");
        let source = harness::cluster(major).with(Workload::empty().in_place_tablespace()).start();
        for format in if major >= 16 { &["p", "t"][..] } else { &["p"] } {
            let (copy, taken) = (source.dir(&format!("copy {format}")), source.dir("taken"));
            let target = if *format == "p" { &copy } else { &taken };
            basebackup(&source).arg("-D").arg(target).args(["-N", "-F", format]).run().expect_success();
            let relocation = Relocation::new(&source, &copy);
            if *format == "t" {
                relocation.unpack(&taken, &copy);
            }
            Manifest::check(&copy);
            let oid = source.tablespaces()[0].oid;
            assert!(fs::symlink_metadata(copy.join(format!("pg_tblspc/{oid}"))).unwrap().is_dir());
            let cluster = source.adopt(&copy).unwrap();
            if *format == "t" {
                relocation.rewrite_map(&copy);
            }
            let server = cluster.start(&[("allow_in_place_tablespaces", "on")]).unwrap();
            harness::compare(&source, &server);
        }
    }
}

#[test]
fn wal_may_lie_elsewhere() {
    each_wire(|major| {
        let source = harness::cluster(major).start();
        let writer = source.writer(1);
        writer.wait_for(20);
        let before = writer.acknowledged();
        let ways = ["stream", "fetch"].map(|method| {
            let (copy, waldir) = (source.dir(method), source.dir(&format!("wal {method}")));
            let run = basebackup(&source).arg("-D").arg(&copy).args(["-N", "-X", method]);
            run.arg("--waldir").arg(&waldir).run().expect_success();
            (copy, waldir)
        });
        let ledger = writer.stop();
        for (copy, waldir) in ways {
            assert_eq!(fs::read_link(copy.join("pg_wal")).unwrap(), waldir);
            assert_eq!(mode(&waldir), 0o700);
            let segments = names(&waldir).into_iter().filter(|name| name.len() == 24).count();
            assert!(segments > 0 && waldir.join("archive_status").is_dir(), "{:?}", names(&waldir));
            Manifest::check(&copy);
            harness::verify_backup(&copy, major).expect_good();
            let server = source.boot(&copy);
            ledger.check(&harness::sql(&server), before);
        }
        // One that is taken is left alone, and nothing else is made.
        let (copy, waldir) = (source.dir("copy"), source.dir("taken"));
        fs::create_dir(&waldir).unwrap();
        fs::write(waldir.join("file"), "").unwrap();
        let finished = basebackup(&source).arg("-D").arg(&copy).arg("--waldir").arg(&waldir).run();
        finished.expect_failure().expect_stderr("exists but is not empty");
        assert!(!copy.exists());
        assert_eq!(names(&waldir), ["file"]);
    });
}

#[test]
fn segments_of_any_size() {
    each_wire(|major| {
        for size in [1, 64] {
            let source = harness::cluster(major).wal_segsize_mb(size).start();
            let writer = source.writer(1);
            writer.wait_for(50);
            for (number, (format, method)) in
                [("p", "stream"), ("t", "stream"), ("p", "fetch"), ("t", "fetch")].into_iter().enumerate()
            {
                let before = writer.acknowledged();
                let (copy, taken) = (source.dir(&format!("copy {number}")), source.dir("taken"));
                let target = if format == "p" { &copy } else { &taken };
                let run = basebackup(&source).arg("-D").arg(target).args(["-N", "-F", format, "-X", method]);
                run.run().expect_success();
                if format == "t" {
                    Relocation::new(&source, &copy).unpack(&taken, &copy);
                    fs::remove_dir_all(&taken).unwrap();
                }
                for entry in fs::read_dir(copy.join("pg_wal")).unwrap() {
                    let meta = entry.unwrap().metadata().unwrap();
                    assert!(meta.is_dir() || meta.len() == u64::from(size) << 20, "{} bytes", meta.len());
                }
                Manifest::check(&copy);
                harness::verify_backup(&copy, major).expect_good();
                let server = source.boot(&copy);
                let session = harness::sql(&server);
                assert_eq!(session.value::<String>("SHOW wal_segment_size"), format!("{size}MB"));
                let last: u64 = session.value("SELECT max(n) FROM churn_1.ledger");
                assert!(before <= last && last <= writer.acknowledged() + 1, "{before} {last}");
            }
            let _ = writer.stop();
        }
    });
}
