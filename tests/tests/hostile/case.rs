//! A stream and what has to come of it.
//!
//! Every case runs in a directory of its own with a canary tree beside the target, and another one that absolute paths
//! lead to. After a refusal both trees and the directory are as they were before; after a success only the target is
//! new, and it matches its manifest by an independent reader.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pgstrata_tests as harness;
use pgstrata_tests::fake::{FakeBackup, FakeServer, Manifest, Reply, Script};
use pgstrata_tests::{Finished, Scratch, Snapshot};

/// A layout of the stream each: untyped copies, one for each archive, and typed messages in one copy.
pub(crate) const MAJORS: [u32; 2] = [14, 18];
/// No stream may take longer, whatever it holds.
const LIMIT: Duration = Duration::from_secs(60);
/// No stream may make the program take more memory.
const MEMORY: u64 = 128 << 20;
/// How much of what is wrong is told.
const TOLD: usize = 6;
/// Cases side by side.
const THREADS: usize = 4;

/// What has to come of a stream.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// Exit status 1, and these words on standard error.
    Refused(Vec<String>),
    /// Exit status 0, and a backup that matches its manifest.
    Taken,
}

type Build = Box<dyn Fn(&Place) -> Script + Send + Sync>;

/// Where a case runs.
pub(crate) struct Place {
    /// The case's own directory; the target and the canary `beside` lie in it.
    pub(crate) dir: PathBuf,
    /// The canary that absolute paths lead to: a short path.
    pub(crate) far: PathBuf,
}

pub(crate) struct Case {
    name: String,
    build: Build,
    arguments: Vec<String>,
    expected: Expected,
}

impl Case {
    pub(crate) fn new(
        name: impl Into<String>,
        build: impl Fn(&Place) -> Script + Send + Sync + 'static,
    ) -> Self {
        let arguments = vec!["-X".to_owned(), "none".to_owned()];
        Self { name: name.into(), build: Box::new(build), arguments, expected: Expected::Taken }
    }

    /// A case about the answer to BASE_BACKUP.
    pub(crate) fn answer(
        name: impl Into<String>,
        major: u32,
        build: impl Fn(&Place) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let name = format!("{major}: {}", name.into());
        Self::new(name, move |place| Script::version(major).answer("BASE_BACKUP", build(place)))
    }

    /// The words of the refusal.
    pub(crate) fn refused(mut self, words: &[&str]) -> Self {
        self.expected = Expected::Refused(words.iter().map(|word| (*word).to_owned()).collect());
        self
    }

    /// Other arguments than `-X none`.
    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self
    }

    /// The case in tar format too.
    pub(crate) fn in_tar(&self, again: impl Fn(&Place) -> Script + Send + Sync + 'static) -> Self {
        let mut arguments = self.arguments.clone();
        arguments.push("-Ft".into());
        let name = format!("{} (tar)", self.name);
        Self { name, build: Box::new(again), arguments, expected: self.expected.clone() }
    }

    fn run(&self, place: &Place) -> Result<(), String> {
        fs::create_dir_all(place.dir.join("beside/deeper")).map_err(|error| error.to_string())?;
        for file in ["beside/file", "beside/deeper/file"] {
            fs::write(place.dir.join(file), file).map_err(|error| error.to_string())?;
        }
        let server = FakeServer::start((self.build)(place));
        let before = Snapshot::of(&place.dir);
        let target = place.dir.join("target");
        let mut run = harness::pgstrata(["basebackup", "--stall-timeout", "20", "-c", "fast", "-d"])
            .arg(server.conninfo())
            .arg("-D")
            .arg(&target);
        for argument in &self.arguments {
            run = run.arg(argument);
        }
        let finished = run.limit(LIMIT).run();
        let after = Snapshot::of(&place.dir);
        let mut wrong = self.judge(&finished);
        match &self.expected {
            Expected::Refused(_) => wrong.extend(before.changes(&after)),
            Expected::Taken => {
                let new = |change: &String| change.starts_with(&*target.to_string_lossy());
                wrong.extend(before.changes(&after).into_iter().filter(|change| !new(change)));
                let archives = ["base.tar", "base.tar.gz", "base.tar.lz4", "base.tar.zst"];
                let is_tar = archives.iter().any(|name| target.join(name).exists());
                if target.join("backup_manifest").exists() && !is_tar {
                    wrong.extend(harness::check_manifest(&target).err().map(|error| format!("{error:#}")));
                }
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        wrong.truncate(TOLD);
        Err(format!("{}:\n  {}\n{finished}", self.name, wrong.join("\n  ")))
    }

    fn judge(&self, finished: &Finished) -> Vec<String> {
        let mut wrong = Vec::new();
        let said = finished.stderr_text();
        match &self.expected {
            Expected::Taken if !finished.status.success() => wrong.push("expected success".into()),
            Expected::Taken => {}
            Expected::Refused(words) => {
                if finished.status.code() != Some(1) {
                    wrong.push("expected exit status 1".into());
                }
                let missing = words.iter().filter(|word| !said.contains(word.as_str()));
                wrong.extend(missing.map(|word| format!("expected {word:?} on standard error")));
            }
        }
        if said.contains("panicked") || said.contains("bug in pgstrata") {
            wrong.push("a panic".into());
        }
        // What a server says must not drive the operator's terminal.
        if let Some(bad) = said.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
            wrong.push(format!("control character {bad:?} on standard error"));
        }
        // A process begins its life with the peak of the one that forked it.
        if finished.peak_memory > MEMORY.max(own_peak()) {
            wrong.push(format!("{} bytes of memory", finished.peak_memory));
        }
        wrong
    }
}

/// The most memory that this process has had, in bytes: `VmHWM` of proc_pid_status(5).
fn own_peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a process has a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it says its peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Runs cases side by side; panics with all that fail.
#[track_caller]
pub(crate) fn run_all(cases: &[Case]) {
    let scratch = Scratch::new();
    let far = tempfile::Builder::new().prefix("strata").tempdir_in("/var/tmp").expect("a canary");
    fs::write(far.path().join("file"), "canary").expect("a canary");
    fs::create_dir(far.path().join("deeper")).expect("a canary");
    let far_before = Snapshot::of(far.path());
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(number) else { return };
                    let dir = scratch.join(&format!("case {number}"));
                    let place = Place { dir, far: far.path().to_owned() };
                    if let Err(failure) = case.run(&place) {
                        failures.lock().expect("no panic with the lock").push(failure);
                    }
                    let _ = fs::remove_dir_all(&place.dir);
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no panic with the lock");
    failures.extend(far_before.changes(&Snapshot::of(far.path())));
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    eprintln!("{} cases", cases.len());
}

/// A message of the stream's copy, by what it says.
pub(crate) fn place_of(messages: &[Vec<u8>], tag: u8, kind: Option<u8>) -> usize {
    let fits = |message: &Vec<u8>| message[0] == tag && (kind.is_none() || message.get(5).copied() == kind);
    messages.iter().position(fits).expect("the honest stream has it")
}

/// An honest backup with another manifest.
pub(crate) fn with_manifest(major: u32, manifest: Vec<u8>) -> FakeBackup {
    FakeBackup::honest(major).with_manifest(Manifest::Bytes(manifest))
}
