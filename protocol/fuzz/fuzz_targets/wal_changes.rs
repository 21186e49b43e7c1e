//! What WAL changes: no cut of the bytes changes the answer, and bytes in two stretches say what they say at once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgstrata_protocol::names::WalSegmentSize;
use pgstrata_protocol::wal::{StretchSummarizer, WalError, WalOrigin, WalStretch};
use pgstrata_protocol::{Lsn, TimelineId};
use pgstrata_protocol_fuzz::Stream;

fn summarize(origin: WalOrigin, start: Lsn, pieces: &[&[u8]]) -> Result<WalStretch, WalError> {
    let mut summarizer = StretchSummarizer::new(origin, start, Lsn(u64::MAX));
    pieces.iter().try_for_each(|piece| summarizer.push(piece))?;
    summarizer.finish()
}

fuzz_target!(|input: &[u8]| {
    let stream = Stream::of(input);
    let bytes = stream.bytes;
    let Some(header) = bytes.first_chunk::<40>() else { return };
    let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    // The input's own header says where it is from, so that the rest of it is reached.
    let Ok(segment_size) = WalSegmentSize::new(number(32) & 0xFFFF_FFFF) else { return };
    let origin = WalOrigin {
        system_identifier: number(24),
        timeline: TimelineId(9),
        segment_size,
        magic: None,
        page_size: None,
    };
    let start = Lsn(number(8)).segment_start(segment_size.bytes());
    let whole = summarize(origin, start, &[bytes]);
    let cut = summarize(origin, start, &stream.pieces(bytes));
    match (whole, cut) {
        (Ok(whole), Ok(cut)) => {
            assert!(whole.references == cut.references);
            assert_eq!((whole.links, &whole.head, &whole.tail), (cut.links, &cut.head, &cut.tail));
            // Whatever stretches say, joining them ends without a panic.
            let mut next = cut;
            (next.start, next.end) = (whole.end, Lsn(whole.end.0.saturating_add(1)));
            let _ = whole.join(next);
        }
        (whole, cut) => assert_eq!(whole.err(), cut.err()),
    }
});
