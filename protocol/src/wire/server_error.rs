//! What a server says in `ErrorResponse` and `NoticeResponse`, and how libpq would print it.

use std::fmt;

/// An error or a notice from the server: its fields by their code (`postgres_ext.h`, `PG_DIAG_*`).
///
/// `Display` gives libpq's default form without a final newline: `ERROR:  message`, then `DETAIL:`, `HINT:`,
/// `QUERY:` and, for errors, `CONTEXT:` lines. Bytes that are not UTF-8 were replaced by U+FFFD.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerError {
    /// In the order received; a server sends each code once, and the first one counts.
    fields: Vec<(u8, String)>,
}

impl ServerError {
    /// Builds one from (code, value) pairs, such as `(b'S', "ERROR")`.
    pub fn from_fields(fields: impl IntoIterator<Item = (u8, String)>) -> Self {
        Self { fields: fields.into_iter().collect() }
    }

    /// The value of a field by its code, such as `b'M'`.
    #[must_use]
    pub fn field(&self, code: u8) -> Option<&str> {
        self.fields.iter().find(|(have, _)| *have == code).map(|(_, value)| value.as_str())
    }

    /// Severity as the server's language has it (`S`), else the untranslated one, else `ERROR`.
    #[must_use]
    pub fn severity(&self) -> &str {
        self.field(b'S').or_else(|| self.field(b'V')).unwrap_or("ERROR")
    }

    /// Severity that is never translated (`V`): ERROR, FATAL, PANIC, WARNING, NOTICE, DEBUG, INFO or LOG.
    #[must_use]
    pub fn severity_code(&self) -> &str {
        self.field(b'V').or_else(|| self.field(b'S')).unwrap_or("ERROR")
    }

    /// The five-character SQLSTATE (`C`), empty where the server sent none.
    #[must_use]
    pub fn sqlstate(&self) -> &str {
        self.field(b'C').unwrap_or("")
    }

    /// The primary message (`M`).
    #[must_use]
    pub fn message(&self) -> &str {
        self.field(b'M').unwrap_or("(the server sent no message)")
    }

    /// The secondary message (`D`).
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.field(b'D')
    }

    /// What the server suggests to do (`H`).
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.field(b'H')
    }

    /// The position in the query in characters, from 1 (`P`).
    #[must_use]
    pub fn position(&self) -> Option<&str> {
        self.field(b'P')
    }

    /// The text of an internally generated query that failed (`q`).
    #[must_use]
    pub fn internal_query(&self) -> Option<&str> {
        self.field(b'q')
    }

    /// The call stack within the server (`W`).
    #[must_use]
    pub fn context(&self) -> Option<&str> {
        self.field(b'W')
    }

    /// The server's source file (`F`).
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.field(b'F')
    }

    /// The line in the server's source file (`L`).
    #[must_use]
    pub fn line(&self) -> Option<&str> {
        self.field(b'L')
    }

    /// The server's source routine (`R`).
    #[must_use]
    pub fn routine(&self) -> Option<&str> {
        self.field(b'R')
    }

    /// Whether the server ends the session with this: FATAL or PANIC.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity_code(), "FATAL" | "PANIC")
    }

    /// Whether this is an error at all: ERROR, FATAL or PANIC.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity_code() == "ERROR" || self.is_fatal()
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:  {}", self.severity(), self.message())?;
        if let Some(position) = self.position() {
            write!(f, " at character {position}")?;
        }
        let context = self.context().filter(|_| self.is_error());
        let lines = [
            ("DETAIL", self.detail()),
            ("HINT", self.hint()),
            ("QUERY", self.internal_query()),
            ("CONTEXT", context),
        ];
        for (label, text) in lines {
            if let Some(text) = text {
                write!(f, "\n{label}:  {text}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (code, value) in &self.fields {
            map.entry(&char::from(*code), value);
        }
        map.finish()
    }
}

impl std::error::Error for ServerError {}

#[cfg(test)]
mod tests;
