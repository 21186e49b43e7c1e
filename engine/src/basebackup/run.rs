//! Runs a base backup. One thread asks, receives and decodes; the pipeline and the WAL receiver have their own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use pgstrata_protocol::basebackup::{BackupTarget, BaseBackupOptions};
use pgstrata_protocol::manifest::ChecksumAlgorithm;
use pgstrata_protocol::replication::{BackupPosition, TablespaceRow};
use pgstrata_protocol::wal::WalChecker;

use super::cleanup::{clean_up, drop_slot};
use super::config::{BackupCompression, BaseBackupConfig, Destination, SlotChoice, WalMethod};
use super::outputs::Outputs;
use super::prepare::{ServerFacts, archives};
use super::progress::{Observer, Phase, Progress};
use super::recovery::recovery_settings;
use super::report::{Phases, Report, process_usage};
use super::repository_run::keep_manifest;
use super::target::Claims;
use super::transfer::Transferred;
use crate::connect::{BulkStream, ControlRuntime, CopyDirection, NoticeSink, Purpose, Reply, Session};
use crate::failure::Failure;
use crate::pipeline::{Counters, Limit};
use crate::repository::{PackPlace, StoredBackup};
use crate::ring::{IoMode, ProbeReport, probe};
use crate::sink::Archive;
use crate::source::StreamEnd;
use crate::stop::Stop;
use crate::wal::{MadeSlot, WalReceiver, WalReceiverConfig};

/// Takes the backup. `stop` ends it early; what was made is then removed, unless the configuration says otherwise.
pub fn run(
    config: &BaseBackupConfig,
    progress: &Arc<Progress>,
    observer: &Arc<dyn Observer>,
    stop: &Stop<Failure>,
) -> Result<Report, Failure> {
    guarded(config, "stream", progress, observer, stop, |run, claims| run.run(claims))
}

/// Does `work`, and removes what it made where it fails. `source` is where the data comes from.
pub(super) fn guarded(
    config: &BaseBackupConfig,
    source: &'static str,
    progress: &Arc<Progress>,
    observer: &Arc<dyn Observer>,
    stop: &Stop<Failure>,
    work: impl FnOnce(&Run<'_>, &mut Claims) -> Result<Report, Failure>,
) -> Result<Report, Failure> {
    let mut claims = Claims::new(config.clean);
    let made_slot = Arc::new(MadeSlot::default());
    let began = Instant::now();
    let run = Run { config, source, progress, observer, stop, made_slot: Arc::clone(&made_slot), began };
    let outcome = work(&run, &mut claims);
    match outcome {
        Ok(report) => {
            claims.keep();
            Ok(report)
        }
        Err(failure) => {
            // The first failure is the cause; what this thread ran into may be its consequence.
            let failure = stop.take_reason().unwrap_or(failure);
            clean_up(config, claims, &failure, observer);
            drop_slot(config, made_slot.state(), observer);
            Err(failure)
        }
    }
}

/// A run under way.
pub(super) struct Run<'a> {
    pub(super) config: &'a BaseBackupConfig,
    /// Where the data comes from: `stream` or `local`.
    pub(super) source: &'static str,
    pub(super) progress: &'a Arc<Progress>,
    pub(super) observer: &'a Arc<dyn Observer>,
    pub(super) stop: &'a Stop<Failure>,
    made_slot: Arc<MadeSlot>,
    began: Instant,
}

/// The backup as the server begins it.
pub(super) struct Begun {
    pub(super) start: BackupPosition,
    pub(super) archives: Vec<Archive>,
    pub(super) stream: BulkStream,
}

/// The disk back end of the run.
pub(super) struct Io {
    pub(super) mode: IoMode,
    pub(super) alignment: usize,
    pub(super) reason: String,
}

/// What a run has moved.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) files_verified: u64,
    pub(super) wal_bytes: u64,
    pub(super) stored: Option<StoredBackup>,
}

impl Run<'_> {
    fn run(&self, claims: &mut Claims) -> Result<Report, Failure> {
        let config = self.config;
        let recovery = self.recovery()?;
        let runtime =
            ControlRuntime::new().map_err(|error| Failure::disk("start the runtime of", "sockets", error))?;
        let (session, facts) = self.wait(&runtime, self.open_session())?;
        self.note(format_args!("connected to PostgreSQL {}", facts.version_text));
        if let Destination::Repository(destination) = &config.destination {
            let system = facts.system.system_identifier;
            destination.repository.check_identity(&destination.cluster, system)?;
        }
        if let Some(path) = config.destination.path() {
            claims.claim(path, facts.folder_mode)?;
        }
        if let Destination::Directory { wal_directory: Some(path), .. } = &config.destination {
            claims.claim(path, facts.folder_mode)?;
        }
        let io = self.probe()?;
        let session = match &config.incremental {
            None => session,
            Some(path) => self.wait(&runtime, self.upload_manifest(session, &facts, path))?,
        };
        let mut receiver = self.connect_wal_receiver(&facts)?;
        if let WalMethod::Stream(SlotChoice::Named { name, create: true }) = &config.wal {
            self.note(format_args!("created replication slot \"{name}\""));
        }

        self.enter(Phase::WaitingForCheckpoint);
        self.note(format_args!("initiating base backup, waiting for checkpoint to complete"));
        let begun = self.wait(&runtime, self.begin(session, &facts))?;
        let mut phases = Phases { start: self.seconds(), ..Phases::default() };
        let start = begun.start;
        let BackupPosition { lsn, timeline } = start;
        self.note(format_args!("checkpoint completed"));
        if config.wal != WalMethod::None {
            self.note(format_args!("write-ahead log start point: {lsn} on timeline {timeline}"));
        }

        if matches!(config.destination, Destination::Target { .. }) {
            return self.watch(begun, &facts, &io, phases);
        }
        let mut outputs =
            self.make_outputs(claims, &facts, &begun.archives, recovery.as_deref(), receiver.is_some())?;
        if let Some(receiver) = &mut receiver {
            let writer = self.wal_writer(&outputs, &facts, begun.start)?;
            self.note(format_args!("starting background WAL receiver"));
            receiver.start(writer, WalChecker::new(facts.wal_origin(begun.start.timeline), begun.start.lsn));
        }
        let scratch = match &outputs {
            Outputs::Repository(writing) => writing.staging().to_owned(),
            _ => config.destination.path().map_or_else(std::env::temp_dir, Path::to_owned),
        };
        let Transferred { end, pipeline, spool, manifest } =
            self.transfer(begun, &facts, &io, &mut outputs, &scratch, |end| {
                phases.data = self.seconds() - phases.start;
                if let Some(receiver) = &receiver {
                    receiver.stop_at(end.end.lsn);
                }
            })?;
        let settled = self.seconds();
        phases.settle = settled - phases.start - phases.data;

        self.enter(Phase::WaitingForWal);
        if config.wal != WalMethod::None {
            self.note(format_args!("write-ahead log end point: {}", end.end.lsn));
        }
        if receiver.is_some() {
            self.note(format_args!("waiting for background process to finish streaming ..."));
        }
        let wal_bytes = receiver.map_or(Ok(0), WalReceiver::finish)?;
        self.check_stopped()?;
        let received_wal = self.seconds();
        phases.wal = received_wal - settled;

        self.enter(Phase::Finishing);
        Self::fail_on_findings(&pipeline)?;
        self.check_fetched_wal(&pipeline, end.end)?;
        let files = spool.members;
        let range = [start, end.end];
        let kept = keep_manifest(&outputs, manifest.as_ref())?;
        let files_verified =
            manifest.map_or(Ok(0), |manifest| self.compare(manifest, spool, &facts, range))?;
        self.check_stopped()?;
        let has_wal_archive = matches!(config.wal, WalMethod::Stream(_));
        let stored = match (outputs, kept) {
            (Outputs::Repository(writing), Some(kept)) => {
                Some(self.commit(*writing, &facts, &io, range, files, kept)?)
            }
            (outputs, _) => {
                self.finish(outputs, claims, recovery, &facts, has_wal_archive)?;
                None
            }
        };
        phases.total = self.seconds();
        phases.end = phases.total - received_wal;
        let bytes = Limit::judge(&pipeline.counters).lanes.bytes;
        let totals = Totals { files, bytes, files_verified, wal_bytes, stored };
        Ok(self.report(&facts, &pipeline.counters, &io, phases, (lsn, &end), &totals))
    }

    pub(super) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    pub(super) fn note(&self, text: std::fmt::Arguments<'_>) {
        self.observer.note(&text.to_string());
    }

    /// Says what is being done now, to whoever looks and whoever listens.
    pub(super) fn enter(&self, phase: Phase) {
        self.progress.enter(phase);
        self.observer.entered(phase);
    }

    pub(super) fn check_stopped(&self) -> Result<(), Failure> {
        if self.stop.is_thrown() { Err(Failure::Stopped) } else { Ok(()) }
    }

    pub(super) fn notices(&self) -> NoticeSink {
        let observer = Arc::clone(self.observer);
        Arc::new(move |notice| observer.warning(&notice.to_string()))
    }

    /// Waits for the server, but no longer than until the run is stopped.
    pub(super) fn wait<T>(
        &self,
        runtime: &ControlRuntime,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        runtime.block_on(self.stop.unless_thrown(work))
    }

    pub(super) async fn open_session(&self) -> Result<(Session, ServerFacts), Failure> {
        let mut session =
            Session::connect(&self.config.connection, Purpose::Replication, self.notices()).await?;
        session.set_stall_limit(Some(self.config.stall_timeout));
        let facts = ServerFacts::ask(&mut session, self.config).await?;
        Ok((session, facts))
    }

    /// Chooses the disk back end for the target.
    pub(super) fn probe(&self) -> Result<Io, Failure> {
        let packs = match &self.config.destination {
            Destination::Repository(destination) => Some(destination.packs()?),
            _ => None,
        };
        let packs = match packs {
            Some(PackPlace::Folder(path)) => Some(path),
            Some(PackPlace::Uploads(_)) => {
                return Ok(Io { mode: IoMode::Threads, alignment: 1, reason: "packs are uploaded".into() });
            }
            None => None,
        };
        let Some(path) = packs.as_deref().or(self.config.destination.path()) else {
            return Ok(Io { mode: IoMode::Threads, alignment: 1, reason: "nothing is written".into() });
        };
        let ProbeReport { mode, reason, alignment, .. } =
            probe(path, self.config.resources.io).map_err(|error| Failure::Target(error.to_string()))?;
        self.note(format_args!("disk back end: {mode} ({reason})"));
        Ok(Io { mode, alignment, reason })
    }

    pub(super) fn connect_wal_receiver(&self, facts: &ServerFacts) -> Result<Option<WalReceiver>, Failure> {
        let WalMethod::Stream(slot) = &self.config.wal else { return Ok(None) };
        let config = WalReceiverConfig {
            connection: self.config.connection.clone(),
            slot: slot.clone(),
            system_identifier: facts.system.system_identifier,
            status_interval: self.config.status_interval,
            stall_timeout: self.config.stall_timeout,
            made_slot: Arc::clone(&self.made_slot),
        };
        WalReceiver::connect(config, self.progress, self.observer, self.stop).map(Some)
    }

    /// Sends BASE_BACKUP and waits for the checkpoint and the list of tablespaces.
    async fn begin(&self, mut session: Session, facts: &ServerFacts) -> Result<Begun, Failure> {
        let config = self.config;
        let options = self.options();
        let command = options.command(facts.version).map_err(|error| Failure::Target(error.to_string()))?;
        let reply = session.begin_slow_copy(&command).await.map_err(|error| self.refused(error))?;
        let Reply::Copy { direction: CopyDirection::Out, results } = reply else {
            return Err(Failure::stream("BASE_BACKUP", &"the server answered without sending a backup"));
        };
        let refuse = |error: &dyn std::fmt::Display| Failure::stream("BASE_BACKUP", error);
        let [start, tablespaces] = <[_; 2]>::try_from(results)
            .map_err(|results| refuse(&format!("{} results before the data, expected 2", results.len())))?;
        let start = BackupPosition::from_result(&start).map_err(|error| refuse(&error))?;
        let rows = TablespaceRow::from_result(&tablespaces).map_err(|error| refuse(&error))?;
        let estimate = rows.iter().filter_map(|row| row.size_kb).fold(0, u64::saturating_add);
        self.progress.estimate.store(estimate.saturating_mul(1024), Ordering::Relaxed);
        self.progress.tablespaces.store(u32::try_from(rows.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        let mut stream =
            session.into_bulk().map_err(|error| Failure::session("could not take over the socket", error))?;
        let limit = Some(config.stall_timeout).filter(|limit| !limit.is_zero());
        stream
            .set_stall_limit(limit)
            .map_err(|error| Failure::session("could not set a time limit", error))?;
        if let Some(cancel) = stream.cancel_handle() {
            self.stop.on_thrown(move || cancel.cancel());
        }
        Ok(Begun { start, archives: archives(&rows)?, stream })
    }

    /// What the server is asked for.
    pub(super) fn options(&self) -> BaseBackupOptions {
        let config = self.config;
        BaseBackupOptions {
            incremental: config.incremental.is_some(),
            label: config.label.clone(),
            progress: config.estimate_size,
            fast_checkpoint: config.fast_checkpoint,
            include_wal: config.wal == WalMethod::Fetch,
            max_rate_kb: config.max_rate_kb,
            // A plain backup has links instead, which the operator may have mapped.
            tablespace_map: matches!(
                config.destination,
                Destination::Tar { .. } | Destination::Stdout | Destination::Target { .. }
            ),
            manifest: config.manifest,
            wait_for_archive: config.waits_for_archive(),
            verify_checksums: config.server_verifies_pages,
            compression: config.asked_compression(),
            target: match &config.destination {
                Destination::Target { name, detail, .. } => {
                    BackupTarget::Server { name: name.clone(), detail: detail.clone() }
                }
                _ => BackupTarget::Client,
            },
        }
    }

    fn recovery(&self) -> Result<Option<String>, Failure> {
        if !self.config.write_recovery_settings {
            return Ok(None);
        }
        let slot = match &self.config.wal {
            WalMethod::Stream(SlotChoice::Named { name, .. }) => Some(name.as_str()),
            _ => None,
        };
        recovery_settings(&self.config.connection, slot).map(Some)
    }

    pub(super) fn report(
        &self,
        facts: &ServerFacts,
        counters: &Counters,
        io: &Io,
        phases: Phases,
        (start, end): (pgstrata_protocol::Lsn, &StreamEnd),
        totals: &Totals,
    ) -> Report {
        let stages = Limit::judge(counters);
        let (cpu_seconds, peak_memory) = process_usage();
        let bytes = totals.bytes;
        let algorithm = self.config.manifest.and_then(|manifest| manifest.checksums);
        Report {
            source: self.source,
            path: self.config.destination.path().map(Path::to_owned),
            stored: totals.stored.clone(),
            target: match &self.config.destination {
                Destination::Target { name, detail, .. } => {
                    Some(detail.as_ref().map_or_else(|| name.clone(), |detail| format!("{name}:{detail}")))
                }
                Destination::Stdout => Some("stdout".into()),
                _ => None,
            },
            incremental: self.config.incremental.is_some(),
            compression: self.compression_name(),
            format: match self.config.destination {
                Destination::Directory { .. } => "plain",
                Destination::Tar { .. } | Destination::Stdout => "tar",
                Destination::Repository(_) => "repository",
                Destination::Discard => "discard",
                Destination::Target { .. } => "target",
            },
            server_version: facts.version_text.clone(),
            system_identifier: facts.system.system_identifier.to_string(),
            timeline: end.end.timeline.0,
            start_lsn: start.to_string(),
            end_lsn: end.end.lsn.to_string(),
            files: totals.files,
            bytes,
            wal_bytes: totals.wal_bytes,
            files_verified: totals.files_verified,
            checksum_algorithm: algorithm.unwrap_or(ChecksumAlgorithm::None).to_string(),
            pages_checked: self.config.check_pages,
            durable: match &self.config.destination {
                Destination::Stdout | Destination::Discard => false,
                // The server syncs what it keeps (`basebackup_server.c`); of others' targets nothing is known.
                Destination::Target { name, .. } => name == "server",
                _ => self.config.sync,
            },
            seconds: phases,
            bytes_per_second: per_second(bytes, phases.total),
            cpu_seconds,
            peak_memory,
            io: io.mode.to_string(),
            io_reason: io.reason.clone(),
            limited_by: Report::limit(&phases, &stages),
            stages,
        }
    }
}

impl Run<'_> {
    /// Who compressed with what, as the option says it; none where nobody did.
    fn compression_name(&self) -> Option<String> {
        let server = |method: &str| Some(format!("server-{method}"));
        match (&self.config.destination, &self.config.compression) {
            (Destination::Target { compression, .. }, _) => server(&compression.as_ref()?.method),
            (_, Some(BackupCompression::Client(spec))) => Some(format!("client-{}", spec.method)),
            (_, Some(BackupCompression::Server { method, .. })) => server(method.name()),
            (_, None) => None,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people; 53 bits of bytes are 9 PB")]
fn per_second(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 }
}
