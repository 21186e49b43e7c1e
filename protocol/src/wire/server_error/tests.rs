use proptest::prelude::*;

use super::*;
use crate::wire::{BackendMessage, Frame, FrameDecoder};

fn error(fields: &[(u8, &str)]) -> ServerError {
    ServerError::from_fields(fields.iter().map(|(code, value)| (*code, (*value).to_owned())))
}

#[test]
fn reads_as_libpq_prints_it() {
    for (fields, expected) in [
        (&[(b'S', "ERROR"), (b'M', "no")][..], "ERROR:  no"),
        (&[(b'S', "FEHLER"), (b'V', "ERROR"), (b'M', "nein"), (b'P', "7")], "FEHLER:  nein at character 7"),
        (
            &[
                (b'W', "SQL function"),
                (b'q', "select 1"),
                (b'H', "try"),
                (b'D', "why\nmore"),
                (b'M', "no"),
                (b'V', "FATAL"),
            ],
            "FATAL:  no\nDETAIL:  why\nmore\nHINT:  try\nQUERY:  select 1\nCONTEXT:  SQL function",
        ),
        (&[(b'S', "WARNING"), (b'V', "WARNING"), (b'M', "m"), (b'W', "where")], "WARNING:  m"),
        (&[], "ERROR:  (the server sent no message)"),
    ] {
        assert_eq!(error(fields).to_string(), expected);
    }
}

#[test]
fn severity_decides_whether_the_session_ends() {
    for (fields, fatal, is_error) in [
        (&[(b'S', "FATAL")][..], true, true),
        (&[(b'S', "SCHWERWIEGEND"), (b'V', "FATAL")], true, true),
        (&[(b'S', "PANIK"), (b'V', "PANIC")], true, true),
        (&[(b'S', "FATAL"), (b'V', "ERROR")], false, true),
        (&[(b'V', "NOTICE")], false, false),
        (&[], false, true),
    ] {
        assert_eq!((error(fields).is_fatal(), error(fields).is_error()), (fatal, is_error), "{fields:?}");
    }
}

#[test]
fn fields_by_name() {
    let error = error(&[
        (b'S', "s"),
        (b'V', "v"),
        (b'C', "XX001"),
        (b'M', "m"),
        (b'D', "d"),
        (b'H', "h"),
        (b'P', "1"),
        (b'q', "q"),
        (b'W', "w"),
        (b'F', "f.c"),
        (b'L', "42"),
        (b'R', "r"),
        (b'M', "a second message does not count"),
        (b'?', "a field of a later server"),
    ]);
    assert_eq!(
        (error.severity(), error.severity_code(), error.sqlstate(), error.message()),
        ("s", "v", "XX001", "m")
    );
    assert_eq!(
        [error.detail(), error.hint(), error.position(), error.internal_query(), error.context()],
        [Some("d"), Some("h"), Some("1"), Some("q"), Some("w")]
    );
    assert_eq!([error.file(), error.line(), error.routine()], [Some("f.c"), Some("42"), Some("r")]);
    assert_eq!(error.field(b'?'), Some("a field of a later server"));
    assert!(format!("{error:?}").contains("'C': \"XX001\""));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn fields_come_back_as_they_were_sent(
        fields in proptest::collection::vec((1u8.., "[^\0]{0,20}"), 0..10),
        notice in any::<bool>(),
    ) {
        let sent = ServerError::from_fields(fields.clone());
        let mut body: Vec<u8> = Vec::new();
        for (code, value) in &fields {
            body.push(*code);
            body.extend_from_slice(value.as_bytes());
            body.push(0);
        }
        body.push(0);
        let mut stream = vec![if notice { b'N' } else { b'E' }];
        stream.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        stream.extend_from_slice(&body);
        let expected =
            if notice { BackendMessage::NoticeResponse(sent) } else { BackendMessage::ErrorResponse(sent) };
        let frame = FrameDecoder::new().next(&mut stream.as_slice()).unwrap();
        prop_assert_eq!(frame, Some(Frame::Message(expected)));
    }
}
