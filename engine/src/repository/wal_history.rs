//! Histories of timelines in a WAL archive.

use pgstrata_protocol::TimelineId;
use pgstrata_protocol::replication::TimelineHistory;

use super::error::RepositoryError;
use super::names::ClusterName;
use super::place::Repository;
use super::wal_names::WalName;
use crate::failure::Failure;

/// Longer ones are refused when they are taken in.
const MOST: usize = 4 << 20;

impl Repository {
    /// Reads a timeline's history; `None` where the archive has none. The first timeline never has one.
    ///
    /// # Errors
    /// Where it is damaged.
    pub fn wal_history(
        &self,
        cluster: &ClusterName,
        timeline: TimelineId,
    ) -> Result<Option<TimelineHistory>, Failure> {
        let name = WalName::History(timeline);
        let Some(object) = self.wal_object(cluster, name)? else { return Ok(None) };
        let damaged = |what: &dyn std::fmt::Display| RepositoryError::damaged(name.object(cluster), what);
        let mut content = Vec::new();
        object.read(|piece| {
            if content.len() + piece.len() > MOST {
                return Err(damaged(&"it is longer than any history").into());
            }
            content.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(Some(TimelineHistory::parse(timeline, &content).map_err(|error| damaged(&error))?))
    }
}
