//! `pgstrata receivewal` against real servers: what it keeps is what the server has in `pg_wal`, whenever it is stopped,
//! killed, cut off or led to another timeline.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgstrata::postmaster::{Server, Shutdown};
use pgstrata_tests as harness;
use pgstrata_tests::fake::message::{copy_both, copy_data};
use pgstrata_tests::fake::{FakeServer, Reply, Script, WAL_START, honest_wal};
use pgstrata_tests::{
    Action, Direction, Fault, Interposer, Invocation, Running, Source, Sql, sql, wait_until,
};
use rustix::process::Signal;

const SEGMENT: u64 = 1 << 20;

/// A server with small segments that keeps all of its WAL.
fn source(major: u32) -> Source {
    harness::cluster(major).wal_segsize_mb(1).setting("wal_keep_size", "512MB").start()
}

fn receive(conninfo: &str, dir: &Path) -> Invocation {
    fs::create_dir_all(dir).unwrap();
    harness::pgstrata(["receivewal", "-d", conninfo, "-D"]).arg(dir).limit(Duration::from_secs(120))
}

/// Writes some segments of WAL, and ends the last.
fn fill(sql: &Sql, segments: u32) {
    sql.execute("CREATE TABLE IF NOT EXISTS filler (x text)");
    for _ in 0..segments {
        sql.execute("INSERT INTO filler SELECT repeat(md5(random()::text), 8) FROM generate_series(1, 2500)");
    }
    sql.execute("SELECT pg_switch_wal()");
}

/// A position that lies behind all that is there now, once more is written.
fn end_of(sql: &Sql) -> String {
    sql.execute("CREATE TABLE IF NOT EXISTS marks (i int); INSERT INTO marks VALUES (1)");
    let end = flushed(sql) - 1;
    format!("{:X}/{:X}", end >> 32, end & 0xFFFF_FFFF)
}

fn flushed(sql: &Sql) -> u64 {
    sql.value("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn")
}

/// The names in an archive, and what their files hold, uncompressed.
fn archive(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let file = File::open(&path).unwrap();
        let mut content = Vec::new();
        let whole = !name.ends_with(".partial");
        let read = match name.trim_end_matches(".partial").rsplit_once('.') {
            Some((_, "gz")) => flate2::read::MultiGzDecoder::new(file).read_to_end(&mut content),
            Some((_, "lz4")) => lz4::Decoder::new(file).and_then(|mut file| file.read_to_end(&mut content)),
            Some((_, "zst")) => zstd::Decoder::new(file).unwrap().read_to_end(&mut content),
            _ => (&file).read_to_end(&mut content),
        };
        assert!(read.is_ok() || !whole, "{name}: {read:?}");
        files.insert(name, content);
    }
    files
}

/// Compares an archive with the server's own files. Returns the names of the whole segments.
///
/// Whole segments of a timeline follow each other without a gap; there is one partial segment at most on each timeline,
/// and it is the highest; nothing without a name is left.
#[track_caller]
fn check(dir: &Path, server: &Server) -> Vec<String> {
    let mut whole = Vec::new();
    let mut last: BTreeMap<String, (u64, bool)> = BTreeMap::new();
    for (name, content) in archive(dir) {
        let stem = name.split('.').next().unwrap().to_owned();
        let theirs = server.data_dir().join("pg_wal");
        if name.contains(".history") {
            assert_eq!(content, fs::read(theirs.join(format!("{stem}.history"))).unwrap(), "{name}");
            continue;
        }
        assert!(!name.contains("tmp"), "{name}");
        let partial = name.ends_with(".partial");
        let number = u64::from_str_radix(&stem[8..16], 16).unwrap() * (4 << 30 >> 20)
            + u64::from_str_radix(&stem[16..], 16).unwrap();
        if let Some((before, was_partial)) = last.insert(stem[..8].to_owned(), (number, partial)) {
            assert!(!was_partial && before + 1 == number, "{name} follows {before}, partial: {was_partial}");
        }
        if !partial {
            assert_eq!(content.len() as u64, SEGMENT, "{name}");
            // A promoted server renames what it has of the old timeline.
            let theirs = fs::read(theirs.join(&stem)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(content == theirs, "{name} differs");
            whole.push(stem);
        }
    }
    whole
}

/// Runs until everything that the server has now is here.
#[track_caller]
fn catch_up(source: &Server, dir: &Path, arguments: &[&str]) -> harness::Finished {
    let end = end_of(&sql(source));
    let finished = receive(&source.conninfo(), dir).args(["-n", "-E", &end]).args(arguments).run();
    finished.expect_success();
    finished
}

fn wait_for_segments(running: &Running, dir: &Path, count: usize) {
    wait_until(format!("{count} segments"), || {
        assert!(running.is_running(), "it ended: {}", running.stderr_text());
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| !name.to_str().unwrap().contains('.')).count() >= count
    });
}

#[test]
fn segments_are_those_of_the_server() {
    for major in [13, 14, 15, 16, 17, 18] {
        if harness::program(major).is_err() {
            continue;
        }
        let source = source(major);
        let session = source.sql();
        let slot = |name: &str| {
            harness::pgstrata(["receivewal", "-d", &source.conninfo(), "--create-slot", "-S", name]).run()
        };
        slot("held").expect_success();
        session.execute("SELECT pg_switch_wal()");
        for (number, arguments) in [
            &["-S", "held"][..],
            &["--synchronous"],
            &["--no-sync"],
            &["-Z", "gzip:1"],
            &["-Z", "lz4"],
            &["-Z", "zstd:1", "--synchronous"],
            &["-Z", "3", "--no-check-wal"],
        ]
        .into_iter()
        .enumerate()
        {
            let dir = source.dir(&format!("archive {number}"));
            // Where it begins.
            catch_up(&source, &dir, arguments);
            fill(&session, 3);
            let end = end_of(&session);
            let finished =
                receive(&source.conninfo(), &dir).args(["-n", "-v", "-E", &end]).args(arguments).run();
            let said = finished.expect_success().stderr_text();
            for word in ["starting log streaming at", "finished segment at", "stopped log streaming at"] {
                assert!(said.contains(&format!("pgstrata: {word}")), "{major}, {arguments:?}: {finished}");
            }
            assert!(said.contains(".partial\", segment is not complete"), "{finished}");
            let whole = check(&dir, &source);
            assert!(whole.len() >= 3, "{major}, {arguments:?}: {whole:?}");
            let files = archive(&dir);
            let (name, partial) = files.iter().find(|(name, _)| name.ends_with(".partial")).unwrap();
            let theirs = source.data_dir().join("pg_wal").join(name.split('.').next().unwrap());
            let theirs = fs::read(theirs).unwrap();
            let written = partial.len().min(100);
            assert_eq!(partial[..written], theirs[..written], "{name}");
            let compressed = arguments.contains(&"-Z");
            assert_eq!(partial.len() as u64 == SEGMENT, !compressed, "{name}");
            // Once more, from where it stopped.
            fill(&session, 1);
            catch_up(&source, &dir, arguments);
            assert!(check(&dir, &source).len() > whole.len());
            let mode = std::os::unix::fs::PermissionsExt::mode(
                &fs::metadata(dir.join(files.keys().next().unwrap())).unwrap().permissions(),
            );
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}

#[test]
fn slots_are_made_used_and_dropped() {
    for major in [14, 15] {
        let source = source(major);
        let session = source.sql();
        let run = |arguments: &[&str]| {
            harness::pgstrata(["receivewal", "-d", &source.conninfo(), "-S", "mine"]).args(arguments).run()
        };
        run(&["--drop-slot"]).expect_failure().expect_stderr("replication slot \"mine\" does not exist");
        run(&["--create-slot"]).expect_success();
        run(&["--create-slot"]).expect_failure().expect_stderr(
            "could not send replication command \"CREATE_REPLICATION_SLOT \"mine\" PHYSICAL\": ERROR:  ",
        );
        run(&["--create-slot", "--if-not-exists"]).expect_success();
        let absent = source.dir("absent");
        let finished = receive(&source.conninfo(), &absent).args(["-n", "-S", "other"]).run();
        finished.expect_failure().expect_stderr("replication slot \"other\" does not exist");
        finished.expect_stderr("pgstrata: error: disconnected");

        // Until WAL was had through it a slot holds none; from then on a new archive begins with what it holds.
        let held = || -> u64 {
            session.value(
                "SELECT coalesce(restart_lsn - '0/0'::pg_lsn, 0) FROM pg_replication_slots WHERE slot_name = 'mine'",
            )
        };
        assert_eq!(held(), 0);
        let first = source.dir("first");
        catch_up(&source, &first, &["-S", "mine"]);
        // What was reported at the end is what is durable: nearly all.
        let known = held();
        assert!(known > 0 && known <= flushed(&session));
        fill(&session, 3);
        let second = source.dir("second");
        catch_up(&source, &second, &["-S", "mine"]);
        let names = check(&second, &source);
        let begins = known / SEGMENT;
        if major >= 15 {
            assert_eq!(names.first(), Some(&format!("00000001{:08X}{:08X}", begins >> 12, begins & 0xFFF)));
            assert!(names.len() >= 3, "{names:?}");
        } else {
            // Such a server cannot be asked: it begins where the server is.
            assert!(names.is_empty(), "{names:?}");
        }
        // A slot holds what is not durable here.
        assert!(held() <= flushed(&session));
        run(&["--drop-slot"]).expect_success();
    }
}

#[test]
fn signals_end_it_in_order() {
    let mut source = source(18);
    let dir = source.dir("archive");
    let conninfo = source.conninfo();
    for signal in [Signal::INT, Signal::TERM] {
        let running = receive(&conninfo, &dir).args(["-v"]).spawn();
        running.wait_for_stderr("starting log streaming");
        let count = check_names(&dir) + 2;
        fill(&source.sql(), 2);
        wait_for_segments(&running, &dir, count);
        running.signal(signal);
        let finished = running.wait();
        finished.expect_success().expect_stderr("pgstrata: received interrupt signal, exiting");
        check(&dir, &source);
    }
    // A server that goes away and comes back, the second time with a slot that it has to wait for.
    let slot = ["-S", "mine"];
    harness::pgstrata(["receivewal", "-d", &conninfo, "--create-slot"]).args(slot).run().expect_success();
    let port = source.port();
    let running = receive(&conninfo, &dir).args(slot).spawn();
    let alone = receive(&conninfo, &source.dir("other")).arg("-n").spawn();
    wait_until("both stream", || {
        source.sql().value::<u32>("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == 2
    });
    fill(&source.sql(), 1);
    let stopped = Instant::now();
    let cluster = source.stop(Shutdown::Fast);
    assert!(stopped.elapsed() < Duration::from_secs(30), "the server waited for a receiver");
    let alone = alone.wait();
    alone.expect_failure().expect_stderr("replication stream was terminated before stop point");
    alone.expect_stderr("pgstrata: error: disconnected");
    running.wait_for_stderr("disconnected; waiting 5 seconds to try again");
    let again = cluster
        .start_on(port, &[("wal_keep_size", "512MB"), ("fsync", "off"), ("max_wal_senders", "10")])
        .unwrap();
    let count = check_names(&dir) + 2;
    fill(&sql(&again), 2);
    wait_for_segments(&running, &dir, count);
    let whole = check(&dir, &again);
    // All that was written before the shutdown was here by then.
    assert!(whole.len() >= 6, "{whole:?}");
    again.stop(Shutdown::Immediate).unwrap();
    let before = running.stderr_text().len();
    wait_until("it waits to connect again", || {
        running.stderr_text()[before..].contains("disconnected; waiting")
    });
    let signalled = Instant::now();
    running.signal(Signal::TERM);
    running.wait().expect_success();
    assert!(signalled.elapsed() < Duration::from_secs(4), "it slept on");
}

fn check_names(dir: &Path) -> usize {
    fs::read_dir(dir)
        .unwrap()
        .filter(|entry| !entry.as_ref().unwrap().file_name().to_str().unwrap().contains('.'))
        .count()
}

#[test]
fn kills_leave_no_gap_and_no_duplicate() {
    let source = source(15);
    let session = source.sql();
    let writer = source.writer(1);
    session.execute("SELECT pg_create_physical_replication_slot('mine')");
    for arguments in [&["-S", "mine"][..], &["-S", "mine", "--synchronous", "-Z", "lz4"]] {
        let dir = source.dir(&format!("archive {}", arguments.len()));
        catch_up(&source, &dir, arguments);
        let mut random = 88_172_645_463_325_252_u64;
        for round in 0..12 {
            fill(&session, 2);
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let running = receive(&source.conninfo(), &dir).args(arguments).args(["-v", "-s", "1"]).spawn();
            running.wait_for_stderr("starting log streaming");
            // From before the first byte to behind the last segment that there is.
            std::thread::sleep(Duration::from_micros(random % 60_000));
            running.signal(Signal::KILL);
            let finished = running.wait();
            assert_eq!(finished.status.code(), None, "{finished}");
            let names: Vec<_> = archive(&dir).into_keys().collect();
            let partial = names.iter().filter(|name| name.ends_with(".partial")).count();
            assert!(partial <= 1, "{round}: {names:?}");
            // What the slot let go of is here.
            let held: u64 = session.value(
                "SELECT restart_lsn - '0/0'::pg_lsn FROM pg_replication_slots WHERE slot_name = 'mine'",
            );
            let mut whole = names.iter().filter(|name| !name.contains("partial") && !name.contains("tmp"));
            let last = whole.next_back().map(|name| u64::from_str_radix(&name[16..24], 16).unwrap());
            assert!(last.is_none_or(|last| held / SEGMENT <= last + 1), "{round}: {held:X}, {names:?}");
        }
        fill(&session, 1);
        catch_up(&source, &dir, arguments);
        let whole = check(&dir, &source);
        assert!(whole.len() >= 12 * 2, "{whole:?}");
    }
    let _ = writer.stop();
}

#[test]
fn a_promotion_is_followed() {
    for major in [14, 15, 16, 17, 18] {
        let source = source(major);
        let copy = source.dir("standby");
        harness::basebackup(&source).arg("-D").arg(&copy).args(["-R", "-N"]).run().expect_success();
        let standby = source.boot_with(&copy, &[("wal_keep_size", "512MB"), ("max_wal_senders", "10")]);
        let dirs: [PathBuf; 3] = ["plain", "gzip", "synchronous"].map(|name| source.dir(name));
        let running: Vec<Running> = [&["-v"][..], &["-v", "-Z", "gzip"], &["-v", "--synchronous"]]
            .into_iter()
            .zip(&dirs)
            .map(|(arguments, dir)| receive(&standby.conninfo(), dir).args(arguments).spawn())
            .collect();
        for running in &running {
            running.wait_for_stderr("starting log streaming");
        }
        fill(&source.sql(), 2);
        // Not at the end of a segment.
        source.sql().execute("CREATE TABLE last (i int)");
        let there = sql(&standby);
        wait_until("the standby has it all", || {
            there.value::<String>("SELECT to_regclass('last') IS NOT NULL") == "t"
        });
        there.execute("SELECT pg_promote()");
        for running in &running {
            running.wait_for_stderr("switched to timeline 2 at");
        }
        fill(&there, 3);
        let end = flushed(&there);
        for (running, dir) in running.into_iter().zip(&dirs) {
            let last = format!("00000002{:08X}{:08X}", 0, end / SEGMENT - 1);
            wait_until("the new timeline's segments are here", || {
                archive_names(dir).iter().any(|name| name.starts_with(&last) && !name.contains("partial"))
            });
            running.signal(Signal::INT);
            running.wait().expect_success();
            let names = archive_names(dir);
            assert!(names.iter().any(|name| name.starts_with("00000002.history")), "{names:?}");
            let left: Vec<_> = names.iter().filter(|name| name.starts_with("00000001")).collect();
            assert!(left.last().unwrap().ends_with(".partial"), "{left:?}");
            let whole = check(dir, &standby);
            let new = whole.iter().filter(|name| name.starts_with("00000002")).count();
            assert!(new >= 2 && whole.len() > new, "{whole:?}");
            // It goes on there.
            fill(&there, 1);
            let extra: &[&str] = if names[0].contains(".gz") { &["-Z", "gzip"] } else { &[] };
            catch_up(&standby, dir, extra);
            check(dir, &standby);
        }
    }
}

fn archive_names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn it_is_a_synchronous_standby() {
    for major in [14, 15, 16, 17, 18] {
        let source = source(major);
        let session = source.sql();
        let dir = source.dir("archive");
        let conninfo = format!("{} application_name=archive", source.conninfo());
        let running = receive(&conninfo, &dir).arg("--synchronous").spawn();
        session.execute("ALTER SYSTEM SET synchronous_standby_names = 'archive'");
        session.execute("SELECT pg_reload_conf()");
        wait_until("it is the synchronous standby", || {
            session.value::<u32>("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == 1
        });
        session.execute("CREATE TABLE acknowledged (i int)");
        let began = Instant::now();
        for number in 0..50 {
            session.execute(&format!("INSERT INTO acknowledged VALUES ({number})"));
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{:?} for 50 commits", began.elapsed());
        // What was acknowledged is here, whatever becomes of the receiver.
        let acknowledged = flushed(&session);
        running.signal(Signal::KILL);
        let _ = running.wait();
        let files = archive(&dir);
        let (name, content) = files.iter().next_back().unwrap();
        let theirs =
            fs::read(source.data_dir().join("pg_wal").join(name.split('.').next().unwrap())).unwrap();
        let length = usize::try_from(acknowledged % SEGMENT).unwrap();
        // A background process may have written more by then.
        assert!(content[..length.min(content.len())] == theirs[..length.min(theirs.len())], "{name}");
        session.execute("SET synchronous_commit = local");
        session.execute("ALTER SYSTEM RESET synchronous_standby_names");
        session.execute("SELECT pg_reload_conf()");
        // Without --synchronous and without a slot it never is one.
        let running = receive(&conninfo, &dir).args(["-s", "1"]).spawn();
        wait_until("it reports", || {
            session.value::<u32>(
                "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'archive' AND write_lsn IS NOT NULL",
            ) == 1
        });
        assert_eq!(
            session.value::<u32>("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn IS NOT NULL"),
            0
        );
        running.signal(Signal::INT);
        running.wait().expect_success();
    }
}

#[test]
fn damaged_wal_is_not_kept_as_if_it_were_good() {
    let source = source(18);
    let session = source.sql();
    let dir = source.dir("archive");
    session.execute("SELECT pg_switch_wal()");
    catch_up(&source, &dir, &[]);
    fill(&session, 3);
    // In the middle of a segment that is full: behind a switch nobody reads.
    let fault = |segments: u64| Fault::on(0, segments * SEGMENT + SEGMENT / 2, Action::Flip(0x10));
    let network = Interposer::before(&source, &[fault(1)]);
    let end = end_of(&session);
    let conninfo = network.conninfo(&source);
    let finished = receive(&conninfo, &dir).args(["-n", "-E", &end]).run();
    finished.expect_failure().expect_stderr("pgstrata: error: WAL ");
    finished.expect_stderr("HINT: it was not written; the segment is received once more.");
    let whole = check(&dir, &source);
    assert!(!whole.is_empty(), "{whole:?}");
    fill(&session, 3);
    let end = end_of(&session);
    let network = Interposer::before(&source, &[fault(2)]);
    let conninfo = network.conninfo(&source);
    let finished = receive(&conninfo, &dir).args(["-v", "-E", &end]).run();
    finished.expect_success().expect_stderr("disconnected; waiting 5 seconds to try again");
    assert_eq!(network.connections(), 2);
    assert!(network.passed(1, Direction::ToClient) > 0);
    assert!(check(&dir, &source).len() > whole.len());

    // A server whose WAL is damaged: the second attempt is the last.
    let mut log = honest_wal(18, 8192);
    log[100] ^= 1;
    let header = [&b"w"[..], &WAL_START.to_be_bytes(), &(WAL_START + 1).to_be_bytes(), &[0; 8]].concat();
    let stream = Reply::messages([copy_both(), copy_data(&[header, log].concat())]);
    let identity = Reply::rows(
        &["systemid", "timeline", "xlogpos", "dbname"],
        &[&[Some("7300000000000000001"), Some("1"), Some("0/2000100"), None]],
    );
    let script = Script::version(18).answer("IDENTIFY_SYSTEM", identity).answer("START_REPLICATION", stream);
    let server = FakeServer::start(script);
    let fake = source.dir("fake");
    let finished = receive(&server.conninfo(), &fake).run();
    finished.expect_failure().expect_stderr("WAL record at 0/2000028: found content");
    finished.expect_stderr("it came twice, so it is damaged on the server");
    assert_eq!(server.connections(), 2);

    // Another cluster's archive is left alone.
    let finished = receive(&server.conninfo(), &dir).args(["-n"]).run();
    finished.expect_failure().expect_stderr("another cluster");
    check(&dir, &source);
}

#[test]
fn what_earlier_runs_left_is_judged() {
    let source = source(18);
    let session = source.sql();
    let dir = source.dir("archive");
    catch_up(&source, &dir, &[]);
    fill(&session, 3);
    catch_up(&source, &dir, &[]);
    let whole = check(&dir, &source);
    let last = whole.last().unwrap();
    // A whole segment that is cut is received once more, and so is one that another run was about to name.
    for name in archive_names(&dir).iter().filter(|name| name.ends_with(".partial")) {
        fs::rename(dir.join(name), dir.join(name.replace(".partial", ".pgstrata.tmp"))).unwrap();
    }
    File::options().write(true).open(dir.join(last)).unwrap().set_len(1000).unwrap();
    fs::write(dir.join("00000001000000000000FFFF.pgstrata.tmp.mine"), "").unwrap();
    let finished = catch_up(&source, &dir, &[]);
    let expected = format!("warning: segment file \"{last}\" has incorrect size 1000, skipping");
    finished.expect_stderr(&expected);
    fs::remove_file(dir.join("00000001000000000000FFFF.pgstrata.tmp.mine")).unwrap();
    assert_eq!(&check(&dir, &source)[..whole.len()], whole);
    // A partial segment of an odd length is nobody's.
    let partial = archive_names(&dir).into_iter().find(|name| name.ends_with(".partial")).unwrap();
    File::options().write(true).open(dir.join(&partial)).unwrap().set_len(1000).unwrap();
    let finished = receive(&source.conninfo(), &dir).arg("-n").run();
    finished.expect_failure().expect_stderr("has 1000 bytes, should be 0 or 1048576");
    fs::write(dir.join(&partial), "").unwrap();
    catch_up(&source, &dir, &[]);
    // With compression an earlier partial segment stays until as much is here again.
    for method in ["gzip", "lz4", "zstd"] {
        let dir = source.dir(method);
        catch_up(&source, &dir, &["-Z", method]);
        fill(&session, 1);
        catch_up(&source, &dir, &["-Z", method]);
        let whole = check(&dir, &source);
        // The highest is where the next run goes on.
        let path = archive_names(&dir).into_iter().rfind(|name| !name.contains("partial")).unwrap();
        let bytes = fs::read(dir.join(&path)).unwrap();
        if method != "gzip" {
            fs::write(dir.join(&path), &bytes[..bytes.len() / 2]).unwrap();
            for name in archive_names(&dir).iter().filter(|name| name.ends_with(".partial")) {
                fs::remove_file(dir.join(name)).unwrap();
            }
            let finished =
                receive(&source.conninfo(), &dir).args(["-n", "-Z", method, "-E", &end_of(&session)]).run();
            // Half a frame is no segment: what cannot be read is told, what is short is had again.
            if finished.status.success() {
                let said = finished.stderr_text();
                let told = ["has incorrect uncompressed size", "is cut short, skipping"];
                assert!(told.iter().any(|words| said.contains(words)), "{finished}");
            } else {
                finished.expect_stderr("could not decompress file");
            }
        }
        assert!(!whole.is_empty());
    }
}
