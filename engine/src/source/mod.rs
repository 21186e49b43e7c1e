//! Where a backup's bytes come from.

mod decompress;
pub(crate) mod local;
mod stream;
mod target;

pub(crate) use stream::is_version_folder;
pub use stream::{ExpectedStream, StreamEnd, StreamSource};
pub use target::watch_target;
