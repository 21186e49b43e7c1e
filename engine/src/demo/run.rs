//! The demonstration itself, step by step.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgstrata_protocol::Lsn;
use pgstrata_protocol::basebackup::ManifestOptions;
use pgstrata_protocol::manifest::ChecksumAlgorithm;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::compare::compare;
use super::config::DemoConfig;
use super::dataset::{self, Plan};
use super::observer::{DemoObserver, Done, Step};
use super::report::{BootReport, Comparison, DemoReport, LedgerReport, ProgramReport, SourceReport};
use super::scratch::Scratch;
use super::sql::settings;
use super::writer::Writer;
use super::{DemoError, Side};
use crate::basebackup::{
    self, BaseBackupConfig, Destination, Observer, Progress, Report, Resources, SlotChoice, SyncMethod,
    WalMethod, process_usage,
};
use crate::failure::Failure;
use crate::postmaster::{Cluster, InitOptions, Server, ServerProgram, Shutdown, Unprivileged};
use crate::stop::Stop;
use crate::verify::{VerifyConfig, VerifyProgress, VerifyReport, verify_directory};

/// Settings of both servers. They take no TCP connections, and their sockets lie in folders of their own that are
/// closed to others: nobody else on the machine gets to them.
const SETTINGS: [(&str, &str); 3] = [
    ("listen_addresses", ""),
    ("shared_buffers", "64MB"),
    // In the data directory, where nothing outlives it.
    ("dynamic_shared_memory_type", "mmap"),
];

/// The source is thrown away: it need not survive a power cut. The backup and the copy sync as always.
const SOURCE_SETTINGS: [(&str, &str); 2] = [("fsync", "off"), ("max_wal_size", "1GB")];

/// Transactions that are committed before the backup begins.
const WARM_UP: u64 = 200;

/// Problems of a copy that are told.
const SHOWN_PROBLEMS: usize = 20;

/// What source and copy take beside the data: system catalogues, WAL, the writer's changes.
const OVERHEAD: u64 = 1 << 30;

/// Runs it. Whatever the outcome, the servers have ended and the scratch folder is gone when this returns, unless
/// that is to be kept. `stop` ends it early.
///
/// # Errors
/// [`DemoError::Mismatch`] where the copy is not what it must be; everything else as it says.
pub fn run(
    config: &DemoConfig,
    observer: &Arc<dyn DemoObserver>,
    stop: &Stop<Failure>,
) -> Result<DemoReport, DemoError> {
    let outcome = Demo { config, observer, stop, began: Instant::now() }.run();
    // What a thread ran into once the run was stopped is a consequence.
    outcome.map_err(|error| stop.take_reason().map_or(error, DemoError::Failure))
}

struct Demo<'a> {
    config: &'a DemoConfig,
    observer: &'a Arc<dyn DemoObserver>,
    stop: &'a Stop<Failure>,
    began: Instant,
}

/// The source with its data.
struct Source {
    server: Server,
    tablespace: PathBuf,
    plan: Plan,
}

impl Demo<'_> {
    fn run(&self) -> Result<DemoReport, DemoError> {
        self.observer.begins(Step::Program);
        let run_as = Unprivileged::resolve()?;
        let program = self.config.find_program(&run_as)?;
        self.check_stopped()?;
        let scratch = Scratch::new(&run_as, self.config.keep)?;
        let report = ProgramReport {
            version: program.version.to_string(),
            bin_dir: program.bin_dir.clone(),
            origin: program.origin.to_string(),
            account: run_as.account().map(str::to_owned),
            scratch: scratch.path().to_owned(),
            seconds: self.began.elapsed().as_secs_f64(),
        };
        self.observer.ends(Done::Program(&report));
        // The servers end within.
        let outcome = self.in_scratch(&program, report, &scratch);
        let closed = scratch.close();
        if let Ok(Some(folder)) = &closed {
            self.observer.kept(folder);
        }
        match (outcome, closed) {
            (Ok(mut report), Ok(_)) => {
                report.seconds = self.began.elapsed().as_secs_f64();
                Ok(report)
            }
            (Ok(_), Err(error)) => Err(error),
            (Err(error), closed) => {
                if let Err(error) = closed {
                    self.observer.warning(&format!("could not clean up: {error}"));
                }
                Err(error)
            }
        }
    }

    fn in_scratch(
        &self,
        program: &ServerProgram,
        report: ProgramReport,
        scratch: &Scratch,
    ) -> Result<DemoReport, DemoError> {
        let (source, source_report) = self.make_source(program, scratch)?;
        let (backup, expected) = self.back_up(&source, scratch)?;
        let verify = self.verify(scratch)?;
        let (copy, boot) = self.boot(program, scratch)?;
        let comparison = self.compare(&source.server, &copy, expected)?;
        // Kept, they are to start without recovery.
        let mode = if self.config.keep { Shutdown::Fast } else { Shutdown::Immediate };
        copy.stop(mode)?;
        source.server.stop(mode)?;
        self.check_stopped()?;
        Ok(DemoReport {
            program: report,
            source: source_report,
            backup,
            verify,
            boot,
            comparison,
            seconds: 0.0,
        })
    }

    fn check_stopped(&self) -> Result<(), DemoError> {
        if self.stop.is_thrown() { Err(Failure::Stopped.into()) } else { Ok(()) }
    }

    /// Has a server end when the run is stopped: everything that waits for its answers then returns.
    fn end_on_stop(&self, server: &Server) -> Result<(), DemoError> {
        let fail = |error| Failure::disk("watch the server of", server.data_dir(), error);
        let pid = i32::try_from(server.pid()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(rustix::io::Errno::SRCH).map_err(fail)?;
        // Our own child, which its handle has not waited for: the number is still its own.
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(fail)?;
        self.stop.on_thrown(move || {
            // It fails only where the server has ended already.
            let _ = rustix::process::pidfd_send_signal(&process, Signal::QUIT);
        });
        Ok(())
    }

    fn make_source(
        &self,
        program: &ServerProgram,
        scratch: &Scratch,
    ) -> Result<(Source, SourceReport), DemoError> {
        self.observer.begins(Step::Source);
        let began = Instant::now();
        scratch.require_space(self.config.bytes.saturating_mul(2).saturating_add(OVERHEAD))?;
        let cluster = Cluster::init(program, &scratch.join("source"), &InitOptions::default())?
            .with_run_dir(&scratch.join("source-run"))?;
        let tablespace = scratch.join("source-tablespace");
        cluster.run_as().create_dir(&tablespace)?;
        self.check_stopped()?;
        let server = cluster.start(&[&SETTINGS[..], &SOURCE_SETTINGS[..]].concat())?;
        self.end_on_stop(&server)?;

        let plan = Plan::for_bytes(self.config.bytes);
        let connection = settings(&server, Side::Source)?;
        let loaded = dataset::load(&connection, &plan, &tablespace, self.stop, &|done, total| {
            self.observer.advances(&format!("{} of {} MB", done / 1_000_000, total / 1_000_000));
        })?;
        let report = SourceReport {
            tables: loaded.tables,
            rows: loaded.rows,
            bytes: loaded.bytes,
            seconds: began.elapsed().as_secs_f64(),
        };
        self.observer.ends(Done::Source(&report));
        Ok((Source { server, tablespace, plan }, report))
    }

    /// Takes the backup while the writer works, and returns what the writer knows of it.
    fn back_up(&self, source: &Source, scratch: &Scratch) -> Result<(Report, LedgerReport), DemoError> {
        self.observer.begins(Step::Backup);
        let connection = settings(&source.server, Side::Source)?;
        let writer = Writer::start(connection.clone(), source.plan.accounts())?.after(WARM_UP)?;
        let config = BaseBackupConfig {
            connection,
            incremental: None,
            destination: Destination::Directory {
                path: scratch.join("copy"),
                wal_directory: None,
                tablespace_mapping: vec![(source.tablespace.clone(), scratch.join("copy-tablespace"))],
            },
            compression: None,
            wal: WalMethod::Stream(SlotChoice::Temporary),
            label: "pgstrata demo".to_owned(),
            fast_checkpoint: true,
            max_rate_kb: None,
            manifest: Some(ManifestOptions {
                checksums: Some(ChecksumAlgorithm::Crc32c),
                force_encode: false,
            }),
            server_verifies_pages: true,
            check_pages: true,
            estimate_size: true,
            write_recovery_settings: false,
            sync: true,
            sync_method: SyncMethod::Fsync,
            clean: true,
            status_interval: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(300),
            resources: Resources::for_cores(std::thread::available_parallelism().map_or(1, usize::from)),
        };
        let progress = Arc::new(Progress::default());
        self.observer.watch(&progress);
        let words: Arc<dyn Observer> = Arc::clone(self.observer) as Arc<dyn Observer>;
        let (cpu_before, _) = process_usage();
        let before = writer.committed();
        let mut report = basebackup::run(&config, &progress, &words, self.stop)?;
        let begun = writer.begun();
        report.cpu_seconds -= cpu_before;
        let journal = writer.finish()?;
        let end: Lsn =
            report.end_lsn.parse().map_err(|error| Failure::stream("the end of the backup", &error))?;
        self.observer.ends(Done::Backup(&report));
        let by_end_lsn = journal.committed_by(end);
        Ok((report, LedgerReport { before, by_end_lsn, in_copy: 0, begun }))
    }

    /// Reads what lies on disk back, before a server changes it.
    fn verify(&self, scratch: &Scratch) -> Result<VerifyReport, DemoError> {
        self.observer.begins(Step::Verify);
        let config = VerifyConfig::of(scratch.join("copy"));
        let (cpu_before, _) = process_usage();
        // The report carries the problems too.
        let progress = VerifyProgress::new(|_| {});
        let mut report = verify_directory(&config, &progress, self.stop)?;
        report.cpu_seconds -= cpu_before;
        if !report.verified {
            let findings = report.problems.iter().take(SHOWN_PROBLEMS).map(ToString::to_string).collect();
            return Err(DemoError::Damaged { count: report.problem_count, findings });
        }
        self.observer.ends(Done::Verify(&report));
        Ok(report)
    }

    fn boot(&self, program: &ServerProgram, scratch: &Scratch) -> Result<(Server, BootReport), DemoError> {
        self.observer.begins(Step::Boot);
        self.check_stopped()?;
        let began = Instant::now();
        let cluster =
            Cluster::from_backup(program, &scratch.join("copy"))?.with_run_dir(&scratch.join("copy-run"))?;
        let owned = began.elapsed();
        let server = cluster.start(&SETTINGS)?;
        self.end_on_stop(&server)?;
        let report = BootReport {
            owner_seconds: owned.as_secs_f64(),
            seconds: (began.elapsed() - owned).as_secs_f64(),
        };
        self.observer.ends(Done::Boot(&report));
        Ok((server, report))
    }

    fn compare(
        &self,
        source: &Server,
        copy: &Server,
        expected: LedgerReport,
    ) -> Result<Comparison, DemoError> {
        self.observer.begins(Step::Compare);
        let began = Instant::now();
        let (source, copy) = (settings(source, Side::Source)?, settings(copy, Side::Copy)?);
        let mut comparison = compare(&source, &copy, expected, &|text| self.observer.advances(text))?;
        comparison.seconds = began.elapsed().as_secs_f64();
        self.observer.ends(Done::Compare(&comparison));
        Ok(comparison)
    }
}
