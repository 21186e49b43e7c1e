use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::*;
use crate::ServerVersion;
use crate::wire::{RequiredMethods, TransactionStatus};

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// What a server keeps of a SCRAM password (RFC 5802, section 3), computed without the client's code.
struct Verifier {
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

impl Verifier {
    fn new(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let mut block = hmac(password, &[salt, &1u32.to_be_bytes()].concat());
        let mut salted = block;
        for _ in 1..iterations {
            block = hmac(password, &block);
            salted.iter_mut().zip(block).for_each(|(sum, byte)| *sum ^= byte);
        }
        let client_key = hmac(&salted, b"Client Key");
        Self { stored_key: Sha256::digest(client_key).into(), server_key: hmac(&salted, b"Server Key") }
    }

    /// The server's last message where the client's proof is right.
    fn check(&self, auth_message: &str, proof: &str) -> Option<String> {
        let signature = hmac(&self.stored_key, auth_message.as_bytes());
        let proof: [u8; 32] = STANDARD.decode(proof).ok()?.try_into().ok()?;
        let client_key: Vec<u8> = proof.iter().zip(signature).map(|(a, b)| a ^ b).collect();
        let right = <[u8; 32]>::from(Sha256::digest(client_key)) == self.stored_key;
        let signature = hmac(&self.server_key, auth_message.as_bytes());
        right.then(|| format!("v={}", STANDARD.encode(signature)))
    }
}

/// The example of RFC 7677, section 3, shows that the server of these tests is right.
#[test]
fn the_test_server_agrees_with_rfc_7677() {
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    let auth_message =
        format!("n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}");
    let proof = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    assert_eq!(
        Verifier::new(b"pencil", &salt, 4096).check(&auth_message, proof).as_deref(),
        Some("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    );
}

fn request(request: AuthenticationRequest) -> BackendMessage {
    BackendMessage::Authentication(request)
}

fn ok() -> BackendMessage {
    request(AuthenticationRequest::Ok)
}

fn begin(credentials: Credentials) -> Handshake {
    Handshake::new(&StartupParameters::replication("me"), credentials).unwrap().0
}

fn with_password() -> Handshake {
    begin(Credentials::password("pencil"))
}

fn sent(step: Result<HandshakeStep, HandshakeError>) -> Vec<u8> {
    match step {
        Ok(HandshakeStep::Send(bytes)) => bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn scram_offer() -> BackendMessage {
    request(AuthenticationRequest::Sasl { mechanisms: vec!["SCRAM-SHA-256".into()] })
}

/// The client's first message without its header `n,,`.
fn client_first(handshake: &mut Handshake) -> String {
    let bytes = sent(handshake.on_message(scram_offer()));
    let mut body = &bytes[5..];
    assert_eq!((bytes[0], bytes.len()), (b'p', 1 + (&bytes[1..5]).get_u32() as usize));
    body = body.strip_prefix(b"SCRAM-SHA-256\0").unwrap();
    assert_eq!(body.get_u32() as usize, body.len());
    String::from_utf8(body.to_vec()).unwrap().strip_prefix("n,,").unwrap().to_owned()
}

/// Leads a handshake to where the server owes its proof, and returns the right one.
fn up_to_the_proof(handshake: &mut Handshake, password: &str) -> Option<String> {
    let first = client_first(handshake);
    let client_nonce = first.strip_prefix("n=,r=").unwrap();
    let salt = b"salty";
    let challenge = format!("r={client_nonce}server,s={},i=4096", STANDARD.encode(salt));
    let reply =
        sent(handshake.on_message(request(AuthenticationRequest::SaslContinue(challenge.clone().into()))));
    let last = String::from_utf8(reply[5..].to_vec()).unwrap();
    let (without_proof, proof) = last.split_once(",p=").unwrap();
    assert_eq!(without_proof, format!("c=biws,r={client_nonce}server"));
    Verifier::new(password.as_bytes(), salt, 4096)
        .check(&format!("{first},{challenge},{without_proof}"), proof)
}

fn proof(text: impl Into<Bytes>) -> BackendMessage {
    request(AuthenticationRequest::SaslFinal(text.into()))
}

#[test]
fn the_startup_packet_says_what_was_asked_for() {
    let full = StartupParameters {
        user: "me".into(),
        database: Some("db".into()),
        replication: false,
        application_name: Some("app".into()),
        client_encoding: Some("UTF8".into()),
        options: Some("-c x=1".into()),
        extra: vec![("DateStyle".into(), "ISO".into())],
    };
    for (parameters, expected) in [
        (
            StartupParameters::replication("me"),
            &b"user\0me\0database\0replication\0replication\0true\0client_encoding\0UTF8\0\0"[..],
        ),
        (StartupParameters { user: "me".into(), ..Default::default() }, b"user\0me\0\0"),
        (StartupParameters::sql("me", "db"), b"user\0me\0database\0db\0client_encoding\0UTF8\0\0"),
        (
            full,
            b"user\0me\0database\0db\0options\0-c x=1\0application_name\0app\0client_encoding\0UTF8\0DateStyle\0ISO\0\0",
        ),
    ] {
        let (_, packet) = Handshake::new(&parameters, Credentials::none()).unwrap();
        assert_eq!((&packet[..4]).get_u32() as usize, packet.len());
        assert_eq!(&packet[4..8], [0, 3, 0, 0]);
        assert_eq!(&packet[8..], expected);
    }
    for (user, expected) in
        [("", EncodeError::EmptyUser), ("a\0b", EncodeError::ZeroByte { what: "a startup parameter" })]
    {
        let refused = Handshake::new(&StartupParameters::replication(user), Credentials::none());
        assert_eq!(refused.unwrap_err(), expected);
    }
}

#[test]
fn trust_leads_to_a_session() {
    let mut handshake = begin(Credentials::none());
    let status = |name: &str, value: &str| BackendMessage::ParameterStatus {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let notice = ServerError::from_fields([(b'M', "hello".to_owned())]);
    assert!(matches!(handshake.on_message(ok()), Ok(HandshakeStep::Continue)));
    for message in [
        status("server_version", "15.18 (Debian)"),
        status("in_hot_standby", "on"),
        status("in_hot_standby", "off"),
        BackendMessage::BackendKeyData { process_id: 9, secret_key: Bytes::from_static(b"key!") },
    ] {
        assert!(matches!(handshake.on_message(message), Ok(HandshakeStep::Continue)));
    }
    let step = handshake.on_message(BackendMessage::NoticeResponse(notice.clone()));
    assert!(matches!(step, Ok(HandshakeStep::Notice(found)) if found == notice));
    let ready = BackendMessage::ReadyForQuery(TransactionStatus::Idle);
    let Ok(HandshakeStep::Ready(session)) = handshake.on_message(ready.clone()) else { panic!("not ready") };
    assert_eq!(session.server_version(), Ok(ServerVersion(150_018)));
    assert_eq!(session.parameter("in_hot_standby"), Some("off"));
    let key = session.cancel_key.unwrap();
    assert_eq!((key.process_id, &key.secret_key[..]), (9, &b"key!"[..]));
    assert!(matches!(handshake.on_message(ready), Err(HandshakeError::Unexpected { .. })));
}

#[test]
fn a_version_that_is_none_is_an_error() {
    for (value, shown) in [(None, "no server_version"), (Some("devel"), "server_version \"devel\"")] {
        let parameters = value.map(|value: &str| ("server_version".to_owned(), value.to_owned()));
        let session = SessionInfo { parameters: parameters.into_iter().collect(), cancel_key: None };
        let error = session.server_version().unwrap_err();
        assert!(error.to_string().contains(shown), "{error}");
    }
}

#[test]
fn passwords_in_the_clear_and_as_md5() {
    let md5 = AuthenticationRequest::Md5Password { salt: [0x2a, 0x3d, 0x8f, 0xe0] };
    for (user, password, asked, expected) in [
        ("me", "pencil", AuthenticationRequest::CleartextPassword, &b"p\0\0\0\x0bpencil\0"[..]),
        ("md5_user", "password", md5, b"p\0\0\0\x28md562af4dd09bbb41884907a838a3233294\0"),
    ] {
        let parameters = StartupParameters::replication(user);
        let (mut handshake, _) = Handshake::new(&parameters, Credentials::password(password)).unwrap();
        assert_eq!(sent(handshake.on_message(request(asked.clone()))), expected);
        assert!(matches!(handshake.on_message(ok()), Ok(HandshakeStep::Continue)));

        // A server that asks again learns nothing more.
        let (mut handshake, _) = Handshake::new(&parameters, Credentials::password(password)).unwrap();
        sent(handshake.on_message(request(asked.clone())));
        assert!(matches!(handshake.on_message(request(asked)), Err(HandshakeError::Unexpected { .. })));
    }
    let mut handshake = begin(Credentials::password("a\0b"));
    let refused = handshake.on_message(request(AuthenticationRequest::CleartextPassword));
    assert!(matches!(refused, Err(HandshakeError::Encode(EncodeError::ZeroByte { .. }))));
}

#[test]
fn a_password_that_is_needed_and_absent() {
    for credentials in [Credentials::none(), Credentials::password("")] {
        for (asked, name) in [
            (request(AuthenticationRequest::CleartextPassword), "password"),
            (request(AuthenticationRequest::Md5Password { salt: [0; 4] }), "md5"),
            (scram_offer(), "scram-sha-256"),
        ] {
            match begin(credentials.clone()).on_message(asked) {
                Err(HandshakeError::PasswordRequired { user, method }) => {
                    assert_eq!((user.as_str(), method), ("me", name));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn scram_proves_both_sides() {
    let mut handshake = with_password();
    let right = up_to_the_proof(&mut handshake, "pencil").expect("the client's proof is right");
    assert!(matches!(handshake.on_message(proof(right)), Ok(HandshakeStep::Continue)));
    assert!(matches!(handshake.on_message(ok()), Ok(HandshakeStep::Continue)));
    assert!(up_to_the_proof(&mut with_password(), "another").is_none());
}

#[test]
fn scram_normalises_passwords() {
    // RFC 4013: soft hyphens vanish, a no-break space is a space.
    let mut handshake = begin(Credentials::password("I\u{ad}X\u{a0}y"));
    assert!(up_to_the_proof(&mut handshake, "IX y").is_some());
}

#[test]
fn a_server_that_does_not_prove_itself_is_refused() {
    let wrong = format!("v={}", STANDARD.encode([7; 32]));
    for text in [wrong.as_str(), "", "v=", "v=!", "e=other-error", "v=AAAA,x", "\u{fffd}"] {
        let mut handshake = with_password();
        up_to_the_proof(&mut handshake, "pencil").unwrap();
        let step = handshake.on_message(proof(text.to_owned()));
        assert!(matches!(step, Err(HandshakeError::NotProven { .. })), "{text:?}: {step:?}");
        assert!(matches!(handshake.on_message(ok()), Err(HandshakeError::Unexpected { .. })));
    }
}

#[test]
fn authentication_ok_before_the_proof_is_refused() {
    let refused = |mut handshake: Handshake| {
        let step = handshake.on_message(ok());
        assert!(
            matches!(step, Err(HandshakeError::Unexpected { found: "AuthenticationOk", .. })),
            "{step:?}"
        );
        assert!(handshake.on_message(ok()).is_err());
    };
    let mut after_the_offer = with_password();
    client_first(&mut after_the_offer);
    refused(after_the_offer);
    let mut after_the_challenge = with_password();
    up_to_the_proof(&mut after_the_challenge, "pencil").unwrap();
    refused(after_the_challenge);
}

#[test]
fn broken_challenges_are_refused() {
    for challenge in [
        "",
        "r=another,s=c2FsdA==,i=4096",
        "r=NONCEx,s=c2FsdA==,i=",
        "r=NONCEx,s=c2FsdA==,i=-1",
        "r=NONCEx,s=***,i=4096",
        "r=NONCEx,s=c2FsdA,i=4096",
        "r=NONCEx,s=c2FsdA==,i=4096,more",
        "s=c2FsdA==,r=NONCEx,i=4096",
    ] {
        let mut handshake = with_password();
        let first = client_first(&mut handshake);
        let challenge = challenge.replace("NONCE", first.strip_prefix("n=,r=").unwrap());
        let step =
            handshake.on_message(request(AuthenticationRequest::SaslContinue(challenge.clone().into())));
        assert!(matches!(step, Err(HandshakeError::BadChallenge { .. })), "{challenge}: {step:?}");
    }
    let mut handshake = with_password();
    let first = client_first(&mut handshake);
    let challenge = format!("r={}x,s=c2FsdA==,i=4000000000", first.strip_prefix("n=,r=").unwrap());
    let step = handshake.on_message(request(AuthenticationRequest::SaslContinue(challenge.into())));
    assert!(matches!(step, Err(HandshakeError::TooManyIterations { found: 4_000_000_000 })), "{step:?}");
}

#[test]
fn what_is_not_spoken_is_refused_by_name() {
    let unknown = AuthenticationRequest::Sasl { mechanisms: vec!["OTHER".into()] };
    let step = with_password().on_message(request(unknown));
    assert!(matches!(step, Err(HandshakeError::UnsupportedMechanisms { .. })));
    let gss = AuthenticationRequest::Unsupported { code: 7, name: "GSSAPI" };
    let error = with_password().on_message(request(gss)).unwrap_err();
    assert!(error.to_string().starts_with("the server asks for GSSAPI authentication (method 7)"), "{error}");
    let version = BackendMessage::NegotiateProtocolVersion { newest: 0, unrecognized: vec![] };
    let step = with_password().on_message(version);
    assert!(matches!(step, Err(HandshakeError::ProtocolNotSupported { .. })));
}

#[test]
fn a_refusal_is_the_servers_own_words() {
    let words = ServerError::from_fields([(b'S', "FATAL".to_owned()), (b'M', "no entry".to_owned())]);
    let mut handshake = with_password();
    let error = handshake.on_message(BackendMessage::ErrorResponse(words)).unwrap_err();
    assert_eq!(error.to_string(), "FATAL:  no entry");
    assert!(matches!(error, HandshakeError::Refused(_)));
}

#[test]
fn messages_out_of_turn_are_refused() {
    let sasl = |text: &'static [u8]| AuthenticationRequest::SaslContinue(Bytes::from_static(text));
    for message in [
        request(sasl(b"r=x")),
        proof("v=x"),
        BackendMessage::ReadyForQuery(TransactionStatus::Idle),
        BackendMessage::ParameterStatus { name: "a".into(), value: "b".into() },
        BackendMessage::BackendKeyData { process_id: 1, secret_key: Bytes::from_static(b"key!") },
        BackendMessage::CopyBothResponse,
    ] {
        let step = with_password().on_message(message);
        assert!(matches!(step, Err(HandshakeError::Unexpected { .. })), "{step:?}");
    }
}

#[test]
fn settings_are_bounded() {
    let mut handshake = begin(Credentials::none());
    handshake.on_message(ok()).unwrap();
    let error = (0..1000)
        .map(|number| BackendMessage::ParameterStatus { name: number.to_string(), value: "x".repeat(1000) })
        .find_map(|message| handshake.on_message(message).err());
    assert!(matches!(error, Some(HandshakeError::TooManyParameters { .. })));
}

#[test]
fn passwords_are_never_shown() {
    assert!(!format!("{:?} {:?}", Credentials::password("pencil"), with_password()).contains("pencil"));
}

fn offer(mechanisms: &[&str]) -> BackendMessage {
    let mechanisms = mechanisms.iter().map(|&name| name.into()).collect();
    request(AuthenticationRequest::Sasl { mechanisms })
}

fn with_rules(channel: Channel, binding: BindingMode, methods: Option<&str>) -> Handshake {
    let methods = methods.map(|methods| RequiredMethods::parse(methods).unwrap());
    let rules = AuthRules { channel, binding, methods };
    let parameters = StartupParameters::replication("me");
    Handshake::with_rules(&parameters, Credentials::password("pencil"), rules).unwrap().0
}

#[test]
fn mechanisms_and_channel_binding() {
    const PLUS: &str = "SCRAM-SHA-256-PLUS";
    const PLAIN: &str = "SCRAM-SHA-256";
    let tls = || Channel::Tls(Some(b"end point".to_vec()));
    for (channel, binding, offered, expected) in [
        (tls(), BindingMode::Prefer, &[PLUS, PLAIN][..], Ok((PLUS, "p=tls-server-end-point,,"))),
        (tls(), BindingMode::Require, &[PLAIN, PLUS], Ok((PLUS, "p=tls-server-end-point,,"))),
        (tls(), BindingMode::Disable, &[PLUS, PLAIN], Ok((PLAIN, "n,,"))),
        // A client that could bind tells a server that could too that its offer was lost on the way.
        (tls(), BindingMode::Prefer, &[PLAIN], Ok((PLAIN, "y,,"))),
        (Channel::Plain, BindingMode::Prefer, &[PLAIN], Ok((PLAIN, "n,,"))),
        (tls(), BindingMode::Require, &[PLAIN], Err("channel binding is required, but server did not offer")),
        (Channel::Plain, BindingMode::Require, &[PLAIN], Err("channel binding required, but SSL not in use")),
        (Channel::Plain, BindingMode::Prefer, &[PLUS, PLAIN], Err("server offered SCRAM-SHA-256-PLUS auth")),
        (
            Channel::Tls(None),
            BindingMode::Prefer,
            &[PLUS, PLAIN],
            Err("could not determine server certificate"),
        ),
        (tls(), BindingMode::Prefer, &["OTHER"], Err("the server offers the SASL mechanisms")),
    ] {
        let name = format!("{channel:?} {binding:?} {offered:?}");
        let mut handshake = with_rules(channel, binding, None);
        match (handshake.on_message(offer(offered)), expected) {
            (Ok(HandshakeStep::Send(bytes)), Ok((mechanism, header))) => {
                let rest = bytes[5..].strip_prefix(mechanism.as_bytes()).expect(&name);
                assert!(rest.starts_with(b"\0") && rest[5..].starts_with(header.as_bytes()), "{name}");
            }
            (Err(error), Err(expected)) => {
                assert!(error.to_string().starts_with(expected), "{name}: {error}");
            }
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn only_the_methods_that_are_asked_for() {
    let md5 = || request(AuthenticationRequest::Md5Password { salt: [0; 4] });
    let clear = || request(AuthenticationRequest::CleartextPassword);
    let tls = || Channel::Tls(Some(b"end point".to_vec()));
    for (methods, binding, requests, expected) in [
        (Some("scram-sha-256"), BindingMode::Prefer, vec![scram_offer()], None),
        (Some("scram-sha-256"), BindingMode::Prefer, vec![md5()], Some("server requested a hashed password")),
        (Some("md5"), BindingMode::Prefer, vec![md5(), ok()], None),
        (Some("md5,none"), BindingMode::Prefer, vec![ok()], None),
        (Some("md5"), BindingMode::Prefer, vec![ok()], Some("server did not complete authentication")),
        (Some("!password"), BindingMode::Prefer, vec![ok()], None),
        (
            Some("!password"),
            BindingMode::Prefer,
            vec![clear()],
            Some("server requested a cleartext password"),
        ),
        (Some("password"), BindingMode::Prefer, vec![scram_offer()], Some("server requested SCRAM-SHA-256")),
        (Some("!none"), BindingMode::Prefer, vec![ok()], Some("server did not complete authentication")),
        (None, BindingMode::Require, vec![clear()], Some("channel binding required but not supported")),
        (None, BindingMode::Require, vec![ok()], Some("server authenticated client without channel binding")),
    ] {
        let mut handshake = with_rules(tls(), binding, methods);
        let result = requests.into_iter().try_for_each(|message| handshake.on_message(message).map(drop));
        match (result, expected) {
            (Ok(()), None) => {}
            (Err(error), Some(expected)) => {
                assert!(error.to_string().contains(expected), "{methods:?}: {error}");
            }
            (result, _) => panic!("{methods:?}: {result:?}"),
        }
    }
}
