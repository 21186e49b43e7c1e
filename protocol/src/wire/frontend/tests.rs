use super::*;

#[test]
fn messages_as_bytes() {
    type Encode = fn(&mut BytesMut) -> Result<(), EncodeError>;
    let rows: &[(Encode, &[u8])] = &[
        (
            |out| startup(&[("user", "me"), ("replication", "true")], out),
            b"\0\0\0\x22\0\x03\0\0user\0me\0replication\0true\0\0",
        ),
        (|out| query("SHOW x", out), b"Q\0\0\0\x0bSHOW x\0"),
        (|out| password(b"secret", out), b"p\0\0\0\x0bsecret\0"),
        (|out| sasl_initial_response("SCRAM", b"n,,", out), b"p\0\0\0\x11SCRAM\0\0\0\0\x03n,,"),
        (|out| sasl_response(b"c=biws", out), b"p\0\0\0\x0ac=biws"),
        (|out| copy_data(b"abc", out), b"d\0\0\0\x07abc"),
        (|out| copy_data(b"", out), b"d\0\0\0\x04"),
        (|out| copy_fail("no", out), b"f\0\0\0\x07no\0"),
        (|out| cancel_request(1, b"key!", out), b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01key!"),
    ];
    for (encode, expected) in rows {
        let mut out = BytesMut::from(&b"before"[..]);
        encode(&mut out).unwrap();
        assert_eq!(&out[6..], *expected);
    }
    type EncodeFixed = fn(&mut BytesMut);
    let fixed: &[(EncodeFixed, &[u8])] = &[
        (copy_done, b"c\0\0\0\x04"),
        (terminate, b"X\0\0\0\x04"),
        (ssl_request, b"\0\0\0\x08\x04\xd2\x16\x2f"),
    ];
    for (encode, expected) in fixed {
        let mut out = BytesMut::new();
        encode(&mut out);
        assert_eq!(&out[..], *expected);
    }
    assert_eq!(copy_data_header(MAX_COPY_DATA).unwrap(), *b"d\x3f\xff\xff\xfe");
}

#[test]
fn what_cannot_be_sent_leaves_the_buffer_as_it_was() {
    type Encode = fn(&mut BytesMut) -> Result<(), EncodeError>;
    let zero = |what| EncodeError::ZeroByte { what };
    let rows: &[(Encode, EncodeError)] = &[
        (|out| startup(&[("a\0", "b")], out), zero("the name of a startup parameter")),
        (|out| startup(&[("a", "b"), ("c", "\0")], out), zero("a startup parameter")),
        (|out| query("a\0b", out), zero("the query")),
        (|out| password(b"\0", out), zero("the password")),
        (|out| sasl_initial_response("\0", b"", out), zero("the SASL mechanism")),
        (|out| copy_fail("\0", out), zero("the reason of a failed copy")),
        (
            |out| cancel_request(1, &[0; 10_000], out),
            EncodeError::TooLong { what: "the cancel request", found: 10_012, most: MAX_STARTUP_PACKET },
        ),
        (
            |out| copy_data_header(MAX_COPY_DATA + 1).map(|header| out.extend_from_slice(&header)),
            EncodeError::TooLong { what: "a CopyData body", found: MAX_COPY_DATA + 1, most: MAX_COPY_DATA },
        ),
    ];
    for (encode, expected) in rows {
        let mut out = BytesMut::from(&b"before"[..]);
        assert_eq!(encode(&mut out).as_ref(), Err(expected));
        assert_eq!(&out[..], b"before");
    }
}

#[test]
fn a_startup_packet_is_as_long_as_a_server_reads() {
    // Length, version, "a", two zero bytes, and the final one.
    let value = "x".repeat(MAX_STARTUP_PACKET - 4 - 4 - 1 - 2 - 1);
    let mut out = BytesMut::new();
    startup(&[("a", &value)], &mut out).unwrap();
    assert_eq!(out.len(), MAX_STARTUP_PACKET);
    let longer = format!("{value}x");
    let expected =
        EncodeError::TooLong { what: "the startup packet", found: 10_001, most: MAX_STARTUP_PACKET };
    assert_eq!(startup(&[("a", &longer)], &mut out), Err(expected));
}
