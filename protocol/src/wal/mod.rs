//! What stands in WAL: pages, and the records that run through them (`access/xlog_internal.h`, `access/xlogrecord.h`).

mod change;
mod checker;
mod content;
mod manager;
mod page;
mod record;
mod stretch;
mod summarizer;
#[cfg(test)]
mod tests;

pub use change::{Change, Oids, Relations};
pub use checker::{Before, Unfinished, WalChecker, WalError, WalOrigin};
pub use content::{
    BlockImage, BlockReference, Compression, Contents, Record, RecordSink, Relation, WalVersion,
};
pub use manager::Manager;
pub use page::SegmentStart;
pub use stretch::{Head, JoinError, StretchSummarizer, Tail, WalStretch};
pub use summarizer::{Links, Summarizer};
