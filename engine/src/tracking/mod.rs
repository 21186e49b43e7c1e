//! What of a cluster changed since an older backup, and how a new one is laid over that one's maps.
//!
//! ```text
//! older backup (parent) ─► records by path ─┐
//! changes since its start ──────────────────┴─► plan of each file ─► reader: what is read ─► packer: map
//! ```
//! A wrong "unchanged" is data loss, so everything that is not known to be unchanged is read and stored: files that are no
//! main fork of a relation, files that the parent has not, blocks behind the parent's end or behind a limit.

mod archive;
mod overlay;
mod pages;
mod parent;
mod plan;
mod reads;
mod server;
mod source;

pub use archive::{ArchiveChanges, ArchiveRange, Missing, archive_changes};
pub use overlay::{BlockRun, Overlay, Placed};
pub(crate) use overlay::{Cursor, FRAGMENTS_MAX, MapBuilder, blocks_of, join_runs};
pub(crate) use pages::is_changed;
pub(crate) use parent::{
    BaseChoice, Basis, CANDIDATES, History, Parent, check_blocks, check_control, check_history,
    check_identity, identity, is_looked_up,
};
pub(crate) use plan::{FileFacts, Over, Plan, Planner, SPARSE_PERCENT, Stored, Tally};
pub(crate) use reads::BlockReads;
pub use server::{ChangesAsked, ServerChanges, SummaryPlace, server_changes};
pub(crate) use source::Changes;
pub use source::{ChangeSource, ChangesSummary, ChangesWanted, PassedOver};
