//! Small repositories: backups of a scripted server, taken in this process.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pgstrata::basebackup::{Destination, Report, Resources};
use pgstrata::failure::Failure;
use pgstrata::repository::{
    CheckConfig, CheckReport, ClusterName, ExpireConfig, ExpireReport, FrameCompression, LocalStore,
    PACK_SIZE, Repository, RepositoryDestination, RetentionRules, ReuseConfig, Store, check, expire,
};
use pgstrata::stop::Stop;
use pgstrata::tracking::ChangesWanted;
use pgstrata_tests::fake::{FakeBackup, FakeServer, Member, Script};
use pgstrata_tests::in_process::{backup_config, run_backup};

pub(crate) fn cluster() -> ClusterName {
    "main".parse().expect("valid")
}

/// A server whose backups take a moment.
pub(crate) fn server() -> FakeServer {
    let content = vec![b'x'; 200_000];
    let fake = FakeBackup::honest(18).with(Member::file("base/1/20000", content));
    FakeServer::start(Script::version(18).answer("BASE_BACKUP", fake.reply()))
}

/// A backup of it through any store.
pub(crate) fn backup(server: &FakeServer, store: Arc<dyn Store>) -> Result<Report, Failure> {
    let mut resources = Resources::for_cores(1);
    (resources.buffers, resources.buffer_size, resources.depth) = (16, 64 << 10, 4);
    let destination = Destination::Repository(RepositoryDestination {
        repository: Repository::open(store)?,
        cluster: cluster(),
        compression: FrameCompression::Lz4,
        pack_size: PACK_SIZE,
        // So packs are shared with older backups.
        reuse: ReuseConfig::default(),
        changes: ChangesWanted::Auto,
    });
    let mut config = backup_config(&server.conninfo(), destination, resources);
    config.sync = false;
    run_backup(&config, |_| {})
}

pub(crate) fn local(repo: &Path) -> Arc<dyn Store> {
    Arc::new(LocalStore::new(repo))
}

pub(crate) fn open(repo: &Path) -> Repository {
    Repository::open(local(repo)).unwrap_or_else(|failure| panic!("{failure}"))
}

pub(crate) fn expire_by(store: Arc<dyn Store>, keep: u32) -> Result<ExpireReport, Failure> {
    let rules = RetentionRules { keep: Some(keep), keep_for: None };
    let repository = Repository::open(store)?;
    let clusters = vec![(cluster(), rules)];
    expire(&ExpireConfig { repository, clusters, grace: 0, dry_run: false }, &Stop::new())
}

pub(crate) fn verify(repo: &Path) -> CheckReport {
    let config = CheckConfig { repository: open(repo), cluster: None, workers: 2 };
    check(&config, &Stop::new()).unwrap_or_else(|failure| panic!("{failure}"))
}

/// Ids of the backups there are.
pub(crate) fn backups(repo: &Path) -> Vec<String> {
    open(repo).backups(&cluster()).expect("listed").iter().map(ToString::to_string).collect()
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Makes all that runs have left about an hour older than it is.
pub(crate) fn age(repo: &Path) {
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    for folder in ["clusters/main/leases", "clusters/main/packs", "staging"] {
        for name in names(&repo.join(folder)) {
            let file = File::open(repo.join(folder).join(name)).expect("it is there");
            file.set_modified(hour_ago).expect("it is ours");
        }
    }
}

/// What a death left is cleaned up by the next run: nothing but backups, their packs, and what says that runs are dead.
#[track_caller]
pub(crate) fn expect_clean(repo: &Path) {
    age(repo);
    expire_by(local(repo), 100).unwrap_or_else(|failure| panic!("{failure}"));
    let cluster_folder = repo.join("clusters/main");
    assert_eq!(names(&repo.join("staging")), Vec::<String>::new());
    assert_eq!(names(&cluster_folder.join("leases")), Vec::<String>::new());
    let mut needed = Vec::new();
    let repository = open(repo);
    for backup in repository.backups(&cluster()).expect("listed") {
        let choice = pgstrata::repository::BackupChoice::Id(backup);
        let manifest = repository.backup(&cluster(), choice).expect("whole");
        needed.extend(manifest.packs.iter().filter(|pack| pack.needed).map(|pack| pack.id.to_string()));
    }
    needed.sort();
    needed.dedup();
    assert_eq!(names(&cluster_folder.join("packs")), needed);
    let report = verify(repo);
    assert_eq!(report.problems, Vec::<String>::new());
}

/// Copies a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).expect("copied");
        }
    }
}
