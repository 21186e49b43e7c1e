//! Compressed backups: by this side and by the server, kept as archives or unpacked, and what the stock tools for each
//! method say of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgstrata_tests as harness;
use pgstrata_tests::fake::{FakeBackup, FakeServer, Script};
use pgstrata_tests::{Finished, Manifest, Relocation, Source, Workload, basebackup};
use rustix::process::Signal;

/// Before the typed archives of 15, with them, and with the manifests of 17 and later.
const WIRES: [u32; 5] = [14, 15, 16, 17, 18];
/// The stock tool and the extension of each method.
const TOOLS: [(&str, &str); 3] = [("gzip", ".gz"), ("lz4", ".lz4"), ("zstd", ".zst")];

fn source(major: u32) -> Source {
    harness::cluster(major)
        .with(Workload::small().tablespaces(1))
        .setting("log_replication_commands", "on")
        .start()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn tool_for(method: &str) -> (&'static str, &'static str) {
    let method = method.trim_start_matches("client-").trim_start_matches("server-");
    *TOOLS.iter().find(|(name, _)| method.starts_with(name)).expect("a method of the table")
}

/// Has the stock tool test and unpack every compressed archive of a backup, into another folder beside what is not
/// compressed.
fn decompress(archives: &Path, into: &Path, tool: &str, extension: &str) -> usize {
    fs::create_dir(into).unwrap();
    let mut unpacked = 0;
    for name in names(archives) {
        let from = archives.join(&name);
        let Some(plain) = name.strip_suffix(extension) else {
            fs::copy(&from, into.join(&name)).unwrap();
            continue;
        };
        let tested = Command::new(tool)
            .arg("-t")
            .arg(&from)
            .output()
            .unwrap_or_else(|error| panic!("{tool}: {error}"));
        assert!(tested.status.success(), "{tool} -t {name}: {}", String::from_utf8_lossy(&tested.stderr));
        let to = fs::File::create(into.join(plain)).unwrap();
        let status = Command::new(tool).args(["-d", "-c"]).arg(&from).stdout(to).status().unwrap();
        assert!(status.success(), "{tool} -d {name}");
        unpacked += 1;
    }
    unpacked
}

/// Takes a backup with tablespaces in tar format and brings it back to life by the stock tools alone.
fn check_archives(source: &Source, number: usize, options: &[&str], method: &str) -> Finished {
    let (tool, extension) = tool_for(method);
    let [taken, plain, copy] = ["taken", "plain", "copy"].map(|name| source.dir(&format!("{name} {number}")));
    let run = basebackup(source).arg("-D").arg(&taken).args(["-N", "--json", "-Ft"]).args(options);
    let finished = run.run();
    let summary = finished.expect_success().json_summary();
    let server = method.starts_with("server-");
    let side = if server { "server" } else { "client" };
    assert_eq!(summary["compression"], format!("{side}-{tool}"), "{summary}");
    let oid = source.tablespaces()[0].oid;
    // As pg_basebackup has it: WAL is compressed by nobody but a client with gzip.
    let wal = if tool == "gzip" && !server { "pg_wal.tar.gz" } else { "pg_wal.tar" };
    let mut expected = vec![format!("{oid}.tar{extension}"), format!("base.tar{extension}")];
    expected.extend(["backup_manifest".to_owned(), wal.to_owned()]);
    expected.sort();
    assert_eq!(names(&taken), expected, "{options:?}");

    decompress(&taken, &plain, tool, extension);
    let relocation = Relocation::new(source, &copy);
    relocation.unpack(&plain, &copy);
    let manifest = Manifest::check(&copy);
    assert_eq!(summary["files_verified"], manifest.files, "{summary}");
    harness::verify_backup(&copy, source.program().version.major()).expect_good();
    let cluster = source.adopt(&copy).unwrap();
    relocation.rewrite_map(&copy);
    let server = cluster.start(&[]).unwrap();
    harness::compare(source, &server);
    drop(server);
    relocation.remove(&copy);
    for dir in [taken, plain] {
        fs::remove_dir_all(dir).unwrap();
    }
    finished
}

#[test]
fn archives_compressed_here_are_what_the_stock_tools_take() {
    for major in harness::majors().into_iter().filter(|major| WIRES.contains(major)) {
        eprintln!("PostgreSQL {major}");
        let source = source(major);
        let all: &[&str] = &[
            "gzip",
            "client-gzip:1",
            "lz4",
            "lz4:9",
            "zstd",
            "client-zstd:level=1,workers=2",
            "zstd:level=2,long",
        ];
        let some: &[&str] = &["gzip:9", "client-lz4", "zstd:-5"];
        for (number, method) in (if major == 15 { all } else { some }).iter().enumerate() {
            eprintln!("{method}");
            check_archives(&source, number, &["-Z", method], method);
        }
        let commands = source.replication_commands().join("\n");
        assert!(!commands.contains("COMPRESSION"), "{commands}");
    }
}

#[test]
fn few_buffers_and_many_lanes_are_enough_to_compress_with() {
    let source = source(15);
    for (number, (method, more)) in [
        ("gzip:1", ["--buffers=4", "--workers=1"]),
        ("gzip:1", ["--buffers=4", "--workers=7"]),
        ("lz4", ["--buffers=4", "--workers=3"]),
        ("zstd:workers=3", ["--buffers=4", "--workers=1"]),
    ]
    .into_iter()
    .enumerate()
    {
        check_archives(&source, number, &["-Z", method, more[0], more[1]], method);
    }
    for (number, io) in ["direct", "uncached", "threads"].into_iter().enumerate() {
        let taken = source.dir(&format!("probe {io}"));
        let probe = basebackup(&source).arg("-D").arg(&taken).args(["-N", "-Ft", "--io", io]).run();
        if probe.status.success() {
            check_archives(&source, 10 + number, &["-Z", "zstd:1", "--io", io], "zstd");
        } else {
            probe.expect_stderr(io);
            eprintln!("skipped: no {io} I/O here");
        }
    }
}

#[test]
fn recovery_settings_go_into_a_compressed_archive() {
    let source = harness::cluster(15).start();
    for (number, method) in ["gzip", "lz4", "zstd"].into_iter().enumerate() {
        let (tool, extension) = tool_for(method);
        let [taken, plain, copy] =
            ["taken", "plain", "copy"].map(|name| source.dir(&format!("{name} {number}")));
        basebackup(&source)
            .arg("-D")
            .arg(&taken)
            .args(["-N", "-R", "-Ft", "-X", "fetch", "-Z", method])
            .run()
            .expect_success();
        assert_eq!(names(&taken), ["backup_manifest".to_owned(), format!("base.tar{extension}")]);
        decompress(&taken, &plain, tool, extension);
        Relocation::new(&source, &copy).unpack(&plain, &copy);
        assert!(copy.join("standby.signal").exists());
        let settings = fs::read_to_string(copy.join("postgresql.auto.conf")).unwrap();
        assert!(settings.contains("primary_conninfo = "), "{settings}");
    }
}

/// The methods that a server of a version here can do: the distribution's can do all.
fn server_methods(source: &Source) -> Vec<&'static str> {
    let can = |method: &&str| {
        let run = basebackup(source).args(["--discard", "-Z", &format!("server-{method}")]).run();
        if !run.status.success() {
            run.expect_failure().expect_stderr("this build does not support compression");
        }
        run.status.success()
    };
    let methods: Vec<_> = ["gzip", "lz4", "zstd"].into_iter().filter(can).collect();
    assert!(methods.contains(&"gzip"), "{methods:?}");
    methods
}

#[test]
fn archives_compressed_by_the_server_are_kept_or_unpacked() {
    for major in harness::majors().into_iter().filter(|major| [15, 16, 17, 18].contains(major)) {
        eprintln!("PostgreSQL {major}");
        let source = source(major);
        for (number, method) in server_methods(&source).into_iter().enumerate() {
            eprintln!("{method}");
            let option = format!("server-{method}:level=2");
            check_archives(&source, number, &["-Z", &option], &option);

            let copy = source.dir(&format!("unpacked {method}"));
            let relocation = Relocation::new(&source, &copy);
            let run = basebackup(&source).arg("-D").arg(&copy).args([
                "-N",
                "--json",
                "--check-pages",
                "-Z",
                &option,
            ]);
            let summary = run.args(relocation.arguments()).run().expect_success().json_summary();
            let manifest = Manifest::check(&copy);
            assert_eq!(summary["files_verified"], manifest.files, "{summary}");
            assert_eq!(summary["compression"], format!("server-{method}"));
            harness::verify_backup(&copy, major).expect_good();
            let server = source.boot(&copy);
            harness::compare(&source, &server);
        }
        let commands = source.replication_commands().join("\n");
        assert!(commands.contains("COMPRESSION 'gzip', COMPRESSION_DETAIL 'level=2'"), "{commands}");
        // The server judges the detail.
        let copy = source.dir("refused");
        for (option, expected) in [
            ("server-gzip:77", "expects a compression level between 1 and 9"),
            ("server-gzip:it's", "unrecognized compression option"),
        ] {
            let finished = basebackup(&source).arg("-D").arg(&copy).args(["-Z", option]).run();
            finished.expect_failure().expect_stderr("could not initiate base backup").expect_stderr(expected);
            assert!(!copy.exists());
        }
    }
}

#[test]
fn damage_is_found_within_archives_that_the_server_compressed() {
    let source = harness::cluster(15).with(Workload::empty().rows(500)).start();
    let path = source.corrupt_page("data.texts", 7);
    for format in ["-Fp", "-Ft"] {
        let copy = source.dir("copy");
        let options = ["-N", "--no-verify-checksums", "--check-pages", "-Z", "server-zstd", format];
        let finished = basebackup(&source).arg("-D").arg(&copy).args(options).run();
        finished
            .expect_failure()
            .expect_stderr(&path.to_string_lossy())
            .expect_stderr("block 7: page checksum found 0x");
        assert!(!copy.exists(), "{finished}");
    }
}

#[test]
fn servers_before_15_neither_compress_nor_keep() {
    if !harness::majors().contains(&14) {
        return;
    }
    let source = harness::cluster(14).start();
    let copy = source.dir("copy");
    let finished = basebackup(&source).arg("-D").arg(&copy).args(["-Z", "server-gzip"]).run();
    finished.expect_failure().expect_stderr("server does not support server-side compression");
    finished.expect_stderr("HINT: ");
    assert!(!copy.exists());
    let finished = basebackup(&source).args(["-t", "blackhole", "-X", "none"]).run();
    finished.expect_failure().expect_stderr("backup targets are not supported by this server version");
}

#[test]
fn targets_are_the_servers_affair() {
    for major in harness::majors().into_iter().filter(|major| [15, 16, 17, 18].contains(major)) {
        // A target of a server's plugin, which comes with PostgreSQL.
        let source =
            harness::cluster(major).setting("shared_preload_libraries", "basebackup_to_shell").start();
        let run = basebackup(&source).args(["-t", "blackhole", "-X", "fetch", "--json"]).run();
        let summary = run.expect_success().json_summary();
        assert_eq!((&summary["format"], &summary["target"]), (&"target".into(), &"blackhole".into()));
        assert!(summary["bytes"].as_u64().unwrap() > 1 << 20, "{summary}");

        // The server makes the folder itself, where it may.
        let theirs: PathBuf = source.dir("theirs");
        source.cluster().run_as().create_dir(&theirs).unwrap();
        let kept = theirs.join("kept");
        let finished = basebackup(&source)
            .arg("-t")
            .arg(format!("server:{}", kept.display()))
            .args(["-X", "fetch", "-z"])
            .run();
        finished.expect_success().expect_stderr("at the server's target server:");
        assert_eq!(names(&kept), ["backup_manifest", "base.tar.gz"]);
        let [plain, copy] = ["plain", "copy"].map(|name| source.dir(name));
        decompress(&kept, &plain, "gzip", ".gz");
        Relocation::new(&source, &copy).unpack(&plain, &copy);
        Manifest::check(&copy);
        drop(source.boot(&copy));

        let shell = theirs.join("shell");
        source.cluster().run_as().create_dir(&shell).unwrap();
        let sql = source.sql();
        let command = format!("cat > \"{}/%d-%f\"", shell.display());
        sql.execute(&format!("ALTER SYSTEM SET basebackup_to_shell.command = '{command}'"));
        sql.execute("SELECT pg_reload_conf()");
        harness::wait_until("the command is set", || {
            source.sql().value::<String>("SHOW basebackup_to_shell.command") == command
        });
        let finished = basebackup(&source).args(["-t", "shell:one", "-X", "fetch"]).run();
        finished.expect_success().expect_stderr("at the server's target shell:one");
        finished.expect_stderr("nothing: no file came here");
        assert_eq!(names(&shell), ["one-backup_manifest", "one-base.tar"]);

        for (target, expected) in [
            ("shell", "a target detail is required because the configured command includes %d"),
            ("nowhere", "unrecognized target: \"nowhere\""),
            ("nowhere:it's", "unrecognized target: \"nowhere\""),
            ("blackhole:x", "does not accept a target detail"),
            ("server", "requires a target detail"),
            (&format!("server:{}", kept.display()), "exists but is not empty"),
        ] {
            let finished = basebackup(&source).args(["-t", target, "-X", "none"]).run();
            finished.expect_failure().expect_stderr("could not initiate base backup").expect_stderr(expected);
        }
    }
}

#[test]
fn what_was_to_stay_with_the_server_is_not_taken() {
    let script = Script::version(18).answer("BASE_BACKUP", FakeBackup::honest(18).reply());
    let server = FakeServer::start(script);
    let run = harness::pgstrata(["basebackup", "-t", "blackhole", "-X", "none", "-d"]).arg(server.conninfo());
    run.run().expect_failure().expect_stderr("the server sent data, expected it to keep the backup");
    assert!(
        server.queries().iter().any(|query| query.contains("TARGET 'blackhole'")),
        "{:?}",
        server.queries()
    );
}

#[test]
fn whole_file_systems_are_synced_where_that_was_wanted() {
    let source = source(15);
    for format in ["-Fp", "-Ft"] {
        let copy = source.dir(&format!("copy {format}"));
        let relocation = Relocation::new(&source, &copy);
        let run = basebackup(&source).arg("-D").arg(&copy).args(["--sync-method=syncfs", "--json", format]);
        let run = if format == "-Fp" { run.args(relocation.arguments()) } else { run };
        let summary = run.run().expect_success().json_summary();
        assert_eq!(summary["durable"], true, "{summary}");
        if format == "-Fp" {
            Manifest::check(&copy);
            drop(source.boot(&copy));
        }
    }
}

/// What `tar` makes of bytes on its standard input.
fn untar(bytes: &[u8], into: &Path) {
    fs::create_dir(into).unwrap();
    fs::set_permissions(into, fs::Permissions::from_mode(0o700)).unwrap();
    let archive = into.with_extension("tar");
    fs::write(&archive, bytes).unwrap();
    let output = Command::new("tar").arg("-xpf").arg(&archive).arg("-C").arg(into).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_one_archive_goes_to_standard_output_with_its_manifest() {
    for major in harness::majors().into_iter().filter(|major| WIRES.contains(major)) {
        eprintln!("PostgreSQL {major}");
        let source = harness::cluster(major).with(Workload::empty().rows(500)).start();
        for (number, options) in
            [&["-X", "fetch"][..], &["-X", "fetch", "-R", "-Z", "gzip:1"]].iter().enumerate()
        {
            let [copy, here] = ["copy", "here"].map(|name| source.dir(&format!("{name} {number}")));
            fs::create_dir(&here).unwrap();
            let run = basebackup(&source).args(["-D", "-", "-Ft"]).args(*options).current_dir(&here);
            let run = run.run();
            run.expect_success().expect_stderr("on standard output");
            assert!(names(&here).is_empty(), "{:?}", names(&here));
            // GNU tar looks at the bytes and not at the name, and calls gzip itself.
            untar(&run.stdout, &copy);
            assert_eq!(copy.join("standby.signal").exists(), options.contains(&"-R"));
            let [signal, settings] = ["standby.signal", "postgresql.auto.conf"].map(|name| copy.join(name));
            if signal.exists() {
                // The settings are ours: the manifest says so of the file that they were added to.
                assert!(fs::read_to_string(&settings).unwrap().contains("primary_conninfo"));
                fs::remove_file(signal).unwrap();
                continue;
            }
            Manifest::check(&copy);
            harness::verify_backup(&copy, major).expect_good();
            let server = source.boot(&copy);
            harness::compare(&source, &server);
        }
        let run = basebackup(&source).args(["-D", "-", "-Ft", "-X", "none", "--no-manifest"]).run();
        let copy = source.dir("without");
        untar(&run.expect_success().stdout, &copy);
        assert!(copy.join("global/pg_control").exists() && !copy.join("backup_manifest").exists());
        if major >= 15 {
            let options = ["-D", "-", "-Ft", "-X", "none", "--no-manifest", "-Z", "server-gzip"];
            let run = basebackup(&source).args(options).run();
            let copy = source.dir("packed");
            untar(&run.expect_success().stdout, &copy);
            assert!(copy.join("global/pg_control").exists());
        }
        // A regular file, which takes it in other pieces.
        let (file, copy) = (source.dir("file.tar"), source.dir("of a file"));
        basebackup(&source).args(["-D", "-", "-Ft", "-X", "fetch"]).stdout_to(&file).run().expect_success();
        untar(&fs::read(&file).unwrap(), &copy);
        Manifest::check(&copy);
    }
}

#[test]
fn standard_output_takes_one_tablespace_and_no_streamed_wal() {
    let source = source(15);
    let finished = basebackup(&source).args(["-D", "-", "-Ft", "-X", "none"]).run();
    finished.expect_failure().expect_stderr("can only write single tablespace to stdout, database has 2");
    assert!(finished.stdout.is_empty());
    for (options, expected) in [
        (&[][..], "cannot stream write-ahead logs in tar mode to stdout"),
        (&["-X", "none", "--json"], "both write to standard output"),
        (&["-X", "none", "-Z", "server-lz4"], "cannot inject manifest into a compressed tar file"),
        (&["-X", "none", "--waldir", "/nowhere"], "only be specified in plain mode"),
    ] {
        let finished = basebackup(&source).args(["-D", "-", "-Ft"]).args(options).run();
        finished.expect_failure().expect_stderr(expected);
    }
}

#[test]
fn a_reader_that_sleeps_or_leaves_does_not_hold_the_program() {
    let source = harness::cluster(15).with(Workload::empty().rows(500)).start();
    // A full pipe that nobody reads.
    let pipe = source.dir("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let open = || {
        use std::os::unix::fs::OpenOptionsExt;
        fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&pipe).unwrap()
    };
    let reader = open();
    let run = basebackup(&source).args(["-D", "-", "-Ft", "-X", "none", "-v"]).stdout_to(&pipe).spawn();
    harness::wait_until("the pipe is full", || rustix::io::ioctl_fionread(&reader).unwrap() >= 60 << 10);
    run.signal(Signal::TERM);
    run.wait().expect_killed_by(Signal::TERM);
    drop(reader);

    let reader = open();
    let run = basebackup(&source).args(["-D", "-", "-Ft", "-X", "none"]).stdout_to(&pipe).spawn();
    harness::wait_until("the pipe is full", || rustix::io::ioctl_fionread(&reader).unwrap() >= 60 << 10);
    drop(reader);
    run.wait().expect_failure().expect_stderr("could not write to \"standard output\": Broken pipe");
}
