//! Incremental files: no cut changes what is found, and what is found adds up to the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgstrata_protocol::incremental::{
    Geometry, IncrementalDecoder, IncrementalError, IncrementalEvent, IncrementalHeader,
};
use pgstrata_protocol_fuzz::Stream;

type Found = (Option<IncrementalHeader>, Vec<(u32, Vec<u8>)>);

fn decode(geometry: Geometry, length: u64, pieces: &[&[u8]]) -> (Found, Result<(), IncrementalError>) {
    let mut decoder = IncrementalDecoder::new(geometry, length);
    let mut found: Found = (None, Vec::new());
    for mut piece in pieces.iter().copied() {
        loop {
            match decoder.next(&mut piece) {
                Ok(None) => break,
                Ok(Some(IncrementalEvent::Header(header))) => found.0 = Some(header),
                Ok(Some(IncrementalEvent::Block { number, bytes, first, last })) => {
                    if first {
                        found.1.push((number, Vec::new()));
                    }
                    let (begun, content) = found.1.last_mut().expect("a block was begun");
                    assert_eq!(*begun, number);
                    content.extend_from_slice(bytes);
                    assert_eq!(last, content.len() == geometry.block_size() as usize);
                }
                Err(error) => {
                    assert_eq!(decoder.next(&mut &[0][..]), Err(IncrementalError::Failed));
                    return (found, Err(error));
                }
            }
        }
    }
    let outcome = decoder.finish();
    if outcome.is_ok() {
        let header = found.0.expect("a whole file has a header");
        assert_eq!(header.blocks as usize, found.1.len());
        assert!(found.1.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(geometry.file_length(header.blocks), length);
    }
    (found, outcome)
}

fuzz_target!(|input: &[u8]| {
    // Small blocks, so that whole files are short.
    let geometry = Geometry::new(1024, 64 << 10).expect("a geometry");
    let stream = Stream::of(input);
    let bytes = stream.bytes;
    let (whole, cut) = ([bytes], stream.pieces(bytes));
    for length in [bytes.len() as u64, bytes.len() as u64 + 1] {
        assert_eq!(decode(geometry, length, &whole), decode(geometry, length, &cut));
    }
});
