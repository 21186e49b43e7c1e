//! Messages that a server sends, decoded from whole frames.
//!
//! The parsing of `postgres-protocol` is used where it is exact. Decoded here are the messages that it does not
//! know (CopyBothResponse, NegotiateProtocolVersion, long cancel keys) and those where it is too strict or too
//! lax for hostile or foreign-encoded bytes (ParameterStatus, DataRow).

use bytes::{Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{ErrorFields, Message};

use super::body::{Body, BodyProblem};
use super::server_error::ServerError;

/// The longest cancel key that protocol 3.2 allows (`libpq/libpq-be.h`, `MAX_CANCEL_KEY_LENGTH`).
const MAX_CANCEL_KEY: usize = 256;

/// A message from the server, `CopyData` excepted, which [`super::Frame::CopyData`] streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendMessage {
    /// `R`: what the server wants to see before it lets the client in.
    Authentication(AuthenticationRequest),
    /// `S`: the present value of a reported setting.
    ParameterStatus {
        /// The setting's name.
        name: String,
        /// Its value as text.
        value: String,
    },
    /// `K`: what a cancel request must show.
    BackendKeyData {
        /// The server process.
        process_id: i32,
        /// 4 bytes in protocol 3.0, up to 256 in 3.2.
        secret_key: Bytes,
    },
    /// `Z`: the server awaits the next query.
    ReadyForQuery(TransactionStatus),
    /// `T`: the names of a result's columns.
    RowDescription(Vec<String>),
    /// `D`: a row; `None` is NULL.
    DataRow(Vec<Option<Bytes>>),
    /// `C`: a command ended; its tag, such as `SELECT 1`.
    CommandComplete(String),
    /// `I`: the query was empty.
    EmptyQueryResponse,
    /// `G`: the server awaits `CopyData` from the client.
    CopyInResponse,
    /// `H`: `CopyData` from the server follows.
    CopyOutResponse,
    /// `W`: `CopyData` flows both ways.
    CopyBothResponse,
    /// `c`: the server ended its side of the copy.
    CopyDone,
    /// `E`: an error.
    ErrorResponse(ServerError),
    /// `N`: a notice or warning.
    NoticeResponse(ServerError),
    /// `A`: a NOTIFY from some session.
    NotificationResponse {
        /// The notifying process.
        process_id: i32,
        /// The channel.
        channel: String,
        /// The payload.
        payload: String,
    },
    /// `v`: the server does not speak the requested minor version or options.
    NegotiateProtocolVersion {
        /// The newest minor version of protocol 3 that the server speaks, or the whole version number (3.2 servers).
        newest: i32,
        /// Protocol options that the server does not know.
        unrecognized: Vec<String>,
    },
}

/// What `R` asks for (`libpq/protocol.h`, `AUTH_REQ_*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthenticationRequest {
    /// Nothing more: the client is in.
    Ok,
    /// The password as it is.
    CleartextPassword,
    /// An MD5 of password, user and this salt.
    Md5Password {
        /// Changes with every connection.
        salt: [u8; 4],
    },
    /// SASL, by one of these mechanisms.
    Sasl {
        /// Best first.
        mechanisms: Vec<String>,
    },
    /// The server's part of a SASL exchange.
    SaslContinue(Bytes),
    /// The end of a SASL exchange.
    SaslFinal(Bytes),
    /// A method that this program does not speak.
    Unsupported {
        /// The method's number.
        code: i32,
        /// The method's name, `unknown` for numbers that PostgreSQL never used.
        name: &'static str,
    },
}

/// The transaction status in `ReadyForQuery`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// `I`: no transaction is open.
    Idle,
    /// `T`: inside a transaction block.
    InTransaction,
    /// `E`: inside a transaction block that failed.
    Failed,
}

impl BackendMessage {
    /// The message's name in PostgreSQL's documentation.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Authentication(request) => match request {
                AuthenticationRequest::Ok => "AuthenticationOk",
                AuthenticationRequest::CleartextPassword => "AuthenticationCleartextPassword",
                AuthenticationRequest::Md5Password { .. } => "AuthenticationMD5Password",
                AuthenticationRequest::Sasl { .. } => "AuthenticationSASL",
                AuthenticationRequest::SaslContinue(_) => "AuthenticationSASLContinue",
                AuthenticationRequest::SaslFinal(_) => "AuthenticationSASLFinal",
                AuthenticationRequest::Unsupported { .. } => "Authentication (unsupported method)",
            },
            Self::ParameterStatus { .. } => "ParameterStatus",
            Self::BackendKeyData { .. } => "BackendKeyData",
            Self::ReadyForQuery(_) => "ReadyForQuery",
            Self::RowDescription(_) => "RowDescription",
            Self::DataRow(_) => "DataRow",
            Self::CommandComplete(_) => "CommandComplete",
            Self::EmptyQueryResponse => "EmptyQueryResponse",
            Self::CopyInResponse => "CopyInResponse",
            Self::CopyOutResponse => "CopyOutResponse",
            Self::CopyBothResponse => "CopyBothResponse",
            Self::CopyDone => "CopyDone",
            Self::ErrorResponse(_) => "ErrorResponse",
            Self::NoticeResponse(_) => "NoticeResponse",
            Self::NotificationResponse { .. } => "NotificationResponse",
            Self::NegotiateProtocolVersion { .. } => "NegotiateProtocolVersion",
        }
    }

    /// Decodes one whole frame: the tag, the length and exactly the body that the length announces.
    pub(super) fn decode(tag: u8, mut frame: BytesMut) -> Result<Self, BodyProblem> {
        match tag {
            // What is kept gets an allocation of its own size: a slice would hold on to the whole receive buffer.
            b'S' | b'K' | b'W' | b'D' | b'v' => decode_here(tag, Bytes::copy_from_slice(body_of(&frame))),
            b'R' => {
                let mut body = Body::new(Bytes::copy_from_slice(body_of(&frame)));
                let code = body.i32("an authentication code")?;
                match unsupported_method(code) {
                    Some(name) => Ok(Self::Authentication(AuthenticationRequest::Unsupported { code, name })),
                    None => decode_library(&mut frame),
                }
            }
            _ => decode_library(&mut frame),
        }
    }
}

/// A frame without its tag and length.
fn body_of(frame: &[u8]) -> &[u8] {
    frame.get(5..).unwrap_or_default()
}

fn decode_here(tag: u8, body: Bytes) -> Result<BackendMessage, BodyProblem> {
    let mut body = Body::new(body);
    let message = match tag {
        b'S' => BackendMessage::ParameterStatus {
            name: body.text("a parameter name")?,
            value: body.text("a parameter value")?,
        },
        b'K' => {
            let process_id = body.i32("a process id")?;
            let secret_key = body.remainder();
            if !(4..=MAX_CANCEL_KEY).contains(&secret_key.len()) {
                return Err(format!(
                    "expected a cancel key of 4 to {MAX_CANCEL_KEY} bytes, found {}",
                    secret_key.len()
                ));
            }
            BackendMessage::BackendKeyData { process_id, secret_key }
        }
        b'W' => {
            body.u8("a copy format")?;
            for _ in 0..body.count("a column count")? {
                body.i16("a column format")?;
            }
            BackendMessage::CopyBothResponse
        }
        b'D' => {
            let mut columns = Vec::new();
            for _ in 0..body.count("a column count")? {
                let length = body.i32("a value length")?;
                columns.push(match usize::try_from(length) {
                    Ok(length) => Some(body.take(length, "a value")?),
                    Err(_) if length == -1 => None,
                    Err(_) => return Err(format!("expected a value length of at least -1, found {length}")),
                });
            }
            BackendMessage::DataRow(columns)
        }
        _ => {
            let newest = body.i32("a protocol version")?;
            let count = body.i32("an option count")?;
            if count < 0 {
                return Err(format!("expected an option count of at least 0, found {count}"));
            }
            let mut unrecognized = Vec::new();
            for _ in 0..count {
                unrecognized.push(body.text("an option name")?);
            }
            BackendMessage::NegotiateProtocolVersion { newest, unrecognized }
        }
    };
    body.end()?;
    Ok(message)
}

fn decode_library(frame: &mut BytesMut) -> Result<BackendMessage, BodyProblem> {
    let io = |error: std::io::Error| error.to_string();
    let Some(message) = Message::parse(frame).map_err(io)? else {
        return Err("expected a whole message, found a part of one".to_owned());
    };
    Ok(match message {
        Message::AuthenticationOk => BackendMessage::Authentication(AuthenticationRequest::Ok),
        Message::AuthenticationCleartextPassword => {
            BackendMessage::Authentication(AuthenticationRequest::CleartextPassword)
        }
        Message::AuthenticationMd5Password(body) => {
            BackendMessage::Authentication(AuthenticationRequest::Md5Password { salt: body.salt() })
        }
        Message::AuthenticationSasl(body) => {
            let mechanisms = body.mechanisms().map(|name| Ok(name.to_owned())).collect().map_err(io)?;
            BackendMessage::Authentication(AuthenticationRequest::Sasl { mechanisms })
        }
        Message::AuthenticationSaslContinue(body) => BackendMessage::Authentication(
            AuthenticationRequest::SaslContinue(Bytes::copy_from_slice(body.data())),
        ),
        Message::AuthenticationSaslFinal(body) => BackendMessage::Authentication(
            AuthenticationRequest::SaslFinal(Bytes::copy_from_slice(body.data())),
        ),
        Message::ReadyForQuery(body) => BackendMessage::ReadyForQuery(match body.status() {
            b'I' => TransactionStatus::Idle,
            b'T' => TransactionStatus::InTransaction,
            b'E' => TransactionStatus::Failed,
            found => {
                return Err(format!("expected transaction status I, T or E, found {:?}", char::from(found)));
            }
        }),
        Message::RowDescription(body) => BackendMessage::RowDescription(
            body.fields().map(|field| Ok(field.name().to_owned())).collect().map_err(io)?,
        ),
        Message::CommandComplete(body) => BackendMessage::CommandComplete(body.tag().map_err(io)?.to_owned()),
        Message::EmptyQueryResponse => BackendMessage::EmptyQueryResponse,
        Message::CopyInResponse(body) => {
            body.column_formats().count().map_err(io)?;
            BackendMessage::CopyInResponse
        }
        Message::CopyOutResponse(body) => {
            body.column_formats().count().map_err(io)?;
            BackendMessage::CopyOutResponse
        }
        Message::CopyDone => BackendMessage::CopyDone,
        Message::ErrorResponse(body) => BackendMessage::ErrorResponse(server_error(body.fields())?),
        Message::NoticeResponse(body) => BackendMessage::NoticeResponse(server_error(body.fields())?),
        Message::NotificationResponse(body) => BackendMessage::NotificationResponse {
            process_id: body.process_id(),
            channel: body.channel().map_err(io)?.to_owned(),
            payload: body.message().map_err(io)?.to_owned(),
        },
        _ => return Err("expected a message of the simple query protocol".to_owned()),
    })
}

fn server_error(fields: ErrorFields<'_>) -> Result<ServerError, BodyProblem> {
    let fields: Vec<(u8, String)> = fields
        .map(|field| Ok((field.type_(), String::from_utf8_lossy(field.value_bytes()).into_owned())))
        .collect()
        .map_err(|error: std::io::Error| error.to_string())?;
    Ok(ServerError::from_fields(fields))
}

/// The name of an authentication method that is refused, `None` for those that are spoken.
fn unsupported_method(code: i32) -> Option<&'static str> {
    match code {
        0 | 3 | 5 | 10 | 11 | 12 => None,
        1 => Some("Kerberos V4"),
        2 => Some("Kerberos V5"),
        4 => Some("crypt"),
        6 => Some("SCM credentials"),
        7 | 8 => Some("GSSAPI"),
        9 => Some("SSPI"),
        _ => Some("unknown"),
    }
}
