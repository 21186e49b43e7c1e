//! What of a cluster changed since an older backup.

mod server;

pub use server::{ChangesAsked, ServerChanges, SummaryPlace, server_changes};
