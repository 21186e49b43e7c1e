//! Small repositories: backups of a scripted server, taken in this process.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pgstrata::basebackup::{
    BaseBackupConfig, Destination, Observer, Progress, Report, Resources, SyncMethod, WalMethod, run,
};
use pgstrata::connect::{ConnectionSettings, GivenSettings, Surroundings};
use pgstrata::failure::Failure;
use pgstrata::repository::{
    CheckConfig, CheckReport, ClusterName, ExpireConfig, ExpireReport, FrameCompression, LocalStore,
    PACK_SIZE, Repository, RepositoryDestination, RetentionRules, ReuseConfig, Store, check, expire,
};
use pgstrata::stop::Stop;
use pgstrata::tracking::ChangesWanted;
use pgstrata_protocol::basebackup::ManifestOptions;
use pgstrata_protocol::manifest::ChecksumAlgorithm;
use pgstrata_tests::fake::{FakeBackup, FakeServer, Member, Script};

pub(crate) fn cluster() -> ClusterName {
    "main".parse().expect("valid")
}

/// A server whose backups take a moment.
pub(crate) fn server() -> FakeServer {
    let content = vec![b'x'; 200_000];
    let fake = FakeBackup::honest(18).with(Member::file("base/1/20000", content));
    FakeServer::start(Script::version(18).answer("BASE_BACKUP", fake.reply()))
}

struct Silence;

impl Observer for Silence {
    fn warning(&self, _: &str) {}

    fn note(&self, _: &str) {}
}

/// A backup of it through any store.
pub(crate) fn backup(server: &FakeServer, store: Arc<dyn Store>) -> Result<Report, Failure> {
    let conninfo = server.conninfo();
    let given = GivenSettings {
        conninfo: Some(&conninfo),
        host: None,
        port: None,
        user: None,
        database: None,
        program: Some("retention"),
    };
    let surroundings = Surroundings { variable: &|_| None, ..Surroundings::of_process() };
    let mut resources = Resources::for_cores(1);
    (resources.buffers, resources.buffer_size, resources.depth) = (16, 64 << 10, 4);
    let config = BaseBackupConfig {
        incremental: None,
        connection: ConnectionSettings::resolve(&given, &surroundings).expect("a good connection string"),
        destination: Destination::Repository(RepositoryDestination {
            repository: Repository::open(store)?,
            cluster: cluster(),
            compression: FrameCompression::Lz4,
            pack_size: PACK_SIZE,
            // So packs are shared with older backups.
            reuse: ReuseConfig::default(),
            changes: ChangesWanted::Auto,
        }),
        compression: None,
        wal: WalMethod::None,
        label: "retention".into(),
        fast_checkpoint: true,
        max_rate_kb: None,
        manifest: Some(ManifestOptions { checksums: Some(ChecksumAlgorithm::Crc32c), force_encode: false }),
        server_verifies_pages: true,
        check_pages: false,
        estimate_size: false,
        write_recovery_settings: false,
        sync: false,
        sync_method: SyncMethod::Fsync,
        clean: true,
        status_interval: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(30),
        resources,
    };
    let observer: Arc<dyn Observer> = Arc::new(Silence);
    run(&config, &Arc::new(Progress::default()), &observer, &Stop::new())
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
