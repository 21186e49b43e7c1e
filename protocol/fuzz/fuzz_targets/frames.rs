//! Frames: no bytes make the decoder panic, and no cut changes what it finds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgstrata_protocol::wire::{BackendMessage, Frame, FrameDecoder, WireError};
use pgstrata_protocol_fuzz::Stream;

#[derive(Debug, PartialEq)]
enum Found {
    /// A body of `CopyData` as far as it came, and whether it was complete.
    CopyData(Vec<u8>, bool),
    Message(BackendMessage),
}

fn decode(pieces: &[&[u8]]) -> (Vec<Found>, Option<WireError>, u64, bool) {
    let (mut decoder, mut found) = (FrameDecoder::with_message_limit(0), Vec::new());
    for piece in pieces {
        let mut input = *piece;
        loop {
            match decoder.next(&mut input) {
                Ok(None) => break assert!(input.is_empty()),
                Ok(Some(Frame::Message(message))) => found.push(Found::Message(message)),
                Ok(Some(Frame::CopyData { chunk, first, last })) => {
                    assert!(!chunk.is_empty() || first && last);
                    match found.last_mut() {
                        Some(Found::CopyData(body, complete @ false)) if !first => {
                            body.extend_from_slice(chunk);
                            *complete = last;
                        }
                        _ => {
                            assert!(first);
                            found.push(Found::CopyData(chunk.to_vec(), last));
                        }
                    }
                }
                Err(error) => {
                    assert_eq!(decoder.next(&mut input), Err(error.clone()));
                    return (found, Some(error), 0, false);
                }
            }
        }
    }
    (found, None, decoder.position(), decoder.is_between_messages())
}

fuzz_target!(|input: &[u8]| {
    let stream = Stream::of(input);
    assert_eq!(decode(&[stream.bytes]), decode(&stream.pieces(stream.bytes)));
});
