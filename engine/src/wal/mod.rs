//! WAL as it streams in beside a backup: received, cut into segments, made durable.

mod receiver;
mod segments;

pub use receiver::{MadeSlot, SlotState, WalReceiver, WalReceiverConfig};
pub use segments::{SegmentWriter, WalDestination};
