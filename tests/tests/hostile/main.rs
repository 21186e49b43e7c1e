//! Streams that no honest server sends, in both layouts: refused, with nothing written outside of the target.

mod case;
mod compressed;
mod fetched;
mod incremental;
mod manifests;
mod members;
mod order;
mod wal;
mod words;
