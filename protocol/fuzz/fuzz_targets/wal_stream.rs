//! The WAL stream: positions never run back or leave a gap, and no cut changes what is found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgstrata_protocol::Lsn;
use pgstrata_protocol::replication::{WalEvent, WalStreamDecoder, WalStreamError};
use pgstrata_protocol_fuzz::{Stream, flagged};

#[derive(Debug, PartialEq)]
enum Found {
    Begin(Lsn, Lsn, i64),
    Data(Lsn, Vec<u8>),
    Keepalive(Lsn, i64, bool),
}

fn decode(messages: &[Vec<&[u8]>]) -> (Vec<Found>, Option<WalStreamError>) {
    let (mut decoder, mut found) = (WalStreamDecoder::new(Lsn(0)), Vec::new());
    for message in messages {
        for (piece, first, last) in flagged(message) {
            let at = decoder.position();
            let events = match decoder.push(piece, first, last) {
                Ok(events) => events,
                Err(error) => {
                    assert_eq!(decoder.push(b"", true, true).err(), Some(error.clone()));
                    return (found, Some(error));
                }
            };
            let mut next = at;
            for event in events {
                match event {
                    WalEvent::Begin { start, server_end, sent_at } => {
                        assert_eq!(start, next);
                        found.push(Found::Begin(start, server_end, sent_at));
                    }
                    WalEvent::Keepalive { server_end, sent_at, reply_requested } => {
                        found.push(Found::Keepalive(server_end, sent_at, reply_requested));
                    }
                    WalEvent::Data { at, bytes } => {
                        assert_eq!(at, next);
                        assert!(!bytes.is_empty());
                        next = Lsn(next.0 + bytes.len() as u64);
                        match found.last_mut() {
                            Some(Found::Data(_, data)) => data.extend_from_slice(bytes),
                            _ => found.push(Found::Data(at, bytes.to_vec())),
                        }
                    }
                }
            }
            assert_eq!(decoder.position(), next);
        }
    }
    (found, None)
}

fuzz_target!(|input: &[u8]| {
    let stream = Stream::of(input);
    let messages = stream.messages();
    let whole: Vec<Vec<&[u8]>> = messages.iter().map(|message| vec![*message]).collect();
    let cut: Vec<Vec<&[u8]>> = messages.iter().map(|message| stream.pieces(message)).collect();
    assert_eq!(decode(&whole), decode(&cut));
});
