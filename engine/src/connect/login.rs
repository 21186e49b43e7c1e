//! From settings to a session that awaits its first command: addresses in turn, time limit, authentication.

use std::path::PathBuf;

use bytes::BytesMut;
use pgstrata_protocol::ServerVersion;
use pgstrata_protocol::wire::{
    Credentials, Handshake, HandshakeError, HandshakeStep, SessionInfo, StartupParameters,
};

use super::error::{AttemptError, ConnectError, FailedAttempt, SessionError};
use super::exchange::{Exchange, NoticeSink};
use super::passfile;
use super::session::{BUFFER, Purpose};
use super::settings::ConnectionSettings;
use super::socket::{self, Place};
use super::transport::Transport;

/// `ERRCODE_CANNOT_CONNECT_NOW`: starting up or shutting down; another address may be another server.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// `ERRCODE_INVALID_PASSWORD`.
const INVALID_PASSWORD: &str = "28P01";

const CONNECT_TCP: &str = "check that the server runs on that host and accepts TCP/IP connections.";
const CONNECT_UNIX: &str = "check that the server runs locally and accepts connections on that socket.";
const GIVE_PASSWORD: &str = "give one with PGPASSWORD, a password file, or the connection string.";

/// A connection that awaits its first command.
pub(super) struct Opened {
    pub(super) transport: Transport,
    pub(super) exchange: Exchange,
    pub(super) info: SessionInfo,
    pub(super) version: ServerVersion,
}

/// Resolves the host and tries its addresses in the resolver's order.
pub(super) async fn open(
    settings: &ConnectionSettings,
    purpose: Purpose,
    notices: &NoticeSink,
) -> Result<Opened, ConnectError> {
    let places = socket::places(settings)
        .await
        .map_err(|source| ConnectError::Resolve { host: settings.host(), source })?;
    open_any(places, settings, purpose, notices).await
}

/// Tries places in turn.
///
/// The next one is tried where no connection came about, where `connect_timeout` passed, and where a server
/// says that it cannot take connections now. Any other refusal is final, as in libpq.
pub(super) async fn open_any(
    places: Vec<Place>,
    settings: &ConnectionSettings,
    purpose: Purpose,
    notices: &NoticeSink,
) -> Result<Opened, ConnectError> {
    let login = Login::new(settings, purpose);
    let mut attempts = Vec::new();
    for place in places {
        let attempt = login.attempt(settings, &place, notices);
        let reason = match settings.connect_timeout {
            None => attempt.await,
            Some(limit) => tokio::time::timeout(limit, attempt).await.unwrap_or(Err(AttemptError::Timeout)),
        };
        let reason = match reason {
            Ok(opened) => return Ok(opened),
            Err(AttemptError::Handshake(HandshakeError::PasswordRequired { .. })) => {
                return Err(ConnectError::PasswordRequired { place: place.name, hint: GIVE_PASSWORD });
            }
            Err(reason) => reason,
        };
        let (goes_on, rejected) = match &reason {
            AttemptError::Connect { .. } | AttemptError::Timeout => (true, false),
            AttemptError::Handshake(HandshakeError::Refused(error)) => {
                (error.sqlstate() == CANNOT_CONNECT_NOW, error.sqlstate() == INVALID_PASSWORD)
            }
            _ => (false, false),
        };
        let passfile = login.passfile.clone().filter(|_| rejected);
        attempts.push(FailedAttempt { place: place.name, reason, passfile });
        if !goes_on {
            break;
        }
    }
    Err(ConnectError::Failed { attempts })
}

/// What is said to each address.
struct Login {
    parameters: StartupParameters,
    credentials: Credentials,
    /// The password file, where the password is from it.
    passfile: Option<PathBuf>,
}

impl Login {
    fn new(settings: &ConnectionSettings, purpose: Purpose) -> Self {
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
        if let Some(password) = &settings.password {
            let credentials = Credentials::password(password.reveal());
            return Self { parameters, credentials, passfile: None };
        }
        let found = settings.passfile().and_then(|path| {
            match settings.with_wanted(database, |wanted| passfile::look_up(path, wanted)) {
                Ok(password) => password.map(|password| (password, path.to_owned())),
                Err(ignored) => {
                    tracing::warn!("{ignored}");
                    None
                }
            }
        });
        let (credentials, passfile) = match found {
            Some((password, path)) => (Credentials::password(password), Some(path)),
            None => (Credentials::none(), None),
        };
        Self { parameters, credentials, passfile }
    }

    async fn attempt(
        &self,
        settings: &ConnectionSettings,
        place: &Place,
        notices: &NoticeSink,
    ) -> Result<Opened, AttemptError> {
        let hint = if settings.unix_socket().is_some() { CONNECT_UNIX } else { CONNECT_TCP };
        let refused = |source| AttemptError::Connect { source, hint };
        let socket = socket::connect(place, settings).await.map_err(refused)?;
        let mut transport = Transport::new(socket).map_err(refused)?;
        let mut exchange = Exchange::new(BUFFER, NoticeSink::clone(notices));

        let (mut handshake, packet) =
            Handshake::new(&self.parameters, self.credentials.clone()).map_err(HandshakeError::from)?;
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
                    let version = info.server_version()?;
                    return Ok(Opened { transport, exchange, info, version });
                }
            }
        }
    }
}

async fn send(transport: &mut Transport, bytes: BytesMut) -> Result<(), SessionError> {
    transport.write(bytes).await.map_err(SessionError::sending)
}
