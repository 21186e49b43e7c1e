//! The options of `pgstrata basebackup` that shape a backup: each is seen in what the server was asked, in the files of
//! the copy, or in what the program says. On all versions from 14 to 18 where the wire may differ between them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;

use pgstrata_tests as harness;
use pgstrata_tests::{Manifest, Source, Workload, basebackup};
use rustix::process::Signal;
use serde_json::Value;

fn small(major: u32) -> Source {
    let workload = Workload::empty().rows(500);
    harness::cluster(major)
        .with(workload)
        .setting("log_replication_commands", "on")
        .setting("log_checkpoints", "on")
        .start()
}

/// Every version from 14 on that runs here and was asked for, side by side: rates and checkpoints make most of these wait.
fn each_wire(body: impl Fn(u32) + Sync) {
    let body = &body;
    thread::scope(|scope| {
        for major in harness::majors().into_iter().filter(|major| *major >= 14) {
            let run = move || {
                eprintln!("PostgreSQL {major}");
                body(major);
            };
            let named = thread::Builder::new().name(format!("PostgreSQL {major}"));
            named.spawn_scoped(scope, run).expect("a thread");
        }
    });
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn options_reach_the_server() {
    each_wire(|major| {
        let source = small(major);
        let listed = major >= 15;
        let spelled = |new: &'static str, old: &'static str| if listed { new } else { old };
        // Options, what the command says then, and what it does not.
        let wal = spelled(" WAL,", " WAL ");
        let cases: [(&[&str], &[&str], &[&str]); 11] = [
            (
                &[],
                &["LABEL 'pg_basebackup base backup'", "PROGRESS", "MANIFEST 'yes'", "TABLESPACE_MAP"],
                &["MAX_RATE", "VERIFY_CHECKSUMS", wal],
            ),
            (&["-Fp"], &["PROGRESS"], &["TABLESPACE_MAP"]),
            (&["-r", "2M"], &["MAX_RATE 2048"], &[]),
            (&["--max-rate=1000k"], &["MAX_RATE 1000"], &[]),
            (&["-r", "1048576"], &["MAX_RATE 1048576"], &[]),
            (&["--no-verify-checksums"], &[spelled("VERIFY_CHECKSUMS 0", "NOVERIFY_CHECKSUMS")], &[]),
            (&["--no-estimate-size"], &[], &["PROGRESS"]),
            (&["--no-manifest"], &[], &["MANIFEST 'yes'", "MANIFEST_CHECKSUMS"]),
            (&["--manifest-force-encode"], &["MANIFEST 'force-encode'"], &[]),
            (&["--manifest-checksums=sha224"], &["MANIFEST_CHECKSUMS 'SHA224'"], &[]),
            (&["-X", "fetch"], &[wal], &[]),
        ];
        for (number, (options, expected, absent)) in cases.into_iter().enumerate() {
            let copy = source.dir(&format!("copy {number}"));
            let seen = source.replication_commands().len();
            let run = basebackup(&source).arg("-D").arg(&copy).args(["-N", "-Ft"]);
            run.args(options).run().expect_success();
            let commands = source.replication_commands().split_off(seen);
            let command = commands.iter().find(|command| command.starts_with("BASE_BACKUP"));
            let command = command.unwrap_or_else(|| panic!("{options:?}: {commands:?}"));
            assert_eq!(command.contains('('), listed, "{command}");
            for text in expected {
                assert!(command.contains(text), "{options:?}: expected {text:?} in {command}");
            }
            for text in absent {
                assert!(!command.contains(text), "{options:?}: expected no {text:?} in {command}");
            }
            assert_eq!(
                copy.join("backup_manifest").exists(),
                !options.contains(&"--no-manifest"),
                "{options:?}"
            );
            fs::remove_dir_all(copy).unwrap();
        }
    });
}

#[test]
fn checkpoints_are_fast_or_spread() {
    each_wire(|major| {
        let source = small(major);
        let session = source.sql();
        for (options, asked) in [(&["-c", "FAST"][..], true), (&["-c", "spread"], false), (&[], false)] {
            // With nothing to write a spread checkpoint is over at once.
            session.execute("CHECKPOINT");
            let seen = source.replication_commands().len();
            let conninfo = source.conninfo();
            let run = harness::pgstrata(["basebackup", "--discard", "-X", "none", "-d", &conninfo]);
            run.args(options).run().expect_success();
            let commands = source.replication_commands().split_off(seen).join("\n");
            let fast =
                if major >= 15 { commands.contains("CHECKPOINT 'fast'") } else { commands.contains(" FAST") };
            assert_eq!(fast, asked, "{options:?}: {commands}");
        }
        let log = source.log_tail(1000);
        let of_backups: Vec<_> = log
            .lines()
            .filter(|line| line.contains("checkpoint starting: ") && line.contains("force wait"))
            .collect();
        assert!(
            of_backups
                .iter()
                .any(|line| line.contains("immediate force wait") || line.contains("fast force wait")),
            "{log}"
        );
        assert!(of_backups.iter().any(|line| line.ends_with("checkpoint starting: force wait")), "{log}");
    });
}

#[test]
fn the_label_stands_in_backup_label() {
    each_wire(|major| {
        let source = small(major);
        for (number, label) in ["it's a \"label\"; \\ 100% größe", " "].into_iter().enumerate() {
            let copy = source.dir(&format!("copy {number}"));
            basebackup(&source).arg("-D").arg(&copy).args(["-N", "-l", label]).run().expect_success();
            let text = fs::read_to_string(copy.join("backup_label")).unwrap();
            assert!(text.contains(&format!("\nLABEL: {label}\n")), "{text}");
            drop(source.boot(&copy));
        }
        let copy = source.dir("copy");
        for (label, expected) in [("two\nlines".to_owned(), "line break"), ("x".repeat(1100), "1100 bytes")] {
            let run = basebackup(&source).arg("-D").arg(&copy).args(["-l", &label]).run();
            run.expect_failure().expect_stderr(expected);
            assert!(!copy.exists());
        }
    });
}

#[test]
fn manifests_have_the_checksums_that_were_asked_for() {
    each_wire(|major| {
        let source = small(major);
        for algorithm in ["NONE", "CRC32C", "SHA224", "SHA256", "SHA384", "SHA512"] {
            let (copy, lower) = (source.dir(algorithm), algorithm.to_lowercase());
            let run = basebackup(&source).arg("-D").arg(&copy).args(["-N", "--json"]);
            let summary = run.args(["--manifest-checksums", &lower]).run().expect_success().json_summary();
            let manifest = Manifest::check(&copy);
            assert_eq!(manifest.algorithms, [algorithm.to_owned()].into());
            assert_eq!(summary["checksum_algorithm"], algorithm, "{summary}");
            assert_eq!(summary["files_verified"], manifest.files, "{summary}");
            assert_eq!(summary["files"], manifest.files, "{summary}");
            harness::verify_backup(&copy, major).expect_good();
        }
        let copy = source.dir("copy");
        let run = basebackup(&source).arg("-D").arg(&copy).args(["-N", "--manifest-force-encode"]);
        run.run().expect_success();
        let manifest = Manifest::check(&copy);
        assert_eq!(manifest.encoded, manifest.files);
        harness::verify_backup(&copy, major).expect_good();

        let copy = source.dir("without");
        let finished = basebackup(&source).arg("-D").arg(&copy).args(["-N", "--no-manifest"]).run();
        finished.expect_success().expect_stderr("nothing: the server made no manifest");
        assert!(!names(&copy).iter().any(|name| name.starts_with("backup_manifest")));
        let server = source.boot(&copy);
        harness::compare(&source, &server);
    });
}

#[test]
fn damaged_pages_are_found_by_the_server_or_here_or_let_pass() {
    each_wire(|major| {
        let source = small(major);
        let path = source.corrupt_page("data.texts", 7);

        let copy = source.dir("by the server");
        let finished = basebackup(&source).arg("-D").arg(&copy).arg("-N").run();
        finished.expect_failure().expect_stderr("WARNING:").expect_stderr("checksum error occurred");
        assert!(copy.is_dir(), "kept, for a look at it: {finished}");

        let copy = source.dir("not at all");
        basebackup(&source).arg("-D").arg(&copy).args(["-N", "--no-verify-checksums"]).run().expect_success();
        Manifest::check(&copy);
        assert_eq!(fs::read(copy.join(&path)).unwrap(), fs::read(source.data_dir().join(&path)).unwrap());

        for format in ["-Fp", "-Ft"] {
            let copy = source.dir("here");
            let options = ["-N", "--no-verify-checksums", "--check-pages", format];
            let finished = basebackup(&source).arg("-D").arg(&copy).args(options).run();
            finished
                .expect_failure()
                .expect_stderr(&path.to_string_lossy())
                .expect_stderr("block 7: page checksum found 0x");
            assert!(!copy.exists(), "{finished}");
        }
        source.sql().execute("DROP TABLE data.texts");
        source.sql().execute("CHECKPOINT");
        let copy = source.dir("sound");
        let finished = basebackup(&source).arg("-D").arg(&copy).args(["-N", "--check-pages", "--json"]).run();
        assert_eq!(finished.expect_success().json_summary()["pages_checked"], true);
    });
    let source = harness::cluster(15).checksums(false).start();
    let copy = source.dir("copy");
    let finished = basebackup(&source).arg("-D").arg(&copy).arg("--check-pages").run();
    finished.expect_failure().expect_stderr("--check-pages needs data checksums").expect_stderr("HINT: ");
    assert!(!copy.exists());
}

#[test]
fn a_failed_backup_goes_unless_it_is_to_stay() {
    each_wire(|major| {
        let source = small(major);
        source.corrupt_page("data.texts", 3);
        // All has arrived when the damage is told.
        let fails = ["-N", "--no-verify-checksums", "--check-pages"];
        for (format, unfinished, finished_name) in
            [("p", "global/pg_control.pgstrata", "global/pg_control"), ("t", "base.tar.partial", "base.tar")]
        {
            for option in [None, Some("-n"), Some("--no-clean")] {
                let copy = source.dir("copy");
                let run = basebackup(&source).arg("-D").arg(&copy).args(fails).args(["-F", format]);
                let finished = run.args(option).run();
                finished.expect_failure().expect_stderr("pages have wrong checksums");
                assert_eq!(copy.exists(), option.is_some(), "{finished}");
                if option.is_some() {
                    finished.expect_stderr("was not removed");
                    assert!(
                        copy.join(unfinished).exists() && !copy.join(finished_name).exists(),
                        "{finished}"
                    );
                    fs::remove_dir_all(&copy).unwrap();
                }
            }
        }
    });
}

#[test]
fn every_disk_back_end_makes_the_same_copy() {
    let source = small(15);
    for mode in ["direct", "uncached", "threads", "auto"] {
        for format in ["p", "t"] {
            let copy = source.dir(&format!("{mode} {format}"));
            let options = ["--json", "--io", mode, "-F", format];
            let finished = basebackup(&source).arg("-D").arg(&copy).args(options).run();
            if mode != "threads" && mode != "auto" && !finished.status.success() {
                finished.expect_failure().expect_stderr(mode);
                eprintln!("skipped: no {mode} I/O here: {}", finished.stderr_text());
                continue;
            }
            let summary = finished.expect_success().json_summary();
            if mode != "auto" {
                assert_eq!(summary["io"], mode, "{summary}");
            }
            assert!(summary["io_reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{summary}");
            let plain = if format == "p" { copy.clone() } else { source.dir(&format!("{mode} unpacked")) };
            if format == "t" {
                harness::Relocation::new(&source, &plain).unpack(&copy, &plain);
            }
            let manifest = Manifest::check(&plain);
            assert_eq!(summary["files_verified"], manifest.files);
            drop(source.boot(&plain));
        }
    }
}

#[test]
fn memory_and_threads_are_as_many_as_asked_for() {
    let source = small(15);
    for (options, workers) in [(["--buffers=4", "--workers=1"], 1), (["--buffers=16", "--workers=5"], 5)] {
        let copy = source.dir(&format!("copy {workers}"));
        // Slow enough to be looked at while it runs.
        let run = basebackup(&source).arg("-D").arg(&copy).args(options).args(["-r", "1M"]).spawn();
        // A thread names itself, once it has its first turn.
        harness::wait_until("data flows through all lanes", || {
            let tasks = fs::read_dir(format!("/proc/{}/task", run.pid())).unwrap();
            let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
            let lanes = names.filter(|name| name.starts_with("check-")).count();
            assert!(lanes <= workers, "{lanes} instead of {workers}");
            lanes == workers && copy.join("backup_label").exists()
        });
        run.signal(Signal::TERM);
        run.wait().expect_killed_by(Signal::TERM);
        assert!(!copy.exists());

        let finished = basebackup(&source).arg("-D").arg(&copy).args(options).arg("--json").run();
        let summary = finished.expect_success().json_summary();
        let peak = summary["peak_memory"].as_u64().unwrap();
        assert!(peak < 64 << 20, "{summary}");
        Manifest::check(&copy);
    }
    for option in
        ["--buffers=0", "--buffers=3", "--buffers=17000", "--workers=0", "--workers=many", "--io=fast"]
    {
        let finished = basebackup(&source).arg("-D").arg(source.dir("copy")).arg(option).run();
        finished.expect_failure().expect_stderr(option.split('=').next().unwrap());
    }
}

#[test]
fn a_discarded_backup_is_verified_and_leaves_nothing() {
    each_wire(|major| {
        let source = harness::cluster(major).with(Workload::small()).start();
        let temporary = source.dir("temporary");
        fs::create_dir(&temporary).unwrap();
        let run = basebackup(&source)
            .args(["--discard", "--json"])
            .env("TMPDIR", &temporary)
            .current_dir(&temporary);
        let summary = run.run().expect_success().json_summary();
        assert_eq!(summary["path"], Value::Null);
        assert_eq!(summary["format"], "discard");
        assert_eq!(summary["durable"], false);
        assert!(summary["files_verified"].as_u64().unwrap() > 1000, "{summary}");
        assert!(names(&temporary).is_empty(), "{:?}", names(&temporary));
        for option in [["-D", "/nonexistent"], ["--waldir", "/nonexistent"]] {
            basebackup(&source).arg("--discard").args(option).run().expect_failure();
        }
        basebackup(&source).args(["--discard", "--no-manifest"]).run().expect_failure();
    });
}

#[test]
fn nothing_is_synced_where_that_was_not_wanted() {
    let source = small(15);
    for (number, (options, durable)) in
        [(&[][..], true), (&["-Ft"], true), (&["-N"], false), (&["--no-sync", "-Ft"], false)]
            .into_iter()
            .enumerate()
    {
        let copy = source.dir(&format!("copy {number}"));
        let run = basebackup(&source).arg("-D").arg(&copy).args(options).run();
        run.expect_success();
        assert_eq!(run.stderr_text().contains("nothing was synced"), !durable, "{run}");
    }
}

#[test]
fn permissions_follow_the_source() {
    each_wire(|major| {
        for (group, folder, file) in [(false, 0o700, 0o600), (true, 0o750, 0o640)] {
            let source = harness::cluster(major)
                .with(Workload::empty().rows(50).tablespaces(1))
                .init(|options| options.group_access = group)
                .start();
            for (mask, wal) in [(0o022, "stream"), (0o000, "fetch"), (0o077, "stream")] {
                let (copy, waldir) =
                    (source.dir(&format!("copy {mask:o}")), source.dir(&format!("wal {mask:o}")));
                let relocation = harness::Relocation::new(&source, &copy);
                let run = basebackup(&source).arg("-D").arg(&copy).args(["-N", "-R", "-X", wal]);
                let run = run.args(relocation.arguments()).arg("--waldir").arg(&waldir).umask(mask);
                run.run().expect_success();
                let (_, _, space) = relocation.moved().next().unwrap();
                for root in [&copy, &waldir, space] {
                    check_modes(root, folder, file, mask);
                }

                let (taken, plain) =
                    (source.dir(&format!("tar {mask:o}")), source.dir(&format!("plain {mask:o}")));
                let run = basebackup(&source).arg("-D").arg(&taken).args(["-N", "-R", "-Ft", "-X", wal]);
                run.umask(mask).run().expect_success();
                check_modes(&taken, folder, file, mask);
                harness::Relocation::new(&source, &plain).unpack(&taken, &plain);
                // What holds the members is made by the test.
                for folders_of_the_archive in ["base", "global", "pg_multixact"] {
                    check_modes(&plain.join(folders_of_the_archive), folder, file, mask);
                }
                for added in ["standby.signal", "postgresql.auto.conf", "backup_label", "PG_VERSION"] {
                    assert_eq!(mode(&plain.join(added)), file, "{added} with umask {mask:o}");
                }
            }
        }
    });
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn check_modes(path: &Path, folder: u32, file: u32, mask: u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    if meta.is_dir() {
        assert_eq!(mode(path), folder, "{}: {:o} with umask {mask:o}", path.display(), mode(path));
        for entry in fs::read_dir(path).unwrap() {
            check_modes(&entry.unwrap().path(), folder, file, mask);
        }
    } else if meta.is_file() {
        assert_eq!(mode(path), file, "{}: {:o} with umask {mask:o}", path.display(), mode(path));
    }
}
