//! `pg_walsummary`, ours and the stock one, side by side: on the server's own files and on damaged ones.

use std::fs;
use std::path::{Path, PathBuf};

use pgstrata_tests as harness;
use pgstrata_tests::{Finished, Invocation};
use serde_json::Value;

use crate::Bench;

struct Pair {
    stock: PathBuf,
    ours: PathBuf,
}

impl Pair {
    fn run(&self, options: &[&str], files: &[PathBuf]) -> (Finished, Finished) {
        let run = |program: &Path| Invocation::new(program, options).args(files).run();
        (run(&self.stock), run(&self.ours))
    }

    /// The same output, status and complaint.
    fn agree(&self, options: &[&str], files: &[PathBuf]) {
        let (stock, ours) = self.run(options, files);
        assert_eq!(ours.stdout_text(), stock.stdout_text(), "{stock}\n{ours}");
        assert_eq!(ours.status.code(), stock.status.code(), "{stock}\n{ours}");
        assert_eq!(said(&ours), said(&stock), "{stock}\n{ours}");
    }
}

/// What is not advice, and in nobody's folder.
fn said(finished: &Finished) -> Vec<String> {
    let text = finished.stderr_text();
    let lines = text.lines().filter(|line| !line.contains(": hint: ") && !line.contains(": detail: "));
    lines.map(|line| line.rsplit_once("/pg_walsummary: ").map_or(line, |(_, said)| said).to_owned()).collect()
}

pub(crate) fn beside_the_stock_tool(bench: &Bench, major: u32) {
    let bin = bench.source.dir("bin");
    harness::pgstrata(["links"]).arg(&bin).run().expect_success();
    let pair = Pair { stock: bench.stock.tool("pg_walsummary"), ours: bin.join("pg_walsummary") };
    let mut files: Vec<PathBuf> = fs::read_dir(bench.folder())
        .expect("summaries")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "summary"))
        .collect();
    files.sort();
    assert!(files.len() >= 3, "{files:?}");
    for options in [&[][..], &["-i"]] {
        pair.agree(options, &files);
    }
    for options in [&["-q"][..], &["--indiv", "--quiet"], &["-qi"]] {
        match major {
            // Quiet tools of 17 print no limits either.
            17 => assert!(pair.run(options, &files).1.expect_success().stdout_text().contains(": limit ")),
            _ => pair.agree(options, &files),
        }
    }
    let all = pair.run(&[], &files).1;
    for kind in [": limit 0\n", ": blocks 0..", "FORK vm: ", ": block "] {
        assert!(all.stdout_text().contains(kind), "{kind}");
    }
    json_says_the_same(&files, &all.stdout_text());
    damaged(bench, &pair, &files);

    for line in [&["--nonsense"][..], &[], &["-i", "-x"], &["-q", "--help"]] {
        pair.agree(line, &[]);
    }
    let help = pair.run(&["--help"], &[]);
    for option in ["-i, --individual", "-q, --quiet", "-?, --help"] {
        assert!(help.0.stdout_text().contains(option) && help.1.stdout_text().contains(option), "{option}");
    }
    let version = pair.run(&["--version"], &[]).1;
    assert!(
        version.expect_success().stdout_text().starts_with("pg_walsummary (PostgreSQL) 18."),
        "{version}"
    );
}

/// The lines, from the object.
fn json_says_the_same(files: &[PathBuf], expected: &str) {
    let finished = harness::pgstrata(["walsummary", "--json"]).args(files).run();
    let object: Value = serde_json::from_slice(&finished.expect_success().stdout).expect("one object");
    assert_eq!(object["read"], true);
    let mut lines = String::new();
    let found = object["files"].as_array().expect("a list");
    assert_eq!(found.len(), files.len());
    for (file, path) in found.iter().zip(files) {
        assert_eq!(file["path"].as_str(), path.to_str());
        for fork in file["forks"].as_array().expect("a list") {
            let [tablespace, database, relation] =
                ["tablespace", "database", "relation"].map(|name| &fork[name]);
            let name = fork["fork"].as_str().expect("a name");
            let place = format!("TS {tablespace}, DB {database}, REL {relation}, FORK {name}");
            if let Some(limit) = fork["limit"].as_u64() {
                lines.push_str(&format!("{place}: limit {limit}\n"));
            }
            for run in fork["blocks"].as_array().expect("a list") {
                match run[0] == run[1] {
                    true => lines.push_str(&format!("{place}: block {}\n", run[0])),
                    false => lines.push_str(&format!("{place}: blocks {}..{}\n", run[0], run[1])),
                }
            }
        }
    }
    assert_eq!(lines, expected);
}

fn damaged(bench: &Bench, pair: &Pair, files: &[PathBuf]) {
    let whole = files.iter().max_by_key(|file| fs::metadata(file).expect("a file").len()).expect("some");
    let whole = fs::read(whole).expect("it is there");
    let path = bench.source.dir("damaged.summary");
    // The first entry: its fork at 16, its count of chunks at 24, and its first chunk's size at 28.
    let (end, sized) = (whole.len() - 1, whole[24] > 0);
    assert!(sized, "the first fork of a summary is a catalogue's, with blocks");
    for (at, byte) in [(0, 0), (18, 0xff), (27, 0xff), (29, 0xff), (end, !whole[end]), (end - 20, 1)] {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        fs::write(&path, &bytes).expect("a writable folder");
        if at == end - 20 {
            // The zeros that end the list: a fork that is none, and so on.
            let (stock, ours) = pair.run(&[], std::slice::from_ref(&path));
            assert_eq!((stock.status.code(), ours.status.code()), (Some(1), Some(1)), "{stock}\n{ours}");
        } else if at == end {
            // Ours holds the last fork back until the checksum was right.
            let (stock, ours) = pair.run(&[], std::slice::from_ref(&path));
            assert_eq!(ours.status.code(), stock.status.code(), "{stock}\n{ours}");
            assert_eq!(said(&ours), said(&stock), "{stock}\n{ours}");
            assert!(stock.stdout_text().starts_with(&ours.stdout_text()), "{stock}\n{ours}");
        } else {
            pair.agree(&[], std::slice::from_ref(&path));
        }
    }
    for length in [0, 3, 4, 20, 28, 29, 60, end / 2, end - 24, end] {
        fs::write(&path, &whole[..length]).expect("a writable folder");
        let (stock, ours) = pair.run(&[], std::slice::from_ref(&path));
        assert_eq!(ours.status.code(), stock.status.code(), "{stock}\n{ours}");
        assert_eq!(said(&ours), said(&stock), "{stock}\n{ours}");
        assert!(said(&ours)[0].ends_with("ends unexpectedly"), "{ours}");
    }
    // What stands behind the end the stock tool does not look at.
    fs::write(&path, [&whole[..], b"x"].concat()).expect("a writable folder");
    let ours = pair.run(&[], std::slice::from_ref(&path)).1;
    ours.expect_failure().expect_stderr("it goes on behind its end at byte");
    let object = harness::pgstrata(["walsummary", "--json"]).arg(&path).run();
    let object: Value = serde_json::from_slice(&object.expect_failure().stdout).expect("one object");
    assert_eq!(object["read"], false);
    assert!(object["error"].as_str().is_some_and(|error| error.contains("behind its end")), "{object}");

    for nowhere in [bench.source.dir("missing"), bench.source.data_dir().to_owned()] {
        pair.agree(&[], &[nowhere]);
    }
}
