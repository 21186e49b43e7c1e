//! The handshake, from the server's bytes to a session or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgstrata_protocol::wire::{
    Credentials, Frame, FrameDecoder, Handshake, HandshakeStep, StartupParameters,
};

fuzz_target!(|input: &[u8]| {
    let Some((choice, mut input)) = input.split_first() else { return };
    let credentials =
        if choice & 1 == 0 { Credentials::none() } else { Credentials::password(&b"secret"[..]) };
    let (mut handshake, packet) = Handshake::new(&StartupParameters::replication("me"), credentials)
        .expect("these parameters make a packet");
    assert!(!packet.is_empty());
    let mut decoder = FrameDecoder::new();
    while let Ok(Some(frame)) = decoder.next(&mut input) {
        let Frame::Message(message) = frame else { return };
        match handshake.on_message(message) {
            Ok(HandshakeStep::Ready(session)) => {
                let _ = session.server_version();
                return;
            }
            Ok(HandshakeStep::Send(bytes)) => assert!(!bytes.is_empty()),
            Ok(HandshakeStep::Continue) => {}
            Ok(HandshakeStep::Notice(notice)) => drop(notice.to_string()),
            Err(error) => return drop(error.to_string()),
        }
    }
});
