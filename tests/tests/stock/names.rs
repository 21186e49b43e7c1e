//! The program under the names of the stock tools: links, silence, help, version and colours.

use std::fs;

use pgstrata_tests as harness;
use pgstrata_tests::{Invocation, Scratch, Workload};

use crate::beside::{links, said};

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
    for tool in ["pg_basebackup", "pg_combinebackup", "pg_receivewal", "pg_verifybackup"] {
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
