//! The way of the data: feeder → worker lanes → writers, over bounded lock-free queues.
//!
//! ```text
//! source ─► Feeder ─► lane 0..W (checksum, page check) ─► writer 0..N (ring: write, sync)
//!             ▲            └─► ledger of arrived members        │
//!             └──────────── free buffers (BufferPool) ◄─────────┘
//! ```
//! Compression on this side stands between a lane's checks and the writers, with buffers of its own behind it.
//! Memory is the pool and the queues' capacities; both are fixed at start-up. Every stage can be widened,
//! and none takes a lock that another holds while data passes.

mod chunk;
mod compress;
mod feeder;
mod files;
mod findings;
mod lane;
mod limits;
mod mouths;
mod pack;
mod stage;
mod stream_writer;
mod upload_writer;
mod writer;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Sender, bounded};

pub use chunk::{Folder, Member, Output};
pub use compress::{Compression, gzip_level};
pub use feeder::Feeder;
pub use files::{FileSender, FileWriters};
pub use findings::Findings;
pub use lane::Checks;
pub use limits::{Limit, LimitedBy};
pub use mouths::{LaneMouth, LargeFile};
pub use pack::Packing;
pub use stage::{Spent, StageClock, StageCounters, StageTimes};

use crate::buffer::BufferPool;
use crate::failure::Failure;
use crate::ring::{FaultPlan, IoMode, Registered, open_disk, open_faulty_disk};
use crate::stop::Stop;
use crate::verify::ArrivedMember;
use compress::Compressors;
use lane::Lane;
use pack::FramePacker;
use stream_writer::StreamWriter;
use upload_writer::{UploadWriter, buffers_for};
use writer::{Writer, WriterHandle};

/// How a pipeline is laid out.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Worker lanes.
    pub workers: usize,
    /// Writers, each with a ring of its own; 0 discards the data once it is checked.
    pub writers: usize,
    /// Operations that each writer keeps with the device.
    pub depth: usize,
    /// A file that is open already and takes the only output, in place of writers of files.
    pub stream: Option<Arc<File>>,
    /// The disk back end.
    pub mode: IoMode,
    /// What direct I/O has to be aligned to, as the probe found it.
    pub alignment: usize,
    /// Whether files are synced before they count as finished.
    pub sync: bool,
    /// How everything that is written is compressed, if it is.
    pub compression: Option<Compression>,
    /// How everything is packed into a repository, if it is; outputs are cut into frames then.
    pub packing: Option<Packing>,
    /// What the disks are to do wrong, in tests.
    pub faults: Option<FaultPlan>,
}

/// A running pipeline, without its feeder.
#[derive(Debug)]
pub struct Pipeline {
    threads: Vec<JoinHandle<()>>,
    /// The counters of each stage's threads.
    pub counters: Counters,
    /// What the workers found wrong with the data.
    pub findings: Arc<Findings>,
    /// Whether the rings have the buffers registered.
    pub registered: Registered,
}

/// The counters of all threads of the pipeline.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// The feeding thread: receive and decode.
    pub feeder: Arc<StageCounters>,
    /// The worker lanes.
    pub lanes: Vec<Arc<StageCounters>>,
    /// The writers.
    pub writers: Vec<Arc<StageCounters>>,
    /// Whether the lanes compress.
    pub compresses: bool,
}

impl Pipeline {
    /// Starts the threads. `ledger` gets every member once its last byte has passed the workers.
    pub fn start(
        layout: &Layout,
        pool: &BufferPool,
        checks: &Checks,
        ledger: &Sender<ArrivedMember>,
        stop: &Stop<Failure>,
    ) -> Result<(Pipeline, Feeder), Failure> {
        let mut threads = Vec::new();
        let lanes = layout.workers.max(1);
        let findings = Arc::new(Findings::default());
        let fresh = |count| (0..count).map(|_| Arc::new(StageCounters::default())).collect::<Vec<_>>();
        let counters = Counters {
            feeder: Arc::default(),
            lanes: fresh(lanes),
            writers: fresh(if layout.stream.is_some() { 1 } else { layout.writers }),
            compresses: layout.compression.is_some() || layout.packing.is_some(),
        };
        let compressors = match &layout.compression {
            None => None,
            Some(compression) => {
                Some(Compressors::start(compression, pool.buffer_size(), &mut threads, stop)?)
            }
        };
        let packed = match &layout.packing {
            None => None,
            Some(packing) => {
                let uploads = packing.uploads.as_ref();
                let least = uploads.map_or(0, |uploads| buffers_for(&**uploads, lanes, pool.buffer_size()));
                let packed = BufferPool::new(packing.buffers.max(least), pool.buffer_size());
                let packed = packed.map_err(|error| Failure::disk("allocate", "buffers", error))?;
                let wake = packed.clone();
                stop.on_thrown(move || wake.close());
                Some(packed)
            }
        };
        let written = packed.as_ref().or(compressors.as_ref().map(Compressors::pool)).unwrap_or(pool);

        let (writers, registered) = start_writers(layout, written, &counters.writers, &mut threads, stop)?;

        let mut lanes = Vec::new();
        for (number, counters) in counters.lanes.iter().enumerate() {
            let (input, output) = bounded((pool.count() / 2).max(1));
            let packer = match layout.packing.clone() {
                Some(packing) => Some(FramePacker::new(packing, written.clone())?),
                None => None,
            };
            let lane = Lane {
                input: output,
                writers: writers.clone(),
                ledger: ledger.clone(),
                checks: checks.clone(),
                compressors: compressors.clone(),
                packer,
                findings: Arc::clone(&findings),
                stop: stop.clone(),
                clock: StageClock::start(Arc::clone(counters)),
            };
            let switch = stop.clone();
            threads.push(spawn(format!("check-{number}"), move || {
                let _told = switch.tell_of_panics("a worker lane");
                lane.run();
            })?);
            lanes.push(input);
        }

        let clock = StageClock::start(Arc::clone(&counters.feeder));
        let feeder = Feeder::new(pool.clone(), lanes, writers.len(), checks.content.wal.is_some(), clock);
        Ok((Pipeline { threads, counters, findings, registered }, feeder))
    }

    /// Waits until everything that was fed is checked, written and synced. The feeder must be gone by now.
    pub fn finish(&mut self) {
        for thread in self.threads.drain(..) {
            // A thread that panicked has thrown the switch.
            let _ = thread.join();
        }
    }
}

/// Starts the writers, each with a ring of its own over the buffers of `pool`.
fn start_writers(
    layout: &Layout,
    pool: &BufferPool,
    counters: &[Arc<StageCounters>],
    threads: &mut Vec<JoinHandle<()>>,
    stop: &Stop<Failure>,
) -> Result<(Vec<WriterHandle>, Registered), Failure> {
    let mut writers = Vec::new();
    let mut registered = Registered::Yes;
    for (number, counters) in counters.iter().enumerate() {
        let (input, output) = bounded(layout.depth);
        let (opened, wait_opened) = bounded(1);
        let (layout, pool, stop) = (layout.clone(), pool.clone(), stop.clone());
        let clock = StageClock::start(Arc::clone(counters));
        if let Some(uploads) = layout.packing.as_ref().and_then(|packing| packing.uploads.clone()) {
            let writer = UploadWriter::new(output, uploads, stop.clone(), clock);
            threads.push(spawn(format!("write-{number}"), move || {
                let _told = stop.tell_of_panics("a writer");
                writer.run();
            })?);
            registered = Registered::No("uploads take no registered buffers".into());
            writers.push(WriterHandle { input, doorbell: None });
            continue;
        }
        if let Some(file) = &layout.stream {
            let writer = StreamWriter::new(output, Arc::clone(file), stop.clone(), clock)
                .map_err(|error| Failure::disk("prepare to write to", "standard output", error))?;
            threads.push(spawn(format!("write-{number}"), move || {
                let _told = stop.tell_of_panics("a writer");
                writer.run();
            })?);
            registered = Registered::No("a stream takes no registered buffers".into());
            writers.push(WriterHandle { input, doorbell: None });
            continue;
        }
        let thread = spawn(format!("write-{number}"), move || {
            let _told = stop.tell_of_panics("a writer");
            // A ring belongs to the thread that made it.
            let Layout { mode, depth, alignment, .. } = layout;
            let opened_disk = match &layout.faults {
                None => open_disk(mode, depth, alignment, Some(&pool)),
                Some(plan) => open_faulty_disk(mode, depth, alignment, Some(&pool), plan),
            };
            match opened_disk {
                Ok((disk, registered)) => {
                    // The starter waits for this message; it cannot be gone.
                    let _ = opened.send(Ok((disk.doorbell(), registered)));
                    Writer::new(output, disk, layout.sync, stop, clock).run();
                }
                Err(error) => {
                    let _ = opened.send(Err(Failure::Target(error.to_string())));
                }
            }
        })?;
        threads.push(thread);
        let died = || Failure::Target("a writer thread died while it opened its ring".into());
        let (doorbell, registration) = wait_opened.recv().map_err(|_| died())??;
        if let Registered::No(_) = registration {
            registered = registration;
        }
        writers.push(WriterHandle { input, doorbell: Some(doorbell) });
    }
    Ok((writers, registered))
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.finish();
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failure> {
    let path = Path::new(&name).to_owned();
    thread::Builder::new().name(name).spawn(run).map_err(|error| Failure::disk("start thread", path, error))
}
