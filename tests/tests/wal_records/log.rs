//! The whole segments of a server's `pg_wal`, to be read from its folder.

use std::fs;
use std::path::PathBuf;

use pgstrata::postmaster::Server;
use pgstrata_protocol::names::{WalSegment, WalSegmentSize};
use pgstrata_protocol::wal::{RecordSink, StretchSummarizer, WalChecker, WalOrigin, WalStretch};
use pgstrata_protocol::{Lsn, ServerVersion, TimelineId};
use pgstrata_tests::sql;

/// Segments that follow upon each other, each of them whole.
pub(crate) struct Log {
    pub(crate) folder: PathBuf,
    pub(crate) origin: WalOrigin,
    numbers: std::ops::Range<u64>,
}

impl Log {
    /// Ends the segment that is written, and takes all that there are before it.
    pub(crate) fn of(server: &Server, major: u32) -> Self {
        let session = sql(server);
        session.execute("SELECT pg_switch_wal()");
        let end: Lsn = session.value::<String>("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
        let segment_size =
            session.value::<String>("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'");
        let origin = WalOrigin {
            system_identifier: session.value("SELECT system_identifier FROM pg_control_system()"),
            timeline: TimelineId(session.value("SELECT timeline_id FROM pg_control_checkpoint()")),
            segment_size: WalSegmentSize::new(segment_size.parse().unwrap()).unwrap(),
            magic: ServerVersion(major * 10_000).wal_magic(),
            page_size: None,
        };
        let folder = server.data_dir().join("pg_wal");
        let names =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let number = |name: String| {
            WalSegment::parse(name.as_bytes(), origin.segment_size).map(|segment| segment.number)
        };
        let first = names.filter_map(number).min().unwrap();
        Self { folder, origin, numbers: first..end.0 / origin.segment_size.bytes() }
    }

    pub(crate) fn start(&self) -> Lsn {
        Lsn(self.numbers.start * self.origin.segment_size.bytes())
    }

    pub(crate) fn end(&self) -> Lsn {
        Lsn(self.numbers.end * self.origin.segment_size.bytes())
    }

    fn segment(&self, number: u64) -> Vec<u8> {
        let name = WalSegment { timeline: self.origin.timeline, number }.file_name(self.origin.segment_size);
        fs::read(self.folder.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Reads all of it from the segment of `from` on, in pieces that cut at odd places.
    pub(crate) fn read(&self, from: Lsn, sink: &mut impl RecordSink) {
        let first = from.0 / self.origin.segment_size.bytes();
        let start = from.segment_start(self.origin.segment_size.bytes());
        let mut checker = WalChecker::from_segment(self.origin, start);
        for number in first..self.numbers.end {
            for piece in self.segment(number).chunks(77_777) {
                checker.push_to(piece, sink).unwrap();
            }
        }
        assert_eq!(checker.position(), self.end());
        assert_eq!(checker.verified(), self.end(), "the last segment was switched, so it ends there");
    }

    /// Every segment by itself.
    pub(crate) fn stretches(&self) -> Vec<WalStretch> {
        let stretch = |number| {
            let start = Lsn(number * self.origin.segment_size.bytes());
            let mut summarizer = StretchSummarizer::new(self.origin, start, Lsn(u64::MAX));
            summarizer.push(&self.segment(number)).unwrap();
            summarizer.finish().unwrap()
        };
        self.numbers.clone().map(stretch).collect()
    }
}
