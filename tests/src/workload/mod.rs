//! What a source holds: datasets that a backup may stumble over, each switched on and sized on its own.
//!
//! All content is a function of the workload alone, so that two servers with the same workload hold the same rows.
//! Static data lies in the schemas `data`, `bulk` and `spaces`; what the [`Writer`](crate::Writer) changes lies in
//! schemas that begin with `churn`, and is compared by its ledger.

mod bulk;
mod files;
mod mixed;
mod spaces;

use std::path::PathBuf;

use anyhow::Context;
use pgstrata::postmaster::{Cluster, Server};

use crate::{Scratch, Sql};

pub use files::OddFile;
pub use spaces::Tablespace;

/// The data of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    rows: u32,
    tablespaces: u32,
    in_place_tablespace: bool,
    unlogged: bool,
    temporary: bool,
    odd_names: bool,
    special_files: bool,
    small_relations: u32,
    large_table_mib: u32,
}

/// What a loaded workload leaves in the hands of its source.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) tablespaces: Vec<Tablespace>,
    pub(crate) odd_files: Vec<OddFile>,
    pub(crate) special_files: Vec<PathBuf>,
    /// Sessions that hold temporary tables.
    pub(crate) sessions: Vec<Sql>,
}

impl Workload {
    /// Nothing but what `initdb` makes.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// A few thousand rows of every kind, one tablespace, unlogged and temporary tables, odd file names.
    #[must_use]
    pub fn small() -> Self {
        Self::empty().rows(2_000).tablespaces(1).unlogged().temporary().odd_names()
    }

    /// Tables of many types and indexes, TOAST, partitions, sequences, large objects and a second database, with about
    /// this many rows each.
    #[must_use]
    pub fn rows(mut self, rows: u32) -> Self {
        self.rows = rows;
        self
    }

    /// Tablespaces outside the data directory, with a table, an index and, for the first one, a database each.
    #[must_use]
    pub fn tablespaces(mut self, count: u32) -> Self {
        self.tablespaces = count;
        self
    }

    /// A tablespace that is a folder inside `pg_tblspc`.
    #[must_use]
    pub fn in_place_tablespace(mut self) -> Self {
        self.in_place_tablespace = true;
        self
    }

    /// Unlogged tables and a sequence, which have to be empty in a copy.
    #[must_use]
    pub fn unlogged(mut self) -> Self {
        self.unlogged = true;
        self
    }

    /// Temporary tables, held by a session as long as the source runs; their files must not be in a copy.
    #[must_use]
    pub fn temporary(mut self) -> Self {
        self.temporary = true;
        self
    }

    /// Files in the data directory whose names are no UTF-8, or hold newlines, quotes and backslashes, and whose
    /// sizes lie around the sizes of blocks.
    #[must_use]
    pub fn odd_names(mut self) -> Self {
        self.odd_names = true;
        self
    }

    /// A FIFO and a symbolic link in the data directory, which a server skips with a warning.
    #[must_use]
    pub fn special_files(mut self) -> Self {
        self.special_files = true;
        self
    }

    /// This many small tables with a row each.
    #[must_use]
    pub fn small_relations(mut self, count: u32) -> Self {
        self.small_relations = count;
        self
    }

    /// A table of this many MiB; above 1024 it has several segments.
    #[must_use]
    pub fn large_table_mib(mut self, size: u32) -> Self {
        self.large_table_mib = size;
        self
    }

    /// Loads what needs no running services, with `wal_level` `minimal`, where bulk loads write no WAL. The cluster is
    /// stopped before and after.
    pub(crate) fn load_bulk(&self, cluster: &Cluster) -> anyhow::Result<()> {
        if self.small_relations == 0 && self.large_table_mib == 0 {
            return Ok(());
        }
        let server = cluster.start(&bulk::SETTINGS)?;
        let sql = Sql::connect(&server.socket_conninfo())?;
        sql.try_execute("CREATE SCHEMA IF NOT EXISTS bulk")?;
        if self.small_relations > 0 {
            bulk::small_relations(&server, self.small_relations).context("loading small relations")?;
        }
        if self.large_table_mib > 0 {
            bulk::large_table(&sql, self.large_table_mib).context("loading the large table")?;
        }
        sql.try_execute("CHECKPOINT")?;
        drop(sql);
        server.stop(pgstrata::postmaster::Shutdown::Fast)?;
        Ok(())
    }

    /// Loads everything else into the running source.
    pub(crate) fn load(&self, server: &Server, scratch: &Scratch) -> anyhow::Result<Loaded> {
        let mut loaded = Loaded::default();
        let sql = Sql::connect(&server.socket_conninfo())?;
        if self.rows > 0 {
            mixed::load(server, &sql, self.rows).context("loading tables")?;
        }
        if self.tablespaces > 0 || self.in_place_tablespace {
            let directories = (0..self.tablespaces).map(|n| scratch.join(&format!("tablespace {n}")));
            loaded.tablespaces = spaces::load(server, &sql, directories, self.in_place_tablespace)
                .context("loading tablespaces")?;
        }
        if self.unlogged {
            sql.try_execute(mixed::UNLOGGED)?;
        }
        if self.temporary {
            let session = Sql::connect(&server.socket_conninfo())?;
            session.try_execute(mixed::TEMPORARY)?;
            loaded.sessions.push(session);
        }
        if self.odd_names {
            loaded.odd_files = files::make_odd(server, &sql)?;
        }
        if self.special_files {
            loaded.special_files = files::make_special(server)?;
        }
        Ok(loaded)
    }
}
