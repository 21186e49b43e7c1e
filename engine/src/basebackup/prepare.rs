//! What is settled before the first byte: the server's facts, and folders for what it will send.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use pgstrata_protocol::incremental::Geometry;
use pgstrata_protocol::names::WalSegmentSize;
use pgstrata_protocol::replication::command::{identify_system, show};
use pgstrata_protocol::replication::{IdentifySystem, TablespaceRow, show_value};
use pgstrata_protocol::setting::parse_memory;
use pgstrata_protocol::wal::WalOrigin;
use pgstrata_protocol::{ServerVersion, TimelineId};

use super::config::{BaseBackupConfig, Destination};
use super::target::Claims;
use crate::connect::Session;
use crate::failure::Failure;
use crate::pipeline::Folder;
use crate::sink::Archive;

/// What the server says of itself.
#[derive(Debug)]
pub(super) struct ServerFacts {
    pub(super) version: ServerVersion,
    pub(super) version_text: String,
    pub(super) system: IdentifySystem,
    pub(super) segment_size: WalSegmentSize,
    /// The size of a page of WAL in bytes.
    pub(super) wal_page_size: u32,
    /// How incremental files are laid out, where the backup is to have any.
    pub(super) incremental: Option<Geometry>,
    /// Permission bits of folders, after the server's `data_directory_mode`.
    pub(super) folder_mode: u32,
    /// Permission bits of files, likewise.
    pub(super) file_mode: u32,
}

impl ServerFacts {
    /// Asks, and refuses what a backup cannot be taken from.
    pub(super) async fn ask(session: &mut Session, config: &BaseBackupConfig) -> Result<Self, Failure> {
        let version = session.server_version();
        if version < ServerVersion::OLDEST_SUPPORTED {
            return Err(Failure::Target(format!(
                "server version {version} is not supported, expected {} or newer\n\
                 HINT: use the pg_basebackup of the server's own version.",
                ServerVersion::OLDEST_SUPPORTED.major()
            )));
        }
        let results = query(session, "identify the system", &identify_system()).await?;
        let system = results
            .first()
            .ok_or_else(|| Failure::stream("IDENTIFY_SYSTEM", &"no result"))
            .and_then(|result| {
                IdentifySystem::from_result(result)
                    .map_err(|error| Failure::stream("IDENTIFY_SYSTEM", &error))
            })?;
        let mode = setting(session, "data_directory_mode").await?;
        let folder_mode =
            u32::from_str_radix(&mode, 8).ok().filter(|mode| mode & !0o777 == 0).ok_or_else(|| {
                Failure::stream(
                    "SHOW data_directory_mode",
                    &format!("found {mode:?}, expected an octal mode"),
                )
            })?;
        let segment_size: WalSegmentSize = setting(session, "wal_segment_size")
            .await?
            .parse()
            .map_err(|error| Failure::stream("SHOW wal_segment_size", &error))?;
        let wal_page_size = setting(session, "wal_block_size").await?;
        let wal_page_size = wal_page_size.parse().ok().filter(|size: &u32| size.is_power_of_two());
        let wal_page_size =
            wal_page_size.ok_or_else(|| Failure::stream("SHOW wal_block_size", &"it is no power of two"))?;
        let block_size = setting(session, "block_size").await?;
        if config.check_pages && block_size != "8192" {
            return Err(Failure::Target(format!(
                "--check-pages needs pages of 8192 bytes, the server's have {block_size}\nHINT: leave --check-pages out."
            )));
        }
        if config.check_pages {
            // Block numbers go into the checksums, and count through the segments of a relation.
            let segment_size = setting(session, "segment_size").await?;
            if segment_size != "1GB" {
                return Err(Failure::Target(format!(
                    "--check-pages needs segments of 1GB, the server's have {segment_size}\nHINT: leave --check-pages out."
                )));
            }
        }
        if config.check_pages && setting(session, "data_checksums").await? != "on" {
            return Err(Failure::Target(
                "--check-pages needs data checksums, which this cluster does not have\n\
                 HINT: leave --check-pages out, or enable them with pg_checksums while the server is down."
                    .into(),
            ));
        }
        let incremental = match config.incremental {
            None => None,
            Some(_) => Some(geometry(session, &block_size).await?),
        };
        let group = folder_mode & 0o050 == 0o050;
        Ok(Self {
            version,
            version_text: session.parameter("server_version").unwrap_or_default().to_owned(),
            system,
            segment_size,
            wal_page_size,
            incremental,
            folder_mode: if group { 0o750 } else { 0o700 },
            file_mode: if group { 0o640 } else { 0o600 },
        })
    }

    /// What the server's WAL on a timeline says of itself.
    pub(super) fn wal_origin(&self, timeline: TimelineId) -> WalOrigin {
        let number = self.version_text.split(' ').next().unwrap_or_default();
        // Until its release a version's pages may begin with anything.
        let released = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        WalOrigin {
            system_identifier: self.system.system_identifier,
            timeline,
            segment_size: self.segment_size,
            magic: self.version.wal_magic().filter(|_| released),
            page_size: Some(self.wal_page_size),
        }
    }
}

/// How large the server's blocks and segments are.
async fn geometry(session: &mut Session, block_size: &str) -> Result<Geometry, Failure> {
    let segment_size = setting(session, "segment_size").await?;
    let refuse = |why: &dyn std::fmt::Display| Failure::stream("SHOW block_size and segment_size", why);
    match (parse_memory(block_size), parse_memory(&segment_size)) {
        (Some(block), Some(segment)) => Geometry::new(block, segment).map_err(|error| refuse(&error)),
        _ => Err(refuse(&format!("found {block_size:?} and {segment_size:?}, expected amounts of memory"))),
    }
}

/// Asks one thing that the server may refuse.
pub(super) async fn query(
    session: &mut Session,
    what: &str,
    command: &str,
) -> Result<Vec<pgstrata_protocol::replication::ResultSet>, Failure> {
    session.simple_query(command).await.map_err(|error| Failure::session(format!("could not {what}"), error))
}

async fn setting(session: &mut Session, name: &str) -> Result<String, Failure> {
    let command = show(name).map_err(|error| Failure::stream("SHOW", &error))?;
    let results = query(session, &format!("read the setting {name}"), &command).await?;
    results.first().ok_or_else(|| Failure::stream(format!("SHOW {name}"), &"no result")).and_then(|result| {
        show_value(result).map_err(|error| Failure::stream(format!("SHOW {name}"), &error))
    })
}

/// Folders of a plain backup, claimed and made.
#[derive(Debug)]
pub(super) struct PlainFolders {
    pub(super) base: Arc<Folder>,
    pub(super) tablespaces: HashMap<u32, Arc<Folder>>,
    /// `pg_wal`, where it lies outside of the base directory.
    pub(super) wal: Option<Arc<Folder>>,
    /// Folders made here that the stream brings as well.
    pub(super) expected: HashSet<Vec<u8>>,
    /// What is to be synced beside what the stream brings.
    pub(super) made: Vec<PathBuf>,
}

impl PlainFolders {
    /// Claims the mapped folders of all tablespaces and makes those that the WAL receiver needs at once.
    pub(super) fn make(
        claims: &mut Claims,
        config: &BaseBackupConfig,
        facts: &ServerFacts,
        archives: &[Archive],
        streams_wal: bool,
    ) -> Result<Self, Failure> {
        let Destination::Directory { path, wal_directory, tablespace_mapping } = &config.destination else {
            unreachable!("the caller asks for a plain backup")
        };
        let mode = facts.folder_mode;
        let base = Folder::open(path)?;
        let mut folders = PlainFolders {
            base: Arc::clone(&base),
            tablespaces: HashMap::new(),
            wal: None,
            expected: HashSet::new(),
            made: Vec::new(),
        };
        for archive in archives {
            let Some(oid) = archive.tablespace else { continue };
            let location = Path::new(OsStr::from_bytes(&archive.location));
            let place = if location.is_absolute() {
                let mapped = tablespace_mapping.iter().find(|(old, _)| old == location);
                match mapped {
                    Some((_, new)) => new.clone(),
                    None => check_location(location, oid)?.to_owned(),
                }
            } else {
                folders.in_place(&archive.location, oid, mode)?
            };
            claims.claim(&place, mode)?;
            folders.tablespaces.insert(oid, Folder::open(&place)?);
            folders.made.push(place);
        }
        if let Some(path) = wal_directory {
            rustix::fs::symlinkat(path, &base.handle, "pg_wal")
                .map_err(|error| Failure::disk("create link", base.path.join("pg_wal"), error))?;
            folders.wal = Some(Folder::open(path)?);
            folders.expected.insert(b"pg_wal".to_vec());
            folders.made.push(path.clone());
        } else if streams_wal {
            folders.make_expected(b"pg_wal", mode)?;
        }
        if streams_wal {
            folders.make_expected(b"pg_wal/archive_status", mode)?;
        }
        Ok(folders)
    }

    /// The folder `pg_wal` itself.
    pub(super) fn wal_folder(&self) -> Result<Arc<Folder>, Failure> {
        match &self.wal {
            Some(wal) => Ok(Arc::clone(wal)),
            None => self.base.descend(b"pg_wal"),
        }
    }

    /// A tablespace inside the data directory (`allow_in_place_tablespaces`): `pg_tblspc/OID`.
    fn in_place(&mut self, location: &[u8], oid: u32, mode: u32) -> Result<PathBuf, Failure> {
        if location != format!("pg_tblspc/{oid}").as_bytes() {
            let shown = location.escape_ascii().to_string();
            let why = format!("found \"{shown}\", expected an absolute path or pg_tblspc/{oid}");
            return Err(Failure::stream(format!("location of tablespace {oid}"), &why));
        }
        if !self.expected.contains(&b"pg_tblspc"[..]) {
            self.make_expected(b"pg_tblspc", mode)?;
        }
        self.make_expected(location, mode)?;
        Ok(self.base.path.join(OsStr::from_bytes(location)))
    }

    fn make_expected(&mut self, path: &[u8], mode: u32) -> Result<(), Failure> {
        let (folder, name) = match path.strip_prefix(b"pg_wal/") {
            Some(name) => (self.wal_folder()?, name),
            None => match path.iter().rposition(|byte| *byte == b'/') {
                Some(slash) => (self.base.descend(&path[..slash])?, &path[slash + 1..]),
                None => (Arc::clone(&self.base), path),
            },
        };
        let name = OsStr::from_bytes(name);
        folder.make(name, mode)?;
        self.expected.insert(path.to_vec());
        self.made.push(folder.path.join(name));
        Ok(())
    }
}

/// A place that the server names and nobody has mapped: made here only where it says plainly which it is.
fn check_location(location: &Path, oid: u32) -> Result<&Path, Failure> {
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if location.components().all(plain) {
        return Ok(location);
    }
    Err(Failure::Target(format!(
        "tablespace {oid} lies in \"{}\", expected a path without \"..\"\n\
         HINT: say where it is to go with --tablespace-mapping.",
        location.display()
    )))
}

/// The archives that the server's list announces, in its order. No tablespace may stand there twice: two archives
/// would fill one folder.
pub(super) fn archives(rows: &[TablespaceRow]) -> Result<Vec<Archive>, Failure> {
    let mut seen = HashSet::new();
    if let Some(oid) = rows.iter().filter_map(|row| row.oid).find(|oid| !seen.insert(*oid)) {
        return Err(Failure::stream("the list of tablespaces", &format!("it names tablespace {oid} twice")));
    }
    let archive = |row: &TablespaceRow| Archive {
        tablespace: row.oid,
        location: row.location.clone().unwrap_or_default(),
    };
    Ok(rows.iter().map(archive).collect())
}
