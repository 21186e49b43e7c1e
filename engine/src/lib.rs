//! pgstrata: a high-throughput, storage-side backup engine for PostgreSQL.

pub mod buffer;
pub mod connect;
pub mod postmaster;
pub mod ring;
