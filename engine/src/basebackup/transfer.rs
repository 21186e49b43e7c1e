//! The time in which data flows: the pipeline started, fed from the stream, and settled.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use crossbeam::channel::bounded;
use pgstrata_protocol::manifest::ChecksumAlgorithm;
use pgstrata_protocol::replication::BackupPosition;

use super::config::{Destination, WalMethod};
use super::finish::MANIFEST_TMP;
use super::outputs::Outputs;
use super::prepare::ServerFacts;
use super::progress::Phase;
use super::run::{Begun, Io, Run};
use crate::buffer::BufferPool;
use crate::failure::Failure;
use crate::pipeline::{Checks, Compression, Feeder, Layout, Pipeline};
use crate::ring::Registered;
use crate::source::{ExpectedStream, StreamEnd, StreamSource};
use crate::verify::{ContentChecks, Ledger, PageChecks, Spool, WalStart};

/// Members on their way to the ledger.
const LEDGER_QUEUE: usize = 1024;
/// Buffers on either side of compression, at least.
const LEAST_BEHIND: usize = 8;
/// The first version that sends all archives in one typed copy (`basebackup_copy.c`).
const FIRST_TYPED: u32 = 15;

/// What a transfer leaves for the judgement.
pub(super) struct Transferred {
    pub(super) end: StreamEnd,
    pub(super) pipeline: Pipeline,
    pub(super) spool: Spool,
    /// The manifest, to be read from its beginning.
    pub(super) manifest: Option<File>,
}

/// Standard output, past the buffer that Rust keeps before it.
fn standard_output() -> Result<Arc<File>, Failure> {
    let owned = io::stdout().as_fd().try_clone_to_owned();
    owned
        .map(|owned| Arc::new(File::from(owned)))
        .map_err(|error| Failure::disk("open", "standard output", error))
}

impl Run<'_> {
    /// Moves all data, and returns once it is checked, written and synced. `ended` is called as soon as the
    /// server has said where the backup ends.
    pub(super) fn transfer(
        &self,
        begun: Begun,
        facts: &ServerFacts,
        io: &Io,
        outputs: &mut Outputs,
        scratch: &Path,
        ended: impl FnOnce(&StreamEnd),
    ) -> Result<Transferred, Failure> {
        let config = self.config;
        let (buffers, compression) = self.compression();
        let pool = BufferPool::new(buffers, config.resources.buffer_size).map_err(|error| {
            Failure::Target(format!(
                "could not allocate buffers: {error}\nHINT: ask for less with --buffers."
            ))
        })?;
        let wake = pool.clone();
        self.stop.on_thrown(move || wake.close());
        let (ledger_input, arrivals) = bounded(LEDGER_QUEUE);
        let spooling = |error| Failure::disk("write a temporary file in", scratch, error);
        let ledger = Ledger::new(scratch).map_err(spooling)?;
        let (switch, place) = (self.stop.clone(), scratch.to_owned());
        let ledger = thread::Builder::new()
            .name("ledger".into())
            .spawn(move || {
                let _told = switch.tell_of_panics("the ledger");
                match ledger.run(&arrivals) {
                    Ok(spool) => Some(spool),
                    Err(error) => {
                        switch.throw(Failure::disk("write a temporary file in", place, error));
                        None
                    }
                }
            })
            .map_err(|error| Failure::disk("start thread", "ledger", error))?;
        let layout = Layout {
            workers: config.resources.workers,
            writers: if matches!(outputs, Outputs::Discard { .. }) { 0 } else { config.resources.writers },
            stream: matches!(outputs, Outputs::Stdout { .. }).then(standard_output).transpose()?,
            depth: config.resources.depth,
            mode: io.mode,
            alignment: io.alignment,
            sync: config.syncs_each_file(),
            compression,
            packing: match outputs {
                Outputs::Repository(writing) => Some(writing.packing(self.buffers_behind())),
                _ => None,
            },
            faults: config.resources.faults.clone(),
        };
        let algorithm = config.manifest.and_then(|manifest| manifest.checksums);
        let checks = Checks {
            algorithm: algorithm.unwrap_or(ChecksumAlgorithm::None),
            content: ContentChecks {
                pages: config.check_pages.then_some(PageChecks { backup_start: begun.start.lsn }),
                incremental: facts.incremental,
                wal: (config.wal == WalMethod::Fetch).then(|| WalStart {
                    origin: facts.wal_origin(begun.start.timeline),
                    first_record: begun.start.lsn,
                }),
            },
        };
        let (mut pipeline, feeder) = Pipeline::start(&layout, &pool, &checks, &ledger_input, self.stop)?;
        drop(ledger_input);
        if let Registered::No(reason) = &pipeline.registered {
            self.note(format_args!("buffers are not registered with the kernel: {reason}"));
        }

        self.enter(Phase::Receiving);
        let received = match self.receive(begun, facts, outputs, feeder) {
            // All data has come, and is kept for a look at it: it is to be written out like any other.
            Err(Failure::ServerChecksum) => Err(Failure::ServerChecksum),
            Err(Failure::Stopped) => {
                self.stop.throw_quietly();
                Err(Failure::Stopped)
            }
            Err(failure) => {
                self.stop.throw(failure);
                Err(Failure::Stopped)
            }
            Ok(received) => {
                ended(&received.0);
                Ok(received)
            }
        };
        self.enter(Phase::Settling);
        pipeline.finish();
        let spool = ledger.join().ok().flatten();
        let (end, manifest) = received?;
        self.check_stopped()?;
        let spool = spool.ok_or(Failure::Stopped)?;
        Ok(Transferred { end, pipeline, spool, manifest })
    }

    /// How many buffers the data arrives in, and what compression gets. Half of the memory each; every lane can hold
    /// one buffer of compressed bytes, and then some are to be on their way.
    fn compression(&self) -> (usize, Option<Compression>) {
        let resources = &self.config.resources;
        let half = (resources.buffers / 2).max(LEAST_BEHIND);
        match self.config.client_compression() {
            None if matches!(self.config.destination, Destination::Repository(_)) => (half, None),
            None => (resources.buffers, None),
            Some(spec) => {
                let buffers = self.buffers_behind();
                (half, Some(Compression { spec, threads: resources.compressors, buffers }))
            }
        }
    }

    /// The first half where a reader for each lane fills it: each may hold one buffer and wait for another.
    pub(super) fn buffers_before(&self) -> usize {
        let resources = &self.config.resources;
        (resources.buffers / 2).max(2 * resources.workers + LEAST_BEHIND)
    }

    /// The other half.
    pub(super) fn buffers_behind(&self) -> usize {
        let resources = &self.config.resources;
        (resources.buffers / 2).max(resources.workers + LEAST_BEHIND)
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
        let Begun { start, archives, mut stream } = begun;
        let (progress, observer) = (&**self.progress, &**self.observer);
        let may_wait = self.config.waits_for_archive();
        let compression = self.config.arrives_compressed();
        let expected = ExpectedStream { typed, compression, may_wait, tablespaces: archives, manifest };
        let mut source = StreamSource::new(expected, outputs.sink(), feeder, progress, observer);
        let end = match source.drive(&mut stream) {
            Ok(end) => end,
            Err(failure @ (Failure::Stopped | Failure::ServerChecksum)) => return Err(failure),
            Err(failure) => {
                // Before the source goes, and the ledger finds the same disk full.
                self.stop.throw(failure);
                return Err(Failure::Stopped);
            }
        };
        if end.end.lsn < start.lsn || end.end.timeline < start.timeline {
            let BackupPosition { lsn, timeline } = end.end;
            let why = format!(
                "found {lsn} on timeline {timeline}, expected nothing before {} on timeline {}",
                start.lsn, start.timeline
            );
            return Err(Failure::stream("the backup's end", &why));
        }
        stream.close();
        if let Some(reader) = &mut reader {
            reader.seek(SeekFrom::Start(0)).map_err(reading)?;
        }
        Ok((end, reader))
    }
}
