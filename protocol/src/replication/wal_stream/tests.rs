use proptest::prelude::*;

use super::*;

const START: Lsn = Lsn(0x1_0300_0000);

fn wal(start: Lsn, server_end: u64, sent_at: i64, bytes: &[u8]) -> Vec<u8> {
    let header = [start.0.to_be_bytes(), server_end.to_be_bytes(), sent_at.to_be_bytes()];
    [b"w", header.as_flattened(), bytes].concat()
}

fn keepalive(server_end: u64, sent_at: i64, flag: u8) -> Vec<u8> {
    [b"k", [server_end.to_be_bytes(), sent_at.to_be_bytes()].as_flattened(), &[flag]].concat()
}

/// What a stream holds, with the pieces of each message put together.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Wal { start: Lsn, server_end: Lsn, sent_at: i64, bytes: Vec<u8> },
    Keepalive { server_end: Lsn, sent_at: i64, reply_requested: bool },
    Error(WalStreamError),
}

/// Decodes messages, each cut at these places, taken modulo its length, into pieces as a frame decoder gives them.
fn decode(start: Lsn, messages: &[Vec<u8>], places: &[usize]) -> Vec<Item> {
    let mut decoder = WalStreamDecoder::new(start);
    let mut items = Vec::new();
    for message in messages {
        let mut ends: Vec<usize> = places.iter().map(|place| place % (message.len() + 1)).collect();
        ends.retain(|end| *end > 0 && *end < message.len());
        ends.push(message.len());
        ends.sort_unstable();
        ends.dedup();
        let mut from = 0;
        for end in ends {
            let chunk = &message[from..end];
            let events = match decoder.push(chunk, from == 0, end == message.len()) {
                Ok(events) => events,
                Err(error) => {
                    assert_eq!(decoder.push(b"w", true, true).err(), Some(error.clone()));
                    items.push(Item::Error(error));
                    return items;
                }
            };
            from = end;
            for event in events {
                match event {
                    WalEvent::Begin { start, server_end, sent_at } => {
                        items.push(Item::Wal { start, server_end, sent_at, bytes: vec![] });
                    }
                    WalEvent::Data { at, bytes: piece } => {
                        let Some(Item::Wal { start, bytes, .. }) = items.last_mut() else {
                            panic!("WAL before its header")
                        };
                        assert!(!piece.is_empty() && chunk.as_ptr_range().contains(&piece.as_ptr()));
                        assert_eq!(at.0, start.0 + bytes.len() as u64);
                        bytes.extend_from_slice(piece);
                        assert_eq!(decoder.position().0, at.0 + piece.len() as u64);
                    }
                    WalEvent::Keepalive { server_end, sent_at, reply_requested } => {
                        items.push(Item::Keepalive { server_end, sent_at, reply_requested });
                    }
                }
            }
        }
    }
    items
}

#[test]
fn broken_messages() {
    let at = START;
    let length = |kind, found, expected| WalStreamError::BadLength { at, kind, found, expected };
    for (message, expected) in [
        (vec![], length("replication", 0, "at least 1")),
        (b"w".to_vec(), length("WAL", 1, "at least 25")),
        (wal(START, 0, 0, b"")[..24].to_vec(), length("WAL", 24, "at least 25")),
        (b"k".to_vec(), length("keepalive", 1, "18")),
        (keepalive(0, 0, 0)[..17].to_vec(), length("keepalive", 17, "18")),
        ([keepalive(0, 0, 0), vec![0]].concat(), length("keepalive", 19, "18")),
        (b"x".to_vec(), WalStreamError::UnknownType { at, found: b'x' }),
        (b"r".repeat(34), WalStreamError::UnknownType { at, found: b'r' }),
        (
            wal(Lsn(START.0 + 1), 0, 0, b"gap"),
            WalStreamError::Gap { found: Lsn(START.0 + 1), expected: START },
        ),
        (
            wal(Lsn(START.0 - 1), 0, 0, b"overlap"),
            WalStreamError::Gap { found: Lsn(START.0 - 1), expected: START },
        ),
    ] {
        for places in [&[][..], &[1], &[1, 2, 17, 18, 24]] {
            assert_eq!(
                decode(START, std::slice::from_ref(&message), places),
                [Item::Error(expected.clone())]
            );
        }
    }
}

#[test]
fn wal_must_go_on_where_it_ended() {
    let first = wal(START, 0, 0, b"12345");
    let found = decode(START, &[first.clone(), keepalive(0, 0, 1), first], &[]);
    let gap = WalStreamError::Gap { found: START, expected: Lsn(START.0 + 5) };
    assert_eq!(found.last(), Some(&Item::Error(gap)));
    let text = WalStreamError::Gap { found: START, expected: Lsn(7) }.to_string();
    assert!(text.starts_with("WAL stream: found WAL from 1/3000000, expected it from 0/7\nHINT: "), "{text}");
}

#[test]
fn wal_cannot_pass_the_last_position() {
    let start = Lsn(u64::MAX - 3);
    let error = Item::Error(WalStreamError::PastTheEnd { at: start, more: 4 });
    assert_eq!(decode(start, &[wal(start, 0, 0, b"1234")], &[]), [error]);
    assert_eq!(decode(start, &[wal(start, 0, 0, b"123")], &[]).len(), 1);
}

#[test]
fn pieces_in_a_wrong_order_are_refused() {
    let mut decoder = WalStreamDecoder::new(START);
    assert!(matches!(decoder.push(b"w", false, true), Err(WalStreamError::BadPiece { .. })));
    for part in [10, 25, 27] {
        let mut decoder = WalStreamDecoder::new(START);
        assert!(decoder.push(&wal(START, 0, 0, b"123")[..part], true, false).is_ok());
        assert!(matches!(decoder.push(b"w", true, true), Err(WalStreamError::BadPiece { .. })));
    }
}

#[test]
fn standby_status_as_bytes() {
    let status = StandbyStatus {
        written: Lsn(0x0102),
        flushed: Lsn(0x0304_0000_0000),
        applied: Lsn::INVALID,
        sent_at: -2,
        reply_requested: true,
    };
    let mut out = BytesMut::new();
    status.encode(&mut out).unwrap();
    let expected = b"d\0\0\0\x26r\0\0\0\0\0\0\x01\x02\0\0\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\
        \xff\xff\xff\xff\xff\xff\xff\xfe\x01";
    assert_eq!(&out[..], expected);
    assert_eq!(StandbyStatus { reply_requested: false, ..status }.to_bytes()[33], 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_was_sent_comes_back_however_it_is_cut(
        messages in proptest::collection::vec(
            (any::<bool>(), any::<u64>(), any::<i64>(), proptest::collection::vec(any::<u8>(), 0..80)),
            0..8,
        ),
        places in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut next = START;
        let mut sent = Vec::new();
        let mut expected = Vec::new();
        for (is_wal, server_end, sent_at, bytes) in messages {
            if is_wal {
                sent.push(wal(next, server_end, sent_at, &bytes));
                let start = next;
                next = Lsn(next.0 + bytes.len() as u64);
                expected.push(Item::Wal { start, server_end: Lsn(server_end), sent_at, bytes });
            } else {
                let flag = bytes.first().copied().unwrap_or(0);
                sent.push(keepalive(server_end, sent_at, flag));
                let reply_requested = flag != 0;
                expected.push(Item::Keepalive { server_end: Lsn(server_end), sent_at, reply_requested });
            }
        }
        prop_assert_eq!(decode(START, &sent, &places), expected);
    }

    #[test]
    fn any_message_gives_the_same_outcome_however_it_is_cut(
        kind in prop_oneof![Just(b'w'), Just(b'k'), any::<u8>()],
        rest in proptest::collection::vec(any::<u8>(), 0..60),
        places in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let start = rest.first_chunk().map_or(START, |bytes| Lsn(u64::from_be_bytes(*bytes)));
        let messages = [[&[kind][..], &rest].concat(), keepalive(1, 2, 3)];
        let (cut, whole) = (decode(start, &messages, &places), decode(start, &messages, &[]));
        // A piece that passes the last position is refused, the ones before it were good.
        if !matches!(whole.last(), Some(Item::Error(WalStreamError::PastTheEnd { .. }))) {
            prop_assert_eq!(cut, whole);
        }
    }
}
