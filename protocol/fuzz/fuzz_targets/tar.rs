//! Tar: members' paths stay inside, sizes are kept to, and no cut changes what is found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgstrata_protocol::tar::{BLOCK_SIZE, MemberKind, MemberPath, TarDecoder, TarEvent};
use pgstrata_protocol_fuzz::Stream;

#[derive(Debug, PartialEq)]
enum Found {
    Member(MemberPath, MemberKind, u32, u64),
    Data(Vec<u8>),
    End,
}

fn decode(pieces: &[&[u8]]) -> (Vec<Found>, Option<String>, u64) {
    let (mut decoder, mut found) = (TarDecoder::new(), Vec::new());
    let mut left = 0;
    for piece in pieces {
        let mut input = *piece;
        loop {
            match decoder.next(&mut input) {
                Ok(None) => break assert!(input.is_empty()),
                Ok(Some(TarEvent::Member(member))) => {
                    for component in member.path.components() {
                        assert!(component != b".." && component != b"." && !component.contains(&0));
                    }
                    left = if let MemberKind::File { size } = member.kind { size } else { 0 };
                    found.push(Found::Member(member.path, member.kind, member.mode, member.mtime));
                }
                Ok(Some(TarEvent::Data(bytes))) => {
                    assert!(!bytes.is_empty());
                    left = left.checked_sub(bytes.len() as u64).expect("no more data than the member has");
                    match found.last_mut() {
                        Some(Found::Data(data)) => data.extend_from_slice(bytes),
                        _ => found.push(Found::Data(bytes.to_vec())),
                    }
                }
                Ok(Some(TarEvent::MemberEnd)) => {
                    assert_eq!(left, 0);
                    found.push(Found::End);
                }
                Err(error) => {
                    assert!(decoder.next(&mut input).is_err());
                    return (found, Some(error.to_string()), 0);
                }
            }
        }
    }
    (found, decoder.finish().err().map(|error| error.to_string()), decoder.offset())
}

/// Gives each block the checksum of a header, or no fuzzer would get past the first one.
fn repaired(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK_SIZE) {
        if block.iter().any(|byte| *byte != 0) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

fuzz_target!(|input: &[u8]| {
    let stream = Stream::of(input);
    for bytes in [stream.bytes.to_vec(), repaired(stream.bytes)] {
        assert_eq!(decode(&[&bytes]), decode(&stream.pieces(&bytes)));
    }
});
