//! Files of a data directory that tell what it is: `pg_control`, which may be torn while it is read, and
//! `postmaster.pid`.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use pgstrata_protocol::control::{ControlFile, ControlFileError};

use crate::failure::Failure;

/// How often a control file with a wrong checksum is read again: a server writes it in one piece.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(10);
const CONTROL_FILE: &str = "global/pg_control";

/// Reads the control file, whole.
pub(super) fn read_control(data_directory: &Path) -> Result<(Vec<u8>, ControlFile), Failure> {
    let path = data_directory.join(CONTROL_FILE);
    let mut tries = 0;
    loop {
        let bytes = fs::read(&path).map_err(|error| unreadable(&path, error))?;
        tries += 1;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(ControlFileError::Checksum { .. } | ControlFileError::Length { .. }) if tries < TRIES => {
                thread::sleep(PAUSE);
            }
            Err(error @ ControlFileError::Version { .. }) => {
                return Err(Failure::Target(format!("\"{}\": {error}", path.display())));
            }
            Err(error) => {
                return Err(Failure::Target(format!(
                    "\"{}\": {error}, in {tries} reads\n\
                     HINT: the file is damaged, or this is no PostgreSQL data directory; check its disk.",
                    path.display()
                )));
            }
        }
    }
}

/// What the running postmaster says of itself (`pidfile.h`).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PostmasterFile {
    /// Line 1.
    pub(super) pid: String,
    /// Line 2: how the server calls its data directory.
    pub(super) data_directory: Vec<u8>,
    /// Line 4.
    pub(super) port: String,
}

impl PostmasterFile {
    pub(super) fn read(data_directory: &Path) -> Result<Self, Failure> {
        let path = data_directory.join("postmaster.pid");
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::Target(format!(
                    "no server runs in \"{}\": it has no postmaster.pid\n\
                     HINT: --pgdata is the data directory of the running server that -d leads to.",
                    data_directory.display()
                )));
            }
            read => read.map_err(|error| unreadable(&path, error))?,
        };
        Self::parse(&bytes).ok_or_else(|| {
            Failure::Target(format!(
                "\"{}\" has no pid, data directory and port\nHINT: wait until the server has started.",
                path.display()
            ))
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut lines =
            bytes.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
        let number = |line: &[u8]| {
            let text = std::str::from_utf8(line).ok()?.trim();
            text.parse::<u32>().ok().map(|number| number.to_string())
        };
        let pid = number(lines.next()?)?;
        let data_directory = lines.next()?.to_vec();
        lines.next()?;
        Some(Self { pid, data_directory, port: number(lines.next()?)? })
    }
}

/// What cannot be read, and what to do about it.
fn unreadable(path: &Path, error: io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "--pgdata is the data directory of the running server that -d leads to.",
        io::ErrorKind::PermissionDenied => {
            "run as the owner of the data directory, or as a member of its group where the cluster was made with \
             --allow-group-access; or take the backup over the network with --source stream."
        }
        _ => return Failure::disk("read", path, error),
    };
    Failure::Target(format!("could not read \"{}\": {error}\nHINT: {hint}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_postmaster_writes() {
        let whole = b"4711\n/data/\xff\n1763813000\n5433\n/tmp\n127.0.0.1\n 12345 67\nready   \n";
        let read = PostmasterFile::parse(whole).expect("whole");
        assert_eq!((&*read.pid, &*read.port), ("4711", "5433"));
        assert_eq!(read.data_directory, b"/data/\xff");
        for part in [&b""[..], b"4711\n/data\n", b"4711\n/data\n1763813000\n54", b"x\n/data\n1\n5432\n"] {
            assert_eq!(PostmasterFile::parse(part), None);
        }
    }
}
