//! From the startup packet to the first `ReadyForQuery`, authentication included.
//!
//! Each state owns exactly what it needs; the password is gone once it has been used. A server that proves
//! nothing in a SCRAM exchange, or asks twice, is refused. After an error the handshake is over.

use std::collections::BTreeMap;
use std::fmt;

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};

use super::auth_rules::{AuthRules, BindingMode, Channel, ForbiddenRequest};
use super::frontend::{self, EncodeError};
use super::message::{AuthenticationRequest, BackendMessage};
use super::server_error::ServerError;
use super::session::{CancelKey, SessionInfo};
use super::startup::{Credentials, StartupParameters};

/// The most bytes of reported settings that are kept; PostgreSQL 18 reports about fifteen short ones.
const MAX_PARAMETER_BYTES: usize = 256 << 10;

/// The bound that `postgres-protocol` and the JDBC driver have; PostgreSQL's default is 4096.
const MAX_SCRAM_ITERATIONS: u64 = 100_000;

/// A connection on its way to its first query.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    rules: AuthRules,
    /// Whether the exchange that was chosen is bound to the TLS channel.
    bound: bool,
}

/// What is to be done after a message.
#[derive(Debug)]
pub enum HandshakeStep {
    /// Feed the next message.
    Continue,
    /// Send these bytes, then feed the next message.
    Send(BytesMut),
    /// Show this notice, then feed the next message.
    Notice(ServerError),
    /// The session is ready; the handshake is over.
    Ready(SessionInfo),
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The server asks for a password and none was given.
    #[error("the server requires a password for user {user:?} ({method}), and none was given")]
    PasswordRequired {
        /// The role.
        user: String,
        /// How the password would be sent.
        method: &'static str,
    },
    /// The server said no.
    #[error("{0}")]
    Refused(ServerError),
    /// A method that this program does not speak.
    #[error(
        "the server asks for {name} authentication (method {code}), expected trust, password, md5 or scram-sha-256\n\
         HINT: change the method of this connection's line in the server's pg_hba.conf."
    )]
    UnsupportedMethod {
        /// The method's number.
        code: i32,
        /// The method's name.
        name: &'static str,
    },
    /// SASL mechanisms that this program does not speak on this connection.
    #[error("the server offers the SASL mechanisms {offered:?}, expected SCRAM-SHA-256 among them")]
    UnsupportedMechanisms {
        /// What the server offers.
        offered: Vec<String>,
    },
    /// A request that the client's own rules forbid to answer.
    #[error(transparent)]
    Forbidden(#[from] ForbiddenRequest),
    /// A SCRAM challenge that cannot be answered.
    #[error("SCRAM authentication failed: the server's challenge is malformed: {problem}")]
    BadChallenge {
        /// What is wrong with it.
        problem: String,
    },
    /// A SCRAM challenge that asks for more work than a client should do for a server that it does not know yet.
    #[error(
        "SCRAM authentication failed: the server asks for {found} iterations, expected at most {MAX_SCRAM_ITERATIONS}\n\
         HINT: lower scram_iterations on the server and set the role's password again."
    )]
    TooManyIterations {
        /// What the server asks for.
        found: u64,
    },
    /// A server that does not prove that it knows the password.
    #[error(
        "SCRAM authentication failed: the server did not prove that it knows the password: {problem}\n\
         HINT: check that host and port belong to the right server and that nothing between poses as it."
    )]
    NotProven {
        /// What is wrong with its proof.
        problem: String,
    },
    /// A message that has no place here.
    #[error("the server sent {found} while {expected} was expected")]
    Unexpected {
        /// The message.
        found: &'static str,
        /// What could have come.
        expected: &'static str,
    },
    /// The server does not speak protocol 3.0 or an option that was asked for.
    #[error(
        "the server does not support protocol 3.0 as requested: it speaks version {newest:#x}, and not {unrecognized:?}"
    )]
    ProtocolNotSupported {
        /// The version in `NegotiateProtocolVersion`.
        newest: i32,
        /// Options that it does not know.
        unrecognized: Vec<String>,
    },
    /// More settings than any server reports.
    #[error("the server reported {found} bytes of settings, expected at most {MAX_PARAMETER_BYTES}")]
    TooManyParameters {
        /// Their bytes so far.
        found: usize,
    },
    /// Something that the protocol cannot carry.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

enum State {
    /// The startup packet is on its way.
    AwaitRequest { user: String, credentials: Credentials },
    /// The client's first SCRAM message is on its way.
    AwaitSaslContinue { scram: Box<ScramSha256> },
    /// The client's proof is on its way.
    AwaitSaslFinal { scram: Box<ScramSha256> },
    /// The client has shown all that was asked for.
    AwaitOk,
    /// The client is in; settings and the cancel key arrive.
    AwaitReady { parameters: BTreeMap<String, String>, bytes: usize, cancel_key: Option<CancelKey> },
    /// Ready, or failed.
    Over,
}

impl State {
    fn expected(&self) -> &'static str {
        match self {
            Self::AwaitRequest { .. } => "an authentication request",
            Self::AwaitSaslContinue { .. } => "AuthenticationSASLContinue",
            Self::AwaitSaslFinal { .. } => "AuthenticationSASLFinal with the server's proof",
            Self::AwaitOk => "AuthenticationOk",
            Self::AwaitReady { .. } => "ParameterStatus, BackendKeyData or ReadyForQuery",
            Self::Over => "no further message of the handshake",
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expecting {}", self.expected())
    }
}

impl Handshake {
    /// Begins a handshake; the bytes are the startup packet to send.
    pub fn new(
        parameters: &StartupParameters,
        credentials: Credentials,
    ) -> Result<(Self, BytesMut), EncodeError> {
        Self::with_rules(parameters, credentials, AuthRules::default())
    }

    /// As [`Self::new`], for a client that does not take any authentication.
    pub fn with_rules(
        parameters: &StartupParameters,
        credentials: Credentials,
        rules: AuthRules,
    ) -> Result<(Self, BytesMut), EncodeError> {
        let packet = parameters.encode()?;
        let user = parameters.user.clone();
        Ok((Self { state: State::AwaitRequest { user, credentials }, rules, bound: false }, packet))
    }

    /// Takes the next message from the server.
    pub fn on_message(&mut self, message: BackendMessage) -> Result<HandshakeStep, HandshakeError> {
        let state = std::mem::replace(&mut self.state, State::Over);
        let message = match message {
            BackendMessage::NoticeResponse(notice) => {
                self.state = state;
                return Ok(HandshakeStep::Notice(notice));
            }
            BackendMessage::ErrorResponse(error) => return Err(HandshakeError::Refused(error)),
            BackendMessage::NegotiateProtocolVersion { newest, unrecognized } => {
                return Err(HandshakeError::ProtocolNotSupported { newest, unrecognized });
            }
            message => message,
        };
        if let BackendMessage::Authentication(request) = &message {
            self.rules.check(request, matches!(state, State::AwaitOk), self.bound)?;
        }
        let (state, step) = match (state, message) {
            (State::AwaitRequest { user, credentials }, BackendMessage::Authentication(request)) => {
                self.bound = matches!(&request, AuthenticationRequest::Sasl { mechanisms }
                    if self.rules.mechanism(mechanisms)? == Some(SCRAM_SHA_256_PLUS));
                answer(&user, &credentials, &self.rules, request)?
            }
            (
                State::AwaitSaslContinue { scram },
                BackendMessage::Authentication(AuthenticationRequest::SaslContinue(data)),
            ) => prove(scram, &data)?,
            (
                State::AwaitSaslFinal { mut scram },
                BackendMessage::Authentication(AuthenticationRequest::SaslFinal(data)),
            ) => {
                scram
                    .finish(&data)
                    .map_err(|error| HandshakeError::NotProven { problem: error.to_string() })?;
                (State::AwaitOk, HandshakeStep::Continue)
            }
            (State::AwaitOk, BackendMessage::Authentication(AuthenticationRequest::Ok)) => {
                (State::logged_in(), HandshakeStep::Continue)
            }
            (
                State::AwaitReady { mut parameters, bytes, cancel_key },
                BackendMessage::ParameterStatus { name, value },
            ) => {
                let bytes = bytes + name.len() + value.len();
                if bytes > MAX_PARAMETER_BYTES {
                    return Err(HandshakeError::TooManyParameters { found: bytes });
                }
                parameters.insert(name, value);
                (State::AwaitReady { parameters, bytes, cancel_key }, HandshakeStep::Continue)
            }
            (
                State::AwaitReady { parameters, bytes, .. },
                BackendMessage::BackendKeyData { process_id, secret_key },
            ) => {
                let cancel_key = Some(CancelKey { process_id, secret_key });
                (State::AwaitReady { parameters, bytes, cancel_key }, HandshakeStep::Continue)
            }
            (State::AwaitReady { parameters, cancel_key, .. }, BackendMessage::ReadyForQuery(_)) => {
                (State::Over, HandshakeStep::Ready(SessionInfo { parameters, cancel_key }))
            }
            (state, message) => {
                return Err(HandshakeError::Unexpected { found: message.name(), expected: state.expected() });
            }
        };
        self.state = state;
        Ok(step)
    }
}

impl State {
    fn logged_in() -> Self {
        Self::AwaitReady { parameters: BTreeMap::new(), bytes: 0, cancel_key: None }
    }
}

impl AuthRules {
    /// The mechanism to use, as `pg_SASL_init` of `fe-auth.c` chooses it.
    fn mechanism(&self, offered: &[String]) -> Result<Option<&'static str>, ForbiddenRequest> {
        let offers = |mechanism| offered.iter().any(|name| name == mechanism);
        let required = self.binding == BindingMode::Require;
        match self.channel {
            Channel::Plain if required => return Err(ForbiddenRequest::NoTls),
            Channel::Plain if offers(SCRAM_SHA_256_PLUS) => return Err(ForbiddenRequest::Stripped),
            Channel::Tls(_) if offers(SCRAM_SHA_256_PLUS) && self.binding != BindingMode::Disable => {
                return Ok(Some(SCRAM_SHA_256_PLUS));
            }
            Channel::Plain | Channel::Tls(_) => {}
        }
        match offers(SCRAM_SHA_256) {
            true if required => Err(ForbiddenRequest::NotOffered),
            true => Ok(Some(SCRAM_SHA_256)),
            false => Ok(None),
        }
    }

    /// What is said of the channel with that mechanism. A client that could bind says so: the server knows then
    /// whether somebody between took its offer away.
    fn channel_binding(&self, mechanism: &str) -> Result<ChannelBinding, ForbiddenRequest> {
        Ok(match &self.channel {
            Channel::Tls(end_point) if mechanism == SCRAM_SHA_256_PLUS => {
                let end_point = end_point.clone().ok_or(ForbiddenRequest::NoEndPoint)?;
                ChannelBinding::tls_server_end_point(end_point)
            }
            Channel::Tls(_) if self.binding != BindingMode::Disable => ChannelBinding::unrequested(),
            Channel::Plain | Channel::Tls(_) => ChannelBinding::unsupported(),
        })
    }
}

/// Answers the server's first request.
fn answer(
    user: &str,
    credentials: &Credentials,
    rules: &AuthRules,
    request: AuthenticationRequest,
) -> Result<(State, HandshakeStep), HandshakeError> {
    let mut out = BytesMut::new();
    let needs = |method| {
        let missing = || HandshakeError::PasswordRequired { user: user.to_owned(), method };
        credentials.get().ok_or_else(missing)
    };
    let state = match request {
        AuthenticationRequest::Ok => return Ok((State::logged_in(), HandshakeStep::Continue)),
        AuthenticationRequest::CleartextPassword => {
            frontend::password(needs("password")?, &mut out)?;
            State::AwaitOk
        }
        AuthenticationRequest::Md5Password { salt } => {
            let hash = md5_hash(user.as_bytes(), needs("md5")?, salt);
            frontend::password(hash.as_bytes(), &mut out)?;
            State::AwaitOk
        }
        AuthenticationRequest::Sasl { mechanisms } => {
            let Some(mechanism) = rules.mechanism(&mechanisms)? else {
                return Err(HandshakeError::UnsupportedMechanisms { offered: mechanisms });
            };
            let password = needs("scram-sha-256")?;
            let scram = ScramSha256::new(password, rules.channel_binding(mechanism)?);
            frontend::sasl_initial_response(mechanism, scram.message(), &mut out)?;
            State::AwaitSaslContinue { scram: Box::new(scram) }
        }
        AuthenticationRequest::Unsupported { code, name } => {
            return Err(HandshakeError::UnsupportedMethod { code, name });
        }
        request @ (AuthenticationRequest::SaslContinue(_) | AuthenticationRequest::SaslFinal(_)) => {
            let found = BackendMessage::Authentication(request).name();
            return Err(HandshakeError::Unexpected { found, expected: "an authentication request" });
        }
    };
    Ok((state, HandshakeStep::Send(out)))
}

/// Answers the server's SCRAM challenge with the client's proof.
fn prove(mut scram: Box<ScramSha256>, challenge: &[u8]) -> Result<(State, HandshakeStep), HandshakeError> {
    if let Some(found) = iterations(challenge).filter(|found| *found > MAX_SCRAM_ITERATIONS) {
        return Err(HandshakeError::TooManyIterations { found });
    }
    scram.update(challenge).map_err(|error| HandshakeError::BadChallenge { problem: error.to_string() })?;
    let mut out = BytesMut::new();
    frontend::sasl_response(scram.message(), &mut out)?;
    Ok((State::AwaitSaslFinal { scram }, HandshakeStep::Send(out)))
}

/// The iteration count in a challenge `r=nonce,s=salt,i=count`, if there is one to read.
fn iterations(challenge: &[u8]) -> Option<u64> {
    std::str::from_utf8(challenge).ok()?.split(',').find_map(|part| part.strip_prefix("i="))?.parse().ok()
}

#[cfg(test)]
mod tests;
