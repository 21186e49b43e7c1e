//! A WAL file on this machine: what it says of itself, compared with its name.
//!
//! A segment's first page names its system, place and size; histories and notes say nothing of that, so the control file
//! of the data directory that they lie in speaks for them.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pgstrata_protocol::names::WalSegmentSize;
use pgstrata_protocol::replication::TimelineHistory;
use pgstrata_protocol::wal::{SegmentStart, WalOrigin};

use crate::failure::Failure;
use crate::repository::{SegmentName, WalName};

/// The longest history or note that is taken.
const TEXT_MAX: u64 = 4 << 20;
/// The control file of a data directory (`XLOG_CONTROL_FILE`, `access/xlog_internal.h`).
const CONTROL_FILE: &str = "global/pg_control";

/// A file whose name and beginning agree.
#[derive(Debug)]
pub(super) struct LocalWal {
    pub(super) path: PathBuf,
    pub(super) name: WalName,
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) system_identifier: u64,
    pub(super) segment_size: Option<WalSegmentSize>,
}

impl LocalWal {
    /// Opens a file and compares what it says of itself with its name. `data_directory` is the operator's word on where
    /// the control file is.
    pub(super) fn open(path: &Path, data_directory: Option<&Path>) -> Result<Self, Failure> {
        let shown = path.display();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name: WalName = match name.parse() {
            Ok(WalName::Part { .. }) | Err(_) => {
                return Err(Failure::Target(format!(
                    "\"{shown}\" has no name of a WAL file\nHINT: archive_command passes %p."
                )));
            }
            Ok(name) => name,
        };
        let failed = |error| Failure::disk("open", path, error);
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let mut wal =
            Self { path: path.to_owned(), name, file, size, system_identifier: 0, segment_size: None };
        match name {
            WalName::Segment(segment) | WalName::Partial(segment) => wal.check_start(segment)?,
            _ => wal.check_text(data_directory)?,
        }
        Ok(wal)
    }

    fn refuse(&self, what: &str) -> Failure {
        Failure::Target(format!(
            "\"{}\": {what}\nHINT: the file is damaged, or is not the one that its name says; it was not archived. Check \
             the server's disk.",
            self.path.display()
        ))
    }

    fn check_start(&mut self, segment: SegmentName) -> Result<(), Failure> {
        let mut head = [0; SegmentStart::LENGTH];
        if self.size >= head.len() as u64 {
            let read = self.file.read_exact_at(&mut head, 0);
            read.map_err(|error| Failure::disk("read", &self.path, error))?;
        }
        let start = SegmentStart::parse(&head);
        let start = start.ok_or_else(|| self.refuse("it does not begin as a WAL segment does"))?;
        if self.size != start.segment_size.bytes() {
            let what = format!("found {} bytes, expected {}", self.size, start.segment_size.bytes());
            return Err(self.refuse(&what));
        }
        let expected = segment.segment(start.segment_size).and_then(|named| named.start(start.segment_size));
        if expected != Some(start.address) || start.timeline > segment.timeline {
            let what = format!(
                "its first page is of {} on timeline {}, expected {} on timeline {} at most",
                start.address,
                start.timeline,
                expected.map_or_else(|| "none of that name".to_owned(), |lsn| lsn.to_string()),
                segment.timeline
            );
            return Err(self.refuse(&what));
        }
        self.system_identifier = start.system_identifier;
        self.segment_size = Some(start.segment_size);
        Ok(())
    }

    fn check_text(&mut self, data_directory: Option<&Path>) -> Result<(), Failure> {
        if self.size == 0 || self.size > TEXT_MAX {
            return Err(self.refuse(&format!("found {} bytes, expected 1 to {TEXT_MAX}", self.size)));
        }
        if let WalName::History(timeline) = self.name {
            let mut content = Vec::new();
            let read = (&self.file).take(TEXT_MAX).read_to_end(&mut content);
            read.map_err(|error| Failure::disk("read", &self.path, error))?;
            TimelineHistory::parse(timeline, &content).map_err(|error| self.refuse(&error.to_string()))?;
        }
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let places = match data_directory {
            Some(given) => vec![given.to_owned()],
            // archive_command runs in the data directory, where the folder of WAL may be a link.
            None => vec![PathBuf::new(), folder.join("..")],
        };
        for place in &places {
            let path = place.join(CONTROL_FILE);
            let mut identifier = [0; 8];
            match File::open(&path).and_then(|control| control.read_exact_at(&mut identifier, 0)) {
                // `ControlFileData` (`catalog/pg_control.h`) begins with `system_identifier`, in the machine's order.
                Ok(()) => {
                    self.system_identifier = u64::from_ne_bytes(identifier);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Failure::disk("read", path, error)),
            }
        }
        Err(Failure::Target(format!(
            "\"{}\" does not say whose it is, and there is no {CONTROL_FILE} beside it\n\
             HINT: run this in the data directory, as archive_command is, or name it with --pgdata.",
            self.path.display()
        )))
    }
}

/// What the pages of a segment must say.
pub(super) fn origin(
    system_identifier: u64,
    segment: SegmentName,
    segment_size: WalSegmentSize,
) -> WalOrigin {
    WalOrigin { system_identifier, timeline: segment.timeline, segment_size, magic: None, page_size: None }
}
