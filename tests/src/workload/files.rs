//! Files that PostgreSQL did not make, and that a server sends all the same, or skips.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pgstrata::postmaster::Server;
use rustix::fs::{CWD, FileType, Mode};

use crate::Sql;

/// A file in the data directory that a copy has to hold byte by byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OddFile {
    /// Its path in the data directory.
    pub path: PathBuf,
    /// What is in it.
    pub content: Vec<u8>,
}

impl OddFile {
    /// Whether a copy's data directory holds the file as it should; otherwise says what is wrong.
    pub(crate) fn check(&self, data_dir: &Path) -> Result<(), String> {
        let path = data_dir.join(&self.path);
        match fs::read(&path) {
            Ok(found) if found == self.content => Ok(()),
            Ok(found) => Err(format!(
                "{path:?}: {} bytes differ from the source's {}",
                found.len(),
                self.content.len()
            )),
            Err(error) => Err(format!("{path:?}: {error}")),
        }
    }
}

/// BLCKSZ as everyone builds it.
const A_PAGE: usize = 8192;

/// `(name, size)`: names up to 100 bytes with their folder, which is all that the server's archives can hold.
const ODD: [(&[u8], usize); 10] = [
    (b"odd \xff\xfe\x80 bytes", 1000),
    (b"latin1-gr\xf6\xdfe", 0),
    (b"broken-\xe2\x82", 1),
    (b"new\nline", 511),
    (b"quote\"and\\backslash'", 512),
    (b"tab\there", 513),
    (b"-rf", 8191),
    ("grün".as_bytes(), 8192),
    (b"\x7f\x01control", 8193),
    (b".hidden", 70_000),
];

/// Makes the files at the top of the data directory, under `base` and in a database's folder.
///
/// Up to 16, a server with checksums takes everything under `base` for a relation's file (`is_checksummed_file` in
/// src/backend/backup/basebackup.c): it refuses a dot without a number, and finds whole pages damaged. Less than a page
/// it sends with a warning.
pub(super) fn make_odd(server: &Server, sql: &Sql) -> anyhow::Result<Vec<OddFile>> {
    let database: u32 = sql.value("SELECT oid FROM pg_database WHERE datname = current_database()");
    let mut made = Vec::new();
    for folder in [String::new(), "base".to_owned(), format!("base/{database}")] {
        for (name, size) in ODD {
            if !folder.is_empty() && (name.contains(&b'.') || size >= A_PAGE) {
                continue;
            }
            let path = Path::new(&folder).join(OsStr::from_bytes(name));
            let content: Vec<u8> =
                (0..size).map(|at| name[at % name.len()].wrapping_add(at.to_le_bytes()[1])).collect();
            let full = server.data_dir().join(&path);
            fs::write(&full, &content).with_context(|| format!("{full:?}"))?;
            server.cluster().run_as().own(&full)?;
            made.push(OddFile { path, content });
        }
    }
    Ok(made)
}

/// Makes a FIFO, and links to a file, to a folder and to nothing.
pub(super) fn make_special(server: &Server) -> anyhow::Result<Vec<PathBuf>> {
    let data_dir = server.data_dir();
    rustix::fs::mknodat(CWD, data_dir.join("special.fifo"), FileType::Fifo, Mode::RUSR, 0)?;
    server.cluster().run_as().own(&data_dir.join("special.fifo"))?;
    let mut made = vec![PathBuf::from("special.fifo")];
    for (name, target) in [("to-file", "PG_VERSION"), ("to-folder", "global"), ("to-nothing", "/nonexistent")]
    {
        let name = format!("special.{name}");
        symlink(target, data_dir.join(&name))?;
        made.push(PathBuf::from(name));
    }
    Ok(made)
}
