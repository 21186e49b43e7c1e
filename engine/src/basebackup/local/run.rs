//! A run that reads a data directory, from the proof that it is the right one to the commit.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use pgstrata_protocol::control::ControlFile;
use pgstrata_protocol::page::{PAGE_SIZE, SEGMENT_BLOCKS};
use pgstrata_protocol::replication::BackupPosition;
use pgstrata_protocol::wal::WalChecker;

use super::super::config::{Destination, WalMethod};
use super::super::outputs::Outputs;
use super::super::prepare::ServerFacts;
use super::super::progress::Phase;
use super::super::report::{Phases, Report};
use super::super::run::{Run, Totals};
use super::super::target::Claims;
use super::basis::{BasisFacts, Chosen};
use super::held::{Held, SqlFacts};
use super::proof::Examined;
use super::transfer::{Job, Moved};
use crate::connect::ControlRuntime;
use crate::failure::Failure;
use crate::pipeline::{Folder, Limit, LimitedBy};
use crate::sink::Archive;
use crate::source::StreamEnd;
use crate::source::local::{ReadAccess, Rules, tablespaces};
use crate::tracking::{Planner, Tally, identity};
use crate::wal::WalReceiver;

impl Run<'_> {
    pub(super) fn run_local(&self, data_directory: &Path, claims: &mut Claims) -> Result<Report, Failure> {
        let config = self.config;
        let (Destination::Repository(destination), WalMethod::Stream(_)) = (&config.destination, &config.wal)
        else {
            return Err(Failure::Target(
                "a data directory is backed up into a repository, with streamed WAL".into(),
            ));
        };
        let examined = Examined::of(data_directory)?;
        let runtime =
            ControlRuntime::new().map_err(|error| Failure::disk("start the runtime of", "sockets", error))?;
        let (session, facts) = self.wait(&runtime, self.open_session())?;
        runtime.block_on(session.close());
        self.note(format_args!("connected to PostgreSQL {}", facts.version_text));
        // Functions of the whole server are in every database.
        let connection = config.connection.clone().or_database("postgres");
        let connecting = Held::connect(&connection, self.notices(), config.stall_timeout);
        let mut held = self.wait(&runtime, connecting)?;
        let sql = self.wait(&runtime, async {
            let sql = held.facts().await?;
            examined.compare(&sql, &held.control().await?)?;
            held.check_privileges().await?;
            Ok(sql)
        })?;
        let system = facts.system.system_identifier;
        if system != examined.control.system_identifier {
            return Err(Failure::Target(format!(
                "the replication connection leads to system {system}, the SQL connection to {}\n\
                 HINT: both have to lead to the server whose data directory --pgdata is.",
                examined.control.system_identifier
            )));
        }
        destination.repository.check_identity(&destination.cluster, system)?;
        let checks_pages = self.checks_pages(&examined.control)?;
        let io = self.probe()?;
        let access = ReadAccess::choose(&examined.data_directory, config.resources.io)?;
        self.note(format_args!("reading \"{}\": {}", examined.data_directory.display(), access.reason));
        let mut receiver = self.connect_wal_receiver(&facts)?;

        self.enter(Phase::WaitingForCheckpoint);
        self.note(format_args!("initiating base backup, waiting for checkpoint to complete"));
        let lsn = self.wait(&runtime, held.start(&config.label, config.fast_checkpoint))?;
        let control = self.wait(&runtime, examined.compare_control(&mut held))?;
        let start = BackupPosition { lsn, timeline: control.timeline };
        let mut phases = Phases { start: self.seconds(), ..Phases::default() };
        self.note(format_args!("checkpoint completed"));
        self.note(format_args!("write-ahead log start point: {lsn} on timeline {}", start.timeline));

        let base = Folder::open(&examined.data_directory)?;
        let (archives, inside) =
            tablespaces(&base, &examined.postmaster.data_directory, facts.version.major())?;
        let mut outputs = self.make_outputs(claims, &facts, &archives, None, true)?;
        if let Some(receiver) = &mut receiver {
            let writer = self.wal_writer(&outputs, &facts, start)?;
            self.note(format_args!("starting background WAL receiver"));
            receiver.start(writer, WalChecker::new(facts.wal_origin(start.timeline), lsn));
        }
        let Outputs::Repository(writing) = &mut outputs else {
            unreachable!("the destination is a repository");
        };
        let rules = Rules {
            version_folder: version_folder(&facts, &control),
            statistics: statistics_folder(&sql, &examined),
            inside,
            wal_folders: Rules::wal_folders_of(facts.version.major()),
            folder_mode: facts.folder_mode,
        };
        let basis = BasisFacts {
            destination,
            control: &control,
            segment_size: facts.segment_size,
            data_directory: &examined.data_directory,
            identity: identity(&examined.data_directory),
        };
        let Chosen { over, mut summary } = self.choose_basis(&runtime, start, &basis, writing)?;
        summary.data_directory = basis.identity;
        let tally = Arc::new(Tally::default());
        let base_backup = over.as_ref().map(|(parent, _)| Arc::clone(&parent.base));
        let places = |archive: &Archive| match archive.tablespace {
            None => "base".to_owned(),
            Some(oid) => format!("pg_tblspc/{oid}/{}", String::from_utf8_lossy(&rules.version_folder)),
        };
        let places = archives.iter().map(places).collect();
        let plan = |(parent, changes)| {
            Planner::new(&parent, changes, examined.data_directory.clone(), places, &tally)
        };
        let planner = over.map(plan).transpose()?;
        let reason = format!("{}; reading: {}", io.reason, access.reason);
        let job = Job {
            base: &base,
            archives: &archives,
            rules,
            access,
            start,
            checks_pages,
            in_recovery: sql.in_recovery,
            planner,
            base_backup,
            tally: Arc::clone(&tally),
        };
        let moved = self.transfer_local((&runtime, &mut held), job, &facts, &io, writing, |end| {
            phases.data = self.seconds() - phases.start;
            if let Some(receiver) = &receiver {
                receiver.stop_at(end.lsn);
            }
        })?;
        runtime.block_on(held.close());
        let Moved { end, pipeline, counters, manifest, files } = moved;
        let settled = self.seconds();
        phases.settle = settled - phases.start - phases.data;

        self.enter(Phase::WaitingForWal);
        self.note(format_args!("write-ahead log end point: {}", end.lsn));
        self.note(format_args!("waiting for background process to finish streaming ..."));
        let wal_bytes = receiver.map_or(Ok(0), WalReceiver::finish)?;
        self.check_stopped()?;
        let received_wal = self.seconds();
        phases.wal = received_wal - settled;

        self.enter(Phase::Finishing);
        Self::fail_on_findings(&pipeline)?;
        let Outputs::Repository(mut writing) = outputs else { unreachable!("as above") };
        tally.note(&mut summary);
        writing.changes = Some(summary.clone());
        let stored = self.commit(*writing, &facts, &io, [start, end], files, manifest)?;
        phases.total = self.seconds();
        phases.end = phases.total - received_wal;
        let passed = Limit::judge(&counters).lanes.bytes;
        let bytes = passed + summary.kept_bytes;
        let totals = Totals { files, bytes, files_verified: 0, wal_bytes, stored: Some(stored) };
        let mut report = self.report(&facts, &counters, &io, phases, (lsn, &StreamEnd { end }), &totals);
        report.pages_checked = checks_pages;
        report.io_reason = reason;
        // What the feeder of a stream waits for is the server; readers wait for their disks, or for the time to go on.
        let waited = match report.stages.of_readers(counters.compresses) {
            LimitedBy::Read if self.kept_to_rate(passed, phases.data) => LimitedBy::Rate,
            by => by,
        };
        for by in [&mut report.limited_by, &mut report.stages.by] {
            if matches!(by, LimitedBy::ServerSend | LimitedBy::Receive) {
                *by = waited;
            }
        }
        Ok(report)
    }

    /// Whether the data came about as fast as it was asked to.
    #[expect(clippy::cast_precision_loss, reason = "53 bits of bytes are 9 PB")]
    fn kept_to_rate(&self, bytes: u64, seconds: f64) -> bool {
        let rate = self.config.max_rate_kb.map(|rate| f64::from(rate) * 1024.0);
        rate.is_some_and(|rate| bytes as f64 >= rate * seconds * 0.8)
    }

    /// Whether pages carry checksums that are to be checked.
    fn checks_pages(&self, control: &ControlFile) -> Result<bool, Failure> {
        let wanted = self.config.server_verifies_pages && control.data_checksum_version != 0;
        let found = (control.block_size, control.segment_blocks);
        if wanted && found != (u32::try_from(PAGE_SIZE).unwrap_or(0), SEGMENT_BLOCKS) {
            return Err(Failure::Target(format!(
                "page checksums are checked of pages of {PAGE_SIZE} bytes in segments of {SEGMENT_BLOCKS}, the cluster \
                 has pages of {} bytes in segments of {}\n\
                 HINT: --no-verify-checksums takes the backup without looking; --source stream has the server look.",
                found.0, found.1
            )));
        }
        Ok(wanted)
    }
}

/// `TABLESPACE_VERSION_DIRECTORY` (`common/relpath.h`).
fn version_folder(facts: &ServerFacts, control: &ControlFile) -> Vec<u8> {
    format!("PG_{}_{}", facts.version.major(), control.catalog_version).into_bytes()
}

/// Where a server up to 14 keeps its statistics, relative to the data directory, if it does so there.
fn statistics_folder(sql: &SqlFacts, examined: &Examined) -> Option<Vec<u8>> {
    let folder = sql.statistics.as_deref()?;
    let relative = match folder.strip_prefix(b"/") {
        None => folder,
        Some(_) => {
            let below = folder.strip_prefix(&examined.postmaster.data_directory[..])?;
            below.strip_prefix(b"/")?
        }
    };
    let path = Path::new(OsStr::from_bytes(relative));
    // As canonicalize_path leaves it.
    let parts: Vec<_> =
        path.components().map(|part| part.as_os_str().as_bytes()).filter(|part| *part != b".").collect();
    Some(parts.join(&b'/'))
}
