//! Any number of files in bounded memory: a backup into a repository, and what reads it.
//!
//! The server makes up its files while it sends them. Peaks are those of this process, the server in it included;
//! that is why this is a file of its own, and its tests run one at a time.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use pgstrata::basebackup::{Destination, Report, Resources, process_usage};
use pgstrata::repository::{
    BackupChoice, CheckConfig, FileRecord, FrameCompression, LocalStore, PACK_SIZE, Repository,
    RepositoryDestination, ReuseConfig, Tree, check,
};
use pgstrata::stop::Stop;
use pgstrata::tracking::ChangesWanted;
use pgstrata_tests::Scratch;
use pgstrata_tests::fake::{FakeServer, ManyFiles, Script};
use pgstrata_tests::in_process::{backup_config, run_backup};

const MEMORY: u64 = 256 << 20;

static ONE: Mutex<()> = Mutex::new(());

fn backup(conninfo: &str, repo: &Path) -> Report {
    let destination = Destination::Repository(RepositoryDestination {
        repository: Repository::open(Arc::new(LocalStore::new(repo))).expect("there"),
        cluster: "main".parse().unwrap(),
        compression: FrameCompression::Zstd(1),
        pack_size: PACK_SIZE,
        reuse: ReuseConfig::default(),
        changes: ChangesWanted::Auto,
    });
    let config = backup_config(conninfo, destination, Resources::for_cores(2));
    run_backup(&config, |text| panic!("{text}")).expect("a backup")
}

fn expect_bounded(what: &str, seconds: f64) {
    let (_, peak) = process_usage();
    eprintln!("{what}: {seconds:.1} s, peak {} MiB", peak >> 20);
    assert!(peak < MEMORY, "{what}: {peak} bytes");
}

fn take_twice_and_verify(count: u64, scratch: &Scratch) {
    let repo = scratch.join("repo");
    let repository = Repository::init(Arc::new(LocalStore::new(&repo))).expect("made");
    let script = Script::version(18).answer("BASE_BACKUP", ManyFiles { count }.reply(18));
    let server = FakeServer::start(script);
    let first = backup(&server.conninfo(), &repo);
    assert_eq!(first.files, count + 6);
    expect_bounded(&format!("{count} files"), first.seconds.total);
    let second = backup(&server.conninfo(), &repo);
    expect_bounded("again", second.seconds.total);
    let [first, second] = [&first, &second].map(|report| report.stored.as_ref().expect("in a repository"));
    eprintln!("stored {} bytes, then {}, {} were there", first.bytes, second.bytes, second.reused_bytes);
    assert_eq!(second.packs, 0, "{second:?}");
    let cluster = "main".parse().unwrap();
    let summary = repository.backup(&cluster, BackupChoice::Latest).expect("there").summary;
    assert_eq!(summary.reused_bytes, summary.bytes);
    let config = CheckConfig { repository: repository.clone(), cluster: None, workers: 2 };
    let report = check(&config, &Stop::new()).expect("readable");
    assert_eq!((report.backups, report.problem_count), (2, 0), "{report:?}");
    expect_bounded("verified", report.seconds);
    // What a restore reads before it makes anything.
    let (began, manifest) =
        (Instant::now(), repository.backup(&cluster, BackupChoice::Latest).expect("there"));
    let mut tree = Tree::of(&manifest).expect("folders");
    let mut files = 0;
    let look = |file: FileRecord| {
        files += 1;
        tree.file(&file.path)
    };
    manifest.each_file(look).expect("files");
    tree.finish().expect("whole");
    assert_eq!(files, summary.files);
    expect_bounded("listed", began.elapsed().as_secs_f64());
}

#[test]
fn two_hundred_thousand_files() {
    let _one = ONE.lock();
    let scratch = Scratch::new();
    take_twice_and_verify(200_000, &scratch);
}

#[test]
#[ignore = "takes minutes, and gigabytes of disk"]
fn ten_million_files() {
    let _one = ONE.lock();
    let scratch = Scratch::new();
    take_twice_and_verify(10_000_000, &scratch);
}
