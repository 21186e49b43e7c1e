use std::fs;
use std::path::Path;

use super::*;

const SEGMENT: u64 = 1 << 20;

struct Silent;

impl ReceiveObserver for Silent {
    fn error(&self, _: &str) {}
    fn warning(&self, _: &str) {}
    fn info(&self, _: &str) {}
    fn note(&self, _: &str) {}
}

fn writer(directory: &Path, end: Option<Lsn>) -> ArchiveWriter {
    let archive = WalArchive {
        directory: directory.to_owned(),
        slot: None,
        compression: None,
        end,
        reconnect: false,
        sync: true,
        synchronous: true,
        check: true,
    };
    let folder = Folder::open(directory).unwrap();
    let observer: Arc<dyn ReceiveObserver> = Arc::new(Silent);
    let start = Start { lsn: Lsn(2 * SEGMENT), timeline: TimelineId(1) };
    let size = WalSegmentSize::new(SEGMENT).unwrap();
    ArchiveWriter::new(&archive, &folder, size, 0o600, start, &observer, &Alarm::new().unwrap()).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// One segment and a half, with a record that runs from the first into the second.
fn one_and_a_half(directory: &Path) -> ArchiveWriter {
    let mut writer = writer(directory, None);
    let bytes = vec![0x55; usize::try_from(SEGMENT / 2).unwrap()];
    for number in 0..3 {
        writer.write(Lsn(2 * SEGMENT + number * SEGMENT / 2), &bytes).unwrap();
    }
    writer.settle(Lsn(3 * SEGMENT - 100), true).unwrap();
    writer
}

#[test]
fn a_segment_has_no_name_before_its_last_record_was_right() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = one_and_a_half(dir.path());
    writer.durability.drain().unwrap();
    assert_eq!(writer.flushed(), Lsn(2 * SEGMENT), "nothing of it may be let go");
    assert_eq!(
        names(dir.path()),
        ["000000010000000000000002.partial", "000000010000000000000003.pgstrata.tmp"]
    );
    // The connection is lost, or the record is damaged: it is had once more from its beginning.
    writer.rest(false).unwrap();
    assert_eq!(names(dir.path()), ["000000010000000000000002.partial"]);
    assert_eq!(writer.flushed(), Lsn(2 * SEGMENT));
}

#[test]
fn a_segment_has_its_name_once_its_last_record_was_right() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = one_and_a_half(dir.path());
    writer.settle(Lsn(3 * SEGMENT + 8), true).unwrap();
    writer.rest(false).unwrap();
    assert_eq!(names(dir.path()), ["000000010000000000000002", "000000010000000000000003.partial"]);
    assert_eq!(writer.flushed(), Lsn(3 * SEGMENT + SEGMENT / 2));
}

#[test]
fn a_stream_that_ends_in_order_names_what_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    one_and_a_half(dir.path()).rest(true).unwrap();
    assert_eq!(names(dir.path()), ["000000010000000000000002", "000000010000000000000003.partial"]);
}

#[test]
fn nothing_is_begun_behind_the_last_segment_that_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path(), Some(Lsn(3 * SEGMENT - 1)));
    writer.write(Lsn(2 * SEGMENT), &vec![0x55; usize::try_from(SEGMENT + 100).unwrap()]).unwrap();
    assert_eq!(writer.written(), Lsn(3 * SEGMENT));
    writer.rest(true).unwrap();
    assert_eq!(names(dir.path()), ["000000010000000000000002"]);
}
