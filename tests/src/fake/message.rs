//! Backend messages as bytes (PostgreSQL documentation, "Message Formats").

/// A message of any type: type byte, length, body.
///
/// # Panics
/// Where the body is longer than a message can be.
#[must_use]
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a message of less than 4 GiB");
    with_length(kind, length, body)
}

/// A message whose length field says whatever the caller likes.
#[must_use]
pub fn with_length(kind: u8, length: u32, body: &[u8]) -> Vec<u8> {
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

/// `R`: authentication has succeeded.
#[must_use]
pub fn authentication_ok() -> Vec<u8> {
    message(b'R', &0_u32.to_be_bytes())
}

/// `S`: a parameter's value.
#[must_use]
pub fn parameter_status(name: &str, value: &str) -> Vec<u8> {
    message(b'S', format!("{name}\0{value}\0").as_bytes())
}

/// `K`: process id and secret for cancel requests.
#[must_use]
pub fn backend_key_data() -> Vec<u8> {
    message(b'K', &[0, 0, 0x12, 0x67, 1, 2, 3, 4])
}

/// `Z`: ready for the next query, outside a transaction.
#[must_use]
pub fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

/// `T`: columns of the type text (object id 25).
///
/// # Panics
/// Where there are more columns than the format can count.
#[must_use]
pub fn row_description(columns: &[&str]) -> Vec<u8> {
    let mut body = i16::try_from(columns.len()).expect("few columns").to_be_bytes().to_vec();
    for name in columns {
        body.extend_from_slice(name.as_bytes());
        // Name's end, table, column, type, size of the type, its modifier, text format.
        body.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    }
    message(b'T', &body)
}

/// `D`: a row.
///
/// # Panics
/// Where there are more columns than the format can count.
#[must_use]
pub fn data_row(values: &[Option<&str>]) -> Vec<u8> {
    let mut body = i16::try_from(values.len()).expect("few columns").to_be_bytes().to_vec();
    for value in values {
        match value {
            None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(text) => {
                body.extend_from_slice(&u32::try_from(text.len()).expect("a short text").to_be_bytes());
                body.extend_from_slice(text.as_bytes());
            }
        }
    }
    message(b'D', &body)
}

/// `C`: a command has ended.
#[must_use]
pub fn command_complete(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0").as_bytes())
}

/// `H`: data follows to the client, binary, without columns.
#[must_use]
pub fn copy_out() -> Vec<u8> {
    message(b'H', &[0, 0, 0])
}

/// `G`: data is awaited from the client, binary, without columns.
#[must_use]
pub fn copy_in() -> Vec<u8> {
    message(b'G', &[0, 0, 0])
}

/// `W`: data flows both ways.
#[must_use]
pub fn copy_both() -> Vec<u8> {
    message(b'W', &[0, 0, 0])
}

/// `d`: data.
#[must_use]
pub fn copy_data(content: &[u8]) -> Vec<u8> {
    message(b'd', content)
}

/// `c`: no more data.
#[must_use]
pub fn copy_done() -> Vec<u8> {
    message(b'c', &[])
}

/// `E`: an error.
#[must_use]
pub fn error(sqlstate: &str, text: &str) -> Vec<u8> {
    message(b'E', &fields("ERROR", sqlstate, text))
}

/// `E`: an error that ends the connection.
#[must_use]
pub fn fatal(sqlstate: &str, text: &str) -> Vec<u8> {
    message(b'E', &fields("FATAL", sqlstate, text))
}

/// `N`: a notice.
#[must_use]
pub fn warning(text: &str) -> Vec<u8> {
    message(b'N', &fields("WARNING", "01000", text))
}

fn fields(severity: &str, sqlstate: &str, text: &str) -> Vec<u8> {
    format!("S{severity}\0V{severity}\0C{sqlstate}\0M{text}\0\0").into_bytes()
}
