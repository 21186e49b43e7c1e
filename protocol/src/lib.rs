//! What PostgreSQL defines for physical backups: wire protocol, replication commands, the archive
//! stream, tar, `backup_manifest`, `backup_label` and pages.
//!
//! Sans-IO: bytes go in, messages come out. No sockets, no files, no clock, no threads, no `unsafe`.
#![forbid(unsafe_code)]

pub mod basebackup;
pub mod control;
pub mod incremental;
pub mod label;
pub mod lsn;
pub mod manifest;
pub mod names;
pub mod page;
pub mod replication;
pub mod setting;
pub mod summary;
pub mod tar;
pub mod version;
pub mod wal;
pub mod wire;

pub use lsn::{BlockNumber, Lsn, TimelineId};
pub use version::ServerVersion;
