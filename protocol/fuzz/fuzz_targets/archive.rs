//! The archive stream of 15 and newer: no cut changes what is found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgstrata_protocol::basebackup::{ArchiveDecoder, ArchiveEvent, ArchiveName};
use pgstrata_protocol_fuzz::{Stream, flagged};

#[derive(Debug, PartialEq)]
enum Found {
    Start(ArchiveName, Vec<u8>),
    Data(Vec<u8>),
    Progress(u64),
    Manifest,
    ManifestData(Vec<u8>),
}

fn decode(messages: &[Vec<&[u8]>]) -> (Vec<Found>, Option<String>) {
    let (mut decoder, mut found) = (ArchiveDecoder::new(), Vec::new());
    for message in messages {
        for (piece, first, last) in flagged(message) {
            let event = match decoder.push(piece, first, last) {
                Ok(None) => continue,
                Ok(Some(event)) => event,
                Err(error) => return (found, Some(error.to_string())),
            };
            match (event, found.last_mut()) {
                (ArchiveEvent::Data(bytes), Some(Found::Data(data)))
                | (ArchiveEvent::ManifestData(bytes), Some(Found::ManifestData(data))) => {
                    assert!(!bytes.is_empty());
                    data.extend_from_slice(bytes);
                }
                (ArchiveEvent::Data(bytes), _) => found.push(Found::Data(bytes.to_vec())),
                (ArchiveEvent::ManifestData(bytes), _) => found.push(Found::ManifestData(bytes.to_vec())),
                (ArchiveEvent::ArchiveStart { name, location }, _) => {
                    found.push(Found::Start(name, location));
                }
                (ArchiveEvent::Progress(bytes), _) => found.push(Found::Progress(bytes)),
                (ArchiveEvent::ManifestStart, _) => found.push(Found::Manifest),
            }
        }
    }
    (found, decoder.finish().err().map(|error| error.to_string()))
}

fuzz_target!(|input: &[u8]| {
    let stream = Stream::of(input);
    let messages = stream.messages();
    let whole: Vec<Vec<&[u8]>> = messages.iter().map(|message| vec![*message]).collect();
    let cut: Vec<Vec<&[u8]>> = messages.iter().map(|message| stream.pieces(message)).collect();
    assert_eq!(decode(&whole), decode(&cut));
});
