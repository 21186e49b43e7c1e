//! Connection strings, both forms of libpq: `keyword = 'value' …` and `postgresql://user@host:port/db?…`.
//!
//! Splits a string into keyword and value pairs, later ones overriding earlier ones; what the values mean is
//! [`super::settings`]' business. Accepts and rejects what `conninfo_parse` and `conninfo_uri_parse` of
//! `fe-connect.c` accept and reject, with their messages. A message never repeats a value, which may be a password.
//! Performs no I/O.

use super::keyword;

/// A connection string that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConninfoError {
    /// A keyword without a value.
    #[error("missing \"=\" after \"{0}\" in connection info string")]
    MissingEquals(String),
    /// A quote that nothing closes.
    #[error("unterminated quoted string in connection info string")]
    Unterminated,
    /// A keyword that libpq does not know.
    #[error("invalid connection option \"{0}\"")]
    UnknownKeyword(String),
    /// A URI parameter that libpq does not know.
    #[error("invalid URI query parameter: \"{0}\"")]
    UnknownParameter(String),
    /// A URI parameter without a value.
    #[error("missing key/value separator \"=\" in URI query parameter: \"{0}\"")]
    MissingSeparator(String),
    /// A URI parameter with two equal signs.
    #[error("extra key/value separator \"=\" in URI query parameter: \"{0}\"")]
    ExtraSeparator(String),
    /// `[` without `]`.
    #[error("end of string reached when looking for matching \"]\" in IPv6 host address in URI")]
    OpenBracket,
    /// `[]`.
    #[error("IPv6 host address may not be empty in URI")]
    EmptyBrackets,
    /// Something between `]` and the next part.
    #[error("unexpected character \"{found}\" at position {position} in URI (expected \":\" or \"/\")")]
    AfterBracket {
        /// The character found.
        found: char,
        /// Its place in the URI, counted from 1.
        position: usize,
    },
    /// A percent sign without two hexadecimal digits.
    #[error("invalid percent-encoded token in the {0} of the URI")]
    PercentToken(&'static str),
    /// `%00`.
    #[error("forbidden value %00 in the {0} of the URI")]
    PercentZero(&'static str),
    /// Percent-encoded bytes that are no UTF-8.
    #[error("the {0} of the URI is not valid UTF-8 after percent-decoding")]
    NotUtf8(&'static str),
}

/// Whether a connection string has a secret in it, and what is wrong with it.
///
/// # Errors
/// Where it cannot be read.
pub fn conninfo_has_secret(text: &str) -> Result<bool, ConninfoError> {
    let is_secret = |name: &str| matches!(name, "password" | "sslpassword");
    Ok(parse(text)?.iter().any(|(keyword, value)| is_secret(keyword.name) && !value.is_empty()))
}

/// Keyword and value, in the order given.
pub(super) type Pairs = Vec<(&'static keyword::Keyword, String)>;

/// Reads a connection string in either form.
pub(super) fn parse(text: &str) -> Result<Pairs, ConninfoError> {
    for scheme in ["postgresql://", "postgres://"] {
        if let Some(rest) = text.strip_prefix(scheme) {
            return parse_uri(rest, scheme.len());
        }
    }
    parse_keywords(text)
}

/// Finds the keyword and translates the one old name that libpq still takes.
fn store(pairs: &mut Pairs, name: &str, value: String) -> bool {
    let (name, value) = if name == "requiressl" {
        ("sslmode", if value.starts_with('1') { "require".to_owned() } else { "prefer".to_owned() })
    } else {
        (name, value)
    };
    match keyword::find(name) {
        Some(keyword) => {
            pairs.push((keyword, value));
            true
        }
        None => false,
    }
}

/// `isspace` of the C locale, which `char::is_ascii_whitespace` is not: it lacks the vertical tab.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn parse_keywords(text: &str) -> Result<Pairs, ConninfoError> {
    let mut pairs = Pairs::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = rest.find(|c| c == '=' || is_space(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let Some(after) = after.trim_start_matches(is_space).strip_prefix('=') else {
            return Err(ConninfoError::MissingEquals(name.to_owned()));
        };
        let after = after.trim_start_matches(is_space);
        let (value, after) = match after.strip_prefix('\'') {
            Some(quoted) => take_quoted(quoted)?,
            None => take_bare(after),
        };
        if !store(&mut pairs, name, value) {
            return Err(ConninfoError::UnknownKeyword(name.to_owned()));
        }
        rest = after.trim_start_matches(is_space);
    }
    Ok(pairs)
}

/// A value up to white space; a backslash takes the next character as it is, and is dropped at the end.
fn take_bare(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => value.extend(chars.next()),
            c if is_space(c) => break,
            c => value.push(c),
        }
    }
    (value, chars.as_str())
}

/// A value up to its closing quote, the opening one already taken.
fn take_quoted(text: &str) -> Result<(String, &str), ConninfoError> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next() {
            None => return Err(ConninfoError::Unterminated),
            Some('\'') => return Ok((value, chars.as_str())),
            Some('\\') => value.extend(chars.next()),
            Some(c) => value.push(c),
        }
    }
}

/// `[user[:password]@][host][:port][,…][/dbname][?name=value&…]`, the scheme of `offset` bytes already taken.
fn parse_uri(text: &str, offset: usize) -> Result<Pairs, ConninfoError> {
    let mut pairs = Pairs::new();
    let mut put = |name: &'static str, value: &str| -> Result<(), ConninfoError> {
        if !value.is_empty() {
            let value = decode(value, name)?;
            assert!(store(&mut pairs, name, value), "the parts of a URI are keywords");
        }
        Ok(())
    };

    let credentials_end = text.find(['@', '/']).filter(|&at| text[at..].starts_with('@'));
    let mut rest = text;
    if let Some(at) = credentials_end {
        let (user, password) = text[..at].split_once(':').unwrap_or((&text[..at], ""));
        put("user", user)?;
        put("password", password)?;
        rest = &text[at + 1..];
    }

    let (mut hosts, mut ports) = (String::new(), String::new());
    loop {
        let host = match rest.strip_prefix('[') {
            Some(inside) => {
                let end = inside.find(']').ok_or(ConninfoError::OpenBracket)?;
                if end == 0 {
                    return Err(ConninfoError::EmptyBrackets);
                }
                rest = &inside[end + 1..];
                if let Some(found) = rest.chars().next().filter(|c| !matches!(c, ':' | '/' | '?' | ',')) {
                    let position = offset + (text.len() - rest.len()) + 1;
                    return Err(ConninfoError::AfterBracket { found, position });
                }
                &inside[..end]
            }
            None => {
                let end = rest.find([':', '/', '?', ',']).unwrap_or(rest.len());
                let host = &rest[..end];
                rest = &rest[end..];
                host
            }
        };
        hosts.push_str(host);
        if let Some(after) = rest.strip_prefix(':') {
            let end = after.find(['/', '?', ',']).unwrap_or(after.len());
            ports.push_str(&after[..end]);
            rest = &after[end..];
        }
        let Some(after) = rest.strip_prefix(',') else { break };
        hosts.push(',');
        ports.push(',');
        rest = after;
    }
    put("host", &hosts)?;
    put("port", &ports)?;

    if let Some(after) = rest.strip_prefix('/') {
        let end = after.find('?').unwrap_or(after.len());
        put("dbname", &after[..end])?;
        rest = &after[end..];
    }
    if let Some(parameters) = rest.strip_prefix('?') {
        parse_parameters(parameters, &mut pairs)?;
    }
    Ok(pairs)
}

fn parse_parameters(text: &str, pairs: &mut Pairs) -> Result<(), ConninfoError> {
    let mut rest = text;
    while !rest.is_empty() {
        let (parameter, after) = rest.split_once('&').unwrap_or((rest, ""));
        let Some((name, value)) = parameter.split_once('=') else {
            return Err(ConninfoError::MissingSeparator(parameter.to_owned()));
        };
        if value.contains('=') {
            return Err(ConninfoError::ExtraSeparator(name.to_owned()));
        }
        let name = decode(name, "query parameter")?;
        let value = decode(value, "query parameter")?;
        // JDBC's spelling, which libpq takes too.
        let stored = if name == "ssl" && value == "true" {
            store(pairs, "sslmode", "require".to_owned())
        } else {
            store(pairs, &name, value)
        };
        if !stored {
            return Err(ConninfoError::UnknownParameter(name));
        }
        rest = after;
    }
    Ok(())
}

/// Replaces `%xy`; `part` names the place for messages.
fn decode(text: &str, part: &'static str) -> Result<String, ConninfoError> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit =
            || bytes.next().and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(ConninfoError::PercentToken(part));
        };
        match high << 4 | low {
            0 => return Err(ConninfoError::PercentZero(part)),
            byte => decoded.push(byte),
        }
    }
    String::from_utf8(decoded).map_err(|_| ConninfoError::NotUtf8(part))
}

/// Appends `name=value` to a connection string, quoted where libpq's `appendConnStrVal` quotes.
pub(super) fn append_pair(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push(' ');
    }
    text.push_str(name);
    text.push('=');
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
    if !value.is_empty() && value.bytes().all(plain) {
        text.push_str(value);
        return;
    }
    text.push('\'');
    for c in value.chars() {
        if matches!(c, '\'' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('\'');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Vec<(&'static str, String)>, ConninfoError> {
        Ok(parse(text)?.into_iter().map(|(keyword, value)| (keyword.name, value)).collect())
    }

    #[test]
    fn keyword_strings() {
        for (text, pairs) in [
            ("", &[][..]),
            ("  ", &[]),
            ("host=a port=1", &[("host", "a"), ("port", "1")]),
            (" host = a  port= 1 ", &[("host", "a"), ("port", "1")]),
            ("host\t=\n'a b' user=''", &[("host", "a b"), ("user", "")]),
            (r"user=a\ b\\c password='it\'s \\ \x'", &[("user", r"a b\c"), ("password", r"it's \ x")]),
            (r"user=x\", &[("user", "x")]),
            ("user=pos'tg'res", &[("user", "pos'tg'res")]),
            ("host='/tmp'port=5", &[("host", "/tmp"), ("port", "5")]),
            // Blanks after "=" belong to no value, so the next pair does.
            ("port= host=/tmp", &[("port", "host=/tmp")]),
            ("requiressl=1", &[("sslmode", "require")]),
            ("user=grün", &[("user", "grün")]),
        ] {
            let expected: Vec<_> = pairs.iter().map(|&(name, value)| (name, value.to_owned())).collect();
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn uris() {
        for (text, pairs) in [
            ("postgresql://", &[][..]),
            ("postgres://h", &[("host", "h")]),
            ("postgresql://h:5433/db", &[("host", "h"), ("port", "5433"), ("dbname", "db")]),
            ("postgresql://u@h/", &[("user", "u"), ("host", "h")]),
            ("postgresql://u:p%40%2f@h", &[("user", "u"), ("password", "p@/"), ("host", "h")]),
            ("postgresql://u:a:b@h", &[("user", "u"), ("password", "a:b"), ("host", "h")]),
            ("postgresql://:@h", &[("host", "h")]),
            // The first "@" ends the credentials.
            ("postgresql://u:a@b@h", &[("user", "u"), ("password", "a"), ("host", "b@h")]),
            ("postgresql://[::1]:7/d", &[("host", "::1"), ("port", "7"), ("dbname", "d")]),
            ("postgresql://[fe80::1%25lo]", &[("host", "fe80::1%lo")]),
            ("postgresql://%2Frun%2Fpg:6", &[("host", "/run/pg"), ("port", "6")]),
            ("postgresql:///d?host=/run/x&port=3", &[("dbname", "d"), ("host", "/run/x"), ("port", "3")]),
            ("postgresql://?user=a%20b&", &[("user", "a b")]),
            ("postgresql://h?connect_timeout=3", &[("host", "h"), ("connect_timeout", "3")]),
            ("postgresql://h:1:2/", &[("host", "h"), ("port", "1:2")]),
            ("postgresql://a:1,b:2/d", &[("host", "a,b"), ("port", "1,2"), ("dbname", "d")]),
            ("postgresql://a,[::1]:2/", &[("host", "a,::1"), ("port", ",2")]),
            ("postgresql://h/?ssl=true", &[("host", "h"), ("sslmode", "require")]),
            ("postgresql://h/?options=-c%20x%3Dy", &[("host", "h"), ("options", "-c x=y")]),
        ] {
            let expected: Vec<_> = pairs.iter().map(|&(name, value)| (name, value.to_owned())).collect();
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refusals() {
        use ConninfoError as E;
        for (text, error) in [
            ("foo", E::MissingEquals("foo".into())),
            ("foo bar=1", E::MissingEquals("foo".into())),
            ("foo=1", E::UnknownKeyword("foo".into())),
            ("HOST=a", E::UnknownKeyword("HOST".into())),
            ("=1", E::UnknownKeyword(String::new())),
            ("ssl=true", E::UnknownKeyword("ssl".into())),
            ("user='x", E::Unterminated),
            (r"user='x\'", E::Unterminated),
            ("postgresql://[::1", E::OpenBracket),
            ("postgresql://[]", E::EmptyBrackets),
            ("postgresql://[::1]x", E::AfterBracket { found: 'x', position: 19 }),
            ("postgresql://h/?a", E::MissingSeparator("a".into())),
            ("postgresql://h/?user=a&&", E::MissingSeparator(String::new())),
            ("postgresql://h/?a=b=c", E::ExtraSeparator("a".into())),
            ("postgresql://h/?a=b", E::UnknownParameter("a".into())),
            ("postgresql://%zz/", E::PercentToken("host")),
            ("postgresql://h/%4", E::PercentToken("dbname")),
            ("postgresql://%00/", E::PercentZero("host")),
            ("postgresql://u:%ff@/", E::NotUtf8("password")),
        ] {
            assert_eq!(read(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(postgres(ql)?://)?.{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn written_pairs_read_back(values in prop::collection::vec(".{0,20}", 1..5)) {
            let mut text = String::new();
            for value in &values {
                append_pair(&mut text, "user", value);
            }
            let read: Vec<String> = parse(&text).unwrap().into_iter().map(|(_, value)| value).collect();
            prop_assert_eq!(read, values);
        }
    }
}
