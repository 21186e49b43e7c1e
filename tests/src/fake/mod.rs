//! A server that speaks the replication protocol from a script, for streams that no honest server would send.
//!
//! [`FakeServer`] accepts connections, answers the startup packet, and answers each query from a [`Script`]. What
//! PostgreSQL would say is the default; a test replaces the one answer that it is about. [`FakeBackup`] builds the
//! messages of a whole base backup, honest unless told otherwise, one by one, so that a test can damage, drop, repeat
//! or reorder them.

mod backup;
mod many;
mod member;
pub mod message;
mod script;
mod server;
mod wal;

pub use backup::{FakeBackup, FakeTablespace, Manifest, sealed};
pub use many::{ManyFiles, Part};
pub use member::Member;
pub use script::{Reply, Script, Step};
pub use server::FakeServer;
pub use wal::{WAL_START, honest_segment, honest_wal};
