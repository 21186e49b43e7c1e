//! The program under the names of the stock tools, beside those tools themselves where they are installed: the same
//! command lines end alike and say the same.

use std::fs;
use std::path::{Path, PathBuf};

use pgstrata::postmaster::ServerProgram;
use pgstrata_tests as harness;
use pgstrata_tests::{Finished, Invocation, Scratch, Workload};

/// Links in a folder of the test's own.
fn links(scratch: &Scratch) -> PathBuf {
    let folder = scratch.join("bin");
    let finished = harness::pgstrata(["links"]).arg(&folder).run();
    let said = finished.expect_success().stdout_text();
    assert_eq!(said.lines().count(), fs::read_dir(&folder).unwrap().count(), "{finished}");
    // Once more changes nothing.
    harness::pgstrata(["links"]).arg(&folder).run().expect_success();
    folder
}

/// What a program said, without the folder that it was called in, which getopt puts before its complaints.
fn said(finished: &Finished, folder: &Path) -> [String; 2] {
    let prefix = format!("{}/", folder.display());
    [finished.stdout_text(), finished.stderr_text()].map(|text| text.replace(&prefix, ""))
}

#[test]
fn command_lines_end_as_the_stock_tools_end() {
    let scratch = Scratch::new();
    let ours = links(&scratch);
    let full = scratch.join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("file"), "").unwrap();
    let target = scratch.join("copy").display().to_string();
    let stock = ServerProgram::installed().into_iter().find_map(|program| {
        let tool = program.companion("pg_basebackup")?;
        (program.version.major() >= 15).then(|| tool.parent().map(Path::to_owned))?
    });
    for (tool, line) in [
        ("pg_basebackup", "--nonsense"),
        ("pg_basebackup", "-y"),
        ("pg_basebackup", "-D"),
        ("pg_basebackup", "--pgdata"),
        ("pg_basebackup", "-D TARGET --no-sync=1"),
        ("pg_basebackup", "-D TARGET --label"),
        ("pg_basebackup", "-D TARGET --help"),
        ("pg_basebackup", "-P -? -D TARGET"),
        ("pg_basebackup", "-l -? -D TARGET -F x"),
        ("pg_basebackup", "-D TARGET extra"),
        ("pg_basebackup", "-D TARGET -F x"),
        ("pg_basebackup", "-D TARGET -X bad"),
        ("pg_basebackup", "-D TARGET -c bad"),
        ("pg_basebackup", "-D TARGET --chec=bad"),
        ("pg_basebackup", "-D TARGET -r abc"),
        ("pg_basebackup", "-D TARGET -r 0"),
        ("pg_basebackup", "-D TARGET -T foo"),
        ("pg_basebackup", "-D TARGET -T a=/b"),
        ("pg_basebackup", "-D TARGET -T /a=b"),
        ("pg_basebackup", "-D TARGET -T =/b"),
        ("pg_basebackup", "-D TARGET -T /a="),
        ("pg_basebackup", "-D TARGET -T /a=/b=/c"),
        ("pg_basebackup", "-D TARGET -d nokey=1"),
        ("pg_basebackup", "-D TARGET -p abc -h 127.0.0.1"),
        ("pg_receivewal", ""),
        ("pg_receivewal", "--nonsense"),
        ("pg_receivewal", "-y"),
        ("pg_receivewal", "-D"),
        ("pg_receivewal", "-D TARGET extra"),
        ("pg_receivewal", "-D TARGET --help"),
        ("pg_receivewal", "-D TARGET --no-sync=1"),
        ("pg_receivewal", "-D TARGET --create-slot --drop-slot"),
        ("pg_receivewal", "--create-slot"),
        ("pg_receivewal", "-D TARGET --drop-slot"),
        ("pg_receivewal", "-D TARGET --synchronous --no-sync"),
        ("pg_receivewal", "-D TARGET -E x"),
        ("pg_receivewal", "-D TARGET --endpos=0"),
        ("pg_receivewal", "-D TARGET -s x"),
        ("pg_receivewal", "-D TARGET -s -1"),
        ("pg_receivewal", "-D TARGET --status-interval=2147484"),
        ("pg_receivewal", "-D TARGET -Z brotli"),
        ("pg_receivewal", "-D TARGET -Z client-gzip"),
        ("pg_receivewal", "-D TARGET -Z gzip:10"),
        ("pg_receivewal", "-D TARGET -Z 12"),
        ("pg_receivewal", "-D TARGET -Z lz4:level"),
        ("pg_receivewal", "-D TARGET -Z gzip:workers=1"),
        ("pg_receivewal", "-D TARGET -Z none:1"),
        ("pg_receivewal", "-D TARGET -n"),
        ("pg_verifybackup", "--nonsense"),
        ("pg_verifybackup", "-m"),
        ("pg_verifybackup", "/a /b"),
    ] {
        let arguments: Vec<&str> = line
            .split_whitespace()
            .map(|word| if word == "TARGET" { target.as_str() } else { word })
            .collect();
        let finished = Invocation::new(&ours.join(tool), &arguments).run();
        assert_eq!(finished.status.code(), Some(1), "{tool} {line}: {finished}");
        assert!(!Path::new(&target).exists(), "{tool} {line}");
        let [out, err] = said(&finished, &ours);
        assert!(err.starts_with(&format!("{tool}: ")) && out.is_empty(), "{tool} {line}: {finished}");
        let Some(stock) = &stock else { continue };
        let theirs = Invocation::new(&stock.join(tool), &arguments).run();
        assert_eq!(theirs.status.code(), Some(1), "{tool} {line}: {theirs}");
        assert_eq!([out, err], said(&theirs, stock), "{tool} {line}");
    }
    if stock.is_none() {
        eprintln!("skipped the comparison: no pg_basebackup of 15 or newer is installed");
    }
}

#[test]
fn a_backup_under_the_stock_names_is_silent() {
    let source = harness::cluster(15).with(Workload::empty().rows(100)).start();
    let bin = links(source.scratch());
    let copy = source.dir("copy");
    let run = |arguments: &[&str]| {
        Invocation::new(&bin.join("pg_basebackup"), ["-d", &source.conninfo(), "-c", "fast", "-D"])
            .arg(&copy)
            .args(arguments)
            .run()
    };
    let finished = run(&[]);
    assert_eq!(said(finished.expect_success(), &bin), [String::new(), String::new()], "{finished}");
    let finished = run(&[]);
    let expected = format!("pg_basebackup: error: directory \"{}\" exists but is not empty", copy.display());
    assert!(finished.expect_failure().stderr_text().starts_with(&expected), "{finished}");
    let verified = Invocation::new(&bin.join("pg_verifybackup"), ["-n"]).arg(&copy).run();
    let words = "backup successfully verified\n".to_owned();
    assert_eq!(said(verified.expect_success(), &bin), [words, String::new()], "{verified}");

    fs::remove_file(copy.join("PG_VERSION")).unwrap();
    let verified = Invocation::new(&bin.join("pg_verifybackup"), ["-n"]).arg(&copy).run();
    let expected = "pg_verifybackup: error: \"PG_VERSION\" is present in the manifest but not on disk\n";
    assert_eq!(said(verified.expect_failure(), &bin), [String::new(), expected.to_owned()], "{verified}");
    fs::remove_dir_all(&copy).unwrap();

    let finished = run(&["-v", "-P"]);
    let err = finished.expect_success().stderr_text();
    assert!(
        err.contains("\npg_basebackup: base backup completed\n") && err.contains(" kB (100%), 1/1 "),
        "{finished}"
    );
    assert!(!err.contains("pgstrata:"), "{finished}");

    let coloured =
        Invocation::new(&bin.join("pg_basebackup"), ["-F", "x", "-D", "/x"]).env("PG_COLOR", "always").run();
    let expected = "\x1b[01mpg_basebackup: \x1b[0m\x1b[01;31merror: \x1b[0minvalid output format";
    assert!(coloured.expect_failure().stderr_text().starts_with(expected), "{coloured}");
}

#[test]
fn help_and_version_are_shaped_alike() {
    let scratch = Scratch::new();
    let bin = links(&scratch);
    for tool in ["pg_basebackup", "pg_receivewal", "pg_verifybackup"] {
        for option in ["--version", "-V"] {
            let finished = Invocation::new(&bin.join(tool), [option]).run();
            let text = finished.expect_success().stdout_text();
            assert!(text.starts_with(&format!("{tool} (PostgreSQL) 18.")), "{finished}");
        }
        for option in ["--help", "-?"] {
            let finished = Invocation::new(&bin.join(tool), [option]).run();
            let text = finished.expect_success().stdout_text();
            assert!(
                text.starts_with(tool) && text.contains("\nOptions") && finished.stderr.is_empty(),
                "{finished}"
            );
            assert!(text.lines().all(|line| line.chars().count() <= 95), "{finished}");
        }
    }
    let foreign = scratch.join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("pg_basebackup"), "mine").unwrap();
    harness::pgstrata(["links"])
        .arg(&foreign)
        .run()
        .expect_failure()
        .expect_stderr("exists and is not a link");
    assert_eq!(fs::read(foreign.join("pg_basebackup")).unwrap(), b"mine");
}
