//! What goes wrong with a connection, in libpq's words where libpq has words for it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::tls_error::TlsError;
use pgstrata_protocol::replication::{ReplyError, ResultSet};
use pgstrata_protocol::wire::{EncodeError, HandshakeError, ServerError, ServerVersionError, WireError};

/// A session that failed or a command that was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The server refused the command or broke it off. Unless the error is fatal, the session goes on.
    #[error("{error}")]
    Server {
        /// What it said.
        error: Box<ServerError>,
        /// The results that were complete before that and not yet returned.
        results: Vec<ResultSet>,
    },
    /// A message that has no place in the reply.
    #[error(transparent)]
    Reply(ReplyError),
    /// Bytes that are no PostgreSQL protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A command that cannot be sent.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The connection ended where more had to come.
    #[error(
        "server closed the connection unexpectedly after {position} bytes\n\
         HINT: the server's log says whether it was shut down, crashed or ended this session."
    )]
    Closed {
        /// Bytes received over the connection's life.
        position: u64,
    },
    /// The connection was ended by [`super::CancelHandle::cancel`].
    #[error("the connection was cancelled")]
    Cancelled,
    /// Nothing arrived for too long.
    #[error(
        "the server sent nothing for {limit:?}\n\
         HINT: check the network, and on the server whether the walsender waits for its disks."
    )]
    Stalled {
        /// The limit that was reached.
        limit: Duration,
    },
    /// The socket failed.
    #[error("could not {doing} the server: {source}")]
    Io {
        /// "receive data from" or "send data to".
        doing: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The server answered something else than the command calls for, or the session was used out of turn.
    #[error("the conversation with the server is out of step: {0}")]
    OutOfPlace(&'static str),
}

impl SessionError {
    pub(super) fn reply(error: ReplyError, results: Vec<ResultSet>) -> Self {
        match error {
            ReplyError::Server(error) => Self::Server { error: Box::new(error), results },
            error => Self::Reply(error),
        }
    }

    pub(super) fn receiving(source: io::Error) -> Self {
        Self::Io { doing: "receive data from", source }
    }

    pub(super) fn sending(source: io::Error) -> Self {
        Self::Io { doing: "send data to", source }
    }

    /// What the server said, where it said something.
    #[must_use]
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Server { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<ReplyError> for SessionError {
    fn from(error: ReplyError) -> Self {
        Self::reply(error, Vec::new())
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server asks for a password and none was given: ask for one, and try again with
    /// [`super::ConnectionSettings::with_password`].
    #[error("{place} failed: fe_sendauth: no password supplied\nHINT: {hint}")]
    PasswordRequired {
        /// Where.
        place: String,
        /// Where a password can be given.
        hint: &'static str,
    },
    /// Every server and address was tried, and each failed for its own reason.
    #[error("{}", attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Failed {
        /// The failures in order, never empty.
        attempts: Vec<FailedAttempt>,
    },
}

impl ConnectError {
    /// What the server said in the last attempt, where it said something.
    #[must_use]
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Failed { attempts } => attempts.last().and_then(|attempt| match &attempt.reason {
                AttemptError::Handshake(HandshakeError::Refused(error)) => Some(error),
                _ => None,
            }),
            _ => None,
        }
    }
}

/// A failure to connect to one address.
#[derive(Debug, thiserror::Error)]
#[error("{}{reason}{}", place_failed(place, reason), passfile_note(passfile.as_ref()))]
pub struct FailedAttempt {
    /// `connection to server at "h" (192.0.2.1), port 5432`; the host where it has no address.
    pub place: String,
    /// Why.
    #[source]
    pub reason: AttemptError,
    /// The password file whose password the server rejected.
    pub passfile: Option<PathBuf>,
}

fn place_failed(place: &str, reason: &AttemptError) -> String {
    match reason {
        AttemptError::Resolve { .. } => String::new(),
        _ => format!("{place} failed: "),
    }
}

/// The resolver's words without the ones that Rust puts before them.
fn resolvers_own(source: &io::Error) -> String {
    let whole = source.to_string();
    whole.strip_prefix("failed to lookup address information: ").map(str::to_owned).unwrap_or(whole)
}

fn passfile_note(passfile: Option<&PathBuf>) -> String {
    passfile.map(|path| format!("\npassword retrieved from file \"{}\"", path.display())).unwrap_or_default()
}

/// Why one address failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttemptError {
    /// The host name has no address.
    #[error("could not translate host name \"{host}\" to address: {}", resolvers_own(source))]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's reason.
        #[source]
        source: io::Error,
    },
    /// No connection.
    #[error("{source}\nHINT: {hint}")]
    Connect {
        /// The operating system's reason.
        #[source]
        source: io::Error,
        /// What to check.
        hint: &'static str,
    },
    /// `connect_timeout` passed.
    #[error("timeout expired")]
    Timeout,
    /// No TLS, or not with this server.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server behind a Unix socket runs as somebody else.
    #[error("requirepeer specifies \"{expected}\", but actual peer user name is \"{found}\"")]
    WrongPeer {
        /// The setting.
        expected: String,
        /// The user.
        found: String,
    },
    /// Nobody knows who the server runs as.
    #[error("could not get peer credentials: {0}")]
    UnknownPeer(#[source] io::Error),
    /// A server that is not what `target_session_attrs` asks for.
    #[error("{0}")]
    WrongServer(&'static str),
    /// A server that does not say what it is.
    #[error("\"{query}\" failed: {source}")]
    UnknownServer {
        /// The question.
        query: &'static str,
        /// The answer.
        #[source]
        source: SessionError,
    },
    /// The connection failed before the session was ready.
    #[error(transparent)]
    Session(SessionError),
    /// The server did not let us in.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The server does not say its version.
    #[error(transparent)]
    Version(#[from] ServerVersionError),
}

impl From<SessionError> for AttemptError {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}
