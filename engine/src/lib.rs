//! pgstrata: a high-throughput, storage-side backup engine for PostgreSQL.
//!
//! Sources deliver bytes, the pipeline checks them, sinks say where they go, and disks are reached through one
//! seam. The command line in [`cli`] decides nothing: it turns words into checked configurations.

pub mod basebackup;
pub mod buffer;
pub mod cli;
pub mod combine;
pub mod connect;
pub mod demo;
pub mod failure;
pub mod pipeline;
pub mod postmaster;
pub mod readiness;
pub mod receivewal;
pub mod repository;
pub mod restore;
pub mod ring;
pub mod sink;
pub mod source;
pub mod stop;
pub mod tracking;
pub mod verify;
pub mod wal;
pub mod walarchive;
