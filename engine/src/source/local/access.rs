//! How the files of a data directory are read, chosen by trying it on one that every cluster has.
//!
//! Nothing is written there: whoever runs this may only be allowed to read. Reading past the page cache (`O_DIRECT`)
//! works with plain threads too, for machines and containers that forbid `io_uring`.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::CWD;

use crate::buffer::{BufferPool, PAGE};
use crate::failure::Failure;
use crate::ring::{DiskFile, IoMode, Operation, OperationKind, open_disk};

/// The file that is tried.
const TRIED: &str = "PG_VERSION";

/// A way to read.
#[derive(Clone, Debug)]
pub(crate) struct ReadAccess {
    /// The back end.
    pub(crate) disk: IoMode,
    /// How files are opened.
    pub(crate) files: IoMode,
    /// Why that one.
    pub(crate) reason: String,
}

/// A back end, how files are opened for it, and what that is called.
type Way = (IoMode, IoMode, &'static str);
const WAYS: [Way; 4] = [
    (IoMode::Direct, IoMode::Direct, "direct I/O through io_uring"),
    (IoMode::Threads, IoMode::Direct, "direct I/O by plain threads"),
    (IoMode::Uncached, IoMode::Uncached, "uncached I/O (RWF_DONTCACHE) through io_uring"),
    (IoMode::Threads, IoMode::Threads, "plain threads through the page cache"),
];

impl ReadAccess {
    /// The first way that works in the data directory, of those that the back end `wanted` has.
    pub(crate) fn choose(data_directory: &Path, wanted: Option<IoMode>) -> Result<Self, Failure> {
        Self::by_trying(&data_directory.join(TRIED), wanted)
    }

    /// The first way that works with a file that is not written to meanwhile, of those that the back end `wanted` has.
    pub(crate) fn by_trying(path: &Path, wanted: Option<IoMode>) -> Result<Self, Failure> {
        let mut refusals = Vec::new();
        for (disk, files, name) in
            WAYS.into_iter().filter(|(disk, ..)| wanted.is_none_or(|wanted| *disk == wanted))
        {
            match try_way(path, disk, files) {
                Ok(()) if refusals.is_empty() => return Ok(Self { disk, files, reason: name.to_owned() }),
                Ok(()) => {
                    return Ok(Self { disk, files, reason: format!("{name} ({})", refusals.join("; ")) });
                }
                Err(reason) => refusals.push(reason),
            }
        }
        Err(Failure::Target(format!(
            "could not read \"{}\": {}\nHINT: leave --io out to take what works there, or use --io=threads.",
            path.display(),
            refusals.join("; ")
        )))
    }
}

fn try_way(path: &Path, disk: IoMode, files: IoMode) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        let error = error.to_string();
        format!("{disk}: {what}: {}", error.lines().next().unwrap_or_default())
    };
    let mut expected = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(PAGE as u64).read_to_end(&mut expected));
    opened.map_err(|error| failed("reading", &error))?;
    let file = DiskFile::open_read(CWD, path, files).map_err(|error| failed("opening", &error))?;
    if files == IoMode::Direct && !file.is_direct() {
        return Err(failed("opening", &"O_DIRECT refused by the file system"));
    }
    let size = PAGE.max(file.alignment());
    let pool =
        BufferPool::new(1, size.next_multiple_of(PAGE)).map_err(|error| failed("allocating", &error))?;
    let (mut ring, _) = open_disk(disk, 1, size, None).map_err(|error| failed("opening", &error))?;
    let buffer = pool.take().ok_or("no buffer")?;
    let kind = OperationKind::Read { buffer, offset: 0, length: size };
    let operation = Operation { token: 0, file: Arc::new(file), kind };
    ring.submit(operation).map_err(|_| failed("reading", &"the queue is full"))?;
    let mut done = Vec::new();
    while done.is_empty() {
        ring.reap(true, &mut done).map_err(|error| failed("reading", &error))?;
    }
    let completion = done.pop().ok_or("no completion")?;
    completion.result.map_err(|error| failed("reading", &error))?;
    let read = completion.buffer.ok_or("no buffer came back")?;
    if read.as_slice().get(..expected.len()) == Some(&expected[..]) {
        Ok(())
    } else {
        Err(failed("reading", &"other bytes than through the cache"))
    }
}
