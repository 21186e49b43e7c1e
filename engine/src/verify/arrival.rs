//! Verification on arrival: what the workers saw, compared with the server's manifest.
//!
//! The server lists files in its manifest in the order in which it sent them. So the arrivals are spooled in
//! order to a temporary file and both lists are read side by side: memory does not grow with files. Where the
//! orders part, a bounded window tells what is missing and what is extra.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crossbeam::channel::Receiver;
use pgstrata_protocol::manifest::{
    ChecksumAlgorithm, ChecksumValue, ManifestError, ManifestEvent, ManifestFile, ManifestSummary,
    read_manifest,
};
use pgstrata_protocol::{Lsn, TimelineId};

/// How far ahead the arrivals are searched for a file that the manifest names next.
const WINDOW: usize = 4096;
/// Of more problems than this only the number is kept.
const KEPT_PROBLEMS: usize = 100;
/// No path in a cluster is longer (`MAXPGPATH` is 1024).
const MAX_PATH: usize = 8192;

/// A member that has passed the workers whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrivedMember {
    /// Its place in the order of arrival.
    pub sequence: u64,
    /// Its path as the manifest names it.
    pub path: Vec<u8>,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last modified, in seconds since 1970.
    pub modified: u64,
    /// Its checksum, by the run's algorithm.
    pub checksum: ChecksumValue,
}

/// Puts arrivals back in order and spools them.
#[derive(Debug)]
pub struct Ledger {
    spool: BufWriter<File>,
    next: u64,
    /// Members that overtook an earlier one; at most as many as are in flight.
    early: BTreeMap<u64, ArrivedMember>,
}

/// The ordered arrivals of a run.
#[derive(Debug)]
pub struct Spool {
    file: File,
    /// How many members arrived.
    pub members: u64,
}

impl Ledger {
    /// A ledger that spools to an unnamed file in `folder`.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let spool = BufWriter::with_capacity(256 << 10, tempfile::tempfile_in(folder)?);
        Ok(Self { spool, next: 0, early: BTreeMap::new() })
    }

    /// Takes arrivals until every sender is gone.
    pub fn run(mut self, arrivals: &Receiver<ArrivedMember>) -> io::Result<Spool> {
        for member in arrivals {
            self.early.insert(member.sequence, member);
            while let Some(member) = self.early.remove(&self.next) {
                write_record(&mut self.spool, &member)?;
                self.next += 1;
            }
        }
        let mut file = self.spool.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Spool { file, members: self.next })
    }
}

fn write_record(spool: &mut impl Write, member: &ArrivedMember) -> io::Result<()> {
    let long = |_| io::Error::other("a path of more than 8192 bytes");
    let path = u16::try_from(member.path.len()).map_err(long)?;
    let checksum = member.checksum.as_bytes();
    spool.write_all(&path.to_le_bytes())?;
    spool.write_all(&[u8::try_from(checksum.len()).map_err(long)?])?;
    spool.write_all(&member.size.to_le_bytes())?;
    spool.write_all(&member.path)?;
    spool.write_all(checksum)
}

#[derive(Debug)]
struct Record {
    path: Vec<u8>,
    size: u64,
    checksum: Vec<u8>,
}

struct Records {
    spool: BufReader<File>,
    left: u64,
    window: VecDeque<Record>,
}

impl Records {
    /// Makes sure that the window holds more than `index` records, as far as there are any.
    fn fill(&mut self, index: usize) -> io::Result<()> {
        while self.window.len() <= index && self.left > 0 {
            let mut head = [0; 11];
            self.spool.read_exact(&mut head)?;
            let [path_low, path_high, checksum, size @ ..] = head;
            let mut path = vec![0; usize::from(u16::from_le_bytes([path_low, path_high])).min(MAX_PATH)];
            self.spool.read_exact(&mut path)?;
            let mut sum = vec![0; usize::from(checksum)];
            self.spool.read_exact(&mut sum)?;
            self.window.push_back(Record { path, size: u64::from_le_bytes(size), checksum: sum });
            self.left -= 1;
        }
        Ok(())
    }
}

/// What came of comparing arrivals with the manifest.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Files that match.
    pub matched: u64,
    /// Files that do not, or are missing or extra.
    pub problem_count: u64,
    /// The first of them in words.
    pub problems: Vec<String>,
    /// The first byte of WAL that the manifest says the backup needs, and its timeline.
    pub wal_start: Option<(Lsn, TimelineId)>,
    /// The byte behind the last, and its timeline.
    pub wal_end: Option<(Lsn, TimelineId)>,
}

impl Comparison {
    fn problem(&mut self, path: &[u8], what: std::fmt::Arguments<'_>) {
        self.problem_count += 1;
        if self.problems.len() < KEPT_PROBLEMS {
            let path = Path::new(std::ffi::OsStr::from_bytes(path)).display();
            self.problems.push(format!("\"{path}\": {what}"));
        }
    }
}

/// Reads the manifest beside the spool.
pub fn compare_with_manifest(
    manifest: impl Read,
    spool: Spool,
    algorithm: ChecksumAlgorithm,
) -> Result<(Comparison, ManifestSummary), ManifestError<io::Error>> {
    let mut records = Records {
        spool: BufReader::with_capacity(256 << 10, spool.file),
        left: spool.members,
        window: VecDeque::new(),
    };
    let mut comparison = Comparison::default();
    let summary = read_manifest(manifest, &mut |event| match event {
        ManifestEvent::File(file) => compare_file(&mut records, &file, algorithm, &mut comparison),
        ManifestEvent::WalRange { start, end, timeline } => {
            let (start, end) = ((start, timeline), (end, timeline));
            comparison.wal_start = Some(comparison.wal_start.map_or(start, |first| first.min(start)));
            comparison.wal_end = comparison.wal_end.max(Some(end));
            Ok(())
        }
        ManifestEvent::Version(_) | ManifestEvent::SystemIdentifier(_) => Ok(()),
    })?;
    loop {
        records.fill(0).map_err(ManifestError::Visit)?;
        let Some(record) = records.window.pop_front() else { break };
        extra(&record, &mut comparison);
    }
    Ok((comparison, summary))
}

fn compare_file(
    records: &mut Records,
    file: &ManifestFile,
    algorithm: ChecksumAlgorithm,
    comparison: &mut Comparison,
) -> io::Result<()> {
    let mut index = 0;
    loop {
        records.fill(index)?;
        match records.window.get(index) {
            Some(record) if record.path == file.path => break,
            Some(_) if index + 1 < WINDOW => index += 1,
            _ => {
                comparison.problem(&file.path, format_args!("is in the manifest, but did not arrive"));
                return Ok(());
            }
        }
    }
    for record in records.window.drain(..index) {
        extra(&record, comparison);
    }
    let record = records.window.pop_front().expect("it was just found");
    if record.size != file.size {
        comparison.problem(
            &file.path,
            format_args!("{} bytes arrived, the manifest says {}", record.size, file.size),
        );
        return Ok(());
    }
    match &file.checksum {
        None if algorithm == ChecksumAlgorithm::None => comparison.matched += 1,
        Some((found, expected)) if *found == algorithm && expected.as_bytes() == record.checksum => {
            comparison.matched += 1;
        }
        Some((found, expected)) if *found == algorithm => {
            let found = hex(&record.checksum);
            comparison.problem(
                &file.path,
                format_args!("{algorithm} checksum found {found}, expected {expected} by the manifest"),
            );
        }
        other => {
            let found = other.as_ref().map_or(ChecksumAlgorithm::None, |(found, _)| *found);
            comparison.problem(
                &file.path,
                format_args!("the manifest has a checksum by {found}, expected one by {algorithm}"),
            );
        }
    }
    Ok(())
}

/// WAL that comes with the files (`-X fetch`) stands in no manifest; PostgreSQL verifies it by reading it.
fn extra(record: &Record, comparison: &mut Comparison) {
    if !record.path.starts_with(b"pg_wal/") {
        comparison.problem(&record.path, format_args!("arrived, but is not in the manifest"));
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
