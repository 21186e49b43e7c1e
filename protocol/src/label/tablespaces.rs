//! `tablespace_map`: where each tablespace lay, one `oid path` a line (`do_pg_backup_start`, `read_tablespace_map`).
//!
//! From 14 on a backslash stands before each backslash, line feed or carriage return of the path. 13 escapes line breaks
//! only, so its maps cannot be read by the newer rule where a path holds a backslash; such a map is refused then.

use crate::ServerVersion;
use crate::tar::MemberPath;

/// The content of `tablespace_map`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablespaceMap {
    /// The tablespaces in the file's order, each OID once.
    pub tablespaces: Vec<MappedTablespace>,
}

/// One line of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedTablespace {
    /// The name of the link in `pg_tblspc`.
    pub oid: u32,
    /// Where the link leads: not empty, without NUL. Whether that is a sensible place is for the receiver to judge.
    pub path: Vec<u8>,
}

/// A line that is no entry of a map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tablespace_map line {line}: {reason} in \"{}\", expected an OID, a space and a path", found.escape_ascii())]
pub struct TablespaceMapError {
    /// The line's number, from 1; escaped line breaks do not count.
    pub line: usize,
    /// What is wrong.
    pub reason: &'static str,
    /// The line's first bytes, without escapes.
    pub found: Vec<u8>,
}

/// Which bytes of a path have a backslash in front.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    /// 13: line feed and carriage return.
    LineBreaks,
    /// 14 and newer: the backslash as well.
    All,
}

impl Escapes {
    fn of(version: ServerVersion) -> Self {
        if version.major() < 14 { Self::LineBreaks } else { Self::All }
    }

    fn covers(self, byte: u8) -> bool {
        matches!(byte, b'\n' | b'\r') || (byte == b'\\' && self == Self::All)
    }
}

impl TablespaceMap {
    /// Reads a map of 14 or newer.
    pub fn parse(content: &[u8]) -> Result<Self, TablespaceMapError> {
        Self::read(content, Escapes::All)
    }

    /// Reads a map that a server of this version wrote.
    pub fn parse_from(content: &[u8], version: ServerVersion) -> Result<Self, TablespaceMapError> {
        Self::read(content, Escapes::of(version))
    }

    /// The file's content for 14 or newer.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.write(Escapes::All)
    }

    /// The file's content for a server of this version.
    #[must_use]
    pub fn to_bytes_for(&self, version: ServerVersion) -> Vec<u8> {
        self.write(Escapes::of(version))
    }

    /// Where a tablespace lay.
    #[must_use]
    pub fn path_of(&self, oid: u32) -> Option<&[u8]> {
        self.tablespaces.iter().find(|entry| entry.oid == oid).map(|entry| entry.path.as_slice())
    }

    fn read(content: &[u8], escapes: Escapes) -> Result<Self, TablespaceMapError> {
        let mut map = Self::default();
        let mut rest = content;
        let mut number = 0;
        while !rest.is_empty() {
            number += 1;
            let mut line = Vec::new();
            let parsed = take_line(&mut rest, &mut line, escapes).and_then(|()| parse_line(&line));
            match parsed {
                // A carriage return ends a line as well, so that a line feed may follow it at once.
                Ok(None) => {}
                Ok(Some(entry)) if map.path_of(entry.oid).is_none() => map.tablespaces.push(entry),
                Ok(Some(_)) => return Err(refuse(number, "an OID that was named before", line)),
                Err(reason) => return Err(refuse(number, reason, line)),
            }
        }
        Ok(map)
    }

    fn write(&self, escapes: Escapes) -> Vec<u8> {
        let mut content = Vec::new();
        for MappedTablespace { oid, path } in &self.tablespaces {
            content.extend_from_slice(format!("{oid} ").as_bytes());
            for byte in path {
                if escapes.covers(*byte) {
                    content.push(b'\\');
                }
                content.push(*byte);
            }
            content.push(b'\n');
        }
        content
    }
}

fn refuse(line: usize, reason: &'static str, mut found: Vec<u8>) -> TablespaceMapError {
    found.truncate(200);
    TablespaceMapError { line, reason, found }
}

/// Moves a line without its escapes from `rest` to `line`.
fn take_line(rest: &mut &[u8], line: &mut Vec<u8>, escapes: Escapes) -> Result<(), &'static str> {
    while let [byte, after @ ..] = *rest {
        *rest = after;
        match (byte, after) {
            (b'\n' | b'\r', _) => return Ok(()),
            (b'\\', [escaped, after @ ..]) if escapes.covers(*escaped) => {
                line.push(*escaped);
                *rest = after;
            }
            (b'\\', _) if escapes == Escapes::All => return Err("a backslash that escapes nothing"),
            (byte, _) => line.push(*byte),
        }
        if line.len() > MemberPath::MAX_LEN {
            return Err("more than 1023 bytes");
        }
    }
    Err("no line break at the end")
}

/// `None` for an empty line.
fn parse_line(line: &[u8]) -> Result<Option<MappedTablespace>, &'static str> {
    if line.is_empty() {
        return Ok(None);
    }
    let space = line.iter().position(|byte| *byte == b' ').ok_or("no space")?;
    let (oid, path) = (&line[..space], &line[space + 1..]);
    if oid.first().is_none_or(|first| !matches!(first, b'1'..=b'9')) || !oid.iter().all(u8::is_ascii_digit) {
        return Err("no OID");
    }
    let oid = std::str::from_utf8(oid)
        .ok()
        .and_then(|oid| oid.parse().ok())
        .ok_or("an OID of more than 32 bits")?;
    match path {
        [] => Err("no path"),
        path if path.contains(&0) => Err("a NUL byte"),
        path => Ok(Some(MappedTablespace { oid, path: path.to_vec() })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(entries: &[(u32, &[u8])]) -> TablespaceMap {
        let entry = |(oid, path): &(u32, &[u8])| MappedTablespace { oid: *oid, path: path.to_vec() };
        TablespaceMap { tablespaces: entries.iter().map(entry).collect() }
    }

    #[test]
    fn reads() {
        for (content, entries) in [
            (&b""[..], &[][..]),
            (b"16404 /tmp/ta\\\\ble\n", &[(16404, &b"/tmp/ta\\ble"[..])]),
            (b"1 /a b\n4294967295  c\n", &[(1, b"/a b"), (u32::MAX, b" c")]),
            (b"1 /a\r\n2 /b\r\n", &[(1, b"/a"), (2, b"/b")]),
            (b"1 /a\\\nb\\\rc\n", &[(1, b"/a\nb\rc")]),
        ] {
            assert_eq!(TablespaceMap::parse(content), Ok(map(entries)), "{}", content.escape_ascii());
        }
    }

    #[test]
    fn thirteen_escapes_line_breaks_only() {
        let version = ServerVersion(130_023);
        let content = b"16393 /tmp/ta\\ble13\n1 /a\\\nb\n";
        let expected = map(&[(16393, b"/tmp/ta\\ble13"), (1, b"/a\nb")]);
        assert_eq!(TablespaceMap::parse_from(content, version).as_ref(), Ok(&expected));
        assert_eq!(expected.to_bytes_for(version), content);
        let error = TablespaceMap::parse(content).unwrap_err();
        assert_eq!(error.reason, "a backslash that escapes nothing");
    }

    #[test]
    fn refuses() {
        for (content, line, reason) in [
            (&b"1 /a"[..], 1, "no line break at the end"),
            (b"1 /a\n1 /b\n", 2, "an OID that was named before"),
            (b"1\n", 1, "no space"),
            (b"1 \n", 1, "no path"),
            (b" /a\n", 1, "no OID"),
            (b"01 /a\n", 1, "no OID"),
            (b"+1 /a\n", 1, "no OID"),
            (b"4294967296 /a\n", 1, "an OID of more than 32 bits"),
            (b"1 /a\0\n", 1, "a NUL byte"),
            (b"1 /a\\", 1, "a backslash that escapes nothing"),
            (&[b'1'; 2000], 1, "more than 1023 bytes"),
        ] {
            let error = TablespaceMap::parse(content).unwrap_err();
            assert_eq!((error.line, error.reason), (line, reason), "{}", content.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn round_trip(paths in proptest::collection::vec("[ab\\\\\n\r /]{1,20}", 0..4), old in any::<bool>()) {
            // 13 cannot tell its own escape from a path's backslash before a line break.
            prop_assume!(!old || !paths.iter().any(|path| path.contains('\\')));
            let version = ServerVersion(if old { 130_000 } else { 140_000 });
            let entries: Vec<_> = (1..).zip(paths.iter().map(|path| path.as_bytes())).collect();
            let map = map(&entries);
            prop_assert_eq!(TablespaceMap::parse_from(&map.to_bytes_for(version), version), Ok(map));
        }
    }
}
