//! `tablespace_map`: where each tablespace lay, one `oid path` a line (`read_tablespace_map`, `xlogrecovery.c`).
//!
//! A backslash stands before a backslash, line feed or carriage return that belongs to the path.

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
    /// The line's first bytes.
    pub found: Vec<u8>,
}

impl TablespaceMap {
    /// Reads a map.
    pub fn parse(content: &[u8]) -> Result<Self, TablespaceMapError> {
        let mut map = Self::default();
        let mut rest = content;
        let mut number = 0;
        while !rest.is_empty() {
            number += 1;
            let (line, complete, after) = unescaped_line(rest);
            let refuse = |reason| TablespaceMapError {
                line: number,
                reason,
                found: line[..line.len().min(200)].to_vec(),
            };
            if !complete {
                return Err(refuse("no line break behind the last entry"));
            }
            let entry = parse_line(&line).map_err(refuse)?;
            if map.tablespaces.iter().any(|known| known.oid == entry.oid) {
                return Err(refuse("an OID that was named before"));
            }
            map.tablespaces.push(entry);
            rest = after;
        }
        Ok(map)
    }

    /// The file's content.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut content = Vec::new();
        for MappedTablespace { oid, path } in &self.tablespaces {
            content.extend_from_slice(format!("{oid} ").as_bytes());
            for byte in path {
                if matches!(byte, b'\\' | b'\n' | b'\r') {
                    content.push(b'\\');
                }
                content.push(*byte);
            }
            content.push(b'\n');
        }
        content
    }

    /// Where a tablespace lay.
    #[must_use]
    pub fn path_of(&self, oid: u32) -> Option<&[u8]> {
        self.tablespaces.iter().find(|entry| entry.oid == oid).map(|entry| entry.path.as_slice())
    }
}

/// A line without its escapes, whether a line break ends it, and what follows.
fn unescaped_line(content: &[u8]) -> (Vec<u8>, bool, &[u8]) {
    let mut line = Vec::new();
    let mut bytes = content.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\n' => return (line, true, &content[at + 1..]),
            b'\\' => match bytes.next() {
                Some((_, escaped)) => line.push(*escaped),
                None => break,
            },
            byte => line.push(*byte),
        }
    }
    (line, false, &[])
}

fn parse_line(line: &[u8]) -> Result<MappedTablespace, &'static str> {
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
        path if path.len() > MemberPath::MAX_LEN => Err("a path that is too long"),
        path => Ok(MappedTablespace { oid, path: path.to_vec() }),
    }
}
