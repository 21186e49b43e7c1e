//! What the server says of itself before it streams.

use pgstrata_protocol::names::WalSegmentSize;
use pgstrata_protocol::replication::command::{identify_system, show};
use pgstrata_protocol::replication::{IdentifySystem, ResultSet, show_value};
use pgstrata_protocol::wal::WalOrigin;
use pgstrata_protocol::{ServerVersion, TimelineId};

use crate::connect::Session;
use crate::failure::Failure;

/// The server's facts.
#[derive(Debug)]
pub(crate) struct ServerFacts {
    pub(super) version: ServerVersion,
    pub(crate) system: IdentifySystem,
    pub(crate) segment_size: WalSegmentSize,
    /// Permission bits of files, after the server's `data_directory_mode`.
    pub(super) file_mode: u32,
    wal_page_size: u32,
    /// Whether the server is a release: until then a version's pages may begin with anything.
    released: bool,
}

impl ServerFacts {
    /// Asks, and refuses what WAL cannot be had from.
    pub(super) async fn ask(session: &mut Session) -> Result<Self, Failure> {
        let version = session.server_version();
        let text = session.parameter("server_version").unwrap_or_default().to_owned();
        if version < ServerVersion::OLDEST_SUPPORTED {
            return Err(Failure::Target(format!(
                "incompatible server version {text}; client does not support streaming from server versions older than {}",
                ServerVersion::OLDEST_SUPPORTED.major()
            )));
        }
        let mode = setting(session, "data_directory_mode").await?;
        let mode = u32::from_str_radix(&mode, 8).map_err(|_| {
            let error = format!("found {mode:?}, expected an octal mode");
            Failure::stream("SHOW data_directory_mode", &error)
        })?;
        let refuse = |error: &dyn std::fmt::Display| Failure::stream("IDENTIFY_SYSTEM", error);
        let results = query(session, "IDENTIFY_SYSTEM", &identify_system()).await?;
        let result = results.first().ok_or_else(|| refuse(&"no result"))?;
        let system = IdentifySystem::from_result(result).map_err(|error| refuse(&error))?;
        let segment_size = setting(session, "wal_segment_size").await?;
        let segment_size =
            segment_size.parse().map_err(|error| Failure::stream("SHOW wal_segment_size", &error))?;
        let page_size = setting(session, "wal_block_size").await?;
        let page_size = page_size.parse().ok().filter(|size: &u32| size.is_power_of_two());
        let number = text.split(' ').next().unwrap_or_default();
        Ok(Self {
            version,
            system,
            segment_size,
            file_mode: if mode & 0o050 == 0o050 { 0o640 } else { 0o600 },
            wal_page_size: page_size
                .ok_or_else(|| Failure::stream("SHOW wal_block_size", &"it is no power of two"))?,
            released: number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'),
        })
    }

    /// What the server's WAL on a timeline says of itself.
    pub(super) fn wal_origin(&self, timeline: TimelineId) -> WalOrigin {
        WalOrigin {
            system_identifier: self.system.system_identifier,
            timeline,
            segment_size: self.segment_size,
            magic: self.version.wal_magic().filter(|_| self.released),
            page_size: Some(self.wal_page_size),
        }
    }
}

/// Asks one thing that the server may refuse, in pg_receivewal's words.
pub(super) async fn query(
    session: &mut Session,
    name: &str,
    command: &str,
) -> Result<Vec<ResultSet>, Failure> {
    session
        .simple_query(command)
        .await
        .map_err(|error| Failure::session(format!("could not send replication command \"{name}\""), error))
}

async fn setting(session: &mut Session, name: &str) -> Result<String, Failure> {
    let command = show(name).map_err(|error| Failure::stream("SHOW", &error))?;
    let shown = format!("SHOW {name}");
    let results = query(session, &shown, &command).await?;
    let result = results.first().ok_or_else(|| Failure::stream(shown.clone(), &"no result"))?;
    show_value(result).map_err(|error| Failure::stream(shown, &error))
}
