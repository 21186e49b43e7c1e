//! An archive of WAL, received from a running server as it is written: what pg_receivewal does.
//!
//! `run` connects, streams, follows timelines and connects again; `start` finds where to go on; `archive` writes the
//! segments, `durability` makes them durable behind it.
//!
//! Invariants: a segment has its own name only once it is whole and durable, and gets it in the order of the log; at most
//! one segment of a timeline is `.partial`, the last; what a slot is told to be durable here is.

mod archive;
mod coder;
mod config;
mod durability;
mod facts;
mod history;
mod place;
mod run;
mod slot;
mod start;
mod stored;
mod told;

pub use config::{Action, ReceiveObserver, ReceiveWalConfig, WalArchive, WalStore};
pub(crate) use facts::ServerFacts;
pub(crate) use place::{AskPast, RestingSink, ServerPast, WalPlace};
pub use run::run;
pub(crate) use start::Start;
pub use told::told;
