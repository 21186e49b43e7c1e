//! The password file: `host:port:database:user:password` a line, the first match counts.
//!
//! Follows `passwordFromFile` of `fe-connect.c`: `*` matches anything in the first four fields, `\:` and `\\`
//! escape, `#` at the start of a line is a comment, and a file that others may read is ignored with a warning.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// No sane password file is larger; a device or a mistaken path must not fill memory.
const LARGEST: u64 = 16 << 20;

/// What is looked for, as the first four fields name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// The host as given; `localhost` for the default socket directory.
    pub(super) host: &'a str,
    pub(super) port: &'a str,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// Why a password file that exists was not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ignored {
    #[error("password file \"{}\" is not a plain file", .0.display())]
    NotPlain(PathBuf),
    #[error(
        "password file \"{}\" has group or world access; permissions should be u=rw (0600) or less",
        .0.display()
    )]
    TooOpen(PathBuf),
    #[error("password file \"{}\" cannot be read: {source}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
}

/// The password for `wanted`, or `None` where the file does not exist or has no such line.
///
/// # Errors
/// [`Ignored`] where the file exists and must not or cannot be used: a reason to warn, never to stop.
pub(super) fn look_up(path: &Path, wanted: Wanted<'_>) -> Result<Option<String>, Ignored> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(None) };
    if !metadata.is_file() {
        return Err(Ignored::NotPlain(path.to_owned()));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(Ignored::TooOpen(path.to_owned()));
    }
    let unreadable = |source| Ignored::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    for line in BufReader::new(file.take(LARGEST)).split(b'\n') {
        let line = line.map_err(unreadable)?;
        // Passwords in another encoding than UTF-8 are for other users' entries or for none.
        if let Ok(line) = std::str::from_utf8(&line)
            && let Some(password) = match_line(line, wanted)
        {
            return Ok(Some(password));
        }
    }
    Ok(None)
}

/// The line's password if its four fields match.
fn match_line(line: &str, wanted: Wanted<'_>) -> Option<String> {
    let line = line.trim_end_matches(['\r', '\n']);
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    for value in [wanted.host, wanted.port, wanted.database, wanted.user] {
        let (field, after) = take_field(rest)?;
        if field != "*" && unescape(field) != value {
            return None;
        }
        rest = after;
    }
    let end = take_field(rest).map_or(rest.len(), |(password, _)| password.len());
    Some(unescape(&rest[..end]))
}

/// Splits at the first colon that no backslash escapes; `None` where there is none.
fn take_field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b':' => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    None
}

fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        // A lone backslash at the end stands for itself, as libpq has it.
        text.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    const WANTED: Wanted<'_> = Wanted { host: "db:1", port: "5432", database: "replication", user: r"a\b" };

    #[test]
    fn lines() {
        for (line, password) in [
            (r"db\:1:5432:replication:a\\b:secret", Some("secret")),
            ("*:*:*:*:secret", Some("secret")),
            ("*:*:*:*:secret\r", Some("secret")),
            (r"*:5432:*:a\\b:s\:e\\c:ret", Some(r"s:e\c")),
            (r"*:*:*:*:a\", Some(r"a\")),
            ("*:*:*:*:", Some("")),
            ("*:*:*:*: spaced ", Some(" spaced ")),
            ("#*:*:*:*:secret", None),
            ("", None),
            ("*:*:*:*", None),
            ("*:*:*", None),
            ("db:1:5432:replication:ab:secret", None),
            ("*:5433:*:*:secret", None),
            ("*:*:postgres:*:secret", None),
            ("*:*:*:other:secret", None),
            ("**:*:*:*:secret", None),
            (r"\*:*:*:*:secret", None),
        ] {
            assert_eq!(match_line(line, WANTED).as_deref(), password, "{line}");
        }
    }

    #[test]
    fn files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        assert!(matches!(look_up(&path, WANTED), Ok(None)), "absent");

        fs::write(&path, b"# comment\n\xff:*:*:*:bad\nother:*:*:*:no\n*:5432:*:*:first\n*:*:*:*:second\n")
            .unwrap();
        for (mode, usable) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o610, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match look_up(&path, WANTED) {
                Ok(found) => assert_eq!((found.as_deref(), usable), (Some("first"), true), "{mode:o}"),
                Err(Ignored::TooOpen(_)) => assert!(!usable, "{mode:o}"),
                Err(other) => panic!("{mode:o}: {other}"),
            }
        }
        assert!(matches!(look_up(folder.path(), WANTED), Err(Ignored::NotPlain(_))));
    }
}
