//! Replication sessions: commands by server version, their replies, the WAL stream, timeline histories.
//!
//! Sans-IO: commands are texts for [`crate::wire::frontend::query`]; replies are assembled from
//! [`crate::wire::BackendMessage`]s; the WAL stream is decoded from pieces of `CopyData`.

pub mod command;
mod quote;
mod reply;
mod result_set;
mod row;
mod timeline;
mod wal_stream;

pub use quote::{QuoteError, quote_identifier, quote_literal};
pub use reply::{CompletedReply, DEFAULT_RESULT_LIMIT, QueryReply, ReplyError, ReplyStep};
pub use result_set::{ResultError, ResultSet};
pub use row::{
    BackupPosition, CreatedSlot, IdentifySystem, ReplicationSlot, TablespaceRow, TimelineEnd,
    TimelineHistoryFile, show_value,
};
pub use timeline::{TimelineHistory, TimelineHistoryError, TimelineSwitch};
pub use wal_stream::{StandbyStatus, WalEvent, WalEvents, WalStreamDecoder, WalStreamError};
