//! Where a backup's bytes come from.

mod stream;

pub use stream::{ExpectedStream, StreamEnd, StreamSource};
