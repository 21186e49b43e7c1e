//! What stands in WAL: pages, and the records that run through them (`access/xlog_internal.h`, `access/xlogrecord.h`).

mod checker;
mod page;
mod record;

pub use checker::{WalChecker, WalError, WalOrigin};
pub use page::SegmentStart;
