//! Names and texts inside replication commands.
//!
//! The scanner of replication commands (`repl_scanner.l`) knows doubled quotes and no backslash escapes; SQL
//! with `standard_conforming_strings` reads the same.

/// A text that no command can carry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// Commands end at a zero byte.
    #[error("{text:?} contains a zero byte, which no replication command can carry")]
    ZeroByte {
        /// The text.
        text: String,
    },
    /// The scanner refuses an empty name.
    #[error("a name is empty, expected at least one character")]
    EmptyName,
}

/// The text as a literal: `it's` becomes `'it''s'`.
pub fn quote_literal(text: &str) -> Result<String, QuoteError> {
    quote(text, '\'')
}

/// The name as an identifier: `a"b` becomes `"a""b"`.
pub fn quote_identifier(name: &str) -> Result<String, QuoteError> {
    if name.is_empty() { Err(QuoteError::EmptyName) } else { quote(name, '"') }
}

fn quote(text: &str, mark: char) -> Result<String, QuoteError> {
    if text.contains('\0') {
        return Err(QuoteError::ZeroByte { text: text.to_owned() });
    }
    let mut out = String::with_capacity(text.len() + 2);
    out.push(mark);
    for character in text.chars() {
        if character == mark {
            out.push(mark);
        }
        out.push(character);
    }
    out.push(mark);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes() {
        for (text, literal, identifier) in [
            ("plain", "'plain'", "\"plain\""),
            ("it's", "'it''s'", "\"it's\""),
            ("a\"b", "'a\"b'", "\"a\"\"b\""),
            ("back\\slash", "'back\\slash'", "\"back\\slash\""),
            ("'; DROP", "'''; DROP'", "\"'; DROP\""),
        ] {
            assert_eq!(quote_literal(text).as_deref(), Ok(literal));
            assert_eq!(quote_identifier(text).as_deref(), Ok(identifier));
        }
        assert_eq!(quote_literal("").as_deref(), Ok("''"));
    }

    #[test]
    fn refuses_what_cannot_be_quoted() {
        assert_eq!(quote_identifier(""), Err(QuoteError::EmptyName));
        for quoted in [quote_identifier("a\0b"), quote_literal("a\0b")] {
            assert_eq!(quoted, Err(QuoteError::ZeroByte { text: "a\0b".to_owned() }));
        }
    }
}
