//! WAL as it streams in: received, checked, and, beside a backup, cut into segments and made durable.
//!
//! `stream` is the one receiver of WAL that there is; `receiver` runs it beside a backup, [`crate::receivewal`] for an
//! archive of WAL.

mod receiver;
mod reconnect;
mod segments;
mod stream;

pub use receiver::{MadeSlot, SlotState, WalReceiver, WalReceiverConfig};
pub use reconnect::within;
pub use segments::{SegmentWriter, WalDestination};
pub use stream::{Reached, StreamEnd, StreamRules, WalSink, WalStream};
