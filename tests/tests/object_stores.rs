//! Object stores: one set of rules for every place, and backups that go to S3 and come back.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pgstrata::failure::Failure;
use pgstrata::repository::{LocalStore, PackPlace, Requests, Store, open_store};
use pgstrata_tests as harness;
use pgstrata_tests::{Finished, Invocation, S3Server, Scratch, Source, Workload, pgstrata};
use rustix::process::Signal;

/// Bytes that no compression makes smaller and no two places share.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn put(store: &dyn Store, name: &str, content: &[u8]) -> Result<bool, Failure> {
    let mut object = store.create(name)?;
    for piece in content.chunks(300_000) {
        object.write(piece)?;
    }
    object.publish()
}

fn get(store: &dyn Store, name: &str) -> Option<Vec<u8>> {
    let object = store.open(name).expect("asked")?;
    let mut content = vec![0; usize::try_from(object.length()).unwrap()];
    object.read(0, &mut content).expect("read");
    Some(content)
}

fn names(store: &dyn Store, folder: &str) -> Vec<String> {
    store.list(folder).expect("listed").into_iter().map(|entry| entry.name).collect()
}

/// What a repository may rely on, wherever it lies.
fn conforms(store: &Arc<dyn Store>) {
    let at = store.address();
    // Nothing is there, and nobody minds.
    assert!(store.open("a/b").expect("asked").is_none(), "{at}");
    assert_eq!(names(&**store, "nowhere"), Vec::<String>::new(), "{at}");
    store.remove(&["a/b".into(), "c".into()]).expect("not there");

    // Created if absent, whole, and seen from then on.
    assert!(put(&**store, "a/b", b"first").expect("new"), "{at}");
    assert!(!put(&**store, "a/b", b"second").expect("taken"), "{at}");
    assert_eq!(get(&**store, "a/b").as_deref(), Some(&b"first"[..]), "{at}");
    let mut dropped = store.create("a/dropped").expect("begun");
    dropped.write(&noise(1, 1000)).expect("written");
    drop(dropped);
    assert_eq!(names(&**store, "a"), ["b"], "{at}");

    // Listed by folder, with length and time.
    assert!(put(&**store, "a/longer/way", &[7; 4321]).expect("new"), "{at}");
    assert!(put(&**store, "a.", b"no part of a").expect("new"), "{at}");
    let listed = store.list("a").expect("listed");
    let found: Vec<_> = listed.iter().map(|entry| (&*entry.name, entry.is_folder, entry.length)).collect();
    assert_eq!(found, [("b", false, 5), ("longer", true, 0)], "{at}");
    assert!(listed[0].modified > 1_700_000_000, "{at}: {listed:?}");
    assert!(names(&**store, "").contains(&"a.".to_owned()), "{at}");

    // One of many wins.
    let barrier = Arc::new(Barrier::new(8));
    let racers: Vec<_> = (0..8u8)
        .map(|number| {
            let (store, barrier) = (Arc::clone(store), Arc::clone(&barrier));
            thread::spawn(move || {
                barrier.wait();
                put(&*store, "race", &[number; 9000]).expect("answered").then_some(number)
            })
        })
        .collect();
    let winners: Vec<_> = racers.into_iter().filter_map(|racer| racer.join().unwrap()).collect();
    assert_eq!(winners.len(), 1, "{at}: {winners:?}");
    assert_eq!(get(&**store, "race"), Some(vec![winners[0]; 9000]), "{at}");

    // Ranges, by several readers at once, in order and not.
    let content = noise(2, 9_000_001);
    assert!(put(&**store, "ranges", &content).expect("new"), "{at}");
    let object = store.open("ranges").expect("asked").expect("there");
    thread::scope(|scope| {
        for reader in 0..4usize {
            let (object, content) = (&object, &content);
            scope.spawn(move || {
                let mut piece = vec![0; 200_000];
                for step in 0..45 {
                    let place = if reader % 2 == 0 { step } else { step * 29 % 45 } * 200_000 + reader;
                    let length = piece.len().min(content.len() - place);
                    object.read(place as u64, &mut piece[..length]).expect("read");
                    assert!(piece[..length] == content[place..place + length], "{place}");
                }
            });
        }
    });
    assert!(object.read(9_000_000, &mut [0; 2]).is_err(), "{at}: past the end");
    assert!(object.read(u64::MAX, &mut [0; 2]).is_err(), "{at}: far past the end");

    // Larger than what goes with one request.
    let content = noise(3, 45_000_000);
    assert!(put(&**store, "large", &content).expect("new"), "{at}");
    assert!(!put(&**store, "large", &noise(4, 40_000_000)).expect("taken"), "{at}");
    assert!(get(&**store, "large").unwrap() == content, "{at}");
    let mut dropped = store.create("large too").expect("begun");
    dropped.write(&content[..44_000_000]).expect("written");
    drop(dropped);
    assert!(!names(&**store, "").contains(&"large too".to_owned()), "{at}");

    // Gone, and no other with it.
    let gone = ["a/b", "race", "ranges", "not there", "large"].map(str::to_owned);
    store.remove(&gone).expect("removed");
    for name in &gone {
        assert!(store.open(name).expect("asked").is_none(), "{at}: {name}");
    }
    let mut left = names(&**store, "");
    left.retain(|name| name != "staging");
    assert_eq!(left, ["a", "a."], "{at}");
}

/// Packs as pipelines send them.
fn uploads_conform(store: &dyn Store) {
    let PackPlace::Uploads(uploads) = store.packs("packs").expect("a place") else { panic!("no uploads") };
    let (tell, told) = channel();
    let begin = |name: &str| {
        let tell = tell.clone();
        uploads.begin(name, Box::new(move |outcome| tell.send(outcome).unwrap()))
    };
    let content = noise(5, 20_000_000);
    for (name, content) in [("small", &content[..1000]), ("empty", &content[..0]), ("large", &content[..])] {
        let mut upload = begin(name);
        for piece in content.chunks(262_144) {
            upload.send(Bytes::copy_from_slice(piece));
        }
        upload.end();
        told.recv().unwrap().unwrap_or_else(|failure| panic!("{name}: {failure}"));
    }
    assert!(get(store, "packs/large").unwrap() == content);
    assert_eq!(get(store, "packs/small").unwrap(), content[..1000]);
    let mut given_up = begin("given up");
    given_up.send(Bytes::from(content));
    drop(given_up);
    assert!(matches!(told.recv().unwrap(), Err(Failure::Stopped)));
    assert_eq!(names(store, "packs"), ["empty", "large", "small"]);
}

#[test]
fn every_place_keeps_the_same_rules() {
    let scratch = Scratch::new();
    let local: Arc<dyn Store> = Arc::new(LocalStore::new(scratch.join("repo")));
    conforms(&local);
    assert_eq!(local.requests(), None);

    let server = S3Server::start();
    let open = |prefix: &str| open_store(&server.address(prefix), &server.options()).expect("settings");
    let remote = open("some/where");
    conforms(&remote);
    uploads_conform(&*remote);
    let Requests { puts, parts, multipart, gets, lists, deletes, failed, bytes_up, bytes_down, .. } =
        remote.requests().expect("they are counted");
    // 3 large objects in parts of 8 MiB, another given up, and one refused before its end.
    assert!(
        puts >= 15 && parts >= 12 && multipart >= 8 && lists >= 5 && deletes >= 2,
        "{:?}",
        remote.requests()
    );
    // 180 pieces of one object, half of them out of order, and whole objects of 45, 20 and 9 MB.
    assert!(gets < 200, "ranges are read together: {gets}");
    assert!(
        (100_000_000..250_000_000).contains(&bytes_up) && bytes_down > 50_000_000,
        "{bytes_up} {bytes_down}"
    );
    assert_eq!(failed, 0);
    // A part that was given up may have been counted and not have come.
    assert!(server.seen("PUT part").abs_diff(parts) <= 4, "{} {parts}", server.seen("PUT part"));
    // What one prefix holds is nothing to another.
    assert_eq!(open("some").list("").expect("listed").len(), 1);
    assert_eq!(open("somewhere").list("").expect("listed").len(), 0);
}

/// For stores that CI does not have: `PGSTRATA_TEST_STORES=az://container/prefix`, with their settings in the environment.
#[test]
fn stores_that_are_named_keep_them_too() {
    let Ok(addresses) = std::env::var("PGSTRATA_TEST_STORES") else {
        eprintln!("skipped: PGSTRATA_TEST_STORES names no further store");
        return;
    };
    for address in addresses.split_whitespace() {
        let place = format!("{address}/{}", std::process::id());
        let store = open_store(&place, &[]).expect("settings");
        conforms(&store);
        uploads_conform(&*store);
        let left = ["a/longer/way", "a.", "packs/empty", "packs/small", "packs/large"].map(str::to_owned);
        store.remove(&left).expect("removed");
        eprintln!("{place}: {:?}", store.requests());
    }
}

/// Where WAL waits until it is packed.
fn staging(server: &S3Server) -> PathBuf {
    let folder = server.scratch().join("staging");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// A command on a repository in the bucket, with its settings in the environment.
fn command(server: &S3Server, name: &str) -> Invocation {
    let run = pgstrata([name, "--repo"]).arg(server.address("repo"));
    server.with_environment(run).env("TMPDIR", staging(server))
}

fn backup(server: &S3Server, source: &Source) -> Invocation {
    command(server, "backup").args(["--cluster", "main", "-c", "fast", "--json", "-d", &source.conninfo()])
}

/// No secret shows, whatever is said.
#[track_caller]
fn expect_discreet(server: &S3Server, finished: &Finished) {
    for text in [finished.stdout_text(), finished.stderr_text()] {
        assert!(!text.contains(server.secret()) && !text.contains("AKIDEXAMPLE"), "{text}");
    }
}

#[test]
fn what_goes_to_s3_comes_back() {
    let server = S3Server::start();
    let source = harness::cluster(15).with(Workload::small().large_table_mib(24)).start();
    command(&server, "init").run().expect_success();
    command(&server, "init").run().expect_failure().expect_stderr("there is a repository already");

    assert_eq!(fs::read_dir(staging(&server)).unwrap().count(), 0);
    // The store is away for a while, in two ways, while the backup runs.
    let running = backup(&server, &source).args(["-Z", "none", "-r", "24M"]).spawn();
    harness::wait_until("the first part", || server.seen("PUT part") > 0);
    server.refuse(3);
    server.break_off(3);
    let finished = running.wait();
    let summary = finished.expect_success().json_summary();
    assert!(server.has_failed_all());
    expect_discreet(&server, &finished);
    let requests = &summary["stored"]["requests"];
    assert!(requests["failed"].as_u64().unwrap() >= 6, "{summary}");
    assert!(requests["bytes_up"].as_u64() > summary["stored"]["bytes"].as_u64(), "{summary}");
    assert!(requests["parts"].as_u64().unwrap() >= 4, "{summary}");
    assert!(summary["peak_memory"].as_u64().unwrap() < 160 << 20, "{summary}");
    assert_eq!(summary["stored"]["repository"], server.address("repo"));

    command(&server, "list").run().expect_success();
    command(&server, "show").args(["--cluster", "main"]).run().expect_success();
    let verified = command(&server, "verify").run();
    assert!(verified.expect_success().stderr_text().contains("  requests     "), "{verified}");

    let copy = source.dir("copy");
    let restore = |json: &[&str]| {
        let mut run = command(&server, "restore").args(["--cluster", "main", "--into"]).arg(&copy).args(json);
        for tablespace in source.tablespaces() {
            if let Some(location) = &tablespace.location {
                let place = copy.with_file_name(format!("space {}", tablespace.oid));
                run = run.arg("-T").arg(format!("{}={}", location.display(), place.display()));
            }
        }
        run
    };
    server.refuse(1);
    server.break_off(1);
    let restored = restore(&["--json"]).run();
    let summary = restored.expect_success().json_summary();
    // What lies together comes together.
    let (gets, files) = (summary["requests"]["gets"].as_u64().unwrap(), summary["files"].as_u64().unwrap());
    assert!(files > 900 && gets < 200, "{summary}");
    assert!(summary["requests"]["failed"].as_u64().unwrap() >= 2, "{summary}");
    pgstrata(["verifybackup"]).arg(&copy).run().expect_success();
    harness::compare(&source, &source.boot(&copy));

    // Damage is named, and not passed on.
    let packs = server.file("repo/clusters/main/packs");
    let mut packs: Vec<_> = fs::read_dir(&packs).unwrap().map(|entry| entry.unwrap().path()).collect();
    packs.sort();
    let mut bytes = fs::read(&packs[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&packs[0], bytes).unwrap();
    let name = packs[0].file_name().unwrap().to_str().unwrap();
    command(&server, "verify").run().expect_failure().expect_stderr(name);
}

#[test]
fn a_killed_upload_leaves_a_repository_that_opens() {
    let server = S3Server::start();
    let source = harness::cluster(15).with(Workload::empty().large_table_mib(16)).start();
    command(&server, "init").run().expect_success();
    for signal in [Signal::KILL, Signal::TERM] {
        let before = server.seen("POST complete");
        server.hold_completions(true);
        let running = backup(&server, &source).args(["-Z", "none"]).spawn();
        harness::wait_until("a pack that is all but complete", || server.seen("POST complete") > before);
        running.signal(signal);
        running.wait().expect_killed_by(signal);
        server.hold_completions(false);
        let listed = command(&server, "list").args(["--json"]).run();
        assert_eq!(listed.expect_success().json_summary()["backups"].as_array().map(Vec::len), Some(0));
        if signal == Signal::TERM {
            assert_eq!(fs::read_dir(staging(&server)).unwrap().count(), 0, "what was staged is taken away");
        }
        for left in fs::read_dir(staging(&server)).unwrap() {
            fs::remove_dir_all(left.unwrap().path()).unwrap();
        }
    }
    backup(&server, &source).run().expect_success();
    command(&server, "verify").run().expect_success();
}

#[test]
fn what_cannot_work_is_said_at_once() {
    let server = S3Server::start();
    let began = Instant::now();
    let open = |option: Option<(&str, &str)>, address: &str| {
        let mut run = pgstrata(["list", "--repo", address]);
        let mut options = server.options();
        if let Some((key, value)) = option {
            options.retain(|(known, _)| known != key);
            options.push((key.to_owned(), value.to_owned()));
        }
        for (key, value) in options {
            run = run.args(["--store-option", &format!("{key}={value}")]);
        }
        let finished = run.run();
        finished.expect_failure().expect_stderr("pgstrata: error: ").expect_stderr("HINT: ");
        expect_discreet(&server, &finished);
        finished
    };
    let there = server.address("repo");
    open(None, &there).expect_stderr("there is no repository");
    open(None, "s3://elsewhere/repo")
        .expect_stderr("s3://elsewhere/repo: could not list: NoSuchBucket")
        .expect_stderr("check the bucket's name");
    let wrong = "hunter2hunter2";
    let refused = open(Some(("secret_access_key", wrong)), &there);
    refused.expect_stderr("SignatureDoesNotMatch").expect_stderr("AWS_SECRET_ACCESS_KEY");
    assert!(!refused.stderr_text().contains(wrong), "{refused}");
    open(Some(("access_key_id", "nobody")), &there)
        .expect_stderr("NotSignedUp")
        .expect_stderr("AWS_ACCESS_KEY_ID");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    open(Some(("endpoint", &format!("http://127.0.0.1:{port}"))), &there)
        .expect_stderr("Connection refused")
        .expect_stderr("check the endpoint");
    open(Some(("colour", "blue")), &there).expect_stderr("unknown store option \"colour\"");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}
