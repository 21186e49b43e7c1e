//! Runs a base backup. One thread asks, receives and decodes; the pipeline and the WAL receiver have their own.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel::bounded;
use pgstrata_protocol::basebackup::BaseBackupOptions;
use pgstrata_protocol::manifest::ChecksumAlgorithm;
use pgstrata_protocol::replication::command::drop_slot as drop_slot_command;
use pgstrata_protocol::replication::{BackupPosition, TablespaceRow};

use super::config::{BaseBackupConfig, Destination, SlotChoice, WalMethod};
use super::finish::{MANIFEST_TMP, PlainEnd, finish_tar};
use super::prepare::{PlainFolders, ServerFacts, archives};
use super::progress::{Observer, Phase, Progress};
use super::recovery::recovery_settings;
use super::report::{Phases, Report, process_usage};
use super::target::Claims;
use crate::buffer::BufferPool;
use crate::connect::{BulkStream, ControlRuntime, CopyDirection, NoticeSink, Purpose, Reply, Session};
use crate::failure::Failure;
use crate::pipeline::{Checks, Feeder, Folder, Layout, Limit, Pipeline};
use crate::ring::{IoMode, ProbeReport, Registered, probe};
use crate::sink::{Archive, DirectorySink, DiscardSink, Sink, TarSink};
use crate::source::{StreamEnd, StreamSource};
use crate::stop::Stop;
use crate::verify::{Ledger, PageChecks, Spool, compare_with_manifest};
use crate::wal::{SegmentWriter, WalDestination, WalReceiver, WalReceiverConfig};

/// How long a server may take to drop the slot of a failed run.
const DROP_SLOT_PATIENCE: Duration = Duration::from_secs(10);
/// Members on their way to the ledger.
const LEDGER_QUEUE: usize = 1024;

/// Takes the backup. `stop` ends it early; what was made is then removed, unless the configuration says otherwise.
pub fn run(
    config: &BaseBackupConfig,
    progress: &Arc<Progress>,
    observer: &Arc<dyn Observer>,
    stop: &Stop<Failure>,
) -> Result<Report, Failure> {
    let mut claims = Claims::default();
    let slot_created = Arc::new(AtomicBool::new(false));
    let run = Run {
        config,
        progress,
        observer,
        stop,
        slot_created: Arc::clone(&slot_created),
        began: Instant::now(),
    };
    let outcome = run.run(&mut claims);
    match outcome {
        Ok(report) => {
            claims.keep();
            Ok(report)
        }
        Err(failure) => {
            // The first failure is the cause; what this thread ran into may be its consequence.
            let failure = stop.take_reason().unwrap_or(failure);
            clean_up(config, claims, &failure, observer);
            if slot_created.load(Ordering::Acquire) && config.clean {
                drop_slot(config, observer);
            }
            Err(failure)
        }
    }
}

fn clean_up(config: &BaseBackupConfig, claims: Claims, failure: &Failure, observer: &Arc<dyn Observer>) {
    // As pg_basebackup does: data that the server found damaged is kept for a look at it.
    let keeps_evidence = matches!(failure, Failure::ServerChecksum);
    if config.clean && !keeps_evidence {
        for failure in claims.remove() {
            observer.warning(&format!("could not clean up: {failure}"));
        }
    } else {
        let made = !claims.is_empty();
        claims.keep();
        if let Some(path) = config.destination.path().filter(|_| made) {
            observer.warning(&format!("the incomplete backup in \"{}\" was not removed", path.display()));
        }
    }
}

/// Drops the slot that this run made: nobody would read from it, and the server would keep all WAL for it.
fn drop_slot(config: &BaseBackupConfig, observer: &Arc<dyn Observer>) {
    let WalMethod::Stream(SlotChoice::Named { name, create: true }) = &config.wal else { return };
    let dropped = ControlRuntime::new().map_err(|error| error.to_string()).and_then(|runtime| {
        runtime.block_on(async {
            let work = async {
                let mut session =
                    Session::connect(&config.connection, Purpose::Replication, Arc::new(|_| {}))
                        .await
                        .map_err(|error| error.to_string())?;
                let command = drop_slot_command(name, true).map_err(|error| error.to_string())?;
                session.simple_query(&command).await.map_err(|error| error.to_string())?;
                session.close().await;
                Ok(())
            };
            tokio::time::timeout(DROP_SLOT_PATIENCE, work)
                .await
                .unwrap_or_else(|_| Err("the server does not answer".into()))
        })
    });
    if let Err(error) = dropped {
        observer.warning(&format!(
            "replication slot \"{name}\" was created and could not be dropped: {error}\n\
             HINT: it makes the server keep WAL; drop it there with pg_drop_replication_slot."
        ));
    }
}

struct Run<'a> {
    config: &'a BaseBackupConfig,
    progress: &'a Arc<Progress>,
    observer: &'a Arc<dyn Observer>,
    stop: &'a Stop<Failure>,
    slot_created: Arc<AtomicBool>,
    began: Instant,
}

/// The sink, and what it takes to end what it began.
enum Outputs {
    Plain { sink: DirectorySink, base: Arc<Folder>, made: Vec<PathBuf> },
    Tar { sink: TarSink, folder: Arc<Folder> },
    Discard { sink: DiscardSink },
}

impl Outputs {
    fn sink(&mut self) -> &mut dyn Sink {
        match self {
            Outputs::Plain { sink, .. } => sink,
            Outputs::Tar { sink, .. } => sink,
            Outputs::Discard { sink } => sink,
        }
    }
}

/// The backup as the server begins it.
struct Begun {
    start: BackupPosition,
    archives: Vec<Archive>,
    stream: BulkStream,
}

/// The disk back end of the run.
struct Io {
    mode: IoMode,
    alignment: usize,
    reason: String,
}

struct Totals {
    files: u64,
    files_verified: u64,
    wal_bytes: u64,
}

/// Name of the WAL archive of a tar backup.
const WAL_ARCHIVE: &str = "pg_wal.tar";

impl Run<'_> {
    fn run(&self, claims: &mut Claims) -> Result<Report, Failure> {
        let config = self.config;
        let runtime =
            ControlRuntime::new().map_err(|error| Failure::disk("start the runtime of", "sockets", error))?;
        let (session, facts) = self.wait(&runtime, self.open_session())?;
        self.note(format_args!("connected to PostgreSQL {}", facts.version_text));
        if let Some(path) = config.destination.path() {
            claims.claim(path, facts.folder_mode)?;
        }
        let io = self.probe()?;
        let mut receiver = self.connect_wal_receiver(&facts)?;

        self.progress.enter(Phase::WaitingForCheckpoint);
        let begun = self.wait(&runtime, self.begin(session, &facts))?;
        let mut phases = Phases { start: self.seconds(), ..Phases::default() };
        let BackupPosition { lsn, timeline } = begun.start;
        self.note(format_args!("write-ahead log start point: {lsn} on timeline {timeline}"));

        let recovery = self.recovery();
        let mut outputs =
            self.make_outputs(claims, &facts, &begun.archives, recovery.as_deref(), receiver.is_some())?;
        if let Some(receiver) = &mut receiver {
            receiver.start(self.wal_writer(&outputs, &facts, begun.start)?);
        }
        let scratch = config.destination.path().map_or_else(std::env::temp_dir, Path::to_owned);
        let (end, pipeline, spool, manifest) =
            self.transfer(begun, &facts, &io, &mut outputs, &scratch, |end| {
                phases.data = self.seconds() - phases.start;
                if let Some(receiver) = &receiver {
                    receiver.stop_at(end.end.lsn);
                }
            })?;
        let settled = self.seconds();
        phases.settle = settled - phases.start - phases.data;

        self.progress.enter(Phase::WaitingForWal);
        let wal_bytes = receiver.map_or(Ok(0), WalReceiver::finish)?;
        self.check_stopped()?;
        let received_wal = self.seconds();
        phases.wal = received_wal - settled;

        self.progress.enter(Phase::Finishing);
        Self::fail_on_findings(&pipeline)?;
        let files = spool.members;
        let files_verified = manifest.map_or(Ok(0), |manifest| self.compare(manifest, spool))?;
        self.check_stopped()?;
        let has_wal_archive = matches!(config.wal, WalMethod::Stream(_));
        self.finish(outputs, claims, recovery, &facts, has_wal_archive)?;
        phases.total = self.seconds();
        phases.end = phases.total - received_wal;
        Ok(self.report(
            &facts,
            &pipeline,
            &io,
            phases,
            (lsn, &end),
            &Totals { files, files_verified, wal_bytes },
        ))
    }

    fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    fn note(&self, text: std::fmt::Arguments<'_>) {
        self.observer.note(&text.to_string());
    }

    fn check_stopped(&self) -> Result<(), Failure> {
        if self.stop.is_thrown() { Err(Failure::Stopped) } else { Ok(()) }
    }

    fn notices(&self) -> NoticeSink {
        let observer = Arc::clone(self.observer);
        Arc::new(move |notice| observer.warning(&notice.to_string()))
    }

    /// Waits for the server, but no longer than until the run is stopped.
    fn wait<T>(
        &self,
        runtime: &ControlRuntime,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        runtime.block_on(self.stop.unless_thrown(work))
    }

    async fn open_session(&self) -> Result<(Session, ServerFacts), Failure> {
        let mut session =
            Session::connect(&self.config.connection, Purpose::Replication, self.notices()).await?;
        let facts = ServerFacts::ask(&mut session, self.config).await?;
        Ok((session, facts))
    }

    /// Chooses the disk back end for the target.
    fn probe(&self) -> Result<Io, Failure> {
        let Some(path) = self.config.destination.path() else {
            return Ok(Io { mode: IoMode::Threads, alignment: 1, reason: "nothing is written".into() });
        };
        let ProbeReport { mode, reason, alignment, .. } =
            probe(path, self.config.resources.io).map_err(|error| Failure::Target(error.to_string()))?;
        self.note(format_args!("disk back end: {mode} ({reason})"));
        Ok(Io { mode, alignment, reason })
    }

    fn connect_wal_receiver(&self, facts: &ServerFacts) -> Result<Option<WalReceiver>, Failure> {
        let WalMethod::Stream(slot) = &self.config.wal else { return Ok(None) };
        let config = WalReceiverConfig {
            connection: self.config.connection.clone(),
            slot: slot.clone(),
            system_identifier: facts.system.system_identifier,
            status_interval: self.config.status_interval,
            stall_timeout: self.config.stall_timeout,
            slot_created: Arc::clone(&self.slot_created),
        };
        WalReceiver::connect(config, self.progress, self.notices(), self.stop).map(Some)
    }

    /// Sends BASE_BACKUP and waits for the checkpoint and the list of tablespaces.
    async fn begin(&self, mut session: Session, facts: &ServerFacts) -> Result<Begun, Failure> {
        let config = self.config;
        let options = BaseBackupOptions {
            label: config.label.clone(),
            progress: config.estimate_size,
            fast_checkpoint: config.fast_checkpoint,
            include_wal: config.wal == WalMethod::Fetch,
            max_rate_kb: config.max_rate_kb,
            // A plain backup has links instead, which the operator may have mapped.
            tablespace_map: matches!(config.destination, Destination::Tar { .. }),
            manifest: config.manifest,
            wait_for_archive: config.wal == WalMethod::None,
            verify_checksums: config.server_verifies_pages,
        };
        let command = options.command(facts.version).map_err(|error| Failure::Target(error.to_string()))?;
        let reply = session
            .begin_copy(&command)
            .await
            .map_err(|error| Failure::session("could not initiate base backup", error))?;
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
        Ok(Begun { start, archives: archives(&rows), stream })
    }

    fn recovery(&self) -> Option<String> {
        self.config.write_recovery_settings.then(|| {
            let slot = match &self.config.wal {
                WalMethod::Stream(SlotChoice::Named { name, .. }) => Some(name.as_str()),
                _ => None,
            };
            recovery_settings(&self.config.connection, slot)
        })
    }

    fn make_outputs(
        &self,
        claims: &mut Claims,
        facts: &ServerFacts,
        archives: &[Archive],
        recovery: Option<&str>,
        streams_wal: bool,
    ) -> Result<Outputs, Failure> {
        match &self.config.destination {
            Destination::Directory { .. } => {
                let folders = PlainFolders::make(claims, self.config, facts, archives, streams_wal)?;
                let PlainFolders { base, tablespaces, wal, expected, made } = folders;
                let sink = DirectorySink::new(Arc::clone(&base), tablespaces, wal, expected);
                Ok(Outputs::Plain { sink, base, made })
            }
            Destination::Tar { path } => {
                let folder = Folder::open(path)?;
                let recovery = recovery.map(|settings| (settings.as_bytes().to_vec(), now()));
                let sink = TarSink::new(Arc::clone(&folder), facts.file_mode, recovery);
                Ok(Outputs::Tar { sink, folder })
            }
            Destination::Discard => {
                Ok(Outputs::Discard { sink: DiscardSink::new(Folder::open(&std::env::temp_dir())?) })
            }
        }
    }

    fn wal_writer(
        &self,
        outputs: &Outputs,
        facts: &ServerFacts,
        start: BackupPosition,
    ) -> Result<SegmentWriter, Failure> {
        let destination = match outputs {
            Outputs::Plain { base, .. } => WalDestination::Folder(match &self.config.destination {
                Destination::Directory { wal_directory: Some(path), .. } => Folder::open(path)?,
                _ => base.descend(b"pg_wal")?,
            }),
            Outputs::Tar { folder, .. } => WalDestination::Tar {
                folder: Arc::clone(folder),
                name: format!("{WAL_ARCHIVE}{}", crate::sink::PARTIAL),
            },
            Outputs::Discard { .. } => unreachable!("a discarded backup has no WAL"),
        };
        let first = start.lsn.segment_start(facts.segment_size.bytes());
        let (size, mode) = (facts.segment_size, facts.file_mode);
        SegmentWriter::new(destination, size, start.timeline, first, mode, self.config.sync, now())
    }

    /// Moves all data, and returns once it is checked, written and synced. `ended` is called as soon as the
    /// server has said where the backup ends.
    fn transfer(
        &self,
        begun: Begun,
        facts: &ServerFacts,
        io: &Io,
        outputs: &mut Outputs,
        scratch: &Path,
        ended: impl FnOnce(&StreamEnd),
    ) -> Result<(StreamEnd, Pipeline, Spool, Option<File>), Failure> {
        let config = self.config;
        let pool =
            BufferPool::new(config.resources.buffers, config.resources.buffer_size).map_err(|error| {
                Failure::Target(format!(
                    "could not allocate buffers: {error}\nHINT: ask for less with --buffers."
                ))
            })?;
        let wake = pool.clone();
        self.stop.on_thrown(move || wake.close());
        let (ledger_input, arrivals) = bounded(LEDGER_QUEUE);
        let spooling = |error| Failure::disk("write a temporary file in", scratch, error);
        let ledger = Ledger::new(scratch).map_err(spooling)?;
        let ledger = thread::Builder::new()
            .name("ledger".into())
            .spawn(move || ledger.run(&arrivals))
            .map_err(|error| Failure::disk("start thread", "ledger", error))?;
        let layout = Layout {
            workers: config.resources.workers,
            writers: if matches!(outputs, Outputs::Discard { .. }) { 0 } else { config.resources.writers },
            depth: config.resources.depth,
            mode: io.mode,
            alignment: io.alignment,
            sync: config.sync,
            faults: config.resources.faults.clone(),
        };
        let algorithm = config.manifest.and_then(|manifest| manifest.checksums);
        let checks = Checks {
            algorithm: algorithm.unwrap_or(ChecksumAlgorithm::None),
            pages: config.check_pages.then_some(PageChecks { backup_start: begun.start.lsn }),
        };
        let (mut pipeline, feeder) = Pipeline::start(&layout, &pool, &checks, &ledger_input, self.stop)?;
        drop(ledger_input);
        if let Registered::No(reason) = &pipeline.registered {
            self.note(format_args!("buffers are not registered with the kernel: {reason}"));
        }

        self.progress.enter(Phase::Receiving);
        let received = self.receive(begun, facts, outputs, feeder);
        match &received {
            Ok((end, _)) => ended(end),
            Err(_) => self.stop.throw_quietly(),
        }
        self.progress.enter(Phase::Settling);
        pipeline.finish(self.stop);
        let spool = ledger
            .join()
            .map_err(|_| Failure::Target("the ledger thread panicked; this is a bug in pgstrata".into()))?;
        let (end, manifest) = received?;
        self.check_stopped()?;
        Ok((end, pipeline, spool.map_err(spooling)?, manifest))
    }

    /// Receives the stream; the manifest lies in its file then, which is returned for reading.
    fn receive(
        &self,
        begun: Begun,
        facts: &ServerFacts,
        outputs: &mut Outputs,
        feeder: Feeder,
    ) -> Result<(StreamEnd, Option<File>), Failure> {
        let typed = facts.version.major() >= FIRST_TYPED;
        let manifest = self.create_manifest(facts.file_mode)?;
        let reading = |error| Failure::disk("read", MANIFEST_TMP, error);
        let mut reader = manifest.as_ref().map(File::try_clone).transpose().map_err(reading)?;
        let Begun { archives, mut stream, .. } = begun;
        let (progress, observer) = (&**self.progress, &**self.observer);
        let source = StreamSource::new(
            typed,
            self.config.wal == WalMethod::None,
            archives,
            outputs.sink(),
            feeder,
            manifest,
            progress,
            observer,
        );
        let end = source.drive(&mut stream)?;
        stream.close();
        if let Some(reader) = &mut reader {
            reader.seek(SeekFrom::Start(0)).map_err(reading)?;
        }
        Ok((end, reader))
    }

    fn create_manifest(&self, mode: u32) -> Result<Option<File>, Failure> {
        if self.config.manifest.is_none() {
            return Ok(None);
        }
        let Some(folder) = self.config.destination.path() else {
            let scratch = std::env::temp_dir();
            let file = tempfile::tempfile_in(&scratch);
            return file
                .map(Some)
                .map_err(|error| Failure::disk("create a temporary file in", &scratch, error));
        };
        let path = folder.join(MANIFEST_TMP);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&path);
        file.map(Some).map_err(|error| Failure::disk("create file", &path, error))
    }

    fn fail_on_findings(pipeline: &Pipeline) -> Result<(), Failure> {
        let (count, kept) = pipeline.findings.take();
        if count == 0 {
            return Ok(());
        }
        Err(Failure::Verification(format!(
            "{count} pages have wrong checksums\n{}\n\
             HINT: the cluster's data is damaged; check its disks and memory, and restore these pages from an older backup.",
            listed(&kept, count)
        )))
    }

    /// Compares what arrived with the manifest. Returns how many files match.
    fn compare(&self, manifest: File, spool: Spool) -> Result<u64, Failure> {
        let (comparison, _) = compare_with_manifest(manifest, spool).map_err(|error| {
            Failure::Verification(format!("the manifest that came with the backup: {error}"))
        })?;
        if comparison.problem_count == 0 {
            return Ok(comparison.matched);
        }
        Err(Failure::Verification(format!(
            "{} files do not match the server's manifest\n{}\n\
             HINT: what arrived is not what the server read; check the network and this machine's memory, then take the backup again.",
            comparison.problem_count,
            listed(&comparison.problems, comparison.problem_count)
        )))
    }

    fn finish(
        &self,
        outputs: Outputs,
        claims: &Claims,
        recovery: Option<String>,
        facts: &ServerFacts,
        has_wal_archive: bool,
    ) -> Result<(), Failure> {
        let has_manifest = self.config.manifest.is_some();
        let sync = self.config.sync;
        match outputs {
            Outputs::Plain { sink, base, made } => {
                let mut folders = sink.into_made_folders();
                folders.extend(made);
                folders.extend(claims.parents());
                let file_mode = facts.file_mode;
                PlainEnd { base: &base.path, folders, recovery, has_manifest, file_mode, sync }.finish()
            }
            Outputs::Tar { sink, folder } => {
                let wal = has_wal_archive.then(|| folder.path.join(WAL_ARCHIVE));
                let (archives, parents) = (sink.into_names(), claims.parents());
                finish_tar(&folder.path, &archives, wal.as_deref(), &parents, has_manifest, sync)
            }
            Outputs::Discard { .. } => Ok(()),
        }
    }

    fn report(
        &self,
        facts: &ServerFacts,
        pipeline: &Pipeline,
        io: &Io,
        phases: Phases,
        (start, end): (pgstrata_protocol::Lsn, &StreamEnd),
        totals: &Totals,
    ) -> Report {
        let stages = Limit::judge(&pipeline.counters);
        let (cpu_seconds, peak_memory) = process_usage();
        let bytes = stages.lanes.bytes;
        let algorithm = self.config.manifest.and_then(|manifest| manifest.checksums);
        Report {
            path: self.config.destination.path().map(Path::to_owned),
            format: match self.config.destination {
                Destination::Directory { .. } => "plain",
                Destination::Tar { .. } => "tar",
                Destination::Discard => "discard",
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
            durable: self.config.sync && !matches!(self.config.destination, Destination::Discard),
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

/// The first version that sends all archives in one typed copy (`basebackup_copy.c`).
const FIRST_TYPED: u32 = 15;

#[expect(clippy::cast_precision_loss, reason = "a rate for people; 53 bits of bytes are 9 PB")]
fn per_second(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 }
}

fn listed(problems: &[String], count: u64) -> String {
    let mut text = problems.join("\n");
    let more = count.saturating_sub(problems.len() as u64);
    if more > 0 {
        text += &format!("\n… and {more} more");
    }
    text
}

/// Seconds since 1970, for tar members of our own.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
