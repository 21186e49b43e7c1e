//! Runs a command line as a stock tool and as ours, and says what of the stock tool's words ours lacks.

use std::fs;
use std::path::{Path, PathBuf};

use pgstrata_tests as harness;
use pgstrata_tests::{Complete, Finished, Invocation, Scratch};

/// Links to ours by the tools' names, in a folder of the test's own.
pub(crate) fn links(scratch: &Scratch) -> PathBuf {
    let folder = scratch.join("bin");
    let finished = harness::pgstrata(["links"]).arg(&folder).run();
    let said = finished.expect_success().stdout_text();
    assert_eq!(said.lines().count(), fs::read_dir(&folder).unwrap().count(), "{finished}");
    // Once more changes nothing.
    harness::pgstrata(["links"]).arg(&folder).run().expect_success();
    folder
}

/// What a program said, without the folder that it was called in, which getopt puts before its complaints.
pub(crate) fn said(finished: &Finished, folder: &Path) -> [String; 2] {
    let prefix = format!("{}/", folder.display());
    [finished.stdout_text(), finished.stderr_text()].map(|text| text.replace(&prefix, ""))
}

/// The stock installations that can be had, oldest first.
pub(crate) fn stock() -> Vec<(u32, &'static Complete)> {
    [15, 17, 18].into_iter().filter_map(|major| Some((major, harness::complete(major)?))).collect()
}

/// Runs one program of a folder where it may leave nothing behind, with no home and no server to fall back on.
pub(crate) fn tool(folder: &Path, name: &str) -> Invocation {
    let nowhere = ["PGHOST", "PGSERVICEFILE", "HOME"];
    nowhere
        .iter()
        .fold(Invocation::new(&folder.join(name), [""; 0]), |run, variable| run.env(variable, "/nonexistent"))
}

/// Which of the stock tool's lines on standard error ours did not say as well, in that order, and which lines of ours are
/// neither of those nor advice. What libpq asks back (`Is the server running …?`) is a hint with us.
pub(crate) fn unsaid(theirs: &str, ours: &str) -> Vec<String> {
    let mut theirs = theirs.lines().filter(|line| !line.starts_with("\tIs the server running ")).peekable();
    let mut different = Vec::new();
    for line in ours.lines() {
        let is_advice = || {
            let behind = line.split_once(": ").map_or("", |(_, behind)| behind);
            behind.starts_with("hint: ") || behind.starts_with("detail: ")
        };
        if theirs.peek().is_some_and(|expected| *expected == line) {
            theirs.next();
        } else if !is_advice() {
            different.push(format!("said only here: {line}"));
        }
    }
    different.extend(theirs.map(|line| format!("not said here: {line}")));
    different
}
