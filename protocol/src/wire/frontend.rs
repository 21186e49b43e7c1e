//! Messages that a client sends, appended to a buffer.
//!
//! Nothing is left half-written: where a function fails, `out` is as it was.

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend as library;

/// The code that asks a server to switch to TLS (`libpq/pqcomm.h`, `NEGOTIATE_SSL_CODE`).
pub const SSL_REQUEST_CODE: i32 = 80_877_103;

/// The code that begins a cancel request (`libpq/pqcomm.h`, `CANCEL_REQUEST_CODE`).
pub const CANCEL_REQUEST_CODE: i32 = 80_877_102;

/// The longest startup packet that a server reads (`libpq/pqcomm.h`, `MAX_STARTUP_PACKET_LENGTH`).
pub const MAX_STARTUP_PACKET: usize = 10_000;

/// The longest `CopyData` body: a server refuses a message of 1 GiB or more (`libpq/libpq.h`,
/// `PQ_LARGE_MESSAGE_LIMIT`, which is `MaxAllocSize - 1`).
pub const MAX_COPY_DATA: usize = 0x3fff_fffe - 4;

/// Something that the protocol has no way to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Strings end at a zero byte, so none can hold one.
    #[error("{what} contains a zero byte, which the PostgreSQL protocol cannot carry")]
    ZeroByte {
        /// What holds it.
        what: &'static str,
    },
    /// More than a server reads.
    #[error("{what} has {found} bytes, expected at most {most}")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its bytes.
        found: usize,
        /// What a server reads.
        most: usize,
    },
    /// A server takes a startup packet only with a user name.
    #[error("the user name is empty\nHINT: give one with -U, PGUSER or user= in the connection string.")]
    EmptyUser,
}

/// Appends a startup packet of protocol 3.0 with these parameters. Protocol 3.2 would add nothing that a backup uses.
pub fn startup(parameters: &[(&str, &str)], out: &mut BytesMut) -> Result<(), EncodeError> {
    let what = "the startup packet";
    for (name, value) in parameters {
        check_text(name.as_bytes(), "the name of a startup parameter")?;
        check_text(value.as_bytes(), "a startup parameter")?;
    }
    // Length and version, each string with its zero byte, and the final zero byte.
    let found = parameters.iter().fold(9, |sum, (name, value)| sum + name.len() + value.len() + 2);
    if found > MAX_STARTUP_PACKET {
        return Err(EncodeError::TooLong { what, found, most: MAX_STARTUP_PACKET });
    }
    appending(out, what, |out| library::startup_message(parameters.iter().copied(), out))
}

/// Appends a request to switch to TLS, which the server answers with one byte, `S` or `N`.
pub fn ssl_request(out: &mut BytesMut) {
    library::ssl_request(out);
}

/// Appends a simple query.
pub fn query(text: &str, out: &mut BytesMut) -> Result<(), EncodeError> {
    check_text(text.as_bytes(), "the query")?;
    appending(out, "the query", |out| library::query(text, out))
}

/// Appends a password, or what stands for it in MD5 authentication.
pub fn password(password: &[u8], out: &mut BytesMut) -> Result<(), EncodeError> {
    check_text(password, "the password")?;
    appending(out, "the password", |out| library::password_message(password, out))
}

/// Appends the first message of a SASL exchange.
pub fn sasl_initial_response(mechanism: &str, data: &[u8], out: &mut BytesMut) -> Result<(), EncodeError> {
    check_text(mechanism.as_bytes(), "the SASL mechanism")?;
    appending(out, "the SASL response", |out| library::sasl_initial_response(mechanism, data, out))
}

/// Appends a further message of a SASL exchange.
pub fn sasl_response(data: &[u8], out: &mut BytesMut) -> Result<(), EncodeError> {
    appending(out, "the SASL response", |out| library::sasl_response(data, out))
}

/// Appends a whole `CopyData` message.
pub fn copy_data(body: &[u8], out: &mut BytesMut) -> Result<(), EncodeError> {
    out.extend_from_slice(&copy_data_header(body.len())?);
    out.extend_from_slice(body);
    Ok(())
}

/// The header of a `CopyData` message whose `body_len` bytes the caller sends from where they are.
pub fn copy_data_header(body_len: usize) -> Result<[u8; 5], EncodeError> {
    let too_long = EncodeError::TooLong { what: "a CopyData body", found: body_len, most: MAX_COPY_DATA };
    if body_len > MAX_COPY_DATA {
        return Err(too_long);
    }
    let [a, b, c, d] = u32::try_from(body_len + 4).map_err(|_| too_long)?.to_be_bytes();
    Ok([b'd', a, b, c, d])
}

/// Appends the end of a copy.
pub fn copy_done(out: &mut BytesMut) {
    library::copy_done(out);
}

/// Appends the failure of a copy, with the reason that the server's log will show.
pub fn copy_fail(reason: &str, out: &mut BytesMut) -> Result<(), EncodeError> {
    check_text(reason.as_bytes(), "the reason of a failed copy")?;
    appending(out, "the reason of a failed copy", |out| library::copy_fail(reason, out))
}

/// Appends the end of the session.
pub fn terminate(out: &mut BytesMut) {
    library::terminate(out);
}

/// Appends a cancel request, which is all that is sent on a connection of its own. `secret_key` is what
/// `BackendKeyData` brought, 4 bytes or more.
pub fn cancel_request(process_id: i32, secret_key: &[u8], out: &mut BytesMut) -> Result<(), EncodeError> {
    let length = secret_key.len().saturating_add(12);
    let too_long =
        EncodeError::TooLong { what: "the cancel request", found: length, most: MAX_STARTUP_PACKET };
    let length = i32::try_from(length).ok().filter(|_| length <= MAX_STARTUP_PACKET).ok_or(too_long)?;
    out.put_i32(length);
    out.put_i32(CANCEL_REQUEST_CODE);
    out.put_i32(process_id);
    out.extend_from_slice(secret_key);
    Ok(())
}

fn check_text(text: &[u8], what: &'static str) -> Result<(), EncodeError> {
    if text.contains(&0) { Err(EncodeError::ZeroByte { what }) } else { Ok(()) }
}

/// Runs an encoder of the library, which fails only on zero bytes (checked before) and on lengths past `i32`.
fn appending(
    out: &mut BytesMut,
    what: &'static str,
    encode: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
) -> Result<(), EncodeError> {
    let before = out.len();
    encode(out).map_err(|_| {
        let found = out.len() - before;
        out.truncate(before);
        EncodeError::TooLong { what, found, most: i32::MAX as usize }
    })
}

#[cfg(test)]
mod tests;
