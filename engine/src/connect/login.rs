//! From settings to a session that awaits its first command: servers and addresses in turn, with and without TLS, time
//! limit, authentication.
//!
//! Follows `PQconnectPoll` of libpq (`fe-connect.c`) in what is tried next after which failure.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use bytes::BytesMut;
use pgstrata_protocol::wire::{
    AuthRules, Channel, Credentials, Handshake, HandshakeError, HandshakeStep, StartupParameters, frontend,
};
use rustls::crypto::aws_lc_rs;

use super::error::{AttemptError, ConnectError, FailedAttempt, SessionError};
use super::exchange::{Exchange, NoticeSink};
use super::hosts::{Host, Target};
use super::passfile;
use super::server_choice;
use super::session::{BUFFER, Purpose, Session};
use super::settings::{ConnectionSettings, Wanting};
use super::socket::{self, Place};
use super::tls::Tls;
use super::tls_error::TlsError;
use super::tls_settings::{CertificateMode, SslMode};
use super::transport::Transport;

/// `ERRCODE_CANNOT_CONNECT_NOW`: starting up or shutting down; another server may serve.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// `ERRCODE_INVALID_PASSWORD`.
const INVALID_PASSWORD: &str = "28P01";

const CONNECT_TCP: &str = "check that the server runs on that host and accepts TCP/IP connections.";
const CONNECT_UNIX: &str = "check that the server runs locally and accepts connections on that socket.";
const GIVE_PASSWORD: &str = "give one with PGPASSWORD, a password file, or the connection string.";

/// Tries the settings' servers, and each one's addresses in the resolver's order.
pub(super) async fn open(
    settings: &ConnectionSettings,
    purpose: Purpose,
    notices: &NoticeSink,
) -> Result<Session, ConnectError> {
    let mut hosts = settings.hosts.clone();
    if settings.balance {
        shuffle(&mut hosts);
    }
    let mut failed = Vec::new();
    // Who prefers a standby takes any server where there is none.
    let second_choice = (settings.wanting == Wanting::PreferStandby).then_some(Wanting::Any);
    for wanting in std::iter::once(settings.wanting).chain(second_choice) {
        for host in &hosts {
            let mut places = match socket::places(host).await {
                Ok(places) => places,
                Err(source) => {
                    let place = host.name();
                    let reason = AttemptError::Resolve { host: place.clone(), source };
                    failed.push(FailedAttempt { place, reason, passfile: None });
                    continue;
                }
            };
            if settings.balance {
                shuffle(&mut places);
            }
            match open_host(host, places, settings, purpose, wanting, notices, &mut failed).await {
                Ok(session) => return Ok(session),
                Err(Stopped::NextHost) => {}
                Err(Stopped::NoPassword { place }) => {
                    return Err(ConnectError::PasswordRequired { place, hint: GIVE_PASSWORD });
                }
                Err(Stopped::ForGood) => return Err(ConnectError::Failed { attempts: failed }),
            }
        }
    }
    Err(ConnectError::Failed { attempts: failed })
}

/// Why a server's further addresses are not tried.
#[derive(Debug)]
pub(super) enum Stopped {
    /// This server will not do, another one may.
    NextHost,
    /// A password is asked for.
    NoPassword { place: String },
    /// The failure is final.
    ForGood,
}

/// Tries a server's places in turn.
///
/// The next one is tried where no connection came about and where `connect_timeout` passed, the next server where this
/// one cannot take connections now or is not what is wanted. Any other refusal is final, as in libpq.
pub(super) async fn open_host(
    host: &Host,
    places: Vec<Place>,
    settings: &ConnectionSettings,
    purpose: Purpose,
    wanting: Wanting,
    notices: &NoticeSink,
    failed: &mut Vec<FailedAttempt>,
) -> Result<Session, Stopped> {
    let login = Login::new(settings, host, purpose, wanting, notices);
    for place in places {
        let mut reasons = Vec::new();
        let attempt = login.attempt(&place, &mut reasons);
        let last = match settings.connect_timeout {
            None => attempt.await,
            Some(limit) => tokio::time::timeout(limit, attempt).await.unwrap_or(Err(AttemptError::Timeout)),
        };
        match last {
            Ok(session) => return Ok(session),
            Err(AttemptError::Handshake(HandshakeError::PasswordRequired { .. })) => {
                return Err(Stopped::NoPassword { place: place.name });
            }
            Err(reason) => reasons.push(reason),
        }
        let next = match reasons.last() {
            Some(AttemptError::Connect { .. } | AttemptError::Timeout) => None,
            Some(AttemptError::WrongServer(_) | AttemptError::UnknownServer { .. }) => {
                Some(Stopped::NextHost)
            }
            Some(AttemptError::Handshake(HandshakeError::Refused(error)))
                if error.sqlstate() == CANNOT_CONNECT_NOW =>
            {
                Some(Stopped::NextHost)
            }
            _ => Some(Stopped::ForGood),
        };
        failed.extend(reasons.into_iter().map(|reason| {
            let rejected = matches!(&reason, AttemptError::Handshake(HandshakeError::Refused(error))
                if error.sqlstate() == INVALID_PASSWORD);
            let passfile = login.passfile.clone().filter(|_| rejected);
            FailedAttempt { place: place.name.clone(), reason, passfile }
        }));
        if let Some(next) = next {
            return Err(next);
        }
    }
    Err(Stopped::NextHost)
}

/// Puts a list into an order that nobody can foresee (Fisher and Yates).
fn shuffle<T>(list: &mut [T]) {
    for at in (1..list.len()).rev() {
        let mut random = [0; 8];
        // Without random bytes the order stays what it is, which any order may be.
        if aws_lc_rs::default_provider().secure_random.fill(&mut random).is_ok() {
            let chosen = u64::from_le_bytes(random) % (at as u64 + 1);
            list.swap(at, usize::try_from(chosen).unwrap_or(at));
        }
    }
}

/// What protects a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protection {
    Nothing,
    Tls,
}

/// The ways to try, as `select_next_encryption_method` orders them.
fn protections(mode: SslMode, place: &Place) -> VecDeque<Protection> {
    if place.is_unix() {
        return [Protection::Nothing].into();
    }
    match mode {
        SslMode::Disable => [Protection::Nothing].into(),
        SslMode::Allow => [Protection::Nothing, Protection::Tls].into(),
        SslMode::Prefer => [Protection::Tls, Protection::Nothing].into(),
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => [Protection::Tls].into(),
    }
}

/// What is said to each address of a server.
struct Login<'a> {
    settings: &'a ConnectionSettings,
    /// The host's name, which its certificate must have.
    host_name: &'a str,
    wanting: Wanting,
    notices: &'a NoticeSink,
    parameters: StartupParameters,
    credentials: Credentials,
    /// The password file, where the password is from it.
    passfile: Option<PathBuf>,
}

impl<'a> Login<'a> {
    fn new(
        settings: &'a ConnectionSettings,
        host: &'a Host,
        purpose: Purpose,
        wanting: Wanting,
        notices: &'a NoticeSink,
    ) -> Self {
        let database = match purpose {
            Purpose::Replication => "replication",
            Purpose::Sql => settings.sql_database(),
        };
        // A walsender without a database knows no encodings and would refuse to send names that are not valid in
        // the client's, such as the paths of tablespaces: it gets one only where the user asks for it.
        let unasked = purpose == Purpose::Sql
            && settings.parameters().iter().all(|(name, _)| *name != "client_encoding");
        let extra = settings.parameters().iter();
        let parameters = StartupParameters {
            user: settings.user.clone(),
            database: Some(database.to_owned()),
            replication: purpose == Purpose::Replication,
            client_encoding: unasked.then(|| "UTF8".to_owned()),
            extra: extra.map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            ..StartupParameters::default()
        };
        let (credentials, passfile) = credentials(settings, host, database);
        let host_name = match &host.target {
            Target::Tcp { host, .. } => host,
            Target::Unix { .. } => "",
        };
        Self { settings, host_name, wanting, notices, parameters, credentials, passfile }
    }

    /// Tries one address in every way that `sslmode` allows. Failures before the last go to `reasons`.
    async fn attempt(&self, place: &Place, reasons: &mut Vec<AttemptError>) -> Result<Session, AttemptError> {
        let mut ways = protections(self.settings.tls.mode, place);
        let mut connected: Option<Transport> = None;
        while let Some(way) = ways.pop_front() {
            let mut transport = match connected.take() {
                Some(transport) => transport,
                None => self.connect(place).await?,
            };
            let secured = match way {
                Protection::Nothing => Ok(()),
                Protection::Tls => self.secure(&mut transport).await,
            };
            let reason = match secured {
                Ok(()) => match self.log_in(transport).await {
                    Ok(mut session) => {
                        return match server_choice::check(&mut session, self.wanting).await {
                            Ok(()) => Ok(session),
                            Err(reason) => {
                                session.close().await;
                                Err(reason)
                            }
                        };
                    }
                    Err(AttemptError::Handshake(HandshakeError::Refused(error)))
                        if error.sqlstate() != CANNOT_CONNECT_NOW =>
                    {
                        AttemptError::Handshake(HandshakeError::Refused(error))
                    }
                    Err(reason) => return Err(reason),
                },
                // The connection is as good as new, and is used without TLS where that will do.
                Err(TlsError::NotOffered) if !ways.is_empty() => {
                    connected = Some(transport);
                    continue;
                }
                Err(
                    reason @ (TlsError::NoAnswer(_)
                    | TlsError::ErrorResponse
                    | TlsError::InvalidResponse(_)
                    | TlsError::UnencryptedData),
                ) => return Err(reason.into()),
                Err(reason) => reason.into(),
            };
            if ways.is_empty() {
                return Err(reason);
            }
            tracing::info!(
                "{} failed: {reason}; trying again {}",
                place.name,
                match ways.front() {
                    Some(Protection::Tls) => "with TLS",
                    _ => "without TLS",
                }
            );
            reasons.push(reason);
        }
        unreachable!("the last way returns")
    }

    async fn connect(&self, place: &Place) -> Result<Transport, AttemptError> {
        let hint = if place.is_unix() { CONNECT_UNIX } else { CONNECT_TCP };
        let refused = |source| AttemptError::Connect { source, hint };
        let socket = socket::connect(place, self.settings).await.map_err(refused)?;
        if let Some(expected) = self.settings.peer.as_ref().filter(|_| place.is_unix()) {
            let found = socket::peer_user(&socket).map_err(AttemptError::UnknownPeer)?;
            if found != *expected {
                return Err(AttemptError::WrongPeer { expected: expected.clone(), found });
            }
        }
        Transport::new(socket).map_err(refused)
    }

    /// Asks for TLS, and makes it.
    async fn secure(&self, transport: &mut Transport) -> Result<(), TlsError> {
        let settings = &self.settings.tls;
        if !settings.direct {
            let mut request = BytesMut::new();
            frontend::ssl_request(&mut request);
            transport.write(request).await.map_err(TlsError::NoAnswer)?;
            let mut answer = vec![0; 16];
            let received = transport.read(&mut answer).await.map_err(TlsError::NoAnswer)?;
            match answer[..received] {
                [b'S'] => {}
                [b'N'] => return Err(TlsError::NotOffered),
                [] => return Err(TlsError::NoAnswer(io::ErrorKind::UnexpectedEof.into())),
                [b'S', ..] => return Err(TlsError::UnencryptedData),
                [b'E', ..] => return Err(TlsError::ErrorResponse),
                [other, ..] => return Err(TlsError::InvalidResponse(other)),
            }
        }
        transport.begin_tls(Tls::begin(settings, self.host_name)?).await?;
        transport.tls().map_or(Ok(()), |tls| tls.check(settings, self.host_name))
    }

    /// From the startup packet to the first `ReadyForQuery`.
    async fn log_in(&self, mut transport: Transport) -> Result<Session, AttemptError> {
        let channel = transport.tls().map_or(Channel::Plain, |tls| Channel::Tls(tls.end_point()));
        let rules = AuthRules {
            channel,
            binding: self.settings.binding,
            methods: self.settings.required_methods.clone(),
        };
        let mut exchange = Exchange::new(BUFFER, NoticeSink::clone(self.notices));
        let (mut handshake, packet) =
            Handshake::with_rules(&self.parameters, self.credentials.clone(), rules)
                .map_err(HandshakeError::from)?;
        send(&mut transport, packet).await?;
        loop {
            let Some(message) = exchange.next_message()? else {
                exchange.rewind()?;
                let received = transport.read(&mut exchange.buffer).await.map_err(SessionError::receiving)?;
                exchange.on_received(received)?;
                continue;
            };
            match handshake.on_message(message)? {
                HandshakeStep::Continue => {}
                HandshakeStep::Send(bytes) => send(&mut transport, bytes).await?,
                HandshakeStep::Notice(notice) => exchange.notice(&notice),
                HandshakeStep::Ready(info) => {
                    match transport.tls() {
                        Some(tls) => tls.check_client_certificate(&self.settings.tls)?,
                        None if self.settings.tls.certificate_mode == CertificateMode::Require => {
                            return Err(TlsError::NotAskedForCertificate.into());
                        }
                        None => {}
                    }
                    let version = info.server_version()?;
                    return Ok(Session::new(transport, exchange, info, version));
                }
            }
        }
    }
}

/// The password that was given, or the one that a password file has for this server.
fn credentials(settings: &ConnectionSettings, host: &Host, database: &str) -> (Credentials, Option<PathBuf>) {
    if let Some(password) = &settings.password {
        return (Credentials::password(password.reveal()), None);
    }
    let Some(path) = settings.passfile() else { return (Credentials::none(), None) };
    match settings.with_wanted(host, database, |wanted| passfile::look_up(path, wanted)) {
        Ok(Some(password)) => (Credentials::password(password), Some(path.to_owned())),
        Ok(None) => (Credentials::none(), None),
        Err(ignored) => {
            tracing::warn!("{ignored}");
            (Credentials::none(), None)
        }
    }
}

async fn send(transport: &mut Transport, bytes: BytesMut) -> Result<(), SessionError> {
    transport.write(bytes).await.map_err(SessionError::sending)
}
