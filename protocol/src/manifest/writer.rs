//! Writes a manifest as the server does (`src/backend/backup/backup_manifest.c`), one file at a time.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::checksum::encode_hex;
use super::{ChecksumValue, ManifestFile, ManifestVersion};
use crate::{Lsn, TimelineId};

/// How much is gathered before it is hashed and written.
const BATCH: usize = 64 * 1024;

/// WAL that a backup needs to become consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline it lies on.
    pub timeline: TimelineId,
    /// Its first byte.
    pub start: Lsn,
    /// The byte behind its last.
    pub end: Lsn,
}

/// A manifest being written. Dropped without [`ManifestWriter::finish`] it leaves a file that no reader accepts.
#[derive(Debug)]
pub struct ManifestWriter<W> {
    sink: W,
    hash: Sha256,
    /// What is not yet hashed and written.
    batch: Vec<u8>,
    written: u64,
    force_encode: bool,
    any_file: bool,
}

/// What [`ManifestWriter::finish`] gives back.
#[derive(Debug)]
pub struct WrittenManifest<W> {
    /// The writer, flushed.
    pub sink: W,
    /// The manifest's length in bytes.
    pub bytes: u64,
    /// The manifest's own SHA-256, as its last line has it.
    pub checksum: ChecksumValue,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins a manifest. `force_encode` writes every path in hexadecimal, not only those that are no UTF-8.
    ///
    /// Writes come in batches of some 64 KiB, so `sink` needs no buffer of its own.
    pub fn new(sink: W, version: ManifestVersion, force_encode: bool) -> Self {
        let mut batch = Vec::with_capacity(BATCH + 8192);
        let (number, identifier) = match version {
            ManifestVersion::One => (1, String::new()),
            ManifestVersion::Two { system_identifier } => {
                (2, format!("\"System-Identifier\": {system_identifier},\n"))
            }
        };
        let head = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {number},\n{identifier}\"Files\": [");
        batch.extend_from_slice(head.as_bytes());
        Self { sink, hash: Sha256::new(), batch, written: 0, force_encode, any_file: false }
    }

    /// Adds a file. The path is written as it stands; that it belongs to the backup is the caller's business.
    pub fn file(&mut self, file: &ManifestFile) -> io::Result<()> {
        let batch = &mut self.batch;
        batch.extend_from_slice(if self.any_file { b",\n" } else { b"\n" });
        self.any_file = true;
        match std::str::from_utf8(&file.path) {
            Ok(path) if !self.force_encode => {
                batch.extend_from_slice(b"{ \"Path\": ");
                push_json_string(batch, path);
            }
            _ => {
                batch.extend_from_slice(b"{ \"Encoded-Path\": \"");
                push_hex(batch, &file.path);
                batch.push(b'"');
            }
        }
        write!(batch, ", \"Size\": {}, \"Last-Modified\": \"{}\"", file.size, file.modified)?;
        if let Some((algorithm, value)) = &file.checksum {
            write!(batch, ", \"Checksum-Algorithm\": \"{algorithm}\", \"Checksum\": \"")?;
            push_hex(batch, value.as_bytes());
            batch.push(b'"');
        }
        batch.extend_from_slice(b" }");
        if self.batch.len() >= BATCH { self.pass_on(true) } else { Ok(()) }
    }

    /// Writes the WAL ranges, newest timeline first as the server has them, and the checksum; flushes the writer.
    pub fn finish(mut self, ranges: &[WalRange]) -> io::Result<WrittenManifest<W>> {
        self.batch.extend_from_slice(b"\n],\n\"WAL-Ranges\": [\n");
        for (index, WalRange { timeline, start, end }) in ranges.iter().enumerate() {
            let separator = if index == 0 { "" } else { ",\n" };
            let range = format!(
                "{separator}{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}"
            );
            self.batch.extend_from_slice(range.as_bytes());
        }
        self.batch.extend_from_slice(b"\n],\n");
        self.pass_on(true)?;
        let digest: [u8; 32] = std::mem::take(&mut self.hash).finalize().into();
        self.batch.extend_from_slice(b"\"Manifest-Checksum\": \"");
        push_hex(&mut self.batch, &digest);
        self.batch.extend_from_slice(b"\"}\n");
        self.pass_on(false)?;
        self.sink.flush()?;
        let checksum = ChecksumValue::new(&digest).ok_or(io::ErrorKind::InvalidData)?;
        Ok(WrittenManifest { sink: self.sink, bytes: self.written, checksum })
    }

    fn pass_on(&mut self, hashed: bool) -> io::Result<()> {
        if hashed {
            self.hash.update(&self.batch);
        }
        self.sink.write_all(&self.batch)?;
        self.written += self.batch.len() as u64;
        self.batch.clear();
        Ok(())
    }
}

fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + 2 * bytes.len(), 0);
    encode_hex(bytes, &mut out[start..]);
}

/// As `escape_json` of `src/backend/utils/adt/json.c`: other JSON writers escape differently.
fn push_json_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => {
                out.extend_from_slice(b"\\u00");
                push_hex(out, &[byte]);
            }
            byte => out.push(byte),
        }
    }
    out.push(b'"');
}
