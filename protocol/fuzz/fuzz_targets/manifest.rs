//! Manifests: no cut changes what is found, and what is read can be written and read again.
#![no_main]

use std::convert::Infallible;
use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;
use pgstrata_protocol::manifest::{
    ManifestEvent, ManifestFile, ManifestSummary, ManifestVersion, ManifestWriter, WalRange, read_manifest,
};
use pgstrata_protocol::tar::MemberPath;
use pgstrata_protocol_fuzz::Stream;
use sha2::{Digest, Sha256};

/// Gives a piece a read.
struct Pieces<'a>(std::vec::IntoIter<&'a [u8]>, &'a [u8]);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.1.is_empty() {
            match self.0.next() {
                Some(piece) => self.1 = piece,
                None => return Ok(0),
            }
        }
        self.1.read(buffer)
    }
}

fn read(reader: impl Read) -> (Vec<ManifestEvent>, Result<ManifestSummary, String>) {
    let mut events = Vec::new();
    let outcome = read_manifest::<_, Infallible>(reader, &mut |event| {
        if let ManifestEvent::File(file) = &event {
            MemberPath::check(&file.path).expect("no path leads out");
        }
        events.push(event);
        Ok(())
    });
    (events, outcome.map_err(|error| error.to_string()))
}

/// Ends the manifest with its own checksum, or no fuzzer would ever see a whole one.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.extend_from_slice(b"\n");
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.extend_from_slice(format!("\"Manifest-Checksum\": \"{hash}\"}}\n").as_bytes());
    bytes
}

fn written(events: &[ManifestEvent], summary: &ManifestSummary) -> Vec<u8> {
    let version = match summary.system_identifier {
        None => ManifestVersion::One,
        Some(system_identifier) => ManifestVersion::Two { system_identifier },
    };
    let mut writer = ManifestWriter::new(Vec::new(), version, false);
    let mut ranges = Vec::new();
    for event in events {
        match event {
            ManifestEvent::File(file) => writer.file(file).expect("a Vec takes all"),
            ManifestEvent::WalRange { timeline, start, end } => {
                ranges.push(WalRange { timeline: *timeline, start: *start, end: *end });
            }
            ManifestEvent::Version(_) | ManifestEvent::SystemIdentifier(_) => {}
        }
    }
    writer.finish(&ranges).expect("a Vec takes all").sink
}

fn files(events: &[ManifestEvent]) -> Vec<&ManifestFile> {
    let files = events.iter().filter_map(|event| match event {
        ManifestEvent::File(file) => Some(file),
        _ => None,
    });
    files.collect()
}

fuzz_target!(|input: &[u8]| {
    let stream = Stream::of(input);
    for bytes in [stream.bytes.to_vec(), sealed(stream.bytes)] {
        let (events, outcome) = read(&bytes[..]);
        let pieces = stream.pieces(&bytes).into_iter();
        let by_pieces = read(Pieces(Vec::from_iter(pieces).into_iter(), &[]));
        assert_eq!((&events, &outcome), (&by_pieces.0, &by_pieces.1));
        let Ok(summary) = outcome else { continue };
        let (again, outcome) = read(&written(&events, &summary)[..]);
        let outcome = outcome.expect("what was written can be read");
        assert_eq!(files(&events), files(&again));
        assert_eq!((summary.files, summary.bytes), (outcome.files, outcome.bytes));
        assert_eq!((summary.version, summary.wal_ranges), (outcome.version, outcome.wal_ranges));
    }
});
