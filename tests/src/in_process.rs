//! A backup by the engine in the test's own process: through a store or over disks that a test has made up.

use std::sync::Arc;
use std::time::Duration;

use pgstrata::basebackup::{
    BaseBackupConfig, Destination, Observer, Progress, Report, Resources, SyncMethod, WalMethod, run,
};
use pgstrata::connect::{ConnectionSettings, GivenSettings, Surroundings};
use pgstrata::failure::Failure;
use pgstrata::stop::Stop;
use pgstrata_protocol::basebackup::ManifestOptions;
use pgstrata_protocol::manifest::ChecksumAlgorithm;

/// A durable backup with a manifest and no WAL, which a test changes where it wants another. Variables of the environment
/// have no say in where the server is.
///
/// # Panics
/// Where the connection string is none.
#[track_caller]
#[must_use]
pub fn backup_config(conninfo: &str, destination: Destination, resources: Resources) -> BaseBackupConfig {
    let given = GivenSettings {
        conninfo: Some(conninfo),
        host: None,
        port: None,
        user: None,
        database: None,
        program: Some("pgstrata-tests"),
    };
    let surroundings = Surroundings { variable: &|_| None, ..Surroundings::of_process() };
    BaseBackupConfig {
        incremental: None,
        connection: ConnectionSettings::resolve(&given, &surroundings).expect("a good connection string"),
        destination,
        compression: None,
        wal: WalMethod::None,
        label: "in process".into(),
        fast_checkpoint: true,
        max_rate_kb: None,
        manifest: Some(ManifestOptions { checksums: Some(ChecksumAlgorithm::Crc32c), force_encode: false }),
        server_verifies_pages: true,
        check_pages: false,
        estimate_size: true,
        write_recovery_settings: false,
        sync: true,
        sync_method: SyncMethod::Fsync,
        clean: true,
        status_interval: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(30),
        resources,
    }
}

/// Takes it. `warned` hears the warnings.
///
/// # Errors
/// As the engine's own `run`.
pub fn run_backup<F>(config: &BaseBackupConfig, warned: F) -> Result<Report, Failure>
where
    F: Fn(&str) + Send + Sync + 'static,
{
    let observer: Arc<dyn Observer> = Arc::new(Warned(warned));
    run(config, &Arc::new(Progress::default()), &observer, &Stop::new())
}

struct Warned<F>(F);

impl<F: Fn(&str) + Send + Sync> Observer for Warned<F> {
    fn warning(&self, text: &str) {
        (self.0)(text);
    }

    fn note(&self, _: &str) {}
}
