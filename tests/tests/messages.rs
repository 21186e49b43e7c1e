//! What the program says: progress as lines, as a bar and as JSON, notes, the summary, and refusals of what is not there.

use std::fs;
use std::path::Path;

use pgstrata_tests as harness;
use pgstrata_tests::{Manifest, Source, Workload, basebackup};
use serde_json::Value;

fn source() -> Source {
    harness::cluster(15).with(Workload::empty().rows(2_000).tablespaces(1)).start()
}

/// A line of progress: kB done and in all, percent, tablespaces done and in all, and the file's name with `-v`.
fn progress(line: &str) -> Option<([u64; 5], Option<&str>)> {
    let (sizes, rest) = line.split_once(" kB (")?;
    let (done, total) = sizes.split_once('/')?;
    // The first number is as wide as the second.
    if done.len() != total.len() {
        return None;
    }
    let (percent, rest) = rest.split_once("%), ")?;
    let (spaces, rest) = rest.split_once(" tablespace")?;
    let (spaces_done, spaces) = spaces.split_once('/')?;
    let rest = if spaces == "1" { rest } else { rest.strip_prefix('s')? };
    let file = match rest {
        "" => None,
        rest => Some(rest.strip_prefix(" (")?.strip_suffix(')')?),
    };
    let numbers = [done.trim_start(), total, percent, spaces_done, spaces].map(str::parse);
    let [Ok(done), Ok(total), Ok(percent), Ok(spaces_done), Ok(spaces)] = numbers else { return None };
    Some(([done, total, percent, spaces_done, spaces], file))
}

#[test]
fn progress_comes_as_lines_where_there_is_no_terminal() {
    let source = source();
    for (options, verbose) in [(&["-P"][..], false), (&["-P", "-v"], true)] {
        let copy = source.dir("copy");
        // Long enough for some lines.
        let run = basebackup(&source).arg("-D").arg(&copy).args(["-Ft", "-N", "-r", "12M"]).args(options);
        let finished = run.run();
        finished.expect_success();
        let said = finished.stderr_text();
        let lines: Vec<_> = said.lines().filter(|line| line.contains(" kB (")).collect();
        assert!(lines.len() >= 3, "{finished}");
        let mut before = 0;
        for line in &lines {
            let (numbers, file) = progress(line).unwrap_or_else(|| panic!("{line:?}: {finished}"));
            let [done, total, percent, spaces_done, spaces] = numbers;
            assert!(before <= done && done <= total && spaces_done <= spaces && spaces == 2, "{line}");
            assert_eq!(percent, done * 100 / total, "{line}");
            assert!(verbose || file.is_none(), "{line}");
            assert!(file.is_none_or(|file| file.chars().count() <= 35), "{line}");
            before = done;
        }
        let ([done, total, _, spaces_done, _], _) = progress(lines.last().unwrap()).unwrap();
        assert_eq!((done, spaces_done), (total, 2), "{finished}");
        let names =
            lines.iter().filter_map(|line| progress(line)?.1).filter(|name| name.contains('/')).count();
        assert_eq!(names > 0, verbose, "{finished}");
        assert!(finished.stdout.is_empty(), "{finished}");
        fs::remove_dir_all(copy).unwrap();
    }
    let one = harness::cluster(15).start();
    let finished = basebackup(&one).arg("-D").arg(one.dir("copy")).args(["-Ft", "-N", "-P"]).run();
    finished.expect_success().expect_stderr(" kB (100%), 1/1 tablespace\n");
    // Without -P nothing is said on the way.
    let finished = basebackup(&one).arg("-D").arg(one.dir("silent")).args(["-Ft", "-N"]).run();
    assert!(
        finished.expect_success().stderr_text().starts_with("pgstrata: base backup completed\n"),
        "{finished}"
    );
    // Where the server does not estimate, there is nothing to compare with.
    let copy = one.dir("unknown");
    let finished = basebackup(&one).arg("-D").arg(&copy).args(["-P", "--no-estimate-size"]).run();
    finished.expect_failure().expect_stderr("--progress and --no-estimate-size are incompatible options");
    assert!(!copy.exists());
}

#[test]
fn a_terminal_shows_a_bar_that_goes_at_the_end() {
    let source = source();
    let copy = source.dir("copy");
    let run = basebackup(&source).arg("-D").arg(&copy).args(["-Ft", "-N", "-r", "12M"]);
    let (running, _keyboard) = run.spawn_at_terminal();
    running.wait_for_stderr("█");
    running.wait_for_stderr("/2 tablespaces");
    let finished = running.wait();
    finished.expect_success();
    let screen = finished.stderr_text();
    for drawn in ["100%", " MiB/s", " left", "░"] {
        assert!(screen.contains(drawn), "no {drawn:?}: {finished}");
    }
    // The last thing drawn over the bar is nothing; the summary stands below it.
    let (_, summary) = screen.split_once("pgstrata: base backup completed").unwrap();
    assert!(!summary.contains('█') && summary.contains("limited by"), "{finished}");
}

#[test]
fn notes_and_summary_tell_what_was_done() {
    let source = source();
    let copy = source.dir("copy");
    let relocation = harness::Relocation::new(&source, &copy);
    let run = basebackup(&source)
        .arg("-D")
        .arg(&copy)
        .args(["-N", "-v", "--io=threads"])
        .args(relocation.arguments());
    let finished = run.run();
    finished.expect_success();
    let version = source.program().version;
    for note in [
        &format!("pgstrata: connected to PostgreSQL {version}"),
        "pgstrata: disk back end: threads (",
        "pgstrata: write-ahead log start point: 0/",
        " on timeline 1",
    ] {
        finished.expect_stderr(note);
    }
    let said = finished.stderr_text();
    let (_, summary) = said.split_once("pgstrata: base backup completed\n").unwrap();
    let rows: Vec<_> = summary.lines().map(|line| line.get(2..15).unwrap_or_default().trim()).collect();
    assert_eq!(
        rows,
        ["backup", "range", "data", "WAL", "verified", "time", "cost", "I/O", "durable", "limited by"]
    );
    assert!(summary.contains(&format!("{} (plain, PostgreSQL {version}", copy.display())), "{summary}");
}

#[test]
fn json_is_one_object_a_line() {
    let source = source();
    let copy = source.dir("copy");
    let run = basebackup(&source).arg("-D").arg(&copy).args(["-Ft", "-N", "--json", "-r", "12M"]);
    let finished = run.run();
    finished.expect_success();
    assert!(finished.stderr.is_empty(), "{finished}");
    let events = finished.events();
    let (summary, progress) = events.split_last().unwrap();
    assert!(progress.len() >= 3, "{finished}");
    let mut before = 0;
    for event in progress {
        assert_eq!(event["event"], "progress", "{event}");
        assert!(event["phase"].is_string(), "{event}");
        let number = |key: &str| event[key].as_u64().unwrap_or_else(|| panic!("no {key}: {event}"));
        assert!(number("bytes") >= before, "{event}");
        before = number("bytes");
        for key in ["estimated_bytes", "files", "tablespaces_done", "tablespaces", "wal_bytes"] {
            number(key);
        }
    }
    assert_eq!(summary["event"], "summary");
    for key in [
        "path",
        "format",
        "server_version",
        "system_identifier",
        "start_lsn",
        "end_lsn",
        "checksum_algorithm",
        "io",
        "io_reason",
        "limited_by",
    ] {
        assert!(summary[key].is_string(), "{key}: {summary}");
    }
    for key in [
        "timeline",
        "files",
        "bytes",
        "wal_bytes",
        "files_verified",
        "bytes_per_second",
        "cpu_seconds",
        "peak_memory",
    ] {
        assert!(summary[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {summary}");
    }
    for key in ["pages_checked", "durable"] {
        assert_eq!(summary[key], false, "{summary}");
    }
    for key in ["total", "start", "data", "settle", "wal", "end"] {
        assert!(summary["seconds"][key].is_number(), "{key}: {summary}");
    }
    for stage in ["feeder", "lanes", "writers"] {
        for key in ["busy", "starved", "blocked", "bytes"] {
            assert!(summary["stages"][stage][key].is_number(), "{stage} {key}: {summary}");
        }
    }
    assert_eq!(summary["path"], copy.to_str().unwrap());
    let system: String = source.sql().value("SELECT system_identifier FROM pg_control_system()");
    assert_eq!(summary["system_identifier"], *system);

    // An error is told to both readers, and is the last event.
    let finished = basebackup(&source).arg("-D").arg(&copy).arg("--json").run();
    finished.expect_failure().expect_stderr("exists but is not empty");
    let events = finished.events();
    let last = events.last().unwrap();
    assert_eq!(last["event"], "error");
    assert!(last["message"].as_str().unwrap().contains("exists but is not empty"), "{last}");
    let refused = harness::pgstrata(["basebackup", "--json", "-D", "x", "-F", "zip"]).run();
    refused.expect_failure().expect_stderr("invalid output format");
    assert_eq!(refused.events().pop().unwrap()["event"], "error");
}

#[test]
fn what_makes_no_sense_is_refused_by_name_before_anything_is_done() {
    let source = harness::cluster(15).setting("log_replication_commands", "on").start();
    let copy = source.dir("copy");
    let finished = basebackup(&source).args(["-D", "-", "-Ft"]).run();
    finished.expect_failure().expect_stderr("cannot stream write-ahead logs in tar mode to stdout");
    assert!(finished.stdout.is_empty());
    for (options, expected) in [
        (&["--no-such-option"][..], "--no-such-option"),
        (&["-F", "zip"], "invalid output format \"zip\""),
        (&["-X", "maybe"], "invalid wal-method option \"maybe\""),
        (&["-c", "soon"], "invalid checkpoint argument \"soon\""),
        (&["-C"], "--create-slot needs a slot"),
        (&["-S", "s", "-X", "fetch"], "only be used with WAL streaming"),
        (&["-S", "s", "--no-slot"], "--no-slot cannot be used with slot name"),
        (&["--waldir", "relative"], "must be an absolute path"),
        (&["--waldir", "/nowhere", "-Ft"], "only be specified in plain mode"),
        (&["-T", "relative=/new"], "not an absolute path"),
        (&["-T", "/old"], "OLDDIR=NEWDIR"),
        (&["-r", "31"], "out of range"),
        (&["--no-manifest", "--manifest-force-encode"], "incompatible options"),
        (&["-z"], "only tar mode backups can be compressed"),
        (&["-Z", "zstd:9"], "only tar mode backups can be compressed"),
        (&["-Ft", "-Z", "zstd:99"], "expects a compression level between -131072 and 22 (default at 3)"),
        (&["-Ft", "-Z", "turkey"], "unrecognized compression algorithm: \"turkey\""),
        (&["-Ft", "-R", "-Z", "server-gzip"], "cannot add to an archive that the server compresses"),
        (&["-t", "blackhole"], "cannot specify both output directory and backup target"),
        (&["--sync-method=often"], "unrecognized sync method: often"),
        (&["stray"], "stray"),
    ] {
        let finished = basebackup(&source).arg("-D").arg(&copy).args(options).run();
        finished.expect_failure().expect_stderr(expected);
        assert!(finished.stderr_text().starts_with("pgstrata: error: "), "{finished}");
        assert!(!copy.exists(), "{finished}");
    }
    let finished = basebackup(&source).run();
    finished.expect_failure().expect_stderr("must specify output directory or backup target");
    assert_eq!(source.replication_commands(), [""; 0], "no server was asked for any of this");
    // What asks for nothing more than there is may be said.
    let options = ["-N", "-Ft", "-Z", "none", "--sync-method=fsync"];
    basebackup(&source).arg("-D").arg(&copy).args(options).run().expect_success();
    basebackup(&source)
        .arg("-D")
        .arg(source.dir("zero"))
        .args(["-N", "-Ft", "-Z", "0"])
        .run()
        .expect_success();
}

#[test]
fn a_summary_that_nobody_can_read_ends_no_backup() {
    let source = source();
    let copy = source.dir("copy");
    let run = basebackup(&source).arg("-D").arg(&copy).args(["-Ft", "-N", "--json", "-r", "12M"]);
    run.stdout_to(Path::new("/dev/full")).run().expect_success();
    let plain = source.dir("plain");
    let relocation = harness::Relocation::new(&source, &plain);
    relocation.unpack(&copy, &plain);
    Manifest::check(&plain);
}

#[test]
fn warnings_of_the_server_are_told_in_its_own_words() {
    let source = harness::cluster(15).with(Workload::small()).start();
    let copy = source.dir("copy");
    let finished = basebackup(&source).arg("-D").arg(&copy).args(["-Ft", "-N", "-X", "none"]).run();
    finished.expect_success().expect_stderr("NOTICE:  WAL archiving is not enabled");
    let json = basebackup(&source)
        .arg("-D")
        .arg(source.dir("json"))
        .args(["-Ft", "-N", "-X", "none", "--json"])
        .run();
    let events: Vec<Value> = json.expect_success().events();
    assert_eq!(events.last().unwrap()["event"], "summary");
}
