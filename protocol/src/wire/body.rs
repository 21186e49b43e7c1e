//! A bounds-checked reader over the body of one message.
//!
//! Every read either yields a value or names what was expected and how many bytes were left; none panics.

use bytes::Bytes;

/// Why a body is not what its tag promises: text that completes "malformed X message: …".
pub(super) type BodyProblem = String;

/// What is left of a message's body.
pub(super) struct Body {
    rest: Bytes,
}

impl Body {
    pub(super) fn new(body: Bytes) -> Self {
        Self { rest: body }
    }

    /// The next `len` bytes; `what` names them in the error.
    pub(super) fn take(&mut self, len: usize, what: &str) -> Result<Bytes, BodyProblem> {
        if self.rest.len() < len {
            return Err(format!("expected {what} of {len} bytes, found {} bytes", self.rest.len()));
        }
        Ok(self.rest.split_to(len))
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], BodyProblem> {
        let Some(array) = self.rest.first_chunk::<N>().copied() else {
            return Err(format!("expected {what} of {N} bytes, found {} bytes", self.rest.len()));
        };
        self.rest = self.rest.slice(N..);
        Ok(array)
    }

    pub(super) fn i32(&mut self, what: &str) -> Result<i32, BodyProblem> {
        self.array(what).map(i32::from_be_bytes)
    }

    pub(super) fn i16(&mut self, what: &str) -> Result<i16, BodyProblem> {
        self.array(what).map(i16::from_be_bytes)
    }

    pub(super) fn u8(&mut self, what: &str) -> Result<u8, BodyProblem> {
        self.array(what).map(u8::from_be_bytes)
    }

    /// A count that the protocol sends as a signed number and that is never negative.
    pub(super) fn count(&mut self, what: &str) -> Result<u16, BodyProblem> {
        let count = self.i16(what)?;
        u16::try_from(count).map_err(|_| format!("expected {what} of at least 0, found {count}"))
    }

    /// A zero-terminated string. Bytes that are not UTF-8 become U+FFFD: before a session has an encoding, and
    /// in one without a database, a server sends names in whatever encoding they were created in.
    pub(super) fn text(&mut self, what: &str) -> Result<String, BodyProblem> {
        let Some(end) = self.rest.iter().position(|byte| *byte == 0) else {
            return Err(format!("expected {what} ending in a zero byte, found {} bytes", self.rest.len()));
        };
        let text = self.rest.split_to(end);
        self.rest = self.rest.slice(1..);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Everything that is left.
    pub(super) fn remainder(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    /// Confirms that nothing is left.
    pub(super) fn end(self) -> Result<(), BodyProblem> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(format!("expected its end, found {} more bytes", self.rest.len()))
        }
    }
}
