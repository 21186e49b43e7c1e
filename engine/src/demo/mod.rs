//! A demonstration from nothing: makes a server with data, backs it up under load, boots the copy and compares.
//!
//! Contract: everything happens in one scratch folder and in servers of our own, on sockets that nobody else
//! reaches; when [`run`] returns, for whatever reason, the servers have ended and the folder is gone (unless it is
//! to be kept). Only a server program that had to be downloaded stays, in its cache.
//! Decides and measures; a [`DemoObserver`] shows it.

mod compare;
mod config;
mod dataset;
mod digest;
mod error;
mod ledger;
mod observer;
mod report;
mod run;
mod scratch;
mod sql;
mod writer;

pub use config::DemoConfig;
pub use error::{DemoError, Side};
pub use observer::{DemoObserver, Done, Step};
pub use report::{BootReport, Comparison, DemoReport, LedgerReport, ProgramReport, SourceReport};
pub use run::run;
