//! The WAL archive of a repository: taken in by archive_command or from a stream, given back to restore_command.
//!
//! `file` is a WAL file of a server here; `push` takes files in, `get` gives them back through a `spool`; `parts` is what
//! there is of a segment that is not whole; `changes` notes what segments changed as they pass; `index` is what an archive
//! holds, `reach` how far recovery comes with it, `check` both for the operator; `receive` streams into it, from where
//! `start` finds, behind what `overlap` compares.

mod caller;
mod changes;
mod check;
mod file;
mod get;
mod index;
mod overlap;
mod parts;
mod publisher;
mod push;
mod reach;
mod receive;
mod spool;
mod start;
mod temporary;

pub(crate) use changes::per_folder;
pub use check::{ArchiveReport, GapReport, TimelineReport, WindowReport, check};
pub use get::{GetConfig, Got, get};
pub use index::{ArchiveIndex, TimelineWal};
pub(crate) use parts::read_received;
pub use push::{PushConfig, PushReport, push};
pub use reach::{Gap, Leg, Reached};
pub(crate) use receive::StorePlace;
