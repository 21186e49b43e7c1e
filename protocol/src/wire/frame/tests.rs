use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::wire::{AuthenticationRequest, ServerError, TransactionStatus};

/// A frame with a right length.
fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = i32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// A frame that ends after a header with this length word.
fn header(tag: u8, length: i32) -> Vec<u8> {
    [&[tag][..], &length.to_be_bytes()].concat()
}

/// What a stream holds, with the pieces of each `CopyData` body put together.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Copy(Vec<u8>),
    /// The pieces of a body whose end is missing.
    CutCopy(Vec<u8>),
    Message(BackendMessage),
    Error(WireError),
}

/// Decodes a stream that arrives in chunks, and checks what holds for every stream on the way.
fn decode_with(mut decoder: FrameDecoder, chunks: &[&[u8]]) -> (Vec<Item>, bool) {
    let mut items = Vec::new();
    let mut body: Option<Vec<u8>> = None;
    let mut given = 0;
    'stream: for chunk in chunks {
        let mut input = *chunk;
        given += chunk.len() as u64;
        loop {
            let result = decoder.next(&mut input);
            assert_eq!(decoder.position() + input.len() as u64, given);
            match result {
                Ok(None) => {
                    assert!(input.is_empty());
                    break;
                }
                Ok(Some(Frame::Message(message))) => {
                    assert!(body.is_none(), "a message inside a CopyData body");
                    items.push(Item::Message(message));
                }
                Ok(Some(Frame::CopyData { chunk: piece, first, last })) => {
                    assert_eq!(first, body.is_none());
                    assert!(!piece.is_empty() || (first && last));
                    let range = chunk.as_ptr_range();
                    assert!(piece.is_empty() || range.contains(&piece.as_ptr()), "a copy was made");
                    let mut whole = body.take().unwrap_or_default();
                    whole.extend_from_slice(piece);
                    if last {
                        items.push(Item::Copy(whole));
                    } else {
                        body = Some(whole);
                    }
                }
                Err(error) => {
                    assert_eq!(decoder.next(&mut input), Err(error.clone()), "an error that went away");
                    assert!(!decoder.is_between_messages());
                    items.push(Item::Error(error));
                    break 'stream;
                }
            }
        }
    }
    items.extend(body.map(Item::CutCopy));
    (items, decoder.is_between_messages())
}

fn decode(chunks: &[&[u8]]) -> (Vec<Item>, bool) {
    decode_with(FrameDecoder::new(), chunks)
}

/// Cuts `stream` at these places, taken modulo its length.
fn cut<'a>(stream: &'a [u8], places: &[usize]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places.iter().map(|place| place % (stream.len() + 1)).collect();
    places.sort_unstable();
    let mut from = 0;
    let mut chunks: Vec<&[u8]> = places
        .iter()
        .map(|to| {
            let chunk = &stream[from..*to];
            from = *to;
            chunk
        })
        .collect();
    chunks.push(&stream[from..]);
    chunks
}

fn server_error(fields: &[(u8, &str)]) -> ServerError {
    ServerError::from_fields(fields.iter().map(|(code, value)| (*code, (*value).to_owned())))
}

/// Every message that is understood, as tag, body and meaning.
fn good_messages() -> Vec<(u8, Vec<u8>, BackendMessage)> {
    use AuthenticationRequest as Request;
    use BackendMessage as Message;
    let auth = |code: i32, rest: &[u8]| [&code.to_be_bytes()[..], rest].concat();
    let request = Message::Authentication;
    vec![
        (b'R', auth(0, b""), request(Request::Ok)),
        (b'R', auth(3, b""), request(Request::CleartextPassword)),
        (b'R', auth(5, b"salt"), request(Request::Md5Password { salt: *b"salt" })),
        (
            b'R',
            auth(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
            request(Request::Sasl { mechanisms: vec!["SCRAM-SHA-256-PLUS".into(), "SCRAM-SHA-256".into()] }),
        ),
        (b'R', auth(11, b"r=x"), request(Request::SaslContinue(Bytes::from_static(b"r=x")))),
        (b'R', auth(12, b"v=y"), request(Request::SaslFinal(Bytes::from_static(b"v=y")))),
        (b'R', auth(2, b""), request(Request::Unsupported { code: 2, name: "Kerberos V5" })),
        (b'R', auth(7, b""), request(Request::Unsupported { code: 7, name: "GSSAPI" })),
        (b'R', auth(8, b"token"), request(Request::Unsupported { code: 8, name: "GSSAPI" })),
        (b'R', auth(9, b""), request(Request::Unsupported { code: 9, name: "SSPI" })),
        (b'R', auth(-1, b"what"), request(Request::Unsupported { code: -1, name: "unknown" })),
        (
            b'S',
            b"server_version\x0015.18\0".to_vec(),
            Message::ParameterStatus { name: "server_version".into(), value: "15.18".into() },
        ),
        (
            b'S',
            b"session_authorization\0J\xf6rg\0".to_vec(),
            Message::ParameterStatus { name: "session_authorization".into(), value: "J\u{fffd}rg".into() },
        ),
        (
            b'K',
            [&7i32.to_be_bytes()[..], b"key!"].concat(),
            Message::BackendKeyData { process_id: 7, secret_key: Bytes::from_static(b"key!") },
        ),
        (
            b'K',
            [&7i32.to_be_bytes()[..], &[9; 256]].concat(),
            Message::BackendKeyData { process_id: 7, secret_key: Bytes::from_static(&[9; 256]) },
        ),
        (b'Z', b"I".to_vec(), Message::ReadyForQuery(TransactionStatus::Idle)),
        (b'Z', b"T".to_vec(), Message::ReadyForQuery(TransactionStatus::InTransaction)),
        (b'Z', b"E".to_vec(), Message::ReadyForQuery(TransactionStatus::Failed)),
        (
            b'T',
            [b"\0\x02systemid\0", &[0; 18][..], b"tli\0", &[0; 18][..]].concat(),
            Message::RowDescription(vec!["systemid".into(), "tli".into()]),
        ),
        (b'T', vec![0, 0], Message::RowDescription(vec![])),
        (
            b'D',
            b"\0\x03\0\0\0\x01a\xff\xff\xff\xff\0\0\0\0".to_vec(),
            Message::DataRow(vec![Some(Bytes::from_static(b"a")), None, Some(Bytes::new())]),
        ),
        (b'C', b"SELECT 1\0".to_vec(), Message::CommandComplete("SELECT 1".into())),
        (b'I', vec![], Message::EmptyQueryResponse),
        (b'G', vec![0, 0, 0], Message::CopyInResponse),
        (b'H', vec![1, 0, 2, 0, 1, 0, 1], Message::CopyOutResponse),
        (b'W', vec![0, 0, 0], Message::CopyBothResponse),
        (b'W', vec![0, 0, 1, 0, 0], Message::CopyBothResponse),
        (b'c', vec![], Message::CopyDone),
        (
            b'E',
            b"SERROR\0VERROR\0C42601\0Mno \xff\0\0".to_vec(),
            Message::ErrorResponse(server_error(&[
                (b'S', "ERROR"),
                (b'V', "ERROR"),
                (b'C', "42601"),
                (b'M', "no \u{fffd}"),
            ])),
        ),
        (b'E', vec![0], Message::ErrorResponse(server_error(&[]))),
        (b'N', b"SWARNING\0\0".to_vec(), Message::NoticeResponse(server_error(&[(b'S', "WARNING")]))),
        (
            b'A',
            b"\0\0\0\x05news\0hello\0".to_vec(),
            Message::NotificationResponse { process_id: 5, channel: "news".into(), payload: "hello".into() },
        ),
        (
            b'v',
            b"\0\x03\0\0\0\0\0\x01_pq_.x\0".to_vec(),
            Message::NegotiateProtocolVersion { newest: 0x0003_0000, unrecognized: vec!["_pq_.x".into()] },
        ),
    ]
}

#[test]
fn understands_every_message_however_it_is_cut() {
    for (tag, body, expected) in good_messages() {
        let stream = frame(tag, &body);
        let expected = (vec![Item::Message(expected)], true);
        assert_eq!(decode(&[&stream]), expected);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(decode(&bytes), expected);
    }
}

#[test]
fn a_body_that_is_cut_short_or_too_long_is_malformed() {
    for (tag, body, expected) in good_messages() {
        for keep in 0..body.len() {
            match decode(&[&frame(tag, &body[..keep])]).0.as_slice() {
                [Item::Error(WireError::Malformed { tag: found, position: 0, .. })] => {
                    assert_eq!(*found, tag);
                }
                // What ends anywhere is no message with a fixed layout.
                [
                    Item::Message(BackendMessage::Authentication(_) | BackendMessage::BackendKeyData { .. }),
                ] => {}
                other => panic!("{expected:?} cut to {keep} bytes gives {other:?}"),
            }
        }
        let longer = [&body[..], b"\x01"].concat();
        match decode(&[&frame(tag, &longer)]).0.as_slice() {
            [Item::Error(WireError::Malformed { .. })] => {}
            [Item::Message(BackendMessage::Authentication(_) | BackendMessage::BackendKeyData { .. })] => {}
            other => panic!("{expected:?} with one more byte gives {other:?}"),
        }
    }
}

#[test]
fn bodies_that_lie_are_malformed() {
    for (tag, body) in [
        (b'R', &b""[..]),
        (b'R', b"\0\0\0\x05abc"),
        (b'R', b"\0\0\0\x0aSCRAM"),
        (b'R', b"\0\0\0\x0a\0more"),
        (b'K', b"\0\0\0\x01abc"),
        (b'K', &[0; 4 + 257]),
        (b'Z', b"X"),
        (b'D', b"\xff\xff"),
        (b'D', b"\0\x01\xff\xff\xff\xfe"),
        (b'D', b"\0\x01\x7f\xff\xff\xffabc"),
        (b'D', b"\x7f\xff"),
        (b'W', b"\0\xff\xff"),
        (b'v', b"\0\0\0\0\xff\xff\xff\xff"),
        (b'v', b"\0\0\0\0\x7f\xff\xff\xff"),
        (b'T', b"\xff\xff"),
        (b'T', b"\0\x01no zero byte"),
        (b'C', b"no zero byte"),
        (b'E', b"Mno zero byte"),
        (b'E', b"Mno end\0"),
    ] {
        let found = decode(&[&frame(b'd', b"before"), &frame(tag, body)]).0;
        assert!(
            matches!(found[..], [Item::Copy(_), Item::Error(WireError::Malformed { position: 11, .. })]),
            "{tag} {body:?}: {found:?}"
        );
    }
}

#[test]
fn hostile_lengths_are_refused_at_the_header() {
    let long = i32::try_from(DEFAULT_MESSAGE_LIMIT).unwrap();
    let short = i32::try_from(SHORT_MESSAGE_LIMIT).unwrap();
    let mut rows = Vec::new();
    for tag in *b"dTDENARSKZCIGHWcv" {
        rows.extend([0, 1, 2, 3, -1, i32::MIN].map(|length| (tag, length)));
    }
    rows.extend(b"TDENA".map(|tag| (tag, long + 1)));
    rows.extend(b"RSKZCIGHWcv".map(|tag| (tag, short + 1)));
    rows.extend(b"TDRSZ".map(|tag| (tag, i32::MAX)));
    for (tag, length) in rows {
        let stream = [frame(b'I', b""), header(tag, length)].concat();
        let found = decode(&[&stream]).0;
        assert!(
            matches!(found[..], [_, Item::Error(WireError::BadLength { tag: t, position: 5, found, .. })]
                if t == tag && found == length),
            "{tag} {length}: {found:?}"
        );
    }
}

#[test]
fn longest_messages_are_taken_and_nothing_is_reserved_before_it_arrives() {
    let mut decoder = FrameDecoder::new();
    let mut input = &header(b'D', i32::try_from(DEFAULT_MESSAGE_LIMIT).unwrap())[..];
    assert_eq!(decoder.next(&mut input), Ok(None));
    assert!(decoder.gathered.capacity() < 1024);

    let value = vec![7; DEFAULT_MESSAGE_LIMIT - 10];
    let length = u32::try_from(value.len()).unwrap().to_be_bytes();
    let row = frame(b'D', &[&[0, 1][..], &length, &value].concat());
    assert_eq!(row.len(), DEFAULT_MESSAGE_LIMIT + 1);
    let expected = Item::Message(BackendMessage::DataRow(vec![Some(value.into())]));
    assert_eq!(decode(&[&row]), (vec![expected], true));

    let longer = header(b'D', i32::try_from(DEFAULT_MESSAGE_LIMIT + 1).unwrap());
    let decoder = FrameDecoder::with_message_limit(2 * DEFAULT_MESSAGE_LIMIT);
    assert_eq!(decode_with(decoder, &[&longer]), (vec![], false));
}

#[test]
fn a_copy_data_body_may_be_as_long_as_its_length_word_allows() {
    let mut decoder = FrameDecoder::new();
    let stream = [header(b'd', i32::MAX), vec![1; 1000]].concat();
    let mut input = &stream[..];
    let frame = decoder.next(&mut input);
    assert_eq!(frame, Ok(Some(Frame::CopyData { chunk: &[1; 1000], first: true, last: false })));
    assert_eq!(decoder.next(&mut input), Ok(None));
    assert!(!decoder.is_between_messages());
}

#[test]
fn unknown_tags_are_refused_with_their_position() {
    for tag in (0..=u8::MAX).filter(|tag| !b"dTDENARSKZCIGHWcv".contains(tag)) {
        let stream = [frame(b'd', b"12345"), header(tag, 4)].concat();
        let expected =
            vec![Item::Copy(b"12345".to_vec()), Item::Error(WireError::UnknownTag { tag, position: 10 })];
        assert_eq!(decode(&[&stream]).0, expected);
    }
    let text = WireError::UnknownTag { tag: b'\n', position: 10 }.to_string();
    assert!(
        text.starts_with("byte 10 of the server's stream: unknown message tag '\\n' (0x0a)\nHINT: "),
        "{text}"
    );
}

#[test]
fn an_error_without_framing_is_shown() {
    let said = "could not fork new process for connection: Resource temporarily unavailable";
    let expected = vec![Item::Error(WireError::Unframed { text: said.to_owned() })];
    let stream = format!("E{said}\n\0").into_bytes();
    assert_eq!(decode(&[&stream]).0, expected);
    assert_eq!(decode(&stream.chunks(1).collect::<Vec<_>>()).0, expected);
    let endless = [b"E".repeat(2000)].concat();
    let found = decode(&[&endless]).0;
    assert!(
        matches!(&found[..], [Item::Error(WireError::Unframed { text })] if text.len() == UNFRAMED_LIMIT - 1)
    );
    // Once the server has spoken the protocol it is held to it.
    let later = [frame(b'I', b""), stream].concat();
    assert!(matches!(decode(&[&later]).0[..], [_, Item::Error(WireError::BadLength { tag: b'E', .. })]));
}

#[test]
fn an_empty_body_is_one_empty_piece() {
    let stream = [frame(b'd', b""), frame(b'd', b"x"), frame(b'd', b"")].concat();
    let expected = (vec![Item::Copy(vec![]), Item::Copy(b"x".to_vec()), Item::Copy(vec![])], true);
    assert_eq!(decode(&[&stream]), expected);
    assert_eq!(decode(&stream.chunks(1).collect::<Vec<_>>()), expected);
}

/// Streams of right frames, mostly `CopyData`, and what they hold.
fn streams() -> impl Strategy<Value = (Vec<u8>, Vec<Item>)> {
    let body = proptest::collection::vec(any::<u8>(), 0..200);
    let messages = good_messages();
    let copy = body.prop_map(|body| (frame(b'd', &body), Item::Copy(body)));
    let other = (0..messages.len()).prop_map(move |at| {
        let (tag, body, message) = &messages[at];
        (frame(*tag, body), Item::Message(message.clone()))
    });
    proptest::collection::vec(prop_oneof![3 => copy, 1 => other], 0..12).prop_map(|frames| {
        let (bytes, items): (Vec<_>, Vec<_>) = frames.into_iter().unzip();
        (bytes.concat(), items)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn cutting_anywhere_changes_nothing(
        (stream, items) in streams(),
        places in proptest::collection::vec(any::<usize>(), 0..40),
    ) {
        prop_assert_eq!(decode(&cut(&stream, &places)), (items, true));
    }

    #[test]
    fn any_bytes_give_the_same_outcome_however_they_are_cut(
        (good, _) in streams(),
        noise in proptest::collection::vec(any::<u8>(), 0..60),
        at in any::<usize>(),
        places in proptest::collection::vec(any::<usize>(), 0..40),
    ) {
        let mut stream = good;
        let at = at % (stream.len() + 1);
        let end = stream.len().min(at + noise.len());
        stream.splice(at..end, noise);
        prop_assert_eq!(decode(&cut(&stream, &places)), decode(&[&stream]));
    }
}
