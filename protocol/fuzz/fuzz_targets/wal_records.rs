//! WAL pages and records: no cut changes the verdict, and nothing is verified that is not there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgstrata_protocol::names::WalSegmentSize;
use pgstrata_protocol::wal::{WalChecker, WalError, WalOrigin};
use pgstrata_protocol::{Lsn, TimelineId};
use pgstrata_protocol_fuzz::Stream;

fn check(origin: WalOrigin, first: Lsn, pieces: &[&[u8]]) -> (Result<(), WalError>, Lsn) {
    let mut checker = WalChecker::new(origin, first);
    for piece in pieces {
        if let Err(error) = checker.push(piece) {
            assert_eq!(checker.push(&[0]), Err(error.clone()));
            return (Err(error), checker.verified());
        }
        // Padding and an unused rest of a segment count ahead, but no more than that.
        let segment = origin.segment_size.bytes();
        assert!(
            checker.verified()
                <= first.max(Lsn(checker.position().0.checked_next_multiple_of(segment).unwrap_or(u64::MAX)))
        );
    }
    (Ok(()), checker.verified())
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
    // Behind the rest of a record that began in the segment before.
    let rest = (number(16) & 0xFFFF_FFFF).next_multiple_of(8);
    let first = Lsn(number(8).saturating_add(40 + rest));
    assert_eq!(check(origin, first, &[bytes]), check(origin, first, &stream.pieces(bytes)));
});
