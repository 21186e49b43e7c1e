//! Records as `pg_waldump --bkp-details` prints them: its lines without what they say of the record's meaning.

use std::path::Path;
use std::process::Command;

use pgstrata_protocol::page::PAGE_SIZE;
use pgstrata_protocol::wal::{BlockReference, Compression, Record, RecordSink, WalError};

use crate::log::Log;

/// Collects records as text.
#[derive(Default)]
pub(crate) struct Lines {
    pub(crate) lines: Vec<String>,
    blocks: Vec<BlockReference>,
}

impl RecordSink for Lines {
    fn record(&mut self, record: &Record<'_>) -> Result<(), WalError> {
        let contents = record.decode(&mut self.blocks)?;
        assert!(record.is_whole() && contents.main_data.is_some());
        // All records of a server are understood.
        record.change(&contents)?;
        let images: u32 =
            self.blocks.iter().filter_map(|block| block.image).map(|image| u32::from(image.length)).sum();
        self.lines.push(format!(
            "{} len {}/{} tx {} lsn {} prev {}",
            record.manager(),
            record.length() - images,
            record.length(),
            record.transaction(),
            record.start,
            record.previous()
        ));
        self.lines.extend(self.blocks.iter().map(block_line));
        Ok(())
    }
}

fn block_line(block: &BlockReference) -> String {
    let BlockReference { id, relation, fork, block: number, image, .. } = block;
    let fork = ["main", "fsm", "vm", "init"][usize::from(*fork)];
    let mut line = format!(
        "blkref #{id}: rel {}/{}/{} fork {fork} blk {}",
        relation.tablespace, relation.database, relation.number, number.0
    );
    if let Some(image) = image {
        let use_ = if image.apply { "" } else { " for WAL verification" };
        let (offset, length) = image.hole;
        line += &format!(" (FPW{use_}); hole: offset: {offset}, length: {length}");
        let method = match image.compression {
            Compression::None => return line,
            Compression::Pglz => "pglz",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        };
        let saved = PAGE_SIZE - usize::from(length) - usize::from(image.length);
        line += &format!(", compression saved: {saved}, method: {method}");
    }
    line
}

/// What the program prints of a log.
pub(crate) fn pg_waldump(program: &Path, log: &Log) -> Vec<String> {
    let output = Command::new(program)
        .args(["--bkp-details", "-t", &log.origin.timeline.to_string()])
        .args(["-s", &log.start().to_string(), "-e", &log.end().to_string(), "-p"])
        .arg(&log.folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<String> {
    let line = line.trim();
    if line.starts_with("blkref #") {
        return Some(line.to_owned());
    }
    let rest = line.strip_prefix("rmgr: ")?;
    let (head, _) = rest.split_once(", desc: ").unwrap();
    let words: Vec<&str> = head.split([' ', ',', '/']).filter(|word| !word.is_empty()).collect();
    // Heap len (rec tot): 54 8014 tx: 738 lsn: 0 01ABCDEF prev 0 01ABCDD8
    let [manager, "len", "(rec", "tot):", rec, total, "tx:", tx, "lsn:", high, low, "prev", before, previous] =
        words[..]
    else {
        panic!("{line:?}: {words:?}");
    };
    let hex = |text| u32::from_str_radix(text, 16).unwrap();
    Some(format!(
        "{manager} len {rec}/{total} tx {tx} lsn {:X}/{:X} prev {:X}/{:X}",
        hex(high),
        hex(low),
        hex(before),
        hex(previous)
    ))
}
