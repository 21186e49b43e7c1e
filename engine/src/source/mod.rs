//! Where a backup's bytes come from.

mod stream;

pub use stream::{StreamEnd, StreamSource};
